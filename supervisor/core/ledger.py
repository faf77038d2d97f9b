"""What one freeze may have left frozen, and what proves that it is thawed. Pure.

`suspects` are the file systems that may be frozen. One enters when the freeze worker reports that it is about to issue
FIFREEZE (write-ahead), and leaves when FIFREEZE was refused, or a FITHAW proved it thawed. A killed worker may be
inside FIFREEZE, which takes effect later, just before the worker dies. So until it is reaped, only a FITHAW that undid
its freeze proves anything: EINVAL may come from a freeze that still waits for writers (freeze_super drops its lock
meanwhile) and cannot be stopped, and while its FIFREEZE is not known to have returned, what was undone may have been
somebody else's. When the worker is reaped, all that it attempted is suspect again, and only a thaw
worker that was forked after that (its number is over `proof_after`) proves anything (ADR 0014).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from ...agent.api.records import Mount, Plan
from ...agent.api.states import MountState, Phase
from ...agent.api.structs import Struct, field
from ...agent.api.text import listed
from ...agent.worker import messages

_UNDER_WAY = (MountState.SYNCING, MountState.FREEZING, MountState.THAWING)
_NOT_FROZEN = (MountState.BUSY, MountState.UNSUPPORTED, MountState.FAILED, MountState.SYNCED)
"""What may follow FREEZING if FIFREEZE did not freeze: it was refused, or never begun."""
_MEASURED = (MountState.SYNCING, MountState.FREEZING)
_NAMED = 3
NO_PLAN = Plan((), ())


class Mark(Struct):
    """One planned file system and its state, which it entered at `since`; `took` is how long the last step took.

    `spent` are the seconds of all syncs and FIFREEZEs that have ended, by their state. It stands still since
    `still_since`, if that is not 0; `standstill` is the longest time for which it did before. -1 is not known.
    """

    mount: Mount
    state: MountState = MountState.PENDING
    errno: int = 0
    error: str = ""
    since: float = 0.0
    took: float = -1.0
    spent: dict[MountState, float] = field(default_factory=dict)
    still_since: float = 0.0
    standstill: float = -1.0
    written: int = -1

    def seconds(self, now: float) -> float:
        """Return for how long what is being done to it has gone on, or else how long the last step took."""
        return now - self.since if self.state in _UNDER_WAY else self.took

    def seconds_of(self, state: MountState, now: float) -> float:
        """Return the seconds of all its syncs or FIFREEZEs, as that state says; -1 if there was none."""
        going = now - self.since if self.state is state else -1.0
        before = self.spent.get(state, -1.0)
        return going if before < 0 else before + max(0.0, going)

    def still(self, now: float) -> float:
        """Return the longest time for which it stood still, until `now` if it does; -1 if it did not."""
        return max(self.standstill, now - self.still_since if self.still_since else -1.0)

    def leaves(self, now: float, seconds: float) -> None:
        """Take note that its state ends; `seconds` is how long the step took that it was in, 0 if nobody says."""
        if self.state in _MEASURED:
            self.spent[self.state] = self.spent.get(self.state, 0.0) + (seconds or now - self.since)


class Ledger:
    """The file systems of one freeze, by their index in the plan. Only the ledger changes its members.

    `attempted` are those that a FIFREEZE was announced for, `returned` those of them where it froze, `refused` those
    where it failed. `held` are
    frozen, and no worker of ours has begun to thaw them: if one is found thawed, someone else did it. `stolen` are
    those that someone else was found to have thawed. `thawed_by` maps those that a FITHAW of ours has thawed to its
    worker: until then they were frozen. `forgotten` are those that an operator said to suspect no more. `in_flight`
    maps a file system to the worker that is trying to thaw it, or is to, and `begun` are those that it says it has
    begun with; `thawers` each thaw worker to the file systems that
    it was given, `dying` are the workers whose attempts do not count. `expedites`: grace periods may be left
    expedited. `counts` are the marks by state, and `moving` those that something is being done to, oldest first;
    both are updated step by step, so that a step costs the same however many there are.
    `going` are the newest figures of those that are synced: bytes written, bytes left, bytes a second, eta.
    `at_rest` are those that the freeze worker has thawed since it last announced a FIFREEZE of them: it may do so and
    freeze them again, until it is `parting` and thaws for good.
    """

    def __init__(self, freezer: int) -> None:
        """Begin the ledger of the freeze worker of that number, 0 if it is gone."""
        self.freezer = freezer
        self.reaped = not freezer
        self.planned = False
        self.plan = NO_PLAN
        self.marks: list[Mark] = []
        self.expedites = False
        self.attempted: set[int] = set()
        self.refused: set[int] = set()
        self.returned: set[int] = set()
        self.suspects: set[int] = set()
        self.held: set[int] = set()
        self.stolen: set[int] = set()
        self.thawed_by: dict[int, int] = {}
        self.forgotten: set[int] = set()
        self.proof_after = 0
        self.in_flight: dict[int, int] = {}
        self.begun: set[int] = set()
        self.thawers: dict[int, set[int]] = {}
        self.dying: set[int] = set()
        self.at_rest: set[int] = set()
        self.parting = False
        self.progress = messages.Progress(Phase.PLAN.value)
        self.going: dict[int, tuple[int, int, float, float]] = {}
        self.counts: Counter[MountState] = Counter()
        self.moving: dict[int, None] = {}

    # -- the plan

    def take(self, plan: Plan, *, expedites: bool) -> None:
        """Take the plan from the worker's report or from the journal."""
        self.planned = True
        self.plan = plan
        self.expedites = expedites
        self.marks = [Mark(mount) for mount in plan.mounts]
        self.counts = Counter({MountState.PENDING: len(self.marks)})

    def adopt(self, plan: Plan, since: float, *, expedites: bool) -> None:
        """Take a dead agent's plan and suspect all of it, since the reports died with that agent.

        They may be frozen `since` then, 0 if that is not known.
        """
        self.take(plan, expedites=expedites)
        everything = range(len(self.marks))
        self.attempted, self.suspects = set(everything), set(everything)
        for index, mark in enumerate(self.marks):
            self._enter(index, MountState.FROZEN)
            mark.error = "may be frozen: the agent died"
            mark.still_since = since

    # -- steps

    def note(self, worker: int, step: messages.Step, state: MountState, now: float) -> bool:
        """Take a step of the freeze worker or a thaw worker; return whether it shows that someone else had thawed."""
        index, freezer = step.mount, worker == self.freezer
        mark = self.marks[index]
        before, since = mark.state, mark.since
        if state is not before:
            mark.leaves(now, float(step.seconds))
        self._enter(index, state)
        mark.errno, mark.error = step.errno, step.error
        mark.took = float(step.seconds)
        mark.since = since if state is before else now
        if state is MountState.THAWING and worker not in self.dying:
            if self.in_flight.setdefault(index, worker) == worker:
                self.begun.add(index)
        elif self.in_flight.get(index) == worker:
            del self.in_flight[index]
            if state is MountState.FAILED:
                self._free_what_lies_on(index, worker)
        found_thawed = state is MountState.THAWED and step.errno == errno.EINVAL
        ours = self.parting if freezer else index in self.held  # while it freezes, only what it holds then counts
        by_another = found_thawed and index not in self.thawed_by and ours
        if by_another:
            self.stolen.add(index)
        if state is MountState.THAWED and not found_thawed:
            self.thawed_by[index] = worker
        if state in (MountState.THAWING, MountState.THAWED) and (freezer or state is MountState.THAWED):
            self.held.discard(index)
        if freezer and state in (MountState.FREEZING, MountState.FROZEN):
            mark.still_since = mark.still_since or now
            self.attempted.add(index)
            self.at_rest.discard(index)
            self.thawed_by.pop(index, None)  # ADR 0031: what it thawed before proves nothing of this freeze
            self.refused.discard(index)
            self.returned.discard(index)
            self.suspects.add(index)
            if state is MountState.FROZEN:
                self.held.add(index)
                self.returned.add(index)
        elif freezer and before is MountState.FREEZING and state in _NOT_FROZEN:
            self.refused.add(index)
            self._moves(index, now)
        elif state is MountState.THAWED:
            # ADR 0014: EINVAL proves nothing while the freeze worker is not reaped.
            undone = step.errno == 0 and index in self.returned
            if freezer or (worker > self.proof_after and (self.reaped or undone)):
                self._moves(index, now)
                if freezer:
                    self.at_rest.add(index)
            else:
                self._enter(index, MountState.THAWING)
                mark.since = since if before is MountState.THAWING else now
                found = "not frozen yet" if step.errno else "thawed"
                mark.error = f"{found}, but its worker may still freeze it"
        return by_another

    def _free_what_lies_on(self, failed: int, worker: int) -> None:
        """Leave to another what this thaw worker tries no more: what lies on one whose FITHAW failed (promise 10)."""
        for index, owner in list(self.in_flight.items()):
            if owner == worker and index not in self.begun and failed in self.marks[index].mount.hosts:
                del self.in_flight[index]

    def _moves(self, index: int, now: float) -> None:
        """Take note that it is proved not to be frozen."""
        self.suspects.discard(index)
        mark = self.marks[index]
        if mark.still_since:
            mark.standstill, mark.still_since = max(mark.standstill, now - mark.still_since), 0.0

    def longest_standstill(self, now: float) -> float:
        """Return the longest time, in seconds, for which one of them stood still."""
        return max((0.0, *(mark.still(now) for mark in self.marks)))

    def standstill_after_death(self, now: float) -> float:
        """Return that of an adopted plan: -1 if no FITHAW of ours has undone a freeze, so that nobody knows it."""
        return max((self.marks[index].still(now) for index in self.thawed_by), default=-1.0)

    @property
    def slowest(self) -> str:
        """The mount point of the one that took longest to sync, "" if none was synced."""
        synced = [mark for mark in self.marks if MountState.SYNCING in mark.spent]
        return max(synced, key=lambda mark: mark.spent[MountState.SYNCING]).mount.mountpoint if synced else ""

    def thaws_for_good(self) -> None:
        """Take note that the freeze worker has begun to thaw, and freezes nothing more."""
        self.parting = True

    def note_progress(self, progress: messages.Progress) -> str:
        """Take the newest figures of the disks; return what is wrong with them, "" if nothing is."""
        rows: dict[int, tuple[int, int, float, float]] = {}
        for row in progress.mounts:
            match row:
                case [int(index), int(written), int(left), int() | float() as rate, int() | float() as eta] if (
                    0 <= index < len(self.marks)
                ):
                    rows[index] = written, left, float(rate), float(eta)
                    mark = self.marks[index]
                    mark.written = written
                case _:
                    return f"Progress of {str(row)[:80]}"
        self.progress, self.going = progress, rows
        return ""

    def _enter(self, index: int, state: MountState) -> None:
        mark = self.marks[index]
        self.counts[mark.state] -= 1
        self.counts[state] += 1
        mark.state = state
        self.moving.pop(index, None)
        if state in _UNDER_WAY:
            self.moving[index] = None

    # -- deaths, and what they leave to be done

    def freezer_died(self, *, spoke_rubbish: bool) -> None:
        """Suspect what the dying freeze worker may have frozen; if it spoke rubbish, all that was planned."""
        # ADR 0004: after rubbish nothing that it had said counts.
        # ADR 0031: what it had thawed, and not announced again, it cannot be freezing.
        may_be = set(range(len(self.marks))) if spoke_rubbish else self.froze - self.at_rest
        self.suspects |= may_be - self.forgotten
        if spoke_rubbish:
            self.thawed_by = {index: worker for index, worker in self.thawed_by.items() if worker != self.freezer}

    def freezer_reaped(self, *, reported: bool, last_worker: int) -> None:
        """Take note that the freeze worker is gone, and has `reported` its end or not."""
        self.reaped = True
        self.free(self.freezer)
        self.proof_after = last_worker  # ADR 0014: thaw workers up to this one may have looked before the last FIFREEZE
        if reported:
            self.expedites = False  # it has put that back

    def thaws(self, thawer: int, mounts: set[int]) -> None:
        """Take note that this thaw worker was forked for these."""
        self.thawers[thawer] = mounts
        self.in_flight.update(dict.fromkeys(mounts, thawer))
        self.begun -= mounts

    def thawer_reaped(self, thawer: int, *, reported: bool) -> bool:
        """Take note that the thaw worker is gone; return whether it could have proved more thawed than it did."""
        self.free(thawer)
        given = self.thawers.pop(thawer)
        if self.reaped and thawer > self.proof_after and reported:
            self.expedites = False
        return bool(self.suspects & given) and (not self.reaped or thawer > self.proof_after)

    def free(self, worker: int) -> None:
        """End the attempts of this worker, also those that it is still to tell of: it is dead or dying."""
        self.dying.add(worker)
        self.in_flight = {mount: owner for mount, owner in self.in_flight.items() if owner != worker}

    def not_expedited(self) -> None:
        """Take note that the freeze worker has put grace periods back."""
        self.expedites = False

    @property
    def owed(self) -> bool:
        """Whether grace periods may still be expedited, although the dead worker left nothing frozen."""
        return self.reaped and self.expedites and bool(self.attempted) and not self.thawers

    @property
    def to_thaw(self) -> set[int]:
        """Those that may be frozen, and that no worker is trying to thaw."""
        return self.suspects - self.in_flight.keys()

    def forget(self, index: int) -> list[int]:
        """Suspect this one no more, since an operator says so; return the thaw workers that have nothing left to do."""
        self.suspects.discard(index)
        self.forgotten.add(index)
        self._enter(index, MountState.FAILED)
        mark = self.marks[index]
        mark.error = "forgotten by an operator: it may be frozen still"
        idle = [thawer for thawer, given in self.thawers.items() if not given & self.suspects]
        for thawer in idle:
            self.free(thawer)
            del self.thawers[thawer]
        return idle

    # -- words and figures

    @property
    def froze(self) -> set[int]:
        """Those that were, or may have been, frozen."""
        return self.attempted - self.refused

    def settle(self, now: float) -> None:
        """Set the final state of each file system: nothing is frozen any more."""
        for index, mark in enumerate(self.marks):
            mark.leaves(now, 0.0)
            if mark.state in (MountState.SYNCING, MountState.SYNCED):
                self._enter(index, MountState.PENDING)
            elif mark.state in (MountState.FREEZING, MountState.FROZEN, MountState.THAWING):
                self._enter(index, MountState.THAWED)

    def what_was_undone(self) -> str:
        """Return how many of those that may have been frozen were thawed, as the end of a sentence; or ""."""
        if not self.froze:
            return ""
        rest = len(self.froze - self.thawed_by.keys())
        found = f", {rest} found not frozen" if rest else ""
        return f"; thawed {len(self.thawed_by)} of {len(self.froze)}{found}"

    def what_is_left(self) -> str:
        """Return what may still be frozen, for a sentence."""
        return self.named(self.suspects) or "nothing, but a worker may still freeze"

    def named(self, indices: Iterable[int]) -> str:
        """Return the mount points of these."""
        return listed(self.marks[index].mount.mountpoint for index in sorted(indices))

    def doing(self, shown: Callable[[str], str] = str) -> str:
        """Return what is being done now, and where; `shown` shortens a mount point."""
        marks = [self.marks[index] for index in islice(self.moving, _NAMED)]
        more = len(self.moving) - len(marks)
        now = ", ".join(f"{mark.state.value} {shown(mark.mount.mountpoint)}" for mark in marks)
        return now + (f" and {more} more" if more else "")

    def journal(self, freeze: int, unreported: str, now: float) -> dict[str, Any]:
        """Return the record for the journal; `unreported` is for the next fsthaw if the agent dies."""
        return journal(freeze, self.plan, unreported, expedites=self.expedites, since=now)


def journal(
    freeze: int, plan: Plan, unreported: str, *, expedites: bool = False, told_at: float = 0.0, since: float = 0.0
) -> dict[str, Any]:
    """Return the record of a freeze for the journal.

    `told_at` is when `unreported` was first told, 0 if it was not. Nothing was frozen before `since`, 0 if that is not
    known. Both are seconds of the loop's clock.
    """
    record = {"freeze": freeze, "plan": plan.dump(), "untold": unreported, "expedites": expedites}
    return record | {"told_at": told_at, "since": since}

"""The record of one freeze: who asked, how long it was held, how it ended. Pure."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import islice

from ...agent.api.bounds import LEARNT_MAX
from ...agent.api.errors import Code, Fault
from ...agent.api.options import Options
from ...agent.api.records import Last, Learnt
from ...agent.api.states import Outcome
from ...agent.api.structs import Struct, field
from ...agent.worker import messages
from .events import Fields, Peer
from .ledger import Ledger
from .turn import Turn
from .writers import BAD, GOOD, Writers

THAWED_BY_ANOTHER = "someone else had thawed"
ABOUT_MAX = 32  # mount points that one entry of the log names
HOLDS_MAX = 64  # calls of va.fshold that may wait, so that the control pipe cannot fill
_SAY_WHAT_WAS_UNDONE = (Code.OVERRUN, Code.WORKER_DIED, Code.FREEZE_BROKEN, Code.VETOED)


class Transaction(Struct):
    """One freeze, from its admission to THAWED. Times are seconds of the loop's clock; 0 means not yet.

    `caller` waits for the answer to the freeze; `reported` says that it was answered how the freeze ended. Each of
    `hold_callers` waits until the keeper agrees to the end of the hold that it asked for. `held_until` is when the
    freeze ended. `held` are those that were frozen when the host was told. `asks`: the worker has synced and asks to
    proceed. `may_have_frozen`: it was told to, or it has said what cannot be; before that it has frozen nothing, and
    will not (ADR 0024). `reason` is why the worker thaws, as it says, "" if it was told to. `prepared`: the writers
    are, and the worker was told to sync. Nothing is quiesced or frozen before `starts_at`, and `goes` says that it has
    come. `attended_by` is the connection that must not end before its host has let it go, 0 for none. `slowed`: it has
    thawed again what it froze, for one that is slow to freeze. `holds` is the worker's report that all is frozen,
    which the writers then confirm. `channel` is that of the host that asked for it, `ended_by` the
    host that first asked for its thaw, `ended_wall` the time of day of that, and `verdict` what hosts said of the
    snapshot. `written` and `wrote` are as in `messages.Thawing`, of what was held; `counted`: the keeper has said so.
    `recovered`: an earlier agent began it, and died. `concluded`: nothing is frozen, and how it went is known; `told`:
    that was told, and stands (ADR 0040).
    """

    id: int
    options: Options
    ledger: Ledger
    caller: int | None = None
    outcome: Outcome = Outcome.THAWED
    fault: Fault | None = None
    reported: bool = False
    asks: bool = False
    journaled: bool = False
    goes: bool = False
    starts_at: float = 0.0
    attended_by: int = 0
    may_have_frozen: bool = False
    sync_since: float = 0.0
    synced_at: float = 0.0
    proceeded_at: float = 0.0
    held: frozenset[int] = frozenset()
    reason: str = ""
    prepared: bool = False
    slowed: bool = False
    verdict: str = ""
    channel: str = ""
    ended_by: Peer | None = None
    ended_wall: float = 0.0
    holds: messages.Frozen | None = None
    frozen_at: float = 0.0
    hold_ends: float = 0.0
    thaw_asked_at: float = 0.0
    held_until: float = 0.0
    hold_callers: list[tuple[int, float]] = field(default_factory=list)
    learnt: list[Learnt] = field(default_factory=list)
    more_learnt: int = 0
    written: int = -1
    wrote: str = ""
    counted: bool = False
    recovered: bool = False
    concluded: bool = False
    told: bool = False

    def note_prepared(self) -> None:
        """Take note that the writers are prepared, and the worker was told to sync."""
        self.prepared = True

    def note_slowed(self) -> None:
        """Take note that the worker thaws what it froze, because one is slow to freeze."""
        self.slowed = True

    def note_learnt(self, found: Learnt) -> None:
        """Take note of what a file system lies on, or, if of many already, that there is more."""
        if len(self.learnt) < LEARNT_MAX:
            self.learnt.append(found)
        else:
            self.more_learnt += 1

    def let_go(self, at: float) -> None:
        """Take note that a host lets it go at that second of the loop's clock."""
        self.starts_at, self.attended_by = at, 0

    def note_left(self, now: float) -> None:
        """Take note that the host that was to let it go has left, which is to want no freeze: no thaw is told of it."""
        self.thaw_asked_at = now

    def note_syncs(self, now: float) -> None:
        """Take note that the sync has begun."""
        self.sync_since = self.sync_since or now

    def note_synced(self, now: float) -> None:
        """Take note that the worker has synced, and asks to proceed."""
        self.asks, self.synced_at = True, now

    def awaits(self, journal: int) -> bool:
        """Return whether it waits for that journal: each freeze does so once."""
        return journal == self.id and not self.journaled

    def note_proceeds(self, now: float) -> None:
        """Take note that the worker is told to proceed: from now on it may have frozen something."""
        self.may_have_frozen, self.proceeded_at = True, now

    def note_held(self, frozen: messages.Frozen) -> None:
        """Take note that the worker holds all that is frozen; that is answered when the writers have confirmed."""
        self.holds, self.hold_ends = frozen, float(frozen.until)

    def note_written(self, thawing: messages.Thawing) -> None:
        """Take note of what was written while it was held, as the keeper says."""
        self.written, self.wrote, self.counted = thawing.written, thawing.wrote, True

    def disbelieve(self) -> None:
        """Take note that the freeze worker spoke rubbish: nothing good that it had said counts (ADR 0004)."""
        self.may_have_frozen, self.counted = True, False
        self.written = self.written or -1

    def ask_hold(self, call: int, now: float, seconds: float, most: float) -> float:
        """Note that a call asks to hold `seconds` from now, at most `most` (0: no limit); return until when.

        Raises Fault PARAMS for no seconds, and BUSY if too many calls wait for the keeper.
        """
        if seconds <= 0:
            raise Fault(Code.PARAMS, "va.fshold: seconds is 0, expected more; to thaw call va.fsthaw")
        if len(self.hold_callers) >= HOLDS_MAX:
            raise Fault(Code.BUSY, f"va.fshold: {HOLDS_MAX} calls wait for the keeper already")
        until = now + (min(seconds, most) if most else seconds)
        self.hold_callers.append((call, until))
        return until

    def end_hold(self, now: float) -> list[tuple[int, Fault]]:
        """Take note that the freeze ends; return the calls that asked to hold it longer, and the faults for them."""
        self.held_until = now
        fault = self.fault or Fault(Code.WRONG_STATE, "va.fshold: va.fsthaw was called meanwhile")
        callers, self.hold_callers = self.hold_callers, []
        return [(number, fault) for number, _ in callers]

    def ask_thaw(self, turn: Turn, by: Peer, verdict: str) -> None:
        """Note that a host asks for the thaw, and what it says of the snapshot: one bad is enough."""
        if not self.thaw_asked_at:
            self.thaw_asked_at, self.ended_by, self.ended_wall = turn.now, by, turn.wall
        self.verdict = verdict if self.verdict != BAD and verdict else self.verdict

    def about(self) -> Fields:
        """Return the fields of a log entry that name this freeze, and what is being done to which file systems."""
        marks = (self.ledger.marks[index] for index in islice(self.ledger.moving, ABOUT_MAX))
        return (("freeze_id", str(self.id)), *(("mount", mark.mount.mountpoint) for mark in marks))

    @property
    def ended_elsewhere(self) -> str:
        """What the freezer's channel is to hear if a host on another one has ended the freeze, "" if none has."""
        by = self.ended_by
        if by is None or not self.channel or by.channel == self.channel:
            return ""
        when = datetime.fromtimestamp(int(self.ended_wall), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"freeze {self.id} was ended by another host, {by.who} on {by.channel}, at {when}"

    @property
    def thawed_count(self) -> int:
        """How many file systems were thawed, as it is reported to a host."""
        good = self.outcome is Outcome.THAWED
        return len(self.held if good else self.ledger.thawed_by)

    @property
    def unproved(self) -> set[int]:
        """Those that were held, and that no FITHAW of ours has undone: nobody knows when they were thawed."""
        return set(self.held - self.ledger.thawed_by.keys())

    @property
    def doubt(self) -> str:
        """Why nobody knows that all was held until the thaw was asked, "" if it was.

        What died with a worker counts against the freeze, never for it (promise 9).
        """
        if self.unproved:
            return f"nobody saw that {self.ledger.named(self.unproved)} was frozen until it was thawed"
        if self.held and not self.counted:
            return "nobody knows what was written while it was held: that died with the keeper"
        return ""

    @property
    def may_end_badly(self) -> bool:
        """Whether nothing has broken it yet, and nobody was told that it was good."""
        return self.outcome is Outcome.THAWED and not self.told

    @property
    def verdict_good(self) -> bool:
        """Whether what was taken of the disks meanwhile is good, as far as it is known here."""
        return self.outcome is Outcome.THAWED and self.verdict != BAD and bool(self.ledger.froze)

    @property
    def final_fault(self) -> Fault | None:
        """The fault that is reported to a host at the end; None if all went well."""
        fault = self.fault
        stolen = f"{THAWED_BY_ANOTHER} {self.ledger.named(self.ledger.stolen)}" if self.ledger.stolen else ""
        if fault is not None and self.wrote not in fault.text:
            fault = Fault(fault.code, f"{fault.text}; {self.wrote}")
        if fault is not None and stolen and THAWED_BY_ANOTHER not in fault.text:
            fault = Fault(fault.code, f"{fault.text}; {stolen}")
        if fault is not None and fault.code in _SAY_WHAT_WAS_UNDONE:
            return Fault(fault.code, f"{fault.text}{self.ledger.what_was_undone()}")
        return fault

    def _longest_standstill(self, now: float) -> float:
        """Return it as the reports tell, which may come late; what was held has stood still for as long as it was."""
        longest = self.ledger.longest_standstill(now)
        whole = self.outcome in (Outcome.THAWED, Outcome.EXPIRED) and bool(self.frozen_at)
        return max(longest, self.held_until - self.frozen_at) if whole else longest

    def summary(self, turn: Turn, writers: Writers) -> Last:
        """Return how the freeze ended; what becomes of its writers is not over yet (`History.amend`)."""
        fault, ledger, now = self.final_fault, self.ledger, turn.now
        good = self.outcome is Outcome.THAWED and bool(ledger.froze)
        known = bool(self.proceeded_at) and self.may_have_frozen
        never = -1.0 if self.recovered else 0.0
        return Last(
            freeze_id=self.id,
            outcome=self.outcome.value,
            held_continuously=good,
            held_seconds=max(0.0, self.held_until - self.frozen_at) if self.frozen_at else never,
            stall_seconds=ledger.standstill_after_death(now) if self.recovered else self._longest_standstill(now),
            error=fault.text if fault else "",
            at=turn.wall,
            consistency=("application" if writers.application_consistent else "file-system") if good else "none",
            verdict=GOOD if self.verdict_good else BAD,
            learnt=tuple(self.learnt),
            more_learnt=self.more_learnt,
            written_while_frozen=self.written,
            writers=writers.status(now),
            app_stall_seconds=writers.stall(now),
            file_systems=len(self.held) if self.held else -1 if self.recovered else 0,
            synced_bytes=ledger.progress.flushed_bytes,
            sync_seconds=(self.synced_at or now) - self.sync_since if self.sync_since else -1.0,
            slowest=ledger.slowest,
            freeze_seconds=(self.frozen_at or self.held_until or now) - self.proceeded_at if known else -1.0,
            thaw_seconds=now - self.held_until if self.held_until and (known or self.recovered) else -1.0,
        )

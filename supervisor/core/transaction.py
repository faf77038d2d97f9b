"""The record of one freeze: the plan, what was done to each file system, and which of them may be frozen. Pure.

What may be frozen (`suspects`): a file system enters when its worker reports that it is about to issue FIFREEZE, and
leaves when FIFREEZE was refused, or a FITHAW proved it thawed. A worker that is killed may be inside FIFREEZE, which
takes effect later, just before it dies. So as long as it is not reaped, only a FITHAW that undid a freeze proves
anything: EINVAL may come from a freeze that still waits for writers (freeze_super drops its lock meanwhile) and is not
to be stopped. When it is reaped all that it touched is suspect again, and only a thaw worker that was forked after
that (its number is over `floor`) proves anything.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ...agent.api.errors import Fault
from ...agent.api.options import Options
from ...agent.api.records import Mount, Plan
from ...agent.api.states import MountState, Outcome, Phase
from ...agent.worker import messages

_MEANWHILE = (MountState.SYNCING, MountState.FREEZING, MountState.THAWING)
_NAMED = 3


@dataclass(slots=True)
class Mark:
    """One planned file system and what has been done to it; `seconds` is how long the last step took."""

    mount: Mount
    state: MountState = MountState.PENDING
    errno: int = 0
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Last:
    """How the last freeze ended (status record, `last`); `at` is the time of day, seconds since the epoch."""

    freeze_id: int
    outcome: str
    held_continuously: bool
    held_seconds: float
    stall_seconds: float
    error: str
    at: float


@dataclass(slots=True)
class Freeze:
    """One freeze, from its admission to THAWED. Times are seconds of the loop's clock; mounts are plan indices.

    `held` are those frozen that none of ours has begun to thaw: one that is found thawed is someone else's doing.
    `undone` are those that a FITHAW of ours has thawed. `trying` maps a mount to the worker that has an attempt to
    thaw it in flight, `thawers` the thaw workers to the mounts that each was given. `caller` waits for va.fsfreeze's
    answer; `told` says that it learned how the freeze ended. `tally` counts the marks by state and `moving` are those
    that something is being done to, the longest first: with many file systems each step must cost the same.
    """

    id: int
    worker: int
    options: Options
    caller: int | None = None
    expedites: bool = False
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    marks: list[Mark] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    suspects: set[int] = field(default_factory=set)
    floor: int = 0
    reaped: bool = False
    trying: dict[int, int] = field(default_factory=dict)
    thawers: dict[int, set[int]] = field(default_factory=dict)
    thaw_callers: list[int] = field(default_factory=list)
    hold_callers: list[tuple[int, float]] = field(default_factory=list)
    progress: messages.Progress = field(default_factory=lambda: messages.Progress(Phase.PLAN.value))
    standstill_since: float = 0.0
    frozen_at: float = 0.0
    until: float = 0.0
    thaw_asked_at: float = 0.0
    over_at: float = 0.0
    outcome: Outcome = Outcome.THAWED
    fault: Fault | None = None
    told: bool = False
    planned: bool = False
    held: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    tally: Counter[MountState] = field(default_factory=Counter)
    moving: dict[int, None] = field(default_factory=dict)

    @property
    def froze(self) -> set[int]:
        """The mounts that were, or may have been, frozen."""
        return self.touched - self.refused

    def take(self, plan: Plan) -> None:
        """Take the plan that the worker reported or the journal kept."""
        self.planned = True
        self.plan = plan
        self.marks = [Mark(mount) for mount in plan.mounts]
        self.tally = Counter({MountState.PENDING: len(self.marks)})

    def suspect_all(self) -> None:
        """Take every planned file system for frozen: what was reported of them died with the agent."""
        self.touched, self.suspects = set(range(len(self.marks))), set(range(len(self.marks)))
        for index, mark in enumerate(self.marks):
            self._enter(index, MountState.FROZEN)
            mark.error = "may be frozen: the agent died"

    def _enter(self, index: int, state: MountState) -> None:
        mark = self.marks[index]
        self.tally[mark.state] -= 1
        self.tally[state] += 1
        mark.state = state
        self.moving.pop(index, None)
        if state in _MEANWHILE:
            self.moving[index] = None

    def note(self, worker: int, step: messages.Step, state: MountState, now: float) -> bool:
        """Take a step of the freeze worker or a thaw worker; return whether it shows that someone else had thawed."""
        index, freezer = step.mount, worker == self.worker
        mark = self.marks[index]
        before = mark.state
        self._enter(index, state)
        mark.errno, mark.error, mark.seconds = step.errno, step.error, float(step.seconds)
        if state is MountState.THAWING:
            self.trying.setdefault(index, worker)
        elif self.trying.get(index) == worker:
            del self.trying[index]
        found_thawed = state is MountState.THAWED and step.errno == errno.EINVAL
        by_another = found_thawed and index not in self.undone and (freezer or index in self.held)
        if state is MountState.THAWED and not found_thawed:
            self.undone.add(index)
        if state in (MountState.THAWING, MountState.THAWED) and (freezer or state is MountState.THAWED):
            self.held.discard(index)
        if freezer and state in (MountState.FREEZING, MountState.FROZEN):
            self.standstill_since = self.standstill_since or now
            self.touched.add(index)
            self.refused.discard(index)
            self.suspects.add(index)
            if state is MountState.FROZEN:
                self.held.add(index)
        elif freezer and before is MountState.FREEZING:
            self.refused.add(index)
            self.suspects.discard(index)
        elif state is MountState.THAWED:
            if freezer or (worker > self.floor and (self.reaped or step.errno == 0)):
                self.suspects.discard(index)
            else:
                self._enter(index, MountState.THAWING)
                mark.error = "not frozen yet, but its worker may still freeze it"
        return by_another

    def settle(self) -> None:
        """Have each file system say what it is when nothing is frozen any more."""
        for index, mark in enumerate(self.marks):
            if mark.state in (MountState.SYNCING, MountState.SYNCED):
                self._enter(index, MountState.PENDING)
            elif mark.state in (MountState.FREEZING, MountState.FROZEN, MountState.THAWING):
                self._enter(index, MountState.THAWED)

    def what_was_undone(self) -> str:
        """Return how many of those that may have been frozen were thawed, to end a sentence; or nothing."""
        if not self.froze:
            return ""
        rest = len(self.froze - self.undone)
        return f"; thawed {len(self.undone)} of {len(self.froze)}" + (f", {rest} found not frozen" if rest else "")

    def possible(self, rubbish: bool) -> set[int]:
        """Return what a dead freeze worker may have frozen; if it spoke rubbish, anything that was planned."""
        return set(range(len(self.marks))) if rubbish else self.froze

    def doing(self, shown: Callable[[str], str] = str) -> str:
        """Return what is being done now, and where; `shown` makes of a mount point what is to be shown of it."""
        marks = [self.marks[index] for index in islice(self.moving, _NAMED)]
        more = len(self.moving) - len(marks)
        now = ", ".join(f"{mark.state.value} {shown(mark.mount.mountpoint)}" for mark in marks)
        return now + (f" and {more} more" if more else "")

    def summary(self, fault: Fault | None, now: float, at: float) -> Last:
        """Return how the freeze ended."""
        return Last(
            freeze_id=self.id,
            outcome=self.outcome.value,
            held_continuously=self.outcome is Outcome.THAWED and bool(self.froze),
            held_seconds=max(0.0, self.over_at - self.frozen_at) if self.frozen_at else 0.0,
            stall_seconds=now - self.standstill_since if self.standstill_since else 0.0,
            error=fault.text if fault else "",
            at=at,
        )


def journal(freeze: int, plan: Plan, untold: str, expedites: bool = False) -> dict[str, Any]:
    """Return what the journal keeps: what may be frozen, and what the next fsthaw is to be told if the agent dies."""
    return {"freeze": freeze, "plan": plan.dump(), "untold": untold, "expedites": expedites}

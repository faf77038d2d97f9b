"""The freeze state with its one setter. Pure."""

from __future__ import annotations

from ...agent.api.states import FREEZE_TABLE, FreezeEvent, FreezeState, following
from .events import Effect, Log


class State:
    """The freeze state, since when, what an ERROR is about, and a count of the changes."""

    def __init__(self, out: list[Effect]) -> None:
        self._out = out
        self.now = FreezeState.THAWED
        self.since = 0.0
        self.error = ""
        self.changes = 0

    def enter(self, event: FreezeEvent, why: str, at: float) -> None:
        """Take `event`: check the table, log old -> new with the reason, count. Raises Unlisted, a defect of ours."""
        old = self.now
        self.now = following(FREEZE_TABLE, old, event)
        self.since = at
        self.changes += 1
        failed = self.now is FreezeState.ERROR
        self.error = why if failed else ""
        self._out.append(Log("err" if failed else "notice", f"{old.name} -> {self.now.name}: {why}"))

"""What a monitoring system counts: freezes by outcome, and the seconds that they took, since the start. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ...agent.api.records import Last, Totals
from ...agent.api.states import Outcome, Phase

PHASES = tuple(
    phase.value
    for phase in Phase
    if phase not in (Phase.RUN, Phase.KEEP)  # those of other RPCs
)


class Counting:
    """The counts; `note` is told after each event what the phase is, and how the last freeze ended."""

    def __init__(self, now: float) -> None:
        self.start = now
        self._freezes = dict.fromkeys(_values(Outcome), 0)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._held = self._stalled = 0.0
        self._success = -1.0
        self._phase, self._since = "", now
        self._last: Last | None = None

    def note(self, now: float, phase: str, last: Last | None) -> None:
        """Take what has passed in the phase, and a freeze that has ended."""
        if self._phase in self._seconds:
            self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if last is None or last is self._last or phase == Phase.RELEASE.value:
            return  # until its writers are let go it is not known how it ended
        self._last = last
        self._freezes[last.outcome] += 1
        self._held += max(0.0, last.held_seconds)
        self._stalled += max(0.0, last.stall_seconds)
        if last.held_continuously:
            self._success = last.at

    def record(self) -> Totals:
        """Return the counts as they are in the status record."""
        return Totals(dict(self._freezes), dict(self._seconds), self._held, self._stalled, self._success)


def _values(kinds: Iterable[Outcome]) -> list[str]:
    return [kind.value for kind in kinds]

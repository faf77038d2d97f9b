"""What ps shows of the supervisor: a fixed part, then in brackets what is happening now. Pure.

The supervisor does not wake up to count seconds down; so it shows the time of day at which the hold ends (ADR 0001).
The keeper has nothing else to do, and counts down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...agent.api.states import FreezeState, MountState, WorkerState
from ...agent.api.text import brief
from .freeze import Freeze
from .status import phase_of
from .turn import Turn
from .workers import Workers, while_clause
from .writers import Writers


def _error(freeze: Freeze, _workers: Workers, _writers: Writers) -> tuple[str, float | None]:
    return f"error: {freeze.error}", None


def _thawed(freeze: Freeze, workers: Workers, writers: Writers) -> tuple[str, float | None]:
    if freeze.preparing or freeze.releasing:
        doing = "letting go" if freeze.releasing else "preparing"
        names = writers.waited_for
        return f"thawed; writers {doing}{': ' if names else ''}{names}", None
    if held := writers.stuck():
        return f"thawed; writer {held}", None
    stuck = next((worker for worker in workers if worker.state is WorkerState.STUCK), None)
    return f"thawed; {stuck.name} is stuck{while_clause(stuck)}" if stuck else "thawed", None


def _in_progress(freeze: Freeze, workers: Workers, writers: Writers) -> tuple[str, float | None]:
    ledger = freeze.current.ledger
    if waited_for := writers.waited_for:
        return f"{phase_of(freeze, workers)} {waited_for}", None
    worker = workers.get(ledger.freezer)
    return f"{worker.phase.value if worker else ''} {ledger.doing(brief) or _frozen_count(freeze)}", None


def _frozen(freeze: Freeze, _workers: Workers, _writers: Writers) -> tuple[str, float | None]:
    ends = freeze.hold_ends
    return (f"frozen {_frozen_count(freeze)}, thaws at", ends) if ends else (f"frozen {_frozen_count(freeze)}", None)


def _thawing(freeze: Freeze, _workers: Workers, _writers: Writers) -> tuple[str, float | None]:
    ledger = freeze.current.ledger
    doing = ledger.doing(brief)
    return f"thawing {ledger.counts[MountState.THAWED]}/{len(ledger.marks)}{': ' + doing if doing else ''}", None


def _frozen_count(freeze: Freeze) -> str:
    return f"{freeze.current.ledger.counts[MountState.FROZEN]}/{len(freeze.current.ledger.marks)}"


_TITLES: Mapping[FreezeState, Callable[[Freeze, Workers, Writers], tuple[str, float | None]]] = {
    FreezeState.ERROR: _error,
    FreezeState.THAWED: _thawed,
    FreezeState.INPROGRESS: _in_progress,
    FreezeState.FROZEN: _frozen,
    FreezeState.THAWINPROGRESS: _thawing,
}


class Title:
    """The title that is shown now."""

    def __init__(self) -> None:
        self._shown: tuple[str, float | None] = ("", None)

    def show(self, turn: Turn, freeze: Freeze, workers: Workers, writers: Writers, *, stopping: bool = False) -> None:
        """Show what is happening, if that differs from what is shown."""
        text, until = _TITLES[freeze.state](freeze, workers, writers)
        title = f"stopping, {text}" if stopping else text, until
        if title != self._shown:
            self._shown = title
            turn.title(*title)

"""What ps shows of the supervisor: a fixed part, then in brackets what is happening now. Pure.

The supervisor does not wake to count seconds down, so it names the time of day at which the hold ends; the keeper,
which has nothing else to do, counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...agent.api.states import FreezeState, MountState
from ...agent.api.text import brief
from .events import SetTitle
from .state import State
from .transaction import Freeze
from .workers import Workers


def supervisor(state: State, freeze: Freeze | None, workers: Workers) -> tuple[str, float | None]:
    """Return the title's text and the second (of the loop's clock) whose time of day completes it."""
    tally, planned = (freeze.tally, len(freeze.marks)) if freeze else (Counter[MountState](), 0)
    if state.now is FreezeState.THAWED:
        return "thawed", None
    if state.now is FreezeState.ERROR:
        return f"error: {state.error}", None
    count = f"{tally[MountState.FROZEN]}/{planned}"
    if state.now is FreezeState.FROZEN and freeze is not None:
        return (f"frozen {count}, thaws at", freeze.until) if freeze.until else (f"frozen {count}", None)
    if state.now is FreezeState.INPROGRESS and freeze is not None:
        worker = workers.get(freeze.worker)
        phase = worker.phase.value if worker else ""
        return f"{phase} {freeze.doing(brief) or count}", None
    doing = freeze.doing(brief) if freeze else ""
    return f"thawing {tally[MountState.THAWED]}/{planned}{': ' + doing if doing else ''}", None


class Title:
    """The title that is shown now."""

    def __init__(self) -> None:
        self._shown: tuple[str, float | None] = ("", None)

    def changed(self, state: State, freeze: Freeze | None, workers: Workers) -> Iterator[SetTitle]:
        """Yield what is to be shown if it is another."""
        title = supervisor(state, freeze, workers)
        if title != self._shown:
            self._shown = title
            yield SetTitle(*title)

"""The end of the agent: everybody is answered, and what runs is ended. Pure."""

from __future__ import annotations

from ...agent.api.errors import Code, Fault
from ...agent.api.states import WorkerEvent
from . import events
from .pending import Pending
from .resources import Resources
from .turn import Turn
from .workers import Workers


def end(turn: Turn, pending: Pending, workers: Workers, resources: Resources, why: str) -> None:
    """Answer all who wait, end the workers, and end; nothing is frozen any more, and no writer held."""
    for worker in workers:
        if worker.row.thaws_first:
            pending.answer(turn, worker.call, "dummy")  # the shutdown works: it is what sent the signal
    pending.answer_all(turn, Fault(Code.WRONG_STATE, why))
    for worker in workers:
        if worker.alive and not resources.drop(turn, worker):
            workers.kill(turn, worker, WorkerEvent.CANCELLED, f": {why}")
    turn.do(events.Quit(0))

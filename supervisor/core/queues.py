"""Request queues that a dead worker may have left short (ADR 0042): when to look, and who puts them back. Pure.

Whoever has shortened them puts them back (agent/worker/queues.py). When one of those is reaped, the supervisor looks
whether its record is still there, and then forks a worker that puts them back; that delays no freeze and no thaw.
"""

from __future__ import annotations

from ...agent.api.errors import Code
from ...agent.api.methods import RPCS, Disk, Rpc
from ...agent.api.states import WorkerEvent, WorkerState
from ...agent.worker import messages
from .events import LookAtQueues
from .timing import OWNER
from .turn import Turn
from .workers import Worker, Workers

RETRY = (OWNER, "queues")  # the deadline at which it is tried again
RETRY_FIRST, RETRY_MAX = 1.0, 30.0  # seconds until then; they double each time
LIMIT = 10.0  # seconds; the worker itself gives up before


class Queues:
    """The worker that puts back. `awaited`: the end of the agent waits for it, or for what it waits for."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._folder = ""
        self._used = self._looks = False
        self._worker = 0
        self._backoff = RETRY_FIRST
        self.awaited = False

    def configure(self, folder: str, *, used: bool) -> None:
        """Set the folder of the record in memory, and whether queues are shortened from now on."""
        self._folder = folder
        self._used |= used  # those that began before may have been told otherwise

    def ended(self, turn: Turn, worker: Worker, death: str) -> None:
        """Take note that a worker was reaped; `death` is the sentence for that."""
        if worker.id == self._worker:
            self._worker = 0
            self._put(turn, worker, death)
        elif self._used and _shortens(worker.row):
            self._look(turn)

    def _look(self, turn: Turn) -> None:
        self._looks = True
        turn.do(LookAtQueues(self._folder))

    def seen(self, turn: Turn, *, left: bool) -> None:
        """Take note of whether queues are on record: then they are put back, if that is not being done already."""
        self._looks = False
        if left and not self._worker:
            self.put_back(turn)

    def put_back(self, turn: Turn) -> None:
        """Fork the worker that puts them back."""
        turn.cancel(RETRY)
        self._worker = self._workers.spawn(turn, RPCS["lengthen"], {"folder": self._folder}, None, LIMIT).id

    def _put(self, turn: Turn, worker: Worker, death: str) -> None:
        match worker.outcome:
            case messages.Done(str(done)) if not worker.killed:
                self._backoff = RETRY_FIRST
                if done:
                    turn.log("notice", done)
                self._look(turn)  # another one may have died meanwhile
                return
            case messages.Failed(Code.BUSY) if not worker.killed:
                pass
            case messages.Failed(_, text) if not worker.killed:
                turn.log("warning", f"{text}; trying again in {self._backoff:g} s")
            case _:
                turn.log("warning", f"{death}; trying again in {self._backoff:g} s")
        turn.arm(RETRY, self._backoff)
        self._backoff = min(self._backoff * 2, RETRY_MAX)

    def wait(self, turn: Turn) -> bool:
        """Return whether the end of the agent is to wait until queues are put back, by whatever must be killed first.

        They are tried once: what is left then, the next start finds.
        """
        ours = [one for one in self._workers if one.id == self._worker or (self._used and _shortens(one.row))]
        for worker in ours:
            if worker.alive and worker.id != self._worker:
                self._workers.kill(turn, worker, WorkerEvent.CANCELLED, ": the agent is being stopped")
        self.awaited = self._looks or any(worker.state is not WorkerState.STUCK for worker in ours)
        return self.awaited


def _shortens(row: Rpc) -> bool:
    return row.disk is Disk.FREEZES or row is RPCS["va.fssync"]

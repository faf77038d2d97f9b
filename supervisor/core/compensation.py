"""Undoing what a dead or killed freeze worker may have left: when, by which thaw worker, and when to retry. Pure.

At most one attempt is in flight for each file system, so nothing piles up behind a stuck disk.
"""

from __future__ import annotations

from ...agent.api.methods import RPCS
from ...agent.api.states import FreezeEvent, Phase, WorkerState
from ...agent.worker import messages
from .ledger import Ledger
from .timing import OWNER
from .turn import Turn
from .workers import Worker, Workers, while_clause

RETRY = (OWNER, "retry")  # the deadline at which a thaw that failed is tried again
RETRY_FIRST, RETRY_MAX = 0.02, 30.0  # seconds until then; they double each time
_NAMED = 3


class Compensation:
    """The thaw workers. `last_refusal` says why the last attempt did not thaw all."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._backoff = RETRY_FIRST
        self.last_refusal = "a thaw failed"
        self._limit = 0.0

    def configure(self, limit: float) -> None:
        """Set how many seconds a thaw may take."""
        self._limit = limit

    def due(self, turn: Turn, ledger: Ledger) -> bool:
        """Return whether to fork a thaw worker now: the freeze worker left something that it cannot thaw itself."""
        freezer = self._workers.get(ledger.freezer)
        left_alone = freezer is None or freezer.state in (WorkerState.KILLED, WorkerState.STUCK)
        return left_alone and (bool(ledger.to_thaw) or ledger.owed) and turn.left(RETRY) < 0

    def nothing_left(self, ledger: Ledger) -> bool:
        """Return whether nothing may be frozen any more, and no worker is left that could freeze."""
        return not self.at_work(ledger) and not ledger.suspects and not ledger.owed

    def at_work(self, ledger: Ledger) -> list[Worker]:
        """Return the freeze worker and the thaw workers that are not reaped."""
        found = (self._workers.get(number) for number in (ledger.freezer, *ledger.thawers))
        return [worker for worker in found if worker is not None]

    def retry_is_useful(self, turn: Turn, ledger: Ledger) -> str:
        """Return what a retry would do now, "" for nothing."""
        if self.due(turn, ledger):
            return "thaw again"
        return "nothing is frozen any more" if self.nothing_left(ledger) else ""

    def advance(self, turn: Turn, ledger: Ledger) -> tuple[FreezeEvent | None, str]:
        """Thaw what is to be thawed now; return what it has come to, and why, None while workers are at work."""
        if self.due(turn, ledger):
            self.start(turn, ledger)
        ours = self.at_work(ledger)
        stuck = [worker for worker in ours if worker.state is WorkerState.STUCK]
        if stuck:
            return FreezeEvent.STUCK, "; ".join(f"{worker.name} is stuck{while_clause(worker)}" for worker in stuck)
        return (None, "") if ours else (FreezeEvent.THAW_FAILED, self.last_refusal)

    def start(self, turn: Turn, ledger: Ledger) -> None:
        """Fork a thaw worker for all that may be frozen and that no other worker is thawing."""
        wanted = ledger.to_thaw
        mounts = {index: ledger.marks[index].mount for index in sorted(wanted)}
        args = {"mounts": mounts, "expedited": ledger.expedites}  # ADR 0022: it puts grace periods back first
        worker = self._workers.spawn(turn, RPCS["thaw"], args, None, self._limit)
        named = ", ".join(mount.mountpoint for mount in list(mounts.values())[:_NAMED])
        self._workers.describe(worker, f"thawing {named}")
        self._workers.enter_phase(turn, worker, Phase.THAW, self._limit)
        ledger.thaws(worker.id, wanted)

    def ended(self, turn: Turn, ledger: Ledger, worker: Worker, death: str, *, reported: bool) -> None:
        """Take note that a thaw worker was reaped; if it has not proved all thawed, try again later."""
        unproved = ledger.thawer_reaped(worker.id, reported=worker.outcome is not None)
        if isinstance(worker.outcome, messages.Failed):
            self._try_later(turn, worker.outcome.text)
        elif not reported:
            self._try_later(turn, death)
        elif unproved:
            self._try_later(turn, f"{worker.name} did not prove all thawed")

    def try_now(self, turn: Turn) -> None:
        """Forget the back-off, since something has changed or a host has asked."""
        self._backoff = RETRY_FIRST
        turn.cancel(RETRY)

    def _try_later(self, turn: Turn, why: str) -> None:
        turn.log("warning", f"thaw again in {self._backoff:g} s: {why}")
        turn.arm(RETRY, self._backoff)
        self._backoff = min(self._backoff * 2, RETRY_MAX)
        self.last_refusal = why

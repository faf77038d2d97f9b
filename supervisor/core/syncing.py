"""What each va.fssync is doing, so that whoever watches sees it: the ledgers of those that run. Pure."""

from __future__ import annotations

from ...agent.api.records import Plan
from ...agent.api.states import MountState
from ...agent.worker import messages
from .ledger import Ledger
from .workers import Worker, Workers

_STATES = {state.value: state for state in (MountState.SYNCING, MountState.SYNCED, MountState.FAILED)}


class Syncs:
    """The plans of the jobs that run, and how far they are; `changes` counts changes of that."""

    def __init__(self, workers: Workers) -> None:
        self.changes = 0
        self._workers = workers
        self._ledgers: dict[int, Ledger] = {}

    def receive(self, worker: Worker, message: messages.Report, now: float) -> str:
        """Take a report of a worker that syncs; return what is wrong with it, "" if nothing is."""
        self.changes += 1
        ledger = self._ledgers.get(worker.id)
        match message:
            case messages.Plan() if ledger is None:
                try:
                    plan = Plan.load(message.plan)
                except ValueError as error:
                    return f"Plan: {error}"
                self._ledgers = {number: one for number, one in self._ledgers.items() if self._runs(number)}
                self._ledgers[worker.id] = Ledger(worker.id)
                self._ledgers[worker.id].take(plan, expedites=False)
            case messages.Step() if ledger is not None:
                state = _STATES.get(message.state)
                if state is None or not 0 <= message.mount < len(ledger.marks):
                    return f"Step to {message.state[:40]!r} of mount {message.mount} of {len(ledger.marks)}"
                ledger.note(worker.id, message, state, now)
            case messages.Progress() if ledger is not None:
                return ledger.note_progress(message)
            case messages.Plan():
                return "a second Plan"
        return ""

    def newest(self) -> tuple[Worker, Ledger] | None:
        """Return the worker and the ledger of the one that was asked for last, None if none runs."""
        for number in sorted(self._ledgers, reverse=True):
            worker = self._workers.get(number)
            if worker is not None and worker.alive:
                return worker, self._ledgers[number]
        return None

    def _runs(self, number: int) -> bool:
        worker = self._workers.get(number)
        return worker is not None and worker.alive

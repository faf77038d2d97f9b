"""Where the steps of the writers and the phases of a freeze meet. Pure.

The freeze worker syncs when all are prepared, freezes when all are quiesced, and its freeze is answered when all have
confirmed. A refusal before that ends the freeze. What was held is let go when nothing is frozen any more, and only then
is the end of the freeze told.
"""

from __future__ import annotations

from ...agent.api.states import FreezeEvent, Phase
from ...agent.worker import messages
from .freeze import Freeze
from .turn import Turn
from .workers import Workers
from .writers import BAD, Writers


class Participation:
    """Takes what writers have done to the machine of the freeze, and what that has done to the writers."""

    def __init__(self, freeze: Freeze, workers: Workers, writers: Writers) -> None:
        self._freeze = freeze
        self._workers = workers
        self._writers = writers

    def planned(self, turn: Turn) -> None:
        """Prepare the writers, if any take part: the freeze worker has planned, and waits."""
        transaction = self._freeze.current
        options = transaction.options
        none = not options.waits or not transaction.ledger.plan.mounts
        devices = (mount.device for mount in transaction.ledger.plan.mounts)
        self._writers.prepare(turn, "none" if none else options.writers, options.held_at_most, devices)
        if options.waits:
            self._enter(turn, Phase.PREPARE, 0)
            self.changed(turn)

    def frozen(self, turn: Turn, report: messages.Frozen) -> None:
        """Have the writers confirm: the worker holds all that is frozen."""
        transaction = self._freeze.current
        transaction.note_held(report)
        marks = transaction.ledger.marks
        self._writers.confirm(turn, (marks[index].mount.device for index in transaction.ledger.held))
        self.changed(turn)

    def slowed(self, turn: Turn) -> None:
        """Take note that the worker thaws what it froze, and waits for one that is slow to freeze."""
        if not self._freeze.current.slowed:
            self._freeze.current.note_slowed()
            self._writers.be_patient(turn)

    def changed(self, turn: Turn) -> None:
        """Do what is possible now that a writer has changed."""
        freeze, writers = self._freeze, self._writers
        if freeze.preparing:
            if writers.ready or writers.refusal:
                freeze.release(turn, BAD)
        elif freeze.releasing:
            if writers.released:
                freeze.released(turn)
        elif freeze.expects(FreezeEvent.VETOED) and freeze.current.ledger.planned:
            self._go_on(turn)
        elif freeze.expects(FreezeEvent.HOLD_ASKED) and writers.broken:
            freeze.take(turn, FreezeEvent.WRITER_LOST, writers.broken)

    def _go_on(self, turn: Turn) -> None:
        freeze, writers, transaction = self._freeze, self._writers, self._freeze.current
        if writers.refusal:
            freeze.take(turn, FreezeEvent.VETOED, writers.refusal)
        elif transaction.holds is not None:
            if writers.confirmed:
                count = transaction.holds.count
                why = f"freeze {transaction.id}, file systems: {count}"
                freeze.take(turn, FreezeEvent.FROZEN, why, report=transaction.holds)
        elif transaction.goes:
            if not transaction.may_have_frozen:
                ready = writers.quiesced
                self._enter(turn, Phase.FREEZE if ready else Phase.QUIESCE, transaction.options.freeze_limit * ready)
            freeze.proceed_if_ready(turn)
        elif writers.ready and transaction.options.waits and not transaction.prepared:
            self._enter(turn, Phase.SYNC, transaction.options.sync_limit)
            transaction.note_prepared()
            transaction.note_syncs(turn.now)
            turn.tell(transaction.ledger.freezer, messages.Sync())

    def _enter(self, turn: Turn, phase: Phase, limit: float) -> None:
        freezer = self._workers.get(self._freeze.current.ledger.freezer)
        if freezer is not None and freezer.alive and freezer.phase is not phase:
            self._workers.enter_phase(turn, freezer, phase, limit)

"""What the log says in the middle of a long freeze: a sync that takes its time, and a hold that is about to end. Pure.

At most one deadline is armed, and only while there is something to be warned of, so that nothing ticks.
"""

from __future__ import annotations

from ...agent.api.states import MountState, Phase
from ...agent.api.text import brief, listed, size, took
from .freeze import Freeze
from .timing import OWNER
from .turn import Turn
from .workers import Workers

WARN = (OWNER, "warn")  # the deadline at which something is worth a line
SYNC_FIRST, SYNC_TIMES = 5.0, 4.0  # seconds of sync before the first line; times as long before each other
HOLD_SHARE = 0.8  # of the hold


class Warnings:
    """The lines that are due."""

    def __init__(self, freeze: Freeze, workers: Workers) -> None:
        self._freeze = freeze
        self._workers = workers
        self._seen: tuple[int, str, float] = (0, "", 0.0)
        self._since = 0.0
        self._next = SYNC_FIRST

    def note(self, turn: Turn, phase: str) -> None:
        """Arm or disarm the deadline when another phase has begun, or the hold was extended."""
        transaction = self._freeze.transaction
        seen = transaction.id if transaction else 0, phase, self._freeze.hold_ends
        if seen == self._seen:
            return
        same = seen[:2] == self._seen[:2]
        self._seen = seen
        self._since, self._next = (self._since if same else turn.now), SYNC_FIRST
        turn.cancel(WARN)
        if phase == Phase.SYNC.value:
            turn.arm(WARN, SYNC_FIRST)
        elif phase == Phase.HOLD.value and self._freeze.hold_ends:
            turn.arm(WARN, (self._freeze.hold_ends - turn.now) * HOLD_SHARE)

    def due(self, turn: Turn) -> None:
        """Say what is worth a line now."""
        if self._seen[1] == Phase.SYNC.value:
            self._long_sync(turn)
        else:
            self._hold_ends(turn)

    def _long_sync(self, turn: Turn) -> None:
        ledger = self._freeze.current.ledger
        marks = (mark for mark in ledger.marks if mark.state is MountState.SYNCING)
        slow = sorted(marks, key=lambda mark: mark.since)
        where = listed(brief(mark.mount.mountpoint) for mark in slow) or "what is planned"
        facts = [f"freeze {self._freeze.current.id}: still syncing {where} for {took(turn.now - self._since)}"]
        if ledger.progress.dirty_bytes >= 0:
            facts.append(f"{size(ledger.progress.dirty_bytes)} dirty")
        worker = self._workers.get(ledger.freezer)
        if worker is not None and (left := turn.left(worker.key)) >= 0:
            facts.append(f"gives up in {took(left)}")
        turn.log("warning", ", ".join(facts))
        self._next *= SYNC_TIMES
        turn.arm(WARN, self._since + self._next - turn.now)

    def _hold_ends(self, turn: Turn) -> None:
        left, held = self._freeze.hold_ends - turn.now, turn.now - self._since
        why = "no host has asked for its thaw or for a longer hold"
        turn.log("warning", f"freeze {self._freeze.current.id} thaws by itself in {took(left)}: {why} for {took(held)}")

"""The last freezes, in memory, so that one try by hand does not wipe out last night's backup. Pure."""

from __future__ import annotations

from collections import deque

from ...agent.api.records import Last, PastFreeze
from ...agent.api.structs import replace
from .events import Peer
from .transaction import Transaction
from .turn import Turn
from .writers import Writers

KEPT = 64


class History:
    """What became of the last freezes, oldest first; `last` of the last one."""

    def __init__(self) -> None:
        self.last: Last | None = None
        self._past: deque[PastFreeze] = deque(maxlen=KEPT)
        self._began = 0.0
        self._began_wall = -1.0
        self._by = ""

    def begin(self, turn: Turn, peer: Peer) -> None:
        """Take note that a freeze was admitted, asked for by `peer`."""
        self._began, self._began_wall = turn.now, turn.wall
        self._by = f"{peer.who} at {peer.channel}"

    def end(self, last: Last, transaction: Transaction | None = None) -> str:
        """Take note of how the freeze ended, and return who asked for it.

        Of one that an earlier agent began less is known.
        """
        self.last = last
        proceeded = transaction.proceeded_at if transaction and self._began_wall >= 0 else 0.0
        self._past.append(
            PastFreeze(
                freeze_id=last.freeze_id,
                began=self._began_wall,
                by=self._by,
                outcome=last.outcome,
                held_continuously=last.held_continuously,
                synced_bytes=last.synced_bytes,
                before_seconds=proceeded - self._began if proceeded else -1.0,
                held_seconds=last.held_seconds,
                stall_seconds=last.stall_seconds,
                app_stall_seconds=last.app_stall_seconds,
                error=last.error,
                at=last.at,
                file_systems=last.file_systems,
                sync_seconds=last.sync_seconds,
                slowest=last.slowest,
                freeze_seconds=last.freeze_seconds,
                thaw_seconds=last.thaw_seconds,
            )
        )
        by, self._began_wall, self._by = self._by, -1.0, ""
        return by

    def amend(self, turn: Turn, transaction: Transaction, writers: Writers) -> None:
        """Take note of how the writers of the last freeze were let go, which is after its end: its times stand."""
        assert self.last is not None
        now = transaction.summary(turn, writers)
        self.last = replace(
            self.last,
            outcome=now.outcome,
            held_continuously=now.held_continuously,
            error=now.error,
            consistency=now.consistency,
            verdict=now.verdict,
            writers=now.writers,
            app_stall_seconds=now.app_stall_seconds,
        )
        self._past[-1] = replace(
            self._past[-1],
            outcome=now.outcome,
            held_continuously=now.held_continuously,
            error=now.error,
            app_stall_seconds=now.app_stall_seconds,
        )

    def past(self) -> tuple[PastFreeze, ...]:
        """Return them."""
        return tuple(self._past)

"""The life of a worker that keeps something between requests: an open file, a program that it started.

After its first answer it obeys `Ask`, one at a time, until what it keeps has ended, it is told `Drop`, or the
supervisor is gone. A worker for each thing: one that is stuck on a dead disk takes nothing else with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import report
from .errors import Code, Fault

if TYPE_CHECKING:
    from .rpc import Rpc
    from .worker import Worker


class Kept:
    """What a worker keeps between requests: `key` is the number that a host calls it by, `value` the first answer."""

    key: int
    value: Any
    ended: bool = False
    """After an answer or a fault with this set the worker ends."""
    notify_loose: Callable[[], None] = staticmethod(lambda: None)
    """Called by it, from any thread, when it may be dropped should room be needed."""

    def close(self) -> None:
        """Let go of it; called once before the worker ends."""


def serve(worker: Worker, kept: Kept, rows: dict[str, Rpc]) -> None:
    """Answer the first request, then whatever is asked, until it ends."""
    kept.notify_loose = lambda: worker.reporter.post(report.Loose())
    worker.reporter.send(report.Kept(kept.key, kept.value))
    decoder = report.Decoder(report.CONTROLS)
    while not kept.ended and (data := os.read(worker.control_fd, 65536)):
        for message in decoder.feed(data):
            match message:
                case report.Ask(call, rpc, args) if not kept.ended:
                    worker.reporter.send(_reply(kept, rows[rpc], call, args))
                case report.Ask(call, rpc, _):
                    worker.reporter.send(report.Declined(call, int(Code.FAILED), rows[rpc].unknown.format(kept.key)))
                case report.Drop():
                    kept.ended = True
                case _:
                    raise AssertionError(message)
    kept.close()


def _reply(kept: Kept, row: Rpc, call: int, args: dict[str, Any]) -> report.Report:
    try:
        return report.Replied(call, row.handler(kept, args))
    except Fault as fault:
        return report.Declined(call, int(fault.code), fault.text)

"""The life of a worker that holds a resource between requests: an open file or a started program.

After its first answer it obeys `Ask`, one at a time, until the resource has ended, it is told `Drop`, or the supervisor
is gone. Each resource has a worker of its own (ADR 0020), so one that is stuck on a dead disk affects nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..api.errors import Code, Fault
from . import messages

if TYPE_CHECKING:
    from ..api.rpc import Rpc
    from .context import Args, Worker


class Resource:
    """What a worker holds. `key` is its number for hosts, `value` the first answer."""

    key: int
    value: object
    ended: bool = False
    """If this is set, the worker ends after its answer or fault."""
    notify_releasable: Callable[[], None] = staticmethod(lambda: None)
    """The resource calls this, from any thread, when it may be dropped if room is needed."""

    def acquired(self) -> None:
        """Begin what may notify; called once, when the first answer has been sent: nothing may be said before it."""

    def close(self) -> None:
        """Release the resource; called once before the worker ends."""


ResourceHandler = Callable[[Any, "Args"], object]
"""A function that carries out an RPC on a resource, whose class it knows, and returns the value."""


def serve(worker: Worker, resource: Resource, rows: Mapping[str, Rpc], handlers: Mapping[str, ResourceHandler]) -> None:
    """Answer the first request, then whatever is asked, until the resource ends."""
    resource.notify_releasable = lambda: worker.reporter.post(messages.Releasable())
    worker.reporter.send(messages.Acquired(resource.key, resource.value))
    resource.acquired()
    decoder = messages.Decoder(messages.CONTROLS)
    while not resource.ended and (data := os.read(worker.control_fd, 65536)):
        for message in decoder.feed(data):
            match message:
                case messages.Ask(call, rpc, args) if not resource.ended:
                    worker.reporter.send(_reply(resource, handlers[rows[rpc].handler], call, args))
                case messages.Ask(call, rpc, _):
                    gone = rows[rpc].unknown.format(resource.key)
                    worker.reporter.send(messages.Declined(call, int(Code.FAILED), gone))
                case messages.Drop():
                    resource.ended = True
                case _:
                    raise AssertionError(message)
    resource.close()


def _reply(resource: Resource, handler: ResourceHandler, call: int, args: Args) -> messages.Report:
    try:
        return messages.Replied(call, handler(resource, args))
    except Fault as fault:
        return messages.Declined(call, int(fault.code), fault.text)

"""The life of a worker that holds a resource: what it says, and in which order."""

from __future__ import annotations

import os
from typing import Any

from virtagent.agent.worker import messages
from virtagent.agent.worker.resource import Resource, serve


class Said:
    """The reporter of a worker."""

    def __init__(self) -> None:
        self.all: list[messages.Report] = []
        self.send = self.post = self.all.append


class Held:
    """The worker, whose supervisor has gone: it ends after its first answer."""

    def __init__(self) -> None:
        self.reporter = Said()
        self.control_fd, write = os.pipe()
        os.close(write)


class Over(Resource):
    """A resource that is over before its first answer is sent, as a program may be."""

    key, value = 7, {"pid": 7}
    closed = 0

    def acquired(self) -> None:
        self.notify_releasable()

    def close(self) -> None:
        self.closed += 1


def test_nothing_is_said_before_the_first_answer_and_what_may_be_dropped_is_said() -> None:
    """Seen: the supervisor kills a worker that says something before it; its host was told that guest-exec failed."""
    worker: Any = Held()
    resource = Over()
    serve(worker, resource, {}, {})
    os.close(worker.control_fd)
    assert worker.reporter.all == [messages.Acquired(7, {"pid": 7}), messages.Releasable()]
    assert resource.closed == 1

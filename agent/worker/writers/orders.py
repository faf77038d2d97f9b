"""What a writer's worker hears: the supervisor's orders, its death, and the end of the freeze after that.

While the supervisor lives, its word counts. When it is dead, the freeze worker thaws, and says on the lifeline that it
has; the lifeline is a pipe whose other end only the freeze worker has. Its end without a word means that the freeze
worker was killed: then something may be frozen, and only the next start of the agent can let go.
"""

from __future__ import annotations

import enum
import os
import select
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import messages
from .step import milliseconds

if TYPE_CHECKING:
    from ..context import Worker


class Interrupted(Exception):
    """What is being done is not wanted any more: an order to let go has come, or the supervisor is dead."""


class Gone(enum.Enum):
    """The supervisor is dead; is all thawed?"""

    THAWED = "thawed"
    UNKNOWN = "unknown"


class Orders:
    """The orders of the supervisor, in their order."""

    def __init__(self, worker: Worker) -> None:
        """Listen; raise OSError."""
        self._control = worker.control_fd
        self._lifeline = worker.lifeline_fd
        self._decoder = messages.Decoder(messages.CONTROLS)
        self._heard: list[messages.Act] = []
        self.alone = False
        self.held_until = 0.0
        """The latest CLOCK_MONOTONIC second until which the supervisor lets a hold last."""
        self._poll = select.poll()
        os.set_blocking(self._control, False)
        self._poll.register(self._control, select.POLLIN)
        self._pidfd = os.pidfd_open(worker.supervisor)  # ADR 0008: the pipe alone does not tell its death
        self._poll.register(self._pidfd, select.POLLIN)
        if os.getppid() != worker.supervisor:
            self._forget_supervisor()

    def wait(self, fd: int, until: float) -> bool:
        """Wait until the descriptor is readable or that second has come; return whether it is readable.

        Raises Interrupted.
        """
        return bool(self._wait((fd,), until, interrupts=True))

    def next(self, until: float, also: Sequence[int] = ()) -> messages.Act | Gone | None:
        """Return the next order; None at that second, or when one of the descriptors is readable."""
        while not self._heard:
            if self.alone:
                return self._end_of_freeze(until)
            if self._wait(also, until, interrupts=False) or time.monotonic() >= until:
                return self._heard.pop(0) if self._heard else None
        return self._heard.pop(0)

    def _wait(self, fds: Sequence[int], until: float, *, interrupts: bool) -> bool:
        """Wait for the descriptors, until that second, or for news of the supervisor if nothing `interrupts`."""
        for fd in fds:
            self._poll.register(fd, select.POLLIN)
        try:
            while True:
                if interrupts and (self.alone or any(order.step == "release" for order in self._heard)):
                    raise Interrupted
                if not interrupts and (self._heard or self.alone):
                    return False
                left = until - time.monotonic()
                if left <= 0:
                    return False
                ready = [fd for fd, _ in self._poll.poll(milliseconds(left))]
                if self._control in ready:
                    self._read_control()
                elif self._pidfd in ready:
                    self._forget_supervisor()
                elif ready:
                    return True
        finally:
            for fd in fds:
                self._poll.unregister(fd)

    def _read_control(self) -> None:
        data = os.read(self._control, 65536)
        if data:
            for message in self._decoder.feed(data):
                if isinstance(message, messages.Hold):
                    self.held_until = max(self.held_until, message.until)
                else:
                    self._heard.append(message)
        else:
            self._forget_supervisor()

    def _forget_supervisor(self) -> None:
        if not self.alone:
            self._poll.unregister(self._control)
            self._poll.unregister(self._pidfd)
            self.alone = True

    def _end_of_freeze(self, until: float) -> Gone | None:
        """Wait for the freeze worker's end, until that second at the latest."""
        if self._lifeline < 0:
            return Gone.UNKNOWN
        poll = select.poll()
        poll.register(self._lifeline, select.POLLIN)
        ready = poll.poll(milliseconds(until - time.monotonic()))
        if not ready:
            return None
        # It is not read: all writers listen to the one word on the one pipe.
        return Gone.THAWED if ready[0][1] & select.POLLIN else Gone.UNKNOWN

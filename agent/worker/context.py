"""What a handler in a forked worker may use: its report pipe and its title.

A report that must be seen (`send`) waits until the pipe has taken it. One that only informs (`inform`) is dropped if
the pipe is full. One that says what has been done (`post`) waits in memory, so that a full pipe, whose reader may be
stopped, never delays a thaw.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import setproctitle

from ..api.structs import Value
from ..api.text import printable
from . import messages

TITLE = "virtagentd: "


Args = Mapping[str, Any]
"""The checked arguments of an RPC by name, and what the supervisor adds to them."""


class Job(Value):
    """What a worker is forked for: its number, the name of the RPC's row, and the arguments of the handler."""

    worker: int
    rpc: str
    args: Args


class Reporter:
    """The worker's end of the report pipe, which all its threads use."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self.closed = False
        os.set_blocking(fd, False)

    def send(self, message: messages.Report) -> None:
        """Write `message` and wait until the pipe has taken it; return immediately if the supervisor is gone."""
        self.post(message)
        writable = select.poll()
        writable.register(self.fd, select.POLLOUT)
        while not self.flush():
            writable.poll()

    def post(self, *reports: messages.Report) -> None:
        """Write the messages now, or store them for the next flush if the pipe is full."""
        frames = [frame for report in reports for frame in messages.encode(report)]
        with self._lock:
            self._backlog.extend(frames)
            self._drain()

    def inform(self, message: messages.Report) -> None:
        """Write `message`, unless the pipe is full: a newer message will say more."""
        with self._lock:
            if not self._backlog:
                self._backlog.extend(messages.encode(message))
                self._drain()

    def flush(self) -> bool:
        """Write what the pipe takes; return whether nothing is left."""
        with self._lock:
            self._drain()
            return not self._backlog

    def _drain(self) -> None:
        while self._backlog:
            # As many frames as make one atomic write.
            count, size = 1, len(self._backlog[0])
            while count < len(self._backlog) and (size := size + len(self._backlog[count])) <= messages.PIPE_BUF:
                count += 1
            try:
                os.write(self.fd, b"".join(itertools.islice(self._backlog, count)))
            except BlockingIOError:
                return
            except OSError:
                # EPIPE: the supervisor is gone, so nobody reads. Whatever else it is, nothing can be reported any more;
                # but what is frozen must still be thawed.
                self.closed = True
                self._backlog.clear()
                return
            for _ in range(count):
                self._backlog.popleft()


class Worker:
    """What a handler in a worker may use."""

    def __init__(self, job: Job, report_fd: int, control_fd: int, supervisor: int, lifeline_fd: int = -1) -> None:
        self.id = job.worker
        self.rpc = job.rpc
        self.control_fd = control_fd
        self.supervisor = supervisor
        self.lifeline_fd = lifeline_fd
        self.reporter = Reporter(report_fd)
        self._role, self._name = "worker", ""

    def title(self, doing: str) -> None:
        """Show in ps what is happening now."""
        name = self._name or (self.rpc if self._role == "worker" else self.rpc.removeprefix("va."))
        setproctitle.setproctitle(f"{TITLE}{self._role} {self.id} {name} [{printable(doing)}]")

    def tell_thawed(self) -> None:
        """Say on the lifeline that nothing is frozen any more: writers wait for that if the supervisor is dead."""
        if self.lifeline_fd >= 0:
            with contextlib.suppress(BrokenPipeError):  # no writer is left
                os.write(self.lifeline_fd, b".")

    def become_keeper(self) -> None:
        """Call this worker keeper from the next title on."""
        self._role = "keeper"

    def become_writer(self, name: str) -> None:
        """Call this worker the writer of that name from the next title on."""
        self._role, self._name = "writer", name


WorkerHandler = Callable[[Worker, Args], object]
"""A function that carries out an RPC in a worker; returns the value, or a `resource.Resource` to be held."""

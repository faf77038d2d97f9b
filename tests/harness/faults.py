"""The calls of a hooked virtagentd that fail when the test says so, and a time of day that jumps.

fork and pidfd_open fail at the supervisor's process façade, pipe2 in the supervisor, the others in the workers.
"""

from __future__ import annotations

import _thread
import errno
import itertools
import os
import time
from pathlib import Path
from typing import Any

import setproctitle
from virtagent.agent.worker.mount_threads import CallThreads
from virtagent.agent.worker.writers import latch
from virtagent.supervisor.io import journal, process

from .orders import Orders

CALLS = {
    "fork": ("EAGAIN", "ENOMEM"),
    "pidfd_open": ("EMFILE", "ENFILE", "ENOMEM"),
    "pipe": ("EMFILE", "ENFILE"),
    "journal": ("ENOSPC", "ENOMEM"),
    "worker_open": ("EMFILE", "ENFILE", "ENOMEM"),
    "worker_pidfd_open": ("EMFILE", "ENOMEM"),
    "worker_thread": ("EAGAIN",),
}
"""What can be made to fail, and the errnos that it then may fail with."""
WRITER_CALLS = {
    "writer_fork": ("EAGAIN", "ENOMEM"),
    "writer_pipe": ("EMFILE", "ENFILE"),
    "writer_pidfd_open": ("EMFILE", "ENOMEM"),
    "writer_record": ("ENOSPC", "ENOMEM"),
}
"""The same in the workers of writers: the record of a latch is written, a program forked and watched."""

PASS = "PASS"
"""Instead of an errno: this call does not fail, but perhaps the next."""


class Faults:
    """What is ordered to fail, one order a call."""

    def __init__(self, folder: Path) -> None:
        self._orders = Orders(folder, "fault")

    def check(self, call: str) -> None:
        """Raise the OSError that is ordered for `call`, once for each order."""
        order = self._orders.take(lambda text: text.split()[0] == call)
        if order is None:
            return
        order.done()
        if (name := order.text.split()[1]) == PASS:
            return
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number))


def install(folder: Path) -> None:
    """Put the failing calls in place; workers inherit them."""
    faults = Faults(folder)
    supervisor = os.getpid()

    def failing(real: Any, call: str, *, of: str) -> Any:
        def wrapped(*args: Any, **names: Any) -> Any:
            if of == "writer":
                if os.getpid() != supervisor and ": writer " in setproctitle.getproctitle():
                    faults.check(call)
            elif (os.getpid() == supervisor) == (of == "supervisor"):
                faults.check(call)
            return real(*args, **names)

        return wrapped

    def open_hooked(path: Any, flags: int, *args: Any, **names: Any) -> int:
        # A worker opens a mount point with O_PATH first; nobody else does.
        if flags & os.O_PATH and os.getpid() != supervisor:
            faults.check("worker_open")
        return real_open(path, flags, *args, **names)

    def start_hooked(*args: Any) -> int:
        # A question of the plan that gets no thread has no answer, and nothing fails by that.
        if not isinstance(getattr(args[0], "__self__", None), CallThreads):
            return real_start(*args)
        try:
            faults.check("worker_thread")
        except OSError:
            raise RuntimeError("can't start new thread") from None
        return real_start(*args)

    real_open, real_start = os.open, _thread.start_new_thread
    names: Any = process.System
    names.fork = failing(process.System.fork, "fork", of="supervisor")
    names.open_pidfd = failing(process.System.open_pidfd, "pidfd_open", of="supervisor")
    names = journal.Journal
    names.write = failing(journal.Journal.write, "journal", of="supervisor")
    names = os
    names.pipe2 = failing(failing(os.pipe2, "pipe", of="supervisor"), "writer_pipe", of="writer")
    names.pidfd_open = failing(os.pidfd_open, "worker_pidfd_open", of="worker")
    names.pidfd_open = failing(names.pidfd_open, "writer_pidfd_open", of="writer")
    names.fork = failing(os.fork, "writer_fork", of="writer")
    names.open = open_hooked
    names = latch.Latch
    names.write = failing(latch.Latch.write, "writer_record", of="writer")
    names = _thread
    names.start_new_thread = start_hooked
    _install_clock(folder / "clock")


def _install_clock(steps: Path) -> None:
    """Let time.time be wrong by what the file says, while it is there."""
    real, turn = time.time, itertools.count()

    def stepping() -> float:
        try:
            wrong = steps.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return real()
        return real() + float(wrong[next(turn) % len(wrong)])

    names: Any = time
    names.time = stepping

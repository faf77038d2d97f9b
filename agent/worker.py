"""Body of a forked child: it runs one RPC, reports over its pipe and ends. It never returns into the supervisor's code.

A report that must be seen (`send`) waits until the pipe took it; one that only informs (`inform`) is dropped if the
pipe is full; one that tells what has been done already (`post`) waits in memory, so that a full pipe, whose reader may
be stopped, never delays a thaw.
"""

from __future__ import annotations

import gc
import itertools
import os
import select
import signal
import sys
import threading
import traceback
from collections import deque
from dataclasses import dataclass
from typing import Any, NoReturn

import setproctitle

from . import keeping, kernel, report
from .errors import Code, Fault
from .rpcs import RPCS
from .text import printable

TITLE = "virtagentd: "


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is forked for: its number, the RPC's row by name, and the handler's arguments."""

    worker: int
    rpc: str
    args: dict[str, Any]


class Reporter:
    """The worker's end of the report pipe; used by all its threads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self.closed = False
        os.set_blocking(fd, False)

    def send(self, message: report.Report) -> None:
        """Write `message`, waiting until the pipe has taken it; return at once if the supervisor is gone."""
        self.post(message)
        writable = select.poll()
        writable.register(self.fd, select.POLLOUT)
        while not self.flush():
            writable.poll()

    def post(self, *messages: report.Report) -> None:
        """Write the messages now, or keep them for the next flush if the pipe is full."""
        frames = [frame for message in messages for frame in report.encode(message)]
        with self._lock:
            self._backlog.extend(frames)
            self._drain()

    def inform(self, message: report.Report) -> None:
        """Write `message` unless the pipe is full: a newer one will say more."""
        with self._lock:
            if not self._backlog:
                self._backlog.extend(report.encode(message))
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
            while count < len(self._backlog) and (size := size + len(self._backlog[count])) <= report.PIPE_BUF:
                count += 1
            try:
                os.write(self.fd, b"".join(itertools.islice(self._backlog, count)))
            except BlockingIOError:
                return
            except BrokenPipeError:
                # The supervisor is gone: nobody reads, and what is frozen must still be thawed.
                self.closed = True
                self._backlog.clear()
                return
            for _ in range(count):
                self._backlog.popleft()


class Worker:
    """What a handler in a worker may use."""

    def __init__(self, job: Job, report_fd: int, control_fd: int, supervisor: int) -> None:
        self.id = job.worker
        self.rpc = job.rpc
        self.control_fd = control_fd
        self.supervisor = supervisor
        self.reporter = Reporter(report_fd)
        self._role = "worker"

    def title(self, doing: str) -> None:
        """Show in ps what is happening now."""
        name = self.rpc if self._role == "worker" else self.rpc.removeprefix("va.")
        setproctitle.setproctitle(f"{TITLE}{self._role} {self.id} {name} [{printable(doing)}]")

    def become_keeper(self) -> None:
        """Be called keeper from the next title on."""
        self._role = "keeper"


def run(job: Job, report_fd: int, control_fd: int, supervisor: int) -> NoReturn:
    """Run the job's handler in this freshly forked process, report its value or fault, and end the process."""
    code = 1
    try:
        gc.disable()
        _leave_the_supervisor(report_fd, control_fd)
        worker = Worker(job, report_fd, control_fd, supervisor)
        row = RPCS[job.rpc]
        worker.title(f"running, limit {row.limit:g} s" if row.limit else "starting")
        if not row.outlives:
            kernel.die_with_parent(signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)  # it died before that
        if not row.outlives or row.keeps:
            kernel.be_killed_like_others()
        worker.reporter.send(report.Started(os.getpid()))
        outcome: report.Report
        try:
            value = row.handler(worker, job.args)
            if isinstance(value, keeping.Kept):
                keeping.serve(worker, value, dict(RPCS))
                value = None
            outcome = report.Done(value)
        except Fault as fault:
            outcome = report.Failed(int(fault.code), fault.text)
        except Exception as error:  # noqa: BLE001 - a defect: it becomes the fault INTERNAL, with its place
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{job.rpc}: {type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"
            outcome = report.Failed(int(Code.INTERNAL), text)
        worker.reporter.send(outcome)
        code = 0
    finally:
        if code:
            traceback.print_exc(file=sys.stderr)
        os._exit(code)


def _leave_the_supervisor(report_fd: int, control_fd: int) -> None:
    """Drop what a fork inherits and a worker must not have: signal handling, session, descriptors."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # A Ctrl-C on the supervisor's terminal must not kill the keeper: the supervisor tells it to thaw.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    keep = sorted((report_fd, control_fd))
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    os.closerange(keep[1] + 1, os.sysconf("SC_OPEN_MAX"))

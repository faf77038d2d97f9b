"""A log on a disk, written by a process of its own, since that may block (ADR 0018).

The supervisor writes to a pipe without blocking. It also keeps the other end of the pipe, so what is in the pipe
outlives the writer, and another writer goes on with it. The writer ends when the supervisor has ended and all is
written; signals to the supervisor's group do not end it before. Before each write it checks whether the path still
leads to its file, and opens it anew if not, so a rotated log needs no signal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import signal
import stat
import sys
import time
import traceback
from datetime import datetime, timezone
from typing import NoReturn

import setproctitle

from ...agent.worker import context, kernel
from ...agent.worker.links import open_plain
from ..core.events import Entry
from .ours import why_not_ours
from .process import Ended, Processes, is_unreaped

AGAIN = 1.0  # seconds from the death of a writer to the next one
PIPE_SIZE = 1 << 20  # bytes that the pipe stores while the disk is stuck; more waits in the supervisor
READ = 16 << 10  # bytes that the writer reads in one piece, and loses if it is killed
MODE = 0o600


class LogFile:
    """The sink that a log writer empties into the file at `path`."""

    waits_while_frozen = False

    def __init__(self, path: str, processes: Processes) -> None:
        """Start the writer; raise OSError if a pipe or a fork was refused."""
        self.path = path
        self.pidfd = -1
        self.pid = -1
        self._lost: list[int] = []
        self._processes = processes
        self._read, self._write = os.pipe2(os.O_CLOEXEC)  # ADR 0018: the reading end stays open for the next writer
        os.set_blocking(self._write, False)
        with contextlib.suppress(PermissionError):  # over the user's quota: then more lines wait in the supervisor
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.start()

    def start(self) -> None:
        """Fork the writer; raise OSError. One of which no descriptor can be had is killed: there must be only one."""
        self._lost = [pid for pid in self._lost if is_unreaped(pid)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = self._processes.fork()
            if pid == 0:
                _run(self._read, self.path)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            self.pidfd = self._processes.open_pidfd(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            self._lost.append(pid)
            raise
        self.pid = pid

    def reap(self) -> Ended | None:
        """Reap the writer; return None if it has not ended."""
        ended = self._processes.reap(self.pidfd)
        if ended is not None:
            os.close(self.pidfd)
            self.pidfd = self.pid = -1
        return ended

    def fileno(self) -> int:
        """Return the descriptor that is writable again when the pipe takes more."""
        return self._write

    def line(self, priority: int, text: str, entry: Entry | None = None) -> bytes:
        """Return the bytes of one line, with the time of day in UTC."""
        now = datetime.fromtimestamp(time.time(), timezone.utc)
        return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03}Z {text}\n".encode(errors="backslashreplace")

    def write(self, data: bytes) -> int:
        """Write; return how much the pipe took."""
        return os.write(self._write, data)


class File:
    """The writer's side: the file that it appends to, and a count of lost lines."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._lost = 0
        self._said = ""
        self._stderr = True

    def append(self, data: bytes) -> None:
        """Write all of `data`; count the lines that are refused. Until the first success errors also go to stderr."""
        try:
            self._follow()
            if self._lost:
                self._put(f"log: {self._lost} lines were lost: {self._said}\n".encode())
                self._lost, self._said = 0, ""
            self._put(data)
            self._leave_stderr()
        except OSError as error:
            self._lost += data.count(b"\n")
            if self._said != error.strerror and self._stderr:
                sys.stderr.write(f"virtagentd: log file {self._path}: {error.strerror}\n")
            self._said = str(error.strerror)

    def _leave_stderr(self) -> None:
        """Close the stderr that the daemon was started with: a caller may be waiting for its end."""
        if self._stderr:
            self._stderr = False
            have_nothing_at(2)

    def _put(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _follow(self) -> None:
        """Open the file that the path leads to, if another one is open or none is."""
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            try:
                there = os.stat(self._path)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
            os.close(self._fd)
            self._fd = -1
        self._fd = _open(self._path)


def _open(path: str) -> int:
    """Open the log; raise OSError. Where others may put what they like, only a file of its own is taken, no link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    wrong = why_not_ours(path)
    if not wrong:
        return os.open(path, flags, MODE)
    fd = open_plain(os.fsencode(path), flags | os.O_NONBLOCK, MODE, follow=False)
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EPERM, f"not a file of its own, and {wrong}")
    return fd


def have_nothing_at(*fds: int) -> None:
    """Replace these descriptors by /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def _run(pipe: int, path: str) -> NoReturn:
    code = 1
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        os.closerange(3, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        have_nothing_at(0, 1)
        setproctitle.setproctitle(f"{context.TITLE}log writer [{path}]")
        kernel.be_killed_like_others()
        file = File(path)
        while data := os.read(pipe, READ):
            file.append(data)
        code = 0
    finally:
        if code:
            traceback.print_exc(file=sys.stderr)
        os._exit(code)

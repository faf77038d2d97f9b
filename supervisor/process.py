"""The process calls of the supervisor, in one place so that a test can have them fail."""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple, Protocol

import psutil


class Ended(NamedTuple):
    """How a child ended: by `signal`, or with `code` (signal 0)."""

    signal: int
    code: int


class Processes(Protocol):
    """What the supervisor does with processes."""

    def fork(self) -> int:
        """Fork; return 0 in the child. Raises OSError."""

    def open_pidfd(self, pid: int) -> int:
        """Return a descriptor that is readable when the child has ended. Raises OSError."""

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL; nothing if the child has ended."""

    def reap(self, pidfd: int) -> Ended | None:
        """Reap the child; None if it has not ended. Never waits."""

    def state(self, pid: int) -> str:
        """Return the process state (psutil's names, "disk-sleep" is D), "gone" if there is no such process."""


class System:
    """The real thing."""

    def fork(self) -> int:
        """Fork; return 0 in the child. Raises OSError."""
        return os.fork()

    def open_pidfd(self, pid: int) -> int:
        """Return a descriptor that is readable when the child has ended (pidfd_open(2)). Raises OSError."""
        return os.pidfd_open(pid)

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL; nothing if the child has ended."""
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def reap(self, pidfd: int) -> Ended | None:
        """Reap the child; None if it has not ended. Never waits."""
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return None
        return Ended(0, info.si_status) if info.si_code == os.CLD_EXITED else Ended(info.si_status, 0)

    def state(self, pid: int) -> str:
        """Return the process state, "disk-sleep" (D) if any of its threads is; "gone" if there is no such process.

        "unknown" if /proc could not be read.

        A killed process whose first thread has ended and another is stuck is a zombie to ps. psutil reads only
        /proc/TID/stat for it, which a stuck process does not block.
        """
        try:
            states = [_thread_state(tid) for tid in os.listdir(f"/proc/{pid}/task")]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"
        except OSError:
            return "unknown"
        known = [state for state in states if state]
        return psutil.STATUS_DISK_SLEEP if psutil.STATUS_DISK_SLEEP in known else (known or ["gone"])[0]


def _thread_state(tid: str) -> str:
    try:
        return str(psutil.Process(int(tid)).status())
    except psutil.NoSuchProcess:
        return ""  # it has just ended


def monotonic() -> float:
    """Return the loop's clock, CLOCK_MONOTONIC in seconds: the one that the keeper uses too."""
    return time.monotonic()

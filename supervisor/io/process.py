"""The process calls of the supervisor, in one place so that a test can make them fail."""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple, Protocol

import psutil

from ...agent.api.errors import no_more


class Ended(NamedTuple):
    """How a child ended: by `signal`, or with `code` (signal 0)."""

    signal: int
    code: int


class Processes(Protocol):
    """The process calls of the supervisor."""

    def fork(self) -> int:
        """Fork; return 0 in the child. Raises OSError."""

    def open_pidfd(self, pid: int) -> int:
        """Return a descriptor that is readable when the child has ended. Raises OSError."""

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL, unless the child has ended."""

    def reap(self, pidfd: int) -> Ended | None:
        """Reap the child; return None if it has not ended. Never waits."""

    def state(self, pid: int) -> str:
        """Return the process state (psutil's names, "disk-sleep" is D), "gone" if there is no such process."""

    def dying(self, pid: int) -> bool:
        """Return whether the process was killed, and only threads that are in the kernel are left of it."""


class System:
    """The system calls themselves."""

    def fork(self) -> int:
        """Fork; return 0 in the child. Raises OSError."""
        try:
            return os.fork()
        except BlockingIOError as error:
            raise no_more(error) or error from None

    def open_pidfd(self, pid: int) -> int:
        """Return a descriptor that is readable when the child has ended (pidfd_open(2)). Raises OSError."""
        return os.pidfd_open(pid)

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL, unless the child has ended."""
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def reap(self, pidfd: int) -> Ended | None:
        """Reap the child; return None if it has not ended. Never waits."""
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return None
        return Ended(0, info.si_status) if info.si_code == os.CLD_EXITED else Ended(info.si_status, 0)

    def state(self, pid: int) -> str:
        """Return the process state, "disk-sleep" (D) if any of its threads is; "gone" if there is no such process.

        Returns "unknown" if /proc could not be read.

        Each thread counts: a killed process whose first thread has ended while another is stuck is a zombie in ps. Only
        `stat` is read, which a stuck process does not block; and not by psutil, since there may be a thousand threads.
        """
        known = ""
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                letter = _thread_state(f"/proc/{pid}/task/{tid}/stat")
                if letter == "D":
                    return psutil.STATUS_DISK_SLEEP
                known = known or letter
        except (FileNotFoundError, ProcessLookupError):
            return "gone"
        except OSError:
            return "unknown"
        return _STATES.get(known, known) or "gone"

    def dying(self, pid: int) -> bool:
        """Return whether the process was killed, and only threads that are in the kernel are left of it.

        Its first thread has ended then; ours never ends before the others by itself.
        """
        try:
            return _thread_state(f"/proc/{pid}/task/{pid}/stat") in ("Z", "X")
        except OSError:
            return False


_STATES = {
    "R": psutil.STATUS_RUNNING,
    "S": psutil.STATUS_SLEEPING,
    "T": psutil.STATUS_STOPPED,
    "t": psutil.STATUS_TRACING_STOP,
    "Z": psutil.STATUS_ZOMBIE,
    "X": psutil.STATUS_DEAD,
    "I": psutil.STATUS_IDLE,
}


def _thread_state(stat: str) -> str:
    """Return the letter of a thread's state (proc(5)), "" if it has just ended."""
    try:
        fd = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    try:
        return os.read(fd, 512).rpartition(b") ")[2][:1].decode("ascii")
    except ProcessLookupError:
        return ""
    finally:
        os.close(fd)


def is_unreaped(pid: int) -> bool:
    """Reap the child if it has ended; return whether it is to be reaped later."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def monotonic() -> float:
    """Return the time of the loop's clock, CLOCK_MONOTONIC in seconds, which the keeper uses, too."""
    return time.monotonic()

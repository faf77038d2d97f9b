"""The journal on tmpfs: if the supervisor dies, it says what may be frozen, and what the next fsthaw must report.

It is written before anything is frozen, and replaced as a whole (rename(2)), so it is never half written. It is JSON,
so that an operator can read it; lone surrogates in paths survive as escapes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import Any

from ...agent.api.records import Plan
from ...agent.worker import sysfs
from ..core.events import JournalFound

VERSION = 1
FIRST_HANDLE = 1000  # as in qemu-ga
IN_MEMORY = ("tmpfs", "ramfs")


class BadStateDir(Exception):
    """The state directory cannot be used; one sentence."""


class NotInMemory(BadStateDir):
    """The state directory is not on tmpfs."""


def kinds(path: str) -> set[str]:
    """Return the types in mountinfo of the file system that the path lies on; raise OSError."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return {info.fstype for info in sysfs.read_mountinfo() if info.device == number}


def in_memory(path: str) -> bool:
    """Return whether the path exists and lies on a tmpfs."""
    try:
        return bool(kinds(path).intersection(IN_MEMORY))
    except OSError:
        return False


class Journal:
    """The journal in one state directory, which this process has locked."""

    def __init__(self, directory: str) -> None:
        """Make the directory if it is missing, and lock it; raise BadStateDir if it is in use or not on tmpfs."""
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            found = kinds(directory)
        except OSError as error:
            raise BadStateDir(f"state-dir {directory}: {error.strerror}") from None
        if not found.intersection(IN_MEMORY):
            raise NotInMemory(
                f"state-dir {directory} is on {', '.join(sorted(found)) or 'an unknown file system'}, not on tmpfs: "
                "writing there could block on a frozen file system"
            )
        self._path = os.path.join(directory, "journal")
        self._handles = os.path.join(directory, "handles")
        try:
            self._lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadStateDir(f"state-dir {directory}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BadStateDir(f"state-dir {directory} is in use by another virtagentd") from None

    def write(self, pid: int, record: dict[str, Any]) -> None:
        """Replace the journal; `pid` is that of the freeze worker, 0 if there is no worker. Raises OSError."""
        whole = {"version": VERSION, "boot": boot_id(), "worker": [pid, start_time(pid)], **record}
        fresh = self._path + ".new"
        with open(fresh, "w", encoding="ascii") as file:
            file.write(json.dumps(whole))  # json.dump does not use the encoder in C, and would take ten times as long
        os.rename(fresh, self._path)

    def remove(self) -> None:
        """Remove the journal if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def read(self) -> JournalFound | None:
        """Return the journal of an earlier supervisor, None if there is no journal; raise ValueError if it is bad."""
        try:
            with open(self._path, encoding="ascii") as file:
                record = json.load(file)
        except FileNotFoundError:
            return None
        except RecursionError:
            raise ValueError("nested too deep for a journal") from None
        match record:
            case {"version": int(version)} if version != VERSION:
                raise ValueError(f"journal of version {version}, this is {VERSION}")
            case {
                "boot": str(boot),
                "freeze": int(freeze),
                "worker": [int(pid), int(started)],
                "plan": dict(plan),
                "untold": str(unreported),
            }:
                if boot != boot_id():
                    # Nothing stays frozen after a boot.
                    return JournalFound(freeze, Plan((), ()), unreported)
                lives = pid > 0 and start_time(pid) == started
                orphan = (pid, started) if lives else (0, 0)
                return JournalFound(freeze, Plan.load(plan), unreported, orphan, record.get("expedites") is True)
        raise ValueError("not a journal")

    def keep_handle(self, number: int) -> None:
        """Remember the number for the next file that is opened for a host; raise OSError."""
        fresh = self._handles + ".new"
        with open(fresh, "w", encoding="ascii") as file:
            file.write(f"{number}\n")
        os.rename(fresh, self._handles)

    def next_handle(self) -> int:
        """Return the number for the next file that is opened for a host; numbers go on after a restart."""
        try:
            with open(self._handles, encoding="ascii") as file:
                return max(FIRST_HANDLE, int(file.read(32)))
        except (FileNotFoundError, ValueError):
            return FIRST_HANDLE

    def set_aside(self) -> str:
        """Store a journal that cannot be read also under another name, for an operator; return that name.

        It also stays in its place until another is written, so that a start finds it again if this one dies before.
        """
        aside = f"{self._path}.bad-{time.time_ns()}"
        os.link(self._path, aside)
        return aside


def start_time(pid: int) -> int:
    """Return when the process started, in clock ticks since boot (proc(5), stat field 22); 0 if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()

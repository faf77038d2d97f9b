"""The record of a latch: what a writer has set that nobody ends by itself, written in memory before it is set.

A folder on tmpfs has for each writer a lock, which its worker holds as long as it lives, the record, and two counts of
programs that have begun. So whoever comes later (a worker that undoes, the next start, `--recover`) waits until the
one before is dead, and then knows what was begun and what was not. A count is a file's length, and it is the program's
own process that adds to it, just before it becomes the program: so it is true whoever is killed (ADR 0027).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import Any

from ...api.errors import Code, Fault

LOCK, NEW = ".lock", ".new"
BEGUN, UNDONE = ".begun", ".undone"
"""The counts: of the programs that set something, and of those that undo it."""


class Latch:
    """The record of one writer, which this process has locked. `record` is None if nothing is set."""

    def __init__(self, folder: str, name: str, *, wait: bool = True) -> None:
        """Wait until no other process has the lock, and read the record; raise OSError, or ValueError if it is bad.

        Unless it is to `wait`, it raises BlockingIOError.
        """
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.name = name
        self._path = os.path.join(folder, name)
        self._lock = os.open(self._path + LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self.record = self._read()
        except (OSError, ValueError):
            os.close(self._lock)
            raise

    def _read(self) -> dict[str, Any] | None:
        try:
            with open(self._path, encoding="ascii") as file:
                found = json.load(file)
        except FileNotFoundError:
            return None
        if not isinstance(found, dict):
            raise ValueError(f"{self._path} is no record of a writer")
        return found

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record; the counts begin at 0 if there was none. Raises OSError."""
        if self.record is None:
            self._forget_counts()
        with open(self._path + NEW, "w", encoding="ascii") as file:
            file.write(json.dumps(record))
        os.rename(self._path + NEW, self._path)
        self.record = record

    def clear(self) -> None:
        """Remove the record: nothing is set any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self.record = None
        self._forget_counts()

    def unlock(self) -> None:
        """Let another process have the lock; this one is not used any more."""
        os.close(self._lock)

    def _forget_counts(self) -> None:
        for which in (BEGUN, UNDONE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + which)

    def count(self, which: str) -> int:
        """Return how many programs of that kind have begun."""
        try:
            return os.stat(self._path + which).st_size
        except FileNotFoundError:
            return 0

    def open_count(self, which: str) -> int:
        """Return a descriptor; each byte written to it counts one more."""
        return os.open(self._path + which, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, which: str) -> None:
        """Count one more, where there is no program to begin."""
        fd = self.open_count(which)
        os.write(fd, b".")
        os.close(fd)

    def take_back(self, which: str) -> None:
        """Count one less: the program could not be executed."""
        os.truncate(self._path + which, self.count(which) - 1)


def locked(supervisor: int, folder: str, name: str, *, wait: bool = True) -> Latch:
    """Return that record, locked; raise OSError, ValueError, or Fault FAILED if the supervisor has died.

    Who comes to the lock after that may find what a later supervisor's worker has set: it is not ours to undo. What the
    dead one left, the next start finds.
    """
    latch = Latch(folder, name, wait=wait)
    if os.getppid() != supervisor:
        raise Fault(Code.FAILED, "the agent died: what is on record is let go by its next start")
    return latch


def left(folder: str) -> list[str]:
    """Return the names of the writers that have a record in the folder, sorted; [] if there is no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.endswith((LOCK, NEW, BEGUN, UNDONE)))

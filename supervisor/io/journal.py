"""The journal on tmpfs: if the supervisor dies, it says what may be frozen, and what the next fsthaw must report.

It is written before anything is frozen, and replaced as a whole (rename(2)), so it is never half written. It is JSON,
so that an operator can read it; lone surrogates in paths survive as escapes. The folder and its files must be ours
alone: whoever else could write them could have root thaw, or kill, what they name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import time
from typing import Any

from ...agent.api.records import Plan
from ...agent.worker import sysfs
from ..core.events import JournalFound
from .ours import is_our_worker, start_time, why_not_ours, why_not_private

VERSION = 1
FIRST_HANDLE = 1000  # as in qemu-ga
IN_MEMORY = ("tmpfs", "ramfs")
_JOURNAL, _HANDLES, _FREEZE_ID = "journal", "handles", "freeze-id"
_NEW = ".new"


class BadStateDir(Exception):
    """The state directory cannot be used; one sentence."""


class NotInMemory(BadStateDir):
    """The state directory is not on tmpfs."""


def kinds(path: str | int) -> set[str]:
    """Return the types in mountinfo of the file system that the path or descriptor lies on; raise OSError."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return {info.fstype for info in sysfs.read_mountinfo() if info.device == number}


def in_memory(path: str) -> bool:
    """Return whether the path exists and lies on a tmpfs."""
    try:
        return bool(kinds(path).intersection(IN_MEMORY))
    except OSError:
        return False


def parse(text: str, boot: str) -> JournalFound:
    """Return what the text of a journal says to a supervisor in that boot; raise ValueError if it is none."""
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep for a journal") from None
    match record:
        case {"version": int(version)} if version != VERSION:
            raise ValueError(f"journal of version {version}, this is {VERSION}")
        case {
            "boot": str(written_in),
            "freeze": int(freeze),
            "worker": [int(pid), int(started)],
            "plan": dict(plan),
            "untold": str(unreported),
        }:
            if written_in != boot:
                # Nothing stays frozen after a boot.
                return JournalFound(freeze, Plan((), ()), unreported)
            orphan = (pid, started) if pid > 0 and _may_be_ours(pid, started) else (0, 0)
            whole = Plan.load(plan, exact=False)  # the agent that wrote it may have been of another version
            told_at, since = _second(record, "told_at"), _second(record, "since")
            return JournalFound(freeze, whole, unreported, orphan, record.get("expedites") is True, told_at, since)
    raise ValueError("not a journal")


def _may_be_ours(pid: int, started: int) -> bool:
    try:
        return is_our_worker(pid, started)
    except OSError:
        return True  # nothing can be read of it for now: `Children.adopt` looks again


def _second(record: dict[str, Any], name: str) -> float:
    found = record.get(name)
    return found if isinstance(found, float) and math.isfinite(found) else 0.0


class Journal:
    """The journal in one state directory, which this process has locked."""

    def __init__(self, directory: str) -> None:
        """Make the directory if it is missing, and lock it.

        Raises BadStateDir if it is in use, not on tmpfs, a link, or not ours alone.
        """
        self._directory = os.path.normpath(directory)
        try:
            self._folder = self._open_folder()
        except OSError as error:
            raise self._bad(str(error.strerror)) from None
        try:
            self._lock = self._open("lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            os.close(self._folder)
            raise BadStateDir(f"state-dir {directory} is in use by another virtagentd") from None
        except OSError as error:
            raise self._bad(f"lock: {error.strerror}") from None
        for name in (_JOURNAL, _HANDLES, _FREEZE_ID):
            self._forget(name + _NEW)  # a death cut its writing short

    def _open_folder(self) -> int:
        """Return a descriptor of the folder, after all that can be wrong with it; raise BadStateDir, OSError."""
        before = os.umask(0o022)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        finally:
            os.umask(before)
        if os.path.islink(self._directory):
            raise self._bad("it is a symbolic link; name the folder itself")
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if wrong := why_not_private(folder):
                raise self._bad(f"it {wrong}; others could plant a journal there")
            if wrong := why_not_ours(self._directory, group=True):
                raise self._bad(wrong)
            found = kinds(folder)
            if not found.intersection(IN_MEMORY):
                raise NotInMemory(
                    f"state-dir {self._directory} is on {', '.join(sorted(found)) or 'an unknown file system'}, not on "
                    "tmpfs: writing there could block on a frozen file system"
                )
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _bad(self, why: str) -> BadStateDir:
        return BadStateDir(f"state-dir {self._directory}: {why}")

    def _open(self, name: str, flags: int) -> int:
        """Open one of our files in the folder; raise BadStateDir if it is not ours, else OSError."""
        always = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(name, flags | always, 0o600, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise self._bad(f"{name} is no regular file; it is not ours, and is not read") from None
            raise
        wrong = why_not_private(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else "is no regular file"
        if wrong:
            os.close(fd)
            raise self._bad(f"{name} {wrong}; it is not ours, and is not read")
        return fd

    def _replace(self, name: str, text: str) -> None:
        """Replace one of our files as a whole; raise OSError."""
        fresh = name + _NEW
        try:
            with open(fresh, "w", encoding="ascii", opener=self._create) as file:
                file.write(text)
            os.rename(fresh, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            self._forget(fresh)
            raise

    def _forget(self, name: str) -> None:
        with contextlib.suppress(OSError):  # it is not there; or `_create` will say what is in its way
            os.unlink(name, dir_fd=self._folder)

    def _create(self, name: str, _flags: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(name, flags, 0o600, dir_fd=self._folder)
        except FileExistsError:  # whatever it is, nothing is written into it
            os.unlink(name, dir_fd=self._folder)
            return os.open(name, flags, 0o600, dir_fd=self._folder)

    def _read(self, name: str) -> str:
        """Return the text of one of our files; raise FileNotFoundError, OSError, ValueError, BadStateDir."""
        with open(name, encoding="ascii", opener=lambda path, _: self._open(path, os.O_RDONLY)) as file:
            return file.read()

    def write(self, pid: int, record: dict[str, Any]) -> None:
        """Replace the journal; `pid` is that of the freeze worker, 0 if there is no worker. Raises OSError."""
        whole = {"version": VERSION, "boot": boot_id(), "worker": [pid, start_time(pid)], **record}
        # json.dump does not use the encoder in C, and would take ten times as long.
        self._replace(_JOURNAL, json.dumps(whole))

    def remove(self) -> None:
        """Remove the journal if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_JOURNAL, dir_fd=self._folder)

    def read(self) -> JournalFound | None:
        """Return the journal of an earlier supervisor, None if there is no journal.

        Raises ValueError if it is bad, BadStateDir if it is not ours.
        """
        try:
            text = self._read(_JOURNAL)
        except FileNotFoundError:
            return None
        return parse(text, boot_id())

    def keep_handle(self, number: int) -> None:
        """Remember the number for the next file that is opened for a host; raise OSError."""
        self._replace(_HANDLES, f"{number}\n")

    def next_handle(self) -> int:
        """Return the number for the next file that is opened for a host; numbers go on after a restart.

        Raises BadStateDir if the file is not ours.
        """
        try:
            return max(FIRST_HANDLE, int(self._read(_HANDLES)[:32]))
        except (FileNotFoundError, ValueError):
            return FIRST_HANDLE

    def keep_freeze(self, number: int) -> None:
        """Remember the number of the last freeze; raise OSError."""
        self._replace(_FREEZE_ID, f"{number}\n")

    def last_freeze(self) -> int:
        """Return the number of the last freeze since the boot, 0 if there was none; raise BadStateDir as above."""
        try:
            return max(0, int(self._read(_FREEZE_ID)[:32]))
        except (FileNotFoundError, ValueError):
            return 0

    def set_aside(self) -> str:
        """Store a journal that cannot be read also under another name, for an operator; return that name.

        It also stays in its place until another is written, so that a start finds it again if this one dies before.
        """
        aside = f"journal.bad-{time.time_ns()}"
        os.link(_JOURNAL, aside, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return os.path.join(self._directory, aside)


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()

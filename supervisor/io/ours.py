"""Whether a path, a file or a process is ours alone: the supervisor is root, and believes and obeys only itself.

Whoever may write a folder may put another file, socket or link in the place of ours. Only the start asks that of paths,
before anything is served; an open descriptor is asked at any time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ...agent.worker.context import TITLE

LINKS_MAX = 40  # as the kernel follows (path_resolution(7))


def why_not_ours(path: str, *, group: bool = False) -> str:
    """Return who else could replace what is, or will be, at this absolute path; "" if nobody can.

    Each folder on the way must belong to root or to us, and be writable by nobody else, except for a sticky one like
    /tmp. With `group` its group must not write it either. A folder that is missing is not asked. Raises OSError.
    """
    for folder in _folders(path):
        try:
            about = os.stat(folder)
        except FileNotFoundError:
            return ""
        if about.st_uid not in (0, os.geteuid()):
            return f"the folder {folder} belongs to uid {about.st_uid}"
        if _others_write(about, group=group) and not about.st_mode & stat.S_ISVTX:
            return f"the folder {folder} can be written by others (mode {stat.S_IMODE(about.st_mode):04o})"
    return ""


def _folders(path: str) -> Iterator[str]:
    """Yield the folder of each name on the way to the path, also on the way that a link leads."""
    here, left, links = "/", path.split("/")[::-1], 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        yield here
        there = os.path.join(here, name)
        try:
            target = os.readlink(there)
        except OSError:  # no link, or nothing is there yet
            here = there
            continue
        if (links := links + 1) > LINKS_MAX:
            return
        here = "/" if target.startswith("/") else here
        left += target.split("/")[::-1]


def why_not_private(fd: int) -> str:
    """Return why the file or folder that `fd` is open on is not only ours to write; "" if it is."""
    about = os.fstat(fd)
    if about.st_uid != os.geteuid():
        return f"belongs to uid {about.st_uid}, not to uid {os.geteuid()}"
    if _others_write(about, group=True):
        return f"can be written by others (mode {stat.S_IMODE(about.st_mode):04o})"
    return ""


def _others_write(about: os.stat_result, *, group: bool) -> bool:
    return bool(about.st_mode & stat.S_IWOTH or (group and about.st_mode & stat.S_IWGRP))


def start_time(pid: int) -> int:
    """Return when the process started, in clock ticks since boot (proc(5), stat field 22); 0 if it does not exist."""
    stat_line = _stat(pid)
    return int(stat_line.rpartition(")")[2].split()[19]) if stat_line else 0


def is_our_worker(pid: int, started: int) -> bool:
    """Return whether the process is a worker of an agent of our user, and started at that time (`start_time`).

    A worker leads a session of its own and bears our title. Of /proc only what a stuck process does not block is read.
    Raises OSError if that is refused: then it may be one.
    """
    stat_line = _stat(pid)
    if not stat_line:
        return False
    name, _, rest = stat_line.partition("(")[2].rpartition(")")
    fields = rest.split()
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return False
    session, since = int(fields[3]), int(fields[19])
    return owner == os.geteuid() and session == pid and since == started and name.startswith(TITLE)


def _stat(pid: int) -> str:
    """Return the text of /proc/PID/stat, "" if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""

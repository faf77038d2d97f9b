"""Waiting until a path may lead somewhere else: inotify on each folder on the way, and on what is at its end.

A device may come late, go and come back, or be used by someone else for a while. Nothing is polled: make a
`PathWatch`, look, wait until it is readable, look again. Nothing is missed meanwhile, since each folder is watched
before a name in it is looked up. What goes on in a folder wakes nobody, unless the way ends there or has a link there:
one that it only passes tells when it is moved or removed itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque

from ...agent.worker import kernel
from ...agent.worker.kernel import Inotify

LINKS_MAX = 40  # as in the kernel
READ = 64 << 10
_FOLDER = (
    Inotify.CREATE
    | Inotify.MOVED
    | Inotify.DELETE
    | Inotify.ATTRIB
    | Inotify.DELETE_SELF
    | Inotify.MOVE_SELF
    | Inotify.ONLYDIR
)
_PASSED = Inotify.DELETE_SELF | Inotify.MOVE_SELF | Inotify.ONLYDIR
_END = Inotify.CLOSE | Inotify.ATTRIB | Inotify.DELETE_SELF


class PathWatch:
    """An inotify descriptor that is readable when the absolute `path` may lead somewhere else, or its end was closed.

    A watched folder reports about everything in it, so `happened` says whether it was about the path.
    """

    def __init__(self, path: str) -> None:
        """Set the watches; raise OSError if the user has too many."""
        self._fd = kernel.inotify_open()
        self._names: dict[int, set[str]] = {}
        self._end = self._given_up = -2
        try:
            self._walk(path)
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def happened(self) -> bool:
        """Read what is there to read; return whether to look again."""
        found = False
        while True:
            try:
                data = os.read(self._fd, READ)
            except BlockingIOError:
                return found
            for watch, name in kernel.inotify_events(data):
                if watch != self._given_up:
                    found |= not name or watch not in self._names or name in self._names[watch]

    def forget_end(self) -> None:
        """Watch only where the path leads, no longer what is there: the caller is about to close that."""
        if self._end >= 0:
            self._given_up, self._end = self._end, -2
            with contextlib.suppress(OSError):  # it is gone already
                kernel.inotify_unwatch(self._fd, self._given_up)

    def close(self) -> None:
        """End the watch."""
        os.close(self._fd)

    def _walk(self, path: str) -> None:
        here, links = "/", 0
        names = deque(path.split("/"))
        way: list[tuple[int, str]] = []
        matter: set[int] = set()
        try:
            while names and links <= LINKS_MAX:
                name = names.popleft()
                if name in ("", "."):
                    continue
                if name == "..":
                    here = os.path.dirname(here)
                    continue
                watch = kernel.inotify_watch(self._fd, here, _FOLDER)
                way.append((watch, here))
                self._names.setdefault(watch, set()).add(name)
                there = os.path.join(here, name)
                mode = os.lstat(there).st_mode
                if stat.S_ISDIR(mode) and names and names[0] != "..":
                    here = there
                    continue
                matter.add(watch)
                if stat.S_ISDIR(mode):
                    here = there
                elif stat.S_ISLNK(mode):
                    links += 1
                    target = os.readlink(there)
                    here = "/" if target.startswith("/") else here
                    names.extendleft(reversed(target.split("/")))
                else:
                    self._end = kernel.inotify_watch(self._fd, there, _END)
                    break
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # The folder watched last reports when the name comes or may be watched, or that the folder is gone.
            matter.update(watch for watch, _ in way[-1:])
        for watch, folder in way:
            if watch not in matter:
                with contextlib.suppress(OSError):  # it is gone, which its watch has told
                    kernel.inotify_watch(self._fd, folder, _PASSED)

"""Asks what lies below a file system where only an opened device or folder tells: loop devices, overlays, subvolumes.

What is asked may hang: the server of a loop device's file, the disk of a folder, what a link leads to. So it is asked
in threads, and has a second to answer in; what does not answer is not understood. Never in the supervisor.
"""

from __future__ import annotations

import _thread
import functools
import math
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from . import kernel
from .mountinfo import is_long, upper_folder
from .proof import mount_id
from .view import View

PATIENCE = 1.0  # seconds
GROWS_AFTER = 0.01  # seconds without an answer
T = TypeVar("T")


class Backing(NamedTuple):
    """What a loop device lies on: the superblock that has its file, or else a block device, both major:minor."""

    superblock: str = ""
    device: str = ""


class Probe:
    """What this process can find out about the mounts that it sees."""

    def __init__(self, view: View, elsewhere: Iterable[str] = (), until: float = math.inf) -> None:
        """`elsewhere` are the superblocks that are mounted only in other mount namespaces.

        No answer is waited for after `until` (CLOCK_MONOTONIC, seconds).
        """
        self._view = view
        self._until = until
        self._numbers = {*elsewhere, *view.devices}

    def loops(self, devices: Iterable[tuple[str, str, str]]) -> Mapping[str, Backing]:
        """Return what loop devices (name, number, path of the file) lie on, by name; those not understood are absent.

        One whose file seems to be behind FUSE or a network is not asked: the kernel would ask that server, and whoever
        waits for it could not be ended. What it lies on would not be understood anyway.
        """
        local = [(name, number) for name, number, path in devices if path[:1] != "/" or self._view.is_safe_path(path)]
        asked = ask({name: functools.partial(_status_of, name, number) for name, number in local}, until=self._until)
        found = {}
        for name, (st_dev, rdev) in asked.items():
            if rdev:
                found[name] = Backing(device=_number(rdev))
            elif superblock := self._superblock(_number(st_dev)):
                found[name] = Backing(superblock)
        return found

    def uppers(self, superblocks: Iterable[str]) -> Mapping[str, str]:
        """Return for those of the superblocks that are overlays the superblock of their upper layers.

        Absent are those whose upper layer was named by a relative path, or whose path leads to what was mounted later.
        """
        wanted, pending = {}, {*superblocks}
        while pending:
            overlays = {m.device: m for m in self._view.mounts if m.device in pending and m.fstype == "overlay"}
            paths = {device: upper_folder(m) for device, m in overlays.items()}
            safe = {d: path for d, path in paths.items() if path.startswith("/") and self._view.is_safe_path(path)}
            ids = ask({device: functools.partial(mount_at, path) for device, path in safe.items()}, until=self._until)
            pending = set()
            for device, (mount, _) in ids.items():
                upper = self._view.by_id.get(mount)
                if upper and self._places[mount] < self._firsts[device]:
                    wanted[device] = upper.device
                    pending |= {upper.device} - wanted.keys()
        return wanted

    def block_devices(self, paths: Iterable[str]) -> Mapping[str, str]:
        """Return the paths of the block devices that paths below /dev lead to, "" where that is none.

        Absent are those on whose way a server may stand, which are not walked, and those that do not answer: any user
        can make a link in /dev/shm.
        """
        ways = {path: os.path.normpath(path) for path in paths if not is_long(path)}
        safe = {path: way for path, way in ways.items() if way.startswith("/dev/") and self._view.is_safe_path(way)}
        return ask({path: functools.partial(_block_device, way) for path, way in safe.items()}, until=self._until)

    def _superblock(self, st_dev: str) -> str:
        """Return the superblock, as mountinfo has it, of files with that device number; "" if none is known."""
        return st_dev if st_dev in self._numbers else self._anonymous.get(st_dev, "")

    @functools.cached_property
    def _anonymous(self) -> Mapping[str, str]:
        """The superblocks of numbers that stand in no mountinfo, as those of the subvolumes of a btrfs."""
        points = {
            m.mount_id: m.mountpoint
            for m in self._view.mounts
            if m.fstype in ("btrfs", "overlay") and self._view.is_shown(m) and self._view.is_safe(m)
        }
        asked = {point: functools.partial(mount_at, point) for point in dict.fromkeys(points.values())}
        opened = ask(asked, until=self._until)
        return {
            _number(st_dev): self._view.by_id[mount].device
            for mount, st_dev in opened.values()
            if mount in points  # what was mounted there since tells nothing
        }

    @functools.cached_property
    def _places(self) -> Mapping[int, int]:
        return {m.mount_id: at for at, m in enumerate(self._view.mounts)}

    @functools.cached_property
    def _firsts(self) -> Mapping[str, int]:
        return {m.device: at for at, m in reversed([*enumerate(self._view.mounts)])}


def ask(
    questions: Mapping[str, Callable[[], T]],
    late: Callable[[T], None] = lambda _: None,
    patience: float = PATIENCE,
    until: float = math.inf,
) -> dict[str, T]:
    """Return the answers that come within `patience` seconds, and before `until`. None of them delays another one.

    One thread asks them all; while no answer comes, there are more and more. Absent are those that raised OSError, and
    those that still hang, or for which there are no more threads; `late` gets what they answer in the end.
    """
    answers: dict[str, T | None] = {}
    pending = deque(questions.items())
    lock = threading.Lock()
    complete = threading.Event()
    over = False

    def work() -> None:
        while True:
            try:
                name, question = pending.popleft()
            except IndexError:
                return
            found: T | None = None
            try:
                found = question()
            except OSError:
                pass  # it vanished, or is forbidden: as if there were no answer
            finally:
                with lock:
                    if not over:
                        answers[name] = found
                        if len(answers) == len(questions):
                            complete.set()
                    elif found is not None:
                        late(found)

    until = min(time.monotonic() + patience, until)
    threads, before = 0, 0
    while len(answers) < len(questions) and (left := until - time.monotonic()) > 0:
        count = len(answers)
        if count == before:
            try:
                for _ in range(min(len(pending), max(1, threads))):
                    _thread.start_new_thread(work, ())
                    threads += 1
            except RuntimeError:
                if not threads:
                    break
        before = count
        complete.wait(min(left, GROWS_AFTER))  # for all of them: to wait for each would let two threads take turns
    with lock:
        over = True
        pending.clear()
    return {name: value for name, value in answers.items() if value is not None}


def _status_of(name: str, number: str) -> tuple[int, int]:
    fd = os.open("/dev/" + name.replace("!", "/"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if not stat.S_ISBLK(about.st_mode) or _number(about.st_rdev) != number:
            raise OSError(f"/dev/{name} is another device than {number}")
        return kernel.loop_backing(fd)
    finally:
        os.close(fd)


def _block_device(path: str) -> str:
    try:
        return os.path.realpath(path) if stat.S_ISBLK(os.stat(path).st_mode) else ""
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no name of a file can be that
        return ""


def mount_at(path: str) -> tuple[int, int]:
    """Return the id of the mount to which a path leads, and the st_dev of what is there."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_id(fd), os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"

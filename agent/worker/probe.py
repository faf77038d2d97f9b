"""Asks what lies below a file system where only an opened device or folder tells: loop devices, overlays, subvolumes.

What is asked may hang: the server of a loop device's file, the disk of a folder. So each question has a thread of its
own and a second to answer in; what does not answer is not understood. Never in the supervisor.
"""

from __future__ import annotations

import _thread
import errno
import functools
import os
import queue
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from . import kernel
from .mountinfo import MountInfo, Server, Superblock, behind_servers, path_walk, server_of, upper_folder

PATIENCE = 1.0  # seconds
T = TypeVar("T")


class Backing(NamedTuple):
    """What a loop device lies on: the superblock that has its file, or else a block device, both major:minor."""

    superblock: str = ""
    device: str = ""


class Probe:
    """What this process can find out about the mounts of a mountinfo."""

    def __init__(self, mountinfo: Sequence[MountInfo]) -> None:
        self._mountinfo = mountinfo
        self._by_id = {m.mount_id: m for m in mountinfo}
        self._numbers = {m.device for m in mountinfo}

    def loops(self, devices: Iterable[tuple[str, str, str]]) -> Mapping[str, Backing]:
        """Return what loop devices (name, number, path of the file) lie on, by name; those not understood are absent.

        One whose file seems to be behind FUSE or a network is not asked: the kernel would ask that server, and whoever
        waits for it could not be ended. What it lies on would not be understood anyway.
        """
        local = [(name, number) for name, number, path in devices if path[:1] != "/" or self._is_safe(path)]
        asked = ask({name: functools.partial(_status_of, name, number) for name, number in local})
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
            overlays = {m.device: m for m in self._mountinfo if m.device in pending and m.fstype == "overlay"}
            paths = {device: upper_folder(m) for device, m in overlays.items()}
            safe = {d: path for d, path in paths.items() if path.startswith("/") and self._is_safe(path)}
            ids = ask({device: functools.partial(_mount_at, path) for device, path in safe.items()})
            pending = set()
            for device, (mount, _) in ids.items():
                upper = self._by_id.get(mount)
                if upper and self._first(upper.device) < self._first(device):
                    wanted[device] = upper.device
                    pending |= {upper.device} - wanted.keys()
        return wanted

    def shown(self, superblocks: Iterable[Superblock], block_types: frozenset[str]) -> Mapping[str, str]:
        """Return for superblocks of which the mounts do not tell it the mount point to open, "" if there is none.

        That is a folder or a file, so that opening it does not block, and no FUSE or network file system stands on the
        way if that can be avoided. A disk that is slow to answer is no reason to leave a file system out.
        """
        questions = {}
        avoidable = set()
        for one in superblocks:
            if one.sure or not one.shown or one.info.fstype not in block_types:
                continue
            if server_of(one.info.fstype) is not Server.KERNEL:
                continue
            mounts = [m for m in self._mountinfo if m.device == one.info.device and m.mountpoint in one.shown]
            mounts.sort(key=lambda m: m.mount_id in self._behind)
            if mounts[0].mount_id not in self._behind:
                avoidable.add(one.info.device)
            questions[one.info.device] = functools.partial(_first_to_open, mounts)
        answers = ask(questions)
        return {d: answers.get(d, "") for d in questions if d in answers or d not in avoidable}

    def _superblock(self, st_dev: str) -> str:
        """Return the superblock, as mountinfo has it, of files with that device number; "" if none is known."""
        return st_dev if st_dev in self._numbers else self._anonymous.get(st_dev, "")

    @functools.cached_property
    def _anonymous(self) -> Mapping[str, str]:
        """The superblocks of numbers that stand in no mountinfo, as those of the subvolumes of a btrfs."""
        points = {
            m.mount_id: m.mountpoint
            for m in self._mountinfo
            if m.fstype in ("btrfs", "overlay")
            and self._leads_to.get(m.mountpoint) == m.mount_id
            and m.mount_id not in self._behind
        }
        opened = ask({point: functools.partial(_mount_at, point) for point in dict.fromkeys(points.values())})
        return {
            _number(st_dev): self._by_id[mount].device
            for mount, st_dev in opened.values()
            if mount in points  # what was mounted there since tells nothing
        }

    @functools.cached_property
    def _leads_to(self) -> Mapping[str, int]:
        return path_walk(self._mountinfo)

    @functools.cached_property
    def _firsts(self) -> Mapping[str, int]:
        return {m.device: at for at, m in reversed([*enumerate(self._mountinfo)])}

    def _first(self, superblock: str) -> int:
        return self._firsts[superblock]

    @functools.cached_property
    def _behind(self) -> frozenset[int]:
        return behind_servers(self._mountinfo)

    def _is_safe(self, path: str) -> bool:
        folder = path
        while folder not in self._leads_to and folder != "/":
            folder = folder.rpartition("/")[0] or "/"
        mount = self._by_id.get(self._leads_to.get(folder, -1))
        return mount is not None and mount.mount_id not in self._behind


def ask(questions: Mapping[str, Callable[[], T]], patience: float = PATIENCE) -> dict[str, T]:
    """Return the answers that come within `patience` seconds, each question asked in a thread of its own.

    Absent are those that raised OSError, and those for which there are no more threads.
    """
    answers: queue.SimpleQueue[tuple[str, T | None]] = queue.SimpleQueue()

    def answer(name: str, question: Callable[[], T]) -> None:
        found: T | None = None
        try:
            found = question()
        except OSError:
            pass  # it vanished, or is forbidden: as if there were no answer
        finally:
            answers.put((name, found))

    waiting = 0
    for name, question in questions.items():
        try:
            _thread.start_new_thread(answer, (name, question))
        except RuntimeError:
            break
        waiting += 1
    found: dict[str, T] = {}
    until = time.monotonic() + patience
    for _ in range(waiting):
        try:
            name, value = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if value is not None:
            found[name] = value
    return found


def _status_of(name: str, number: str) -> tuple[int, int]:
    fd = os.open("/dev/" + name.replace("!", "/"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if not stat.S_ISBLK(about.st_mode) or _number(about.st_rdev) != number:
            raise OSError(f"/dev/{name} is another device than {number}")
        return kernel.loop_backing(fd)
    finally:
        os.close(fd)


def _first_to_open(mounts: Sequence[MountInfo]) -> str:
    for mount in mounts:
        try:
            fd = os.open(mount.mountpoint, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # another one may lead there
        try:
            kind = os.fstat(fd).st_mode
            if mount_id(fd) == mount.mount_id and (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
                return mount.mountpoint
        finally:
            os.close(fd)
    return ""


def _mount_at(path: str) -> tuple[int, int]:
    """Return the id of the mount to which a path leads, and the st_dev of what is there."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_id(fd), os.fstat(fd).st_dev
    finally:
        os.close(fd)


def mount_id(fd: int) -> int:
    """Return the id of the mount that a descriptor was opened through (proc(5), fdinfo); raises OSError."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENODEV, "no mnt_id in fdinfo")


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"

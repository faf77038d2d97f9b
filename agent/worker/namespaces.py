"""The mount namespaces of other processes, as far as procfs shows them, and the file systems that only they have.

Any user can make such a namespace, with a hundred thousand mounts in it, in any number. So nothing of theirs is
opened here but mountinfo, and there is a limit to the time and to the text that they can cost. A namespace that no
process is in, or only threads, is not seen.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..api.text import printable
from .mountinfo import MountInfo, Server, Superblock, parse_mountinfo, server_of
from .view import View

OF_ITS_OWN = "the agent is in a mount namespace of its own, not in that of process 1, and freezes what is mounted there"
PATIENCE = 1.0  # seconds for all of them
MOUNTINFO_MAX = 8 << 20  # bytes of one mountinfo: some 50,000 usual lines
_CHUNK = 1 << 20
_CONTAINER_ID = re.compile("(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")
_CONTAINER_NAME = re.compile(r"/(?:lxc/|lxc\.payload\.|machine-)([^/\n]+)")  # LXC, systemd-nspawn


class Namespace(NamedTuple):
    """A mount namespace: a process that is in it, and what that process sees."""

    pid: int
    view: View

    def path(self, mount: MountInfo) -> str:
        """Return the path by which this process, too, finds the mount point (proc(5), root)."""
        return f"/proc/{self.pid}/root{mount.mountpoint.removesuffix('/')}"


def others(
    known: Collection[str], block_types: Collection[str], procfs: str = "/proc"
) -> tuple[list[Namespace], list[str]]:
    """Return the namespaces that have a file system on disks that is not `known`, and notes on what was not read.

    `known` are superblocks (major:minor), `block_types` the types that are not nodev.
    """
    found, notes = [], []
    until = time.monotonic() + PATIENCE
    for pids in _processes(procfs):
        if time.monotonic() > until:
            notes.append("not all other mount namespaces were read: they took too long")
            break
        for pid in pids:
            try:
                text, whole = _read(f"{procfs}/{pid}/mountinfo", until)
                mounts = parse_mountinfo(text) if _is_of_interest(text, known, block_types) else []
            except (OSError, ValueError):
                continue  # it has ended; another one may be left
            if mounts:
                found.append(Namespace(pid, View(mounts)))
            if not whole:
                notes.append(f"the mount namespace of process {pid} was not read to its end: it is too long")
            break
    return found, notes


def only_there(
    namespaces: Iterable[Namespace], known: Collection[str], block_types: Collection[str]
) -> Iterator[Superblock]:
    """Yield the file systems on disks that are mounted in one of the namespaces, and whose number is not `known`."""
    seen = {*known}
    for namespace in namespaces:
        for mount in namespace.view.mounts:
            if mount.device in seen or not _is_on_disk(mount.fstype, block_types):
                continue
            seen.add(mount.device)
            ways = namespace.view.ways(mount.device, safe=True) or namespace.view.of(mount.device)
            where = described(namespace.pid)
            yield Superblock(ways[0], (namespace.path(ways[0]),), frozenset(), where)


def described(pid: int, procfs: str = "/proc") -> str:
    """Return the words for a process: its number, its name, and the container that its cgroup names."""
    name = printable(_read_if_any(f"{procfs}/{pid}/comm").strip())
    container = container_of(_read_if_any(f"{procfs}/{pid}/cgroup"))
    return f"process {pid} ({name or '?'})" + (f", container {container}" if container else "")


def container_of(cgroup: str) -> str:
    """Return the container in the text of /proc/PID/cgroup, "" if there is none: 12 digits of its id, or its name."""
    found = _CONTAINER_ID.search(cgroup) or _CONTAINER_NAME.search(cgroup)
    return printable(found[1].removesuffix(".scope"))[:64] if found else ""


def is_own(procfs: str = "/proc") -> bool | None:
    """Return whether this process is in another mount namespace than process 1; None if that cannot be known."""
    try:
        return os.readlink(f"{procfs}/self/ns/mnt") != os.readlink(f"{procfs}/1/ns/mnt")
    except OSError:
        return None


def _is_on_disk(fstype: str, block_types: Collection[str]) -> bool:
    server = server_of(fstype)
    return server is Server.FUSE_ON_DISK or fstype == "zfs" or (server is Server.KERNEL and fstype in block_types)


def _processes(procfs: str) -> list[Sequence[int]]:
    """Return for each other mount namespace the processes in it, those first that see it whole."""
    found: dict[str, list[int]] = {}
    try:
        own = os.readlink(f"{procfs}/self/ns/mnt")
    except FileNotFoundError:
        return []  # a kernel without them
    for name in os.listdir(procfs):
        if name.isdecimal():
            try:
                namespace = os.readlink(f"{procfs}/{name}/ns/mnt")
            except OSError:
                continue  # it has ended, or may not be looked at
            if namespace != own:
                found.setdefault(namespace, []).append(int(name))
    # One that has changed its root sees only what is below that.
    return [sorted(pids, key=lambda pid: (_has_changed_root(f"{procfs}/{pid}/root"), pid)) for pids in found.values()]


def _has_changed_root(link: str) -> bool:
    try:
        return os.readlink(link) != "/"
    except OSError:
        return True


def _is_of_interest(text: str, known: Collection[str], block_types: Collection[str]) -> bool:
    """Return whether a mountinfo names a file system on disks that is not known. Containers have thousands of lines."""
    seen = {*known}
    for line in text.split("\n"):
        number = line.split(" ", 3)[2:3]
        if number and number[0] not in seen:
            seen.add(number[0])
            if _is_on_disk(line.partition(" - ")[2].partition(" ")[0], block_types):
                return True
    return False


def _read(path: str, until: float) -> tuple[str, bool]:
    """Return the text of a file up to the last whole line, and whether that is all."""
    data = bytearray()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while more := os.read(fd, _CHUNK):
            data += more
            if len(data) > MOUNTINFO_MAX or time.monotonic() > until:
                del data[data.rfind(b"\n") + 1 :]
                return data.decode("utf-8", "surrogateescape"), False
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape"), True


def _read_if_any(path: str) -> str:
    try:
        return _read(path, time.monotonic() + PATIENCE)[0]
    except OSError:
        return ""

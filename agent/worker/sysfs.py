"""Reading what a plan is made from: procfs, and the parts of sysfs that show what the mounted file systems lie on.

It opens nothing else: no device, no mount point. A device that vanishes meanwhile is ignored. Any other error ends the
plan, since a guessed order can deadlock the machine.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable

from ..api.errors import failed
from ..api.options import Rules
from ..api.records import Plan
from .plan import DELETED, BlockDevice, MountInfo, build_plan, named_below, parse_filesystems, parse_mountinfo

_CHUNK = 1 << 20
_VANISHED = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR)


def read_plan(rules: Rules) -> Plan:
    """Return the plan for the present mounts of this machine.

    Raises Fault as `build_plan` does, and FAILED if procfs or sysfs cannot be read.
    """
    try:
        mountinfo = read_mountinfo()
        block_types = parse_filesystems(_read("/proc/filesystems"))
        devices = read_devices(mountinfo)
    except OSError as error:
        raise failed(error, f"read {error.filename}") from error
    return build_plan(mountinfo, block_types, devices, rules)


def read_mountinfo() -> list[MountInfo]:
    """Return the mounts that this process sees."""
    return parse_mountinfo(_read("/proc/self/mountinfo"))


def read_devices(mountinfo: Iterable[MountInfo], sysfs: str = "/sys") -> list[BlockDevice]:
    """Return the block devices that the mounted file systems lie on, and those below them.

    Raises OSError, FileNotFoundError if sysfs is not mounted there.
    """
    os.stat(f"{sysfs}/dev/block")
    mounts = list({m.device: m for m in mountinfo}.values())
    pools = _read_pools(sysfs) if any(m.fstype == "btrfs" for m in mounts) else {}
    known = frozenset(_list(f"{sysfs}/class/block"))

    @functools.cache
    def mapped() -> dict[str, str]:
        return {_read_if_any(f"{sysfs}/class/block/{n}/dm/name"): n for n in known if n.startswith("dm-")}

    def name_of(path: str) -> str:
        if path.startswith("/dev/mapper/"):
            return mapped().get(path.removeprefix("/dev/mapper/"), "")
        return path.removeprefix("/dev/").replace("/", "!") if path.startswith("/dev/") else ""

    folders = [f"{sysfs}/dev/block/{m.device}" for m in mounts if not m.device.startswith("0:")]
    names = {*pools, *(name_of(path) for m in mounts for path in named_below(m))}
    found: dict[str, BlockDevice] = {}
    while folders or names:
        folders += [f"{sysfs}/class/block/{name}" for name in sorted(names & known - found.keys())]
        names.clear()
        for folder in folders:
            device = _read_device(folder, pools)
            if device is not None and device.name not in found:
                found[device.name] = device
                names |= {device.disk, *device.slaves, name_of(device.backing_file.removesuffix(DELETED))}
        folders.clear()
    return list(found.values())


def _read_device(folder: str, pools: dict[str, tuple[str, ...]]) -> BlockDevice | None:
    """Return the device of a folder below /sys/dev/block or /sys/class/block, None if it has vanished."""
    try:
        real = os.path.normpath(os.path.join(folder, "..", os.readlink(folder)))
        name = os.path.basename(real)
        return BlockDevice(
            name=name,
            number=_read(f"{real}/dev").strip(),
            mapper=_read_if_any(f"{real}/dm/name"),
            disk=os.path.basename(os.path.dirname(real)) if os.path.exists(f"{real}/partition") else "",
            backing_file=_read_if_any(f"{real}/loop/backing_file"),
            slaves=tuple(_list(f"{real}/slaves")),
            pool=pools.get(name, ()),
        )
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise


def _read_pools(sysfs: str) -> dict[str, tuple[str, ...]]:
    """Return for each device of a mounted btrfs the names of all devices of that btrfs."""
    pools: dict[str, tuple[str, ...]] = {}
    for uuid in _list(f"{sysfs}/fs/btrfs"):
        members = _list(f"{sysfs}/fs/btrfs/{uuid}/devices")
        for name in members:
            # A seed device belongs to more than one.
            pools[name] = tuple(sorted({*pools.get(name, ()), *members}))
    return pools


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno in _VANISHED:
            return []
        raise


def _read_if_any(path: str) -> str:
    try:
        return _read(path).removesuffix("\n")
    except OSError as error:
        if error.errno in _VANISHED:
            return ""
        raise


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while more := os.read(fd, _CHUNK):
                data += more
        finally:
            os.close(fd)
        # Not as a text file, which would treat a lone \r in a path as the end of a line.
        return data.decode("utf-8", "surrogateescape")
    except OSError as error:
        error.filename = path  # the error of a failed read does not name the file
        raise

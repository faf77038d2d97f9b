"""Reading what a plan is made from: procfs, and the parts of sysfs that show what the mounted file systems lie on.

It opens nothing else itself: what only opened devices and folders tell, a `Probe` asks, and the file systems are opened
by a `FileSystemOpener`. A device that vanishes meanwhile is as if it had never been there; any other error ends the
plan, since an order that is guessed can deadlock the machine.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from ..api.errors import Fault, failed
from ..api.options import Edge, Rules
from ..api.records import Plan
from ..api.structs import replace
from ..api.text import listed
from . import namespaces
from .mountinfo import (
    MountInfo,
    is_anonymous,
    named_devices,
    parse_filesystems,
    parse_mountinfo,
    served_device,
    superblocks,
)
from .namespaces import Namespace
from .open_fs import FileSystemOpener
from .plan import BlockDevice, Survey
from .probe import Probe
from .proof import read_text
from .view import View

LOOP = "7:"
FUSE = "/dev/fuse"  # the source of a server that names none
PATIENCE = 4.0  # seconds for all that hangs: the default limit of the plan is 5
_TOLD_BY_THE_KERNEL = ("loop", "dm-", "md", "ram", "zram", "nullb", "bcache", "nvme")
_SERVED = re.compile(r"/session[0-9]+/|/devices/rbd/|/tcm_loop_|/nvme-fabrics/|/(dummy|vhci)_hcd\.")  # iSCSI, Ceph, ...
_NVME_PATHS = re.compile("(.*/nvme-subsystem/[^/]+)/")
_NVME_BUSES = frozenset({"pcie", "apple-nvme"})
_VANISHED = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.ESRCH)


class Reading(NamedTuple):
    """What procfs and sysfs tell for a plan."""

    survey: Survey
    view: View
    probe: Probe
    devices: list[BlockDevice]
    elsewhere: list[Namespace]
    notes: tuple[str, ...]


def read_plan(rules: Rules, *, ask: bool = True) -> Plan:
    """Return the plan for this machine's mounts as they are now.

    To `ask` opens loop devices and folders; the supervisor must not, then what these tell is not understood.
    Raises Fault: as `plan.Survey`, and FAILED if procfs or sysfs cannot be read.
    """
    if not ask:
        return _read(rules).survey.plan()
    plan, opened = open_plan(rules)
    for fd in opened.values():
        os.close(fd)
    return plan


def open_plan(rules: Rules) -> tuple[Plan, dict[str, int]]:
    """Return the plan, and descriptors of its file systems by superblock (major:minor); raises as `read_plan`.

    What has none may still be opened: its disk is slow, or the system refused.
    """
    until = time.monotonic() + PATIENCE
    found = _read(rules, ask=True, until=until)
    uppers = found.probe.uppers(d.file_on for d in found.devices if d.file_on)
    opened, unreachable = FileSystemOpener(found.elsewhere, found.view).open_all(found.survey.chosen, until)
    fds = {device: one.fd for device, one in opened.items()}
    try:
        plan = found.survey.plan(uppers, {device: one.point for device, one in opened.items()}, unreachable)
    except Fault:
        for fd in fds.values():
            os.close(fd)
        raise
    return replace(plan, notes=(*found.notes, *plan.notes)), fds


def _read(rules: Rules, *, ask: bool = False, until: float = math.inf) -> Reading:
    try:
        mountinfo = read_mountinfo()
        block_types = parse_filesystems(read_text("/proc/filesystems"))
        view = View(mountinfo)
        # One that no safe path shows is also looked for in other namespaces.
        shown = [device for device in view.devices if view.way(device)]
        elsewhere, notes = namespaces.others(shown, block_types)
        only_there = list(namespaces.only_there(elsewhere, view.devices, block_types))
        probe = Probe(view, (one.info.device for one in only_there), until)
        devices = read_devices([*mountinfo, *(one.info for one in only_there)], probe if ask else None)
    except OSError as error:
        raise failed(error, f"read {error.filename}") from error
    found = [*superblocks(mountinfo, view.leads_to, view.behind), *only_there]
    if namespaces.is_own():
        notes.insert(0, namespaces.OF_ITS_OWN)
    rules = replace(rules, learnt=_of_living(rules.learnt, (one.info for one in found)))
    links, unknown = _links(rules, mountinfo, probe) if ask else ({}, [])
    survey = Survey(found, block_types, devices, rules, links)
    return Reading(survey, view, probe, devices, elsewhere, (*notes, *unknown))


def superblock_id(number: str, fstype: str, source: str, sysfs: str = "/sys") -> str:
    """Return a name of a mounted superblock (major:minor) that no later one gets, also not one of the same number.

    It is the number with that of the superblock's own folder in sysfs, which is made when it is mounted. Types that
    have none there are told apart by what their disk is; where not even that is known, the number has to do.
    """
    try:
        return f"{number}@{_birth(number, fstype, source, sysfs)}"
    except OSError:  # no more descriptors: an edge that is not known is learnt again
        return f"{number}@"


def _birth(number: str, fstype: str, source: str, sysfs: str) -> str:
    if number.startswith("0:"):
        if fstype != "btrfs" or not source.startswith("/dev/"):  # of other types it may be any user's text
            return ""
        of = os.path.basename(os.path.realpath(source))
        pools = (f"{sysfs}/fs/btrfs/{uuid}" for uuid in _list(f"{sysfs}/fs/btrfs"))
        return next((_inode(pool) for pool in pools if of in _list(f"{pool}/devices")), "")
    name = os.path.basename(os.path.realpath(f"{sysfs}/dev/block/{number}"))
    for family in (fstype, "ext4"):  # that also serves ext2 and ext3
        if born := _inode(f"{sysfs}/fs/{family}/{name}"):
            return born
    block = f"{sysfs}/class/block/{name}"
    return _read_if_any(f"{block}/diskseq") or _read_if_any(f"{block}/../diskseq")  # the second is a partition's


def _inode(folder: str) -> str:
    try:
        return f"{os.path.basename(os.path.dirname(folder))}{os.stat(folder).st_ino}"
    except OSError as error:
        if error.errno in _VANISHED:
            return ""
        raise


def _of_living(learnt: Iterable[Edge], mounted: Iterable[MountInfo]) -> tuple[Edge, ...]:
    """Return what was learnt of superblocks that are still there, by their numbers."""
    by_number = {mount.device: mount for mount in mounted} if learnt else {}

    def number_of(one: str) -> str:
        number = one.partition("@")[0]
        mount = by_number.get(number)
        return number if mount and superblock_id(number, mount.fstype, mount.source) == one else ""

    living = ((number_of(one), tuple(filter(None, map(number_of, others)))) for one, others in learnt)
    return tuple((number, others) for number, others in living if number and others)


def _links(rules: Rules, mountinfo: Iterable[MountInfo], probe: Probe) -> tuple[dict[str, str], list[str]]:
    """Return where the paths below /dev that selectors and FUSE servers name lead to, and notes on what is not known.

    Any other path could hang.
    """
    selectors = (*rules.include, *rules.exclude, *rules.request_include, *rules.request_exclude)
    paths = [one.removeprefix("dev:") for one in selectors if one.startswith("dev:/dev/")]
    served = {served_device(mount) for mount in mountinfo if mount.fstype.startswith("fuse")} - {"", FUSE}
    links = probe.block_devices({*paths, *served})
    left = listed(f"dev:{path}" for path in dict.fromkeys(paths) if path not in links)
    notes = [f"{left} was not looked up: a server that does not answer may stand on the way"] if left else []
    return {FUSE: "", **links}, notes


def read_mountinfo() -> list[MountInfo]:
    """Return the mounts that this process sees."""
    return parse_mountinfo(read_text("/proc/self/mountinfo"))


def read_devices(
    mountinfo: Iterable[MountInfo], probe: Probe | None = None, sysfs: str = "/sys", procfs: str = "/proc"
) -> list[BlockDevice]:
    """Return the block devices on which the mounted file systems lie, and those below them.

    Raises OSError, FileNotFoundError if sysfs is not mounted there.
    """
    os.stat(f"{sysfs}/dev/block")
    mounts = list({m.device: m for m in mountinfo}.values())
    pools = _read_pools(sysfs) if any(m.fstype == "btrfs" for m in mounts) else {}
    known = frozenset(_list(f"{sysfs}/class/block"))
    journals = frozenset(_list(f"{procfs}/fs/jbd2"))
    inside = {one.rpartition("-")[0] for one in journals if one.rpartition("-")[2].isdecimal()}

    @functools.cache
    def mapped() -> dict[str, str]:
        names = {_mapper_of(f"{sysfs}/class/block/{n}"): n for n in known if n.startswith("dm-")}
        names.pop("", None)  # it vanished
        return names

    def name_of(path: str) -> str:
        if path.startswith("/dev/mapper/"):
            return mapped().get(path.removeprefix("/dev/mapper/"), "")
        return path.removeprefix("/dev/").replace("/", "!") if path.startswith("/dev/") else ""

    def with_journal(device: BlockDevice) -> BlockDevice:
        journal = "" if device.name in inside else _journal_of(device.name, journals, sysfs, procfs)
        if journal is None:
            return replace(device, understood=False)
        return replace(device, journal=journal) if journal else device

    folders = [f"{sysfs}/dev/block/{m.device}" for m in mounts if not is_anonymous(m)]
    names = {*pools, *(name_of(path) for m in mounts for path in named_devices(m))}
    found: dict[str, BlockDevice] = {}
    while folders or names:
        folders += [f"{sysfs}/class/block/{name}" for name in sorted(names & known - found.keys())]
        names.clear()
        read = [device for folder in folders if (device := _read_device(folder, pools)) is not None]
        folders.clear()
        new = {device.name: with_journal(device) for device in read if device.name not in found}
        loops = [
            (d.name, d.number, _read_if_any(f"{sysfs}/class/block/{d.name}/loop/backing_file"))
            for d in new.values()
            if d.number.startswith(LOOP)
        ]
        backings = probe.loops(loops) if probe and loops else {}
        for name, *_ in loops:
            backing = backings.get(name)
            if backing and backing.superblock:
                new[name] = replace(new[name], file_on=backing.superblock)
            elif backing and (below := _read_device(f"{sysfs}/dev/block/{backing.device}", pools)):
                new[name] = replace(new[name], slaves=(below.name,))
            else:
                new[name] = replace(new[name], understood=False)
        found |= new
        for device in new.values():
            names |= {device.disk, device.journal, *device.slaves}
    return list(found.values())


def _read_device(folder: str, pools: dict[str, tuple[str, ...]]) -> BlockDevice | None:
    """Return the device of a folder below /sys/dev/block or /sys/class/block, None if it has vanished."""
    try:
        real = os.path.normpath(os.path.join(folder, "..", os.readlink(folder)))
        name = os.path.basename(real)
        disk = os.path.basename(os.path.dirname(real)) if os.path.exists(f"{real}/partition") else ""
        return BlockDevice(
            name=name,
            number=read_text(f"{real}/dev").strip(),
            mapper=_mapper_of(real) if name.startswith("dm-") else "",
            disk=disk,
            slaves=tuple(_list(f"{real}/slaves")),
            pool=pools.get(name, ()),
            understood=_is_understood(real, disk or name),
        )
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise


def _mapper_of(folder: str) -> str:
    try:
        return _read_if_any(f"{folder}/dm/name")
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is being deleted (dm_attr_show in drivers/md/dm-sysfs.c)
            return ""
        raise


def _is_understood(folder: str, disk: str) -> bool:
    """Return whether the kernel tells on what a disk lies: not of one that a program or another machine serves.

    That other machine may be this one, with the disk in a file of its own (LIO, nvmet, the gadgets of USB).
    """
    if _SERVED.search(folder):
        return False
    if several := _NVME_PATHS.match(folder):  # any number of ways lead to the disk, each by a controller
        controllers = [name for name in _list(several[1]) if re.fullmatch("nvme[0-9]+", name)]
        transports = {_read_if_any(f"{several[1]}/{name}/transport") for name in controllers}
        return bool(transports) and transports <= _NVME_BUSES
    return "/devices/virtual/" not in folder or disk.startswith(_TOLD_BY_THE_KERNEL)


def _journal_of(name: str, journals: frozenset[str], sysfs: str, procfs: str) -> str | None:
    """Return the device with the journal of the ext4 on a device, "" if it has none, None if unknown.

    The kernel names a journal after its device, one inside a file system with the number of its inode, too (it is not
    asked about here); and its thread after the journal.
    """
    task = _read_if_any(f"{sysfs}/fs/ext4/{name}/journal_task")
    if not task or task.strip("0123456789"):
        return ""  # no ext4, or one without a journal
    called = _read_if_any(f"{procfs}/{task}/comm")
    journal = called.removeprefix("jbd2/")
    if journal.startswith(f"{name}-"):
        return ""
    return journal if called != journal and journal in journals else None


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
        return read_text(path).removesuffix("\n")
    except OSError as error:
        if error.errno in _VANISHED:
            return ""
        raise

"""From the text of mountinfo and sysfs to the plan of a freeze. Pure: opens no mount point, asks no device.

What may not go wrong here is the order: a file system that is frozen while another one that lies on it is not yet
deadlocks the machine. So "lies on" is followed through everything that can carry writes down (loop devices, dm, md,
partitions, btrfs members, journals and logs, overlays), also through file systems that are not frozen themselves, and
by device numbers, never by the text of a path, which may lead elsewhere by now. What is not understood (a loop file on
FUSE or on a network file system, nbd, drbd) lies on all that was mounted before it, but for what lies on that very
device: an edge too many costs some milliseconds, one too few stops the guest.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import NamedTuple

from ..api.errors import Code, Fault
from ..api.options import Rules
from ..api.records import LeftOut, Mount, Plan
from ..api.states import Reason
from ..api.structs import Value
from .mountinfo import MountInfo, Server, Superblock, is_anonymous, named_devices, served_device, server_of, superblocks
from .reach import Node, bits, bottom_of, reach_of

DAMAGED = frozenset({"emergency_ro", "shutdown"})  # options of a superblock that writes no more, after an error
HIDE_DEVICES = frozenset({"f2fs", "jfs"})  # may have several, or an external log, and nothing tells
IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "rootfs", "hugetlbfs"})
NOTHING: Mapping[str, str] = MappingProxyType({})
NOBODY: Set[str] = frozenset()


class BlockDevice(Value):
    """One block device as in sysfs.

    `name` is its name in /sys/class/block and `number` its major:minor. `mapper` is its name below /dev/mapper, `disk`
    the disk that it is a partition of, `slaves` the devices that dm or md made it of, or that a loop device lies over,
    `file_on` the superblock (major:minor) that has a loop device's file, `pool` the members, itself among them, of the
    mounted btrfs that it belongs to, `journal` the device with the journal of the ext4 on it. Where it is not
    `understood`, it may lie on anything else, too.
    """

    name: str
    number: str
    mapper: str = ""
    disk: str = ""
    file_on: str = ""
    slaves: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    journal: str = ""
    understood: bool = True


class Survey:
    """What is mounted, what it lies on, and what of it is chosen; then the plan, when that is reached."""

    def __init__(
        self,
        found: Sequence[Superblock],
        block_types: frozenset[str],
        devices: Iterable[BlockDevice],
        rules: Rules,
        links: Mapping[str, str] = NOTHING,
    ) -> None:
        """`found` are in the order of mounting; `links` are paths and that of the device they lead to, "" if to none.

        Raises Fault PARAMS if a selector is malformed.
        """
        self._found = found
        devices = list(devices)
        self._by_path = _paths_of(devices)
        self._devices = devices
        self._members = _members_of(found, devices, self._by_path)
        by_name = {d.name: d for d in devices}
        self._disks = [[by_name[name] for name in names if name in by_name] for names, _ in self._members]
        self._own = [_own(s.info, on, by_name) for s, on in zip(found, self._members, strict=True)]
        by_path = self._by_path | {path: self._by_path[to] for path, to in links.items() if to in self._by_path}
        self._numbers = [
            frozenset((s.info.device, *(d.number for d in on))) for s, on in zip(found, self._disks, strict=True)
        ]
        self._learnt = dict(rules.learnt)
        self._wanted = _selectors(rules.request_include, by_path)
        self._reasons = _reasons(found, self._numbers, by_path, self._wanted, block_types, rules, links)

    @property
    def chosen(self) -> list[str]:
        """The superblocks (major:minor) to be frozen, if they can be reached."""
        return [s.info.device for s, (reason, _) in zip(self._found, self._reasons, strict=True) if reason is None]

    def plan(
        self, uppers: Mapping[str, str] = NOTHING, points: Mapping[str, str] = NOTHING, unreachable: Set[str] = NOBODY
    ) -> Plan:
        """Return what to freeze in which order, and what is left out for which reason.

        `uppers` gives for overlays the superblock of the upper layer, both major:minor; others are not understood.
        `points` gives for superblocks the mount point to name first, and `unreachable` are those to which no way leads.
        Raises Fault: PARAMS if one of the request's include matches nothing that is planned, FREEZE_FAILED if file
        systems that are planned are known to lie on each other in a circle.
        """
        found = [_named_first(superblock, points) for superblock in self._found]
        reasons = [
            (Reason.UNREACHABLE, True) if reason is None and superblock.info.device in unreachable else (reason, error)
            for superblock, (reason, error) in zip(found, self._reasons, strict=True)
        ]
        self._check_wanted(found, reasons)
        below = _lies_on(found, self._devices, self._members, uppers)
        planned = [i for i, (reason, _) in enumerate(reasons) if reason is None]
        reach, notes = reach_of(found, planned, below, self._learnt)
        return Plan(self._ordered(found, planned, reach, below), _left_out(found, reasons), tuple(notes))

    def _check_wanted(self, found: Sequence[Superblock], reasons: Sequence[tuple[Reason | None, bool]]) -> None:
        for selector in self._wanted:  # ADR 0007: each must match, not any
            matched = [
                (superblock.points[0], reason)
                for superblock, own, (reason, _) in zip(found, self._numbers, reasons, strict=True)
                if selector.matches(superblock, own)
            ]
            left_out = [f"{mountpoint} ({reason.value})" for mountpoint, reason in matched if reason is not None]
            if len(left_out) == len(matched):
                why = (
                    f"matches only what is left out: {', '.join(left_out[:5])}"
                    if left_out
                    else "matches no file system"
                )
                raise Fault(Code.PARAMS, f"include {selector.text!r} {why}; nothing was frozen")

    def _ordered(
        self,
        found: Sequence[Superblock],
        planned: Sequence[int],
        reach: Sequence[int],
        below: Callable[[Node], list[Node]],
    ) -> tuple[Mount, ...]:
        level = [0] * len(planned)
        # What lies on another one has that one and all its hosts: so from the most hosts to the fewest is inside out.
        hosts = [bits(mask) for mask in reach]
        for at in sorted(range(len(planned)), key=lambda at: -len(hosts[at])):
            for host in hosts[at]:
                level[host] = max(level[host], level[at] + 1)
        order = sorted(range(len(planned)), key=lambda at: (level[at], -at))
        place = {at: index for index, at in enumerate(order)}

        def mount(at: int) -> Mount:
            info, (mountpoint, *aliases), _, namespace = found[planned[at]]
            under = tuple(sorted(place[host] for host in hosts[at]))
            disks = tuple(dict.fromkeys((d.disk or d.name).replace("!", "/") for d in self._disks[planned[at]]))
            about = (info.device, info.fstype, info.source)
            bottom, own = bottom_of(planned[at], below), self._own[planned[at]]
            dm = _other_name(info, self._disks[planned[at]])
            names = (mountpoint, tuple(aliases), *about)
            return Mount(*names, level[at], under, disks, bottom, namespace=namespace, devices=own, dm=dm)

        return tuple(map(mount, order))


def build_plan(
    mountinfo: Sequence[MountInfo],
    block_types: frozenset[str],
    devices: Iterable[BlockDevice],
    rules: Rules,
    uppers: Mapping[str, str] = NOTHING,
) -> Plan:
    """Return the plan for these mounts, all of which can be reached; see `Survey`."""
    return Survey(superblocks(mountinfo), block_types, devices, rules).plan(uppers)


def _named_first(superblock: Superblock, points: Mapping[str, str]) -> Superblock:
    point = points.get(superblock.info.device)
    if not point or superblock.namespace:
        return superblock
    return superblock._replace(points=tuple(dict.fromkeys((point, *superblock.points))))


def _left_out(found: Sequence[Superblock], reasons: Sequence[tuple[Reason | None, bool]]) -> tuple[LeftOut, ...]:
    return tuple(
        LeftOut(points[0], points[1:], info.device, info.fstype, reason.value, is_error, namespace=namespace)
        for (info, points, _, namespace), (reason, is_error) in zip(found, reasons, strict=True)
        if reason is not None
    )


class _Selector(NamedTuple):
    """What a text selects: by mount point (`type:` and `dev:` aside), by type, by the number of a device."""

    text: str
    matches: Callable[[Superblock, frozenset[str]], object]


def _selectors(texts: Iterable[str], by_path: Mapping[str, BlockDevice]) -> list[_Selector]:
    return [_Selector(text, _matcher(text, by_path)) for text in texts]


def _matcher(text: str, by_path: Mapping[str, BlockDevice]) -> Callable[[Superblock, frozenset[str]], object]:
    if text.startswith("dev:"):
        number = text.removeprefix("dev:")
        if number.startswith("/"):
            number = by_path[number].number if number in by_path else ""
        elif not re.fullmatch("[0-9]+:[0-9]+", number):
            raise Fault(Code.PARAMS, f"malformed selector {text!r}: dev:PATH or dev:MAJOR:MINOR; nothing was frozen")
        return lambda _, numbers: number in numbers
    try:
        # Compiled here, since fnmatch forgets its patterns after 256.
        glob = re.compile(fnmatch.translate(text.removeprefix("type:"))).match
    except re.error as error:
        raise Fault(Code.PARAMS, f"malformed glob {error.pattern!r}: {error}; nothing was frozen") from None
    if text.startswith("type:"):
        return lambda superblock, _: glob(superblock.info.fstype)
    return lambda superblock, _: any(glob(point) for point in superblock.own_points)


def _reasons(
    found: Sequence[Superblock],
    numbers: Sequence[frozenset[str]],
    by_path: Mapping[str, BlockDevice],
    wanted: Sequence[_Selector],
    block_types: frozenset[str],
    rules: Rules,
    links: Mapping[str, str],
) -> list[tuple[Reason | None, bool]]:
    """Return why each file system is left out, None for those that are chosen, and whether that is a strict error.

    What a file system is comes before what was asked for, and an exclude before an include: the reason given is the
    first that applies in the order of `states.Reason`. What was not asked for is no error. `numbers` are those of the
    devices of each file system and its own, `wanted` the selectors of the request.
    """
    exclude = _selectors(rules.exclude + rules.request_exclude, by_path)
    includes = [those for those in (_selectors(rules.include, by_path), wanted) if those]
    literal = None if rules.literal is None else frozenset(rules.literal)

    def choice(superblock: Superblock, own: frozenset[str]) -> Reason | None:
        if any(one.matches(superblock, own) for one in exclude):
            return Reason.EXCLUDED
        if not all(any(one.matches(superblock, own) for one in those) for those in includes):
            return Reason.NOT_INCLUDED
        # A list of mount points means what is seen there.
        if literal is not None and literal.isdisjoint(superblock.shown):
            return Reason.NOT_INCLUDED
        return None

    reasons = []
    for superblock, own in zip(found, numbers, strict=True):
        reason, is_error = _nature(superblock, block_types, links)
        if reason is None or is_error:
            chosen = choice(superblock, own)
            reason, is_error = reason or chosen, is_error and chosen is None
        reasons.append((reason, is_error))
    return reasons


def _nature(
    superblock: Superblock, block_types: frozenset[str], links: Mapping[str, str]
) -> tuple[Reason | None, bool]:
    """Return why a file system cannot be frozen, None if it can, and whether that is an error under strict."""
    info = superblock.info
    options = info.super_options.split(",")
    match server_of(info.fstype):
        case Server.NETWORK:
            return Reason.NETWORK, False
        case Server.FUSE_ON_DISK:
            return Reason.FUSE, True
        case Server.FUSE:
            device = served_device(info)
            return Reason.FUSE, bool(links.get(device, device)) and not superblock.namespace
    if info.fstype == "zfs":
        return Reason.ZFS, "ro" not in options
    if info.fstype not in block_types or info.fstype == "autofs":
        return Reason.PSEUDO, False
    if "ro" in options:
        return Reason.READ_ONLY, False
    if not DAMAGED.isdisjoint(options):
        return Reason.DAMAGED, True
    return None, False


"""A file system (its index), a block device (its name), or what is not understood (None)."""


def _paths_of(devices: Sequence[BlockDevice]) -> dict[str, BlockDevice]:
    by_path = {"/dev/" + d.name.replace("!", "/"): d for d in devices}
    return by_path | {"/dev/mapper/" + d.mapper: d for d in devices if d.mapper}


def _members_of(
    found: Sequence[Superblock], devices: Sequence[BlockDevice], by_path: Mapping[str, BlockDevice]
) -> list[tuple[list[str], bool]]:
    """Return for each file system the names of its block devices, and whether these are all."""
    by_number = {d.number: d for d in devices}
    claimed = {name for s in found if s.info.source in by_path for name in by_path[s.info.source].pool}
    unclaimed = [d for d in devices if d.pool and d.name not in claimed]

    def members(info: MountInfo) -> tuple[list[str], bool]:
        named = named_devices(info)
        on = [by_number.get(info.device), *map(by_path.get, named)]
        members = [d for d in on if d]
        whole = len(members) == len(named) + (not is_anonymous(info)) and info.fstype not in HIDE_DEVICES
        if info.fstype == "btrfs" and not members:
            # Its source is a name that sysfs does not know (/dev/root, a link): an edge too many is better than none.
            members, whole = unclaimed, bool(unclaimed)
        return list(dict.fromkeys(name for d in members for name in (d.name, d.journal, *d.pool) if name)), whole

    return [members(s.info) for s in found]


def _own(info: MountInfo, members: tuple[list[str], bool], by_name: Mapping[str, BlockDevice]) -> tuple[str, ...]:
    """Return the names of all block devices of a file system, none if these are not known for sure."""
    names, whole = members
    devices = [by_name[name] for name in names if name in by_name]
    if info.fstype == "btrfs":
        # Its source may be a name that sysfs does not know; and a seed device belongs to more than one.
        named = info.source.startswith("/dev/") and any(info.source in _paths_of([d]) for d in devices)
        whole = named and all({*names} <= {*d.pool} for d in devices)
    return tuple(name.replace("!", "/") for name in names) if whole and len(devices) == len(names) else ()


def _other_name(info: MountInfo, devices: Sequence[BlockDevice]) -> str:
    for d in devices:
        if d.mapper and (d.number == info.device or info.source in _paths_of([d])):
            return d.mapper if info.source == f"/dev/{d.name}" else d.name
    return ""


def _lies_on(
    found: Sequence[Superblock],
    devices: Sequence[BlockDevice],
    members: Sequence[tuple[list[str], bool]],
    uppers: Mapping[str, str],
) -> Callable[[Node], list[Node]]:
    """Return what gives that on which a node lies directly."""
    by_name = {d.name: d for d in devices}
    index = {s.info.device: i for i, s in enumerate(found)}

    def below_file_system(i: int) -> list[Node]:
        info = found[i].info
        names, whole = members[i]
        if names or not is_anonymous(info):
            return [*names, *(() if whole else (None,))]
        if info.fstype == "overlay":
            if "upperdir=" not in info.super_options:
                return []  # nothing is written to it
            return [index.get(uppers.get(info.device, ""))]
        return [] if info.fstype in IN_MEMORY else [None]

    @functools.cache  # asked for each of them to the order, and again to its disks
    def below(node: Node) -> list[Node]:
        if node is None:
            return []
        if isinstance(node, int):
            server = server_of(found[node].info.fstype)
            return [None] if server in (Server.NETWORK, Server.FUSE) else below_file_system(node)
        device = by_name.get(node)
        if device is None:  # it vanished meanwhile
            return [None]
        nodes: list[Node] = [name for name in (device.disk, *device.slaves) if name]
        if device.file_on:
            nodes.append(index.get(device.file_on))
        return nodes if device.understood else [*nodes, None]

    return below

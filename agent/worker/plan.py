"""From the text of mountinfo and sysfs to the plan of a freeze. Pure: opens no mount point, asks no device.

The order must not be wrong: to freeze a file system before another one that lies on it deadlocks the machine. So "lies
on" is followed through everything that passes writes down (loop devices, dm, md, partitions, btrfs members, xfs logs,
overlays), also through file systems that are not frozen themselves.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..api.errors import Code, Fault
from ..api.options import Rules
from ..api.records import LeftOut, Mount, Plan
from ..api.states import Reason
from ..api.text import listed

# fmt: off
NETWORK_TYPES = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "orangefs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
})
# fmt: on
DELETED = " (deleted)"  # the kernel appends this to the path of a file that has no name any more


class Server(enum.Enum):
    """Who serves a file system. Opening one that the kernel does not serve by itself may block for ever."""

    KERNEL = "kernel"
    NETWORK = "network"
    FUSE = "fuse"
    FUSE_ON_DISK = "fuseblk"


def server_of(fstype: str) -> Server:
    """Return who serves file systems of this type; mountinfo names types ("ext4", "nfs4", "fuse.sshfs")."""
    if fstype in NETWORK_TYPES:
        return Server.NETWORK
    family = fstype.partition(".")[0]
    return {"fuse": Server.FUSE, "fuseblk": Server.FUSE_ON_DISK}.get(family, Server.KERNEL)


T = TypeVar("T", bound=Hashable)


def walk_down(start: Iterable[T], below: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """Yield what is given and everything that it lies on, each once, depth first.

    `below` returns what one lies on directly. Circles do no harm.
    """
    seen = set()
    pending = [*start][::-1]
    while pending:
        here = pending.pop()
        if here not in seen:
            seen.add(here)
            yield here
            pending += [*below(here)][::-1]


class MountInfo(NamedTuple):
    """One line of mountinfo; the texts are unescaped, except `super_options`."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    fstype: str
    source: str
    super_options: str


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One block device as in sysfs.

    `name` is its name in /sys/class/block and `number` its major:minor. `mapper` is its name below /dev/mapper, `disk`
    the disk that it is a partition of, `backing_file` the text of loop/backing_file, `slaves` the devices that dm or md
    made it of, `pool` the members, including itself, of the mounted btrfs that it belongs to.
    """

    name: str
    number: str
    mapper: str = ""
    disk: str = ""
    backing_file: str = ""
    slaves: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Return the mounts of a mountinfo text (decoded as UTF-8 with surrogateescape).

    Raises ValueError that names the line if one is malformed.
    """
    mounts = []
    # Not splitlines: of the characters that it splits at, the kernel escapes only the newline.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        try:
            mount, _, file_system = line.partition(" - ")
            mount_id, parent_id, device, root, mountpoint, _ = mount.split(" ", 5)
            fstype, source, options = file_system.split(" ", 2)
            major, minor = device.split(":")
            if not all(map(str.isdecimal, (mount_id, parent_id, major, minor))) or not mountpoint.startswith("/"):
                raise ValueError
            if "\\" in line:
                root, mountpoint, fstype, source = map(_unescape, (root, mountpoint, fstype, source))
            mounts.append(MountInfo(int(mount_id), int(parent_id), device, root, mountpoint, fstype, source, options))
        except ValueError:
            raise ValueError(f"mountinfo line {number} is malformed: {line[:200]!r}") from None
    return mounts


def parse_filesystems(text: str) -> frozenset[str]:
    """Return the types in the text of /proc/filesystems that are not nodev."""
    return frozenset(line.strip() for line in text.split("\n") if line.strip() and not line.startswith("nodev"))


def named_below(mount: MountInfo) -> list[str]:
    """Return the devices, files and folders that a file system names in addition to its device number."""
    paths = []
    if mount.device.startswith("0:"):  # btrfs, overlay, ecryptfs, fuse: an anonymous number, which is not a device's
        paths.append(mount.source)
        if mount.source.startswith("/dev/") and ":" in mount.source:  # bcachefs joins its devices like this
            paths += mount.source.split(":")
    if "dev=" in mount.super_options or "upperdir=" in mount.super_options:
        for option in mount.super_options.split(","):
            key, _, value = option.partition("=")
            if key in ("logdev", "rtdev", "upperdir"):
                paths.append(_unescape(value))
    return [path for path in paths if path.startswith("/")]


def build_plan(
    mountinfo: Sequence[MountInfo], block_types: frozenset[str], devices: Iterable[BlockDevice], rules: Rules
) -> Plan:
    """Return what to freeze in which order, and what is left out for which reason.

    Raises Fault: PARAMS if a glob is malformed or an include glob of the request matches nothing that is planned,
    FREEZE_FAILED if file systems that are planned lie on each other in a circle.
    """
    found = superblocks(mountinfo)
    reasons = _reasons(found, block_types, rules)
    edges, disks = _lies_on(mountinfo, found, devices)
    planned = {i for i, reason in enumerate(reasons) if reason is None}
    hosts = {i: set(walk_down(edges[i], lambda j: edges[j])) & planned - {i} for i in planned}
    for i in planned:
        if circle := [j for j in hosts[i] if i in hosts[j]]:
            names = listed(found[j].points[0] for j in sorted([i, *circle]))
            why = f"{names} lie on each other in a circle; exclude one of them"
            raise Fault(Code.FREEZE_FAILED, f"no order of freezing: {why}; nothing was frozen")

    level = dict.fromkeys(planned, 0)
    # What lies on another one has more hosts than that one. So from the most hosts to the fewest is inside out.
    for i in sorted(planned, key=lambda i: -len(hosts[i])):
        for host in hosts[i]:
            level[host] = max(level[host], level[i] + 1)
    order = sorted(planned, key=lambda i: (level[i], -i))
    place = {i: index for index, i in enumerate(order)}

    def mount(i: int) -> Mount:
        info, (mountpoint, *aliases) = found[i]
        below = tuple(sorted(place[host] for host in hosts[i]))
        return Mount(mountpoint, tuple(aliases), info.device, info.fstype, info.source, level[i], below, disks[i])

    left_out = [
        LeftOut(points[0], points[1:], info.device, info.fstype, reason.value)
        for (info, points), reason in zip(found, reasons, strict=True)
        if reason is not None
    ]
    return Plan(tuple(map(mount, order)), tuple(left_out))


class Superblock(NamedTuple):
    """A file system: its primary mount, and all its mount points, that of the primary first."""

    info: MountInfo
    points: tuple[str, ...]


def superblocks(mountinfo: Sequence[MountInfo]) -> list[Superblock]:
    """Return the file systems in the order of their first mounts."""
    mounts: dict[str, list[MountInfo]] = {}
    for mount in mountinfo:
        mounts.setdefault(mount.device, []).append(mount)
    leads_to = _path_walk(mountinfo)
    found = []
    for same in mounts.values():
        # A path that leads to another mount is of no use. A mount of the whole file system is certainly a folder.
        primary = min(same, key=lambda m: (leads_to[m.mountpoint] != m.mount_id, m.root != "/"))
        points = dict.fromkeys((primary.mountpoint, *(m.mountpoint for m in same)))
        found.append(Superblock(primary, tuple(points)))
    return found


def _path_walk(mountinfo: Sequence[MountInfo]) -> dict[str, int]:
    """Return for each mount point the id of the mount that its path leads to, as the kernel walks: from the root.

    The order in mountinfo does not say what covers what: the root is often mounted after /proc and /dev.
    """
    outside = -1
    ids = {m.mount_id for m in mountinfo}
    on: dict[str, dict[int, int]] = {}
    for m in mountinfo:
        inside = m.parent_id in ids and m.parent_id != m.mount_id  # the very first root is its own parent
        on.setdefault(m.mountpoint, {})[m.parent_id if inside else outside] = m.mount_id
    leads_to: dict[str, int] = {}
    # Sorted by path, not folder by folder: with FUSE any user may make a thousand mounts at paths of 4 KiB.
    way: list[str] = []
    for path in sorted(on, key=lambda path: path.rstrip("/").replace("/", "\0")):
        while way and not path.startswith(way[-1].rstrip("/") + "/"):
            way.pop()
        leads_to[path] = leads_to[way[-1]] if way else outside
        while (top := on[path].pop(leads_to[path], None)) is not None:
            leads_to[path] = top
        way.append(path)
    return leads_to


def _parents(path: str) -> Iterator[str]:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def _reasons(found: Sequence[Superblock], block_types: frozenset[str], rules: Rules) -> list[Reason | None]:
    """Return why each file system is left out, None for those that are planned.

    The reason is the first that applies in the order of `states.Reason`: what the file system is comes before what was
    asked for, and an exclude before an include.
    """
    include, exclude = _globs(rules.include), _globs(rules.exclude + rules.request_exclude)
    wanted = _globs(rules.request_include)
    literal = None if rules.literal is None else frozenset(rules.literal)

    def reason(superblock: Superblock) -> Reason | None:
        info, points = superblock
        if server_of(info.fstype) is not Server.KERNEL:
            return Reason.NETWORK
        if info.fstype not in block_types or info.fstype == "autofs":
            return Reason.PSEUDO
        if "ro" in info.super_options.split(","):
            return Reason.READ_ONLY
        if _any(exclude, points):
            return Reason.EXCLUDED
        if any(globs and not _any(globs, points) for globs in (include, wanted)):
            return Reason.NOT_INCLUDED
        if literal is not None and literal.isdisjoint(points):
            return Reason.NOT_INCLUDED
        return None

    reasons = [reason(superblock) for superblock in found]
    for glob, matches in wanted.items():  # ADR 0007: each must match, not any
        matched = [(s.points[0], r) for s, r in zip(found, reasons, strict=True) if any(map(matches, s.points))]
        left_out = [f"{mountpoint} ({r.value})" for mountpoint, r in matched if r is not None]
        if len(left_out) == len(matched):
            why = f"matches only what is left out: {', '.join(left_out[:5])}" if left_out else "matches no file system"
            raise Fault(Code.PARAMS, f"include glob {glob!r} {why}; nothing was frozen")
    return reasons


_Globs = Mapping[str, Callable[[str], object]]


def _globs(globs: Iterable[str]) -> _Globs:
    # Compiled here, since fnmatch remembers only 256 patterns.
    try:
        return {glob: re.compile(fnmatch.translate(glob)).match for glob in globs}
    except re.error as error:
        raise Fault(Code.PARAMS, f"malformed glob {error.pattern!r}: {error}; nothing was frozen") from None


def _any(globs: _Globs, points: Iterable[str]) -> bool:
    return any(matches(point) for point in points for matches in globs.values())


def _lies_on(
    mountinfo: Sequence[MountInfo], found: Sequence[Superblock], devices: Iterable[BlockDevice]
) -> tuple[list[set[int]], list[tuple[str, ...]]]:
    """Return for each file system the indices of those that it lies on directly, and for each its disks."""
    devices = list(devices)
    by_name = {d.name: d for d in devices}
    by_number = {d.number: d for d in devices}
    by_path = {"/dev/" + d.name.replace("!", "/"): d for d in devices}
    by_path |= {"/dev/mapper/" + d.mapper: d for d in devices if d.mapper}
    claimed = {name for s in found if s.info.source in by_path for name in by_path[s.info.source].pool}
    unclaimed = [d for d in devices if d.pool and d.name not in claimed]
    index = {s.info.device: i for i, s in enumerate(found)}
    at: dict[str, list[int]] = {}
    for mount in mountinfo:
        at.setdefault(mount.mountpoint, []).append(index[mount.device])

    def device(path: str) -> BlockDevice | None:
        return by_path.get(path) or by_path.get(path.removesuffix(DELETED))

    def holder(path: str, guest: int) -> int | None:
        if path not in at:
            path = path.removesuffix(DELETED)
        for folder in (path, *_parents(path)):
            for i in reversed(at.get(folder, ())):
                if i != guest:  # it may be mounted over the folder of its own image
                    return i
        return None

    def below(upper: BlockDevice) -> list[BlockDevice]:
        known = (by_name.get(name) for name in (upper.disk, *upper.slaves))
        return [d for d in (*known, device(upper.backing_file)) if d]

    edges, disks = [], []
    for guest, (info, _) in enumerate(found):
        named = named_below(info)
        members = [d for d in (by_number.get(info.device), *map(device, named)) if d]
        if info.fstype == "btrfs" and not members:
            # sysfs does not know its source (/dev/root, a link). An edge too many is better than one too few.
            members = unclaimed
        names = dict.fromkeys(name for d in members for name in (d.name, *d.pool))
        members = [by_name[name] for name in names if name in by_name]
        disks.append(tuple(dict.fromkeys((d.disk or d.name).replace("!", "/") for d in members)))

        files = [path for path in named if not path.startswith("/dev/")]
        for d in walk_down(members, below):
            if d.backing_file and not device(d.backing_file):
                files.append(d.backing_file)
        edges.append({i for path in files if (i := holder(path, guest)) is not None})
    return edges, disks


def _unescape(text: str) -> str:
    """Return the text with its octal escapes (\\040) replaced by the bytes that they mean."""
    if "\\" not in text:
        return text
    raw = re.sub(rb"\\([0-3][0-7]{2})", lambda m: bytes([int(m[1], 8)]), text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")

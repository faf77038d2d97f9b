"""What is mounted, as mountinfo tells: its lines, its file systems, and who serves them. Pure."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

# fmt: off
NETWORK_TYPES = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "orangefs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
})
# fmt: on
_ESCAPED = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"))  # fs/proc_namespace.c
_BACKSLASH = "\\134"
PATH_MAX = 4096  # bytes, with the NUL at the end


class Server(enum.Enum):
    """Who serves a file system. Opening one that the kernel does not serve by itself may block for ever."""

    KERNEL = "kernel"
    NETWORK = "network"
    FUSE = "fuse"
    FUSE_ON_DISK = "fuseblk"


@functools.lru_cache(256)
def server_of(fstype: str) -> Server:
    """Return who serves file systems of this type; mountinfo names types ("ext4", "nfs4", "fuse.sshfs")."""
    if fstype in NETWORK_TYPES:
        return Server.NETWORK
    family = fstype.partition(".")[0]
    return {"fuse": Server.FUSE, "fuseblk": Server.FUSE_ON_DISK}.get(family, Server.KERNEL)


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


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Return the mounts of a mountinfo text (decoded as UTF-8 with surrogateescape).

    Raises ValueError that names the line if one is malformed.
    """
    mounts = []
    # Thousands of binds have the same device, and the same after the dash.
    devices: dict[str, str] = {}
    abouts: dict[str, tuple[str, str, str]] = {}
    # No splitlines: of what Python takes for the end of a line, the kernel escapes only the newline.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        try:
            mount, _, file_system = line.partition(" - ")
            mount_id, parent_id, device, root, mountpoint, _ = mount.split(" ", 5)
            if (about := abouts.get(file_system)) is None:
                fstype, source, options = file_system.split(" ", 2)
                about = abouts[file_system] = (unescape(fstype), unescape(source), options)
            if device not in devices:
                devices[device] = _number(device)
            if not (mount_id.isdecimal() and parent_id.isdecimal() and mountpoint.startswith("/")):
                raise ValueError
            if "\\" in mount:
                root, mountpoint = unescape(root), unescape(mountpoint)
            mounts.append(MountInfo(int(mount_id), int(parent_id), devices[device], root, mountpoint, *about))
        except ValueError:
            raise ValueError(f"mountinfo line {number} is malformed: {line[:200]!r}") from None
    return mounts


def _number(device: str) -> str:
    major, minor = device.split(":")
    if not (major.isdecimal() and minor.isdecimal()):
        raise ValueError
    return device


def parse_filesystems(text: str) -> frozenset[str]:
    """Return the types in the text of /proc/filesystems that are not nodev."""
    return frozenset(line.strip() for line in text.split("\n") if line.strip() and not line.startswith("nodev"))


def is_anonymous(mount: MountInfo) -> bool:
    """Return whether the number of a file system is none of a block device."""
    return mount.device.startswith("0:")


def named_devices(mount: MountInfo) -> list[str]:
    """Return the paths of devices that a file system itself names, beyond its device number, as they were written.

    Any of them may be a link, or lead nowhere by now. The source of a FUSE or network file system is whatever its user
    wrote, and so may be the options of others: only these types say a device there.
    """
    match mount.fstype:
        case "btrfs":
            return [mount.source] if mount.source.startswith("/dev/") else []  # sysfs knows the devices
        case "bcachefs":
            return mount.source.split(":")
        case "xfs" | "reiserfs" if "dev=" in mount.super_options:
            options = (option.partition("=") for option in mount.super_options.split(","))
            return [unescape(value) for key, _, value in options if key in ("logdev", "rtdev", "jdev")]
    return []


def served_device(mount: MountInfo) -> str:
    """Return the path below /dev that root's FUSE server names as its source, "" if there is none.

    It may be no block device: that of a server that names none is /dev/fuse.
    """
    is_roots = server_of(mount.fstype) is Server.FUSE and "user_id=0" in mount.super_options.split(",")
    return mount.source if is_roots and mount.source.startswith("/dev/") else ""


def upper_folder(mount: MountInfo) -> str:
    """Return the path that an overlay's upper layer was mounted by, relative ones too; "" if it has none."""
    options = (option.partition("=") for option in mount.super_options.split(","))
    return next((unescape(value) for key, _, value in options if key == "upperdir"), "")


class Superblock(NamedTuple):
    """A file system: its primary mount and all its mount points, that of the primary first.

    `shown` are the mount points whose paths lead to it. `namespace` says by which processes it is mounted if it is not
    mounted in this mount namespace; then its one point is below the folder /proc/PID/root.
    """

    info: MountInfo
    points: tuple[str, ...]
    shown: frozenset[str]
    namespace: str = ""

    @property
    def own_points(self) -> tuple[str, ...]:
        """Its mount points in this mount namespace: only these are matched by globs and lists."""
        return () if self.namespace else self.points


def superblocks(
    mountinfo: Sequence[MountInfo], leads_to: Mapping[str, int] | None = None, served: Set[int] | None = None
) -> list[Superblock]:
    """Return the file systems in the order of their first mounts; `path_walk` and `behind_servers` may be known."""
    mounts: dict[str, list[MountInfo]] = {}
    for mount in mountinfo:
        mounts.setdefault(mount.device, []).append(mount)
    leads_to = path_walk(mountinfo) if leads_to is None else leads_to
    served = behind_servers(mountinfo) if served is None else served
    found = []
    for same in mounts.values():
        shown = [m for m in same if leads_to[m.mountpoint] == m.mount_id]
        primary = _best(shown or same, served)
        points = dict.fromkeys((primary.mountpoint, *(m.mountpoint for m in same)))
        found.append(Superblock(primary, tuple(points), frozenset(m.mountpoint for m in shown)))
    return found


def _best(mounts: Sequence[MountInfo], served: Set[int]) -> MountInfo:
    """Return the first of those that are the likeliest to be a folder that can be opened."""

    def flaws(mount: MountInfo) -> tuple[bool, bool, bool]:
        return mount.mount_id in served, is_long(mount.mountpoint), mount.root != "/"

    return next((mount for mount in mounts if not any(flaws(mount))), None) or min(mounts, key=flaws)


def is_long(path: str) -> bool:
    """Return whether a path must be opened in steps, since a system call takes only PATH_MAX bytes."""
    return len(path) * 3 >= PATH_MAX and len(path.encode("utf-8", "surrogateescape")) >= PATH_MAX


def behind_servers(mountinfo: Sequence[MountInfo]) -> frozenset[int]:
    """Return the ids of the mounts that a path reaches only if a program or another machine answers, or mounts it."""
    by_id = {m.mount_id: m for m in mountinfo}
    behind: dict[int, bool] = {}
    for mount in mountinfo:
        if mount.parent_id in behind:  # as mountinfo mostly has them: none comes before what it is mounted on
            behind[mount.mount_id] = behind[mount.parent_id] or _is_served(mount)
            continue
        way = []
        here: MountInfo | None = mount
        while here is not None and here.mount_id not in behind:
            behind[here.mount_id] = _is_served(here)
            way.append(here.mount_id)
            here = by_id.get(here.parent_id)
        above = here is not None and behind[here.mount_id]
        for one in reversed(way):
            above = behind[one] = behind[one] or above
    return frozenset(one for one, is_behind in behind.items() if is_behind)


def _is_served(mount: MountInfo) -> bool:
    return mount.fstype == "autofs" or server_of(mount.fstype) is not Server.KERNEL


def path_walk(mountinfo: Sequence[MountInfo]) -> dict[str, int]:
    """Return for each mount point the id of the mount that its path leads to, as the kernel walks: from the root.

    The order in mountinfo does not say what covers what: the root is often mounted after /proc and /dev.
    """
    outside = -1
    ids = {m.mount_id for m in mountinfo}
    single: dict[str, MountInfo] = {}
    several: dict[str, dict[int, int]] = {}

    def parent(m: MountInfo) -> int:
        return m.parent_id if m.parent_id in ids and m.parent_id != m.mount_id else outside  # the first is its own

    for m in mountinfo:
        if (first := single.setdefault(m.mountpoint, m)) is not m:
            several.setdefault(m.mountpoint, {parent(first): first.mount_id})[parent(m)] = m.mount_id
    leads_to: dict[str, int] = {}
    # Each behind those on its way, not folder by folder: by FUSE any user may mount a thousand at paths of 4 KiB.
    way: list[str] = []
    for path in sorted(single, key=lambda path: path.rstrip("/").replace("/", "\0")):
        while way and not path.startswith(way[-1].rstrip("/") + "/"):
            way.pop()
        top = leads_to[way[-1]] if way else outside
        if on := several.get(path):
            while (above := on.pop(top, None)) is not None:
                top = above
        elif parent(single[path]) == top:
            top = single[path].mount_id
        leads_to[path] = top
        way.append(path)
    return leads_to


def unescape(text: str) -> str:
    """Return the text with its octal escapes (\\040) replaced by the bytes that they mean."""
    if "\\" not in text:
        return text
    whole = text
    for escape, byte in _ESCAPED:
        text = text.replace(escape, byte)
    if text.count("\\") == text.count(_BACKSLASH):
        return text.replace(_BACKSLASH, "\\")
    raw = re.sub(rb"\\([0-3][0-7]{2})", lambda m: bytes([int(m[1], 8)]), whole.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")

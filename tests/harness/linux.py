"""The system calls of the harness: mounts, loop devices, freezing. Independent of the agent's own, which it checks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
BTRFS_IOC_SUBVOL_CREATE = 0x5000940E
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LOOP_CLR_FD = 0x4C01
LO_FLAGS_AUTOCLEAR = 4
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 1, 32, 4096, 16384, 1 << 18, 1 << 20
MNT_DETACH = 2
CLONE_NEWNS = 0x00020000
PR_SET_CHILD_SUBREAPER = 36
# The newer system calls have one number on every architecture.
_FSPICK, _FSCONFIG, _FSPICK_CLOEXEC, _FSCONFIG_CMD_RECONFIGURE, _AT_FDCWD = 433, 431, 1, 7, -100

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    _checked(
        _libc.mount(
            source.encode() or None,
            os.fsencode(target),
            fstype.encode() or None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        target,
    )


def umount(target: str, flags: int = 0) -> None:
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def unshare_mounts() -> None:
    """Give this process its own mount namespace."""
    _checked(_libc.unshare(CLONE_NEWNS), "unshare")


def change_root(root: str) -> None:
    """Make the mount point `root` the root and let the old one go."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(root)
    _checked(_libc.pivot_root(b".", b"."), root)  # the old root now lies on top of the new one
    os.fchdir(old)
    mount("", ".", flags=MS_REC | MS_PRIVATE)  # else the area is unmounted in every namespace that shares it
    umount(".", MNT_DETACH)
    os.close(old)
    os.chdir("/")


def adopt_orphans() -> None:
    """Let the descendants of this process become its children when their parent dies."""
    _checked(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def freeze(path: str) -> None:
    _filesystem_ioctl(path, FIFREEZE)


def thaw(path: str) -> None:
    _filesystem_ioctl(path, FITHAW)


def sync(path: str) -> None:
    """Sync the file system; it is locked meanwhile (super.c: s_umount), so that FITHAW waits."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _checked(_libc.syncfs(folder), f"syncfs {path}")
    finally:
        os.close(folder)


def _filesystem_ioctl(path: str, request: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


def is_frozen(path: str) -> bool:
    """Tell whether the file system is frozen, and leave it as it is; blocks while a freeze of it is under way.

    No call asks this. FITHAW and FIFREEZE change what they ask about, and a write shows only that it has not ended
    yet. A reconfiguration that changes nothing does neither: the kernel refuses it with EBUSY if the superblock is
    frozen, in 40 us; if not, ext4 and btrfs write what is dirty (about 10 ms).
    """
    fd = _checked(_libc.syscall(_FSPICK, _AT_FDCWD, os.fsencode(path), _FSPICK_CLOEXEC), path)
    try:
        _checked(_libc.syscall(_FSCONFIG, fd, _FSCONFIG_CMD_RECONFIGURE, None, None, 0), path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    else:
        return False
    finally:
        os.close(fd)


def make_subvolume(parent: str, name: str) -> None:
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, BTRFS_IOC_SUBVOL_CREATE, bytearray(struct.pack("=q4088s", 0, name.encode())))
    finally:
        os.close(fd)


def attach_loop(image: Path) -> tuple[str, int]:
    """Return a loop device over `image` and a descriptor of it; the device goes when it is closed and not mounted."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        with open("/dev/loop-control", "rb") as control:
            while True:
                number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
                device = f"/dev/loop{number}"
                fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
                info = struct.pack("=5Q4I64s", 0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR, os.fsencode(image)[:63])
                try:
                    fcntl.ioctl(fd, LOOP_CONFIGURE, struct.pack("=2I", backing, 0) + info.ljust(296, b"\0"))
                except OSError as error:
                    os.close(fd)
                    if error.errno != errno.EBUSY:  # EBUSY: someone else took this one
                        raise
                else:
                    return device, fd
    finally:
        os.close(backing)


def loop_devices(under: str) -> dict[str, str]:
    """Return the loop devices whose backing file lies under the folder `under`, with that file."""
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            # Others on the machine may name theirs as they like.
            backing = entry.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        except OSError:
            continue
        if backing.startswith(under.rstrip("/") + "/"):
            found["/dev/" + entry.parts[3]] = backing
    return found


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    mountpoint: str
    device: str
    fstype: str


def mounts() -> list[Mount]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            found.append(Mount(_unescaped(fields[4]), fields[2], fields[fields.index("-") + 1]))
    return found


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def mounts_under(folder: str) -> list[Mount]:
    return [m for m in mounts() if is_under(m.mountpoint, folder)]


def nodev_types() -> set[str]:
    with open("/proc/filesystems", encoding="ascii") as lines:
        return {line.split()[1] for line in lines if line.startswith("nodev")}


def expedited() -> str:
    """Return what /sys/kernel/rcu_expedited has, empty if the kernel has no such file."""
    file = Path("/sys/kernel/rcu_expedited")
    return file.read_text().strip() if file.exists() else ""

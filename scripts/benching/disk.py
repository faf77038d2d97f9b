"""One disk with as many partitions as wanted, as slow as wanted.

Partitions rather than images on a file system: as in a guest, they share one disk and nothing else. Without a limit
the disk is as fast as memory (or as what `--images` lies on) and no way of freezing differs much from another.

It is a loop device over another one, which is slow; what is above has a scheduler and a hundred requests at most on
their way, as disks have. Slow is memory served by nbdkit with its rate filter, through FUSE (nbdfuse) and read and
written past the page cache: each request takes as long as its size says. Without these programs it is the kernel's
throttle (blkio), which takes whatever it is given into one long queue and lets it go in bursts.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from harness import linux
from harness.filesystems import _MAKE, LoopFs, require
from harness.namespace import Area
from harness.processes import until

LO_FLAGS_PARTSCAN, LO_FLAGS_DIRECT_IO = 8, 16
BLKPG, BLKPG_ADD_PARTITION = 0x1269, 1
FIRST = 1 << 20
THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
"""Of the root group of the first version of control groups: the second cannot slow down what the kernel writes back."""

BURSTS = 0.02  # seconds of the rate that come at once
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """A disk of `count` partitions of `size` bytes; `rate` is the bytes it writes in a second, 0 for no limit.

    The image lies in `folder`, in the area's memory if None; there it has no name, so nothing of it can stay.
    """

    def __init__(self, area: Area, count: int, size: int, rate: int = 0, folder: Path | None = None) -> None:
        self.used = 0
        self.throttled = self.smooth = False
        self._served: Served | None = None
        self._fds: list[int] = []
        self._release: subprocess.Popen[bytes] | None = None
        whole = FIRST + count * size
        if rate and folder is None and (served := Served.start(area, whole, rate)):
            self._served, self.throttled, self.smooth = served, True, True
            backing = os.open(served.path, os.O_RDWR | os.O_CLOEXEC)
        else:
            image = (folder or area.root) / f"virtagent-bench-{os.getpid()}.img"
            backing = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            image.unlink()
            os.truncate(backing, whole)
        try:
            slow = self._attach(backing, LO_FLAGS_DIRECT_IO if folder or self.smooth else 0)
            self.device = self._attach(self._fds[0], LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN)
            for number in range(count):
                add_partition(self._fds[1], number + 1, FIRST + number * size, size)
            if rate and not self.smooth and THROTTLE.exists():
                self._throttle(slow, rate)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(backing)

    def _attach(self, backing: int, flags: int) -> str:
        device, fd = attach(backing, flags)
        self._fds.append(fd)
        return device

    def _throttle(self, device: str, rate: int) -> None:
        """Limit the rate; however this process ends, a shell that waits for that takes the limit away."""
        number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()
        script = 'trap "" INT TERM HUP; echo "$1 $2" >"$3"; echo; read -r _; echo "$1 0" >"$3"'
        self._release = subprocess.Popen(
            ["sh", "-c", script, "sh", number, str(rate), str(THROTTLE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._release.stdout is not None
        self.throttled = bool(self._release.stdout.readline())

    def hurry(self) -> None:
        """Take the limit away."""
        if self._release is not None:
            self._release.communicate()
            self._release = None

    def close(self) -> None:
        """Let the devices go."""
        self.hurry()
        while self._fds:
            os.close(self._fds.pop())
        if self._served is not None:
            self._served.close()


class Served:
    """A file of so many bytes, in the memory of a program that takes a write only as fast as the rate allows."""

    def __init__(self, area: Area, size: int, rate: int) -> None:
        self._folder = area.fresh("served")
        self._folder.mkdir()
        self.path = self._folder / "disk"
        serve = ["nbdkit", "-s", "--exit-with-parent", "--filter=rate", "memory", str(size)]
        limits = [f"rate={rate * 8}", f"burstiness={BURSTS}"]  # nbdkit-rate-filter(1): bits a second
        command = ["nbdfuse", str(self.path), "--command", *serve, *limits]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        area.guard(self._process.pid)
        until(lambda: self.path.exists() and self.path.stat().st_size == size, 20, "nbdfuse to serve")

    @classmethod
    def start(cls, area: Area, size: int, rate: int) -> Served | None:
        """Start it; return None if its programs are not here."""
        return cls(area, size, rate) if shutil.which("nbdkit") and shutil.which("nbdfuse") else None

    def close(self) -> None:
        """Unmount it and end its program."""
        linux.umount(str(self._folder), linux.MNT_DETACH)
        self._process.terminate()
        self._process.wait(20)


class Partition(LoopFs):
    """A mounted file system on the next partition of a disk, which goes with the last one."""

    def __init__(self, area: Area, kind: str, disk: Disk) -> None:
        require(kind)
        self.area, self.kind, self.outer = area, kind, None
        self.aliases = []
        self._probes = []
        self._device_fd = -1
        self._disk = disk
        self.path = area.fresh(kind)
        self.image = area.root / f"{self.path.name}.none"
        disk.used += 1
        self.device = f"{disk.device}p{disk.used}"
        # Else the second says that there is a file system already.
        force = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[kind]
        subprocess.run([*_MAKE[kind], force, self.device], capture_output=True, check=True, cwd="/")
        self.path.mkdir()
        self.mount()

    def unmount(self) -> None:
        self._disk.hurry()
        super().unmount()

    def detach(self) -> None:
        if self._disk.used:
            self._disk.used -= 1
            if not self._disk.used:
                self._disk.close()


def attach(backing: int, flags: int) -> tuple[str, int]:
    """Return a loop device and its descriptor; it goes when that is closed and all unmounted."""
    with open("/dev/loop-control", "rb") as control:
        while True:
            device = f"/dev/loop{fcntl.ioctl(control, linux.LOOP_CTL_GET_FREE)}"
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            info = struct.pack("=5Q4I", 0, 0, 0, 0, 0, 0, 0, 0, flags | linux.LO_FLAGS_AUTOCLEAR)
            try:
                fcntl.ioctl(fd, linux.LOOP_CONFIGURE, (struct.pack("=2I", backing, 0) + info).ljust(304, b"\0"))
            except BlockingIOError:
                os.close(fd)
            except OSError as error:
                os.close(fd)
                if error.errno != 16:  # EBUSY: someone else took this one
                    raise
            else:
                return device, fd


def add_partition(fd: int, number: int, start: int, length: int) -> None:
    part = ctypes.create_string_buffer(struct.pack("@qqi64s64s", start, length, number, b"", b""), 160)
    fcntl.ioctl(fd, BLKPG, struct.pack("@iiiP", BLKPG_ADD_PARTITION, 0, 152, ctypes.addressof(part)))


def sync(path: str) -> None:
    """Write what is dirty in the file system (syncfs(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(fd)

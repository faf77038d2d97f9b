"""Real file systems on loop devices, made in milliseconds and taken down whatever state they are in.

An image is made afresh for each file system: mkfs takes 4 ms (ext4), 22 ms (xfs) and 7 ms (btrfs) on the tmpfs, a copy
of a kept image with the UUID that it then needs takes 8, 58 and 9 ms.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import HarnessError, Unmet, linux
from .namespace import Area
from .processes import Action, Child, act

MIB = 1 << 20
KINDS = ("ext4", "xfs", "btrfs")
LEAST = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q", "-m", "single"],
}
_PACKAGE = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}


def require(kind: str) -> None:
    """Raise Unmet if this machine cannot make or mount such a file system."""
    if shutil.which(_MAKE[kind][0]) is None:
        raise Unmet(f"needs {_MAKE[kind][0]} (Debian package {_PACKAGE[kind]})")
    if not os.path.exists("/dev/loop-control"):
        raise Unmet("needs loop devices (/dev/loop-control)")


class LoopFs:
    """A mounted file system on a loop device over an image in the area or on another LoopFs (`outer`).

    `folder` is where the image lies, if not where these are mounted; `options` are for mkfs.
    """

    def __init__(
        self,
        area: Area,
        kind: str,
        size: int = 0,
        outer: LoopFs | None = None,
        name: str = "",
        folder: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        require(kind)
        self.area, self.kind, self.outer = area, kind, outer
        self.aliases: list[Path] = []
        self._writes = 0
        self._probes: list[Child] = []
        self._device_fd = -1
        self.path = area.fresh(name or kind)
        folder = folder or (outer.path if outer else area.root)
        self.image = folder / f"{self.path.name}.img"
        with open(self.image, "wb") as image:
            image.truncate(size or LEAST[kind])
        make = [*_MAKE[kind], *options, str(self.image)]
        made = subprocess.run(make, capture_output=True, text=True, check=False, cwd="/")
        if made.returncode:
            raise HarnessError(f"{' '.join(made.args)}: {made.stderr.strip()}")
        self.device, self._device_fd = linux.attach_loop(self.image)
        try:
            self.path.mkdir(parents=True)
            self.mount()
        except BaseException:
            self.detach()
            raise

    def __repr__(self) -> str:
        return f"<{self.kind} {self.path} on {self.device}>"

    def __str__(self) -> str:
        """The mount point."""
        return str(self.path)

    @property
    def depth(self) -> int:
        return self.outer.depth + 1 if self.outer else 0

    @property
    def include(self) -> str:
        """The glob that matches this mount point only."""
        return glob.escape(str(self.path))

    @property
    def number(self) -> str:
        """major:minor of the superblock as mountinfo shows it (of btrfs not that of the device)."""
        return next(m.device for m in reversed(linux.mounts()) if m.mountpoint == str(self.path))

    def mount(self) -> None:
        try:
            linux.mount(self.device, str(self.path), self.kind)
        except OSError as error:
            if error.errno == 19:  # ENODEV
                raise Unmet(f"needs a kernel that can mount {self.kind}") from None
            raise

    def bind(self, name: str = "bind") -> Path:
        """Mount it at a second place; return that."""
        alias = self.area.fresh(name)
        alias.mkdir()
        linux.mount(str(self.path), str(alias), flags=linux.MS_BIND)
        self.aliases.append(alias)
        return alias

    def subvolume(self, name: str = "subvolume") -> Path:
        """Make a btrfs subvolume and mount it at a place of its own; return that."""
        linux.make_subvolume(str(self.path), name)
        alias = self.area.fresh(name)
        alias.mkdir()
        linux.mount(self.device, str(alias), self.kind, data=f"subvol={name}")
        self.aliases.append(alias)
        return alias

    def remount_read_only(self) -> None:
        linux.mount("", str(self.path), flags=linux.MS_REMOUNT | linux.MS_RDONLY)

    def fill(self, size: int, name: str = "dirty") -> None:
        """Write `size` bytes that then wait in memory for the disk."""
        block = os.urandom(MIB)
        with open(self.path / name, "wb", buffering=0) as file:
            for start in range(0, size, MIB):
                file.write(block[: size - start])

    def write(self) -> Action:
        """Return a child that writes a record now: `.answer(timeout)` is `ok` when the write has ended."""
        probe = Action("write", str(self.path / "probe"))
        self._probes.append(probe)
        return probe

    def is_writable(self, timeout: float = 5) -> bool:
        """Tell whether a write ends within `timeout`."""
        try:
            return self.write().answer(timeout) == "ok"
        except TimeoutError:
            return False

    def assert_writable(self, timeout: float = 5) -> None:
        assert self.is_writable(timeout), f"a write to {self} did not end within {timeout:g} s"

    def is_frozen(self, timeout: float = 10) -> bool:
        """Tell for certain, and leave it as it is (`linux.is_frozen` says how).

        Raises HarnessError if that cannot be told since a freeze of it is under way.
        """
        probe = Action("frozen", str(self.path))
        self._probes.append(probe)
        try:
            answer = probe.answer(timeout)
        except TimeoutError:
            raise HarnessError(f"{self} is neither frozen nor thawed: a freeze or thaw is under way") from None
        if answer not in ("yes", "no"):  # EINVAL: btrfs went read-only with an error, as dmesg shows
            raise HarnessError(f"asking whether {self} is frozen: {answer}; is it in error (dmesg)?")
        return answer == "yes"

    def assert_frozen(self) -> None:
        assert self.is_frozen(), f"{self} is not frozen"

    def assert_thawed(self) -> None:
        assert not self.is_frozen(), f"{self} is frozen"

    def freeze(self) -> str:
        """Freeze it, in a process of its own; return `ok` or the errno's name; raise TimeoutError if that blocks."""
        return act("freeze", str(self.path))

    def thaw(self, timeout: float = 10) -> str:
        """Thaw it, in a process of its own; return `ok` or the errno's name (EINVAL: it was not frozen)."""
        return act("thaw", str(self.path), timeout)

    def ioctl(self, action: str) -> Action:
        """Return a child in which `freeze` or `thaw` runs, which may block."""
        child = Action(action, str(self.path))
        self._probes.append(child)
        return child

    def end_probes(self) -> None:
        """Kill and reap the children of this file system; they end only when it is thawed."""
        for probe in self._probes:
            probe.close()
        self._probes.clear()

    def unmount(self) -> None:
        for place in [*reversed(self.aliases), self.path]:
            with contextlib.suppress(FileNotFoundError):
                if any(m.mountpoint == str(place) for m in linux.mounts_under(str(self.area.root))):
                    linux.umount(str(place))
        self.aliases.clear()

    def detach(self) -> None:
        """Let the loop device go and remove the image."""
        if self._device_fd >= 0:
            os.close(self._device_fd)
            self._device_fd = -1
        self.image.unlink(missing_ok=True)

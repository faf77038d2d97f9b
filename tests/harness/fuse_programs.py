"""Programs of other packages that serve FUSE file systems: what each is mounted with, and how it ends."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import HarnessError, Unmet, linux
from .namespace import Area
from .processes import until

NOBODY = 65534
PACKAGES = {
    "mergerfs": "mergerfs",
    "bindfs": "bindfs",
    "unionfs-fuse": "unionfs-fuse",
    "fuse-overlayfs": "fuse-overlayfs",
    "fuse2fs": "fuse2fs",
    "fusermount3": "fuse3",
}


def require(*programs: str) -> None:
    """Raise Unmet that names the package of a program that is not there."""
    for program in programs:
        if shutil.which(program) is None:
            raise Unmet(f"needs {program} (Debian package {PACKAGES[program]})")


def pool(program: str, a: Path, b: Path) -> list[str]:
    """Return the command that shows two folders as one whose new files go to `a`; the mount point is to be added."""
    match program:
        case "mergerfs":
            return ["mergerfs", "-f", "-o", "category.create=ff,minfreespace=0", f"{a}:{b}"]
        case "bindfs":
            return ["bindfs", "-f", str(a)]
        case "unionfs-fuse":
            return ["unionfs-fuse", "-f", "-o", "cow", f"{a}=RW:{b}=RO"]
        case "fuse-overlayfs":
            for folder in (a / "upper", a / "work"):
                folder.mkdir()
            return ["fuse-overlayfs", "-f", "-o", f"lowerdir={b},upperdir={a}/upper,workdir={a}/work"]
    raise ValueError(program)


@contextlib.contextmanager
def served(area: Area, command: Sequence[str], place: Path, user: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Let the program serve a FUSE file system at `place`; its process is what this yields.

    What lies on it must be unmounted before the end. Raises Unmet if the program is not there.
    """
    require(command[0])
    before = len(linux.mounts_under(str(place)))
    words = area.fresh(f"{command[0]}.said")
    with open(words, "wb") as said:
        process = subprocess.Popen(
            [*command, str(place)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[],
        )
    area.guard(process.pid)

    def is_mounted() -> bool:
        if process.poll() is not None:
            raise HarnessError(f"{command[0]} ended with {process.returncode}: {words.read_text()}")
        return len(linux.mounts_under(str(place))) > before

    try:
        until(is_mounted, 20, f"{command[0]} mounted at {place}")
        yield process
    finally:
        if len(linux.mounts_under(str(place))) > before:
            linux.umount(str(place), linux.MNT_DETACH)
        process.kill()
        process.wait(20)

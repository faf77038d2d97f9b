"""An image on a FUSE file system over a folder of another file system: what it lies on, no device number tells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from . import linux
from .filesystems import LoopFs
from .fixtures import unmet
from .processes import until
from .rig import Rig


@contextmanager
def hidden_edge(rig: Rig) -> Iterator[tuple[LoopFs, LoopFs]]:
    """Give an image, and the file system that it lies on, which seems to have been mounted later."""
    if shutil.which("bindfs") is None:
        unmet("needs bindfs (Debian package bindfs)")
    outer = rig.fs("ext4")
    (outer.path / "img").mkdir()
    point = rig.area.fresh("served")
    point.mkdir()
    subprocess.run(["bindfs", str(outer.path / "img"), str(point)], check=True, timeout=20)
    inner = rig.fs("ext4", folder=point)
    later = outer.bind("later")
    linux.umount(str(outer), linux.MNT_DETACH)
    outer.path = later
    outer.aliases.clear()
    yield inner, outer
    outer.thaw()
    inner.unmount()
    inner.detach()
    linux.umount(str(point), linux.MNT_DETACH)
    until(lambda: _is_gone(point), 10, "an end of bindfs")


def _is_gone(point: Path) -> bool:
    return not any(str(point) in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))

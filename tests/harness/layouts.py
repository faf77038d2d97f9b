"""File systems that lie on another one in ways that no path tells; taken down with it.

Each function makes one on `outer` and returns it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from . import linux
from .filesystems import MIB, LoopFs
from .rig import Rig


class Underneath(LoopFs):
    """A file system on which more lies than images: what is in `on_it` is undone, the newest first, before it goes."""

    def __init__(self, rig: Rig, kind: str, size: int) -> None:
        super().__init__(rig.area, kind, size)
        self.on_it: list[Callable[[], object]] = []
        rig.filesystems.append(self)

    def unmount(self) -> None:
        while self.on_it:
            self.on_it.pop()()
        super().unmount()


def covered_image(rig: Rig, outer: Underneath) -> LoopFs:
    """An image whose folder is covered afterwards."""
    folder = outer.path / "covered"
    folder.mkdir()
    inner = rig.fs("ext4", outer=outer, folder=folder)
    linux.mount("cover", str(folder), "tmpfs")
    outer.on_it.append(lambda: linux.umount(str(folder), linux.MNT_DETACH))
    return inner


def image_on_overlay(rig: Rig, outer: Underneath) -> LoopFs:
    """An image on an overlay whose upper layer is on `outer`."""
    merged = rig.area.fresh("merged")
    merged.mkdir()
    layers = {name: outer.path / name for name in ("lower", "upper", "work")}
    for layer in layers.values():
        layer.mkdir()
    linux.mount("overlay", str(merged), "overlay", data=",".join(f"{n}dir={path}" for n, path in layers.items()))
    outer.on_it.append(lambda: linux.umount(str(merged), linux.MNT_DETACH))
    return rig.fs("ext4", outer=outer, folder=merged)


def with_journal_elsewhere(rig: Rig, outer: Underneath) -> LoopFs:
    """An ext4 beside `outer` whose journal is on a device over a file there."""
    image = outer.path / "journal"
    with open(image, "wb") as file:
        file.truncate(16 * MIB)
    journal, fd = linux.attach_loop(image)
    outer.on_it.append(lambda: os.close(fd))
    make = ["mke2fs", "-q", "-O", "journal_dev", "-b", "4096", journal]
    subprocess.run(make, check=True, capture_output=True, timeout=20, cwd="/")
    folder, options = rig.area.root, ["-b", "4096", "-J", f"device={journal}"]
    made = LoopFs(rig.area, "ext4", outer=outer, folder=folder, options=options)
    rig.filesystems.append(made)
    return made

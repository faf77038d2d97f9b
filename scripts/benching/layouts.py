"""Odd layouts beside qemu-ga: how soon each is frozen, and how long its writers stand still; what fails is noted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import Unmet, linux
from harness import layouts as odd
from harness.filesystems import MIB, LoopFs
from harness.fuse_programs import pool, served
from harness.peer import QemuGa, Talk
from harness.rig import Rig, closed
from harness.writer import Standing

from .figures import Figures, progress
from .ways import PATIENCE, Bench, Writer

PART = "odd layouts"
BINDS = 6000
APART = 0.2  # seconds after a thaw; for some 50 ms the next freeze waits for no grace period of the kernel


@contextlib.contextmanager
def on_each_other(rig: Rig) -> Iterator[list[LoopFs]]:
    outer = rig.fs("ext4")
    yield [rig.fs("ext4", outer=outer), outer]


@contextlib.contextmanager
def by(make: Callable[[Rig, odd.Underneath], LoopFs], rig: Rig) -> Iterator[list[LoopFs]]:
    outer = odd.Underneath(rig, "ext4", 256 * MIB)
    yield [make(rig, outer), outer]


@contextlib.contextmanager
def on_a_pool(rig: Rig) -> Iterator[list[LoopFs]]:
    a, b, place = rig.fs("ext4"), rig.fs("ext4"), rig.area.fresh("pool")
    place.mkdir()
    with served(rig.area, pool("mergerfs", a.path, b.path), place):
        inner = rig.fs("ext4", 32 * MIB, outer=a, folder=place)
        try:
            yield [inner, a, b]
        finally:
            inner.unmount()
            inner.detach()


@contextlib.contextmanager
def covered(rig: Rig) -> Iterator[list[LoopFs]]:
    fs, other = rig.fs("ext4"), rig.fs("ext4")
    linux.mount("cover", str(fs), "tmpfs")
    try:
        yield [fs, other]
    finally:
        linux.umount(str(fs), linux.MNT_DETACH)


@contextlib.contextmanager
def bound(rig: Rig) -> Iterator[list[LoopFs]]:
    fs, folder = rig.fs("ext4"), rig.area.fresh("binds")
    folder.mkdir()
    linux.mount("binds", str(folder), "tmpfs")
    try:
        for i in range(BINDS):
            Path(folder, str(i)).mkdir()
            linux.mount(str(fs), f"{folder}/{i}", flags=linux.MS_BIND)
        yield [fs]
    finally:
        linux.umount(str(folder), linux.MNT_DETACH)


LAYOUTS: dict[str, Callable[[Rig], contextlib.AbstractContextManager[list[LoopFs]]]] = {
    "an image on another ext4": on_each_other,
    "the same, its folder covered": lambda rig: by(odd.covered_image, rig),
    "an image on an overlay": lambda rig: by(odd.image_on_overlay, rig),
    "a journal on another ext4": lambda rig: by(odd.with_journal_elsewhere, rig),
    "an image on a mergerfs pool of two": on_a_pool,
    "two ext4, one covered by a tmpfs": covered,
    f"one ext4 with {BINDS:,} bind mounts": bound,
}


def measure(bench: Bench, figures: Figures) -> None:
    """Each layout in turn, on file systems of its own."""
    for name, make in LAYOUTS.items():
        progress(name)
        rig = Rig(bench.rig.area)
        own = Bench(rig, min(bench.rounds, 5), 0, None, bench.notes, quick=bench.quick)
        try:
            with make(rig) as made:
                compare(own, figures, name, made)
        except Unmet as why:
            bench.note(f"{name}: not measured, {why}")
        finally:
            closed(rig)


def compare(bench: Bench, figures: Figures, name: str, made: Sequence[LoopFs]) -> None:
    """Freeze and thaw by each agent in turn, with a writer on each file system."""
    rig = bench.rig
    daemon = rig.daemon([rig.everywhere])
    peer = QemuGa(rig.area)
    talks = {
        "virtagentd": Talk(rig.area, str(daemon.socket), PATIENCE),
        "qemu-ga": Talk(rig.area, peer.socket, PATIENCE, ours=False),
    }
    writers = [Writer(bench, fs) for fs in made if linux.mounts_under(str(fs))[-1].fstype == fs.kind]
    took: dict[str, list[float]] = {way: [] for way in talks}
    stood: dict[str, list[float]] = {way: [] for way in talks}
    try:
        for number in range(bench.rounds + 1):
            for way, talk in talks.items():
                time.sleep(APART)
                for writer in writers:
                    writer.moving()
                    writer.reset()
                seconds, standing, wrong = cycle(talk, made, writers)
                if wrong:
                    bench.note(f"{name}: {way} {wrong}")
                if number:  # the first time costs more, and does not count
                    took[way].append(seconds * 1000)
                    stood[way].append(max(one.longest for one in standing) * 1000)
        for way in talks:
            figures.add(PART, f"{name}: freeze request to reply", way, "ms", took[way])
            figures.add(PART, f"{name}: longest write stall", way, "ms", stood[way])
    finally:
        for writer in writers:
            writer.close()
            rig.writers.remove(writer)
        for talk in talks.values():
            talk.close()
        peer.close()
        daemon.stop()


def cycle(talk: Talk, made: Sequence[LoopFs], writers: Sequence[Writer]) -> tuple[float, list[Standing], str]:
    """Return the seconds to the reply to the freeze, how the writers fared, and what was wrong, if anything."""
    begun = time.monotonic()
    said: dict[str, Any] = talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": [str(fs) for fs in made]})
    seconds = time.monotonic() - begun
    talk.ask("guest-fsfreeze-thaw")
    if "error" in said:
        wrong = f"refuses: {said['error']['desc']}"
    else:
        wrong = "" if said["return"] == len(made) else f"freezes {said['return']} of {len(made)}"
    return seconds, [writer.moving() for writer in writers], wrong

"""How long a writer stands still over a freeze and the thaw that follows at once: on each file system one writer."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from harness.filesystems import MIB, LoopFs

from .disk import Disk, Partition, sync
from .figures import Figures, progress
from .ways import Bench, Way, Ways, Writer

PART = "write stall"
SYNCS = ("virtagentd", "C parallel", "C per disk")
"""The ways that sync before they freeze: of the others' standstill nobody can say what was for which."""
DIRTY = 150 * MIB
WAITS = 0.9  # the share of it that should wait in memory
SIZE = {"ext4": 512 * MIB, "xfs": 512 * MIB, "btrfs": 2048 * MIB}
FLOW, FLOW_BLOCK, FLOW_SECONDS = 40 * MIB, 256 << 10, 1.0
_VM = Path("/proc/sys/vm")


def measure(bench: Bench, figures: Figures) -> None:
    """The write stalls of each kind of file system."""
    with DirtyLimits(8 * DIRTY):
        waited = [stalls(bench, figures, kind, 8) for kind in bench.kinds]
    if min(waited) < WAITS:
        bench.note(f"of the dirty data only {min(waited):.0%} were still in memory when one of the freezes began")


def stalls(bench: Bench, figures: Figures, kind: str, count: int) -> float:
    """Clean, with dirty data, and with writers that never stop, on one disk.

    Returns the least share of the dirty data that was still in memory when a freeze began.
    """
    rig = bench.rig
    disk = Disk(rig.area, count, SIZE[kind], bench.rate, bench.images)
    made: list[LoopFs] = []
    try:
        for _ in range(count):
            made.append(Partition(rig.area, kind, disk))
            rig.filesystems.append(made[-1])
        if bench.rate and not disk.throttled:
            bench.note("the disk was not throttled: this machine has no blkio.throttle for its root group")
        ways = Ways(bench, made, none=True)
        try:
            writers = [Writer(bench, fs) for fs in made]
            _rounds(bench, figures, ways, made, writers, f"{count} {kind}, clean", 0)
            dirty = f"{count} {kind}, {DIRTY // MIB} MB dirty on each"
            waits = _rounds(bench, figures, ways, made, writers, dirty, DIRTY)
            _end(bench, writers)
            if kind == "ext4":
                pause = FLOW_BLOCK / FLOW
                writers = [Writer(bench, fs, FLOW_BLOCK, pause, 96 * MIB // FLOW_BLOCK) for fs in made[:4]]
                flowing = f"{kind}, writing {FLOW // MIB} MB/s on 4 of {count}"
                _rounds(bench, figures, ways, made, writers, flowing, 0, FLOW_SECONDS)
                _end(bench, writers)
            return waits
        finally:
            ways.close()
    finally:
        take_down(bench, made)


def take_down(bench: Bench, made: Sequence[LoopFs]) -> None:
    """Unmount and detach; what fails is tried again when the rig closes."""
    for fs in made:
        fs.thaw()
    for writer in [*bench.rig.writers]:
        writer.close()
        bench.rig.writers.remove(writer)
    for fs in reversed(made):
        fs.end_probes()
        fs.unmount()
        fs.detach()
        bench.rig.filesystems.remove(fs)


def _end(bench: Bench, writers: Sequence[Writer]) -> None:
    for writer in writers:
        writer.close()
        bench.rig.writers.remove(writer)


def _rounds(
    bench: Bench,
    figures: Figures,
    ways: Ways,
    filesystems: Sequence[LoopFs],
    writers: Sequence[Writer],
    what: str,
    dirty: int,
    flow: float = 0.0,
) -> float:
    stood: dict[str, list[float]] = {}
    syncing: dict[str, list[float]] = {}
    frozen: dict[str, list[float]] = {}
    mean: dict[str, list[float]] = {}
    replied: dict[str, list[float]] = {}
    waits = [1.0]

    def once(way: Way) -> None:
        if dirty:
            waits.append(make_dirty(filesystems, dirty))
        time.sleep(flow)  # what the way before has synced is dirty again
        for writer in writers:
            writer.moving()
            writer.reset()
        took = way.cycle()
        found = [writer.moving().longest * 1000 for writer in writers]
        stood.setdefault(way.name, []).append(max(found))
        gaps = [gap for writer in writers for gap in writer.gaps()]
        before, after = longest_around(gaps, took.froze)
        syncing.setdefault(way.name, []).append(before * 1000)
        frozen.setdefault(way.name, []).append(after * 1000)
        mean.setdefault(way.name, []).append(sum(found) / len(found))
        replied.setdefault(way.name, []).append((took.freeze + took.thaw) * 1000)

    progress(what)
    rounds = bench.rounds if not dirty else max(3, bench.rounds // 2)
    ways.rounds(1, once)  # the first time costs more, and does not count
    for kept in (stood, syncing, frozen, mean, replied):
        kept.clear()
    ways.rounds(rounds, once)
    for way in ways.all:
        figures.add(PART + bench.disk, f"{what}: longest of all writers", way.name, "ms", stood[way.name])
        if way.name in SYNCS:
            figures.add(PART + bench.disk, f"{what}: of that, before the freeze", way.name, "ms", syncing[way.name])
        if way.name != "none":
            figures.add(PART + bench.disk, f"{what}: of that, from the freeze on", way.name, "ms", frozen[way.name])
        figures.add(PART + bench.disk, f"{what}: mean of the writers", way.name, "ms", mean[way.name])
        if way.name != "none":
            figures.add("request to reply" + bench.disk, f"{what}: freeze and thaw", way.name, "ms", replied[way.name])
    return min(waits)


def longest_around(gaps: Sequence[tuple[float, float]], at: float) -> tuple[float, float]:
    """Return the longest standstill before a second and the longest after it, of one that spans it both parts."""
    before = max((min(ended, at) - begun for begun, ended in gaps), default=0.0)
    after = max((ended - max(begun, at) for begun, ended in gaps), default=0.0)
    return max(before, 0.0), max(after, 0.0)


def make_dirty(filesystems: Sequence[LoopFs], size: int) -> float:
    """Have `size` new bytes on each wait in memory, and nothing else; return the share that does."""
    block = os.urandom(MIB)
    for fs in filesystems:
        (fs.path / "dirty").unlink(missing_ok=True)
    for fs in filesystems:
        sync(str(fs))
    before = _written(filesystems)
    for fs in filesystems:
        with open(fs.path / "dirty", "wb", buffering=0) as file:
            for _ in range(size // MIB):
                file.write(block)
    return 1 - (_written(filesystems) - before) / (size * len(filesystems))


def _written(filesystems: Sequence[LoopFs]) -> int:
    """Return the bytes that the file systems' partitions have written so far (sectors of 512 in /sys/class/block)."""
    stats = [Path(f"/sys/class/block/{Path(fs.device).name}/stat").read_text().split() for fs in filesystems]
    return 512 * sum(int(fields[6]) for fields in stats)


class DirtyLimits:
    """While it lasts, `size` bytes can be dirty without anybody writing them; changes nothing if they can anyway."""

    def __init__(self, size: int) -> None:
        pages = re.search(r"nr_dirty_background_threshold (\d+)", Path("/proc/vmstat").read_text())
        enough = pages is not None and int(pages[1]) * os.sysconf("SC_PAGE_SIZE") > size * 1.5
        self._wanted = {} if enough else {"dirty_background_bytes": size * 2, "dirty_bytes": size * 4}
        self._before: dict[str, str] = {}

    def __enter__(self) -> None:
        for name in self._wanted:
            for each in (name, name.replace("bytes", "ratio")):
                self._before[each] = (_VM / each).read_text().strip()
        for name, value in self._wanted.items():
            (_VM / name).write_text(str(value))

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value != "0":  # of bytes and ratio the one that counts: writing one clears the other
                (_VM / name).write_text(value)

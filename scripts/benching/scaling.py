"""How long freeze and thaw take from request to reply, and how that grows with the number of clean file systems."""

from __future__ import annotations

import itertools
import time

from harness.filesystems import MIB, LoopFs

from .figures import Figures, progress
from .stall import take_down
from .ways import Bench, Took, Way, Ways

PART, GROWTH = "request to reply, clean ext4", "growth per file system"
COUNTS = (1, 2, 4, 8, 16, 64, 256)
SIZE = 8 * MIB
PAUSE = 0.3
"""Seconds after a thaw: for some 50 ms the kernel remembers it, and freezes without waiting for a grace period (RCU).
Who freezes once a day never has that."""
SLOW_FROM, SLOW_ROUNDS = 64, 5


def measure(bench: Bench, figures: Figures) -> None:
    """Each count in turn, with no more file systems mounted than are frozen."""
    made: list[LoopFs] = []
    medians: dict[tuple[str, str], dict[int, float]] = {}
    try:
        for count in COUNTS[: 5 if bench.quick else None]:
            progress(f"{count} file systems")
            while len(made) < count:
                made.append(bench.rig.fs("ext4", SIZE))
            found = _count(bench, made)
            for name in found:
                for verb, values in (
                    ("freeze", [took.freeze for took in found[name]]),
                    ("thaw", [took.thaw for took in found[name]]),
                ):
                    what = f"{count} file system{'s' * (count > 1)}: {verb}"
                    figure = figures.add(PART, what, name, "ms", [1000 * value for value in values])
                    medians.setdefault((name, verb), {})[count] = figure.median
    finally:
        take_down(bench, made)
    for (name, verb), by_count in medians.items():
        counts = list(by_count)
        for few, many in itertools.pairwise(counts):
            growth = (by_count[many] - by_count[few]) / (many - few)
            figures.add(GROWTH, f"{verb}: from {few} to {many}", name, "ms", [growth])


def _count(bench: Bench, filesystems: list[LoopFs]) -> dict[str, list[Took]]:
    ways = Ways(bench, filesystems)
    found: dict[str, list[Took]] = {}

    def once(way: Way) -> None:
        time.sleep(PAUSE)
        found.setdefault(way.name, []).append(way.cycle())

    try:
        ways.rounds(1, once)
        found.clear()
        rounds = bench.rounds if len(filesystems) < SLOW_FROM else min(bench.rounds, SLOW_ROUNDS)
        ways.rounds(rounds, once)
    finally:
        ways.close()
    return {way.name: found[way.name] for way in ways.all}

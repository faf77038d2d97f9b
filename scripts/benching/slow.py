"""One slow disk of eight: how long the writers on the seven fast ones stand still because of it, beside qemu-ga."""

from __future__ import annotations

import time

from harness.filesystems import MIB, LoopFs
from harness.peer import QemuGa, Talk

from .disk import Disk, Partition
from .figures import Figures, progress
from .stall import DirtyLimits, make_dirty, take_down
from .ways import PATIENCE, Agent, Bench, Writer

PART = "one slow disk of eight"
RATE, DIRTY, FAST = 20 * MIB, 40 * MIB, 7
FLOW_BLOCK = 256 << 10
APART = 0.3  # seconds after a thaw
CASES = {
    "40 MB dirty on each, the slow one mounted first": (True, False),
    "40 MB dirty on each, the slow one mounted last": (False, False),
    "the same, and 40 MB/s written to the slow one all the time": (True, True),
}


def measure(bench: Bench, figures: Figures) -> None:
    """Each case on file systems of its own."""
    with DirtyLimits((FAST + 1) * DIRTY * 4):
        for name, (first, flows) in CASES.items():
            progress(name)
            case(bench, figures, name, first=first, flows=flows)


def case(bench: Bench, figures: Figures, name: str, *, first: bool, flows: bool) -> None:
    """Freeze and thaw by each agent in turn, with a writer on each file system. qemu-ga freezes the latest first."""
    rig = bench.rig
    disk = Disk(rig.area, 1, 512 * MIB, RATE)
    if not disk.smooth:
        bench.note("the slow disk is no smooth one: this machine has no nbdkit and nbdfuse")
    made: list[LoopFs] = []
    for number in range(FAST + 1):
        if number == (0 if first else FAST):
            slow = Partition(rig.area, "ext4", disk)
            rig.filesystems.append(slow)
            made.append(slow)
        else:
            made.append(rig.fs("ext4", 256 * MIB))
    daemon = rig.daemon([rig.everywhere])
    peer = QemuGa(rig.area)
    talks = [Talk(rig.area, str(daemon.socket), PATIENCE), Talk(rig.area, peer.socket, PATIENCE, ours=False)]
    ways = [Agent("virtagentd", talks[0], made), Agent("qemu-ga", talks[1], made)]
    writers = {
        fs: Writer(bench, fs, FLOW_BLOCK, FLOW_BLOCK / (2 * RATE), 128 * MIB // FLOW_BLOCK)
        if flows and fs is slow
        else Writer(bench, fs)
        for fs in made
    }
    found: dict[str, dict[str, list[float]]] = {way.name: {} for way in ways}
    try:
        for turn in range(max(3, bench.rounds // 2) + 1):
            for way in ways if turn % 2 else ways[::-1]:
                make_dirty(made, DIRTY)
                time.sleep(APART)
                for writer in writers.values():
                    writer.moving()
                    writer.reset()
                took = way.cycle()
                stood = {fs: writer.moving().longest * 1000 for fs, writer in writers.items()}
                if turn:  # the first does not count
                    rows = found[way.name]
                    rows.setdefault("stall of the seven fast disks", []).append(
                        max(one for fs, one in stood.items() if fs is not slow)
                    )
                    rows.setdefault("stall of the slow disk", []).append(stood[slow])
                    rows.setdefault("freeze, request to reply", []).append(took.freeze * 1000)
        for way, rows in found.items():
            for what, values in rows.items():
                figures.add(PART, f"{name}: {what}", way, "ms", values)
    finally:
        for talk in talks:
            talk.close()
        peer.close()
        daemon.stop()
        take_down(bench, made)

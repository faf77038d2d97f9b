"""How much is still to be written, and how fast: figures from /proc and sysfs for the progress of a sync or freeze."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from ..api import records
from ..api.states import Phase
from ..api.structs import replace
from . import kernel
from .messages import Progress

WINDOW = 3.0  # seconds that a rate is taken over: an older burst says nothing of what is left
LEAST = 1.0  # seconds before there is a rate
ROWS_MAX = 64  # file systems that a report tells apart, so that it fits into one write to the pipe
UNKNOWN = -1
DEBUGFS = "/sys/kernel/debug"
SECTOR = 512  # bytes, whatever the disk's own are (Documentation/admin-guide/iostats.rst)


class Figures:
    """From counters of disks to what file systems have written, how fast, and how long the rest takes. Pure.

    `disks` are those of each file system, by its index in the plan; a counter is the bytes that a disk has written.
    """

    def __init__(self, disks: Mapping[int, Collection[str]]) -> None:
        self._disks = disks
        self._first: Mapping[str, int] = {}
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()
        self._began: dict[int, tuple[float, Mapping[str, int]]] = {}

    def take(
        self,
        now: float,
        counters: Mapping[str, int],
        dirty: int,
        left: Mapping[int, int],
        phase: Phase,
        sync_round: int = 0,
        syncing: Collection[int] = (),
    ) -> Progress:
        """Return the figures of this moment, at which those with an index in `syncing` are being synced.

        `dirty` are the bytes dirty in the whole guest, `left` those of file systems for which that is known. While
        syncing, the rate is that of the disks that are still synced, in the last 3 s; what they have left is the sum of
        theirs if that is known of each, else `dirty`, of which they have no more.
        """
        self._first = self._first or counters
        before = self._samples[-1] if self._samples else (now, counters)
        self._samples.append((now, counters))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()
        for index in syncing:
            self._began.setdefault(index, before)
        everywhere = {disk for disks in self._disks.values() for disk in disks}
        flushed = sum(max(0, counters[disk] - self._first.get(disk, 0)) for disk in everywhere & counters.keys())
        those = {disk for index in syncing for disk in self._disks[index]}
        known = [left.get(index, UNKNOWN) for index in syncing]
        if phase is Phase.SYNC and known and min(known) >= 0:
            dirty = sum(known)
        rate = self._rate(those or everywhere, self._samples[0][0])
        eta = _eta(dirty, rate) if phase is Phase.SYNC and syncing else UNKNOWN
        rows = [self._row(index, counters, left.get(index, UNKNOWN)) for index in sorted(syncing)[:ROWS_MAX]]
        return Progress(phase.value, sync_round, dirty, flushed, rate, eta, rows)

    def _row(self, index: int, counters: Mapping[str, int], left: int) -> list[float]:
        began, then = self._began[index]
        disks = self._disks[index]
        written = sum(max(0, counters[disk] - then.get(disk, 0)) for disk in disks if disk in counters)
        rate = self._rate(disks, began)
        return [index, written, left, rate, _eta(left, rate)]

    def _rate(self, disks: Collection[str], since: float) -> float:
        """Return the bytes a second that these have written in the last 3 s, and not before `since`; -1 if unknown."""
        now, counters = self._samples[-1]
        begun, then = next(sample for sample in self._samples if sample[0] >= min(since, now))
        if now - begun < LEAST:
            return UNKNOWN
        return sum(max(0, counters[disk] - then.get(disk, 0)) for disk in disks if disk in counters) / (now - begun)


def _diskstats() -> bytes:
    with open("/proc/diskstats", "rb") as file:
        return file.read()


def written(diskstats: bytes) -> dict[str, int]:
    """Return the bytes written to each block device, by its name, of the text of /proc/diskstats.

    psutil makes objects of all figures of all disks, which takes it three times as long with hundreds of them.
    """
    lines = (line.split(None, 10) for line in diskstats.splitlines())
    return {os.fsdecode(fields[2]): int(fields[9]) * SECTOR for fields in lines if len(fields) > 9}


def _eta(left: int, rate: float) -> float:
    return left / rate if left >= 0 and rate > 0 else UNKNOWN


class WritebackMeter:
    """A meter of these file systems, by their index in the plan: it reads what `Figures` takes."""

    def __init__(self, mounts: Mapping[int, records.Mount]) -> None:
        self._mounts = mounts
        self._debugfs: int | None = None
        self._figures = Figures({index: mount.disks for index, mount in mounts.items()})
        self._stats: dict[int, str] = {}
        self._before: tuple[float, bytes] | tuple[()] | None = None

    def progress(self, phase: Phase, sync_round: int, syncing: Collection[int] = ()) -> Progress:
        """Return the present figures of a freeze or sync in which those with an index in `syncing` are being synced.

        The first time there are none: only what they are compared with later is read, since most syncs are over then.
        """
        try:
            counters = _diskstats()
            if self._before is None:
                self._before = time.monotonic(), counters
                return Progress(phase.value, sync_round)
            dirty = dirty_bytes()
        except OSError:
            return Progress(phase.value, sync_round)  # only figures: a freeze must not fail for lack of a descriptor
        left = {index: self._left(index) for index in sorted(syncing)[:ROWS_MAX]}
        if self._before:
            (began, first), self._before = self._before, ()
            self._figures.take(began, written(first), UNKNOWN, {}, phase)
        return self._figures.take(time.monotonic(), written(counters), dirty, left, phase, sync_round, syncing)

    def _left(self, index: int) -> int:
        """Return the bytes that this one's device has dirty or under write-back, -1 if the kernel does not tell.

        It tells for a block device, in debugfs (backing-dev.c, bdi_debug_stats_show). Partitions of one disk have the
        figure of the disk.
        """
        if self._debugfs is None:
            self._debugfs = open_debugfs()
        if index not in self._stats:
            self._stats[index] = stats_of(self._mounts[index].device)
        return dirty_of(self._debugfs, self._stats[index])


def estimated(past: records.Estimate, mounts: Sequence[records.Mount], hold_limit: float) -> records.Estimate:
    """Return what a freeze of these would take now, by the rate of the last ones."""
    debugfs = open_debugfs()
    known = [dirty_of(debugfs, name) for name in {stats_of(mount.device) for mount in mounts[:ROWS_MAX]}]
    apart = bool(known) and len(mounts) <= ROWS_MAX and min(known) >= 0
    try:
        dirty = sum(known) if apart else dirty_bytes()
    except OSError:
        dirty = UNKNOWN
    seconds = _eta(dirty, past.bytes_per_second)
    return replace(past, dirty_bytes=dirty, whole_guest=not apart, sync_seconds=seconds, hold_limit=hold_limit)


def open_debugfs() -> int:
    """Return a descriptor of debugfs, which need not be mounted (ADR 0033), or -1 if it cannot be had."""
    try:
        folder = os.open(DEBUGFS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.access("bdi", os.R_OK, dir_fd=folder):
            return folder
        os.close(folder)
        return kernel.instance("debugfs")
    except OSError:
        return UNKNOWN


def stats_of(device: str) -> str:
    """Return the file in debugfs with the figures of a superblock's device (major:minor), "" if it has none."""
    for above in ("", ".."):
        with contextlib.suppress(OSError):
            name = os.path.basename(os.readlink(os.path.join("/sys/dev/block", device, above, "bdi")))
            return os.path.join("bdi", name, "stats")
    return ""


def dirty_of(folder: int, stats: str) -> int:
    """Return the bytes dirty or under write-back that this file of debugfs tells of, -1 if it cannot be read.

    Before Linux 6.10 it tells only what processes in the root cgroup have dirtied: that figure, often 0, is none.
    Kernels that count those of all cgroups have wb_stats beside it (backing-dev.c, cgwb_debug_stats_show).
    """
    if folder < 0 or not stats:
        return UNKNOWN
    try:
        os.stat(os.path.join(os.path.dirname(stats), "wb_stats"), dir_fd=folder)
        with open(stats, encoding="ascii", opener=lambda path, flags: os.open(path, flags, dir_fd=folder)) as file:
            found = dict(line.split(":", 1) for line in file if ":" in line)
        return sum(int(found[name].split()[0]) << 10 for name in ("BdiWriteback", "BdiReclaimable"))
    except (OSError, KeyError, ValueError, IndexError):
        return UNKNOWN


def dirty_bytes() -> int:
    """Return the bytes of Dirty and Writeback in /proc/meminfo (proc(5); not in psutil), -1 if they are not there."""
    found = 0
    seen = False
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        for line in meminfo:
            name, _, rest = line.partition(":")
            if name in ("Dirty", "Writeback"):
                found += int(rest.split()[0]) << 10
                seen = True
    return found if seen else -1

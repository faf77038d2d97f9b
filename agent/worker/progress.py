"""How much is still to be written, and how fast: figures from /proc for the progress of a sync or freeze."""

from __future__ import annotations

import time

import psutil

from ..api.states import Phase
from .messages import Progress


class WritebackMeter:
    """A meter of what the given disks (names in /proc/diskstats) have written since its first look."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._begun = time.monotonic()
        self._written_before: int | None = None

    def progress(self, phase: Phase, sync_round: int) -> Progress:
        """Return the present figures: bytes dirty in the whole guest, bytes that the disks have written, rate, eta."""
        try:
            written = self._written()
            dirty = dirty_bytes()
        except OSError:
            return Progress(phase.value, sync_round)  # only figures: a freeze must not fail for lack of a descriptor
        if self._written_before is None:
            self._written_before = written
        flushed = max(0, written - self._written_before)
        elapsed = time.monotonic() - self._begun
        rate = flushed / elapsed if elapsed > 0 else 0.0
        eta = dirty / rate if rate > 0 and dirty >= 0 else -1
        return Progress(phase.value, sync_round, dirty, flushed, rate, eta)

    def _written(self) -> int:
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False)
        return sum(counters[name].write_bytes for name in self._names if name in counters)


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

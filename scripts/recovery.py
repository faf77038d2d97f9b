"""Times from a death or a limit until every file system is writable (ext4, xfs, btrfs); run by scripts/recovery."""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

TREE = Path(__file__).parent.parent
sys.path.insert(0, str(TREE / "tests"))

import psutil  # noqa: E402
from harness import namespace  # noqa: E402
from harness.daemon import Daemon  # noqa: E402
from harness.filesystems import LoopFs  # noqa: E402
from harness.processes import kill, process_state, until  # noqa: E402
from harness.rig import Rig  # noqa: E402


class Blocked(threading.Thread):
    """A write to a frozen file system; `ended` is when it came back (CLOCK_MONOTONIC seconds)."""

    def __init__(self, fs: LoopFs) -> None:
        super().__init__(daemon=True)
        self._path = fs.path / "blocked"
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self._path.write_bytes(b"x")
        self.ended = time.monotonic()

    def stands(self) -> bool:
        return process_state(self.native_id or 0) == "D"


def keeper(daemon: Daemon) -> int:
    return next(pid for pid, title in daemon.titles().items() if "keeper" in title)


def measure(runs: int, rig: Rig, filesystems: list[LoopFs], end: Callable[[Daemon], float]) -> list[float]:
    """Freeze, have a writer stand on each file system, do `end`, which returns when it did; return milliseconds."""
    found = []
    for _ in range(runs):
        daemon = rig.daemon([rig.everywhere])
        host = daemon.proxy()
        for fs in filesystems:
            (fs.path / "blocked").touch()
        assert host.va.fsfreeze({"hold_limit": 60}) == len(filesystems)
        writers = [Blocked(fs) for fs in filesystems]
        until(lambda now=writers: all(w.stands() for w in now), 10, "every writer to stand still")
        begun = end(daemon)
        for writer in writers:
            writer.join(30)
        found.append((max(w.ended for w in writers) - begun) * 1000)
        if daemon.is_running():
            daemon.stop()
        daemon.wait_orphans()
    return found


def endings(rig: Rig) -> tuple[tuple[str, Callable[[Daemon], float]], ...]:
    """Return the ways in which a freeze ends unasked, by name."""

    def supervisor(daemon: Daemon) -> float:
        begun = time.monotonic()
        kill(daemon.pid)
        return begun

    def holder(daemon: Daemon) -> float:
        pid = keeper(daemon)
        begun = time.monotonic()
        kill(pid)
        return begun

    def both(daemon: Daemon) -> float:
        pid = keeper(daemon)
        psutil.Process(pid).suspend()
        daemon.kill()
        kill(pid)
        begun = time.monotonic()
        rig.daemon([rig.everywhere], state_dir=daemon.state_dir).stop()
        return begun

    def hold(daemon: Daemon) -> float:
        return time.monotonic() + daemon.proxy().va.fshold(0.5)

    return (
        ("supervisor SIGKILLed", supervisor),
        ("keeper SIGKILLed", holder),
        ("both SIGKILLed, from the start of the next daemon", both),
        ("hold limit passed", hold),
    )


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--runs", type=int, default=20)
    runs = asked.parse_args().runs
    area = namespace.enter()
    rig = Rig(area)
    try:
        filesystems = [rig.fs(kind) for kind in ("ext4", "xfs", "btrfs")]

        print("| what ends the freeze | runs | median ms | min | max |\n|---|---|---|---|---|")
        for name, end in endings(rig):
            times = measure(runs, rig, filesystems, end)
            print(
                f"| {name} | {runs} | {statistics.median(times):.1f} | {min(times):.1f} | {max(times):.1f} |",
                flush=True,
            )
    finally:
        for line in rig.close():
            print(line, file=sys.stderr)
        area.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())

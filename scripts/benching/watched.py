"""What those who watch cost: one freeze with three `virtagentctl watch` beside one with none, in turn.

Lines of the log, records that wait in the audit ring while it is frozen, and how long the freeze and its thaw stop
writers more than the hold does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness.daemon import Daemon
from harness.peer import Talk

from .figures import Figures, progress
from .scaling import PAUSE, SIZE
from .stall import take_down
from .ways import PATIENCE, Bench

PART = "a freeze that others watch"
WATCHERS = (0, 3)
FILE_SYSTEMS = 4
HELD = 1.0  # seconds: long enough for all who poll to poll


def measure(bench: Bench, figures: Figures) -> None:
    """Each count in turn in each round; the first round does not count."""
    made = [bench.rig.fs("ext4", SIZE) for _ in range(FILE_SYSTEMS)]
    daemon = bench.rig.daemon([bench.rig.everywhere])
    talk = Talk(bench.rig.area, str(daemon.socket), PATIENCE)
    found: dict[tuple[str, str, int], list[float]] = {}
    try:
        for turn in range(bench.rounds + 1):
            progress(f"round {turn}")
            for count in WATCHERS:
                time.sleep(PAUSE)
                seen = once(daemon, talk, [str(fs) for fs in made], count)
                for (what, unit), value in seen.items() if turn else ():
                    found.setdefault((what, unit, count), []).append(value)
        for (what, unit, count), values in found.items():
            figures.add(PART, what, f"{count} watch" if count else "nobody watches", unit, values)
    finally:
        talk.close()
        daemon.stop()
        take_down(bench, made)


def once(daemon: Daemon, talk: Talk, points: list[str], count: int) -> dict[tuple[str, str], float]:
    """Freeze, hold and thaw while so many watch; return what was seen, by what it is and its unit."""
    before = len(daemon.log().splitlines())
    with contextlib.ExitStack() as watching:
        for _ in range(count):
            watching.enter_context(watch(daemon.url))
        talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": points})
        time.sleep(HELD)
        waiting = daemon.status()["audit"]["waiting"]
        talk.ask("guest-fsfreeze-thaw")
    last = daemon.status()["last"]
    stopped = (last["stall_seconds"] - last["held_seconds"]) * 1000
    lines = len(daemon.log().splitlines()) - before
    return {("lines of the log", ""): lines, ("audit ring", "records"): waiting, ("stall less hold", "ms"): stopped}


@contextlib.contextmanager
def watch(url: str) -> Iterator[None]:
    """Have a `virtagentctl watch` that has begun to watch."""
    command = [str(Path(sys.executable).with_name("virtagentctl")), "--agent", url, "watch", "--events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "virtagentctl watch has ended"
            yield
        finally:
            process.terminate()

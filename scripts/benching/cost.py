"""What one answer and one freeze cost: processor time, system calls and, of a ping, instructions.

Instructions are counted by valgrind, under which nothing can fork as the supervisor does (it has no pidfd_open), so
those of a freeze are not among them; where the processor's own counters can be had, perf would tell.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from harness.peer import QemuGa, Talk
from harness.rig import Rig

from .counts import MOUNTS, system_calls
from .figures import Figures, progress
from .scaling import SIZE
from .ways import Bench

PART = "cost"
PINGS, FREEZES = 5000, 200


def measure(bench: Bench, figures: Figures) -> None:
    """The processor time of ours and of the peer, then what only ours can be asked for."""
    rig = bench.rig
    paths = [str(rig.fs("ext4", SIZE)) for _ in range(MOUNTS)]
    daemon = rig.daemon([rig.everywhere])
    peer = QemuGa(rig.area)
    few = 10 if bench.quick else 1
    try:
        for name, pid, path in (
            ("virtagentd", daemon.pid, str(daemon.socket)),
            ("qemu-ga", peer.process.pid, peer.socket),
        ):
            progress(f"processor time of {name}")
            talk = Talk(rig.area, path, 60, ours=name == "virtagentd")

            def cycle(talk: Talk = talk) -> None:
                talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": paths})
                talk.ask("guest-fsfreeze-thaw")

            ping = _per_call(pid, PINGS // few, lambda talk=talk: talk.ask("guest-ping"))
            figures.add(PART, "processor time of a ping", name, "µs", [1e6 * ping])
            freeze = _per_call(pid, FREEZES // few, cycle)
            figures.add(PART, f"processor time of a freeze and thaw of {MOUNTS}", name, "ms", [1000 * freeze])
            talk.close()
        for what, calls in system_calls(daemon, paths).items():
            figures.add(PART, what, "virtagentd", "", [sum(calls.values())])
    finally:
        peer.close()
    if shutil.which("valgrind"):
        progress("instructions")
        figures.add(PART, "instructions of a ping", "virtagentd", "thousands", [_instructions(rig) / 1000])


def _per_call(pid: int, times: int, do: Callable[[], object]) -> float:
    """Return the seconds of processor time of one call, with those of the processes that it forked."""
    do()
    before = _ticks(pid)
    for _ in range(times):
        do()
    return (_ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / times


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))  # proc(5): utime stime cutime cstime


def _instructions(rig: Rig) -> float:
    """Return those of one ping: what more of them add."""
    few, many = (_counted(rig, pings) for pings in (10, 110))
    return (many - few) / 100


def _counted(rig: Rig, pings: int) -> int:
    folder = rig.area.fresh("callgrind")
    folder.mkdir()
    program = folder / "virtagentd"
    tool = f"valgrind --tool=callgrind --vgdb=no --log-file={folder}/log --callgrind-out-file={folder}/out"
    command = f"exec {tool} {sys.executable} -m virtagent.supervisor.main"
    # Where it runs, /tmp can only be read.
    program.write_text(f'#!/bin/sh\nexport TMPDIR={folder} PYTHONHASHSEED=0\n{command} "$@"\n')
    program.chmod(0o755)
    daemon = rig.daemon([rig.everywhere], program=str(program), wait_ready=False)
    daemon.wait_ready(120)
    talk = Talk(rig.area, str(daemon.socket), 60)
    for _ in range(pings):
        talk.ask("guest-ping")
    talk.close()
    daemon.stop(60)
    found = re.search(r"Collected : (\d+)", (folder / "log").read_text())
    if found is None:
        raise RuntimeError((folder / "log").read_text())
    return int(found[1])

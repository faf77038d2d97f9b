"""What virtagentd costs and how it ends: from a death or a limit to writable, start, memory, wake-ups."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import recovery
from harness import HarnessError
from harness.daemon import check_includes
from harness.hosts import Asking, code_of
from harness.peer import FORBIDDEN, QemuGa, Talk
from harness.processes import process_state, until
from virtagent.host import Agent

from .figures import Figures, progress
from .scaling import SIZE
from .stall import take_down
from .ways import Bench

RECOVERY, START, MEMORY, IDLE = "thawed after", "start to first answer", "memory", "wake-ups while idle"
FREEZE_LIMIT = 1.0
MANY = 1000


def recover(bench: Bench, figures: Figures) -> None:
    """A death, or the hold limit, until each file system can be written; three file systems with a writer each."""
    rig = bench.rig
    filesystems = [rig.fs(kind) for kind in ("ext4", "xfs", "btrfs")]
    for what, end in recovery.endings(rig):
        progress(what)
        figures.add(RECOVERY, what, "virtagentd", "ms", recovery.measure(bench.rounds, rig, filesystems, end))
    progress("freeze limit")
    figures.add(RECOVERY, "freeze limit passed, one disk stuck: all others", "virtagentd", "ms", overrun(bench))
    take_down(bench, filesystems)


def overrun(bench: Bench) -> list[float]:
    """Return the milliseconds from the freeze limit until the writers on all but the stuck file system go on."""
    rig = bench.rig
    stalled = rig.stall("ext4")
    others = [fs for fs in rig.filesystems if fs not in (stalled.fs, stalled.disk)]
    flag = rig.area.fresh("stall")
    env = {"VIRTAGENT_STALL": f"{stalled.disk}|{stalled.fs}|{flag}"}
    found = []
    for _ in range(bench.rounds):
        # What lies on the stuck one and on others of the same level is asked for together.
        daemon = rig.daemon([*others, stalled.fs], module="harness.stalling", env=env)
        for fs in others:
            (fs.path / "blocked").touch()
        flag.touch()
        freeze = Asking(daemon, "va.fsfreeze", {"freeze_limit": FREEZE_LIMIT})
        names = {str(fs) for fs in others}
        record = daemon.wait_status(
            lambda record, names=names: names == {m["mountpoint"] for m in record["mounts"] if m["state"] == "frozen"}
        )
        limit = time.monotonic() - record["since"] + FREEZE_LIMIT
        writers = [recovery.Blocked(fs) for fs in others]
        until(lambda now=writers: all(w.stands() for w in now), FREEZE_LIMIT, "every writer to stand still")
        for writer in writers:
            writer.join(30)
        found.append((max(writer.ended for writer in writers) - limit) * 1000)
        stalled.release()
        if code_of(freeze.wait()) is None:
            raise HarnessError(f"the freeze did not overrun: {freeze.answer}")
        daemon.wait_state("THAWED")
        daemon.stop()
    return found


def start(bench: Bench, figures: Figures) -> None:
    """From exec until a ping is answered; the bare interpreter beside it tells what is not ours."""
    found: dict[str, list[float]] = {}
    for _ in range(bench.rounds + 1):
        found.setdefault("virtagentd", []).append(_start_ours(bench))
        found.setdefault("qemu-ga", []).append(_start_peer(bench))
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        found.setdefault("python3 -c pass", []).append(time.monotonic() - begun)
    for way, values in found.items():
        figures.add(START, "start to first answer", way, "ms", [1000 * one for one in values[1:]])


def _start_ours(bench: Bench) -> float:
    area = bench.rig.area
    check_includes([bench.rig.everywhere], str(area.root))
    folder = area.fresh("start")
    (folder / "state").mkdir(parents=True, mode=0o700)
    command = [str(Path(sys.executable).with_name("virtagentd")), "--channel", f"unix:{folder}/s"]
    command += ["--state-dir", f"{folder}/state", "--include", bench.rig.everywhere]
    begun = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    area.guard(process.pid)
    try:
        return _first_answer(bench, f"{folder}/s", process.pid) - begun
    finally:
        process.terminate()
        process.wait(20)


def _start_peer(bench: Bench) -> float:
    """Not behind the shield, whose interpreter would count: it may do nothing that could hurt, and is asked a ping."""
    area = bench.rig.area
    folder = area.fresh("start")
    folder.mkdir()
    program = shutil.which("qemu-ga") or "/usr/sbin/qemu-ga"
    command = [program, "-m", "unix-listen", "-p", f"{folder}/s", "-t", str(folder), "-f", f"{folder}/pid"]
    begun = time.monotonic()
    process = subprocess.Popen([*command, "-b", ",".join(sorted(FORBIDDEN))], stderr=subprocess.DEVNULL)
    area.guard(process.pid)
    try:
        return _first_answer(bench, f"{folder}/s", process.pid) - begun
    finally:
        process.kill()
        process.wait(20)


def _first_answer(bench: Bench, path: str, pid: int) -> float:
    while True:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            talk = Talk(bench.rig.area, path, ours=False)
            break
        if process_state(pid) in ("", "Z"):
            raise HarnessError(f"{path}: ended before it answered")
        time.sleep(0.0005)
    if talk.ask("guest-ping") != {"return": {}}:
        raise HarnessError(f"{path}: no answer to a ping")
    at = time.monotonic()
    talk.close()
    return at


def memory(bench: Bench, figures: Figures) -> None:
    """Resident and proportional memory: idle, while frozen, and after many freezes; and then a minute of idling."""
    rig = bench.rig
    filesystems = [rig.fs("ext4", SIZE) for _ in range(8)]
    daemon = rig.daemon([rig.everywhere])
    peer = QemuGa(rig.area)
    talk = Talk(rig.area, peer.socket, 60, ours=False)
    agent = Agent(daemon.url)
    points = {"mountpoints": [str(fs) for fs in filesystems]}
    many = 50 if bench.quick else MANY
    try:
        agent.ping()
        talk.ask("guest-ping")
        _memory(figures, "idle", {"virtagentd": [daemon.pid], "qemu-ga": [peer.process.pid]})
        agent.freeze()
        keeper, stands_by = sorted(child.pid for child in daemon.children())  # in the order in which they were forked
        _memory(figures, "frozen, 8 file systems: supervisor", {"virtagentd": [daemon.pid]})
        _memory(figures, "frozen, 8 file systems: keeper", {"virtagentd": [keeper]})
        _memory(figures, "frozen, 8 file systems: stands by for the thaw", {"virtagentd": [stands_by]})
        agent.thaw()
        talk.ask("guest-fsfreeze-freeze-list", points)
        _memory(figures, "frozen, 8 file systems: supervisor", {"qemu-ga": [peer.process.pid]})
        talk.ask("guest-fsfreeze-thaw")
        progress(f"{many} freezes")
        for _ in range(many):
            agent.freeze()
            agent.thaw()
            talk.ask("guest-fsfreeze-freeze-list", points)
            talk.ask("guest-fsfreeze-thaw")
        _memory(figures, f"idle after {many} freezes", {"virtagentd": [daemon.pid], "qemu-ga": [peer.process.pid]})
        agent.close()
        talk.close()
        seconds = 5 if bench.quick else 60
        progress(f"idle for {seconds} s")
        time.sleep(1)  # until the hanging up has been seen
        before = {name: switches(pid) for name, pid in (("virtagentd", daemon.pid), ("qemu-ga", peer.process.pid))}
        time.sleep(seconds)
        for name, pid in (("virtagentd", daemon.pid), ("qemu-ga", peer.process.pid)):
            woken = switches(pid) - before[name]
            figures.add(IDLE, f"wake-ups in {seconds} idle seconds", name, "", [woken])
    finally:
        peer.close()
        daemon.stop()
        take_down(bench, filesystems)


def _memory(figures: Figures, what: str, pids: dict[str, Sequence[int]]) -> None:
    for way, these in pids.items():
        for name, field in (("resident", "Rss"), ("proportional", "Pss")):
            kib = sum(_rollup(pid, field) for pid in these)
            figures.add(MEMORY, f"{what}: {name}", way, "MiB", [kib / 1024])


def _rollup(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def switches(pid: int) -> int:
    """Return how often the threads of a process have been switched away from, of their own will or not."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        status = Path(f"/proc/{pid}/task/{task}/status").read_text()
        total += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status)))
    return total

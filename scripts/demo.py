"""The show of scripts/demo, which sets up and starts it. Needs root and a mount namespace of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

TREE = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
sys.path.insert(0, str(TREE / "tests"))

from harness import HarnessError, Unmet, namespace  # noqa: E402
from harness.filesystems import MIB  # noqa: E402
from harness.rig import Rig, closed  # noqa: E402

HOLD_LIMIT = 3
DIRTY_MOST = 300 * MIB
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


def heading(text: str) -> None:
    print(f"\n{BOLD}== {text}{PLAIN}", flush=True)


def tell(text: str) -> None:
    print(f"   {text}", flush=True)


def type_in(*command: str) -> None:
    print(f"{BOLD}$ {shlex.join(command)}{PLAIN}", flush=True)


def run(*command: str, expect: int | tuple[int, ...] = 0) -> None:
    """Run it as a user would type it; the show ends if the exit code is another one."""
    type_in(*command)
    code = subprocess.run(command, check=False, cwd="/", stdin=subprocess.DEVNULL).returncode
    if code not in (expect if isinstance(expect, tuple) else (expect,)):
        raise HarnessError(f"{shlex.join(command)} ended with {code}, expected {expect}")
    if code:
        tell(f"(exit code {code})")


def dirty_bytes() -> int:
    """Return how much to write to each file system: images and dirty data lie in memory here."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min(DIRTY_MOST, available // 16) // MIB * MIB


def show(rig: Rig) -> None:
    heading("A guest with four file systems of three types, on loop devices in memory that are gone afterwards")
    dirty = dirty_bytes()
    size = dirty + 200 * MIB
    ext4 = rig.fs("ext4", 2 * size + 200 * MIB, name="ext4")
    xfs = rig.fs("xfs", size + 200 * MIB, name="xfs")
    btrfs = rig.fs("btrfs", size + 200 * MIB, name="btrfs")
    inner = rig.fs("ext4", size, outer=ext4, name="ext4-inside-ext4")
    also = xfs.bind("xfs-again")
    for fs in (ext4, xfs, btrfs, inner):
        tell(f"{fs.kind:5} {fs.path}")
    tell(f"{also} is the same xfs, bind-mounted")

    heading("The agent, in the guest")
    daemon = rig.daemon([rig.everywhere], program=str(BIN / "virtagentd"))
    tell(f"$ {shlex.join(['virtagentd', *daemon.command[1:]])}")
    os.environ["VIRTAGENT_AGENT"] = daemon.url
    tell(f"$ export VIRTAGENT_AGENT={daemon.url}")
    run("virtagentctl", "ping")

    heading(
        "What would be frozen, and in which order? (It is started where this machine's own disks cannot be reached)"
    )
    run("virtagentctl", "plan")

    heading(f"{dirty // MIB} MiB on each that no disk has yet, an application that writes, and a freeze")
    for fs in (inner, ext4, xfs, btrfs):
        fs.fill(dirty)
    writer = rig.writer(xfs)
    writer.wait_moving()
    freeze_watched()

    heading("Frozen. What an operator sees")
    run("virtagentctl", "status")
    pids = ",".join(str(pid) for pid in daemon.titles())
    run("ps", "-o", "pid,stat,args", "-p", pids)

    heading("Does the application stand still?")
    before = writer.wait_still(1.0)
    tell(f"{before.writes} records written, the last one {before.now:.1f} s ago")
    after = writer.wait_still(2.0)
    tell(f"{after.writes} records written, the last one {after.now:.1f} s ago")
    if after.writes != before.writes:
        raise HarnessError("the application wrote to a frozen file system")

    heading("The host has its snapshot and thaws")
    run("virtagentctl", "thaw")
    tell(f"{writer.wait_moving().writes} records: it writes again")
    tell(f"its longest pause, from the freeze to the thaw with the time we looked: {writer.report().longest:.1f} s")

    heading("The same without looking: how long does an application wait for a snapshot?")
    for fs in (inner, ext4, xfs, btrfs):
        fs.fill(dirty, "more" if fs is ext4 else "dirty")
    writer.reset()
    run("virtagentctl", "freeze")
    run("virtagentctl", "thaw")
    writer.wait_moving()
    tell(f"its longest pause: {writer.report().longest:.2f} s, start and end of two virtagentctl included")

    heading(f"A host that forgets to thaw: the freeze may last {HOLD_LIMIT} s")
    writer.reset()
    run("virtagentctl", "freeze", "--hold-limit", str(HOLD_LIMIT))
    tell("... nobody thaws ...")
    daemon.wait_state("THAWED", HOLD_LIMIT + 20)
    tell(f"{writer.wait_moving().writes} records: the agent has thawed by itself")
    tell(f"longest pause: {writer.report().longest:.1f} s")

    heading("And the host learns that its snapshot is worth nothing")
    run("virtagentctl", "thaw", expect=5)
    run("virtagentctl", "status")


def freeze_watched() -> None:
    """Freeze, with `virtagentctl watch` showing at the same time what the agent says."""
    watching = ["virtagentctl", "watch", "--until", "FROZEN", "--timeout", "60"]
    type_in(*watching)
    with subprocess.Popen(watching, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        tell(f"| {watch.stdout.readline().rstrip()}")
        type_in("virtagentctl", "freeze")
        freezing = ["virtagentctl", "freeze"]
        with subprocess.Popen(freezing, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as freeze:
            for line in watch.stdout:
                tell(f"| {line.rstrip()}")
            answer, _ = freeze.communicate()
        print(answer, end="", flush=True)
    if freeze.returncode or watch.returncode:
        raise HarnessError(f"virtagentctl freeze ended with {freeze.returncode}, watch with {watch.returncode}")


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with namespace.entered() as area:
        rig = Rig(area)
        try:
            show(rig)
        finally:
            heading("Thawed, unmounted, gone")
            closed(rig)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (HarnessError, Unmet, AssertionError, TimeoutError) as error:
        sys.exit(f"scripts/demo: {error}")

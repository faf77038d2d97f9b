"""The options of scripts/bench, which sets up and starts it. Needs root and a mount namespace of its own."""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

TREE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "tests"), str(TREE / "scripts")]

from harness import HarnessError, Unmet, namespace  # noqa: E402
from harness.filesystems import KINDS, MIB  # noqa: E402
from harness.namespace import Area  # noqa: E402
from harness.rig import Rig, closed  # noqa: E402

from benching import cost, counts, latency, layouts, life, report, scaling, slow, stall, watched, watching  # noqa: E402
from benching.figures import Figures, machine, progress, say  # noqa: E402
from benching.ways import Bench, compile_still, disk_of  # noqa: E402

PARTS: dict[str, Callable[[Bench, Figures], None]] = {
    "stall": stall.measure,
    "slow": slow.measure,
    "scaling": scaling.measure,
    "latency": latency.measure,
    "watching": watching.measure,
    "watched": watched.measure,
    "recovery": life.recover,
    "start": life.start,
    "memory": life.memory,
    "cost": cost.measure,
    "layouts": layouts.measure,
}


def options() -> argparse.Namespace:
    asked = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures virtagentd beside qemu-ga, util-linux's fsfreeze and the least that is possible.",
    )
    asked.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}")
    asked.add_argument("--rounds", type=int, default=10, help="how often each is measured (default 10)")
    asked.add_argument("--quick", action="store_true", help="fewer rounds, smaller numbers")
    asked.add_argument("--disk-rate", type=int, default=500, metavar="MB/S", help="0: no limit (default 500)")
    asked.add_argument(
        "--images", type=Path, metavar="FOLDER", help="where the slow disk's image lies (default: memory)"
    )
    asked.add_argument("--kinds", default=",".join(KINDS), metavar="TYPE,...", help="that the part stall is about")
    asked.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    asked.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the figures there, as SVG")
    asked.add_argument("--report", action="store_true", help="measure nothing: put the figures of --json into the docs")
    asked.add_argument("--check", action="store_true", help="only compare counts with bench-counts.json; 1 if one grew")
    asked.add_argument("--update", action="store_true", help="only count, and keep that in bench-counts.json")
    return asked.parse_args()


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def measure(area: Area, chosen: argparse.Namespace, parts: list[str]) -> None:
    """Measure the parts, each on file systems of its own, and print and keep the figures after each."""
    figures = Figures()
    rounds = min(chosen.rounds, 3) if chosen.quick else chosen.rounds
    settings = {"rounds": rounds, "disk_rate_mib": chosen.disk_rate, "images": "disk" if chosen.images else "memory"}
    notes: list[str] = []
    for part in parts:
        progress(part)
        began = time.monotonic()
        shown = figures.parts()
        rig = Rig(area)
        try:
            bench = Bench(rig, rounds, chosen.disk_rate * MIB, chosen.images, notes, quick=chosen.quick)
            bench.kinds = chosen.kinds.split(",")
            PARTS[part](bench, figures)
        finally:
            closed(rig)
        for one in figures.parts():
            if one not in shown:
                say(f"\n### {one}\n\n{figures.table(one)}")
        if chosen.json:
            figures.keep(chosen.json, settings, notes, aside=bool(disk_of(chosen.disk_rate, chosen.images)))
        progress(f"{part} took {time.monotonic() - began:.0f} s")
    for note in notes:
        say(f"Note: {note}")
    say(f"{settings}, {machine()}")


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    chosen = options()
    if chosen.plot and not chosen.report and not chosen.json:
        print("scripts/bench: --plot draws what --json keeps: give both", file=sys.stderr)
        return 2
    parts = chosen.only.split(",") if chosen.only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        print(f"scripts/bench: --only {unknown[0]}: not one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if unknown := [kind for kind in chosen.kinds.split(",") if kind not in KINDS]:
        print(f"scripts/bench: --kinds {unknown[0]}: not one of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    if not chosen.report:
        code = count_or_measure(chosen, parts)
        if code or chosen.check or chosen.update:
            return code
    if chosen.plot:
        pictures = importlib.import_module("benching.pictures")
        for path in pictures.draw(Figures.load(chosen.json or report.KEPT)[0], chosen.plot):
            progress(f"drawn: {path.name}")
    return report.write(chosen.json or report.KEPT) if chosen.report else 0


def count_or_measure(chosen: argparse.Namespace, parts: list[str]) -> int:
    """Do what needs file systems; return the exit code."""
    with namespace.entered() as area:
        if chosen.check or chosen.update:
            return counts.update(counts.collect(area)) if chosen.update else counts.check(area)
        compile_still(area)
        measure(area, chosen, parts)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (HarnessError, Unmet, AssertionError, RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        sys.exit(1)

"""The storms of scripts/chaos, which sets up and starts it. Needs root and a mount namespace of its own."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness import HarnessError, Unmet, namespace
from harness.actions import sequence
from harness.namespace import Area
from harness.rig import Rig, closed
from harness.storm import TROUBLE, World, play
from harness.tally import Tally

MANY = 100_000
"""Storm N of seed S has the seed S * MANY + N, from which --replay makes it again."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Plays storms; ends with 1 at the first violation."
    )
    parser.add_argument("--minutes", type=float, default=20, help="how long (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="which storms (default 1)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="only this storm, as a violation named it")
    parser.add_argument("--times", type=int, default=10, help="how often it is replayed (default 10)")
    parser.add_argument("--layouts", action="store_true", help="file systems that lie on each other as no path tells")
    parser.add_argument("--go-on", action="store_true", help="do not end at the first violation")
    return parser.parse_args()


def storm(world: World, tally: Tally, seed: int, flags: str) -> bool:
    """Play one storm; return whether all went well, and say so if it did not."""
    actions = sequence(seed)
    played = play(world, actions, tally)
    if not played.violations:
        return True
    print(f"\nViolations in the storm of seed {seed} (scripts/chaos{flags} --replay {seed}):")
    for line in played.violations:
        print(f"  {line}")
    print("Actions:")
    for action in played.done:
        print(f"  {action}")
    print("Logs:")
    for text in played.logs:
        print("  " + text.replace("\n", "\n  "), flush=True)
    return False


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(area: Area, chosen: argparse.Namespace, tally: Tally) -> None:
    first = chosen.seed * MANY if chosen.replay is None else chosen.replay
    began = shown = time.monotonic()
    number = 0
    flags = " --layouts" if chosen.layouts else ""
    rig = Rig(area)
    try:
        world = World(rig, first // MANY, odd_layouts=chosen.layouts)
        while number < chosen.times if chosen.replay is not None else time.monotonic() - began < chosen.minutes * 60:
            well = storm(world, tally, first + (number if chosen.replay is None else 0), flags)
            number += 1
            if not well and not chosen.go_on:
                return
            if not well:
                # What a violation left behind must not spoil the next storm.
                for line in rig.close():
                    print(f"  {line}", flush=True)
                rig = Rig(area)
                world = World(rig, first // MANY, odd_layouts=chosen.layouts)
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(
                    f"{(shown - began) / 60:.0f} min: {number} storms, {len(tally.violations)} violations", flush=True
                )
    finally:
        closed(rig)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    chosen = options()
    tally = Tally()
    began = time.monotonic()
    with namespace.entered() as area:
        try:
            run(area, chosen, tally)
        except TROUBLE as error:
            tally.violations.append(f"{type(error).__name__}: {error}")
            print(f"\nThe run could not go on: {tally.violations[-1]}", flush=True)
        finally:
            seed = chosen.seed if chosen.replay is None else chosen.replay
            how = f"seed {seed}{' with --layouts' if chosen.layouts else ''}"
            print(f"\nscripts/chaos, {how}, {(time.monotonic() - began) / 60:.1f} minutes:\n")
            print(tally.table(), flush=True)
    return 1 if tally.violations else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (HarnessError, Unmet, AssertionError, TimeoutError) as error:
        print(f"scripts/chaos: {error}", file=sys.stderr)
        sys.exit(1)

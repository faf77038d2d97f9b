"""The storms of scripts/chaos, which sets up and starts it. Needs root and a mount namespace of its own."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness import HarnessError, Unmet, database_storm, namespace
from harness.actions import sequence
from harness.namespace import Area
from harness.rig import Rig, closed
from harness.storm import TROUBLE, Storm, World, play
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
    parser.add_argument(
        "--writers",
        action="store_true",
        help="real databases with their writers (PostgreSQL, MariaDB and Redis must be installed): any process dies at "
        "any step, and an image of a freeze that held must have every acknowledged commit",
    )
    parser.add_argument("--go-on", action="store_true", help="do not end at the first violation")
    return parser.parse_args()


def storm(world: World | database_storm.World, tally: Tally, seed: int, flags: str) -> bool:
    """Play one storm; return whether all went well, and say so if it did not."""
    played: Storm | database_storm.Storm
    if isinstance(world, World):
        played = play(world, sequence(seed), tally)
    else:
        played = database_storm.Storm(world, tally, seed)
        played.play()
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
    flags = " --layouts" * chosen.layouts + " --writers" * chosen.writers
    rig = Rig(area)
    world: World | database_storm.World | None = None
    try:
        world = make_world(rig, first // MANY, chosen)
        while number < chosen.times if chosen.replay is not None else time.monotonic() - began < chosen.minutes * 60:
            well = storm(world, tally, first + (number if chosen.replay is None else 0), flags)
            number += 1
            if not well and not chosen.go_on:
                return
            if not well:
                # What a violation left behind must not spoil the next storm.
                close_servers(world)
                for line in rig.close():
                    print(f"  {line}", flush=True)
                rig = Rig(area)
                world = make_world(rig, first // MANY, chosen)
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(
                    f"{(shown - began) / 60:.0f} min: {number} storms, {len(tally.violations)} violations", flush=True
                )
    finally:
        close_servers(world)
        closed(rig)


def make_world(rig: Rig, seed: int, chosen: argparse.Namespace) -> World | database_storm.World:
    if chosen.writers:
        return database_storm.World(rig, seed)
    return World(rig, seed, odd_layouts=chosen.layouts)


def close_servers(world: World | database_storm.World | None) -> None:
    if isinstance(world, database_storm.World):
        world.close()


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
            how = f"seed {seed}{' with --layouts' * chosen.layouts}{' with --writers' * chosen.writers}"
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

"""The inputs of scripts/fuzz, which sets up and starts it. Needs root and a mount namespace of its own."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fakes.parsers import PARSERS, feed
from harness import HarnessError, Unmet, namespace
from harness.fuzzing import Watched, fuzz
from harness.rig import Rig, closed


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Feeds a daemon and all parsers; ends with 1 at a death or a defect."
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="how many to the daemon (default 100,000)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="how long at most")
    parser.add_argument("--seed", type=int, default=1, help="which inputs (default 1)")
    parser.add_argument("--parsed", type=int, default=10_000, help="how many to each parser (default 10,000)")
    return parser.parse_args()


def feed_parsers(seed: int, count: int) -> bool:
    """Feed all parsers; return whether none met a defect."""
    well = True
    for name, parser in PARSERS.items():
        begun = time.monotonic()
        try:
            refused = feed(parser, seed, count)
        except AssertionError as error:
            print(f"{name}: {error}", flush=True)
            well = False
        else:
            print(f"{name}: {count} inputs, {refused} refused, {time.monotonic() - begun:.0f} s", flush=True)
    return well


def main() -> int:
    chosen = options()
    well = feed_parsers(chosen.seed, chosen.parsed)
    with namespace.entered() as area:
        rig = Rig(area)
        try:
            figures = fuzz(Watched(rig), chosen.seed, inputs=chosen.inputs, seconds=chosen.minutes * 60)
        finally:
            closed(rig)
    print(figures.table(), flush=True)
    return 0 if well and not figures.deaths and not figures.defects else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (HarnessError, Unmet, AssertionError, TimeoutError) as error:
        sys.exit(f"scripts/fuzz: {error}")

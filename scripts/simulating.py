"""The simulated storms of scripts/sim, which sets up and starts it: of this checkout, whatever is installed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE / "tests"))
sys.modules["virtagent"] = types.ModuleType("virtagent")
sys.modules["virtagent"].__path__ = [str(TREE)]

from sim import defects, storm  # noqa: E402 - only now is virtagent this checkout

CHUNK = 100
SEARCH = 20_000
"""Storms within which each planted defect must be found."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/sim", description="Plays simulated storms; ends with 1 at a violation, after shrinking it."
    )
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("N", "M"), help="the storms N to M - 1 (0 10000)")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="only this storm, with its trace, shrunk if it fails"
    )
    parser.add_argument(
        "--defects", action="store_true", help="plant each defect, and say after how many storms it is found"
    )
    parser.add_argument("--only", metavar="WORD", default="", help="of the defects those that have WORD in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (as many as there are cores)")
    parser.add_argument("--go-on", action="store_true", help="do not end at the first violation")
    return parser.parse_args()


def uninterrupted() -> None:
    """Leave it to the parent to take an interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def chunk(first: int, after: int) -> tuple[Counter[str], list[storm.Failure]]:
    """Play the storms `first` to `after` - 1."""
    counts: Counter[str] = Counter()
    failures = []
    for seed in range(first, after):
        happened, failure = storm.run(seed)
        counts.update(happened)
        if failure is not None:
            failures.append(failure)
    return counts, failures


def play(first: int, after: int, jobs: int, *, go_on: bool) -> int:
    """Play all these storms; return the exit code."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    failures: list[storm.Failure] = []
    played = 0
    pool = ProcessPoolExecutor(jobs, initializer=uninterrupted)
    starts = range(first, after, CHUNK)
    ends = [min(start + CHUNK, after) for start in starts]
    try:
        for start, end, (happened, failed) in zip(starts, ends, pool.map(chunk, starts, ends), strict=True):
            counts += happened
            failures += failed
            played += end - start
            if sys.stderr.isatty():
                print(f"\r{played} storms, {len(failures)} failed", end="", file=sys.stderr, flush=True)
            if failures and not go_on:
                break
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"{played} storms in {seconds:.0f} s ({played / seconds:.0f} a second), violations: {len(failures)}")
    for what, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {number:>10}  {what}")
    shown: set[str] = set()
    for failure in failures:
        if storm.kind(failure.why) not in shown:
            shown.add(storm.kind(failure.why))
            show(failure)
    return 1 if failures else 0


def show(failure: storm.Failure) -> None:
    """Print a failure as small as it can be made, with its trace."""
    print(f"\nThe storm of seed {failure.seed} (scripts/sim --replay {failure.seed}): {failure.why}")
    shrunk = storm.shrink(failure)
    print(f"Shrunk from {len(failure.actions)} actions to {len(shrunk.actions)}, layout {shrunk.layout}:")
    for action in shrunk.actions:
        print(f"  {action}")
    print("\n".join(storm.traced(shrunk)), flush=True)


def replay(seed: int) -> int:
    """Play one storm; return the exit code."""
    _, failure = storm.run(seed)
    if failure is not None:
        show(failure)
        return 1
    print("\n".join(storm.trace_of(seed)))
    return 0


def plant(jobs: int, only: str) -> int:
    """Print the table of planted defects; return the exit code."""
    names = [name for name in defects.DEFECTS if only in name]
    missed = 0
    with ProcessPoolExecutor(jobs) as pool:
        for name, (after, why) in zip(names, pool.map(search, names), strict=True):
            missed += not why
            print(f"{after if why else 'NOT FOUND':>9}  {name:<52}  {why[:110]}", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted defects were found within {SEARCH} storms each")
    return 1 if missed else 0


def search(name: str) -> tuple[int, str]:
    """Return after how many storms a planted defect is found, and by what; "" if it is not."""
    with defects.planted(name):
        for seed in seeds(SEARCH):
            _, failure = storm.run(seed)
            if failure is not None:
                return seed + 1, failure.why
    return SEARCH, ""


def seeds(count: int) -> Iterator[int]:
    """Yield the seeds of that many storms."""
    yield from range(count)


def main() -> int:
    """Do what is asked; return the exit code."""
    chosen = options()
    if chosen.replay is not None:
        return replay(chosen.replay)
    if chosen.defects:
        return plant(chosen.jobs, chosen.only)
    first, after = chosen.seeds or (0, 10_000)
    return play(first, after, chosen.jobs, go_on=chosen.go_on)


if __name__ == "__main__":
    sys.exit(main())

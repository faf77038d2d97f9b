"""Freezes many guests together and one after another, and times how soon a host knows; run by scripts/group-figures."""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

TREE = Path(__file__).parent.parent
sys.path.insert(0, str(TREE / "tests"))

import fleet_figures  # noqa: E402
from harness import namespace  # noqa: E402
from harness.daemon import Daemon  # noqa: E402
from harness.rig import Rig  # noqa: E402
from virtagent.host import Agent, AgentGroup  # noqa: E402

HOLD = 30.0
DIRTY = 1 << 20


def together(daemons: Sequence[Daemon]) -> tuple[float, ...]:
    """Freeze as a group; return skew, skew by the agents, and window in ms, from all frozen to the first thaw."""
    with AgentGroup([daemon.url for daemon in daemons]).frozen(hold=HOLD) as group:
        pass
    return tuple(1000 * seconds for seconds in (group.skew, group.skew_by_agents, group.window, stood(daemons)))


def one_by_one(daemons: Sequence[Daemon]) -> tuple[float, ...]:
    """The same with a frozen() inside another for each guest."""
    begun, told = [], []
    with ExitStack() as stack:
        agents = [stack.enter_context(Agent(daemon.url)) for daemon in daemons]
        for agent in agents:
            agent.ping()
        frozen = ExitStack()
        for agent in agents:
            status = frozen.enter_context(agent.frozen(hold=HOLD)).status
            begun.append(time.monotonic())
            told.append(begun[-1] - status.since)
        all_frozen = time.monotonic()
        window = time.monotonic() - all_frozen
        frozen.close()
    return tuple(1000 * seconds for seconds in (max(begun) - min(begun), max(told) - min(told), window, stood(daemons)))


def stood(daemons: Sequence[Daemon]) -> float:
    """Return how long the writers of the guest that fared worst stood still, in seconds."""
    return max(float(daemon.status()["last"]["stall_seconds"]) for daemon in daemons)


def groups(rig: Rig, guests: int, runs: int) -> None:
    filesystems = [rig.fs("ext4") for _ in range(guests)]
    daemons = [rig.daemon([fs]) for fs in filesystems]
    print(
        f"| {guests} guests | runs | skew ms: median | max | by the agents: median | max | longest stall ms: median |"
    )
    print("|---|---|---|---|---|---|---|")
    ways: tuple[tuple[str, Callable[[Sequence[Daemon]], tuple[float, ...]]], ...] = (
        ("as a group", together),
        ("one after another", one_by_one),
    )
    for name, freeze in ways:
        found = []
        for _ in range(runs):
            for fs in filesystems:
                fs.fill(DIRTY)
            found.append(freeze(daemons))
        skew, by_agents, _, stall = ([run[n] for run in found] for n in range(4))
        print(
            f"| {name} | {runs} | {statistics.median(skew):.1f} | {max(skew):.1f} | {statistics.median(by_agents):.1f} "
            f"| {max(by_agents):.1f} | {statistics.median(stall):.1f} |",
            flush=True,
        )
    windows(daemons, runs)


def windows(daemons: Sequence[Daemon], runs: int) -> None:
    """Print how long all are frozen around a block of one second, of what it costs the guest that fares worst."""
    window, stall = [], []
    for _ in range(runs):
        with AgentGroup([daemon.url for daemon in daemons]).frozen(hold=HOLD) as group:
            threading.Event().wait(1)
        window.append(1000 * group.window)
        stall.append(1000 * stood(daemons))
    print(
        f"\nblock of 1000 ms, {runs} runs: all frozen for {statistics.median(window):.1f} ms (median), while the "
        f"writers of the guest that fared worst stood still for {statistics.median(stall):.1f} ms\n"
    )


def knows(rig: Rig, runs: int) -> None:
    """Time from the agent's `frozen` to the answer of a long poll that another connection waits in."""
    daemon = rig.daemon([rig.fs("ext4")])
    found = []
    with Agent(daemon.url) as freezer, Agent(daemon.url) as watcher:
        for _ in range(runs):
            record = watcher.status()
            ended = threading.Thread(target=freezer.freeze, kwargs={"hold_limit": HOLD})
            ended.start()
            while record.state != "FROZEN":
                record = watcher.status(since=record.seq)
            # A second record tells how long ago that was, to within the time that its own call takes.
            asked = time.monotonic()
            most = watcher.status().since
            found.append((1000 * max(0.0, most - (time.monotonic() - asked)), 1000 * most))
            ended.join()
            freezer.thaw()
    print(
        "| frozen -> a host knows, by the long poll | runs | median ms | 99th percentile | max |\n|---|---|---|---|---|"
    )
    for n, name in enumerate(("at least", "at most")):
        times = sorted(pair[n] for pair in found)
        at_99 = times[math.ceil(0.99 * len(times)) - 1]
        print(f"| {name} | {runs} | {statistics.median(times):.2f} | {at_99:.2f} | {max(times):.2f} |")


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--guests", type=int, default=20)
    asked.add_argument("--runs", type=int, default=10)
    asked.add_argument("--polls", type=int, default=200)
    asked.add_argument("--relays", type=int, default=10, help="over an sshd on loopback; 0: none")
    asked.add_argument("--agents", type=int, default=100, help="fake ones, behind the relays")
    asked.add_argument("--daemons", type=int, default=20, help="real ones over 4 relays, two with a database; 0: none")
    asked.add_argument("--simulated", type=int, default=1000, help="guests of one other process; 0: none")
    args = asked.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    area = namespace.enter()
    rig = Rig(area)
    try:
        if args.relays:
            with fleet_figures.sshd():
                fleet_figures.compared(args.relays, args.agents, args.runs)
                if args.daemons:
                    fleet_figures.real(rig, 4, args.daemons)
        if args.simulated:
            fleet_figures.simulated(args.simulated, args.runs)
        if args.guests:
            groups(rig, args.guests, args.runs)
        if args.polls:
            knows(rig, args.polls)
    finally:
        for line in rig.close():
            print(line, file=sys.stderr)
        area.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())

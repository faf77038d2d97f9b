"""A group over hosts: many agents behind relays by an sshd on loopback, and real daemons, two with databases."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import databases
from harness.daemon import Daemon
from harness.databases import Server
from harness.processes import until
from harness.rig import Rig
from harness.serving import INNODB, daemon_for, serve
from harness.sshd import Sshd
from virtagent.host import AgentGroup

TESTS = Path(__file__).parent.parent / "tests"
CTL = [sys.executable, "-m", "virtagent.host.main"]
FAKES = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fakes.many_agents import ManyAgents
with ManyAgents(Path(sys.argv[2]), int(sys.argv[3])):
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def sshd() -> Iterator[Sshd]:
    """Start an sshd, and have this process and its children use it."""
    with tempfile.TemporaryDirectory() as folder:
        one = Sshd(Path(folder) / "sshd")
        os.environ.update(one.env)
        try:
            yield one
        finally:
            one.close()


@contextmanager
def fakes(folder: Path, count: int) -> Iterator[list[str]]:
    """Have another process answer for so many agents; yield their URLs."""
    words = [sys.executable, "-c", FAKES, str(TESTS), str(folder), str(count)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield [f"unix:{folder}/{n}" for n in range(count)]
        finally:
            assert process.stdin is not None
            process.stdin.close()


def behind(urls: Sequence[str], relays: int) -> list[str]:
    """Return the URLs of so many hosts, which share the agents."""
    shares = [urls[n::relays] for n in range(relays)]
    return [f"ssh:hv{n}?" + "&".join(f"agents={url}" for url in share) for n, share in enumerate(shares)]


def processor() -> float:
    """Return the processor seconds of this process, and of the children that have ended (ssh)."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def compared(relays: int, agents: int, runs: int) -> None:
    """Print skew, window and cost of a group with relays, and of the same without."""
    print(
        f"| {agents} agents, {runs} runs | skew ms: median | max | by round trip | window ms | prepare and freeze s "
        "| processor ms an agent |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder, fakes(Path(folder), agents) as urls:
        for name, group in ((f"{relays} relays by ssh", behind(urls, relays)), ("one process, no relay", urls)):
            found = []
            for _ in range(runs):
                cpu, began = processor(), time.monotonic()
                with AgentGroup(group).frozen(hold=60) as freeze:
                    took = time.monotonic() - began
                cost = 1000 * (processor() - cpu) / agents
                skew, trip = 1000 * freeze.true_skew, 1000 * freeze.skew_by_round_trip
                found.append((skew, trip, 1000 * freeze.window, took, cost))
            skews, trips, windows, times, costs = zip(*found, strict=True)
            middle = statistics.median
            print(
                f"| {name} | {middle(skews):.1f} | {max(skews):.1f} | {middle(trips):.1f} | {middle(windows):.1f} "
                f"| {middle(times):.2f} | {middle(costs):.2f} |",
                flush=True,
            )
            if name != "one process, no relay":
                a_relay = middle(costs) * agents / relays
                paper = f"300 cost {0.3 * a_relay:.0f} s, and {10 * middle(costs):.0f} s if it grows with 10,000 guests"
    print(f"\nload {os.getloadavg()[0]:.1f}; a relay with {agents // relays} guests cost {a_relay:.0f} ms, so {paper}")


def simulated(agents: int, runs: int) -> None:
    """Print skew, window around an empty block and cost of a group of simulated guests, all in one other process."""
    print(f"| {agents:,} simulated guests, {runs} runs | median | least | most |\n|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as folder, fakes(Path(folder), agents) as urls:
        for _ in range(runs):
            cpu = processor()
            with AgentGroup(urls).frozen(hold=60) as freeze:
                pass
            found.append((1000 * (processor() - cpu) / agents, 1000 * freeze.skew, 1000 * freeze.window))
    for what, values in zip(("processor ms a guest", "skew ms", "window ms"), zip(*found, strict=True), strict=True):
        print(f"| {what} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |", flush=True)


def real(rig: Rig, relays: int, count: int) -> None:
    """Print what a snapshot of real daemons comes to, two with a database, and one whose coordinator is killed."""
    servers: list[Server] = []
    try:
        daemons = [rig.daemon([rig.fs("ext4")]) for _ in range(count - 2)]
        for kind, name, setup in (
            (databases.PostgreSql, "postgresql", "create table n (n int primary key);"),
            (databases.MariaDb, "mariadb", f"create database t;\n{INNODB}"),
        ):
            server, fs = serve(rig, servers, kind, [], setup)
            daemons.insert(0, daemon_for(rig, server, fs, name))
        urls = behind([daemon.url for daemon in daemons], relays)
        words = [*CTL, *(word for url in urls for word in ("--agent", url)), "--json", "snapshot", "--hold", "60"]
        with inserting(servers):
            ran = subprocess.run([*words, "--on-each-host", "sleep 1"], capture_output=True, text=True, check=False)
            report = json.loads(ran.stdout)
            writers = [
                f"{one['name']} {one['type']} {json.dumps(one.get('info', {}))}"
                for guest in report["guests"].values()
                for one in guest["writers"]
            ]
            stalls = [daemon.status()["last"]["stall_seconds"] for daemon in daemons]
            print(
                f"\n{count} daemons over {relays} relays, --on-each-host 'sleep 1': exit {ran.returncode}, skew "
                f"{1000 * report['skew_by_agents']:.1f} ms, window {1000 * report['window']:.0f} ms, longest stall "
                f"{1000 * max(stalls):.0f} ms; writers: {'; '.join(writers)}",
                flush=True,
            )
            killed(daemons, words, rig)
    finally:
        for server in servers:
            server.stop()


def killed(daemons: Sequence[Daemon], words: Sequence[str], rig: Rig) -> None:
    """Kill the coordinator in the window; print how soon all are thawed, and what the agents say."""
    flag = rig.area.fresh("flag")
    with subprocess.Popen(
        [*words, "--on-each-host", f"echo >> {flag}; exec sleep 50"], stdout=subprocess.DEVNULL
    ) as one:
        until(lambda: flag.exists() and flag.read_text().count("\n") == 4, 60, "all commands run")
        began = time.monotonic()
        one.send_signal(signal.SIGKILL)
        records = [daemon.wait_state("THAWED") for daemon in daemons]
        took = time.monotonic() - began
    outcomes = {record["last"]["outcome"] for record in records}
    print(
        f"coordinator killed in the window: all {len(records)} thawed after {took:.2f} s of a hold of 60 s "
        f"({', '.join(sorted(outcomes))})",
        flush=True,
    )


@contextmanager
def inserting(servers: Sequence[Server]) -> Iterator[None]:
    """Have rows inserted into each at full speed."""
    stop = threading.Event()
    threads = [threading.Thread(target=server.insert, args=(stop, [])) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)

"""What writers add: acknowledged commits lost, sessions that stand still, cost. Run by scripts/writer-figures."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TREE = Path(__file__).parent.parent
sys.path.insert(0, str(TREE / "tests"))

from harness import databases, namespace  # noqa: E402
from harness.daemon import Daemon  # noqa: E402
from harness.databases import Server  # noqa: E402
from harness.peer import QemuGa  # noqa: E402
from harness.processes import until  # noqa: E402
from harness.rig import Rig  # noqa: E402
from harness.serving import INNODB, daemon_for, lost_in, serve  # noqa: E402
from virtagent.agent.api.errors import Code  # noqa: E402

MYISAM = "create table t.n (n int primary key) engine=MyISAM;"
FLUSH = "--innodb-flush-log-at-trx-commit="
CASES: dict[str, tuple[type[Server], str, list[str], str]] = {
    "PostgreSQL": (databases.PostgreSql, "postgresql", [], "create table n (n int primary key);"),
    "MariaDB, flush_log 1": (databases.MariaDb, "mariadb", [f"{FLUSH}1"], f"create database t;\n{INNODB}"),
    "MariaDB, flush_log 2": (databases.MariaDb, "mariadb", [f"{FLUSH}2"], f"create database t;\n{INNODB}"),
    "MariaDB, flush_log 0": (databases.MariaDb, "mariadb", [f"{FLUSH}0"], f"create database t;\n{INNODB}"),
    "MariaDB, MyISAM": (databases.MariaDb, "mariadb", [], f"create database t;\n{MYISAM}"),
    "Redis, append-only file": (databases.Redis, "redis", [], ""),
}
LONG = 4  # seconds that the UPDATE takes
DIRTY = 60  # MiB
HOOK = """#!/bin/sh
# FLUSH TABLES WITH READ LOCK in a session that is kept by a background process, as QEMU's mysql-flush.sh does.
case $1 in
freeze)
    rm -f {run}/fifo; mkfifo {run}/fifo
    {client} <{run}/fifo >{run}/said 2>&1 &
    exec 3>{run}/fifo
    echo "flush tables with read lock; select 'locked';" >&3
    (sleep 1000 >&3) & echo $! >{run}/holder
    until grep -q locked {run}/said; do sleep 0.005; done ;;
thaw) kill $(cat {run}/holder) ;;
esac
"""


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def inserting(server: Server) -> Iterator[list[int]]:
    """Insert at full speed; yield what is acknowledged."""
    acknowledged: list[int] = []
    stop = threading.Event()
    thread = threading.Thread(target=server.insert, args=(stop, acknowledged))
    thread.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        thread.join(60)


def frozen(host: xmlrpc.client.ServerProxy, choice: str) -> None:
    """Freeze; again if a busy machine let the limit of the plan pass."""
    for last in (False, False, True):
        try:
            assert host.va.fsfreeze({"writers": choice}) == 1
            return
        except xmlrpc.client.Fault as fault:
            if last or fault.faultCode != Code.OVERRUN:
                raise


def lost(rig: Rig, rounds: int, only: str = "") -> None:
    """Print how many acknowledged commits the image of a freeze lacks, without and with the writer."""
    say("| | commits acknowledged | lost without the writer | with it |\n|---|---|---|---|")
    for name, (kind, typed, options, setup) in CASES.items():
        if only not in name:
            continue
        servers: list[Server] = []
        server, fs = serve(rig, servers, kind, options, setup)
        daemon = daemon_for(rig, server, fs, typed)
        host = daemon.proxy()
        found: dict[str, list[int]] = {"none": [], "all": []}
        total = 0
        with inserting(server) as acknowledged:
            for round_ in range(2 * rounds):
                choice = ("none", "all")[round_ % 2]
                before = len(acknowledged)
                until(lambda before=before: len(acknowledged) > before + 300, 60, "it inserts")  # type: ignore[misc]
                frozen(host, choice)
                sure = list(acknowledged)
                total += len(sure) - before
                copy = rig.area.fresh("image")
                subprocess.run(["cp", "--sparse=always", str(fs.image), str(copy)], check=True)
                assert host.va.fsthaw() == 1
                found[choice].append(lost_in(rig, kind, options, copy, sure))
        server.stop()
        daemon.stop()
        with_none, with_all = found["none"], found["all"]
        say(f"| {name} | {total} | {spread(with_none)} | {spread(with_all)} |")


def spread(numbers: list[int]) -> str:
    """Return the numbers of all rounds in short."""
    hit = sum(number > 0 for number in numbers)
    return (
        f"0 in {len(numbers)} of {len(numbers)}"
        if not hit
        else f"{min(numbers)} to {max(numbers)} (in {hit} of {len(numbers)})"
    )


class Pace:
    """A session that inserts all the time, and the longest time for which it stood still."""

    def __init__(self, server: databases.MariaDb) -> None:
        self.longest = self._last = 0.0
        self._stop = threading.Event()
        self._client = databases.Client([*server.client, "t"])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 1 << 20
        self._last = time.monotonic()
        while not self._stop.is_set():
            number += 1
            self._client.ask(f"replace into other values ({number % 1000}); select {number};")
            now = time.monotonic()
            self.longest = max(self.longest, now - self._last)
            self._last = now

    def begin(self) -> None:
        self.longest = 0.0

    def close(self) -> float:
        self._stop.set()
        self._thread.join(60)
        self._client.close()
        return self.longest


def still(rig: Rig, rounds: int, _only: str = "") -> None:
    """Print how long another session stands still when a freeze comes: idle, a long statement, dirty data elsewhere."""
    servers: list[Server] = []
    setup = f"create database t;\n{INNODB}\ncreate table t.other (n int primary key);\ninsert into t.n values (1);"
    server, fs = serve(rig, servers, databases.MariaDb, [f"{FLUSH}1"], setup)
    assert isinstance(server, databases.MariaDb)
    beside = rig.fs("ext4", size=300 << 20)
    daemon = daemon_for(rig, server, fs, "mariadb", "--quiesce-limit", "30", beside=[beside])
    host = daemon.proxy(60)
    hook = server.run / "hook"
    hook.write_text(HOOK.format(run=server.run, client=" ".join(server.client)))
    hook.chmod(0o755)
    peer = QemuGa(rig.area, f"-F{hook}")
    talk = peer.talk()

    def theirs() -> None:
        assert talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": [str(fs), str(beside)]}) == {"return": 2}
        assert talk.ask("guest-fsfreeze-thaw") == {"return": 2}

    def ours(choice: str) -> Callable[[], None]:
        def freeze() -> None:
            assert host.va.fsfreeze({"writers": choice}) == 2
            assert host.va.fsthaw() == 2

        return freeze

    def nothing() -> None:
        return

    def dirty() -> Callable[[], None]:
        with open(beside.path / "dirty", "wb") as file:
            for _ in range(DIRTY):
                file.write(os.urandom(1 << 20))
        return nothing

    ways = {"no writer": ours("none"), "ours": ours("all"), "qemu-ga, hook with FTWRL": theirs}
    loads: dict[str, Callable[[], Callable[[], None]]] = {
        "idle": lambda: nothing,
        f"under an UPDATE of {LONG} s": lambda: updating(server),
        f"{DIRTY} MiB dirty on another file system": dirty,
    }
    found: dict[tuple[str, str], list[float]] = {}
    # The ways in turn, so that a machine that is busy for a while is so for all of them.
    for load, begin in loads.items():
        for _ in range(max(3, rounds // 3) if "UPDATE" in load else rounds):
            for name, way in ways.items():
                found.setdefault((name, load), []).append(one_freeze(server, way, begin))
    say(f"| longest standstill of another session, ms | {' | '.join(loads)} |\n|---|{'---|' * len(loads)}")
    for name in ways:
        say(f"| {name} | {' | '.join(medians(found[name, load]) for load in loads)} |")
    talk.close()
    peer.close()
    server.stop()
    daemon.stop()


def updating(server: databases.MariaDb) -> Callable[[], None]:
    """Begin a long UPDATE; return what waits for its end."""
    client = databases.Client([*server.client, "t"])
    busy = threading.Thread(target=client.ask, args=(f"update n set n = n where sleep({LONG}) = 0; select 1;",))
    busy.start()
    running = "select info from information_schema.processlist where info like 'update%';"
    until(lambda: "sleep(" in server.ask(running), 10, "the UPDATE runs")

    def end() -> None:
        busy.join(60)
        client.close()

    return end


def one_freeze(server: databases.MariaDb, way: Callable[[], None], begin: Callable[[], Callable[[], None]]) -> float:
    pace = Pace(server)
    until(lambda: pace.longest > 0, 60, "it inserts")
    end = begin()
    pace.begin()
    way()
    end()
    return pace.close()


def medians(seconds: list[float]) -> str:
    times = sorted(1000 * one for one in seconds)
    return f"{statistics.median(times):.0f} ({times[0]:.0f} to {times[-1]:.0f}, {len(times)} runs)"


def cost(rig: Rig, rounds: int, _only: str = "") -> None:
    """Print the memory of a writer while frozen, and what writers add to request to reply."""
    say("| type | private memory: its process, its client | request to reply, ms, without | with |\n|---|---|---|---|")
    for name in ("PostgreSQL", "MariaDB, flush_log 1", "Redis, append-only file"):
        kind, typed, options, setup = CASES[name]
        servers: list[Server] = []
        server, fs = serve(rig, servers, kind, options, setup)
        daemon = daemon_for(rig, server, fs, typed)
        host = daemon.proxy()
        took: dict[str, list[float]] = {"none": [], "all": []}
        for _ in range(rounds):
            for choice, times in took.items():
                began = time.monotonic()
                assert host.va.fsfreeze({"writers": choice}) == 1
                times.append(1000 * (time.monotonic() - began))
                if choice == "all":
                    memory = of_writer(daemon)
                assert host.va.fsthaw() == 1
        say(f"| {typed} | {memory} | {statistics.median(took['none']):.0f} | {statistics.median(took['all']):.0f} |")
        server.stop()
        daemon.stop()


def of_writer(daemon: Daemon) -> str:
    (pid,) = [pid for pid, title in daemon.titles().items() if ": writer " in title]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return ", ".join(f"{private(one) / 1024:.1f} MiB" for one in (pid, *map(int, children)))


def private(pid: int) -> int:
    """Return the kilobytes that are this process's alone."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(lines["Private_Dirty"].split()[0])


PARTS = {"lost": lost, "still": still, "cost": cost}


def main() -> int:
    asked = argparse.ArgumentParser(prog="scripts/writer-figures", description=__doc__)
    asked.add_argument("--rounds", type=int, default=10, help="how often each is measured (default 10)")
    asked.add_argument("--only", metavar="PART,...", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    asked.add_argument("--case", default="", help="of `lost`: only those whose name holds this")
    args = asked.parse_args()
    area = namespace.enter()
    try:
        for part in args.only.split(","):
            rig = Rig(area)
            try:
                PARTS[part](rig, args.rounds, args.case)
                say("")
            finally:
                for line in rig.close():
                    print(line, file=sys.stderr)
    finally:
        area.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How soon a host is answered: ping and status, idle and while a freeze hangs on a disk; and how soon it knows."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.daemon import Daemon
from harness.hosts import Asking
from harness.peer import QemuGa, Talk
from harness.stall import Stall
from virtagent.host import Agent

from .figures import Figure, Figures, progress
from .ways import Bench

PART, TELL = "ping and status", "frozen to host knows"
STRETCH = 5.0  # seconds that the disk stalls a freeze
PAUSE = 0.002
POLL = 0.5


def measure(bench: Bench, figures: Figures) -> None:
    """The answers first, then the telling."""
    answers(bench, figures)
    telling(bench, figures)


def answers(bench: Bench, figures: Figures) -> None:
    rig = bench.rig
    stalled = rig.stall("ext4")
    flag = rig.area.fresh("stall")
    env = {"VIRTAGENT_STALL": f"{stalled.disk}|{stalled.fs}|{flag}"}
    daemon = rig.daemon([stalled.fs], module="harness.stalling", env=env)
    talk = Talk(rig.area, str(daemon.socket))
    agent = Agent(daemon.url)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("ping", lambda: talk.ask("guest-ping")),
        ("status", agent.status),
    ]
    seconds = 1.0 if bench.quick else STRETCH
    progress("answers while idle")
    for what, ask in ways:
        _collect(ask, 200, 60.0)
        _add(figures, f"{what}, idle", "virtagentd", _collect(ask, 1000 if not bench.quick else 200, 60.0))
    progress("answers while a freeze hangs")
    for what, ask in ways:
        flag.touch()
        freeze = Asking(daemon, "va.fsfreeze", {})
        daemon.wait_status(lambda record: record["phase"] == "freeze")
        _wait_stuck(flag)
        _add(figures, f"{what}, during a freeze", "virtagentd", _collect(ask, 1 << 30, seconds))
        stalled.release()
        assert freeze.wait() == 1, freeze.answer
        agent.thaw()
    talk.close()
    agent.close()
    daemon.stop()
    peer(bench, figures, stalled, seconds)


def peer(bench: Bench, figures: Figures, stalled: Stall, seconds: float) -> None:
    """The same of qemu-ga: it has one connection, so what is asked during a freeze is answered after it."""
    progress("answers of qemu-ga")
    peer = QemuGa(bench.rig.area)
    talk = Talk(bench.rig.area, peer.socket, 60, ours=False)
    try:
        for what, command in (("ping", "guest-ping"), ("status", "guest-fsfreeze-status")):
            ask = lambda command=command: talk.ask(command)  # noqa: E731
            _collect(ask, 200, 60.0)
            _add(figures, f"{what}, idle", "qemu-ga", _collect(ask, 1000 if not bench.quick else 200, 60.0))
        waited = []
        for _ in range(min(bench.rounds, 3)):
            stalled.stall()
            release = threading.Timer(seconds, stalled.release)
            release.start()
            freeze = threading.Thread(
                target=talk.ask, args=("guest-fsfreeze-freeze-list", {"mountpoints": [str(stalled.fs)]})
            )
            freeze.start()
            begun = time.monotonic()
            talk.send(b'{"execute": "guest-ping"}\n')
            freeze.join()
            talk.line()
            waited.append(time.monotonic() - begun)
            release.join()
            talk.ask("guest-fsfreeze-thaw")
        _add(figures, "ping, during a freeze", "qemu-ga", waited)
    finally:
        talk.close()
        peer.close()


def _wait_stuck(flag: Path) -> None:
    while flag.exists():
        time.sleep(0.01)
    time.sleep(0.1)  # until FIFREEZE has been called


def _collect(ask: Callable[[], object], most: int, seconds: float) -> list[float]:
    """Ask again and again for so long; return the seconds that each answer took."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while len(found) < most and time.monotonic() < until:
        begun = time.monotonic()
        ask()
        found.append(time.monotonic() - begun)
        time.sleep(PAUSE)
    return found


def _add(figures: Figures, what: str, way: str, seconds: list[float]) -> None:
    """Add the middle, the 99th percentile and the maximum, each a row."""
    whole = Figure(PART, what, way, "ms", tuple(1000 * one for one in seconds))
    for name, share in (("median", 0.5), ("99th percentile", 0.99), ("maximum", 1.0)):
        figures.add(PART, f"{what}: {name}", way, "ms", [whole.at(share)])


def telling(bench: Bench, figures: Figures) -> None:
    """From the state's change to FROZEN until another connection has been told."""
    progress("how soon a host knows")
    rig = bench.rig
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    runs = 20 if bench.quick else 100
    waited = _told(daemon, runs, lambda watcher, record: watcher.status(since=record.seq))
    figures.add(TELL, "waiting status call", "virtagentd", "ms", [1000 * one for one in waited])

    def poll(watcher: Agent, record: object) -> object:
        time.sleep(POLL)
        return watcher.status()

    polled = _told(daemon, 5 if bench.quick else 20, poll)
    figures.add(TELL, f"asking every {1000 * POLL:.0f} ms", "virtagentd", "ms", [1000 * one for one in polled])
    daemon.stop()


def _told(daemon: Daemon, runs: int, again: Callable[[Agent, object], object]) -> list[float]:
    """Return seconds from FROZEN to the end of the call that told so, at most: a second record tells how long ago."""
    found = []
    with Agent(daemon.url) as freezer, Agent(daemon.url) as watcher:
        for _ in range(runs):
            record = watcher.status()
            # Each run begins at another moment of the polling interval.
            late = threading.Timer(POLL * int.from_bytes(os.urandom(2), "big") / 65536, freezer.freeze)
            late.start()
            while record.state != "FROZEN":
                record = again(watcher, record)
            asked = time.monotonic()
            found.append(watcher.status().since - (time.monotonic() - asked) / 2)
            late.join()
            freezer.thaw()
    return found

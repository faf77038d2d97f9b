"""Whether those who watch delay a thaw: its time with more and more status calls that wait for news."""

from __future__ import annotations

import socket
import time

from harness.hosts import request
from harness.peer import Talk

from .figures import Figures, progress
from .scaling import PAUSE, SIZE
from .stall import take_down
from .ways import PATIENCE, Bench

PART = "thaw while others watch"
COUNTS = (0, 1, 16, 100, 1000)
EACH = 60  # calls of one connection: 64 may be open
FILE_SYSTEMS = 4


def measure(bench: Bench, figures: Figures) -> None:
    """Each count in turn in each round; the first round does not count."""
    rig = bench.rig
    made = [rig.fs("ext4", SIZE) for _ in range(FILE_SYSTEMS)]
    daemon = rig.daemon([rig.everywhere], ["--max-clients", str(COUNTS[-1] // EACH + 8)])
    talk = Talk(rig.area, str(daemon.socket), PATIENCE)
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    try:
        for turn in range(bench.rounds + 1):
            progress(f"round {turn}")
            for count in COUNTS:
                time.sleep(PAUSE)
                talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": [str(fs) for fs in made]})
                watchers = [watch(daemon.raw(PATIENCE), min(EACH, count - at)) for at in range(0, count, EACH)]
                begun = time.monotonic()
                answer = talk.ask("guest-fsfreeze-thaw")
                took = time.monotonic() - begun
                assert answer == {"return": FILE_SYSTEMS}, answer
                for watcher in watchers:
                    watcher.close()
                if turn:
                    found[count].append(took * 1000)
        for count, values in found.items():
            figures.add(PART, f"{count:,} waiting status calls: thaw", "virtagentd", "ms", values)
    finally:
        talk.close()
        daemon.stop()
        take_down(bench, made)


def watch(sock: socket.socket, count: int) -> socket.socket:
    """Let `count` calls wait for the next record on this connection."""
    waits = {"since": _seq(sock), "wait": 60}
    calls = [tagged(request("va.fsstatus", waits), number) for number in range(count)]
    sock.sendall(b"".join(calls) + tagged(request("va.ping"), count))
    _until(sock, b"dummy")  # which comes when all before it were taken
    return sock


def tagged(message: bytes, number: int) -> bytes:
    """Return the request with a tag: those are answered as they end, and none replaces an older one."""
    return message.replace(b"\r\n\r\n", b"\r\nX-Virtagent-Client-Tag: %d\r\n\r\n" % number, 1)


def _seq(sock: socket.socket) -> int:
    sock.sendall(request("va.fsstatus", {}))
    said = _until(sock, b"</methodResponse>")
    return int(said.partition(b"<name>seq</name><value><int>")[2].partition(b"<")[0])


def _until(sock: socket.socket, words: bytes) -> bytes:
    said = b""
    while words not in said:
        more = sock.recv(1 << 16)
        assert more, "the agent has hung up"
        said += more
    return said

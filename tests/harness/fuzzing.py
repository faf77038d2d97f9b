"""Hosts that send anything in any way to a real daemon, from a seed; and what that did to it.

A conversation is up to eight inputs (fakes/mutations.py) in random pieces, several conversations at once. Some read all
that they are answered, some close half, some close with everything unread, some stay and are silent.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field

from fakes.mutations import corpus, mutated
from virtagent.agent.api.methods import RPCS

from . import HarnessError
from .daemon import Daemon
from .processes import python
from .rig import Rig

AT_ONCE = 10
SILENT_MOST = 4
PATIENCE = 3.0  # seconds after which a conversation is given up, and counted: it may have asked to wait for long
SAFE = re.compile(
    r"va\.(?!shutdown|getfile)|system\.|guest-(sync|ping|info|fsfreeze|get-(time|host-name|osinfo|timezone))"
)
"""What a host may ask for here: nothing that could hurt the machine."""
_DEFECT = re.compile(r"defect|Traceback|Error\b.*\.py")


@dataclass
class Figures:
    """What was done, and what was seen of the daemon."""

    inputs: int = 0
    conversations: int = 0
    given_up: int = 0
    seconds: float = 0.0
    pings: list[float] = field(default_factory=list)
    memory_kib: int = 0
    descriptors: int = 0
    deaths: int = 0
    troubles: int = 0
    defects: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures as lines."""
        pings = sorted(self.pings) or [0.0]
        lines = [
            f"inputs: {self.inputs} in {self.conversations} conversations, {self.given_up} given up",
            f"rate: {self.inputs / max(self.seconds, 1e-9) * 60:.0f} inputs a minute, {self.seconds:.0f} s",
            f"ping: worst {pings[-1] * 1e3:.1f} ms, 99th percentile {pings[int(len(pings) * 0.99)] * 1e3:.1f} ms, "
            f"median {pings[len(pings) // 2] * 1e3:.1f} ms of {len(self.pings)}",
            f"greatest memory of the supervisor: {self.memory_kib / 1024:.1f} MiB resident",
            f"most descriptors: {self.descriptors}",
            f"deaths: {self.deaths}; troubles: {self.troubles}; defects: {len(self.defects)}",
        ]
        return "\n".join([*lines, *(f"  {line}" for line in self.defects[:20])])


class Watched:
    """A daemon with one small file system, whose log is looked through for defects."""

    def __init__(self, rig: Rig) -> None:
        self.defects: list[str] = []
        allowed = ",".join(name for name, row in RPCS.items() if row.public and SAFE.match(name))
        reads, writes = os.pipe()
        options = ["--allow-rpcs", allowed, "--hold-limit", "1", "--guest-hold-limit", "1", "--message-age", "2"]
        self.daemon: Daemon = rig.daemon([rig.fs("ext4")], options, stderr=writes)
        os.close(writes)
        self._reader = threading.Thread(target=self._read, args=(reads,), daemon=True)
        self._reader.start()

    def _read(self, reads: int) -> None:
        with open(reads, encoding="utf-8", errors="replace") as log:
            for line in log:
                if _DEFECT.search(line) and "audit: " not in line:
                    self.defects.append(line.rstrip())

    def look(self, figures: Figures) -> None:
        """Take note of memory and descriptors; raise HarnessError if it has died."""
        try:
            with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as status:
                peak = next(line for line in status if line.startswith("VmHWM"))
            figures.memory_kib = max(figures.memory_kib, int(peak.split()[1]))
            figures.descriptors = max(figures.descriptors, len(os.listdir(f"/proc/{self.daemon.pid}/fd")))
        except (OSError, StopIteration):
            figures.deaths += 1
            raise HarnessError("the daemon has died") from None


class Conversation:
    """One host: what it has yet to send, and how it ends."""

    def __init__(self, path: str, chance: random.Random, entries: list[bytes]) -> None:
        self.count = chance.choice((1, 1, 2, 4, 8))
        data = b"".join(mutated(chance, entries) for _ in range(self.count))
        cuts = sorted({chance.randint(0, len(data)) for _ in range(chance.choice((0, 0, 1, 3, 12)))})
        self.pieces = [p for p in (data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)) if p][::-1]
        self.ending = chance.choice(("read", "read", "read", "close", "unread", "silent"))
        self.sends = True
        self.until = time.monotonic() + PATIENCE
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.sock.setblocking(False)

    @property
    def events(self) -> int:
        """What to wait for."""
        sends = select.POLLOUT if self.sends else 0
        return sends | (0 if self.ending == "unread" and self.sends else select.POLLIN)

    def go_on(self) -> bool:
        """Do what goes; return whether there is more to come."""
        try:
            if self.sends:
                piece = self.pieces.pop() if self.pieces else b""  # an input may have nothing in it
                sent = self.sock.send(piece) if piece else 0
                if sent < len(piece):
                    self.pieces.append(piece[sent:])
                if self.pieces:
                    return True
                self.sends = False
                if self.ending in ("close", "unread"):
                    return False
                if self.ending == "read":
                    self.sock.shutdown(socket.SHUT_WR)
                return True
            return bool(self.sock.recv(1 << 20))
        except BlockingIOError:
            return True
        except OSError:
            return False


def fuzz(watched: Watched, seed: int, *, inputs: int, seconds: float = float("inf")) -> Figures:
    """Hold conversations until so many inputs were sent, or the seconds have passed; return the figures."""
    chance, entries, figures = random.Random(seed), corpus("wire"), Figures()
    path = str(watched.daemon.socket)
    pinger = subprocess.Popen(python("harness.pinger", path), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    begun = time.monotonic()
    talking: dict[int, Conversation] = {}
    poll = select.poll()
    looked = 0
    try:
        while figures.inputs < inputs and time.monotonic() - begun < seconds:
            while len(talking) < AT_ONCE:
                new = Conversation(path, chance, entries)
                talking[new.sock.fileno()] = new
                poll.register(new.sock.fileno(), new.events)
                figures.inputs += new.count
                figures.conversations += 1
            _turn(talking, poll, figures)
            if figures.conversations >= looked + 100:
                looked = figures.conversations
                watched.look(figures)
        watched.look(figures)
    finally:
        figures.seconds = time.monotonic() - begun
        for one in talking.values():
            one.sock.close()
        said, _ = pinger.communicate(b"")
        figures.pings = [float(line) for line in said.decode().split()]
        figures.defects = watched.defects
    figures.troubles = watched.daemon.status()["troubles"]
    return figures


def _turn(talking: dict[int, Conversation], poll: select.poll, figures: Figures) -> None:
    silent = [fd for fd, one in talking.items() if one.ending == "silent" and not one.sends]
    over = set(silent[:-SILENT_MOST])
    now = time.monotonic()
    for fd, one in talking.items():
        if now > one.until and fd not in silent:
            figures.given_up += 1
            over.add(fd)
    for fd, _ in poll.poll(100):
        one = talking[fd]
        if fd not in over and one.go_on():
            poll.modify(fd, one.events)
        else:
            over.add(fd)
    for fd in over:
        poll.unregister(fd)
        with contextlib.suppress(OSError):
            talking[fd].sock.close()
        del talking[fd]

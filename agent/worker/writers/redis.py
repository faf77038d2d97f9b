"""Redis and Valkey, from 6.2 on: CLIENT PAUSE holds writes, and ends by the clock if nobody ends it.

Without it one SET while the disk is frozen stops the whole server, with all that only read. The pause outlasts its
connection, and is as long as all limits of a freeze together: so it is on record, too, and whoever is left ends it. The
protocol (RESP) is spoken here: what is asked is an array of strings, and of the answers the first line and one text are
enough.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...api.writers import WriterConfig
from .accounts import check_secret
from .latch import Latch
from .step import STRETCH, Refused, TooSlow, Waits, wait, whole

Info = dict[str, Any]
DEFAULT = "127.0.0.1:6379"
_MARGIN = 60.0  # seconds that the pause outlasts what it may be needed for
SAID_MAX = 64 << 10
TEXTS_MAX = 64
WORDS_MAX = 300
_CONNECT_SECONDS = 5.0  # at most, of which a step may have less


def look(config: WriterConfig, until: float) -> list[str]:
    """Return where a server has its data; raise Refused."""
    redis = Redis(config, None, wait)
    try:
        return redis.look(until)
    finally:
        redis.close()


def undo(latch: Latch, until: float, _verdict: str) -> str:
    """End the pause that is on record, unless the clock has; nothing is on record afterwards. Raises Refused."""
    record = latch.record
    if record is None:
        return ""
    if time.monotonic() < record["ends"]:
        about = {name: record[name] for name in ("socket", "login", "password_file")}
        redis = Redis(WriterConfig(latch.name, "redis", **about), None, wait)
        try:
            redis.unpause(until)
        finally:
            redis.close()
    latch.clear()
    return ""


class Redis:
    """One server: a connection, and a pause of writes."""

    told: Mapping[str, str] = MappingProxyType({})

    def __init__(self, config: WriterConfig, latch: Latch | None, waits: Waits, at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._at_most = at_most or STRETCH
        self._socket: socket.socket | None = None
        self._said = b""
        self._owed = 0  # answers that are still to come
        self._paused_until = 0.0
        self._run_id = ""

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor that becomes readable if the connection ends."""
        return (self._socket.fileno(),) if self._socket is not None else ()

    def prepare(self, until: float) -> Info:
        """Connect and check. Raises Refused, Interrupted."""
        self._log_in(until)
        server = self._section("server", until)
        self._run_id = server.get("run_id", "")
        version = server.get("redis_version", "")[:WORDS_MAX]
        if [whole(number, "its version") for number in version.split(".")[:2]] < [6, 2]:
            raise Refused(f"it is {version}, and CLIENT PAUSE WRITE needs 6.2")
        kept = self._section("persistence", until)
        if kept.get("loading") == "1":
            raise Refused("it is loading its data")
        return {"version": version, "paths": self._paths(until), "aof": kept.get("aof_enabled", "")}

    def quiesce(self, until: float) -> Info:
        """Hold writes. Raises Refused, Interrupted."""
        if wait(self.fds[0], 0):  # the server may end a session that is idle (`timeout`), and a sync takes its time
            self._come_again(until)
        self.renew(until, time.monotonic() + self._at_most)
        position = self._section("replication", until)
        return {"replid": position.get("master_replid", ""), "offset": position.get("master_repl_offset", "")}

    def renew(self, until: float, ends: float) -> None:
        """Pause, or go on to, until that CLOCK_MONOTONIC second and some more. Raises Refused, Interrupted."""
        self._paused_until = ends + _MARGIN
        if self._latch is not None:  # ADR 0038
            about = {name: getattr(self._config, name) for name in ("socket", "login", "password_file")}
            self._latch.write({"type": "redis", **about, "ends": self._paused_until})
        length = self._paused_until - time.monotonic()
        self._ask(until, "CLIENT", "PAUSE", str(int(length * 1000)), "WRITE")

    def confirm(self, until: float) -> Info:
        """Show that the server is there, and that the pause has not run out. Raises Refused, Interrupted."""
        self._ask(until, "PING")
        if time.monotonic() >= self._paused_until:
            raise Refused("its pause has run out")
        return {}

    def lost(self) -> str:
        """Return that the connection has ended, "" if the server takes another one: the pause outlasts each."""
        waits, self._waits = self._waits, wait
        try:
            self._come_again(time.monotonic() + _CONNECT_SECONDS)
        except Refused as error:
            return f"the connection has ended: {error}"
        finally:
            self._waits = waits
        return ""

    def release(self, until: float, verdict: str) -> str:
        """Let writes go on: over this connection if that goes, else over another.

        Raises Refused if the pause stays on record.
        """
        wrong = ""
        if self._socket is not None:
            self._waits = wait
            try:
                if self._paused_until:
                    if not self._owed and wait(self.fds[0], 0):
                        self._come_again(until)
                    self._ask(until, "CLIENT", "UNPAUSE")
                    self._paused_until = 0.0
            except Refused as error:
                wrong = str(error)
            self.close()
        if self._latch is not None:
            if not self._paused_until:
                self._latch.clear()
            undo(self._latch, until, verdict)
        return wrong

    def unpause(self, until: float) -> None:
        """Connect, and end a pause, whoever began it; raise Refused."""
        self._log_in(until)
        self._ask(until, "CLIENT", "UNPAUSE")

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def look(self, until: float) -> list[str]:
        """Connect, and return where the server has its data; raise Refused."""
        self._log_in(until)
        return self._paths(until)

    def _log_in(self, until: float) -> None:
        config = self._config
        self._connect(config.socket or DEFAULT, until)
        if config.password_file:
            self._ask(until, "AUTH", *([config.login] if config.login else []), _password(config.password_file))

    def _come_again(self, until: float) -> None:
        """Connect anew to the server that it was; raise Refused, Interrupted."""
        self.close()
        self._said, self._owed = b"", 0
        self._log_in(until)
        if self._section("server", until).get("run_id", "") != self._run_id:
            raise Refused("the server was started anew")

    def _paths(self, until: float) -> list[str]:
        return self._ask(until, "CONFIG", "GET", "dir")[1:2]

    def _connect(self, where: str, until: float) -> None:
        seconds = min(max(until - time.monotonic(), 0.01), _CONNECT_SECONDS)
        try:
            if where.startswith("/"):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(seconds)
                self._socket.connect(where)
            else:
                host, _, port = where.rpartition(":")
                self._socket = socket.create_connection((host.strip("[]"), whole(port, "its port")), seconds)
        except (OSError, OverflowError, UnicodeError) as error:  # the last: what can be the name of no host, or no path
            raise Refused(f"{where}: {getattr(error, 'strerror', None) or error}") from None
        self._socket.setblocking(False)

    def _section(self, name: str, until: float) -> dict[str, str]:
        """Return a section of INFO."""
        text = "\n".join(self._ask(until, "INFO", name))
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def _ask(self, until: float, *words: str) -> list[str]:
        """Return the texts of an answer; raise Refused, TooSlow."""
        assert self._socket is not None
        octets = [word.encode(errors="surrogateescape") for word in words]
        command = b"*%d\r\n" % len(octets) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in octets)
        self._owed += 1
        try:
            self._socket.sendall(command)
            while self._owed > 1:  # the answer to a pause that was given up must not pass for that to its end
                self._answer(until)
            return self._answer(until)
        except OSError as error:
            raise Refused(f"the connection has ended: {error.strerror}") from None

    def _answer(self, until: float) -> list[str]:
        """Return the texts of one answer: a line, a text, or an array of these. Raises Refused, TooSlow."""
        line = self._take(until)
        self._owed -= 1
        if line[:1] != "*":
            return [self._text(until, line)]
        count = whole(line[1:], "the length of its answer")
        if count > TEXTS_MAX:
            raise Refused(f"it answers {count} texts, more than it may")
        return [self._text(until, self._take(until)) for _ in range(count)]

    def _text(self, until: float, line: str) -> str:
        kind, rest = line[:1], line[1:]
        match kind:
            case "-":
                raise Refused(rest[:WORDS_MAX])
            case "$":
                length = whole(rest, "the length of its answer")
                return self._take(until, length) if length >= 0 else ""
            case "+" | ":":
                return rest
        raise Refused(f"it answers {line[:60]!r}, which is not RESP")

    def _take(self, until: float, length: int = -1) -> str:
        """Return what comes before the end of a line, or this many bytes that such an end follows."""
        assert self._socket is not None
        seen = 0
        while True:
            at = self._said.find(b"\r\n", max(length, seen))
            if at >= 0:
                break
            seen = max(0, len(self._said) - 1)
            if max(len(self._said), length) > SAID_MAX:
                raise Refused("it says more than it may")
            if not self._waits(self._socket.fileno(), until):
                raise TooSlow("it had no answer in time")
            data = self._socket.recv(65536)
            if not data:
                raise Refused("the connection has ended")
            self._said += data
        if length >= 0 and at != length:
            raise Refused(f"its answer has {at} bytes instead of {length}")
        taken, self._said = self._said[:at], self._said[at + 2 :]
        return taken.decode(errors="replace")


def _password(path: str) -> str:
    """Return the first line of a file that only root may read. Raises Refused."""
    check_secret(path)
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.readline().rstrip("\r\n")

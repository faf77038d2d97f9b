"""MongoDB: fsyncLock flushes and holds all writes of one mongod, until as many fsyncUnlock as there were locks.

The lock outlives its session: a latch. It is taken only while nobody has locked, so that whoever undoes it knows whose
it is. The client is mongosh, which reads statements of JavaScript from its standard input, and prints a prompt before
each answer. A new session may hang while the server is locked, so the one that has locked is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...api.writers import WriterConfig
from .accounts import check_secret
from .client import LOOK_GRACE, WORDS_MAX, Client
from .latch import Latch
from .step import Refused, TooSlow, Waits, wait

DEFAULT = "127.0.0.1:27017"
Info = dict[str, Any]
_VALUE, _ERROR = "va-json ", "va-error "
_AGAIN = 0.2  # seconds between two looks whether a lock of a dead session still comes
_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"


class MongoDb:
    """One server: a session, and its lock."""

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, _at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._client: Client | None = None

    fds: tuple[int, ...] = ()  # with its session nothing is lost: the lock stays
    told: Mapping[str, str] = MappingProxyType({})

    def prepare(self, until: float) -> Info:
        """Connect and check. Raises Refused, Interrupted."""
        client = self._client = _connect(self._config, self._waits, until)
        hello = _command(client, {"hello": 1}, until)
        if hello.get("msg") == "isdbgrid":
            raise Refused("it is mongos: each mongod has a writer of its own")
        if _is_locked(client, until):
            raise Refused("somebody has locked it already (fsyncLock)")
        version = str(_command(client, {"buildInfo": 1}, until).get("version", ""))[:WORDS_MAX]
        return {"paths": _paths(client, until), "version": version}

    def quiesce(self, until: float) -> Info:
        """Lock; that is on record before. Raises Refused, Interrupted."""
        assert self._client is not None
        about = {name: getattr(self._config, name) for name in ("client", "user", "socket", "login_script")}
        self._latch.write({"type": "mongodb", **about, "client_options": list(self._config.client_options)})
        locked = _command(self._client, {"fsync": 1, "lock": True}, until)
        hello = _command(self._client, {"hello": 1}, until)
        stamp = ("lastWrite", "opTime", "ts", "$timestamp")
        seconds, number = _at(hello, *stamp, "t"), _at(hello, *stamp, "i")
        count = locked.get("lockCount", "")
        info = {"lock_count": str(_at(count, "$numberLong") or count)}
        return info | ({"optime": f"{seconds}:{number}"} if seconds is not None else {})

    def confirm(self, until: float) -> Info:
        """Show that it is still locked. Raises Refused, Interrupted."""
        assert self._client is not None
        if not _is_locked(self._client, until):
            raise Refused("it is not locked any more")
        return {}

    def renew(self, _until: float, _ends: float) -> None:
        """Do nothing: the lock has no end of its own."""

    def lost(self) -> str:
        """Return nothing: the end of the session does not end the lock."""
        return ""

    def release(self, until: float, verdict: str) -> str:
        """Unlock: in this session if that goes, else in a new one. Raises Refused if it stays on record."""
        wrong = ""
        if self._client is not None:
            self._client.waits = wait
            try:
                if self._latch.record is not None:
                    _unlock(self._client, until)
                    self._latch.clear()
            except Refused as error:
                wrong = str(error)
            self._client.close()
            self._client = None
        undo(self._latch, until, verdict)
        return wrong


def look(config: WriterConfig, until: float) -> list[str]:
    """Return where a server has its data; raise Refused."""
    client = _connect(config, wait, until)
    try:
        return _paths(client, until)
    finally:
        client.close(LOOK_GRACE)


def undo(latch: Latch, until: float, _verdict: str) -> str:
    """Unlock what is on record in a session of its own; nothing is on record afterwards. Raises Refused."""
    record = latch.record
    if record is None:
        return ""
    about = {name: record[name] for name in ("client", "user", "socket", "login_script")}
    config = WriterConfig(latch.name, "mongodb", client_options=tuple(record["client_options"]), **about)
    client = _connect(config, wait, until)
    try:
        _unlock(client, until)
    finally:
        client.close()
    latch.clear()
    return ""


def _paths(client: Client, until: float) -> list[str]:
    options = _command(client, {"getCmdLineOpts": 1}, until)
    return [str(_at(options, "parsed", "storage", "dbPath") or "/data/db")]


def _unlock(client: Client, until: float) -> None:
    """Unlock once if it is locked: whoever else locked it did so after us, and is counted. Raises Refused."""
    # A lock that was asked for in a session that has ended may still come.
    while _command(client, {"currentOp": 1, "command.fsync": {"$exists": True}}, until).get("inprog"):
        if time.monotonic() + _AGAIN >= until:
            raise TooSlow("its fsyncLock is still under way")
        client.waits(client.fd, time.monotonic() + _AGAIN)
    if _is_locked(client, until):
        _command(client, {"fsyncUnlock": 1}, until)


def _is_locked(client: Client, until: float) -> bool:
    found = _command(client, {"currentOp": 1, "command.fsync": {"$exists": True}}, until)
    return found.get("fsyncLock") is True


def _connect(config: WriterConfig, waits: Waits, until: float) -> Client:
    if config.login_script:
        check_secret(config.login_script)
    where = config.socket or DEFAULT
    if where.startswith("/") and not where.endswith(".sock"):
        raise Refused(f"{where}: its client takes only what ends in .sock for a socket")
    host = "".join(
        c if c in _PLAIN else "".join(f"%{octet:02X}" for octet in c.encode(errors="surrogateescape")) for c in where
    )
    uri = f"mongodb://{host if where.startswith('/') else where}/admin?directConnection=true"
    # Its log and its history would be written to HOME, which may be frozen.
    command = [config.client or "mongosh", "--quiet", "--norc", *config.client_options, uri]
    client = Client(command, config.user, 'print("{}")', waits, end="", env={"HOME": os.devnull})
    if config.login_script:
        try:
            _evaluate(client, f"load({json.dumps(config.login_script)})", until)
        except Refused as error:
            client.close()
            raise Refused(f"{config.login_script}: {error}") from None
    return client


def _command(client: Client, command: dict[str, Any], until: float) -> dict[str, Any]:
    """Return what an administrative command answers; raise Refused with the server's words."""
    found = _evaluate(client, f"EJSON.stringify(db.adminCommand({json.dumps(command)}))", until)
    try:
        answer = json.loads(found)
    except (ValueError, RecursionError):
        raise Refused(f"it answered {next(iter(command))} with {found!r:.100}") from None
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise Refused(f"it answered {next(iter(command))} with {found!r:.100}")
    return answer


def _evaluate(client: Client, expression: str, until: float) -> str:
    """Return the text of an expression of JavaScript. Raises Refused."""
    statement = (
        f'try {{ print("{_VALUE}" + {expression}) }} catch (e) {{ print("{_ERROR}" + JSON.stringify(e.message)) }}'
    )
    lines = client.ask(statement, until)
    for line in lines:
        if _ERROR in line:
            with contextlib.suppress(ValueError, RecursionError):
                raise Refused(str(json.loads(line.partition(_ERROR)[2]))[:300])
            raise Refused(line[:300])
        if _VALUE in line:
            return line.partition(_VALUE)[2]
    raise Refused(f"its client says {' '.join(lines)!r:.200}")


def _at(value: object, *keys: str) -> object:
    """Return what stands below these keys, None if there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value

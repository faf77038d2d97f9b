"""Drivers of writers that hear what is given, instead of a database: for parsers, without a process or a connection.

Each is asked to prepare, quiesce and confirm, until it refuses, and to let go. What it tells must fit into a report.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker import messages
from virtagent.agent.worker.writers import client, live, mongodb, mysql_family, postgresql, redis, sql
from virtagent.agent.worker.writers.drivers import DRIVERS
from virtagent.agent.worker.writers.step import Waits

UNTIL = float("inf")
_STATEMENT = ("select 1",)


def said(data: bytes) -> int:
    """Return a descriptor from which this can be read, and then the end."""
    fd = os.memfd_create("said", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def said_by_lines(data: bytes) -> int:
    """Return a descriptor from which each line is read by itself (as long as there are few), and then the end."""
    reads, writes = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(BlockingIOError):
        for line in data.splitlines(keepends=True):
            for at in range(0, len(line), messages.PIPE_BUF):
                os.write(writes, line[at : at + messages.PIPE_BUF])
    os.close(writes)
    return reads


def _always(_fd: int, _until: float) -> bool:
    return True


class Record:
    """The record of a latch, in memory."""

    name = "x"

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None

    def write(self, record: dict[str, Any]) -> None:
        self.record = record

    def clear(self) -> None:
        self.record = None


class Program:
    """A client or a program that has said all that it will, and then ended."""

    pid = 0

    def __init__(self, prints: int) -> None:
        self.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0)
        self.stdout = os.fdopen(prints, "rb", buffering=0)

    def wait(self, _seconds: float = 0) -> int:
        self.stdout.close()
        return 0


class Listening(client.Client):
    """A client whose answers are `heard`: what it prints, and a NUL byte before what it complains of."""

    heard = b""

    def __init__(self, command: Any, user: str, sentinel: str, waits: Waits, end: str = ";", env: Any = None) -> None:
        prints, _, complains = self.heard.partition(b"\0")
        self._process: Any = Program(said(prints))
        self._complaints = said(complains)
        self._sentinel, self._end, self._asked = sentinel, end, 0
        self._said, self._words, self.busy, self.refused = b"", "", False, False
        self.waits = waits
        self.fd = self._process.stdout.fileno()


class Socket:
    """A connection on which this comes, in pieces, and then its end."""

    def __init__(self, data: bytes) -> None:
        self._fd = said(data)

    def fileno(self) -> int:
        return self._fd

    def sendall(self, _data: bytes) -> None:
        pass

    def recv(self, most: int) -> bytes:
        return os.read(self._fd, min(most, 1000))

    def close(self) -> None:
        os.close(self._fd)


class _Redis(redis.Redis):
    heard = b""

    def _connect(self, where: str, until: float) -> None:
        connection: Any = Socket(self.heard)
        self._socket = connection


class _Live(live.Live):
    heard = b""

    def _start(self) -> None:
        program: Any = Program(said_by_lines(self.heard))
        complaints: Any = SimpleNamespace(last=lambda: b"what it complains of")
        self._process, self._complaints = program, complaints
        self._latch.write({"type": "live", "program": [0, 0]})


_MADE: Mapping[str, Callable[..., Any]] = {**DRIVERS, "redis": _Redis, "live": _Live}


def hear(kind: str, data: bytes) -> None:
    """Have a driver of that type do all its steps with these answers; raise Refused as soon as it refuses.

    Raises AssertionError if it tells what cannot be reported.
    """
    statements = dict.fromkeys(("prepare", "quiesce", "confirm", "release", "undo"), _STATEMENT)
    config = WriterConfig("x", kind, client="c", socket="", **(statements if kind == "sql" else {}))
    record: Any = Record()
    real, undoes = client.Client, live.undo
    users = (mongodb, mysql_family, postgresql, sql)
    Listening.heard = _Redis.heard = _Live.heard = data
    try:
        for user in users:
            user.Client = Listening  # type: ignore[misc]
        live.undo = lambda *_: ""
        driver = _MADE[kind](config, record, _always, 60.0)
        try:
            for step in (driver.prepare, driver.quiesce, driver.confirm):
                _must_fit(step(UNTIL))
        finally:
            driver.release(UNTIL, "good")
    finally:
        for user in users:
            user.Client = real  # type: ignore[misc]
        live.undo = undoes


def _must_fit(info: dict[str, Any]) -> None:
    frames = messages.encode(messages.Acted("prepare", "ok", "", info))
    assert sum(map(len, frames)) < 2 * client.SAID_MAX, f"{len(info)} members"
    assert all(isinstance(name, str) for name in info), info

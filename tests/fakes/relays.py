"""Hypervisors of the test's making: the product's relay without ssh and without a process, and what meddles with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pytest
from virtagent.host import ssh_process
from virtagent.host.relay import Relay
from virtagent.host.relay_passing import Passing
from virtagent.host.relay_records import Bad
from virtagent.host.transports import Far

Meddle = Callable[[str, str, dict[str, Any]], Any]
HANG, DIE = object(), object()


@dataclass(frozen=True)
class LATE:
    """Say it only after so many seconds."""

    seconds: float


class FakeRelays:
    """A relay for each host that is asked for, on a loop in a thread; the end of its input thaws, as the real one does.

    `meddle(host, what, answer)` may return another answer to the record `what`, bytes to say instead, HANG, DIE or
    LATE; None leaves it. No command is run, all end with 0. `clocks` says by how many seconds a host's clock is ahead.
    `asked` has each (host, what). `pass_on` may return what a guest answers to a call; None: as it does.
    """

    def __init__(self, patch: pytest.MonkeyPatch, meddle: Meddle = lambda host, what, answer: None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.clocks: dict[str, float] = {}
        self.started: list[str] = []
        self.meddle = meddle
        self.pass_on: Callable[[str], Any] = lambda text: None
        self._ours: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Future[None]] = set()
        patch.setattr(ssh_process, "spawn", self._spawn)

    def __enter__(self) -> FakeRelays:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks))  # each ends with its input, which nobody holds any more

    def _spawn(self, far: Far) -> tuple[socket.socket, None]:
        ours, theirs = socket.socketpair()
        self.started.append(far.host)
        self._ours.append(ours)
        asyncio.run_coroutine_threadsafe(self._begin(far.host, theirs), self._loop).result(30)
        return ours, None

    def lose_the_coordinator(self) -> None:
        """End all input, as the end of the process does that has begun these relays."""
        for ours in self._ours:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)

    def have_ended(self) -> None:
        """Wait until all relays have ended."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)

    async def _begin(self, host: str, sock: socket.socket) -> None:
        task = asyncio.ensure_future(self._serve(host, sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, host: str, sock: socket.socket) -> None:
        relay = Relay()
        passing = _Passing(self, lambda said: writer.write(json.dumps(said).encode() + b"\n"))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        doing: asyncio.Future[None] | None = None
        try:
            while line := await reader.readline():
                record = json.loads(line)
                if "call" in record:
                    self.asked.append((host, "call"))
                    passing.take("call", record["call"])
                    continue
                if "thaw" in record and doing is not None and not doing.done():
                    doing.cancel()
                    await asyncio.wait([doing])
                    writer.write(b'{"error": "ended by thaw"}\n')
                step = asyncio.ensure_future(self._answer(host, relay, record, writer))
                if "clock" in record or "list" in record:
                    await step
                else:
                    doing = step
        except ConnectionError:
            pass
        finally:
            writer.close()
            passing.close()
            if doing is not None:
                doing.cancel()
                await asyncio.wait([doing])
            await relay.thaw()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, host: str, relay: Relay, record: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        (what,) = record
        ahead = self.clocks.get(host, 0.0)
        self.asked.append((host, what))
        if what == "clock":
            answer: dict[str, Any] = {"clock": {"now": time.time() + ahead}}
        elif what == "list":
            answer = {"agents": record["list"].get("agents", [])}
        else:
            if "at" in record[what]:
                record[what]["at"] -= ahead
            try:
                ran = {"ran": {"code": 0, "output": ""}}  # a unit test starts no process
                answer = ran if what == "run" and relay.frozen else await relay.take(record)
            except Bad as error:
                answer = {"error": str(error)}
            if frozen := answer.get("frozen"):
                for one in (frozen, *frozen["each"].values()):
                    one.update({name: one[name] + ahead for name in ("first", "last", "at") if name in one})
        said = self.meddle(host, what, answer)
        if isinstance(said, LATE):
            await asyncio.sleep(said.seconds)
            said = None
        if said is HANG:
            return
        if said is DIE:
            writer.close()
            return
        said = answer if said is None else said
        writer.write(said if isinstance(said, bytes) else json.dumps(said).encode() + b"\n")


class _Passing(Passing):
    def __init__(self, relays: FakeRelays, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(say)
        self._relays = relays

    async def _pass_on(self, url: str, text: str, within: float) -> str:
        if (said := self._relays.pass_on(text)) is None:
            return await super()._pass_on(url, text, within)
        failed = {"error": {"class": "GenericError", "desc": str(said)}}
        answer = failed if isinstance(said, Exception) else {"return": said}
        return json.dumps({**answer, "id": json.loads(text)["id"]})

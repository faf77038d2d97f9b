"""Many agents of the test's making, on unix sockets in one thread: what a group of guests answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from virtagent.agent.api.errors import Code, Fault

from .agent_socket import GUEST_INFO, LAST, MOUNT, json_line, status_record

Answer = Callable[[int, str], Any]


class ManyAgents:
    """`count` agents that listen in `folder` until the context ends. All answer what an agent that freezes would.

    `answer(n, method)` may return something else for agent n, an exception to refuse with its text (a Fault with its
    code, too), or Ellipsis to stay silent; None is the usual. `asked` has each (n, method) in the order in which they
    came. `waiting` are those whose freeze waits in phase ready,
    until the connection ends that attends them, `ahead` the seconds by which a clock is ahead of ours.
    """

    def __init__(self, folder: Path, count: int, answer: Answer = lambda n, method: None) -> None:
        self.urls = [f"unix:{folder}/{n}" for n in range(count)]
        self.asked: list[tuple[int, str]] = []
        self.frozen: set[int] = set()
        self.waiting: set[int] = set()
        self.ahead: dict[int, float] = {}
        self._since: dict[int, float] = {}
        self.connections = 0
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ManyAgents:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._servers = []
        for n, url in enumerate(self.urls):

            async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, n: int = n) -> None:
                self.connections += 1
                attends = False
                try:
                    while (line := await reader.readline()).endswith(b"\n"):
                        if reply := self._reply(n, request := json.loads(line.lstrip(b"\xff"))):
                            writer.write(reply)
                        attends |= "attended" in str(request)
                except ConnectionError:
                    pass  # the host has hung up
                finally:
                    writer.close()
                    if attends:
                        self.waiting.discard(n)
                with contextlib.suppress(OSError):
                    await writer.wait_closed()  # else the loop may end with the transport open

            self._servers.append(await asyncio.start_unix_server(converse, url.removeprefix("unix:")))

    async def _close(self) -> None:
        for _ in range(5):  # what has connected is accepted first: a server that is closed then leaves its socket open
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
            await asyncio.sleep(0)

    def _reply(self, n: int, request: dict[str, Any]) -> bytes:
        method = request["execute"]
        if method == "guest-sync-delimited":
            return b"\xff" + json_line({"return": request["arguments"]["id"]})
        if method != "guest-info":
            self.asked.append((n, method))
        found = self._answer(n, method)
        if found is ...:
            return b""
        if found is None:
            found = self._usual(n, method, request.get("arguments"))
        if isinstance(found, Exception):
            code = found.code if isinstance(found, Fault) else Code.FREEZE_FAILED
            error = {"class": "GenericError", "desc": str(found), "code": int(code)}
            return json_line({"error": error, "id": request["id"]})
        return json_line({"return": found, "id": request["id"]})

    def _usual(self, n: int, method: str, arguments: Any) -> Any:
        match method:
            case "guest-info":
                return GUEST_INFO
            case "guest-get-time":
                return int((time.time() + self.ahead.get(n, 0)) * 1e9)
            case "va.fsfreeze" if arguments and "at" in arguments[0]:
                left = arguments[0]["at"] - time.time() - self.ahead.get(n, 0)
                if left > 300:
                    return Fault(Code.PARAMS, f"at is {left:g} s ahead, at most 300")
                if left <= 0:
                    self.frozen.add(n)
                    return 1
                self.waiting.add(n)
                return Fault(Code.IN_PROGRESS, "va.fsfreeze is still in progress after 0.0 s; the job goes on")
            case "va.fsfreeze":
                self.frozen.add(n)
                return 1
            case "va.fsgo" if n not in self.waiting:
                return Fault(Code.WRONG_STATE, "va.fsgo needs a freeze that waits in phase ready")
            case "va.fsgo":
                self.waiting.discard(n)
                self.frozen.add(n)
                self._since[n] = time.monotonic()
                return 1
            case "va.fsthaw":
                was = n in self.frozen
                self.frozen.discard(n)
                self.waiting.discard(n)
                return int(was)
            case "va.fsstatus" if n in self.waiting:
                mounts = [MOUNT | {"state": "synced"}]
                return status_record(state="INPROGRESS", code=1, seq=39, phase="ready", since=0.1, mounts=mounts)
            case "va.fsstatus" if n in self._since and n in self.frozen:
                return status_record(since=time.monotonic() - self._since[n])
            case "va.fsstatus" if n in self.frozen:
                return status_record()
            case "va.fsstatus":
                last = LAST | {"freeze_id": 17, "outcome": "thawed", "held_continuously": True}
                return status_record(state="THAWED", code=0, last=last)
            case "va.fshold":
                return 30
        return 1 if method == "va.fssync" else "dummy"

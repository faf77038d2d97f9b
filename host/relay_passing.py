"""What a relay answers whatever else is going on: the time, who is there, and calls that it passes on to its guests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from ..agent.api.errors import Fault, VirtagentError
from ..agent.wire import json_values
from . import calls
from .aio import AsyncAgent
from .errors import BadReply
from .relay_records import Bad, known, named, number, urls

CALLS_MAX = 256  # that are under way
TEXT_MAX = 4 << 20  # characters of an answer that is passed on


class Passing:
    """Answers by `say`; calls run side by side, each agent on as many connections as it has calls."""

    TAKES = ("clock", "list", "call")

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._tasks: set[asyncio.Future[None]] = set()
        self._idle: dict[str, list[AsyncAgent]] = {}
        self._closed = False

    def take(self, what: str, body: Any) -> None:
        """Answer, or begin to."""
        try:
            if not isinstance(body, dict):
                raise Bad(f"{what} is {type(body).__name__}, expected an object")
            if what == "clock":
                known(what, body, set())
                self._say({"clock": {"now": time.time()}})
            elif what == "list":
                known(what, body, {"agents"})
                self._say({"agents": urls(body["agents"] if "agents" in body else named())})
            else:
                self._begin(body)
        except Bad as error:
            self._say({"error": str(error)})

    def _begin(self, body: dict[str, Any]) -> None:
        known("call", body, {"id", "agent", "text", "within", "most"})
        match body:
            case {"id": int(name), "agent": str(agent), "text": str(text)} if not isinstance(name, bool):
                within = number("call", body, "within", 60.0)
                most = min(TEXT_MAX, int(number("call", body, "most", TEXT_MAX)))
            case _:
                raise Bad("call: has a number (id), and two strings, agent and text")
        if len(self._tasks) >= CALLS_MAX:
            self._say({"called": {"id": name, "error": f"{CALLS_MAX} calls are under way", "kind": "Unreachable"}})
            return
        task = asyncio.ensure_future(self._call(name, agent, text, within, most))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, name: int, agent: str, text: str, within: float, most: int) -> None:
        try:
            found = urls([agent])
            if len(found) != 1:
                raise Bad(f"call: {agent[:80]} is {len(found)} agents, expected one")
            said = {"text": await self._pass_on(found[0], text, within)}
            if (long := len(said["text"])) > most:
                raise BadReply(f"call: the answer has {long} characters, at most {most} are passed on")
        except (Bad, VirtagentError) as error:
            kind = "Unreachable" if isinstance(error, Bad) else type(error).__name__
            said = {"error": str(error), "kind": kind}
        self._say({"called": {"id": name, **said}})

    async def _pass_on(self, url: str, text: str, within: float) -> str:
        try:
            command = json_values.load(text.encode(), lone_surrogates=True)
            method, tag, arguments = command["execute"], command.get("id"), command.get("arguments", [])
        except Fault as fault:
            raise Bad(f"call: text is no command in JSON ({fault.text.partition(', ')[2]})") from None
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise Bad("call: text is no command in JSON") from None
        if not isinstance(method, str):
            raise Bad("call: text is no command in JSON (execute is no string)")
        params = arguments if isinstance(arguments, list) else [arguments]
        idle = self._idle.setdefault(url, [])
        try:
            one = idle.pop() if idle else AsyncAgent(url)
        except ValueError as error:
            raise Bad(f"call: {error}") from None
        try:
            value = await one.carry_out(calls.call(method, *params), within)
            answer: dict[str, Any] = {"return": value}
        except Fault as fault:
            answer = {"error": {"class": "GenericError", "desc": fault.text, "code": int(fault.code)}}
        finally:
            idle.append(one)
            if self._closed:
                one.close()
        return json.dumps({**answer, "id": tag})

    def close(self) -> None:
        """Give up what is under way."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for idle in self._idle.values():
            for one in idle:
                one.close()

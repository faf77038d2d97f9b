"""virtagentctl relay: on a hypervisor, its guests frozen together as a coordinator says on the standard input.

Records are JSON, one a line, in both directions; each that comes in has one member, which says what is to be done, and
is answered by one record. The end of the input thaws, whatever is going on, and so does a signal: nothing stays frozen
because a coordinator died. If the relay dies, the guests' own hold limits thaw them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from ..agent.api.errors import VirtagentError
from . import exits, signals
from .aio import AsyncAgent
from .barrier import FREEZE_SECONDS, PREPARE_SECONDS, Barrier
from .errors import FreezeBroken
from .group import CONNECTS, GroupFreeze
from .holding import Freeze, notes
from .options import PROG
from .processes import end, gone, output_of
from .relay_records import Bad, known, number, urls, wanted
from .snapshot import environment

T = TypeVar("T")

RECORD_MAX = 1 << 20  # bytes of one line
LINES_MAX = 16  # that were read and are not taken yet


class Relay:
    """The guests of one hypervisor, and what has been done with them: nothing, prepared, frozen."""

    def __init__(self) -> None:
        self._agents: dict[str, AsyncAgent] = {}
        self._barriers: dict[str, Barrier] = {}
        self._extenders: list[asyncio.Future[None]] = []
        self._began = 0.0
        self.broken = False
        """Whether any guest was not held until its thaw was asked for."""

    @property
    def frozen(self) -> bool:
        """Whether all guests are frozen."""
        return bool(self._barriers) and all(barrier.frozen for barrier in self._barriers.values())

    async def take(self, record: Any) -> dict[str, Any]:
        """Carry out one record; return the answer. Raises Bad if it is none, or not now."""
        if not isinstance(record, dict) or len(record) != 1:
            raise Bad("a record is an object with one member: prepare, freeze, run or thaw")
        ((what, body),) = record.items()
        if what not in self._TAKES:
            raise Bad(f"{what[:40]!r} is none of prepare, freeze, run, thaw")
        if not isinstance(body, dict):
            raise Bad(f"{what} is {type(body).__name__}, expected an object")
        return await self._TAKES[what](self, body)

    # -- the records

    async def _prepare(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._barriers:
            raise Bad("prepare: guests are prepared already; thaw first")
        known("prepare", body, {"agents", "options", "within"})
        chosen = wanted(body.get("options", {}))
        within = number("prepare", body, "within", PREPARE_SECONDS)
        those = urls(body.get("agents"))
        try:
            self._agents = {url: AsyncAgent(url) for url in those}
        except ValueError as error:
            raise Bad(f"prepare: {error}") from None
        self._barriers = {url: Barrier(url, chosen) for url in those}
        gate = asyncio.Semaphore(CONNECTS)

        async def prepare(url: str) -> None:
            async with gate:
                await self._agents[url].ping()
            await self._agents[url].play(self._barriers[url].prepare(within))

        failed = await self._all(prepare)
        return {"failed": failed} if failed else {"ready": len(those)}

    async def _freeze(self, body: dict[str, Any]) -> dict[str, Any]:
        known("freeze", body, {"at", "within"})
        if not self._barriers or self.frozen:
            raise Bad("freeze: " + ("all are frozen already" if self._barriers else "no guest is prepared"))
        at = number("freeze", body, "at", None)
        within = number("freeze", body, "within", FREEZE_SECONDS)
        freezes: dict[str, Freeze] = {}

        async def freeze(url: str) -> None:
            freezes[url] = await self._agents[url].play(self._barriers[url].go(None, within))

        if at is not None:
            await asyncio.sleep(at - time.time())  # by the clock here: no guest's can make the others stand still
        if failed := await self._all(freeze):
            return {"failed": failed}
        self._began = time.monotonic()
        instants = [self._instant(barrier) for barrier in self._barriers.values()]
        if any(barrier.extends for barrier in self._barriers.values()):
            self._extenders = [
                asyncio.ensure_future(self._agents[url].extend(barrier, apart=False))
                for url, barrier in self._barriers.items()
            ]
        count = sum(freeze.count for freeze in freezes.values())
        return {"frozen": {"count": count, "guests": len(freezes), "first": min(instants), "last": max(instants)}}

    @staticmethod
    def _instant(barrier: Barrier) -> float:
        """Return the time of day, by this machine's clock, at which the guest was frozen by its own figures."""
        at = barrier.begun_by_agent if barrier.begun_by_agent >= 0 else barrier.begun
        return time.time() - (time.monotonic() - at)

    async def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        known("run", body, {"command", "timeout"})
        words = body.get("command")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise Bad("run: command is the list of a program and its arguments")
        timeout = number("run", body, "timeout", None)
        if not self.frozen:
            raise Bad("run: not all guests are frozen")
        freezes = {url: barrier.freeze for url, barrier in self._barriers.items()}
        env = environment(GroupFreeze(freezes, skew=-1, skew_by_agents=-1))
        try:
            process = subprocess.Popen(
                words,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return {"ran": {"code": -1, "output": "", "error": getattr(error, "strerror", "") or str(error)}}
        assert process.stdout is not None
        watched = os.pidfd_open(process.pid)
        output = asyncio.ensure_future(output_of(process.stdout.fileno()))
        late = True
        try:
            late = not await gone(watched, timeout)
        finally:
            if late:
                await end(process.pid, watched)
            os.close(watched)
            await asyncio.wait([output], timeout=1)  # a process that left the session may keep the pipe
            output.cancel()
            await asyncio.wait([output])
            process.stdout.close()
            code = process.poll()
        text, cut = (b"", 0) if output.cancelled() else output.result()
        ran: dict[str, Any] = {"code": -1 if code is None else code, "output": text.decode(errors="backslashreplace")}
        if cut:
            ran["output_left_out"] = cut
        if late:
            ran["error"] = f"it took longer than {timeout:g} s and was ended"
        return {"ran": ran}

    async def _thaw(self, body: dict[str, Any]) -> dict[str, Any]:
        known("thaw", body, set())
        return await self.thaw()

    _TAKES: Mapping[str, Callable[[Relay, dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]] = {
        "prepare": _prepare,
        "freeze": _freeze,
        "run": _run,
        "thaw": _thaw,
    }

    # -- all together

    async def thaw(self) -> dict[str, Any]:
        """Thaw all, or call off what waits; return who held and what broke which freeze."""
        barriers, agents = self._barriers, self._agents
        extenders, self._extenders = self._extenders, []
        for extender in extenders:
            extender.cancel()
        window = -1.0
        if self.frozen:
            window = time.monotonic() - self._began
        broken: dict[str, str] = {}
        held: list[str] = []

        async def undo(url: str, barrier: Barrier) -> None:
            was = barrier.frozen
            try:
                if was:
                    await agents[url].play(barrier.end())
                    held.append(url)
                elif barrier.prepared:
                    await agents[url].play(barrier.call_off())
            except FreezeBroken as error:
                broken[url] = "; ".join([str(error), *notes(error)])

        try:
            await asyncio.gather(*(undo(url, barrier) for url, barrier in barriers.items()))
        finally:
            self._close()
        self.broken = self.broken or bool(broken)
        return {"held": held, "broken": broken, "window": window}

    async def _all(self, doing: Callable[[str], Awaitable[None]]) -> dict[str, str]:
        """Do it for all guests; if one fails, call all off. Return why, by URL."""
        tasks = {url: asyncio.ensure_future(doing(url)) for url in self._barriers}
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.wait(tasks.values())
        errors = {url: _error(task) for url, task in tasks.items()}
        failed = {url: "; ".join([str(error), *notes(error)]) for url, error in errors.items() if error is not None}
        if failed or any(task.cancelled() for task in tasks.values()):
            undone = await self.thaw()
            failed |= {url: why for url, why in undone["broken"].items() if url not in failed}
        return failed

    def _close(self) -> None:
        for agent in self._agents.values():
            agent.close()
        self._agents, self._barriers = {}, {}


def _error(task: asyncio.Future[None]) -> VirtagentError | None:
    if task.cancelled() or (error := task.exception()) is None:
        return None
    if not isinstance(error, VirtagentError):
        raise error
    return error


# -- the conversation


class _Input:
    """The records on the standard input, read by a thread, since it may be a file, a pipe or a terminal.

    A line that is too long is handed on cut, so that it is no JSON; half a line at the end is nothing: who wrote it is
    gone. None is the end.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(LINES_MAX)
        threading.Thread(target=self._read, daemon=True, name="virtagent relay input").start()

    def _read(self) -> None:
        line, tail = b"", b""
        while True:
            try:
                data = os.read(0, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            *whole, tail = (tail + data).split(b"\n")
            for one in whole:
                self._room.acquire()
                self._put((line + one)[: RECORD_MAX + 1])
                line = b""
            if len(tail) > RECORD_MAX:
                line, tail = tail[: RECORD_MAX + 1], b""
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.lines.put_nowait, line)

    async def next(self) -> bytes | None:
        """Return the next line, None at the end."""
        line = await self.lines.get()
        self._room.release()
        return line


async def _converse(relay: Relay, lines: _Input, say: Callable[[dict[str, Any]], None]) -> None:
    """Answer each record until the input ends. A thaw ends what is going on, and so does the end of the input."""
    doing: asyncio.Task[None] | None = None
    what = ""

    async def carry_out(record: Any) -> None:
        try:
            say(await relay.take(record))
        except Bad as error:
            say({"error": str(error)})

    coming = asyncio.ensure_future(lines.next())
    try:
        while True:
            await asyncio.wait([coming, *([doing] if doing else [])], return_when=asyncio.FIRST_COMPLETED)
            if doing is not None and doing.done():
                doing.result()  # a defect is told
                doing = None
            if not coming.done():
                continue
            line = coming.result()
            if line is None:
                return
            coming = asyncio.ensure_future(lines.next())
            try:
                if len(line) > RECORD_MAX:
                    raise Bad(f"a line is over {RECORD_MAX} bytes")
                record = json.loads(line)
            except (Bad, ValueError, RecursionError) as error:
                say({"error": str(error) if isinstance(error, Bad) else "a line is no JSON"})
                continue
            asked = next(iter(record), "") if isinstance(record, dict) else ""
            if doing is not None:
                if asked != "thaw" or what == "thaw":
                    say({"error": f"{what} is not answered yet" + ("" if what == "thaw" else "; only thaw ends that")})
                    continue
                await _cancelled(doing)
                say({"error": f"{what} was ended by thaw"})
            doing, what = asyncio.ensure_future(carry_out(record)), asked
    finally:
        coming.cancel()
        if doing is not None and what == "thaw":
            await asyncio.wait([doing])
        elif doing is not None:
            await _cancelled(doing)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def main() -> int:
    """Serve one coordinator on the standard input and output; return the exit code."""
    return asyncio.run(_main())


async def _main() -> int:
    relay = Relay()
    task = asyncio.current_task()
    assert task is not None
    interrupted = 0
    deaf = False

    def note(number: int) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = number
            task.cancel()

    def say(record: dict[str, Any]) -> None:
        nonlocal deaf
        try:
            print(json.dumps(record), flush=True)
        except OSError:
            deaf = True
            task.cancel()  # nobody hears the answers any more

    signals.on_signal(note)
    try:
        await _converse(relay, _Input(), say)
    except asyncio.CancelledError:
        if not interrupted and not deaf:
            raise
    left = await relay.thaw()
    if left["held"] or left["broken"]:
        with contextlib.suppress(OSError):
            print(f"{PROG}: nobody asked for the thaw; it is done: {json.dumps(left)}", file=sys.stderr)
    if interrupted:
        return exits.INTERRUPTED
    if relay.broken:
        return exits.BROKEN
    return exits.FAILED if deaf or left["held"] else exits.DONE

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
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from ..agent.api import records
from ..agent.api.errors import Fault, VirtagentError
from .aio import AsyncAgent
from .barrier import FREEZE_SECONDS, PREPARE_SECONDS, READY_SECONDS, Barrier
from .errors import FreezeBroken, NotThawed
from .group import CONNECTS, GroupFreeze
from .holding import Freeze, notes
from .processes import end, gone, output_of
from .relay_records import Bad, known, named, number, urls, wanted
from .snapshot import environment

T = TypeVar("T")

EACH_MAX = 4 << 10  # bytes of JSON that are told of one guest
WORDS_MAX = 400  # characters of what went wrong with one guest
SILENCE = 20.0  # seconds after which a coordinator that wants holds extended counts as gone


class Relay:
    """The guests of one hypervisor, and what has been done with them: nothing, prepared, frozen."""

    def __init__(self) -> None:
        self._agents: dict[str, AsyncAgent] = {}
        self._barriers: dict[str, Barrier] = {}
        self._extenders: list[asyncio.Future[None]] = []
        self._thawing: asyncio.Task[dict[str, Any]] | None = None
        self._not_thawed: list[str] = []
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
        if self._thawing is not None:
            await self.thaw()  # after a freeze that has failed
        if self._barriers:
            raise Bad("prepare: guests are prepared already; thaw first")
        known("prepare", body, {"agents", "options", "within"})
        if "agents" not in body:
            body = {**body, "agents": named()}
        chosen = wanted(body.get("options", {}))
        within = number("prepare", body, "within", PREPARE_SECONDS)
        those = urls(body.get("agents"))
        try:
            self._agents = {url: AsyncAgent(url) for url in those}
        except ValueError as error:
            raise Bad(f"prepare: {error}") from None
        self._barriers = {url: Barrier(url, chosen) for url in those}
        gate, until = asyncio.Semaphore(CONNECTS), time.monotonic() + within

        async def prepare(url: str) -> None:
            async with gate:
                with contextlib.suppress(Fault):  # to refuse it is an answer, too
                    await self._agents[url].ping()
            await self._agents[url].play(self._barriers[url].prepare(until - time.monotonic()))

        if not (failed := await self._all(prepare)):
            return {"ready": len(those)}
        undone = await self.thaw()
        return {"failed": {**undone["broken"], **failed}}

    async def _freeze(self, body: dict[str, Any]) -> dict[str, Any]:
        known("freeze", body, {"at", "within", "each"})
        if not self._barriers or self.frozen:
            raise Bad("freeze: " + ("all are frozen already" if self._barriers else "no guest is prepared"))
        at = number("freeze", body, "at", None)
        within = number("freeze", body, "within", FREEZE_SECONDS)
        freezes: dict[str, Freeze] = {}

        async def freeze(url: str) -> None:
            freezes[url] = await self._agents[url].play(self._barriers[url].go(None, within))

        if at is not None and at - time.time() > READY_SECONDS:
            raise Bad(f"freeze: at is {at - time.time():.0f} s ahead, at most {READY_SECONDS:g}: guests wait no longer")
        if at is not None:
            await asyncio.sleep(at - time.time())  # ADR 0037: by the clock here, not a guest's
        if failed := await self._all(freeze):
            self._begin_thaw()  # ends later: the guests of other hosts are not to stand still until then
            return {"failed": failed}
        self._began = time.monotonic()
        instants = [self._instant(barrier) for barrier in self._barriers.values()]
        if any(barrier.extends for barrier in self._barriers.values()):
            self._extenders = [
                asyncio.ensure_future(self._agents[url].extend(barrier, apart=False))
                for url, barrier in self._barriers.items()
            ]
        count = sum(freeze.count for freeze in freezes.values())
        frozen: dict[str, Any] = {"count": count, "guests": len(freezes), "first": min(instants), "last": max(instants)}
        if body.get("each"):
            ats = dict(zip(self._barriers, instants, strict=True))
            frozen["each"] = {url: _frozen(self._barriers[url], ats[url]) for url in self._barriers}
        return {"frozen": frozen}

    @property
    def extends(self) -> bool:
        """Whether holds are being extended, which is for a coordinator that is there."""
        return bool(self._extenders)

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
        known("thaw", body, {"each"})
        barriers = self._barriers
        undone = await self.thaw()
        if not body.get("each"):
            return undone
        each = {url: _ended(one) for url, one in barriers.items() if one.frozen}
        return {**undone, "each": each, "not_thawed": self._not_thawed}

    _TAKES: Mapping[str, Callable[[Relay, dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]] = {
        "prepare": _prepare,
        "freeze": _freeze,
        "run": _run,
        "thaw": _thaw,
    }

    # -- all together

    async def thaw(self) -> dict[str, Any]:
        """Thaw all, or call off what waits; return who held and what broke which freeze.

        It goes on if this is cancelled; what came of it is for the next one to return.
        """
        undone = await asyncio.shield(self._begin_thaw())
        self._thawing = None
        return undone

    async def leave(self) -> dict[str, Any]:
        """Thaw all; return what `thaw` does, less what is known since a freeze has failed, which was told."""
        told = self._thawing is not None
        undone = await self.thaw()
        if not told:
            return undone
        return {**undone, "held": [], "broken": {url: undone["broken"][url] for url in self._not_thawed}}

    def _begin_thaw(self) -> asyncio.Task[dict[str, Any]]:
        if self._thawing is None:
            self._thawing = asyncio.ensure_future(self._undo())
        return self._thawing

    async def _undo(self) -> dict[str, Any]:
        barriers, agents, window = self._barriers, self._agents, -1.0
        if self.frozen:
            window = time.monotonic() - self._began
        self._agents, self._barriers, self._not_thawed = {}, {}, []
        extenders, self._extenders = self._extenders, []
        for extender in extenders:
            extender.cancel()
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
                broken[url] = _words(error)
                unsure = isinstance(error, NotThawed)
                self.broken = self.broken or was or unsure
                if unsure:
                    self._not_thawed.append(url)

        found = await asyncio.gather(*(undo(*one) for one in barriers.items()), return_exceptions=True)
        for agent in agents.values():
            agent.close()
        for one in found:
            if one is not None:
                raise one
        return {"held": held, "broken": broken, "window": window}

    async def _all(self, doing: Callable[[str], Awaitable[None]]) -> dict[str, str]:
        """Do it for all guests until one fails; return why, by URL. Then `thaw` is to follow."""
        tasks = {url: asyncio.ensure_future(doing(url)) for url in self._barriers}
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.wait(tasks.values())
        errors = {url: _error(task) for url, task in tasks.items()}
        return {url: _words(error) for url, error in errors.items() if error is not None}


def _error(task: asyncio.Future[None]) -> VirtagentError | None:
    if task.cancelled() or (error := task.exception()) is None:
        return None
    if not isinstance(error, VirtagentError):
        raise error
    return error


def _words(error: VirtagentError) -> str:
    """Return what went wrong with a guest, cut: its words must not be what a whole host is hung up on for."""
    return "; ".join([str(error), *notes(error)])[:WORDS_MAX]


def _frozen(barrier: Barrier, at: float) -> dict[str, Any]:
    """Return what is told of a guest that is frozen."""
    freeze = barrier.freeze
    found: dict[str, Any] = {
        "count": freeze.count,
        "freeze_id": freeze.freeze_id,
        "at": at,
        "hold_left": freeze.hold_seconds,
    }
    if barrier.cannot_wait:
        found["cannot_wait"] = barrier.cannot_wait[:WORDS_MAX]
    return _short(found | {"mounts": list(freeze.mounts)}, found)


def _ended(barrier: Barrier) -> dict[str, Any]:
    """Return what is told of a freeze that has ended: its `last`, without what is too much; {} if it is not known."""
    last = barrier.freeze.last
    if last is None:
        return {}
    whole = records.dump(last)
    without = {"learnt": [], "more_learnt": last.more_learnt + len(last.learnt), "writers": []}
    return _short(whole, whole | without | {"error": last.error[:400]})


def _short(whole: dict[str, Any], less: dict[str, Any]) -> dict[str, Any]:
    return whole if len(json.dumps(whole)) <= EACH_MAX else less

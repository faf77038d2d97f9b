"""A host's hold on one agent: typed calls, each with a time-out of its own. Never trusts the guest.

`Agent` blocks and `AsyncAgent` awaits; what they say to the agent is one and the same (`link.py`, `holding.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import calls
from .calls import Call
from .errors import FreezeBroken, HostError
from .holding import Freeze, Holding, Pause, Script, Wanted, note
from .link import Link, Speech
from .methods import Methods
from .transports import DEFAULT_URL, parse
from .wire import AsyncWire, Wire, drive, drive_async
from .xmlrpc import REPLY_MAX

T = TypeVar("T")

EXTEND_SECONDS = 10.0


class _Stop(Exception):
    """The block has ended; nothing is to be extended any more."""


class Agent(Methods):
    """One agent by its URL. It connects at the first call and keeps the connection; calls of threads follow each other.

    `timeout` is how many seconds one call may take, connecting and waiting included; a wait longer than that is
    shortened. Without it a call may take ANSWER seconds and, on top, the wait that it asks the agent for.
    `protocol` is "json" or "xmlrpc" if it need not be found out.
    Every call raises Fault (the agent refused or failed), a HostError (Unreachable, Lost, TimedOut, BadReply,
    Unsupported), or Unsendable if an argument cannot travel. The constructor raises ValueError if `url` is none.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        reply_max: int = REPLY_MAX,
        protocol: str = "auto",
    ) -> None:
        self.url = url
        endpoint = parse(url)
        self._options: dict[str, Any] = {
            "connect_timeout": connect_timeout,
            "reply_max": reply_max,
            "protocol": protocol,
        }
        self._link = Link(
            endpoint,
            timeout=timeout,
            connect_timeout=connect_timeout,
            reply_max=reply_max,
            speech=Speech(protocol),
        )
        self._wire = Wire(endpoint)
        self._lock = threading.Lock()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            self._link.open = False
            self._wire.close()

    @property
    def stock(self) -> bool:
        """Whether the other end, as of the last call, is a stock qemu-ga."""
        return self._link.stock

    def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Return what the call returns; `timeout` in the place of the agent's."""
        with self._lock:
            return self._wire.run(self._link, self._link.perform(call, timeout))

    @contextlib.contextmanager
    def frozen(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        strict: bool = False,
        hold: float | None = None,
        extend: bool = False,
        sync_limit: float | None = None,
        freeze_limit: float | None = None,
        thaw_wait: float = calls.THAW_WAIT,
    ) -> Iterator[Freeze]:
        """Hold the guest frozen while the block runs, and thaw it whatever happens.

        Raises FreezeBroken after the block if the guest was not held frozen all the time, also NotThawed if it could
        not be told to thaw. An exception of the block comes first, with that as a note. `hold` is the agent's limit in
        seconds; `extend` has it extended as long as the block runs, from a thread with a connection of its own.
        """
        wanted = Wanted(include, exclude, strict, hold, sync_limit, freeze_limit)
        holding = Holding(self.url, wanted, thaw_wait=thaw_wait)
        freeze = self._play(holding.begin())
        stop = threading.Event()
        extender = threading.Thread(target=self._extend, args=(holding, stop), daemon=True, name="virtagent hold")
        try:
            if extend:
                extender.start()
            yield freeze
        except BaseException as error:
            stop.set()
            try:
                self._play(holding.end())
            except FreezeBroken as broken:
                note(error, f"besides: {broken}")
            raise
        else:
            stop.set()
            self._play(holding.end())
        finally:
            if extender.ident is not None:
                extender.join()

    def _play(self, script: Script[T]) -> T:
        never = threading.Event()

        def take(step: Call[Any] | Pause) -> Any:
            return never.wait(step.seconds) if isinstance(step, Pause) else self.carry_out(step)

        return drive(script, take)

    def _extend(self, holding: Holding, stop: threading.Event) -> None:
        # A channel that takes one client at a time has no second connection: then it is done on the first.
        alone = False
        with Agent(self.url, **self._options) as own, contextlib.suppress(_Stop):

            def take(step: Call[Any] | Pause) -> Any:
                if isinstance(step, Pause):
                    if stop.wait(step.seconds):
                        raise _Stop
                    return None
                nonlocal alone
                try:
                    if not alone:
                        return own.carry_out(step, EXTEND_SECONDS / 4)
                except HostError:
                    alone = True
                if stop.is_set():
                    raise _Stop
                return self.carry_out(step, EXTEND_SECONDS)

            drive(holding.extension(), take)


class AsyncAgent(Methods):
    """One agent by its URL, for asyncio: like `Agent`, and each method is awaited. Calls of tasks follow each other."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        reply_max: int = REPLY_MAX,
        protocol: str = "auto",
    ) -> None:
        self.url = url
        endpoint = parse(url)
        self._options: dict[str, Any] = {
            "connect_timeout": connect_timeout,
            "reply_max": reply_max,
            "protocol": protocol,
        }
        self._link = Link(
            endpoint,
            timeout=timeout,
            connect_timeout=connect_timeout,
            reply_max=reply_max,
            speech=Speech(protocol),
        )
        self._wire = AsyncWire(endpoint)
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> AsyncAgent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._link.open = False
        self._wire.close()

    @property
    def stock(self) -> bool:
        """Whether the other end, as of the last call, is a stock qemu-ga."""
        return self._link.stock

    async def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Return what the call returns; `timeout` in the place of the agent's."""
        async with self._lock:
            return await self._wire.run(self._link, self._link.perform(call, timeout))

    @contextlib.asynccontextmanager
    async def frozen(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        strict: bool = False,
        hold: float | None = None,
        extend: bool = False,
        sync_limit: float | None = None,
        freeze_limit: float | None = None,
        thaw_wait: float = calls.THAW_WAIT,
    ) -> AsyncIterator[Freeze]:
        """Hold the guest frozen while the block runs: see `Agent.frozen`. The hold is extended by a task."""
        wanted = Wanted(include, exclude, strict, hold, sync_limit, freeze_limit)
        holding = Holding(self.url, wanted, thaw_wait=thaw_wait)
        freeze = await self.play(holding.begin())
        extender = asyncio.ensure_future(self.extend(holding)) if extend else None
        try:
            yield freeze
        except BaseException as error:
            try:
                await self._end(holding, extender)
            except FreezeBroken as broken:
                note(error, f"besides: {broken}")
            raise
        else:
            await self._end(holding, extender)

    async def _end(self, holding: Holding, extender: asyncio.Future[None] | None) -> None:
        if extender is not None:
            extender.cancel()
        try:
            await self.play(holding.end())
        finally:
            if extender is not None:
                await asyncio.wait([extender])

    async def play(self, script: Script[T]) -> T:
        """Run a script of `holding`."""

        async def take(step: Call[Any] | Pause) -> Any:
            return await (asyncio.sleep(step.seconds) if isinstance(step, Pause) else self.carry_out(step))

        return await drive_async(script, take)

    async def extend(self, holding: Holding, *, apart: bool = True) -> None:
        """Extend the hold until this is cancelled; `apart` from other calls, on a connection of its own."""
        # A channel that takes one client at a time has no second connection: then it is done on the first.
        alone = not apart
        async with AsyncAgent(self.url, **self._options) as own:

            async def take(step: Call[Any] | Pause) -> Any:
                if isinstance(step, Pause):
                    return await asyncio.sleep(step.seconds)
                nonlocal alone
                try:
                    if not alone:
                        return await own.carry_out(step, EXTEND_SECONDS / 4)
                except HostError:
                    alone = True
                return await self.carry_out(step, EXTEND_SECONDS)

            await drive_async(holding.extension(), take)

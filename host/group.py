"""One consistent point over many guests: all sync, and when every guest is flushed, all freeze together.

`AsyncAgentGroup` runs one task for each guest on the caller's event loop; `AgentGroup` blocks, and has an event loop in
a thread of its own. Any refusal, overrun or lost connection thaws all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..agent.api.errors import Fault, VirtagentError
from .aio import AsyncAgent
from .calls import Texts, texts
from .errors import FreezeBroken, GroupFailed, NotThawed
from .following import Following
from .holding import INTERRUPTS, Freeze, Holding, Options, Wanted, note, notes
from .methods import AgentOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

FREEZE_SECONDS = 60.0
CONNECTS = 32  # simultaneously
_NAMED = 3


@dataclass(slots=True)
class GroupFreeze:
    """All guests of a group, frozen, by their URLs. Times are in seconds.

    `skew` is the time between the first and the last answer that a guest is frozen; `skew_by_agents` is that from the
    agents' own figures, -1 unless all give them. After the block `window` is how long all were frozen, from the last
    answer to the first request to thaw, and `broken` says why a snapshot is worthless; None if it is good.
    """

    guests: dict[str, Freeze]
    skew: float
    skew_by_agents: float
    window: float = -1
    broken: FreezeBroken | None = None


def refuse_twice(urls: Sequence[str]) -> None:
    """Raise ValueError if a URL stands twice."""
    for url, count in Counter(urls).items():
        if count > 1:
            raise ValueError(f"{url!r} stands twice in the group")


class AsyncAgentGroup:
    """Many agents, by their URLs. Raises ValueError if a URL is invalid, or is there twice.

    `connects` is how many connections are opened simultaneously; the other options are those of `AsyncAgent`.
    """

    def __init__(self, urls: Texts, *, connects: int = CONNECTS, **options: Unpack[AgentOptions]) -> None:
        self.urls = texts("urls", urls)
        if not self.urls:
            raise ValueError("a group of no agents; name one at least")
        refuse_twice(self.urls)
        self._agents = [AsyncAgent(url, **options) for url in self.urls]
        self._connects, self._options = connects, options

    @contextlib.asynccontextmanager
    async def frozen(
        self,
        include: Texts = (),
        exclude: Texts = (),
        *,
        freeze_wait: float = FREEZE_SECONDS,
        **options: Unpack[Options],
    ) -> AsyncIterator[GroupFreeze]:
        """Hold all guests frozen while the block runs, and thaw them whatever happens.

        Raises GroupFailed if a guest cannot be synced, or not all can be frozen within `freeze_wait` seconds; then all
        are thawed, and it names those of which that is not known. Raises FreezeBroken after the block if a guest was
        not held frozen all the time. The rest is as in `Agent.frozen`; each record that `progress` gets has the `url`
        of its guest.
        """
        wanted = Wanted(include, exclude, **options)
        holdings = [Holding(url, wanted) for url in self.urls]
        extenders: list[asyncio.Future[None]] = []
        following = self._following(wanted)
        await following.begin()
        try:
            group = await self._begin(wanted, holdings, freeze_wait)
            for url, one in group.guests.items():
                following.add(url, one.status)
            if wanted.extend:
                extenders = [
                    asyncio.ensure_future(agent.extend(holding, apart=False))
                    for agent, holding in zip(self._agents, holdings, strict=True)
                ]
            try:
                yield group
            except BaseException as error:
                try:
                    await self._end(group, holdings, extenders)
                except FreezeBroken as broken:
                    note(error, broken)
                raise
            else:
                await self._end(group, holdings, extenders)
            finally:
                for url, one in group.guests.items():
                    following.add(url, one.ended)
                    one.not_followed = following.failed.get(url, "")
        finally:
            await _cancelled(extenders)
            await following.end()
            for agent in self._agents:
                agent.close()

    async def freeze(
        self,
        include: Texts = (),
        exclude: Texts = (),
        *,
        freeze_wait: float = FREEZE_SECONDS,
        **options: Unpack[Options],
    ) -> GroupFreeze:
        """Freeze all guests, and leave them frozen until each is thawed or its hold ends; nothing extends the hold.

        Raises GroupFailed as `frozen` does, and then all are thawed.
        """
        wanted = Wanted(include, exclude, **options)
        following = self._following(wanted)
        await following.begin()
        try:
            group = await self._begin(wanted, [Holding(url, wanted) for url in self.urls], freeze_wait)
            for url, one in group.guests.items():
                following.add(url, one.status)
            return group
        finally:
            await following.end()
            for agent in self._agents:
                agent.close()

    def _following(self, wanted: Wanted) -> Following:
        watching = [AsyncAgent(url, **self._options) for url in self.urls] if wanted.progress else []
        return Following(watching, wanted.progress)

    async def _begin(self, wanted: Wanted, holdings: list[Holding], within: float) -> GroupFreeze:
        """Connect to all, sync all, and when all are flushed freeze all."""
        gate = asyncio.Semaphore(self._connects)

        async def connect(n: int) -> None:
            async with gate:
                with contextlib.suppress(Fault):  # to refuse it is an answer, too
                    await self._agents[n].ping()

        await self._together("connect", connect)
        await self._together("sync", lambda n: self._agents[n].carry_out(wanted.sync()))
        return report(await self._freeze(holdings, within), holdings)

    async def _freeze(self, holdings: list[Holding], within: float) -> list[Freeze]:
        try:
            return await self._together("freeze", lambda n: self._agents[n].play(holdings[n].begin()), within)
        except BaseException as error:
            # Guests that were not frozen yet have undone their freeze themselves.
            broken = await self._thaw([n for n, holding in enumerate(holdings) if holding.frozen], holdings)
            broken += [holding.undo_failed for holding in holdings if holding.undo_failed is not None]
            for one in broken:
                note(error, one)
            if isinstance(error, GroupFailed) and not any(isinstance(one, NotThawed) for one in broken):
                raise GroupFailed(f"{error}; all were thawed", error.causes) from error.__cause__
            raise

    async def _end(self, group: GroupFreeze, holdings: list[Holding], extenders: list[asyncio.Future[None]]) -> None:
        for extender in extenders:
            extender.cancel()
        broken = await self._thaw(range(len(holdings)), holdings)
        group.window = min(h.ended for h in holdings) - max(h.begun for h in holdings)
        if broken:
            more = f" (and {len(broken) - _NAMED} more)" if len(broken) > _NAMED else ""
            group.broken = FreezeBroken("; ".join(str(one) for one in broken[:_NAMED]) + more)
            raise group.broken from broken[0]

    async def _thaw(self, which: Iterable[int], holdings: list[Holding]) -> list[FreezeBroken]:
        """Thaw these guests; return the freezes that were broken."""
        ends = [self._agents[n].play(holdings[n].end()) for n in which]
        found = await asyncio.gather(*ends, return_exceptions=True)
        for one in found:
            if one is not None and not isinstance(one, FreezeBroken):
                raise one
        return [one for one in found if isinstance(one, FreezeBroken)]

    async def _together(
        self, what: str, doing: Callable[[int], Coroutine[Any, Any, T]], within: float | None = None
    ) -> list[T]:
        """Return the result of `doing` for each guest; if one fails or is late, cancel all and raise GroupFailed."""
        tasks = [asyncio.ensure_future(doing(n)) for n in range(len(self.urls))]
        try:
            _, late = await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            failed = {url: error for url, task in zip(self.urls, tasks, strict=True) if (error := _error(task))}
            await _cancelled(tasks)
        if not failed and not late:
            return [task.result() for task in tasks]
        causes = {url: error for url, error in failed.items() if isinstance(error, VirtagentError)}
        if len(causes) < len(failed):
            raise next(error for error in failed.values() if error not in causes.values())
        done = "" if what == "freeze" else "; nothing was frozen"
        if not failed:
            slow = [url for url, task in zip(self.urls, tasks, strict=True) if task in late]
            raise GroupFailed(f"{slow[0]} did not {what} within {within:g} s{done}", {})
        url, error = next(iter(causes.items()))
        more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
        raise GroupFailed(f"{url}{more} did not {what} ({error}){done}", causes) from error


def _error(task: asyncio.Future[Any]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel the tasks that have not ended, and wait until they have, even if this is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    interrupted: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def report(freezes: Sequence[Freeze], holdings: Sequence[Holding]) -> GroupFreeze:
    """Return the freeze of all guests, each of which is frozen."""
    begun = [holding.begun for holding in holdings]
    by_agents = [holding.begun_by_agent for holding in holdings]
    return GroupFreeze(
        {holding.url: freeze for holding, freeze in zip(holdings, freezes, strict=True)},
        skew=max(begun) - min(begun),
        skew_by_agents=max(by_agents) - min(by_agents) if min(by_agents) >= 0 else -1,
    )


class AgentGroup:
    """Many agents, for a caller that blocks: see `AsyncAgentGroup`. It uses one thread for all."""

    def __init__(self, urls: Texts, *, connects: int = CONNECTS, **options: Unpack[AgentOptions]) -> None:
        self._connects, self._options = connects, options
        self.urls = AsyncAgentGroup(urls, connects=connects, **options).urls

    @contextlib.contextmanager
    def frozen(
        self,
        include: Texts = (),
        exclude: Texts = (),
        *,
        freeze_wait: float = FREEZE_SECONDS,
        **options: Unpack[Options],
    ) -> Iterator[GroupFreeze]:
        """Hold all guests frozen while the block runs: see `AsyncAgentGroup.frozen`, whose options it takes."""
        group = AsyncAgentGroup(self.urls, connects=self._connects, **self._options)
        with _Task(group.frozen(include, exclude, freeze_wait=freeze_wait, **options)) as task:
            try:
                yield task.begun()
            except BaseException as error:
                worse = task.end()
                if isinstance(worse, asyncio.CancelledError):
                    for one in notes(worse):
                        note(error, one)
                elif worse is not None and worse is not error:
                    note(error, worse)
                raise
            else:
                if (broken := task.end()) is not None:
                    raise broken


class _Task:
    """A task that holds a group frozen from `begun` until `end`, on an event loop in a thread of its own.

    The task is inside `frozen` from the first frozen guest on, so it thaws whenever the caller's thread is interrupted.
    """

    def __init__(self, frozen: contextlib.AbstractAsyncContextManager[GroupFreeze]) -> None:
        self._frozen = frozen
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="virtagent group")
        self._begun: concurrent.futures.Future[GroupFreeze] = concurrent.futures.Future()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> _Task:
        self._thread.start()
        self._done = asyncio.run_coroutine_threadsafe(self._hold(), self._loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hold(self) -> BaseException | None:
        self._task = asyncio.current_task()
        try:
            async with self._frozen as group:
                self._begun.set_result(group)
                await self._ended.wait()
        except BaseException as error:  # noqa: BLE001 - a cancellation, too: `end` returns it with its notes
            return error
        return None

    def begun(self) -> GroupFreeze:
        """Wait until all are frozen; raise what prevents it."""
        either: list[concurrent.futures.Future[Any]] = [self._begun, self._done]
        concurrent.futures.wait(either, return_when=concurrent.futures.FIRST_COMPLETED)
        if not self._begun.done() and (error := self._done.result()) is not None:
            raise error
        return self._begun.result(0)

    def end(self) -> BaseException | None:
        """Thaw all, wait until they are thawed, and return what was raised.

        An exception of a signal handler cancels what is in progress, and is raised afterwards.
        """
        self._loop.call_soon_threadsafe(self._leave)
        interrupted: BaseException | None = None
        interrupts = 0
        while not self._done.done():
            try:
                concurrent.futures.wait([self._done])
            except BaseException as error:
                interrupts += 1
                if interrupts > INTERRUPTS:
                    raise
                interrupted = error
                self._loop.call_soon_threadsafe(self._cancel)
        if interrupted is not None:
            raise interrupted
        return self._done.result()

    def _leave(self) -> None:
        if self._begun.done():
            self._ended.set()
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

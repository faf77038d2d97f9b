"""A group of guests for a caller that blocks: `AsyncAgentGroup` on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .barrier import FREEZE_SECONDS
from .calls import Texts
from .group import CONNECTS, AsyncAgentGroup, GroupFreeze
from .holding import INTERRUPTS, Options, note, notes
from .methods import AgentOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
        max_skew: float | None = None,
        **options: Unpack[Options],
    ) -> Iterator[GroupFreeze]:
        """Hold all guests frozen while the block runs: see `AsyncAgentGroup.frozen`, whose options it takes."""
        group = AsyncAgentGroup(self.urls, connects=self._connects, **self._options)
        with _Task(group.frozen(include, exclude, freeze_wait=freeze_wait, max_skew=max_skew, **options)) as task:
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

"""A live picture of what happens in guests. Imported only where there is a terminal, and rich.

Each guest is watched on a connection of its own, in addition to the one that freezes. On a channel that takes only one
client that is impossible, and the picture says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from rich.live import Live

from ..agent.api.errors import Fault
from ..agent.api.records import Status
from . import screen, signals
from .aio import AsyncAgent
from .calls import Call
from .errors import HostError
from .watch import watch_script

T = TypeVar("T")

REDRAW = 0.5  # seconds; in the picture times go on counting between two records


class Picture:
    """A view on a terminal, drawn when it changes and every REDRAW seconds. `close` it; twice does no harm."""

    def __init__(self, view: screen.GuestsView, stream: Any, *, transient: bool) -> None:
        self.view = view
        # It must not redirect what is printed meanwhile.
        self._live = Live(
            view,
            console=screen.console(stream),
            auto_refresh=False,
            transient=transient,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",  # what has scrolled away cannot be redrawn; the last picture is drawn in full
        )
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Picture:
        self._live.start(refresh=True)
        self._tasks.append(asyncio.ensure_future(self._draw()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def put(self, url: str, record: Status) -> None:
        """Take a new record of a guest."""
        self.view.put(url, record)
        self._changed.set()

    def watch(self, urls: Sequence[str]) -> None:
        """Watch these guests until this is closed."""
        self._tasks += [asyncio.ensure_future(self._watch(url)) for url in urls]

    async def close(self) -> None:
        """End the watching, and release the terminal."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with contextlib.suppress(OSError):  # the terminal is gone
            self._live.stop()

    async def _draw(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._live.refresh()
                again = asyncio.get_running_loop().call_later(REDRAW, self._changed.set)
                await self._changed.wait()
                again.cancel()
                self._changed.clear()

    async def _watch(self, url: str) -> None:
        try:
            async with AsyncAgent(url) as agent:
                await agent.play(watch_script(partial(self.put, url), None, math.inf))
        except (Fault, HostError) as error:
            self.view.blind[url] = str(error)
            self._changed.set()


def watch(url: str, timeout: float | None, until: str | None, deadline: float, put: Callable[[Status], None]) -> None:
    """Draw what happens in one guest; `put` also gets each record. Raises as `watch_script` does."""

    async def run() -> None:
        async with AsyncAgent(url, timeout=timeout) as agent:
            await agent.status()  # an agent that is not there is reported without a picture
            async with Picture(screen.GuestsView(), None, transient=False) as picture:

                def both(record: Status) -> None:
                    put(record)
                    picture.put(url, record)

                await agent.play(watch_script(both, until, deadline))

    signals.interruptible(run())


def during_call(url: str, title: str, call: Call[T], timeout: float | None) -> T:
    """Draw what happens in a guest during the call, then remove the picture; return the value of the call."""

    async def run() -> T:
        async with (
            AsyncAgent(url, timeout=timeout) as agent,
            Picture(screen.GuestsView(title), None, transient=True) as picture,
        ):
            picture.watch([url])
            return await agent.carry_out(call)

    return signals.interruptible(run())

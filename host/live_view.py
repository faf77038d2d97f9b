"""What goes on in guests, drawn on a terminal while it does. Imported only where there is one, with rich.

Each guest is followed on a connection of its own, beside the one that freezes. On a channel that takes only one client
nothing is seen of it, and the picture says so.
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

REDRAW = 0.5  # seconds; what is counted goes on in the picture without a word from the agent


class Picture:
    """A board on a terminal, drawn when it changes and from time to time. `close` it; twice does no harm."""

    def __init__(self, board: screen.GuestsView, stream: Any, *, transient: bool) -> None:
        self.board = board
        # What is printed meanwhile is none of its business: the streams stay what they are.
        self._live = Live(
            board,
            console=screen.console(stream),
            auto_refresh=False,
            transient=transient,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",  # what has left the screen above cannot be drawn over; the last is drawn in full
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
        self.board.put(url, record)
        self._changed.set()

    def follow(self, urls: Sequence[str]) -> None:
        """Follow these guests, until this is closed."""
        self._tasks += [asyncio.ensure_future(self._follow(url)) for url in urls]

    async def close(self) -> None:
        """End what follows, and leave the terminal to others."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with contextlib.suppress(OSError):  # a terminal that is gone has no picture to end
            self._live.stop()

    async def _draw(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._live.refresh()
                again = asyncio.get_running_loop().call_later(REDRAW, self._changed.set)
                await self._changed.wait()
                again.cancel()
                self._changed.clear()

    async def _follow(self, url: str) -> None:
        try:
            async with AsyncAgent(url) as agent:
                await agent.play(watch_script(partial(self.put, url), None, math.inf))
        except (Fault, HostError) as error:
            self.board.blind[url] = str(error)
            self._changed.set()


def watch(url: str, timeout: float | None, until: str | None, deadline: float, put: Callable[[Status], None]) -> None:
    """Draw what goes on in one guest; `put` gets each record, too. Raises as `watch_script` does."""

    async def run() -> None:
        async with AsyncAgent(url, timeout=timeout) as agent:
            await agent.status()  # one that is not there is told without a picture
            async with Picture(screen.GuestsView(), None, transient=False) as picture:

                def both(record: Status) -> None:
                    put(record)
                    picture.put(url, record)

                await agent.play(watch_script(both, until, deadline))

    signals.interruptible(run())


def during_call(url: str, title: str, call: Call[T], timeout: float | None) -> T:
    """Draw how a guest fares while the call lasts; return what it returns, and leave nothing of the picture."""

    async def run() -> T:
        async with (
            AsyncAgent(url, timeout=timeout) as agent,
            Picture(screen.GuestsView(title), None, transient=True) as picture,
        ):
            picture.follow([url])
            return await agent.carry_out(call)

    return signals.interruptible(run())

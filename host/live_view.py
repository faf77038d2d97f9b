"""A live picture of what happens in guests. Imported only where there is a terminal, and rich.

Each guest is watched on a connection of its own, in addition to the one that freezes. On a channel that takes only one
client that is impossible, and the picture says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.live import Live

from . import screen
from .guest_status import GuestStatus

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

    @property
    def blind(self) -> Mapping[str, str]:
        """Why nothing is known about a guest, by its URL."""
        return self.view.blind

    @blind.setter
    def blind(self, found: Mapping[str, str]) -> None:
        self.view.blind = found

    def put(self, record: GuestStatus) -> None:
        """Take a new record of a guest."""
        self.view.put(record.url, record)
        self._changed.set()

    async def make_room(self) -> bool:
        """Remove the picture; return True."""
        await self.close()
        return True

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

"""A picture on a terminal of what happens in guests, while it happens. Imported only where there is a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TextIO

from ..agent.api import timeofday
from ..agent.api.text import printable
from . import picture, text
from .drawing import Drawing
from .guest_status import GuestStatus

REDRAW = 0.5  # seconds; in the picture times go on counting between two records
DELAY = 0.25  # seconds; what takes less is not drawn
_REST = 4  # times as long as a drawing took nothing is drawn: that of 10,000 guests must not delay their freeze


class Picture:
    """A picture of the guests at `urls` while `doing`, a command, is under way. `close` it; twice does no harm.

    That of `watch` is left with q, and leaves a line for each guest behind.
    """

    def __init__(self, stream: TextIO, doing: str, urls: Sequence[str]) -> None:
        self.blind: Mapping[str, str] = {}
        self._stream = stream
        self._doing = doing
        self._urls = urls
        self._watches = doing == "watch"
        self._drawing = Drawing(stream)
        self._records: dict[str, tuple[GuestStatus, float]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Future[None] | None = None
        self._keys = contextlib.ExitStack()

    async def __aenter__(self) -> Picture:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        if self._watches:
            self._keys.enter_context(_keys(asyncio.current_task()))
        self._task = asyncio.ensure_future(self._draw())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def put(self, record: GuestStatus) -> None:
        """Take a new record of a guest."""
        self._records[record.url] = record, time.monotonic()
        self._changed.set()

    async def make_room(self) -> bool:
        """Remove the picture; return True."""
        await self.close()
        return True

    async def close(self) -> None:
        """Draw no more, and release the terminal."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
        self._keys.close()
        with contextlib.suppress(OSError):  # the terminal is gone
            self._drawing.close()
            if self._watches:
                for line in picture.last_words(self._now(), _clock):
                    print(printable(line), file=self._stream, flush=True)

    async def _draw(self) -> None:
        if not self._watches:
            await asyncio.sleep(DELAY)
        with contextlib.suppress(OSError):
            while True:
                self._changed.clear()
                began = time.monotonic()
                width, height = self._drawing.size()
                lines = picture.draw(
                    self._now(), doing=self._doing, width=width, height=height, clock=_clock, blind=self.blind
                )
                self._drawing.draw(lines)
                await asyncio.sleep(_REST * (time.monotonic() - began))
                again = asyncio.get_running_loop().call_later(REDRAW, self._changed.set)
                await self._changed.wait()
                again.cancel()

    def _now(self) -> list[GuestStatus]:
        """Return the records as they would be now if only time had passed since."""
        urls = dict.fromkeys((*self._urls, *self._records))  # of another host, the guests are known by their records
        known = [self._records[url] for url in urls if url in self._records]
        return [text.aged(record, time.monotonic() - at) for record, at in known]


@contextlib.contextmanager
def _keys(task: asyncio.Task[None] | None) -> Iterator[None]:
    """Cancel the task when somebody types q. Keys are not echoed meanwhile."""
    try:
        number = sys.stdin.fileno()
        ours = os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours or task is None:
        yield
        return
    before = termios.tcgetattr(number)
    loop = asyncio.get_running_loop()

    def typed() -> None:
        keys = os.read(number, 64)
        if not keys:
            loop.remove_reader(number)
        if b"q" in keys.lower():
            task.cancel()

    tty.setcbreak(number)
    loop.add_reader(number, typed)
    try:
        yield
    finally:
        loop.remove_reader(number)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(number, termios.TCSADRAIN, before)


def _clock(left: float) -> str:
    return timeofday.clock(time.time() + left)

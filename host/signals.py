"""The signals that end virtagentctl in good order while an event loop runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_signal(note: Callable[[int], None]) -> None:
    """Make the running loop call `note` with the number of each signal, except signals that are ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, note, number)


def interruptible(doing: Coroutine[Any, Any, T]) -> T:
    """Return what `doing` comes to; a signal cancels it, so that it is undone, and is then a Ctrl-C with its number."""
    interrupted = 0

    async def run() -> list[T]:
        task = asyncio.current_task()
        assert task is not None

        def note(number: int) -> None:
            nonlocal interrupted
            interrupted = interrupted or number
            task.cancel()

        on_signal(note)
        try:
            return [await doing]
        except asyncio.CancelledError:
            return []

    # Not by asyncio.run alone: that of Python 3.10 raises KeyboardInterrupt amid the loop, and tells tracebacks of it.
    found = asyncio.run(run())
    if interrupted or not found:
        raise KeyboardInterrupt(interrupted)
    return found[0]

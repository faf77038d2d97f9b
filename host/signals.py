"""The signals that end virtagentctl in good order while an event loop runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_signal(note: Callable[[int], None]) -> None:
    """Make the running loop call `note` with the number of each signal, except signals that are ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, note, number)

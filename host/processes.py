"""The process of a command, and its end with all that belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

OUTPUT_MAX = 64 << 10  # bytes of a command's output that are kept
GRACE = 2.0  # seconds from SIGTERM to SIGKILL, and then until the end; the guests are frozen meanwhile


async def gone(watched: int, timeout: float | None) -> bool:
    """Wait until the process has ended; return whether it has ended in time."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(watched, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), timeout)
    except asyncio.TimeoutError:
        return ended.is_set()
    finally:
        loop.remove_reader(watched)
    return True


async def end(leader: int, watched: int) -> None:
    """End the command and its whole session. The leader is not reaped meanwhile, so that its number stays taken."""
    _signal(leader, signal.SIGTERM)
    await gone(watched, GRACE)
    _signal(leader, signal.SIGKILL)
    await gone(watched, GRACE)


def _signal(session: int, number: signal.Signals) -> None:
    """Signal all processes of the session: a shell gives each job a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, number)
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session and os.getpgid(pid) != session:
                os.kill(pid, number)


async def output_of(number: int) -> tuple[bytes, int]:
    """Return what is written to a pipe until it ends, at most OUTPUT_MAX, and how many bytes were left out."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    os.set_blocking(number, False)
    loop.add_reader(number, ready.set)
    kept, cut = b"", 0
    try:
        while True:
            await ready.wait()
            ready.clear()
            try:
                data = os.read(number, OUTPUT_MAX)
            except BlockingIOError:
                continue
            if not data:
                return kept, cut
            room = OUTPUT_MAX - len(kept)
            kept, cut = kept + data[:room], cut + max(0, len(data) - room)
            ready.set()
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        return kept, cut
    finally:
        loop.remove_reader(number)

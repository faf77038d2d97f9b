"""The conversation of virtagentctl relay: records come on the standard input, and are answered on the standard output.

`clock`, `list` and `call` are answered whatever else is going on; the others are taken one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import exits, signals
from .options import PROG
from .relay import SILENCE, Relay
from .relay_passing import Passing
from .relay_records import Bad, loaded
from .transports import RECORD_MAX

LINES_MAX = 16  # that were read and are not taken yet


class _Input:
    """The records on the standard input, read by a thread, since it may be a file, a pipe or a terminal.

    A line that is too long is handed on cut, so that it is no JSON; half a line at the end is nothing: who wrote it is
    gone. None is the end.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(LINES_MAX)
        threading.Thread(target=self._read, daemon=True, name="virtagent relay input").start()

    def _read(self) -> None:
        line, tail = b"", b""
        while True:
            try:
                data = os.read(0, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            *whole, tail = (tail + data).split(b"\n")
            for one in whole:
                self._room.acquire()
                self._put((line + one)[: RECORD_MAX + 1])
                line = b""
            if len(tail) > RECORD_MAX:
                line, tail = tail[: RECORD_MAX + 1], b""
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.lines.put_nowait, line)

    async def next(self) -> bytes | None:
        """Return the next line, None at the end."""
        line = await self.lines.get()
        self._room.release()
        return line


async def _converse(relay: Relay, lines: _Input, say: Callable[[dict[str, Any]], None]) -> None:
    """Answer each record until the input ends. A thaw ends what is going on, and so does the end of the input."""
    doing: asyncio.Task[None] | None = None
    what = ""

    async def carry_out(record: Any) -> None:
        try:
            say(await relay.take(record))
        except Bad as error:
            say({"error": str(error)})

    coming = asyncio.ensure_future(lines.next())
    passing = Passing(say)
    heard = time.monotonic()
    try:
        while True:
            left = heard + SILENCE - time.monotonic() if relay.extends else None
            both = [coming, *([doing] if doing else [])]
            await asyncio.wait(both, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if doing is not None and doing.done():
                doing.result()  # a defect is told
                doing, heard = None, time.monotonic()  # whoever waited for the answer had nothing to say
            if not coming.done() and relay.extends and time.monotonic() >= heard + SILENCE:
                return  # its connection may be cut without a word; holds are not extended for nobody
            if not coming.done():
                continue
            line = coming.result()
            if line is None:
                return
            coming, heard = asyncio.ensure_future(lines.next()), time.monotonic()
            try:
                if len(line) > RECORD_MAX:
                    raise Bad(f"a line is over {RECORD_MAX} bytes")
                record = loaded(line)
            except Bad as error:
                say({"error": str(error)})
                continue
            asked = next(iter(record), "") if isinstance(record, dict) else ""
            if asked in passing.TAKES and len(record) == 1:
                passing.take(asked, record[asked])
                continue
            if doing is not None:
                if asked != "thaw" or what == "thaw":
                    say({"error": f"{what} is not answered yet" + ("" if what == "thaw" else "; only thaw ends that")})
                    continue
                await _cancelled(doing)
                if doing.cancelled():
                    say({"error": f"{what} was ended by thaw"})
                else:
                    doing.result()  # it ended by itself just then, and is answered
            doing, what = asyncio.ensure_future(carry_out(record)), asked
    finally:
        coming.cancel()
        passing.close()
        if doing is not None and what == "thaw":
            await asyncio.wait([doing])
        elif doing is not None:
            await _cancelled(doing)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def main() -> int:
    """Serve one coordinator on the standard input and output; return the exit code."""
    return asyncio.run(_main())


async def _main() -> int:
    relay = Relay()
    task = asyncio.current_task()
    assert task is not None
    interrupted = 0
    deaf = False

    def note(number: int) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = number
            task.cancel()

    def say(record: dict[str, Any]) -> None:
        nonlocal deaf
        try:
            print(json.dumps(record), flush=True)
        except OSError:
            deaf = True
            task.cancel()  # nobody hears the answers any more

    signals.on_signal(note)
    try:
        await _converse(relay, _Input(), say)
    except asyncio.CancelledError:
        if not interrupted and not deaf:
            raise
    except BaseException:
        await relay.thaw()  # a defect of ours is told, and costs no guest its hold
        raise
    left = await relay.leave()
    if left["held"] or left["broken"]:
        with contextlib.suppress(OSError):
            print(f"{PROG}: nobody asked for the thaw; it is done: {json.dumps(left)}", file=sys.stderr)
    if interrupted:
        return exits.INTERRUPTED
    if relay.broken:
        return exits.BROKEN
    return exits.FAILED if deaf or left["held"] else exits.DONE

"""Watching a guest by long polls: the agent answers when something has changed. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..agent.api.records import Status
from . import calls
from .errors import BadReply, TimedOut
from .holding import Pause, Script


def watch_script(put: Callable[[Status], None], until: str | None, deadline: float, apart: float = 0.0) -> Script[None]:
    """Give each record of the agent to `put`, until the state is `until`; raise TimedOut at the deadline.

    Sometimes a record comes without a change. With `apart`, so many seconds at least are between two.
    """
    record: Status = yield calls.status()
    put(record)
    while record.state != until:
        began = time.monotonic()
        if began >= deadline:
            raise TimedOut(f"the state is still {record.state}; watch again, or longer")
        if apart:
            yield Pause(apart)
            began = time.monotonic()
        wait = min(calls.STATUS_WAIT, deadline - began)
        later: Status = yield calls.status(since=record.seq, wait=wait)
        if later.seq == record.seq and time.monotonic() - began < wait / 10:
            raise BadReply("the agent does not wait for a change; use `status` instead, or see that it is a virtagentd")
        record = later
        put(record)

"""What happens in guests, as JSON lines: `--events`.

Each line is an object with `t` (time of day, UTC), `event`, and, but for `result`, the URL of the `agent`:

    phase     a state or phase began: freeze_id, state, phase, limit_left
    mount     something was done to a file system: mountpoint, device, fstype, level, state, errno, error, seconds, ...
    progress  at most once a second: dirty_bytes, flushed_bytes, bytes_per_second, eta
    held      all is frozen: freeze_id, frozen (how many), hold_left
    end       a freeze has ended: the members of `last` (records.Last), and `summary`, the same in one sentence; or a
              `sync`: outcome (synced, failed), synced (how many), sync_seconds, synced_bytes, error; -1 is unknown

A sync freezes nothing, and its freeze_id is 0.
    result    the last line: what --json prints, and `exit`, the exit code
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, TextIO

from ..agent.api import records, summary
from ..agent.api.records import Status
from ..agent.api.states import FreezeState, MountState, Phase
from . import text
from .guest_status import GuestStatus

APART = 1.0  # seconds between two lines of progress of a guest
_FROZEN, _THAWED = FreezeState.FROZEN.name, FreezeState.THAWED.name
_OF_SYNC = (Phase.PREPARE.value, Phase.SYNC.value)
_OF_PLAN = ("aliases", "more_aliases", "reason")  # members of a mount that do not change, and may be long


def changes(before: Status | None, after: Status) -> Iterator[dict[str, Any]]:
    """Yield the events that lead from one record to the next; `before` is None for the first of all."""
    freeze = {"freeze_id": 0 if _is_sync(after) else after.freeze_id}
    if before is None or _where(before) != _where(after):
        yield {"event": "phase", **freeze, "state": after.state, "phase": after.phase, "limit_left": after.limit_left}
    earlier = {mount.mountpoint: mount for mount in before.mounts} if before else {}
    # The record of a guest at rest still has what its last freeze did.
    old_news = _rests(after) and (before is None or _is_sync(before) or _rests(before))
    for mount in () if old_news else after.mounts:
        old = earlier.get(mount.mountpoint)
        if mount.state != MountState.LEFT_OUT.value and (old is None or _done(old) != _done(mount)):
            data = records.dump(mount)
            yield {"event": "mount", **freeze, **{name: one for name, one in data.items() if name not in _OF_PLAN}}
    if after.progress != records.Progress() and (before is None or before.progress != after.progress):
        yield {"event": "progress", **freeze, **records.dump(after.progress)}
    if after.state == _FROZEN and (before is None or (before.state, before.freeze_id) != (_FROZEN, after.freeze_id)):
        frozen = sum(mount.state == MountState.FROZEN.value for mount in after.mounts)
        yield {"event": "held", **freeze, "frozen": frozen, "hold_left": after.hold_left}
    if before is not None and after.last is not None and after.last != before.last:
        yield {"event": "end", **records.dump(after.last), "summary": summary.sentence(after.last)}


def _rests(status: Status) -> bool:
    return status.state == _THAWED and not status.phase


def _is_sync(status: Status) -> bool:
    return status.state == _THAWED and status.phase in _OF_SYNC


def _where(status: Status) -> tuple[object, ...]:
    return status.state, status.phase, status.freeze_id


def _done(mount: records.MountStatus) -> tuple[object, ...]:
    return mount.state, mount.errno, mount.error


class EventLines:
    """Prints the events of guests on a stream, as they come. A stream that is gone is written to no more."""

    def __init__(self, stream: TextIO) -> None:
        self.blind: Mapping[str, str] = {}
        self._stream: TextIO | None = stream
        self._last: dict[str, GuestStatus] = {}
        self._progressed: dict[str, float] = {}
        self._syncs: dict[str, tuple[float, int]] = {}  # when it began, and what it has written

    async def __aenter__(self) -> EventLines:
        return self

    async def __aexit__(self, *_about: object) -> None:
        pass

    def put(self, record: GuestStatus) -> None:
        """Take a new record."""
        before = self._last.get(record.url)
        self._last[record.url] = record
        if _is_sync(record) and record.since >= 0:
            began = time.monotonic() - record.since if record.url not in self._syncs else self._syncs[record.url][0]
            self._syncs[record.url] = began, record.progress.flushed_bytes
        for event in changes(before, record):
            if event["event"] == "progress":
                now = time.monotonic()
                if now - self._progressed.get(record.url, -APART) < APART:
                    continue
                self._progressed[record.url] = now
            self._print({"event": event.pop("event"), "agent": record.url, **event})

    def sync_ended(self, url: str, synced: int, error: str = "") -> None:
        """Tell what came of a sync: of so many file systems, or why it failed."""
        began, flushed = self._syncs.pop(url, (None, -1))
        seconds = -1.0 if began is None else time.monotonic() - began
        said = {"outcome": "failed" if error else "synced", "synced": synced, "sync_seconds": seconds}
        self._print({"event": "end", "agent": url, "freeze_id": 0, **said, "synced_bytes": flushed, "error": error})

    async def make_room(self) -> bool:
        """Go on: a command does not write where these lines go."""
        return False

    def _print(self, event: Mapping[str, Any]) -> None:
        if self._stream is not None:
            try:
                emit(self._stream, event)
            except OSError:  # whoever reads it is gone; what is done in the guest must go on to its end
                self._stream = None


def emit(stream: TextIO, event: Mapping[str, Any]) -> None:
    """Print one event. Raises OSError."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(text.to_json({"t": now, **event}), file=stream, flush=True)


def result(stream: TextIO, data: Mapping[str, Any], code: int) -> None:
    """Print the last event of a run. Raises OSError."""
    emit(stream, {"event": "result", "exit": code, **data})

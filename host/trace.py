"""What happened in a snapshot, and when, as spans of OpenTelemetry. No I/O.

The phases have the lengths that the agents counted by their own clocks (`totals.phase_seconds`), one after another, and
are put where the host learned that all was frozen. What an agent does not tell, as a stock qemu-ga, has no span.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..agent import __version__
from ..agent.api.records import MountStatus, Status, Totals
from ..agent.api.states import MountState, Phase
from .guest_status import GuestStatus
from .snapshot import Report

_PHASES = [phase.value for phase in Phase if phase not in (Phase.RUN, Phase.KEEP)]
_DONE = {
    MountState.SYNCED.value: Phase.SYNC.value,
    MountState.FROZEN.value: Phase.FREEZE.value,
    MountState.THAWED.value: Phase.THAW.value,
}
_WRITERS = (Phase.PREPARE.value, Phase.QUIESCE.value, Phase.RELEASE.value)
_NO_TOTALS = Totals()
INTERNAL, CLIENT = 1, 3  # SpanKind of opentelemetry/proto/trace/v1/trace.proto
OK, ERROR = 1, 2  # StatusCode
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
Span = dict[str, Any]


class Followed:
    """What one agent has told, as it came: the first record, the last, and when each step was seen to be done."""

    def __init__(self) -> None:
        self.first: Status | None = None
        self.first_at = 0
        self.last: Status | None = None
        self.steps: dict[tuple[str, str], tuple[MountStatus, int]] = {}

    def note(self, record: Status, at: int) -> None:
        """Take note of a record that came at that time (nanoseconds since the epoch)."""
        if self.first is None:
            self.first, self.first_at = record, at
        before = {mount.mountpoint: mount.state for mount in self.last.mounts} if self.last else {}
        for mount in record.mounts:
            phase = _DONE.get(mount.state)
            if phase is not None and before.get(mount.mountpoint) != mount.state:
                self.steps[mount.mountpoint, phase] = mount, at
        self.last = record

    def seconds(self) -> dict[str, float]:
        """Return how long each phase took, by the agent's own clock; empty if it does not tell."""
        if self.first is None or self.last is None or self.first.phase:
            return {}
        before, after = ((record.totals or _NO_TOTALS).phase_seconds for record in (self.first, self.last))
        return {name: after[name] - before.get(name, 0.0) for name in _PHASES if name in after}

    def of(self, phase: str) -> Iterator[tuple[MountStatus, float, int]]:
        """Yield each file system that had this done to it, for how many seconds, and when that was seen, 0 if not."""
        steps = {name: found for (name, which), found in self.steps.items() if which == phase}
        for mount in self.last.mounts if self.last else ():
            told = {Phase.SYNC.value: mount.sync_seconds, Phase.FREEZE.value: mount.freeze_seconds}
            seconds = told.get(phase, -1.0)
            step, seen = steps.pop(mount.mountpoint, (None, 0))
            if seconds >= 0 or step is not None:
                yield mount, seconds if seconds >= 0 or step is None else step.seconds, seen
        for step, seen in steps.values():
            yield step, step.seconds, seen


class Try:
    """One try of the snapshot; times are in nanoseconds since the epoch."""

    def __init__(self) -> None:
        self.root, self.command = secrets.token_hex(8), secrets.token_hex(8)
        self.began = self.ended = time.time_ns()
        self.followed: dict[str, Followed] = {}
        self.report = Report()
        self.wrong = ""


class Trace:
    """The trace of a snapshot, all tries of it. `environment` may have the TRACEPARENT of whoever runs it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.id, self._parent = _parent(environment.get("TRACEPARENT", ""))
        self._tries: list[Try] = []

    def begin(self) -> None:
        """Begin a try; to be called before each."""
        self._tries.append(Try())

    @property
    def traceparent(self) -> str:
        """What the command finds in TRACEPARENT (W3C Trace Context): the span that it is."""
        return f"00-{self.id}-{self._tries[-1].command}-01"

    def tell(self, record: GuestStatus) -> None:
        """Take note of a record that an agent has sent."""
        self._tries[-1].followed.setdefault(record.url, Followed()).note(record, time.time_ns())

    def end(self, report: Report, wrong: str) -> None:
        """Take note that the try has ended; `wrong` is what is wrong with it, "" if nothing is."""
        one = self._tries[-1]
        one.ended, one.report, one.wrong = time.time_ns(), report, wrong

    def _spans(self, one: Try) -> Iterator[Span]:
        times, report = one.report.times, one.report
        status = _status(one.wrong)
        yield self._span(one.root, self._parent, "snapshot", one.began, one.ended, {}, status=status)
        guests = report.freeze.guests if report.freeze else {}
        for url in dict.fromkeys((*one.followed, *guests)):
            yield from self._guest(one, url, one.followed.get(url) or Followed())
        if times.command_began:
            about = {"process.exit.code": -1 if report.status is None else report.status}
            status = _status("" if report.status == 0 else "it failed, or did not end")
            over = times.command_ended or one.ended
            yield self._span(one.command, one.root, "command", times.command_began, over, about, status=status)

    def _guest(self, one: Try, url: str, followed: Followed) -> Iterator[Span]:
        guest, times = secrets.token_hex(8), one.report.times
        last = followed.last.last if followed.last else None
        mine = last if last and followed.last and last.freeze_id == followed.last.freeze_id else None
        about: dict[str, Any] = {"virtagent.agent": url}
        wrong = ""
        if mine is not None:
            about |= {
                "virtagent.freeze_id": mine.freeze_id,
                "virtagent.outcome": mine.outcome,
                "virtagent.held_seconds": mine.held_seconds,
                "virtagent.stall_seconds": mine.stall_seconds,
            }
            wrong = "" if mine.held_continuously else mine.error or mine.outcome
        seconds = followed.seconds()
        lengths = {name: _ns(seconds.get(name, 0.0)) for name in _PHASES} if seconds else {}
        until_frozen = sum(lengths.get(name, 0) for name in _PHASES[: _PHASES.index(Phase.HOLD.value)])
        frozen_at = times.frozen.get(url, 0)
        begun = max(one.began, frozen_at - until_frozen if frozen_at and lengths else followed.first_at)
        if not lengths and frozen_at and times.thaw_began:
            lengths = _by_the_host(begun, frozen_at, times.thaw_began, one.ended)
        yield self._span(guest, one.root, "guest", begun, one.ended, about, kind=CLIENT, status=_status(wrong))
        at, was_frozen = begun, bool(frozen_at)
        for name, length in lengths.items():
            if not length and (name == Phase.READY.value or not was_frozen):
                continue  # it has not come so far, or was not told to wait for an instant
            phase = secrets.token_hex(8)
            yield self._span(phase, guest, name, at, at + length, {"virtagent.agent": url})
            yield from self._mounts(phase, name, at, at + length, followed)
            yield from self._writers(phase, name, at, at + length, followed)
            at += length

    def _mounts(self, parent: str, phase: str, begun: int, ended: int, followed: Followed) -> Iterator[Span]:
        for mount, seconds, seen in followed.of(phase):
            length = _ns(max(0.0, seconds))
            start = min(max(begun, min(seen or begun + length, ended) - length), ended)
            about = {"virtagent.mount": mount.mountpoint, "virtagent.fstype": mount.fstype}
            about |= {"virtagent.device": mount.device}
            name = f"{phase} {mount.mountpoint}"
            yield self._span(secrets.token_hex(8), parent, name, start, min(start + length, ended), about)

    def _writers(self, parent: str, phase: str, begun: int, ended: int, followed: Followed) -> Iterator[Span]:
        if phase not in _WRITERS or followed.last is None:
            return
        for writer in followed.last.writers:
            took = {
                "prepare": writer.seconds.prepare,
                "quiesce": writer.seconds.quiesce,
                "release": writer.seconds.release,
            }
            if took[phase] >= 0:
                about = {"virtagent.writer": writer.name, "virtagent.writer.type": writer.type}
                status = _status(writer.error)
                over = min(begun + _ns(took[phase]), ended)
                name = f"{phase} {writer.name}"
                yield self._span(secrets.token_hex(8), parent, name, begun, over, about, status=status)

    def _span(
        self,
        number: str,
        parent: str,
        name: str,
        began: int,
        ended: int,
        about: Mapping[str, Any],
        *,
        kind: int = INTERNAL,
        status: Mapping[str, Any] | None = None,
    ) -> Span:
        return {
            "traceId": self.id,
            "spanId": number,
            **({"parentSpanId": parent} if parent else {}),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": str(began),
            "endTimeUnixNano": str(max(began, ended)),
            "attributes": _attributes(about),
            "status": dict(status or {"code": OK}),
        }

    def document(self) -> dict[str, Any]:
        """Return all as a request to export traces (OTLP, encoded as JSON)."""
        spans = [span for one in self._tries for span in self._spans(one)]
        scope = {"name": "virtagent", "version": __version__}
        resource = {"attributes": _attributes({"service.name": "virtagentctl", "service.version": __version__})}
        return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]}


def _parent(traceparent: str) -> tuple[str, str]:
    """Return the trace and the span that TRACEPARENT names; a new trace and "" if it names none."""
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    return (found[1], found[2]) if found else (secrets.token_hex(16), "")


def _by_the_host(begun: int, frozen: int, thaw: int, ended: int) -> dict[str, int]:
    """Return the lengths of what a host sees of an agent that tells no phases."""
    return {Phase.FREEZE.value: frozen - begun, Phase.HOLD.value: thaw - frozen, Phase.THAW.value: max(0, ended - thaw)}


def _status(wrong: str) -> dict[str, Any]:
    return {"code": ERROR, "message": wrong} if wrong else {"code": OK}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _attributes(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in about.items()]


def _value(value: Any) -> dict[str, Any]:
    """Return an AnyValue; a 64-bit integer is a string in OTLP's JSON."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}

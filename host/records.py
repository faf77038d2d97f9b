"""What an agent tells about itself, as immutable records whose every value has been checked.

Texts that do not apply are "", numbers -1; members that an older agent does not send have these values, those that a
newer one adds are ignored. Seconds are floats, `at` is seconds since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from .errors import BadReply

R = TypeVar("R")

STATES: Mapping[str, int] = {"ERROR": -1, "THAWED": 0, "INPROGRESS": 1, "FROZEN": 2, "THAWINPROGRESS": 3}

STOCK = "stock qemu-ga"
"""How the version of an agent begins that is none of ours: its status knows only whether anything is frozen."""


@dataclass(frozen=True, slots=True)
class MountStatus:
    """What has been done to one file system."""

    mountpoint: str
    aliases: tuple[str, ...] = ()
    device: str = ""
    fstype: str = ""
    level: int = -1
    state: str = ""
    errno: int = 0
    error: str = ""
    seconds: float = -1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the sync is."""

    dirty_bytes: int = -1
    flushed_bytes: int = -1
    bytes_per_second: float = -1
    eta: float = -1


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One forked worker; `process_state` is a psutil status ("disk-sleep" is state D)."""

    id: int
    pid: int = -1
    rpc: str = ""
    phase: str = ""
    seconds: float = -1
    process_state: str = ""


@dataclass(frozen=True, slots=True)
class Last:
    """How the last freeze ended."""

    freeze_id: int
    outcome: str = ""
    held_continuously: bool = False
    held_seconds: float = -1
    stall_seconds: float = -1
    error: str = ""
    at: float = -1


@dataclass(frozen=True, slots=True)
class Audit:
    """Audit records that wait for the thaw, and those that were lost."""

    waiting: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """The status record of va.fsstatus. `seq` changes with each change; `last` is None before the first freeze."""

    state: str
    code: int
    seq: int
    freeze_id: int = -1
    phase: str = ""
    since: float = -1
    limit_left: float = -1
    hold_left: float = -1
    mounts: tuple[MountStatus, ...] = ()
    progress: Progress = Progress()
    workers: tuple[WorkerStatus, ...] = ()
    last: Last | None = None
    audit: Audit = Audit()
    version: str = ""
    uptime: float = -1
    error: str = ""

    @property
    def stock(self) -> bool:
        """Whether it comes from a stock qemu-ga: only `state` and `code` say anything, and not how a freeze goes."""
        return self.version.startswith(STOCK)


@dataclass(frozen=True, slots=True)
class PlannedMount:
    """A file system that a freeze would freeze; `hosts` are the indices of those it lies on, `disks` their devices."""

    mountpoint: str
    aliases: tuple[str, ...] = ()
    device: str = ""
    fstype: str = ""
    source: str = ""
    level: int = 0
    hosts: tuple[int, ...] = ()
    disks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file system that a freeze would leave alone, and why."""

    mountpoint: str
    aliases: tuple[str, ...] = ()
    device: str = ""
    fstype: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a freeze would do, in the order of freezing."""

    mounts: tuple[PlannedMount, ...]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Version of the agent and the names of its methods."""

    version: str
    methods: tuple[str, ...]


def load(kind: type[R], data: Any, what: str) -> R:
    """Return `data`, the agent's value for `what`, as a record; raise BadReply, which names the wrong member."""
    return _record(kind, data, what)


def dump(value: Any) -> Any:
    """Return a record as the agent sends it: dicts, lists and plain values, all members present, {} for no `last`."""
    if is_dataclass(value):
        return {field.name: dump(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [dump(item) for item in value]
    return {} if value is None else value


@cache
def _members(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = get_type_hints(kind)
    return tuple((f.name, hints[f.name], f.default is MISSING) for f in fields(kind))


def _record(kind: type[R], data: Any, where: str) -> R:
    if not isinstance(data, dict):
        raise _wrong(where, data, "a struct")
    values: dict[str, Any] = {}
    for name, hint, required in _members(cast("Hashable", kind)):
        if name in data:
            values[name] = _value(hint, data[name], f"{where}.{name}")
        elif required:
            raise BadReply(f"{where} has no {name}; see that agent and client are of one version")
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if hint in (str, int, bool):
        if type(value) is hint:
            return value
    elif get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_value(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif is_dataclass(hint):
        return _record(hint, value, where)  # type: ignore[arg-type]
    elif value == {}:
        return None
    elif get_args(hint):
        return _record(get_args(hint)[0], value, where)
    raise _wrong(where, value, getattr(hint, "__name__", "a list"))


def _wrong(where: str, value: Any, expected: str) -> BadReply:
    return BadReply(
        f"{where} is of type {type(value).__name__}, expected {expected}; see that agent and client are of one version"
    )

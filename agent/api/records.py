"""The records that host and guest, supervisor and worker exchange: the plan of a freeze."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .states import Reason


@dataclass(frozen=True, slots=True)
class Mount:
    """One file system (superblock) of the plan.

    `device` is major:minor of the superblock as in mountinfo. `aliases` are its other mount points. `level` is the
    place in the order of freezing: 0 first. `hosts` are the indices of the planned file systems that this one lies on
    (through loop backing files and dm/md slaves, also through file systems that are left out): they are frozen after
    it and thawed before it. `disks` are the names in /proc/diskstats that its writes go to.
    """

    mountpoint: str
    aliases: tuple[str, ...]
    device: str
    fstype: str
    source: str
    level: int
    hosts: tuple[int, ...]
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file system that is not frozen, and why (a `states.Reason` value)."""

    mountpoint: str
    aliases: tuple[str, ...]
    device: str
    fstype: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The file systems to freeze in the order of freezing (by level, inside a level in reverse mount order)."""

    mounts: tuple[Mount, ...]
    left_out: tuple[LeftOut, ...]

    def dump(self) -> dict[str, Any]:
        """Return the plan as dicts and lists, for the report pipe, the journal and va.fsplan."""
        return {"mounts": [_dump(m) for m in self.mounts], "left_out": [_dump(m) for m in self.left_out]}

    @classmethod
    def load(cls, data: dict[str, Any]) -> Plan:
        """Return the plan that `dump` gave; raise ValueError that says what is wrong if it is none."""
        if not isinstance(data, dict) or data.keys() != {"mounts", "left_out"}:
            raise ValueError("a plan is a dict of mounts and left_out")
        if not all(isinstance(records, list) for records in data.values()):
            raise ValueError("mounts and left_out are lists")
        plan = cls(
            tuple(_load(Mount, record, f"mounts[{i}]") for i, record in enumerate(data["mounts"])),
            tuple(_load(LeftOut, record, f"left_out[{i}]") for i, record in enumerate(data["left_out"])),
        )
        _check(plan)
        return plan


_T = TypeVar("_T", Mount, LeftOut)

_SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "int": lambda v: type(v) is int,
    "tuple[str, ...]": lambda v: isinstance(v, list | tuple) and all(isinstance(e, str) for e in v),
    "tuple[int, ...]": lambda v: isinstance(v, list | tuple) and all(type(e) is int for e in v),
}


def _dump(record: Mount | LeftOut) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__match_args__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _load(kind: type[_T], data: object, where: str) -> _T:
    shapes = {f.name: str(f.type) for f in fields(kind)}
    if not isinstance(data, dict) or data.keys() != shapes.keys():
        raise ValueError(f"{where} is not a dict of {', '.join(shapes)}")
    for name, value in data.items():
        if not _SHAPES[shapes[name]](value):
            raise ValueError(f"{where}.{name} is {value!r:.100}, expected {shapes[name]}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
    return kind(**values)


def _check(plan: Plan) -> None:
    """Raise ValueError if the records of a plan contradict each other or name what is no path, device or reason."""
    records: list[Mount | LeftOut] = [*plan.mounts, *plan.left_out]
    for record in records:
        for point in (record.mountpoint, *record.aliases):
            if not point.startswith("/") or "\0" in point:
                raise ValueError(f"mount point {point!r:.100} is no absolute path")
        if not re.fullmatch(r"[0-9]+:[0-9]+", record.device):
            raise ValueError(f"{record.mountpoint}: device {record.device!r:.100} is not major:minor")
    if len({record.device for record in records}) < len(records):
        raise ValueError("two file systems have the same device")
    for left_out in plan.left_out:
        if left_out.reason not in [reason.value for reason in Reason]:
            raise ValueError(f"{left_out.mountpoint}: unknown reason {left_out.reason!r:.100}")
    level = 0
    for mount in plan.mounts:
        if not level <= mount.level <= level + 1 or (mount is plan.mounts[0] and mount.level):
            raise ValueError(f"{mount.mountpoint}: level {mount.level} after level {level}")
        level = mount.level
        for host in mount.hosts:
            if not 0 <= host < len(plan.mounts) or plan.mounts[host].level <= level:
                raise ValueError(f"{mount.mountpoint}: host {host} is not a file system of a higher level")

"""mountinfo and sysfs text to the plan of a freeze. Pure: opens no mount point, asks no device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
        return {"mounts": [asdict(m) for m in self.mounts], "left_out": [asdict(m) for m in self.left_out]}

    @classmethod
    def load(cls, data: dict[str, Any]) -> Plan:
        """Return the plan that `dump` gave; raise ValueError if the shape is another."""
        raise NotImplementedError

"""The records that host and guest, supervisor and worker exchange: values with one `dump` and one `load`.

A text that does not apply is "", such a number is -1. Seconds are floats; `at` is in seconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .shapes import Misshapen as Misshapen
from .shapes import dump as dump
from .shapes import load as load
from .states import Reason
from .structs import Value, field

WHENCE = ("default", "file", "command line", "request")
"""Where the value of an option may come from, the weakest first."""
STOCK = "stock qemu-ga"
"""How the version of a stock qemu-ga begins. Its status says only whether anything is frozen."""


class Mount(Value):
    """One file system (superblock) of the plan.

    `device` is major:minor of the superblock as in mountinfo. `aliases` are its other mount points, or some of them and
    `more_aliases` that are not shown (`bounds.bounded`). `level` is its place in the order of freezing: 0 first.
    `hosts` are the indices of the planned file systems that this one lies on (by device numbers, also through file
    systems that are left out, or assumed to): they are frozen after it and thawed before it. `disks` are the disks, as
    /proc/diskstats names them, that its writes go to, and `bottom` those at the bottom of everything: what a loop
    device or LVM lies on in the end, as far as that is known. `namespace` names a process that has it mounted, if it is
    mounted only in other mount namespaces than that of the agent. `devices` are its own block devices by the kernel's
    names, that of the superblock first, none if it is not known which these all are. `dm` is the name of its device of
    the device-mapper that is not in `source`: dm-3 beside /dev/mapper/vg0-db, vg0-db beside /dev/dm-3.
    """

    mountpoint: str
    aliases: tuple[str, ...] = ()
    device: str = ""
    fstype: str = ""
    source: str = ""
    level: int = 0
    hosts: tuple[int, ...] = ()
    disks: tuple[str, ...] = ()
    bottom: tuple[str, ...] = ()
    more_aliases: int = 0
    namespace: str = ""
    devices: tuple[str, ...] = ()
    dm: str = ""


class LeftOut(Value):
    """A file system that is left out, and why (a `states.Reason` value); `strict_error`: an error under strict.

    `namespace` is as in `Mount`.
    """

    mountpoint: str
    aliases: tuple[str, ...] = ()
    device: str = ""
    fstype: str = ""
    reason: str = ""
    strict_error: bool = False
    more_aliases: int = 0
    namespace: str = ""


class PlannedWriter(Value):
    """A writer that would take part: its paths, those of them that would not be frozen, and what is wrong with it."""

    name: str
    type: str = ""
    hold: str = ""
    required: bool = True
    after: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_frozen: tuple[str, ...] = ()
    error: str = ""


class InForce(Value):
    """An option that counts for the freeze, as it would be given, and whence it is (`WHENCE`); `file` has its path."""

    name: str
    value: str = ""
    whence: str = ""
    file: str = ""


class Estimate(Value):
    """What a freeze would take now, as far as that can be known from the last ones.

    `dirty_bytes` are to be written, those of the `whole_guest` if what is planned is not known apart, at the rate of
    the last sync that took long enough to have one: that takes `sync_seconds`, and applications run. They stand still
    for `still_seconds` and the hold, of which `hold_limit` is the limit, 0 if it has none.
    """

    dirty_bytes: int = -1
    whole_guest: bool = True
    bytes_per_second: float = -1
    sync_seconds: float = -1
    still_seconds: float = -1
    hold_limit: float = -1


class Plan(Value):
    """The file systems to freeze, in that order: by level, and within a level in reverse mount order.

    `notes` are sentences about what in that order is not as it was assumed to be. `left_out_counts` says how many file
    systems are left out for each reason, where `left_out` has only some of them (`bounds.bounded`). `writers`,
    `estimate` and `options` (those in force) are only in an answer to va.fsplan.
    """

    mounts: tuple[Mount, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    left_out_counts: Mapping[str, int] = field(default_factory=dict)
    writers: tuple[PlannedWriter, ...] = ()
    estimate: Estimate = Estimate()
    options: tuple[InForce, ...] = ()

    def dump(self) -> dict[str, Any]:
        """Return the plan as dicts and lists, for the report pipe, the journal and va.fsplan."""
        found = dump(self)
        for record in (found, *found["mounts"], *found["left_out"], *found["writers"], *found["options"]):
            record |= {name: list(value) for name, value in record.items() if type(value) is tuple}
        return found

    @classmethod
    def load(cls, data: object, *, exact: bool = True) -> Plan:
        """Return the plan from what `dump` made; raise ValueError that says what is wrong with its shape or values.

        Without `exact` it may be of an older or newer version: absent members get their defaults.
        """
        plan = load(cls, data, "the plan", exact=exact)
        _check(plan)
        return plan


class MountStatus(Value):
    """One file system: what has been done to it (`states.MountState`), or why it is left out.

    `seconds` is for how long what is being done now has gone on, or else how long the last step took. `sync_seconds`
    and `freeze_seconds` are all its syncs and FIFREEZEs, `still_seconds` the longest time for which it stood still,
    until now if it does. `source` and `dm` are as in `Mount`. What it has written since its sync began, has left,
    writes a second, and how long that takes (`eta`), is known at the most while it is synced, but for `written_bytes`.
    `may_be_frozen`: it is, or nothing proves that it is not.
    """

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
    more_aliases: int = 0
    source: str = ""
    sync_seconds: float = -1
    freeze_seconds: float = -1
    still_seconds: float = -1
    written_bytes: int = -1
    dirty_bytes: int = -1
    bytes_per_second: float = -1
    eta: float = -1
    may_be_frozen: bool = False
    dm: str = ""


class Progress(Value):
    """How far the sync has come; `eta` is in seconds, and only there while it syncs.

    `dirty_bytes` are what those that still sync have left, as far as that is known, else what the whole guest has.
    """

    dirty_bytes: int = -1
    flushed_bytes: int = -1
    bytes_per_second: float = -1
    eta: float = -1


class WorkerStatus(Value):
    """A worker that was forked `seconds` ago; `process_state` is psutil's name ("disk-sleep" is state D).

    `doing` says what it was doing when it was killed or found stuck, "" of any other one.
    """

    id: int
    pid: int = -1
    rpc: str = ""
    phase: str = ""
    seconds: float = -1
    process_state: str = ""
    doing: str = ""


class WriterSeconds(Value):
    """How long a writer took for each step, and how long its application was held."""

    prepare: float = -1
    quiesce: float = -1
    held: float = -1
    release: float = -1


class WriterStatus(Value):
    """A writer: its type, what ends its hold if the agent dies (`writers.Hold`), its state (`writers.WriterState`)."""

    name: str
    type: str = ""
    hold: str = ""
    state: str = ""
    required: bool = True
    seconds: WriterSeconds = WriterSeconds()
    error: str = ""
    paths: tuple[str, ...] = ()
    not_frozen: tuple[str, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)


class Learnt(Value):
    """A freeze has found out that a file system lies on one of these, in a way that no device number tells.

    There are `more_hosts` that are not named (`bounds.learnt`).
    """

    mountpoint: str
    hosts: tuple[str, ...] = ()
    more_hosts: int = 0


class Last(Value):
    """How the last freeze ended.

    `stall_seconds` is the longest time for which one of the file systems stood still, `app_stall_seconds` that of the
    applications of its `writers`: from being told to hold until they were let go. `written_while_frozen` are bytes.
    `file_systems` were frozen. Their sync wrote `synced_bytes` in `sync_seconds`, and `slowest` took longest of them.
    `freeze_seconds` passed from the first FIFREEZE until all were frozen, `thaw_seconds` from the end of the hold until
    all were thawed.
    """

    freeze_id: int
    outcome: str = ""
    held_continuously: bool = False
    held_seconds: float = -1
    stall_seconds: float = -1
    error: str = ""
    at: float = -1
    consistency: str = ""
    verdict: str = ""
    learnt: tuple[Learnt, ...] = ()
    more_learnt: int = 0
    written_while_frozen: int = -1
    writers: tuple[WriterStatus, ...] = ()
    app_stall_seconds: float = -1
    file_systems: int = -1
    synced_bytes: int = -1
    sync_seconds: float = -1
    slowest: str = ""
    freeze_seconds: float = -1
    thaw_seconds: float = -1


class PastFreeze(Value):
    """One of the last freezes: `began` and ended `at` (seconds since the epoch), asked for by a host.

    `before_seconds` is how long plan, preparation and sync took, before anything stood still, and `synced_bytes` what
    they wrote; `held_seconds`, `stall_seconds` and `app_stall_seconds` are those of `Last`.
    """

    freeze_id: int
    began: float = -1
    by: str = ""
    outcome: str = ""
    held_continuously: bool = False
    synced_bytes: int = -1
    before_seconds: float = -1
    held_seconds: float = -1
    stall_seconds: float = -1
    error: str = ""
    at: float = -1
    app_stall_seconds: float = -1
    file_systems: int = -1
    sync_seconds: float = -1
    slowest: str = ""
    freeze_seconds: float = -1
    thaw_seconds: float = -1


class Audit(Value):
    """How many audit records wait for the thaw, and how many were lost."""

    waiting: int = 0
    dropped: int = 0


class Totals(Value):
    """What happened since the daemon started: freezes by their outcome, and seconds in each phase of all of them.

    `held_seconds` and `stall_seconds` are sums over all freezes; `last_success` is the time of day at which the last
    freeze ended that held without a break, -1 if there was none.
    """

    freezes: Mapping[str, int] = field(default_factory=dict)
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    held_seconds: float = -1
    stall_seconds: float = -1
    last_success: float = -1


class Status(Value):
    """The status record of va.fsstatus. `seq` counts changes; `last` is None before the first freeze.

    `stopping` says why the agent is about to end, "" if it is not. While nothing is frozen, and none is under way,
    `phase`, `mounts` and `progress` are those of a va.fssync if there is one.

    `mounts` has at most 50 file systems that are left out; `left_out_counts` counts all of them by their reasons.
    `troubles` counts the connections that were dropped and the workers that were killed because a call for them failed.
    """

    state: str
    code: int
    seq: int
    freeze_id: int = -1
    phase: str = ""
    since: float = -1
    limit_left: float = -1
    hold_left: float = -1
    error: str = ""
    mounts: tuple[MountStatus, ...] = ()
    progress: Progress = Progress()
    workers: tuple[WorkerStatus, ...] = ()
    writers: tuple[WriterStatus, ...] = ()
    last: Last | None = None
    audit: Audit = Audit()
    version: str = ""
    uptime: float = -1
    left_out_counts: Mapping[str, int] = field(default_factory=dict)
    troubles: int = -1
    totals: Totals = Totals()
    history: tuple[PastFreeze, ...] = ()
    stopping: str = ""

    @property
    def stock(self) -> bool:
        """Whether it comes from a stock qemu-ga: then only `state` and `code` mean anything."""
        return self.version.startswith(STOCK)


class Capabilities(Value):
    """The version of the agent and the names of its methods."""

    version: str
    methods: tuple[str, ...]


def _check(plan: Plan) -> None:
    """Raise ValueError if the records of a plan contradict each other, or a path, device or reason is invalid."""
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

"""What one freeze is to do: the daemon's options and those of the request, combined. Pure data."""

from __future__ import annotations

from .structs import Value

Edge = tuple[str, tuple[str, ...]]
"""A file system, and those on which it lies, on one of them at least."""


class Rules(Value):
    """What to freeze: the globs of the daemon and those of the request.

    An empty include means all. A file system is planned if both includes match one of its mount points, and neither
    exclude does. `literal` is the list of the QEMU protocol: mount points instead of globs; unknown ones are ignored.
    `learnt` says of superblocks (their ids in sysfs, for the plan their numbers) on which others they lie, one of them
    at least.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    request_include: tuple[str, ...] = ()
    request_exclude: tuple[str, ...] = ()
    literal: tuple[str, ...] | None = None
    learnt: tuple[Edge, ...] = ()


class Options(Value):
    """What one freeze is to do: which file systems, what is an error, the limits of its phases.

    `strict`: also what cannot be frozen at all. `partial`: nothing is, what fails is left out. Limits are in seconds; 0
    means no limit. The supervisor kills the worker at the limits of sync and freeze. `writers` says which writers take
    part (all, try, none). If the worker `waits`, it syncs only when they are prepared. They let go by themselves when
    they were held for `held_at_most`. `patience` is how long one file system may make others stand still, `busy_wait`
    how long to try to freeze what someone else has frozen. Nothing is quiesced or frozen before the time of day `at`
    (seconds of CLOCK_REALTIME, 0: at once). `attended`: a host is to let it go before that, else it is called off.
    While syncing the disks' request queues are as long as `sync_requests` at most (0: as they are); what they were is
    on record in the folder `queue_records`.
    """

    rules: Rules
    strict: bool
    sync_limit: float
    freeze_limit: float
    hold_limit: float
    partial: bool = False
    writers: str = "none"
    waits: bool = False
    held_at_most: float = 0
    patience: float = 1.0
    busy_wait: float = 2.0
    at: float = 0.0
    attended: bool = False
    sync_requests: int = 0
    queue_records: str = ""

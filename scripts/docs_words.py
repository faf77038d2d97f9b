"""The words of scripts/docs that no table of the code has, keyed by name or member."""

from __future__ import annotations

from virtagent.agent.api import states

FREEZE_STATE = {
    states.FreezeState.ERROR: "something may still be frozen and cannot be thawed for now; the agent keeps trying",
    states.FreezeState.THAWED: "nothing is frozen, and no worker is left that could freeze",
    states.FreezeState.INPROGRESS: "a freeze is being planned, synced or carried out",
    states.FreezeState.FROZEN: "everything planned is frozen; the keeper holds it",
    states.FreezeState.THAWINPROGRESS: "the file systems are being thawed, or a worker that may freeze is not reaped",
}
WORKER_STATE = {
    states.WorkerState.SPAWNED: "forked, has not reported yet",
    states.WorkerState.RUNNING: "at work",
    states.WorkerState.HOLDING: "the keeper of a freeze, or a worker that holds what a host opened or started",
    states.WorkerState.REPORTED: "has reported its end, has not exited yet",
    states.WorkerState.KILLED: "SIGKILL was sent, has not exited yet",
    states.WorkerState.STUCK: "SIGKILL had no effect yet: it is inside a system call",
    states.WorkerState.REAPED: "gone",
}
PHASE = {
    states.Phase.PLAN: "read mountinfo and sysfs, choose and order; nothing is opened",
    states.Phase.SYNC: "write what is dirty, in parallel, at most three rounds; nothing is frozen",
    states.Phase.FREEZE: "FIFREEZE level by level, all of a level at once",
    states.Phase.HOLD: "the keeper waits for the thaw",
    states.Phase.THAW: "FITHAW in the opposite order",
    states.Phase.RUN: "the only phase of other RPCs",
    states.Phase.KEEP: "a worker that holds an open file or a started program, between two requests",
}
MOUNT_STATE = {
    states.MountState.PENDING: "planned, nothing done yet",
    states.MountState.SYNCING: "syncfs under way",
    states.MountState.SYNCED: "syncfs is done, or its freeze was given up before it began",
    states.MountState.FREEZING: "FIFREEZE is about to be called or under way: may be frozen",
    states.MountState.FROZEN: "frozen",
    states.MountState.THAWING: "FITHAW is about to be called or under way",
    states.MountState.THAWED: "thawed, or found not frozen",
    states.MountState.UNSUPPORTED: "its type cannot freeze; an error only with `strict`",
    states.MountState.BUSY: "someone else froze it: an error, and never thawed by us",
    states.MountState.FAILED: "the kernel refused; errno and words say what",
    states.MountState.LEFT_OUT: "not in the plan; the reason says why",
}
REASON = {
    states.Reason.NETWORK: "a network or FUSE file system, which is never opened",
    states.Reason.PSEUDO: "its type is `nodev` in /proc/filesystems, or it is an automount point",
    states.Reason.READ_ONLY: "its superblock is read-only",
    states.Reason.EXCLUDED: "an exclude glob matches one of its mount points",
    states.Reason.NOT_INCLUDED: "there are include globs, and none matches",
}
OUTCOME = {
    states.Outcome.THAWED: "held without a break until the thaw was asked",
    states.Outcome.CANCELLED: "ended before it was frozen: va.fsthaw, va.shutdown or a signal",
    states.Outcome.FAILED: "a file system could not be frozen, or the worker died before all were",
    states.Outcome.OVERRAN: "the limit of the plan, sync or freeze phase passed",
    states.Outcome.EXPIRED: "the hold limit passed before the thaw was asked",
    states.Outcome.BROKEN: "the hold ended for any other reason before the thaw was asked",
}
RECORD = {
    "state": "name of the freeze state",
    "code": "number of the freeze state",
    "seq": "a new number after each change of the freeze, of a file system or of a worker",
    "freeze_id": "number of the last freeze, 0 before the first",
    "phase": "phase of the freeze, empty when thawed",
    "since": "seconds in this phase",
    "limit_left": "seconds until its limit passes, -1 if it has none",
    "hold_left": "seconds until the keeper thaws by itself, -1 if nothing is held or there is no limit",
    "error": "in state ERROR: what is wrong, and on which mount",
    "mounts": "the file systems of the present or last freeze, in the order of freezing, then those left out",
    "mounts[].mountpoint": "where it is mounted",
    "mounts[].aliases": "its other mount points",
    "mounts[].device": "major:minor of the superblock",
    "mounts[].fstype": "type",
    "mounts[].level": "its place in the order of freezing, 0 first; -1 if left out",
    "mounts[].state": "what has been done to it (see [states](states.md#file-systems))",
    "mounts[].errno": "errno of the last step, 0 if none",
    "mounts[].error": "that errno in words",
    "mounts[].seconds": "how long the last step took",
    "mounts[].reason": "why it is left out (see [states](states.md#left-out))",
    "progress": "figures of the disks while syncing and freezing, otherwise -1",
    "progress.dirty_bytes": "bytes dirty or under write-back in the whole guest",
    "progress.flushed_bytes": "bytes that the disks of the planned file systems have written since the sync began",
    "progress.bytes_per_second": "how many of them a second",
    "progress.eta": "estimate: seconds that the dirty bytes take at that rate",
    "workers": "all workers that are not reaped",
    "workers[].id": "number, as in title and log",
    "workers[].pid": "process id",
    "workers[].rpc": "the RPC that it runs; `thaw` is the agent's own job",
    "workers[].phase": "phase (see [states](states.md#phases))",
    "workers[].seconds": "seconds since it was forked",
    "workers[].process_state": "as psutil names it, read when the record is sent; `disk-sleep` is state D",
    "last": "how the last freeze ended; an empty struct before the first",
    "last.freeze_id": "number of that freeze",
    "last.outcome": "see [states](states.md#outcomes)",
    "last.held_continuously": "whether a snapshot taken while it was held is good",
    "last.held_seconds": "from frozen to the end of the hold, 0 if it was never frozen",
    "last.stall_seconds": "from the first FIFREEZE to the state THAWED: no writer stood still for longer",
    "last.error": "the fault's text, empty if there was none",
    "last.at": "when, in seconds since the epoch",
    "audit": "the ring of audit records",
    "audit.waiting": "records that wait for the thaw",
    "audit.dropped": "records lost since the start, because the ring was full",
    "version": "of the agent",
    "uptime": "seconds since the daemon started",
}
LIMITS = (
    ("clients over `max-clients` that are told BUSY; more of them wait to be accepted", "REFUSED_MAX", "", ""),
    ("calls under way on one connection", "CALLS_MAX", "", ""),
    ("calls under way whose replies may be tens of megabytes", "BULKY_MAX", "", ""),
    ("calls of `va.fshold` under way", "HOLDS_MAX", "", ""),
    ("JSON messages of one connection that wait for their turn; no more are read", "WAITING_MAX", "session", ""),
    (
        "replies that a client has not read; then it is not listened to, and cut off after `message-age`",
        "UNREAD_MAX",
        "",
        "bytes",
    ),
    ("replies that all hosts have not read; then only essential methods are admitted", "UNSENT_MAX", "", "bytes"),
    (
        "requests of all hosts that are incomplete or wait for their turn; then the incomplete one that was begun last "
        "is refused, and its connection ends",
        "INPUT_MAX",
        "",
        "bytes",
    ),
    (
        "a body over `max-body` that is read, thrown away and refused; above that the connection ends",
        "DISCARD_MAX",
        "",
        "bytes",
    ),
    ("a message of `guest-file-write`, whatever `max-body` says", "LARGE_MAX", "", "bytes"),
    ("commas and brackets of a JSON request, or elements of an XML one", "ITEMS_MAX", "", ""),
    ("a text parameter", "TEXT_MAX", "", "characters"),
    ("globs in a request", "GLOBS_MAX", "", ""),
    ("a number of seconds in a request", "SECONDS_MAX", "", "s"),
    ("a file read by `va.getfile`", "GETFILE_MAX", "", "bytes"),
    ("what `va.getdmesg` reads", "DMESG_MAX", "", "bytes"),
    ("what one `guest-file-read` reads", "READ_MAX", "", "bytes"),
    ("what is kept of each output stream of a program of `guest-exec`", "CAPTURE_MAX", "", "bytes"),
    ("ended programs of `guest-exec` that nobody has asked about", "RELEASABLE_MAX", "", ""),
    ("log lines kept in memory for a slow reader", "WAITING_MAX", "log", ""),
)
"""What is limited, the constant, its module if several have that name, the unit."""
KEPT = {
    "open files of `guest-file-open`": "guest-file-open",
    "programs of `guest-exec`, running or not asked about": "guest-exec",
}

"""The table of RPCs: a row says all about one RPC. Rows never change; only `refusal` decides what is admitted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import params, qemu
from .commands import GUEST_ROWS
from .errors import Code, Fault
from .params import Kind, Param
from .rpc import Disk, Rpc, Runs
from .states import FreezeState

__all__ = ["RPCS", "Disk", "Rpc", "Runs", "allows", "arguments", "public", "refusal", "table"]


_I, _W = Runs.INLINE, Runs.WORKER


def _struct(*fields: Param) -> tuple[Param, ...]:
    return (Param("options", Kind.STRUCT, "optional members:", required=False, fields=fields),)


_SELECT = (
    Param("include", Kind.GLOBS, "freeze only file systems that match", required=False),
    Param("exclude", Kind.GLOBS, "leave out file systems that match", required=False),
    Param("strict", Kind.BOOLEAN, "a file system that cannot be frozen is an error", required=False),
    Param("partial", Kind.BOOLEAN, "one that cannot be synced or frozen is left out", required=False),
)
_WAIT = Param("wait", Kind.SECONDS, "how long the call waits; then fault IN_PROGRESS, the job goes on", required=False)
_SYNC_LIMIT = Param("sync_limit", Kind.SECONDS, "limit of the sync phase", required=False)
_WRITERS = Param(
    "writers",
    Kind.STRING,
    "which writers take part: all as configured, try: each as if not required, none",
    required=False,
    choices=("all", "try", "none"),
)
_FREEZE = (
    *_SELECT,
    _WAIT,
    _SYNC_LIMIT,
    Param("freeze_limit", Kind.SECONDS, "limit of the freeze phase", required=False),
    Param("hold_limit", Kind.SECONDS, "limit of the hold", required=False),
    _WRITERS,
)
_AT = Param(
    "at",
    Kind.TIME,
    "quiesce and freeze not before that instant (seconds of CLOCK_REALTIME, at most 300 ahead); va.fsgo moves it",
    required=False,
)
_ATTENDED = Param(
    "attended",
    Kind.BOOLEAN,
    "va.fsgo is to let it go: called off if that has not come by `at`, or if the connection ends before",
    required=False,
)

_ROWS = (
    Rpc(
        "va.ping",
        "inline.dummy",
        _I,
        Disk.NONE,
        "Answer, to show that the agent lives.",
        'the string "dummy"',
        essential=True,
    ),
    Rpc(
        "va.hello",
        "inline.dummy",
        _I,
        Disk.NONE,
        "Greet the agent (2011 protocol).",
        'the string "dummy"',
    ),
    Rpc(
        "va.capabilities",
        "inline.capabilities",
        _I,
        Disk.NONE,
        "Tell version and methods.",
        "struct {version, methods: array of names}",
        essential=True,
    ),
    Rpc(
        "va.getfile",
        "methods.getfile",
        _W,
        Disk.READ,
        "Read a file of at most 16 MiB.",
        "base64, the contents",
        params=(Param("path", Kind.STRING, "absolute path"),),
        limit=30,
        bulky=True,
        blocked_with=("guest-file-open", "guest-file-read"),
    ),
    Rpc(
        "va.getdmesg",
        "methods.getdmesg",
        _W,
        Disk.NONE,
        "Read the kernel's log.",
        "string, the last 16 KiB",
        limit=10,
    ),
    Rpc(
        "va.shutdown",
        "methods.shutdown",
        _W,
        Disk.WRITE,
        "Shut the guest down; thaws first.",
        'the string "dummy"',
        params=(Param("mode", Kind.STRING, "what to do", choices=("halt", "powerdown", "reboot")),),
        limit=30,
        thaws_first=True,
        adds=("command",),
        blocked_with=("guest-shutdown",),
    ),
    Rpc(
        "va.fsfreeze",
        "methods.fsfreeze",
        _W,
        Disk.FREEZES,
        "Sync and freeze the file systems, and hold them until va.fsthaw or the hold limit.",
        "number of file systems frozen",
        params=_struct(*_FREEZE, _AT, _ATTENDED),
        compensation="thaw",
        outlives=True,
        blocked_with=("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list"),
    ),
    Rpc(
        "va.fsthaw",
        "inline.fsthaw",
        _I,
        Disk.NONE,
        "Thaw, cancel a freeze in progress, or try again in state ERROR; tells if the last freeze was broken.",
        "number of file systems thawed",
        params=_struct(
            _WAIT,
            Param(
                "freeze_id",
                Kind.INTEGER,
                "thaw this freeze, and no other (see va.fsstatus)",
                required=False,
                any_value=True,
            ),
            Param("verdict", Kind.STRING, "what became of the snapshot", required=False, choices=("good", "bad")),
        ),
        essential=True,
        blocked_with=("guest-fsfreeze-thaw",),
        needed_frozen=True,
    ),
    Rpc(
        "va.fsstatus",
        "inline.fsstatus",
        _I,
        Disk.NONE,
        "Tell the freeze state; with a struct the whole status record, with `since` once it is newer than that.",
        "the state's number; with a struct the status record",
        params=_struct(
            Param("since", Kind.INTEGER, "answer as soon as `seq` is another than this", required=False),
            Param("wait", Kind.SECONDS, "at the latest after this many seconds (default 30)", required=False),
            Param("brief", Kind.BOOLEAN, "without aliases and without what is left out", required=False),
            Param("history", Kind.BOOLEAN, "with the last 64 freezes; not together with since", required=False),
        ),
        essential=True,
        blocked_with=("guest-fsfreeze-status",),
        needed_frozen=True,
        watches=True,
    ),
    Rpc(
        "va.fsgo",
        "inline.fsgo",
        _I,
        Disk.NONE,
        "Set the instant of the freeze that waits for it in phase ready.",
        "1",
        params=(Param("at", Kind.TIME, "seconds of CLOCK_REALTIME, at most 300 ahead; absent: now", required=False),),
    ),
    Rpc(
        "va.fshold",
        "inline.fshold",
        _I,
        Disk.NONE,
        "Extend the hold to that many seconds from now, bounded by hold-limit-max.",
        "seconds left",
        params=(Param("seconds", Kind.SECONDS, "from now"),),
    ),
    Rpc(
        "va.fsforget",
        "inline.fsforget",
        _I,
        Disk.NONE,
        "In state ERROR, count a file system as thawed that cannot be thawed, though it may be frozen still.",
        "number of file systems that may be frozen still and are tried again",
        params=(Param("mountpoint", Kind.STRING, "its mount point, or dev:MAJOR:MINOR"),),
    ),
    Rpc(
        "va.fsplan",
        "methods.fsplan",
        _W,
        Disk.READ,
        "Tell what va.fsfreeze would do, freezing nothing.",
        "struct {mounts: array, left_out: array with reasons, at most 50, left_out_counts: struct by reason, writers: "
        "array with paths, not_frozen and error, estimate: struct of bytes and seconds, options: array with name, "
        "value, whence (default, file, command line, request) and file}",
        params=_struct(*_FREEZE),
        limit=5,
        adds=("writers", "estimate", "in_force"),
    ),
    Rpc(
        "va.fssync",
        "methods.fssync",
        _W,
        Disk.WRITE,
        "Have the writers prepare, then sync what va.fsfreeze would freeze; nothing is frozen or held.",
        "number of file systems synced",
        params=_struct(*_SELECT[:2], _SELECT[3], _WAIT, _SYNC_LIMIT, _WRITERS),
        limited_by="sync_limit",
        prepares=True,
    ),
    Rpc(
        "system.listMethods",
        "inline.list_methods",
        _I,
        Disk.NONE,
        "List the methods.",
        "array of names",
    ),
    Rpc(
        "system.methodHelp",
        "inline.method_help",
        _I,
        Disk.NONE,
        "Describe a method.",
        "string",
        params=(Param("method", Kind.STRING, "name"),),
    ),
    Rpc(
        "thaw",
        "methods.thaw",
        _W,
        Disk.NONE,
        "Thaw what a dead or killed freeze worker may have left frozen.",
        "number of file systems proved thawed",
        public=False,
        outlives=True,
    ),
    Rpc(
        "writer",
        "writers.serve",
        _W,
        Disk.NONE,
        "Be a writer: prepare an application, hold its writes around a freeze, and let it go.",
        "what went wrong when it was let go",
        public=False,
        outlives=True,
    ),
    Rpc(
        "unlatch",
        "writers.unlatch",
        _W,
        Disk.NONE,
        "Undo what the dead worker of a writer may have left set.",
        "what went wrong with that",
        public=False,
        outlives=True,
    ),
    Rpc(
        "lengthen",
        "queues.put_back",
        _W,
        Disk.NONE,
        "Put the request queues back that the dead worker of a freeze or sync may have left short.",
        "what was done",
        public=False,
        outlives=True,
    ),
    Rpc(
        "reload",
        "methods.read_options",
        _W,
        Disk.READ,
        "Read the configuration files again, which may lie on a slow disk.",
        "their text",
        limit=10,
        public=False,
    ),
)


def table(rows: tuple[Rpc, ...]) -> Mapping[str, Rpc]:
    """Return the rows by name; raise ValueError if a row could leave something behind.

    A row that freezes must have a compensation. Each compensation must be a row that runs in a worker, writes to no
    disk and needs no compensation itself. A row that thaws first, is held or needs a compensation leaves no check of a
    value to its handler: that would come too late.
    """
    by_name = {row.name: row for row in rows}
    if len(by_name) != len(rows):
        raise ValueError("an RPC name stands twice")
    for row in rows:
        if not by_name.keys() >= set(row.blocked_with):
            raise ValueError(f"{row.name}: one of {', '.join(row.blocked_with)} does not exist")
        if row.disk is Disk.FREEZES and row.compensation is None:
            raise ValueError(f"{row.name} freezes and has no compensation")
        limited = row.limit or row.limited_by
        if row.runs is Runs.INLINE and (row.disk is not Disk.NONE or row.compensation or limited):
            raise ValueError(f"{row.name} runs inline and does what only a worker may")
        if row.runs is not Runs.INLINE and row.public and row.disk is not Disk.FREEZES and not limited:
            raise ValueError(f"{row.name} runs in a worker without a limit")
        keeper = by_name.get(row.of or "")
        if (row.runs is Runs.RESOURCE) != (keeper is not None and keeper.holds > 0 and bool(row.params)):
            raise ValueError(f"{row.name}: {row.of} does not keep what it names")
        if row.holds and row.runs is not Runs.WORKER:
            raise ValueError(f"{row.name} keeps something and does not run in a worker")
        if row.thaws_first or row.holds or row.compensation:
            for name in (name for param in row.params for name in param.unchecked()):
                raise ValueError(f"{row.name}: which values {name} takes is not said, and its handler is too late")
        if row.compensation is None:
            continue
        undo = by_name.get(row.compensation)
        if undo is None:
            raise ValueError(f"{row.name}: compensation {row.compensation} does not exist")
        if undo.runs is not Runs.WORKER or undo.disk in (Disk.WRITE, Disk.FREEZES) or undo.compensation:
            raise ValueError(f"{row.name}: compensation {undo.name} is inline, writes a disk or needs one itself")
    return by_name


RPCS = table(_ROWS + GUEST_ROWS)


def arguments(row: Rpc, given: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, absent ones as None; raise Fault PARAMS in the words of the row's protocol."""
    return (params.check_guest if row.is_guest else params.check)(row.name, row.params, given)


def public(name: str, qga: qemu.Version = qemu.LATEST) -> Rpc:
    """Return the row that a host may call by this name; raise Fault METHOD if there is no such row.

    There is none for a command that came to qemu-ga after version `qga`.
    """
    row = RPCS.get(name)
    if row is None or not row.public or row.since > qga:
        raise Fault(Code.METHOD, f"no method {name[:80]!r}; call system.listMethods")
    return row


def allows(row: Rpc, allow: Collection[str], block: Collection[str]) -> bool:
    """Return whether these lists let a host call `row`. What is blocked is blocked under all its names.

    What is allowed is allowed by the name that stands in the list, and by no other; an empty list allows all.
    """
    if any(name in block for name in (row.name, *row.blocked_with)):
        return False
    return not allow or row.name in allow


def refusal(row: Rpc, state: FreezeState, *, blocked: bool, audit_full: bool, stopping: bool) -> Fault | None:
    """Return why a request for `row` is not admitted in this state; None if it is admitted."""
    if blocked and not (row.needed_frozen and state is not FreezeState.THAWED):
        return Fault(Code.BLOCKED, f"{row.name} is blocked by the agent's configuration")
    if audit_full and not row.essential:
        return Fault(Code.AUDIT_FULL, f"{row.name} is refused: the ring of audit records is full until the thaw")
    if stopping and row.runs is not Runs.INLINE:
        return Fault(Code.WRONG_STATE, f"{row.name} is refused: the agent is stopping")
    if state is FreezeState.THAWED or row.thaws_first or row.disk in (Disk.NONE, Disk.READ):
        return None
    if row.is_guest:
        return Fault(Code.REFUSED_WHILE_FROZEN, f"{row.name} is refused: the agent is in frozen state")
    if row.disk is Disk.FREEZES:
        return Fault(Code.WRONG_STATE, f"{row.name} needs state THAWED, the state is {state.name}")
    return Fault(Code.REFUSED_WHILE_FROZEN, f"{row.name} writes to a disk, the state is {state.name}: thaw first")

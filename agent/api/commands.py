"""The commands of the QEMU guest agent protocol, one row each, as in `methods`. Only JSON can call them.

QEMU's own reference (qga/qapi-schema.json) says what each parameter means.
"""

from __future__ import annotations

from typing import Any

from .params import Kind, Param
from .rpc import Disk, Rpc, Runs

_I, _W, _K = Runs.INLINE, Runs.WORKER, Runs.RESOURCE
_NONE, _READ, _WRITE = Disk.NONE, Disk.READ, Disk.WRITE
_FACTS = 30.0  # seconds: asking the size of a file system whose server is dead takes long
_FILES_MAX, _PROGRAMS_MAX = 64, 64
_NO_HANDLE, _NO_PID = "handle '{}' has not been found", "Invalid parameter 'pid'"


def _given(name: str, kind: Kind, *item: Param, **more: Any) -> Param:
    return Param(name, kind, "", fields=item, **more)


def _may(name: str, kind: Kind, *item: Param, **more: Any) -> Param:
    return Param(name, kind, "", required=False, fields=item, **more)


def _struct(name: str, *members: Param) -> Param:
    return Param(name, Kind.STRUCT, "", fields=members)


_ID = _given("id", Kind.INTEGER)
_HANDLE = _given("handle", Kind.INTEGER)
_USER = _given("username", Kind.STRING)
_WHENCE = Param("whence", Kind.WHENCE, "", choices=("set", "cur", "end"))
_CAPTURES = ("none", "stdout", "stderr", "separated", "merged")
_CAPTURE = Param("capture-output", Kind.CAPTURE, "", required=False, choices=_CAPTURES)
_PATH = _given("path", Kind.STRING, any_value=True)
_TEXTS = _given("item", Kind.STRING, any_value=True)
FILE_MODES = tuple(base + more for base in "rwa" for more in ("", "b", "+", "b+", "+b"))
_FILE_MODE = _may("mode", Kind.STRING, choices=FILE_MODES, refused="invalid file open mode '{}'")
_SHUTDOWN_MODE = _may(
    "mode",
    Kind.STRING,
    choices=("halt", "powerdown", "reboot"),
    refused="mode is invalid (valid values are: halt|powerdown|reboot",  # sic
)
_INPUT = _may("input-data", Kind.BASE64, secret=True, refused="Base64 data contains invalid characters")
_KEYS = _given("keys", Kind.LIST, _TEXTS)
_STATED = (_given("online", Kind.BOOLEAN), _may("can-offline", Kind.BOOLEAN))  # the latter as it was told: ignored
_BLOCK = _struct("block", _given("phys-index", Kind.INTEGER), *_STATED)
_CPU = _struct("cpu", _given("logical-id", Kind.INTEGER), *_STATED)


def _fact(name: str, handler: str, disk: Disk, doc: str, **more: Any) -> Rpc:
    return Rpc(f"guest-{name}", handler, _W, disk, doc, "as qemu-ga", limit=_FACTS, **more)


def _act(name: str, handler: str, doc: str, *params: Param) -> Rpc:
    return Rpc(f"guest-{name}", handler, _W, _WRITE, doc, "nothing", params, limit=60)


def _of_file(
    name: str, handler: str, doc: str, *more: Param, bulky: bool = False, blocked_with: tuple[str, ...] = ()
) -> Rpc:
    return Rpc(
        f"guest-file-{name}",
        handler,
        _K,
        _WRITE,
        doc,
        "as qemu-ga",
        (_HANDLE, *more),
        limit=60,
        of="guest-file-open",
        unknown=_NO_HANDLE,
        bulky=bulky,
        blocked_with=blocked_with,
    )


GUEST_ROWS = (
    Rpc(
        "guest-sync-delimited",
        "inline.sync",
        _I,
        _NONE,
        "As guest-sync, behind a byte 0xFF.",
        "id",
        (_ID,),
        essential=True,
        needed_frozen=True,
        watches=True,
    ),
    Rpc(
        "guest-sync",
        "inline.sync",
        _I,
        _NONE,
        "Answer; drop replies to what is older.",
        "id",
        (_ID,),
        essential=True,
        needed_frozen=True,
        watches=True,
    ),
    Rpc(
        "guest-ping",
        "inline.ping",
        _I,
        _NONE,
        "Answer, to show that the agent lives.",
        "nothing",
        essential=True,
        needed_frozen=True,
    ),
    Rpc(
        "guest-info",
        "inline.info",
        _I,
        _NONE,
        "Tell which commands are admitted now.",
        "as qemu-ga",
        essential=True,
        needed_frozen=True,
        watches=True,
    ),
    Rpc(
        "guest-fsfreeze-status",
        "inline.fsfreeze_status",
        _I,
        _NONE,
        "Tell whether the guest is frozen; in the middle of a freeze or thaw the answer waits for the outcome.",
        "the string thawed or frozen",
        essential=True,
        blocked_with=("va.fsstatus",),
        needed_frozen=True,
        watches=True,
    ),
    Rpc(
        "guest-fsfreeze-freeze",
        "methods.fsfreeze",
        _W,
        Disk.FREEZES,
        "Sync and freeze the file systems, as va.fsfreeze does.",
        "number of file systems frozen",
        compensation="thaw",
        outlives=True,
        blocked_with=("va.fsfreeze",),
    ),
    Rpc(
        "guest-fsfreeze-freeze-list",
        "methods.fsfreeze",
        _W,
        Disk.FREEZES,
        "Freeze the file systems that have one of these mount points; unknown ones are ignored.",
        "number of file systems frozen",
        (_may("mountpoints", Kind.LIST, _TEXTS),),
        compensation="thaw",
        outlives=True,
        blocked_with=("va.fsfreeze", "guest-fsfreeze-freeze"),
    ),
    Rpc(
        "guest-fsfreeze-thaw",
        "inline.fsfreeze_thaw",
        _I,
        _NONE,
        "Thaw, as va.fsthaw does; tells if the last freeze was broken.",
        "number of file systems thawed",
        essential=True,
        blocked_with=("va.fsthaw",),
        needed_frozen=True,
    ),
    _fact("get-time", "system.get_time", _NONE, "Tell the time of day."),
    _fact("get-host-name", "system.get_host_name", _NONE, "Tell the host name."),
    _fact("get-timezone", "system.get_timezone", _READ, "Tell the time zone."),
    _fact("get-osinfo", "system.get_osinfo", _READ, "Tell kernel and distribution."),
    _fact("get-users", "system.get_users", _READ, "Tell who is logged in."),
    _fact("get-load", "system.get_load", _NONE, "Tell the load averages.", since=(10, 0)),
    _fact("get-cpustats", "cpus.get_cpustats", _NONE, "Tell what the processors did."),
    _fact("get-vcpus", "cpus.get_vcpus", _NONE, "Tell which processors are online."),
    _fact("get-memory-blocks", "cpus.get_memory_blocks", _NONE, "Tell which memory blocks are online."),
    _fact("get-memory-block-info", "cpus.get_memory_block_info", _NONE, "Tell how large a memory block is."),
    _fact("get-disks", "disks.get_disks", _NONE, "Tell the disks and partitions."),
    _fact("get-diskstats", "disks.get_diskstats", _NONE, "Tell what the disks did."),
    _fact(
        "get-fsinfo",
        "disks.get_fsinfo",
        _READ,
        "Tell the mounted file systems and the disks that they lie on.",
        adds=("qga",),
    ),
    _fact("network-get-interfaces", "network.network_get_interfaces", _NONE, "Tell interfaces and addresses."),
    _fact("network-get-route", "network.network_get_route", _NONE, "Tell the routes.", since=(9, 1)),
    _act(
        "set-time",
        "machine.set_time",
        "Set the clock, from the hardware's if no time is given.",
        _may("time", Kind.INTEGER),
    ),
    Rpc(
        "guest-set-vcpus",
        "machine.set_vcpus",
        _W,
        _NONE,
        "Take processors online or offline.",
        "how many of the list were done",
        (_given("vcpus", Kind.LIST, _CPU),),
        limit=120,
    ),
    Rpc(
        "guest-set-memory-blocks",
        "machine.set_memory_blocks",
        _W,
        _NONE,
        "Take memory blocks online or offline.",
        "as qemu-ga",
        (_given("mem-blks", Kind.LIST, _BLOCK),),
        limit=120,
    ),
    Rpc(
        "guest-fstrim",
        "machine.fstrim",
        _W,
        _WRITE,
        "Tell the disks which blocks are not used any more.",
        "as qemu-ga",
        (_may("minimum", Kind.INTEGER),),
        limit=3600,
    ),
    Rpc(
        "guest-shutdown",
        "machine.shutdown",
        _W,
        _WRITE,
        "Shut the guest down; thaws first.",
        "nothing, and no reply",
        (_SHUTDOWN_MODE,),
        limit=30,
        thaws_first=True,
        adds=("command",),
        blocked_with=("va.shutdown",),
    ),
    _act("suspend-disk", "machine.suspend_disk", "Suspend to the disk; no reply."),
    _act("suspend-ram", "machine.suspend_ram", "Suspend to memory; no reply."),
    _act("suspend-hybrid", "machine.suspend_hybrid", "Suspend to memory and disk; no reply."),
    Rpc(
        "guest-file-open",
        "files.file_open",
        _W,
        _WRITE,
        "Open a file and keep it open.",
        "its handle",
        (_PATH, _FILE_MODE),
        limit=30,
        holds=_FILES_MAX,
        adds=("handle",),
    ),
    _of_file("close", "files.file_close", "Close the file."),
    _of_file(
        "read",
        "files.file_read",
        "Read from the file, at most 48 MiB.",
        _may("count", Kind.INTEGER),
        bulky=True,
        blocked_with=("va.getfile",),
    ),
    _of_file(
        "write",
        "files.file_write",
        "Write to the file.",
        _given("buf-b64", Kind.STRING, secret=True),
        _may("count", Kind.INTEGER),
    ),
    _of_file("seek", "files.file_seek", "Move in the file.", _given("offset", Kind.INTEGER), _WHENCE),
    _of_file("flush", "files.file_flush", "Hand what was written to the kernel."),
    Rpc(
        "guest-exec",
        "exec.guest_exec",
        _W,
        _WRITE,
        "Start a program, and keep what it prints and how it ends; it may run for the option exec-limit.",
        "its pid",
        (
            _PATH,
            _may("arg", Kind.LIST, _TEXTS),
            _may("env", Kind.LIST, _TEXTS, secret=True),
            _INPUT,
            _CAPTURE,
        ),
        limit=30,
        holds=_PROGRAMS_MAX,
        adds=("limit", "grace", "qga"),
        outlives=True,
    ),
    Rpc(
        "guest-exec-status",
        "exec.exec_status",
        _K,
        _NONE,
        "Tell whether the program has ended, once how, and what it printed.",
        "as qemu-ga",
        (_given("pid", Kind.INTEGER),),
        limit=30,
        of="guest-exec",
        unknown=_NO_PID,
        bulky=True,
    ),
    _act(
        "set-user-password",
        "accounts.set_user_password",
        "Set a user's password.",
        _USER,
        _given("password", Kind.STRING, secret=True),
        _given("crypted", Kind.BOOLEAN),
    ),
    Rpc(
        "guest-ssh-get-authorized-keys",
        "accounts.ssh_get_authorized_keys",
        _W,
        _READ,
        "Tell a user's SSH keys.",
        "as qemu-ga",
        (_USER,),
        limit=30,
    ),
    _act(
        "ssh-add-authorized-keys",
        "accounts.ssh_add_authorized_keys",
        "Add to a user's SSH keys, or replace them.",
        _USER,
        _KEYS,
        _may("reset", Kind.BOOLEAN),
    ),
    _act(
        "ssh-remove-authorized-keys",
        "accounts.ssh_remove_authorized_keys",
        "Remove from a user's SSH keys.",
        _USER,
        _KEYS,
    ),
)

"""The commands of the QEMU guest agent protocol, one row each, as in `rpcs`. JSON names them, XML-RPC does not."""

from __future__ import annotations

from .handlers import freezing, guest_self
from .params import Kind, Param
from .rpc import Disk, Rpc, Runs

_I, _W, _K = Runs.INLINE, Runs.WORKER, Runs.KEEPER
_ID = (Param("id", Kind.INTEGER, "any number, 64 bits"),)

GUEST_ROWS = (
    Rpc(
        "guest-sync-delimited",
        guest_self.sync,
        _I,
        Disk.NONE,
        "Answer the number, behind a byte 0xFF; drop the replies to all older requests.",
        "the number",
        _ID,
        essential=True,
    ),
    Rpc(
        "guest-sync",
        guest_self.sync,
        _I,
        Disk.NONE,
        "Answer the number; drop the replies to all older requests.",
        "the number",
        _ID,
        essential=True,
    ),
    Rpc(
        "guest-ping",
        guest_self.ping,
        _I,
        Disk.NONE,
        "Answer, to show that the agent lives.",
        "empty object",
        essential=True,
    ),
    Rpc(
        "guest-info",
        guest_self.info,
        _I,
        Disk.NONE,
        "Tell version and commands, and which are admitted now.",
        "object {version, supported_commands}",
        essential=True,
    ),
    Rpc(
        "guest-fsfreeze-status",
        guest_self.fsfreeze_status,
        _I,
        Disk.NONE,
        "Tell whether the guest is frozen; in the middle of a freeze or thaw the answer waits.",
        "the string thawed or frozen",
        essential=True,
    ),
    Rpc(
        "guest-fsfreeze-freeze",
        freezing.fsfreeze,
        _W,
        Disk.FREEZES,
        "Sync and freeze the file systems, as va.fsfreeze does.",
        "number of file systems frozen",
        compensation="thaw",
        outlives=True,
    ),
    Rpc(
        "guest-fsfreeze-freeze-list",
        freezing.fsfreeze,
        _W,
        Disk.FREEZES,
        "Freeze the file systems with these mount points; unknown ones are ignored.",
        "number of file systems frozen",
        (
            Param(
                "mountpoints",
                Kind.LIST,
                "mount points",
                required=False,
                fields=(Param("mountpoint", Kind.STRING, "path"),),
            ),
        ),
        compensation="thaw",
        outlives=True,
    ),
    Rpc(
        "guest-fsfreeze-thaw",
        guest_self.fsfreeze_thaw,
        _I,
        Disk.NONE,
        "Thaw, as va.fsthaw does.",
        "number of file systems thawed",
        essential=True,
    ),
)

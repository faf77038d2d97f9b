"""A row of the table of RPCs."""

from __future__ import annotations

import enum

from . import qemu
from .params import Param
from .structs import Value


class Runs(enum.Enum):
    """Where the handler runs."""

    INLINE = "inline"
    WORKER = "worker"
    RESOURCE = "resource"


class Disk(enum.Enum):
    """What the RPC does to file systems. Only NONE and READ are admitted while the state is not THAWED."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    FREEZES = "freezes"


class Rpc(Value):
    """One RPC.

    `handler` names a function that agent/worker/handlers.py or supervisor/core/inline.py binds. INLINE it gets the
    engine, the turn, the call and the arguments; in a WORKER the worker and the arguments; for a RESOURCE the resource
    that the first parameter names, and the arguments (`of` is the row that opened the resource, `unknown` the text of
    the fault if there is no such resource). A handler whose row `holds` returns a resource for its worker to hold; the
    number says how many such workers there may be. `adds` names what the supervisor adds to the arguments. The reply
    of a `bulky` row may be tens of megabytes. `limit` is how many seconds the worker may run, or the resource may
    take; if it is None, the phases of a freeze have their own limits, or `limited_by` names the option whose limit the
    worker keeps itself. `compensation` names the row that undoes what a dead or killed worker may have left. A row that
    `thaws_first` is admitted in any state, and starts once the file systems are thawed, or cannot be. The worker of a
    row that `outlives` the supervisor goes on when the supervisor dies, to thaw or to end what it has started; the
    others die with it. Only `public` rows may be called by hosts. `blocked_with` names the rows that do the same, in
    whole or in part: whoever blocks one of them has blocked this one. What a frozen guest needs (`needed_frozen`) is
    admitted until the guest is thawed, whatever is blocked. The success of a row that only `watches` is logged at level
    debug, and never waits in the audit ring (ADR 0023). Before one that `prepares` the writers do, too. A command of
    qemu-ga is there `since` that version of QEMU.
    """

    name: str
    handler: str
    runs: Runs
    disk: Disk
    doc: str
    returns: str
    params: tuple[Param, ...] = ()
    limit: float | None = None
    compensation: str | None = None
    essential: bool = False
    thaws_first: bool = False
    public: bool = True
    outlives: bool = False
    holds: int = 0
    of: str | None = None
    unknown: str = ""
    adds: tuple[str, ...] = ()
    bulky: bool = False
    limited_by: str = ""
    blocked_with: tuple[str, ...] = ()
    needed_frozen: bool = False
    prepares: bool = False
    watches: bool = False
    since: qemu.Version = (0, 0)

    def help(self) -> str:
        """Return what the RPC does, takes and returns, a line each."""
        takes = "".join(f"\n{p.name} ({p.kind.value}): {p.doc}" for p in self.params)
        members = "".join(f"\n  {f.name} ({f.kind.value}): {f.doc}" for p in self.params for f in p.fields)
        return f"{self.doc}{takes}{members}\nReturns: {self.returns}."

    @property
    def is_guest(self) -> bool:
        """Whether this is a command of the QEMU guest agent protocol, which only JSON can call."""
        return self.name.startswith("guest-")  # ADR 0021: XML-RPC does not know these names

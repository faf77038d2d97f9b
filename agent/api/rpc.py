"""What a row of the table of RPCs says."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .params import Param


class Runs(enum.Enum):
    """Where the handler runs."""

    INLINE = "inline"
    WORKER = "worker"
    RESOURCE = "resource"


class Disk(enum.Enum):
    """What the RPC does to file systems; while not thawed only NONE and READ are admitted."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    FREEZES = "freezes"


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC.

    `handler` names the function, which agent/worker/handlers.py and supervisor/core/inline.py bind: it gets the engine,
    the call and the arguments inline, the worker and the arguments in a worker, or the resource and the arguments in
    the worker that holds what the first parameter names (`of` is the row that opened it, `unknown` the fault's text if
    there is none). `holds` is how many such workers there may be at once; the handler then returns the resource.
    `adds` names what the supervisor adds to the arguments. A `bulky` row's reply may be tens of megabytes. `limit` is
    how long the worker may run, or the resource may take, in seconds; None: the phases of the freeze have their own,
    or the option that `limited_by` names is the limit, which the worker keeps itself. `compensation` names the row that
    undoes what a dead or killed worker may have left. A row that `thaws_first` is admitted in any state and starts once
    the file systems are thawed, or cannot be. A row that `outlives` the supervisor goes on when that dies, to thaw or
    to end what it has started; the others die with it. A row that is not `public` is the agent's own. `blocked_with`
    names the rows that do the same, in whole or in part: who blocks one of them has blocked this one. What a frozen
    guest needs (`needed_frozen`) is admitted until the guest is thawed, whatever is blocked.
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

    def help(self) -> str:
        """Return what it does, takes and returns, a line each."""
        takes = "".join(f"\n{p.name} ({p.kind.value}): {p.doc}" for p in self.params)
        members = "".join(f"\n  {f.name} ({f.kind.value}): {f.doc}" for p in self.params for f in p.fields)
        return f"{self.doc}{takes}{members}\nReturns: {self.returns}."

    @property
    def is_guest(self) -> bool:
        """Whether this is a command of the QEMU guest agent protocol: such a name is known to JSON alone."""
        return self.name.startswith("guest-")

"""The last way out of state ERROR (ADR 0032): an operator says that a file system counts as thawed. Pure.

It is for what no thaw worker can prove: the superblock lives, and neither a way to it nor its device does, or its disk
never answers. It may stay frozen until the next boot, so this is said loudly, and nothing but a request does it. A
freeze worker that may still freeze is waited for all the same (promise 6).
"""

from __future__ import annotations

from ...agent.api.errors import Code, Fault
from ...agent.api.states import FreezeEvent
from ...agent.api.text import listed
from .freeze import Freeze
from .turn import Turn
from .workers import Workers


def forget(turn: Turn, freeze: Freeze, workers: Workers, name: str) -> int:
    """Count as thawed what cannot be thawed; return how many others may be frozen still.

    `name` is a mount point or dev:MAJOR:MINOR. Raises Fault: WRONG_STATE unless the state is ERROR, PARAMS if that is
    not exactly one that may be frozen.
    """
    if not freeze.expects(FreezeEvent.FORGOTTEN):
        raise Fault(Code.WRONG_STATE, f"va.fsforget needs state ERROR, the state is {freeze.state.name}")
    ledger = freeze.current.ledger
    suspects = [(index, ledger.marks[index].mount) for index in sorted(ledger.suspects)]
    found = [(index, m) for index, m in suspects if name in (m.mountpoint, *m.aliases, f"dev:{m.device}")]
    if len(found) != 1:
        named = listed(f"{mount.mountpoint} (dev:{mount.device})" for _, mount in found or suspects)
        why = "is the mount point of" if found else "is not what may be frozen:"
        raise Fault(Code.PARAMS, f"va.fsforget: {name[:80]!r} {why} {named or 'nothing, but a worker is stuck'}")
    ((index, mount),) = found
    forgotten = f"va.fsforget: {mount.mountpoint} ({mount.device}) counts as thawed, and may be frozen still"
    turn.log("err", f"{forgotten}; only a thaw by hand or a boot would end that")
    for number in ledger.forget(index):
        if (thawer := workers.get(number)) is not None:
            workers.arm(turn, thawer, 0)  # ADR 0015: it is not killed, and ends when it can
    freeze.take(turn, FreezeEvent.FORGOTTEN, forgotten)
    return len(ledger.suspects)

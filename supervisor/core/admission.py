"""How many workers and replies there may be at once: what is over that is refused with BUSY. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ...agent.api.errors import Code, Fault
from ...agent.api.methods import RPCS, Disk, Rpc
from .pending import Call
from .workers import Worker, while_clause

BULKY_MAX = 8  # calls in progress whose replies may be tens of megabytes
DYING_MAX = 8  # workers that were killed, and that a disk does not let end


def room_for_reply(row: Rpc, calls: Iterable[Call]) -> None:
    """Raise Fault BUSY if too many large replies are under way; the call that asks is one of `calls`."""
    if row.bulky and sum(RPCS[call.request.method].bulky for call in calls if call.request.method in RPCS) > BULKY_MAX:
        raise Fault(Code.BUSY, f"{row.name}: {BULKY_MAX} calls with large replies are under way")


def room_for_worker(row: Rpc, workers: Iterable[Worker], most: int) -> None:
    """Raise Fault BUSY if `most` workers run, or too many killed ones are not dead yet.

    Of the dead, those of freezes, those that shut the guest down and the others count apart, so a disk on which others
    hang never keeps a freeze out, and a guest whose disk is dead can be rebooted.
    """
    workers = list(workers)
    if sum(worker.call is not None and not worker.dying for worker in workers) >= most:
        raise Fault(Code.BUSY, f"{row.name}: {most} workers run already; call again later")
    dying = [worker for worker in workers if worker.dying and worker.row.public]
    hang = [worker for worker in dying if _kind(worker.row) == _kind(row)]
    if len(hang) >= DYING_MAX:
        where = "; ".join(dict.fromkeys(f"{worker.row.name}{while_clause(worker)}" for worker in hang))
        raise Fault(Code.BUSY, f"{row.name}: {len(hang)} workers were killed and still hang in the kernel: {where}")


def _kind(row: Rpc) -> tuple[bool, bool]:
    return row.disk is Disk.FREEZES, row.thaws_first

"""The resources that workers hold for hosts between requests: open files and started programs. Pure.

The life of such a worker is in agent/worker/resource.py. It answers requests in order, each within the limit of its
row. A worker that overruns is killed, and its resource is lost.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from ...agent.api.errors import Code, Fault, from_number
from ...agent.api.methods import Disk, Rpc
from ...agent.api.states import Phase
from ...agent.api.structs import Struct, field
from ...agent.worker import messages
from .pending import Pending
from .turn import Turn
from .workers import Worker, Workers

ASKED_MAX = 64  # requests that wait for one worker
ASKED_BYTES = 64 << 20  # of all requests that wait for any worker
RELEASABLE_MAX = 8  # resources that may be dropped, and are held all the same


class _Asked(NamedTuple):
    """A request that waits: the call, its row, the size of its arguments."""

    call: int
    row: Rpc
    size: int


class ResourceWorker(Struct):
    """A worker that holds a resource: `key` is the number for hosts, `asked` who waits for it, oldest first."""

    worker: Worker
    key: int | None
    releasable: bool = False
    asked: deque[_Asked] = field(default_factory=deque)


class Resources:
    """The workers that hold a resource."""

    def __init__(self, workers: Workers, pending: Pending) -> None:
        self._workers = workers
        self._pending = pending
        self._holders: dict[int, ResourceWorker] = {}  # by worker, oldest first

    def make_room(self, turn: Turn, row: Rpc) -> None:
        """Drop a resource that may be dropped if `row` holds too many; raise Fault BUSY if none may be."""
        mine = [worker for worker in self._workers if worker.row is row]
        if len(mine) < row.holds:
            return
        holders = [self._holders[worker.id] for worker in mine if worker.id in self._holders]
        spare = next((holder for holder in holders if holder.releasable and not holder.asked), None)
        if spare is None:
            raise Fault(Code.BUSY, f"{row.name}: {row.holds} are kept already")
        self._drop(turn, spare)

    def receive(
        self,
        turn: Turn,
        worker: Worker,
        message: messages.Acquired | messages.Replied | messages.Declined | messages.Releasable,
    ) -> str:
        """Take a report about what the worker holds; return what is wrong with it, "" if nothing is."""
        if not worker.alive:
            return ""  # sent before the kill took effect; those who waited were answered then
        match message:
            case messages.Acquired():
                self._acquired(turn, worker, message)
            case messages.Releasable():
                self._releasable(turn, worker)
            case _:
                return self._replied(turn, worker, message)
        return ""

    def _acquired(self, turn: Turn, worker: Worker, message: messages.Acquired) -> None:
        """Take the worker's first answer; from now on it holds what it opened or started."""
        for other in list(self._holders.values()):
            if other.worker.row is worker.row and other.key == message.key:
                self._drop(turn, other)  # the kernel has given out its pid again
        self._holders[worker.id] = ResourceWorker(worker, message.key)
        self._workers.enter_phase(turn, worker, Phase.KEEP, 0)
        self._workers.describe(worker, f"keeping {message.key}")
        self._pending.answer(turn, worker.call, message.value)
        self._workers.answered(worker)

    def ask(self, turn: Turn, row: Rpc, args: dict[str, Any], call: int) -> int:
        """Ask the worker that holds what the request names, and return its number; raise Fault if no worker does."""
        key = args[row.params[0].name]
        for holder in self._holders.values():
            if holder.key == key and holder.worker.row.name == row.of and holder.worker.alive:
                break
        else:
            raise Fault(Code.FAILED, row.unknown.format(key))
        if len(holder.asked) >= ASKED_MAX:
            raise Fault(Code.BUSY, f"{row.name}: {ASKED_MAX} requests wait for {key} already")
        size = sum(len(value) for value in args.values() if isinstance(value, str))
        if size + sum(one.size for k in self._holders.values() for one in k.asked) > ASKED_BYTES:
            raise Fault(Code.BUSY, f"{row.name}: too much is to be written already; call again later")
        holder.asked.append(_Asked(call, row, size))
        if len(holder.asked) == 1:
            self._begin(turn, holder)
        turn.tell(holder.worker.id, messages.Ask(call, row.name, args))  # ADR 0020: never a worker for all resources
        return holder.worker.id

    def _replied(self, turn: Turn, worker: Worker, message: messages.Replied | messages.Declined) -> str:
        """Take an answer; return what is wrong with it, "" if nothing is."""
        holder = self._holders.get(worker.id)
        if holder is None or not holder.asked or holder.asked[0].call != message.call:
            return f"{type(message).__name__} to call {message.call}, which did not ask"
        holder.asked.popleft()
        self._begin(turn, holder)
        match message:
            case messages.Replied(call, value):
                self._pending.answer(turn, call, value)
            case messages.Declined(call, code, text):
                self._pending.answer(turn, call, from_number(code, text))
        return ""

    def _releasable(self, turn: Turn, worker: Worker) -> None:
        """Take note that the worker's resource may be dropped when room is needed."""
        if worker.id in self._holders:
            self._holders[worker.id].releasable = True
            idle = [k for k in self._holders.values() if k.releasable and not k.asked]
            if len(idle) > RELEASABLE_MAX:
                self._drop(turn, idle[0])

    def disk(self, worker: Worker) -> Disk:
        """Return what the worker's present request does to the disk."""
        holder = self._holders.get(worker.id)
        return holder.asked[0].row.disk if holder is not None and holder.asked else Disk.NONE

    def drop(self, turn: Turn, worker: Worker) -> bool:
        """Let the worker drop its resource and end, if its row outlives the agent; return whether it does."""
        holder = self._holders.get(worker.id)
        if holder is None or not worker.row.outlives:
            return False
        self._drop(turn, holder)
        return True

    def lost(self, turn: Turn, worker: Worker, fault: Fault) -> None:
        """Answer those who wait for the worker: it is killed or gone, and its resource with it."""
        holder = self._holders.pop(worker.id, None)
        if holder is not None:
            for call, row, _ in holder.asked:
                # A worker that ended in good order has answered all before; later requests name no resource any more.
                late = isinstance(worker.outcome, messages.Done)
                self._pending.answer(turn, call, Fault(Code.FAILED, row.unknown.format(holder.key)) if late else fault)

    def _begin(self, turn: Turn, holder: ResourceWorker) -> None:
        """Begin the limit of the request that was asked first."""
        row = holder.asked[0].row if holder.asked else None
        self._workers.enter_phase(turn, holder.worker, Phase.KEEP, (row.limit or 0) if row else 0)
        self._workers.describe(holder.worker, f"doing {row.name} of {holder.key}" if row else f"keeping {holder.key}")

    def _drop(self, turn: Turn, holder: ResourceWorker) -> None:
        turn.tell(holder.worker.id, messages.Drop())
        holder.releasable = False
        holder.key = None

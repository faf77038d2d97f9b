"""What workers keep for hosts between requests: open files, started programs. Pure.

The life of such a worker is agent/keeping.py. What is asked of one is answered in order, and each answer has the limit
of its row; a worker that overruns is killed, and what it kept is lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...agent.api.errors import Code, Fault, from_number
from ...agent.api.methods import Disk, Rpc
from ...agent.api.states import Phase
from ...agent.worker import messages
from .events import Effect, Tell
from .pending import Calls
from .workers import Worker, Workers

ASKED_MAX = 64  # requests that wait for one worker
ASKED_BYTES = 64 << 20  # of all that wait for any
RELEASABLE_MAX = 8  # of those that may be dropped, as many are kept all the same


class _Asked(NamedTuple):
    """A request that waits: the call, its row, how large its arguments are."""

    call: int
    row: Rpc
    size: int


@dataclass(slots=True)
class ResourceWorker:
    """A worker that keeps something: the row that it runs, its number for hosts, who waits for it, oldest first."""

    worker: Worker
    key: int | None
    loose: bool = False
    asked: deque[_Asked] = field(default_factory=deque)


class Resources:
    """The workers that keep something."""

    def __init__(self, out: list[Effect], workers: Workers, calls: Calls) -> None:
        self._out = out
        self._workers = workers
        self._calls = calls
        self._keepers: dict[int, ResourceWorker] = {}  # by worker, oldest first

    def make_room(self, row: Rpc) -> None:
        """Drop what may be dropped if `row` keeps too many already; raise Fault BUSY if nothing may."""
        mine = [worker for worker in self._workers if worker.row is row]
        if len(mine) < row.holds:
            return
        keepers = [self._keepers[worker.id] for worker in mine if worker.id in self._keepers]
        loose = next((keeper for keeper in keepers if keeper.loose and not keeper.asked), None)
        if loose is None:
            raise Fault(Code.BUSY, f"{row.name}: {row.holds} are kept already")
        self._drop(loose)

    def kept(self, worker: Worker, message: messages.Acquired, now: float) -> None:
        """The worker has answered its call and keeps what that opened or started."""
        for other in list(self._keepers.values()):
            if other.worker.row is worker.row and other.key == message.key:
                self._drop(other)  # a pid that the kernel gave out again
        self._keepers[worker.id] = ResourceWorker(worker, message.key)
        self._workers.enter_phase(worker, Phase.KEEP, 0, now)
        worker.doing = f"keeping {message.key}"
        self._calls.answer(worker.call, message.value, now)
        worker.call = None

    def ask(self, row: Rpc, args: dict[str, Any], call: int, now: float) -> int:
        """Hand the request to the worker that keeps what it names and return its number; raise Fault if none does."""
        key = args[row.params[0].name]
        for keeper in self._keepers.values():
            if keeper.key == key and keeper.worker.row.name == row.of and keeper.worker.alive:
                break
        else:
            raise Fault(Code.FAILED, row.unknown.format(key))
        if len(keeper.asked) >= ASKED_MAX:
            raise Fault(Code.BUSY, f"{row.name}: {ASKED_MAX} requests wait for {key} already")
        size = sum(len(value) for value in args.values() if isinstance(value, str))
        if size + sum(one.size for k in self._keepers.values() for one in k.asked) > ASKED_BYTES:
            raise Fault(Code.BUSY, f"{row.name}: too much is to be written already; call again later")
        keeper.asked.append(_Asked(call, row, size))
        if len(keeper.asked) == 1:
            self._begin(keeper, now)
        self._out.append(Tell(keeper.worker.id, messages.Ask(call, row.name, args)))
        return keeper.worker.id

    def replied(self, worker: Worker, message: messages.Replied | messages.Declined, now: float) -> str:
        """Take an answer; return what is wrong with it, empty if nothing."""
        keeper = self._keepers.get(worker.id)
        if keeper is None or not keeper.asked or keeper.asked[0].call != message.call:
            return f"{type(message).__name__} to call {message.call}, which did not ask"
        keeper.asked.popleft()
        self._begin(keeper, now)
        match message:
            case messages.Replied(call, value):
                self._calls.answer(call, value, now)
            case messages.Declined(call, code, text):
                self._calls.answer(call, from_number(code, text), now)
        return ""

    def loose(self, worker: Worker) -> None:
        """What the worker keeps may be dropped when room is needed."""
        if worker.id in self._keepers:
            self._keepers[worker.id].loose = True
            idle = [k for k in self._keepers.values() if k.loose and not k.asked]
            if len(idle) > RELEASABLE_MAX:
                self._drop(idle[0])

    def disk(self, worker: Worker) -> Disk:
        """Return what that which the worker was asked for does to the disk."""
        keeper = self._keepers.get(worker.id)
        return keeper.asked[0].row.disk if keeper is not None and keeper.asked else Disk.NONE

    def drop(self, worker: Worker) -> bool:
        """Have the worker let go of what it keeps, and end, if that outlives the agent; return whether it does."""
        keeper = self._keepers.get(worker.id)
        if keeper is None or not worker.row.outlives:
            return False
        self._drop(keeper)
        return True

    def lost(self, worker: Worker, fault: Fault, now: float) -> None:
        """The worker is killed or gone, and with it what it kept: answer whoever waits for it."""
        keeper = self._keepers.pop(worker.id, None)
        if keeper is not None:
            for call, row, _ in keeper.asked:
                # What ended as it should has answered all; for whoever came too late there is no such thing any more.
                late = isinstance(worker.outcome, messages.Done)
                self._calls.answer(call, Fault(Code.FAILED, row.unknown.format(keeper.key)) if late else fault, now)

    def _begin(self, keeper: ResourceWorker, now: float) -> None:
        """The worker begins with what was asked first, and has its limit for that."""
        row = keeper.asked[0].row if keeper.asked else None
        self._workers.enter_phase(keeper.worker, Phase.KEEP, (row.limit or 0) if row else 0, now)
        keeper.worker.doing = f"doing {row.name} of {keeper.key}" if row else f"keeping {keeper.key}"

    def _drop(self, keeper: ResourceWorker) -> None:
        self._out.append(Tell(keeper.worker.id, messages.Drop()))
        keeper.loose = False
        keeper.key = None

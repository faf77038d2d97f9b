"""The lives of the workers: one record each, one setter of its state, and the words for its end.

Pure: forking, killing and reaping are effects. What a worker's life means for a freeze is in freezing.py.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ...agent.api.methods import Rpc
from ...agent.api.states import WORKER_TABLE, Phase, Unlisted, WorkerEvent, WorkerState, following
from ...agent.worker import messages
from .events import Adopt, Effect, Kill, Log, Spawn
from .timing import Deadlines

ORPHAN_GRACE = 0.5  # seconds that the worker of a dead supervisor has to thaw and end by itself
LOOK_AGAIN = 1.0  # seconds until a worker that was in the kernel at its limit is looked at again
_FREEZES = (messages.Plan, messages.Frozen, messages.Held, messages.Thawing)
_SYNCS = (messages.Step, messages.Progress)
_KEEPS = (messages.Acquired, messages.Replied, messages.Declined, messages.Releasable)
ALIVE = (WorkerState.SPAWNED, WorkerState.RUNNING, WorkerState.HOLDING)


@dataclass(slots=True)
class Worker:
    """One forked process. `doing` says what it was at last, or finds out; times are seconds of the loop's clock."""

    id: int
    row: Rpc
    call: int | None
    born: float
    state: WorkerState = WorkerState.SPAWNED
    pid: int = 0
    phase: Phase = Phase.RUN
    phase_since: float = 0.0
    limit: float = 0.0
    doing: str | Callable[[], str] = ""
    why_killed: str = ""
    rubbish: bool = False
    killed: bool = False
    outcome: messages.Done | messages.Failed | None = None
    key: tuple[str, str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.phase_since = self.born
        self.key = ("core", "worker", self.id)

    @property
    def name(self) -> str:
        """What titles, log and faults call it."""
        return f"worker {self.id} {self.row.name}"

    @property
    def alive(self) -> bool:
        """Whether it runs and nothing has ended it yet."""
        return self.state in ALIVE


class Workers:
    """All workers that are not reaped yet."""

    def __init__(self, out: list[Effect], deadlines: Deadlines) -> None:
        self._out = out
        self._deadlines = deadlines
        self.exit_grace = self.kill_grace = 0.0
        self._live: dict[int, Worker] = {}
        self.last_id = 0
        self.changes = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._live.values()))

    def get(self, number: int) -> Worker | None:
        """Return the worker of that number, None if it is reaped."""
        return self._live.get(number)

    def spawn(self, row: Rpc, args: dict[str, object], call: int | None, limit: float, now: float) -> Worker:
        """Fork a worker for `row`; `limit` in seconds, 0 is none."""
        self.last_id += 1
        worker = Worker(self.last_id, row, call, now)
        self._live[worker.id] = worker
        self._out.append(Spawn(worker.id, row.name, args))
        self.enter_phase(worker, Phase.RUN, limit, now)
        return worker

    def adopt(self, row: Rpc, orphan: tuple[int, int], now: float) -> Worker:
        """Take the worker that a dead supervisor left (pid, start time). Its reports go nowhere.

        It is about to thaw by itself and to end. If not, it is looked at, and killed unless it is in the kernel.
        """
        self.last_id += 1
        worker = Worker(self.last_id, row, None, now, pid=orphan[0], doing="thawing for a supervisor that died")
        self._live[worker.id] = worker
        self._out.append(Adopt(worker.id, *orphan))
        self.change(worker, WorkerEvent.STARTED, now)
        self.enter_phase(worker, Phase.THAW, ORPHAN_GRACE, now)
        return worker

    def enter_phase(self, worker: Worker, phase: Phase, limit: float, now: float) -> None:
        """Begin a phase with its limit (seconds from now, 0 is none)."""
        worker.phase, worker.phase_since, worker.limit = phase, now, limit
        self.arm(worker, limit, now)
        self.changes += 1

    def arm(self, worker: Worker, seconds: float, now: float) -> None:
        """Have the worker's deadline come after `seconds`, 0 is never."""
        if seconds:
            self._deadlines.arm(worker.key, now + seconds)
        else:
            self._deadlines.cancel(worker.key)

    def change(self, worker: Worker, event: WorkerEvent, now: float) -> None:
        """Take `event` into the worker's life, the only place that does; raise Unlisted if the table has no such row.

        Arms the grace of the state that is entered, and sends SIGKILL on entering KILLED.
        """
        state = following(WORKER_TABLE, worker.state, event)
        if state is worker.state:
            return
        worker.state = state
        self.changes += 1
        if state in (WorkerState.KILLED, WorkerState.STUCK) and not isinstance(worker.doing, str):
            worker.doing = worker.doing()  # what others do to the same file system from now on is not its doing
        if state is WorkerState.REPORTED:
            self.arm(worker, self.exit_grace, now)
        elif state is WorkerState.KILLED:
            self._out.append(Kill(worker.id))
            self.arm(worker, self.kill_grace, now)
        elif state is WorkerState.STUCK:
            self.arm(worker, 0 if worker.killed else LOOK_AGAIN, now)
            self._out.append(Log("err", f"{worker.name} is stuck in the kernel{at(worker)}{worker.why_killed}"))
        elif state is WorkerState.REAPED:
            self._deadlines.cancel(worker.key)
            del self._live[worker.id]

    def kill(self, worker: Worker, event: WorkerEvent, why: str, now: float) -> None:
        """Kill the worker (event LIMIT, CANCELLED, RUBBISH or GRACE); `why` completes the sentence of its death."""
        worker.why_killed = worker.why_killed or why
        worker.killed = True
        self.change(worker, event, now)

    def receive(self, worker: Worker, message: messages.Report, now: float) -> str:
        """Take a report into the worker's life; return what is wrong with it, empty if nothing.

        What a worker of this kind may not say is wrong, like what its state does not allow.
        """
        if isinstance(message, _FREEZES) and not worker.row.compensation:
            return f"{type(message).__name__} from a worker that does not freeze"
        if isinstance(message, _SYNCS) and not (worker.row.outlives or worker.row.limited_by):
            return f"{type(message).__name__} from {worker.row.name}"
        if isinstance(message, _KEEPS) and not worker.row.holds:
            return f"{type(message).__name__} from a worker that keeps nothing"
        try:
            self.change(worker, WorkerEvent(type(message).__name__), now)
        except Unlisted as unlisted:
            return str(unlisted)
        if isinstance(message, messages.Progress) and worker.row.limited_by and worker.phase is Phase.RUN:
            worker.phase, worker.phase_since = Phase.SYNC, now
            self.changes += 1
        if isinstance(message, messages.Done | messages.Failed):
            worker.outcome = message
        return ""

    def death(self, worker: Worker, number: int, code: int, now: float) -> str:
        """Return the sentence of a worker's death: who, by what signal or code, after how long, at what, why."""
        how = f"killed by {signal_name(number)}" if number else f"ended with exit code {code}"
        return f"{worker.name} {how} after {now - worker.born:.1f} s{at(worker)}{worker.why_killed}"


def at(worker: Worker) -> str:
    """Return ` while doing so and so`, or nothing."""
    doing = worker.doing if isinstance(worker.doing, str) else worker.doing()
    return f" while {doing}" if doing else ""


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

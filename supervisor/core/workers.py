"""The lives of the workers: a record for each, one setter of its state, and the sentence for its death.

Pure: forking, killing and reaping are effects. What they mean for a freeze is in freeze.py.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from ...agent.api.methods import Rpc
from ...agent.api.states import WORKER_TABLE, Phase, Unlisted, WorkerEvent, WorkerState, following
from ...agent.api.structs import Struct
from ...agent.worker import messages
from .events import Entry, Fields, Lifeline
from .turn import Turn

ORPHAN_GRACE = 0.5  # seconds in which the worker of a dead supervisor may thaw and end by itself
WRITER, UNLATCH = "writer", "unlatch"  # the rows of the workers of writers
LOOK_AGAIN = 1.0  # seconds until another look at a worker that was in the kernel at its limit
_SAID = {kind: WorkerEvent(name) for name, kind in messages.REPORTS.items()}
_FREEZES = {
    WorkerEvent.PLAN,
    WorkerEvent.SYNCED,
    WorkerEvent.FROZEN,
    WorkerEvent.HELD,
    WorkerEvent.LEARNT,
    WorkerEvent.THAWING,
}
_SYNCS = {WorkerEvent.STEP, WorkerEvent.PROGRESS}
_OF_WRITERS = {WorkerEvent.ACTED}
_OF_RESOURCES = {WorkerEvent.ACQUIRED, WorkerEvent.REPLIED, WorkerEvent.DECLINED, WorkerEvent.RELEASABLE}
ALIVE = (WorkerState.SPAWNED, WorkerState.RUNNING, WorkerState.HOLDING)
DYING = (WorkerState.KILLED, WorkerState.STUCK)


class Worker(Struct):
    """One forked process. Times are seconds of the loop's clock.

    `doing` is, or returns, what it did last, `about` the fields of a log entry that names what it did that to.
    """

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
    about: Fields | Callable[[], Fields] = ()
    why_killed: str = ""
    rubbish: bool = False
    killed: bool = False
    outcome: messages.Done | messages.Failed | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """The key of its limit among the timers."""
        return "core", "worker", self.id

    @property
    def name(self) -> str:
        """The worker's name in titles, log and faults."""
        return f"worker {self.id} {self.row.name}"

    @property
    def alive(self) -> bool:
        """Whether it runs, and has neither reported its end nor been killed."""
        return self.state in ALIVE

    @property
    def dying(self) -> bool:
        """Whether it was killed, or is stuck in the kernel."""
        return self.state in DYING


class Workers:
    """All workers that are not reaped yet. Only this class changes their records."""

    def __init__(self) -> None:
        self._exit_grace = self._kill_grace = 0.0
        self._live: dict[int, Worker] = {}
        self.last_id = 0
        self.changes = 0

    def configure(self, exit_grace: float, kill_grace: float) -> None:
        """Set how many seconds a worker has to end after its report, and after SIGKILL."""
        self._exit_grace, self._kill_grace = exit_grace, kill_grace

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._live.values()))

    def get(self, number: int) -> Worker | None:
        """Return the worker with this number, None if it is reaped."""
        return self._live.get(number)

    def spawn(
        self,
        turn: Turn,
        row: Rpc,
        args: dict[str, object],
        call: int | None,
        limit: float,
        lifeline: Lifeline | None = None,
    ) -> Worker:
        """Fork a worker for `row`; `limit` is in seconds, 0 means no limit."""
        self.last_id += 1
        worker = Worker(self.last_id, row, call, turn.now, phase_since=turn.now)
        self._live[worker.id] = worker
        turn.spawn(worker.id, row, args, lifeline)
        self.enter_phase(turn, worker, Phase.RUN, limit)
        return worker

    def spawned(self, number: int, pid: int) -> None:
        """Take note that the worker was forked."""
        self._live[number].pid = pid

    def adopt(self, turn: Turn, row: Rpc, orphan: tuple[int, int]) -> Worker:
        """Adopt the worker that a dead supervisor left (pid, start time); nobody can read its reports (ADR 0016).

        It should thaw and end by itself soon. If it does not, it is killed, unless it is in the kernel then.
        """
        self.last_id += 1
        doing = "thawing for a supervisor that died"
        worker = Worker(self.last_id, row, None, turn.now, pid=orphan[0], phase_since=turn.now, doing=doing)
        self._live[worker.id] = worker
        turn.adopt(worker.id, *orphan)
        self.change(turn, worker, WorkerEvent.STARTED)
        self.enter_phase(turn, worker, Phase.THAW, ORPHAN_GRACE)
        return worker

    def enter_phase(self, turn: Turn, worker: Worker, phase: Phase, limit: float) -> None:
        """Begin a phase with its limit (seconds from now, 0 means no limit)."""
        worker.phase, worker.phase_since, worker.limit = phase, turn.now, limit
        self.arm(turn, worker, limit)
        self.changes += 1

    def arm(self, turn: Turn, worker: Worker, seconds: float) -> None:
        """Arm the worker's deadline after `seconds`; 0 disarms it."""
        if seconds:
            turn.arm(worker.key, seconds)
        else:
            turn.cancel(worker.key)

    def limit(self, turn: Turn, worker: Worker, until: float) -> None:
        """Let the phase that it is in end at that second, which may have passed."""
        self.arm(turn, worker, max(until - turn.now, 1e-3))
        worker.limit = until - worker.phase_since

    def describe(
        self, worker: Worker, doing: str | Callable[[], str], about: Fields | Callable[[], Fields] = ()
    ) -> None:
        """Remember what it does now, for the sentence of its death, and to what, for the entry that it is stuck."""
        worker.doing, worker.about = doing, about

    def answered(self, worker: Worker) -> None:
        """Take note that the call that it was forked for is answered; the worker goes on."""
        worker.call = None

    def change(self, turn: Turn, worker: Worker, event: WorkerEvent) -> None:
        """Change the worker's state by `event`; raise Unlisted if the table has no such row. The only setter.

        Arms the grace of the new state; sends SIGKILL if that is KILLED.
        """
        state = following(WORKER_TABLE, worker.state, event)
        if state is not worker.state:
            worker.state = state
            self.changes += 1
            self._ENTERED[state](self, turn, worker)

    def _entered_nothing(self, turn: Turn, worker: Worker) -> None:
        pass

    def _entered_reported(self, turn: Turn, worker: Worker) -> None:
        self.arm(turn, worker, self._exit_grace)

    def _entered_killed(self, turn: Turn, worker: Worker) -> None:
        self._fix_doing(worker)
        turn.kill(worker.id)
        self.arm(turn, worker, self._kill_grace)

    def _entered_stuck(self, turn: Turn, worker: Worker) -> None:
        self._fix_doing(worker)
        self.arm(turn, worker, 0 if worker.killed else LOOK_AGAIN)
        about = worker.about
        assert isinstance(about, tuple)
        text = f"{worker.name} is stuck in the kernel{while_clause(worker)}{worker.why_killed}"
        turn.log("err", text, Entry("stuck", (("phase", worker.phase.value), *about)))

    def _entered_reaped(self, turn: Turn, worker: Worker) -> None:
        turn.cancel(worker.key)
        del self._live[worker.id]

    _ENTERED: ClassVar[Mapping[WorkerState, Callable[[Workers, Turn, Worker], None]]] = {
        WorkerState.RUNNING: _entered_nothing,
        WorkerState.HOLDING: _entered_nothing,
        WorkerState.REPORTED: _entered_reported,
        WorkerState.KILLED: _entered_killed,
        WorkerState.STUCK: _entered_stuck,
        WorkerState.REAPED: _entered_reaped,
    }

    def _fix_doing(self, worker: Worker) -> None:
        # From now on other workers change the file systems that this is computed from.
        worker.doing = worker.doing if isinstance(worker.doing, str) else worker.doing()
        worker.about = worker.about if isinstance(worker.about, tuple) else worker.about()

    def kill(self, turn: Turn, worker: Worker, event: WorkerEvent, why: str) -> None:
        """Kill the worker (event LIMIT, CANCELLED, RUBBISH or GRACE); `why` completes the sentence of its death."""
        worker.why_killed = worker.why_killed or why
        worker.killed = True
        worker.rubbish |= event is WorkerEvent.RUBBISH
        self.change(turn, worker, event)

    def receive(self, turn: Turn, worker: Worker, message: messages.Report) -> str:
        """Change the worker's state by a report; return what is wrong with it, "" if nothing is.

        A report is wrong if this kind of worker may not send it, or may not in its state.
        """
        event = _SAID[type(message)]
        syncs = event is WorkerEvent.PLAN and worker.row.limited_by
        if event in _FREEZES and not (worker.row.compensation or syncs):
            return f"{type(message).__name__} from a worker that does not freeze"
        if event in _SYNCS and not (worker.row.outlives or worker.row.limited_by):
            return f"{type(message).__name__} from {worker.row.name}"
        if event in _OF_WRITERS and worker.row.name != WRITER:
            return f"{type(message).__name__} from a worker that is no writer"
        if event in _OF_RESOURCES and not worker.row.holds:
            return f"{type(message).__name__} from a worker that keeps nothing"
        try:
            self.change(turn, worker, event)
        except Unlisted as unlisted:
            return str(unlisted)
        if event is WorkerEvent.PROGRESS and worker.row.limited_by and worker.phase is Phase.RUN:
            worker.phase, worker.phase_since = Phase.SYNC, turn.now
            self.changes += 1
        if isinstance(message, messages.Done | messages.Failed):
            worker.outcome = message
        return ""

    def death(self, turn: Turn, worker: Worker, number: int, code: int) -> str:
        """Return the sentence for a worker's death: who, by what signal or code, after how long, doing what, why."""
        how = f"killed by {signal_name(number)}" if number else f"ended with exit code {code}"
        ran = turn.now - worker.born
        return f"{worker.name} {how} after {ran:.1f} s{while_clause(worker)}{worker.why_killed}"


def while_clause(worker: Worker) -> str:
    """Return " while" and what the worker was doing, or ""."""
    doing = worker.doing if isinstance(worker.doing, str) else worker.doing()
    return f" while {doing}" if doing else ""


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

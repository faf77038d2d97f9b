"""The supervisor's decisions: handle(event, now) -> effects. Owns all state; no I/O, no clock.

A request is admitted by the one predicate of the RPC table, checked against its parameters, and answered inline or
given to a worker. What a worker's report, death or overrun means for a freeze is decided in freezing.py.
"""

from __future__ import annotations

from typing import Any

from ...agent.api.errors import Code, Fault, from_number
from ...agent.api.methods import RPCS, Disk, Rpc, Runs, arguments, public, refusal
from ...agent.api.states import FreezeState, WorkerEvent, WorkerState
from ...agent.wire.qmp import SILENT
from ...agent.worker import messages
from ..config import BadConfig, Config, reread
from . import audit, inline, pending, titles
from .events import (
    Configured,
    Disconnected,
    Due,
    Effect,
    Event,
    Exited,
    GivenUp,
    Journaled,
    JournalFailed,
    JournalFound,
    KeepHandle,
    Log,
    LogStatus,
    Malformed,
    Probed,
    Quit,
    Reload,
    Reported,
    ReportEnded,
    Requested,
    RubbishReported,
    ShowStatus,
    Spawned,
    SpawnFailed,
    Stopped,
    Woken,
)
from .freezing import Freezing
from .options import additions, freeze_options, limit_of
from .pending import DEFERRED, Call, Deferred
from .polls import Polls
from .resources import Resources
from .state import State
from .status import Record, record
from .thawing import RETRY, Thawing
from .timing import Deadlines, Key
from .workers import Worker, Workers, at

BULKY_MAX = 8  # calls under way whose replies may be tens of megabytes
CALLS_MAX = 64  # calls under way on one connection: tagged ones need not give way to each other


class Core:
    """The state of the supervisor, and what it offers to the inline handlers (inline.py)."""

    def __init__(self, config: Config, version: str, now: float, next_handle: int, deadlines: Deadlines) -> None:
        self.version = version
        self._start = self._now = now
        self._out: list[Effect] = []
        self._deadlines = deadlines
        self._workers = Workers(self._out, self._deadlines)
        self._audit = audit.Audit()
        self._calls = pending.Calls(self._out, self._deadlines, self._record)
        self._state = State(self._out)
        self._thawing = Thawing(self._out, self._deadlines, self._workers, self._calls, self._state)
        self._thawing.on_over = self._over
        self._freezing = Freezing(self._out, self._workers, self._calls, self._state, self._thawing)
        self._resources = Resources(self._out, self._workers, self._calls)
        self._handle = next_handle
        self._polls = Polls(self._calls, self._deadlines, self._status)
        self._after_thaw: list[tuple[pending.Call, Rpc, dict[str, Any]]] = []
        self._stopping = ""
        self._title = titles.Title()
        self._configure(config)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (seconds of the loop's clock) and return what is to be done, in order.

        The caller feeds `Due` for each deadline that has passed before any other event: an answer must not be given on
        a hold that is over.
        """
        self._now = now
        self._take(event)
        if not (isinstance(event, Reported) and event.more):
            self._show(now)
        effects, self._out[:] = list(self._out), ()
        return effects

    def _show(self, now: float) -> None:
        """Let the change be seen: by who waits for it, in the audit log, in the title."""
        self._polls.tell(self._seq(), self._state.now, now)
        if self._state.now is FreezeState.THAWED:
            self._out.extend(Log("audit", text) for text in self._audit.take())
        self._out.extend(self._title.changed(self._state, self._thawing.freeze, self._workers))

    @property
    def thawed(self) -> bool:
        """Whether nothing may be frozen."""
        return self._state.now is FreezeState.THAWED

    def _take(self, event: Event) -> None:
        now = self._now
        match event:
            case Requested():
                self._requested(event)
            case Malformed():
                self._audit.add(audit.malformed(event))
            case GivenUp(connection, token):
                self._calls.abandon(connection, token, now)
            case Disconnected(connection):
                self._calls.abandon(connection, None, now)
            case Reported(number, message):
                self._reported(self._worker(number), message)
            case RubbishReported(number, why):
                self._rubbish(self._worker(number), why)
            case Exited(number, signal, code):
                worker = self._worker(number)
                self._exited(worker, self._workers.death(worker, signal, code, now))
            case Spawned(number, pid):
                self._worker(number).pid = pid
            case SpawnFailed(number, error):
                worker = self._worker(number)
                self._exited(worker, f"{worker.name} could not be forked: {error.strerror}")
            case Journaled(number):
                self._freezing.journaled(number, None, now)
            case JournalFailed(number, error):
                self._freezing.journaled(number, error, now)
            case Probed(number, state):
                # What drew the question may have ended the worker, too.
                probed = self._workers.get(number)
                if probed is not None and (probed.alive or probed.state is WorkerState.STUCK):
                    self._freezing.probed(probed, state, now)
            case JournalFound():
                self._freezing.recover(event, freeze_options(self._config, "start", None), now)
            case Reload():
                self._reload()
            case ShowStatus():
                self._out.append(LogStatus(self._status()))
            case Stopped(signal):
                self._stopping = f"the agent was stopped: {signal}"
                self._out.append(Log("notice", self._stopping))
                self._freezing.stop(self._stopping, now)
                if self.thawed:
                    self._over(now)
            case ReportEnded(number):
                self._workers.change(self._worker(number), WorkerEvent.REPORT_END, now)
            case Due(key):
                self._due(key)
            case Woken():
                pass  # only what is to be shown is shown

    # -- requests

    def _requested(self, request: Requested) -> None:
        call = self._calls.open(request, self._now)
        self._thawing.wall = request.wall - self._now
        if request.unheard:
            self._calls.abandon(request.connection, request.token, self._now)
        try:
            if self._calls.count(request.connection) > CALLS_MAX:
                raise Fault(Code.BUSY, f"{request.method[:80]}: {CALLS_MAX} calls of this connection wait already")
            row = public(request.method)
            if row.bulky and self._bulky() > BULKY_MAX:
                raise Fault(Code.BUSY, f"{row.name}: {BULKY_MAX} calls with large replies are under way")
            if request.crowded and not row.essential:
                raise Fault(Code.BUSY, f"{row.name}: too many replies are not read; call again later")
            if (refused := self._refusal(row)) is not None:
                raise refused
            self._run(call, row, arguments(row, request.params))
        except Fault as fault:
            self._calls.answer(call.id, fault, self._now)

    def _bulky(self) -> int:
        return sum(RPCS[call.request.method].bulky for call in self._calls if call.request.method in RPCS)

    def _refusal(self, row: Rpc) -> Fault | None:
        return refusal(
            row,
            self._state.now,
            blocked=not self._config.allows(row.name),
            audit_full=self._audit.full,
            stopping=bool(self._stopping),
        )

    def _run(self, call: pending.Call, row: Rpc, args: dict[str, Any]) -> None:
        if row.runs is Runs.INLINE:
            value = inline.HANDLERS[row.handler](self, call, args)
            if value is not DEFERRED:
                self._calls.answer(call.id, value, self._now)
        elif row.thaws_first and self._state.now not in (FreezeState.THAWED, FreezeState.ERROR):
            if self._after_thaw:
                raise Fault(Code.BUSY, f"{row.name}: it was asked already, and waits for the thaw")
            self._after_thaw.append((call, row, args))
            self._freezing.stop(f"{row.name} was called", self._now)
        elif row.runs is Runs.RESOURCE:
            call.worker = self._resources.ask(row, args, call.id, self._now)
        else:
            self._fork(call, row, args)
        options = args.get("options")
        if options and row.name != "va.fsstatus" and options["wait"] is not None:
            self._calls.limit_wait(call, options["wait"], self._now)

    def _fork(self, call: pending.Call, row: Rpc, args: dict[str, Any]) -> None:
        if sum(worker.call is not None for worker in self._workers) >= self._config.max_workers:
            raise Fault(Code.BUSY, f"{row.name}: {self._config.max_workers} workers run already; call again later")
        if row.holds:
            self._resources.make_room(row)
        if row.disk is Disk.FREEZES:
            options = freeze_options(self._config, row.name, args.get("options"), args.get("mountpoints"))
            self._freezing.begin(call.id, options, self._config.plan_limit, self._now)
            call.worker = self._workers.last_id
            return
        if "options" in args:
            args = {"options": freeze_options(self._config, row.name, args["options"])}
        if row.adds:
            added = additions(self._config, self._handle)
            args = args | {name: added[name] for name in row.adds}
        if "handle" in row.adds:
            self._handle += 1
            self._out.append(KeepHandle(self._handle))
        call.worker = self._workers.spawn(row, args, call.id, limit_of(row, args), self._now).id

    # -- what is offered to the inline handlers

    def methods(self) -> list[str]:
        """Return the names of the methods that a host may call here."""
        return [r.name for r in RPCS.values() if r.public and not r.is_guest and self._config.allows(r.name)]

    def commands(self) -> list[dict[str, Any]]:
        """Return name, enabled and success-response of all that a host may call by JSON, `enabled` as of now."""
        return [
            {
                "name": row.name,
                "enabled": self._refusal(row) is None,
                "success-response": row.name not in SILENT,
            }
            for row in RPCS.values()
            if row.public
        ]

    def help(self, method: str) -> str:
        """Return the help text of a method; raise Fault PARAMS if there is none of that name."""
        if method not in self.methods():
            raise Fault(Code.PARAMS, f"system.methodHelp: no method {method[:80]!r}")
        return RPCS[method].help()

    def thaw(self, call: Call) -> int | Deferred:
        """Thaw, cancel, retry or join."""
        return self._freezing.thaw(call.id, self._now)

    def hold(self, call: Call, seconds: float) -> Deferred:
        """Extend the hold; raise Fault WRONG_STATE if nothing is held."""
        return self._freezing.hold(call.id, seconds, self._now)

    def state_number(self) -> int:
        """Return the number of the freeze state."""
        return int(self._state.now)

    def status(self, call: Call, since: int | None, wait: float | None) -> Any:
        """Return the status record once its seq is another than `since`, at the latest after `wait` seconds."""
        if since is None or since != self._seq():
            return self._status()
        self._polls.wait(call.id, since, wait, self._now)
        return DEFERRED

    def settled(self, call: Call) -> str | Deferred:
        """Return "thawed" or "frozen"; while neither is true the answer waits for the outcome."""
        return self._polls.settle(call.id, self._state.now) or DEFERRED

    # -- workers

    def _worker(self, number: int) -> Worker:
        worker = self._workers.get(number)
        assert worker is not None, f"an event for worker {number}, which is reaped"
        return worker

    def _reported(self, worker: Worker, message: messages.Report) -> None:
        wrong = self._workers.receive(worker, message, self._now)
        if not wrong and self._freezing.owns(worker):
            wrong = self._freezing.receive(worker, message, self._now)
        elif not wrong:
            match message:
                case messages.Done(str(value)) if worker.row.name == "reload":
                    self._reloaded(value)
                case messages.Failed(_, text) if worker.row.name == "reload":
                    self._out.append(Log("err", f"the configuration stays as it was: {text}"))
                case messages.Done(value) if worker.call is not None:
                    self._calls.answer(worker.call, value, self._now)
                case messages.Failed(code, text):
                    self._calls.answer(worker.call, from_number(code, text), self._now)
                    self._resources.lost(worker, from_number(code, text), self._now)
                case messages.Acquired() | messages.Replied() | messages.Declined() | messages.Releasable() if (
                    not worker.alive
                ):
                    pass  # sent before the kill took effect; whoever waited was told
                case messages.Acquired():
                    self._resources.kept(worker, message, self._now)
                case messages.Replied() | messages.Declined():
                    wrong = self._resources.replied(worker, message, self._now)
                case messages.Releasable():
                    self._resources.loose(worker)
                case messages.Started() | messages.Step() | messages.Progress():
                    pass
                case messages.Done() if worker.row.holds:
                    pass  # what it kept has ended, or was dropped
                case _:
                    wrong = f"{type(message).__name__} from {worker.row.name}"
        if wrong:
            self._rubbish(worker, wrong)

    def _rubbish(self, worker: Worker, why: str) -> None:
        worker.rubbish = True
        self._kill(worker, WorkerEvent.RUBBISH, f": it reported rubbish ({why})", Code.WORKER_DIED)

    def _kill(self, worker: Worker, event: WorkerEvent, why: str, code: Code) -> None:
        self._workers.kill(worker, event, why, self._now)
        if self._freezing.owns(worker):
            self._freezing.killed(worker, self._now)
        else:
            ran = self._now - worker.phase_since
            fault = Fault(code, f"{worker.name}{at(worker)} was killed after {ran:.1f} s{why}")
            self._calls.answer(worker.call, fault, self._now)
            self._resources.lost(worker, fault, self._now)

    def _exited(self, worker: Worker, death: str) -> None:
        unreported = worker.killed or worker.outcome is None
        if unreported:
            self._out.append(Log("warning", death))
        owned = self._freezing.owns(worker)
        self._workers.change(worker, WorkerEvent.EXIT, self._now)
        if owned:
            self._freezing.exited(worker, unreported, death, self._now)
        else:
            self._calls.answer(worker.call, Fault(Code.WORKER_DIED, death), self._now)
            self._resources.lost(worker, Fault(Code.WORKER_DIED, death), self._now)

    def _worker_due(self, worker: Worker) -> None:
        if worker.state is WorkerState.KILLED:
            self._workers.change(worker, WorkerEvent.GRACE, self._now)
            self._thawing.advance(self._now)
        elif worker.state is WorkerState.REPORTED:
            self._kill(worker, WorkerEvent.GRACE, ": it did not end after its report", Code.WORKER_DIED)
        elif self._freezing.owns(worker):
            self._freezing.limit_passed(worker, self._now)
        elif not self.thawed and Disk.WRITE in (worker.row.disk, self._resources.disk(worker)):
            self._workers.arm(worker, worker.limit, self._now)  # it may wait for the thaw, which is not its fault
        else:
            self._kill(worker, WorkerEvent.LIMIT, f": its limit of {worker.limit:g} s passed", Code.OVERRUN)

    # -- configuration

    def _configure(self, config: Config) -> None:
        self._config = config
        self._workers.exit_grace, self._workers.kill_grace = config.exit_grace, config.kill_grace
        self._thawing.limit, self._freezing.hold_max = config.thaw_limit, config.hold_limit_max
        self._audit.ring = config.audit_ring

    def _reload(self) -> None:
        row = RPCS["reload"]
        if not self.thawed:
            self._out.append(Log("warning", f"SIGHUP is refused: the state is {self._state.now.name}"))
        elif not any(worker.row is row for worker in self._workers):
            self._workers.spawn(
                row, {"path": self._config.file, "needed": self._config.file_needed}, None, row.limit or 0, self._now
            )

    def _reloaded(self, text: str) -> None:
        if not self.thawed:
            self._out.append(Log("warning", "the configuration stays as it was: a freeze began; send SIGHUP again"))
            return
        try:
            fresh, kept = reread(self._config, text)
        except BadConfig as error:
            self._out.append(Log("err", f"the configuration stays as it was: {error}"))
            return
        self._configure(fresh)
        needs = f"; {', '.join(kept)} change only with a restart" if kept else ""
        self._out += [Configured(fresh), Log("notice", f"the configuration {fresh.file} was read again{needs}")]

    # -- the rest

    def _due(self, key: Key) -> None:
        match key:
            case ("core", "worker", int(number)):
                self._worker_due(self._worker(number))
            case ("core", "call", int(number)):
                self._calls.wait_passed(number, self._now)
            case ("core", "poll", int(number)):
                self._polls.due(number, self._now)
            case _:
                assert key == RETRY, f"unknown deadline {key!r}"
                self._thawing.advance(self._now)

    def _seq(self) -> int:
        return 1 + self._state.changes + self._workers.changes

    def _status(self) -> Record:
        counts = (self._audit.waiting, self._audit.dropped)
        times = (self._start, self._now)
        return record(
            self._state, self._thawing, self._workers, self._deadlines, self._seq(), self.version, counts, times
        )

    def _record(self, call: pending.Call, outcome: str, fault: Fault | None, now: float) -> None:
        self._audit.add(audit.line(call, outcome, fault, now))

    def _over(self, now: float) -> None:
        """The freeze is thawed, or cannot be for now: do what waited for that."""
        if self._stopping:
            self._quit(now)
            return
        waited, self._after_thaw = self._after_thaw, []
        for call, row, args in waited:
            try:
                self._fork(call, row, args)
            except Fault as fault:
                self._calls.answer(call.id, fault, now)

    def _quit(self, now: float) -> None:
        if not self.thawed:
            return  # in ERROR it goes on trying: only a guest that is thawed is left
        self._polls.tell_all(now)
        for worker in self._workers:
            if worker.row.thaws_first:
                self._calls.answer(worker.call, "dummy", now)  # it works: the signal comes from what it has started
        self._calls.answer_all(Fault(Code.WRONG_STATE, self._stopping), now)
        for worker in self._workers:
            if worker.alive and not self._resources.drop(worker):
                self._workers.kill(worker, WorkerEvent.CANCELLED, f": {self._stopping}", now)
        self._out.append(Quit(0))

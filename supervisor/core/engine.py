"""The supervisor's decisions: handle(event, now) -> effects. No I/O, no clock.

A request is admitted by the predicate of the RPC table, its parameters are checked, and it is answered inline or given
to a worker. What the report, death or overrun of a worker means for a freeze is decided in reports.py and freeze.py,
what it means for an open file or a started program in resources.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ...agent.api import qemu
from ...agent.api.errors import Code, Fault, from_number
from ...agent.api.methods import Disk, Rpc, Runs, arguments, public, refusal
from ...agent.api.records import Status
from ...agent.api.states import FreezeState, WorkerEvent, WorkerState
from ...agent.worker import messages
from ..config import Config
from . import audit, ending, events, forgetting, titles
from .admission import room_for_reply, room_for_worker
from .compensation import RETRY
from .events import Effect, Event, Requested
from .freeze import Freeze
from .options import additions, freeze_options, limit_of
from .participation import Participation
from .pending import DEFERRED, Call, Deferred, Pending
from .presync import Presync
from .queues import Queues
from .reloading import Reloading
from .reports import FreezeReports
from .resources import Resources
from .status import Records
from .timing import Deadlines
from .turn import Turn
from .waiting import Waiting
from .warnings import Warnings
from .workers import Worker, Workers, while_clause
from .writers import BAD, Writers

InlineHandler = Callable[["Engine", Turn, Call, dict[str, Any]], Any]
CALLS_MAX = 64  # calls in progress on one connection: a tagged one does not replace an older one


class Engine:
    """The state of the supervisor, and what the handlers of inline.py may use of it."""

    def __init__(
        self,
        config: Config,
        version: str,
        now: float,
        next_handle: int,
        deadlines: Deadlines,
        inline: Mapping[str, InlineHandler],
        *,
        last_freeze: int = 0,
        wall: float = 0.0,
    ) -> None:
        """Begin at `now`, which is `wall` by the time of day; `inline` has the handlers of the inline rows by name."""
        self.version = version
        self._inline = inline
        self._wall_offset = wall - now if wall else 0.0
        self._deadlines = deadlines
        self._audit = audit.Audit()
        self._workers = Workers()
        self._pending = Pending(self._audit, lambda turn: self._records.record(turn))
        self._writers = Writers(self._workers, lambda turn: self._participation.changed(turn))
        self._freeze = Freeze(self._workers, self._pending, self._writers, self._settled, last_freeze)
        self._participation = Participation(self._freeze, self._workers, self._writers)
        self._freeze_reports = FreezeReports(self._freeze, self._workers, self._participation)
        self._resources = Resources(self._workers, self._pending)
        self._queues = Queues(self._workers)
        self._handle = next_handle
        self._waiting = Waiting(self._freeze, self._pending, self.refusal, self._fork, self._spawn)
        self._presync = Presync(self._freeze, self._writers, self._pending, self._spawn)
        self._stopping = ""
        self._warnings = Warnings(self._freeze, self._workers)
        self._title = titles.Title()
        self._records = Records(self._freeze, self._workers, self._writers, self._audit, version, now)
        self._reloading = Reloading(self._workers, self._configure)
        self._configure(config)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (seconds of the loop's clock); return the effects to apply, in order.

        The caller must first feed `Due` for each deadline that has passed: an answer must not be based on a hold that
        is over.
        """
        turn = Turn(now, now + self._wall_offset, self._deadlines)
        self._HANDLERS[type(event)](self, turn, event)
        if self._queues.awaited:
            self._quit(turn)
        if not (isinstance(event, events.Reported) and event.more):
            self._show(turn)
        return turn.effects

    def _show(self, turn: Turn) -> None:
        """Show the change to those who wait for it, in the audit log and in the title."""
        self._waiting.held(turn)
        self._warnings.note(turn, self._records.note(turn))
        self._pending.tell_news(turn, self._records.seq, self._freeze.state)
        if self._audit.waiting and self._freeze.thawed:
            for text in self._audit.take():
                turn.log("audit", text)
        self._title.show(turn, self._freeze, self._workers, self._writers, stopping=bool(self._stopping))

    @property
    def thawed(self) -> bool:
        """Whether nothing may be frozen."""
        return self._freeze.thawed

    @property
    def idle(self) -> bool:
        """Whether nothing may be frozen, and no writer is being let go."""
        return self._freeze.thawed and not self._freeze.busy

    # -- requests

    def _requested(self, turn: Turn, request: Requested) -> None:
        call = self._pending.open(turn, request)
        turn.told(request.wall)
        self._wall_offset = request.wall - turn.now
        if request.unheard:
            self._pending.abandon(turn, request.connection, request.token)
        try:
            if self._pending.count(request.connection) > CALLS_MAX:
                raise Fault(Code.BUSY, f"{request.method[:80]}: {CALLS_MAX} calls of this connection wait already")
            row = public(request.method, self.qga)
            room_for_reply(row, self._pending)
            if request.crowded and not row.essential:
                raise Fault(Code.BUSY, f"{row.name}: too many replies are not read; call again later")
            refused = self.refusal(row)
            if refused is not None and not (refused.code is Code.REFUSED_WHILE_FROZEN and self._waiting.takes(row)):
                raise refused
            self._run(turn, call, row, arguments(row, request.params))
        except Fault as fault:
            self._pending.answer(turn, call.id, fault)

    def refusal(self, row: Rpc) -> Fault | None:
        """Return why a call of `row` is not admitted now, None if it is."""
        return refusal(
            row,
            FreezeState.THAWED if self._freeze.over else self._freeze.state,
            blocked=not self.allows(row.name),
            audit_full=self._audit.full,
            stopping=bool(self._stopping),
        )

    def _run(self, turn: Turn, call: Call, row: Rpc, args: dict[str, Any]) -> None:
        if row.runs is Runs.INLINE:
            value = self._inline[row.handler](self, turn, call, args)
            if value is not DEFERRED:
                self._pending.answer(turn, call.id, value)
        elif row.thaws_first and (self._freeze.under_way or self._freeze.busy):
            room_for_worker(row, self._workers, self._config.max_workers)  # refused before the freeze is ended
            self._waiting.add(call, row, args)
            self._freeze.stop(turn, f"{row.name} was called")
        elif (self._freeze.busy and (row.disk is Disk.FREEZES or row.prepares)) or self._waiting.takes(row):
            self._waiting.add(call, row, args)
        elif row.runs is Runs.RESOURCE:
            self._pending.runs_in(call, self._resources.ask(turn, row, args, call.id))
        else:
            self._fork(turn, call, row, args)
        options = args.get("options")
        if options and row.name != "va.fsstatus" and options["wait"] is not None:
            self._pending.limit_wait(turn, call, options["wait"])

    def _fork(self, turn: Turn, call: Call, row: Rpc, args: dict[str, Any]) -> None:
        room_for_worker(row, self._workers, self._config.max_workers)
        if row.holds:
            self._resources.make_room(turn, row)
        if row.disk is Disk.FREEZES:
            given = (args.get("options"), args.get("mountpoints"), self._freeze.learnt.known)
            options = freeze_options(self._config, row.name, *given, wall=turn.wall)
            worker = self._freeze.begin(turn, call, options, self._config.plan_limit)
            self._pending.runs_in(call, worker.id)
            return
        if "options" in args:
            options = freeze_options(self._config, row.name, args["options"], None, self._freeze.learnt.known)
            if row.prepares and options.waits:
                self._presync.prepare(turn, call, row, options)
                return
            args = {"options": options}
        self._spawn(turn, call, row, args)

    def _spawn(self, turn: Turn, call: Call, row: Rpc, args: dict[str, Any]) -> None:
        if row.adds:
            added = additions(self._config, self._handle, self._freeze.history.past(), args.get("options"))
            args = args | {name: added[name] for name in row.adds}
        if "handle" in row.adds:
            self._handle += 1
            turn.do(events.KeepHandle(self._handle))
        worker = self._workers.spawn(turn, row, args, call.id, limit_of(row, args))
        self._pending.runs_in(call, worker.id)

    def _disconnected(self, turn: Turn, event: events.Disconnected) -> None:
        self._pending.abandon(turn, event.connection, None)
        self._freeze.disconnected(turn, event)
        self._waiting.disconnected(event)

    # -- what the inline handlers may use

    def allows(self, method: str) -> bool:
        """Return whether the configuration lets hosts call this method."""
        return self._config.allows(method)

    @property
    def freeze(self) -> Freeze:
        """The machine of the freeze."""
        return self._freeze

    def forget(self, turn: Turn, name: str) -> int:
        """Count a file system as thawed that cannot be thawed; see `forgetting`."""
        return forgetting.forget(turn, self._freeze, self._workers, name)

    def status(
        self, turn: Turn, call: Call, since: int | None, wait: float | None, *, brief: bool, past: bool
    ) -> Status | Deferred:
        """Return the status record once its seq differs from `since`, at the latest after `wait` seconds."""
        if since is not None and since == self._records.seq:
            self._pending.wait_for_news(turn, call, since, wait, brief=brief)
            return DEFERRED
        told = self._freeze.history.past() if past else ()
        return self._freeze.when_reaped(turn, call, lambda now: self._pending.record(now, brief=brief, past=told))

    # -- workers

    def _worker(self, number: int) -> Worker:
        worker = self._workers.get(number)
        assert worker is not None, f"an event for worker {number}, which is reaped"
        return worker

    def _spawned(self, _turn: Turn, event: events.Spawned) -> None:
        self._workers.spawned(event.worker, event.pid)

    def _spawn_failed(self, turn: Turn, event: events.SpawnFailed) -> None:
        worker = self._worker(event.worker)
        self._ended(turn, worker, f"{worker.name} could not be forked: {event.error.strerror}")

    def _exited(self, turn: Turn, event: events.Exited) -> None:
        worker = self._worker(event.worker)
        self._ended(turn, worker, self._workers.death(turn, worker, event.signal, event.code))

    def _reported(self, turn: Turn, event: events.Reported) -> None:
        worker, message = self._worker(event.worker), event.message
        wrong = self._workers.receive(turn, worker, message)
        if not wrong:
            if self._freeze.owns(worker):
                wrong = self._freeze_reports.receive(turn, worker, message)
            elif self._writers.owns(worker):
                wrong = self._writers.receive(turn, worker, message)
            elif worker.row.disk is not Disk.FREEZES:  # ADR 0024: one that was called off says nothing new
                wrong = self._take(turn, worker, message)
        if wrong:
            self._rubbish(turn, worker, wrong)

    def _take(self, turn: Turn, worker: Worker, message: messages.Report) -> str:
        """Take a report of a worker that does not freeze; return what is wrong with it, "" if nothing is."""
        match message:
            case _ if worker.row.name == "reload" and self._reloading.read(turn, self._config, message, idle=self.idle):
                pass
            case messages.Done(value) if worker.call is not None:
                self._pending.answer(turn, worker.call, value)
            case messages.Failed(code, text):
                self._lost(turn, worker, from_number(code, text))
            case messages.Started():
                pass
            case messages.Plan() | messages.Step() | messages.Progress() if worker.row.limited_by:
                return self._records.syncs.receive(worker, message, turn.now)
            case messages.Step() | messages.Progress():
                pass
            case messages.Done() if worker.row.holds or not worker.row.public:
                pass  # the resource has ended or was dropped; or what it was to thaw is forgotten
            case messages.Acquired() | messages.Replied() | messages.Declined() | messages.Releasable():
                return self._resources.receive(turn, worker, message)
            case _:
                return f"{type(message).__name__} from {worker.row.name}"
        return ""

    def _rubbish(self, turn: Turn, worker: Worker, why: str) -> None:
        self._kill(turn, worker, WorkerEvent.RUBBISH, f": it reported rubbish ({why})", Code.WORKER_DIED)

    def _kill(self, turn: Turn, worker: Worker, event: WorkerEvent, why: str, code: Code) -> None:
        self._workers.kill(turn, worker, event, why)
        if self._freeze.owns(worker):
            self._freeze.killed(turn, worker)
            return
        ran = turn.now - worker.phase_since
        text = f"{worker.name}{while_clause(worker)} was killed after {ran:.1f} s{why}"
        if self._writers.owns(worker):
            self._writers.killed(turn, worker, text)
        else:
            self._lost(turn, worker, Fault(code, text))

    def _ended(self, turn: Turn, worker: Worker, death: str) -> None:
        reported = worker.outcome is not None and not worker.killed
        if not reported:
            turn.log("warning", death)
        owned = self._freeze.owns(worker)
        self._workers.change(turn, worker, WorkerEvent.EXIT)
        if owned:
            self._freeze.exited(turn, worker, death, reported=reported)
        elif self._writers.owns(worker):
            self._writers.exited(turn, worker, death)
        else:
            self._lost(turn, worker, Fault(Code.WORKER_DIED, death))
        self._queues.ended(turn, worker, death)
        self._reloading.ended(turn, self._config, worker, idle=self.idle)

    def _lost(self, turn: Turn, worker: Worker, fault: Fault) -> None:
        """Answer those who wait for the worker, since it will not."""
        self._pending.answer(turn, worker.call, fault)
        self._resources.lost(turn, worker, fault)

    def _probed(self, turn: Turn, event: events.Probed) -> None:
        # The worker may have ended since the question was asked.
        worker = self._workers.get(event.worker)
        if worker is not None and (worker.alive or worker.state is WorkerState.STUCK):
            self._freeze_reports.probed(turn, worker, event.state, dying=event.dying)

    def _worker_due(self, turn: Turn, worker: Worker) -> None:
        if worker.state is WorkerState.KILLED:
            self._workers.change(turn, worker, WorkerEvent.GRACE)
            if self._freeze.owns(worker):
                self._freeze.changed(turn)
        elif worker.state is WorkerState.REPORTED:
            self._kill(turn, worker, WorkerEvent.GRACE, ": it did not end after its report", Code.WORKER_DIED)
        elif self._freeze.owns(worker):
            self._freeze_reports.limit_passed(turn, worker)
        elif self._writers.owns(worker):
            self._writers.limit_passed(turn, worker)
        elif not self.thawed and Disk.WRITE in (worker.row.disk, self._resources.disk(worker)):
            self._workers.arm(turn, worker, worker.limit)  # it may be waiting for the thaw, which is not its fault
        else:
            self._kill(turn, worker, WorkerEvent.LIMIT, f": its limit of {worker.limit:g} s passed", Code.OVERRUN)

    # -- what an earlier agent left

    def _latches_found(self, turn: Turn, event: events.LatchesFound) -> None:
        self._writers.found(turn, event.names)
        if self.thawed and event.names:
            self._freeze.release(turn, BAD)

    def _journal_found(self, turn: Turn, event: events.JournalFound) -> None:
        self._freeze.recover(turn, event, freeze_options(self._config, "start", None))

    # -- configuration

    def _configure(self, config: Config, turn: Turn | None = None) -> None:
        self._config = config
        self.qga_version, self.qga = config.qga_version, qemu.version(config.qga_version)
        self._workers.configure(config.exit_grace, config.kill_grace)
        self._freeze.configure(turn, config.hold_limit_max, config.thaw_limit, config.news_limit)
        self._audit.configure(config.audit_ring)
        self._writers.configure(config.every_writer, config.latches, config.release_limit)
        self._queues.configure(config.queues, used=config.sync_requests > 0)

    # -- the rest

    def _due(self, turn: Turn, event: events.Due) -> None:
        match event.key:
            case ("core", "worker", int(number)):
                self._worker_due(turn, self._worker(number))
            case ("core", "call", int(number)):
                self._pending.wait_passed(turn, number)
            case ("core", "release"):
                self._writers.release_due(turn)
            case ("core", "patience"):
                self._writers.patience_due(turn)
            case ("core", "writer", str(name)):
                self._writers.due(turn, name)
            case ("core", "poll", int(number)):
                self._pending.poll_due(turn, number)
            case ("core", "queues"):
                self._queues.put_back(turn)
            case ("core", "warn"):
                self._warnings.due(turn)
            case ("watchers",):
                self._waiting.held(turn)  # between two reports of one read the state may have changed unseen
                self._pending.tell_some(turn, self._records.seq)
            case ("core", "news"):
                self._freeze.news.due(turn)
            case key:
                assert key == RETRY, f"unknown deadline {key!r}"
                self._freeze.changed(turn)

    def _settled(self, turn: Turn) -> None:
        """Do what waited for the end of the freeze: it is thawed, or cannot be thawed for now."""
        if self._stopping:
            self._quit(turn)
            return
        if self.idle:
            self._presync.settled(turn)
            self._reloading.go_on(turn, self._config)
        self._waiting.settled(turn)

    def _stopped(self, turn: Turn, event: events.Stopped) -> None:
        self._stopping = f"the agent was stopped: {event.signal}"
        self._records.stops(self._stopping)
        turn.log("notice", f"stopping: {event.signal}" + ("" if self.thawed else "; the freeze is ended first"))
        was_thawed = self.thawed
        self._freeze.stop(turn, self._stopping)
        if was_thawed:
            self._settled(turn)

    def _quit(self, turn: Turn) -> None:
        # In ERROR it goes on trying: the daemon ends only when the guest is thawed and the writers are let go.
        if self.idle and not self._queues.wait(turn):
            ending.end(turn, self._pending, self._workers, self._resources, self._stopping)

    _HANDLERS: ClassVar[Mapping[type, Callable[[Engine, Turn, Any], None]]] = {
        Requested: _requested,
        events.Malformed: lambda self, _, event: self._audit.add(audit.malformed(event)),
        events.GivenUp: lambda self, turn, event: self._freeze.news.given_up(turn, event.connection, event.token),
        events.NewsCut: lambda self, turn, event: self._pending.cut(turn, event.connection),
        events.Taken: lambda self, turn, event: self._freeze.news.taken(turn, event.connection, event.token),
        events.Disconnected: _disconnected,
        events.Reported: _reported,
        events.RubbishReported: lambda self, turn, event: self._rubbish(turn, self._worker(event.worker), event.why),
        events.ReportEnded: lambda self, turn, event: self._workers.change(
            turn, self._worker(event.worker), WorkerEvent.REPORT_END
        ),
        events.Spawned: _spawned,
        events.SpawnFailed: _spawn_failed,
        events.Exited: _exited,
        events.Probed: _probed,
        events.Journaled: lambda self, turn, event: self._freeze_reports.journaled(turn, event.freeze, None),
        events.JournalFailed: lambda self, turn, event: self._freeze_reports.journaled(turn, event.freeze, event.error),
        events.JournalFound: _journal_found,
        events.LatchesFound: _latches_found,
        events.QueuesSeen: lambda self, turn, event: self._queues.seen(turn, left=event.left),
        events.Reload: lambda self, turn, _: self._reloading.asked(turn, self._config, idle=self.idle),
        events.ShowStatus: lambda self, turn, _: turn.do(events.LogStatus(self._records.record(turn))),
        events.Stopped: _stopped,
        events.Due: _due,
        events.Woken: lambda *_: None,  # nothing to decide: `_show` does the rest
    }

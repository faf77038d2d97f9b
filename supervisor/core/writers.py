"""The writers of a freeze: what each is told and answers, what its death means, and that all are let go. Pure.

The steps are those of the freeze (freeze.py): prepare before the sync, quiesce before the first FIFREEZE, confirm after
the last, release after the thaw. A writer is quiesced once those that it is `after` are, and let go before them. One
that is required and refuses, overruns or dies before it has confirmed refuses the freeze. What a dead worker may have
left set is undone by another worker, which reads in memory what was begun (agent/worker/writers/latch.py); until that
has worked the next freeze is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...agent.api.methods import RPCS
from ...agent.api.records import WriterStatus
from ...agent.api.states import Phase, WorkerEvent, following
from ...agent.api.structs import replace
from ...agent.api.text import listed
from ...agent.api.writers import WRITER_TABLE, Hold, Step, WriterConfig, WriterEvent, WriterState, hold
from ...agent.worker import messages
from .events import Entry, Lifeline
from .timing import OWNER
from .turn import Turn
from .workers import Worker, Workers
from .writer import RETRY_FIRST, Writer

LATER = 6.0  # seconds after its limit: the worker itself ends what overruns, with 2 s for SIGTERM and 2 s for SIGKILL
RELEASE = (OWNER, "release")  # the deadline at which nobody waits any longer for those that are not let go
PATIENCE = (OWNER, "patience")  # the deadline at which none is held any longer for a file system that is slow to freeze
LATCHED = "hook"  # the type by which a record is undone whose writer is not configured
RETRY_MAX = 30.0  # seconds, at most, until an undo that failed is tried again; they double each time
GOOD, BAD = "good", "bad"
_S, _E = WriterState, WriterEvent
_HELD = (_S.QUIESCED, _S.CONFIRMED)
_FAILED = (_S.VETOED, _S.OVERRAN, _S.LOST)
_DONE = {Step.PREPARE: _E.PREPARED, Step.QUIESCE: _E.QUIESCED, Step.CONFIRM: _E.CONFIRMED}
_WRONG = {"refused": _E.REFUSED, "overran": _E.OVERRAN, "lost": _E.LOST}
_STEPS = tuple(step.value for step in (Step.PREPARE, Step.QUIESCE, Step.CONFIRM))
_PHASES = {Step.PREPARE: Phase.PREPARE, Step.QUIESCE: Phase.QUIESCE, Step.CONFIRM: Phase.CONFIRM}


class Writers:
    """The writers of the present or last freeze, and those that an earlier agent left set.

    `on_change` is called after each change. `refusal` is why the present freeze may not go on, "" if it may, and
    `refused_by` the writer that says so. `broken` is why it does not hold any more what it promised, "" if it does.
    `changes` counts changes for the status record.
    """

    def __init__(self, workers: Workers, on_change: Callable[[Turn], None]) -> None:
        self._workers = workers
        self._on_change = on_change
        self._configured: tuple[WriterConfig, ...] = ()
        self._folder = ""
        self._release_limit = self._slow_since = 0.0
        self._all: dict[str, Writer] = {}
        self._step: Step | None = None
        self._verdict = GOOD
        self._frozen: frozenset[str] | None = None
        self.refusal = self.refused_by = self.broken = ""
        self.changes = 0

    def configure(self, writers: tuple[WriterConfig, ...], folder: str, release_limit: float) -> None:
        """Set the writers, in their order and with their limits, and the folder of their records in memory."""
        self._configured, self._folder, self._release_limit = writers, folder, release_limit
        # What is still to be let go is told by the configuration that it was quiesced with.
        busy = {name: writer for name, writer in self._all.items() if writer.worker or writer.set}
        self._all = {writer.name: Writer(writer) for writer in writers} | busy

    # -- the one setter

    def _take(self, turn: Turn, writer: Writer, event: WriterEvent, why: str = "") -> None:
        """Take `event`; raise Unlisted if the table has no such row, which is a defect here."""
        old, writer.state = writer.state, following(WRITER_TABLE, writer.state, event)
        writer.error = why or writer.error
        self.changes += 1
        if writer.state is not old or why:
            level = "warning" if why else "info"
            text = f"writer {writer.name}: {old.value} -> {writer.state.value}{f': {why}' if why else ''}"
            turn.log(level, text, Entry("", (("writer", writer.name),)))
        writer.since = turn.now

    # -- what the freeze asks

    def stuck(self) -> str:
        """Return the sentence that refuses a freeze because a writer could not be let go; "" if there is none."""
        refuses = (f"{w.name} refuses the freeze: it could not be let go before: {w.error}" for w in self._in(_S.STUCK))
        return next(refuses, "")

    def takes_part(self, choice: str) -> bool:
        """Return whether any writer takes part in a freeze with this choice ("all", "try", "none")."""
        return choice != "none" and bool(self._configured)

    def prepare(self, turn: Turn, choice: str, at_most: float, devices: Iterable[str] | None) -> None:
        """Fork the writers' workers, and tell them to prepare; each may be held for `at_most` seconds, 0: no limit.

        `devices` (major:minor) are those that will be frozen, None if there is no freeze.
        """
        self.refusal = self.refused_by = self.broken = ""
        self._verdict, self._step = GOOD, Step.PREPARE
        self._frozen = None if devices is None else frozenset(devices)
        self._all = {writer.name: writer for writer in self._all.values() if writer.worker or writer.set}
        for config in self._configured:
            if config.name in self._all:
                continue  # it is stuck, and takes no part
            writer = Writer(config if choice == "all" else replace(config, required=False))
            self._all[writer.name] = writer
            if choice == "none":
                self._take(turn, writer, _E.SKIP)
                continue
            self._take(turn, writer, _E.PREPARE)
            args = {"writer": writer.config, "folder": self._folder, "at_most": at_most}
            lifeline = None if devices is None else Lifeline.WATCH
            writer.worker = self._workers.spawn(turn, RPCS["writer"], args, None, 0, lifeline).id
            writer.set = writer.latches
            writer.still_since = turn.now if config.when is Step.PREPARE else 0.0
            self._tell(turn, writer, Step.PREPARE, config.prepare_limit)

    def quiesce(self, turn: Turn) -> None:
        """Have all that are ready hold their applications' writes."""
        self._step = Step.QUIESCE
        self._advance(turn)

    def be_patient(self, turn: Turn) -> None:
        """Take note that a file system is slow to freeze: each that holds is held for its quiesce limit from now on."""
        self._slow_since = turn.now
        self._arm_patience(turn)

    def _arm_patience(self, turn: Turn) -> None:
        if held := self._in(_S.QUIESCED):
            turn.arm(PATIENCE, max(min(writer.patience_left(self._slow_since, turn.now) for writer in held), 1e-3))

    def patience_due(self, turn: Turn) -> None:
        """Hold no longer those whose quiesce limit has passed since a file system was found to be slow to freeze."""
        for writer in self._in(_S.QUIESCED):
            if writer.patience_left(self._slow_since, turn.now) <= 0:
                self._fails(turn, writer, _E.OVERRAN, writer.out_of_patience)
                if not writer.config.required:
                    self._begin_release(turn, writer)
        self._arm_patience(turn)
        self._advance(turn)

    def confirm(self, turn: Turn, devices: Iterable[str]) -> None:
        """Have each that holds prove that it held until now; `devices` (major:minor) are those that are frozen."""
        self._step, self._frozen = Step.CONFIRM, frozenset(devices)
        turn.cancel(PATIENCE)
        for writer in self._all.values():
            writer.place(self._frozen)
        for writer in self._in(_S.QUIESCED):
            self._tell(turn, writer, Step.CONFIRM, writer.config.confirm_limit)

    def extend(self, turn: Turn, until: float) -> None:
        """Let each that holds hold until that second: the freeze is held for longer than was foreseen."""
        for writer in self._in(*_HELD, *_FAILED):  # one that is lost lets go by itself then, too
            worker = self._workers.get(writer.worker)
            if worker is not None and worker.alive:
                turn.tell(worker.id, messages.Hold(until))

    def release(self, turn: Turn, verdict: str) -> None:
        """Let all go: nothing is frozen any more. `verdict` is good or bad."""
        self._step, self._verdict = Step.RELEASE, verdict
        turn.cancel(PATIENCE)
        if not self.released:
            limits = [w.config.release_limit for w in self._all.values() if w.config.release_limit > 0]
            turn.arm(RELEASE, max([self._release_limit, *limits]) + 2 * LATER)
        self._advance(turn)

    def release_due(self, turn: Turn) -> None:
        """Wait no longer for those that are not let go: they are stuck, and none waits for another any more."""
        for writer in self._unreleased():
            if writer.let_go:
                writer.worker = 0  # it holds nothing: whenever its process ends will do
                continue
            if writer.state not in (*_FAILED, _S.RELEASING):
                self._take(turn, writer, _E.RELEASE)
            self._not_undone(turn, writer, writer.error or "it does not end")
            worker = self._workers.get(writer.worker)
            if worker is not None and worker.alive and writer.asked is not Step.RELEASE:
                self._tell(turn, writer, Step.RELEASE, writer.config.release_limit)
        self._advance(turn)

    def found(self, turn: Turn, names: Iterable[str]) -> None:
        """Take note of what an earlier agent left set; `release` undoes it."""
        for name in names:
            writer = self._all.setdefault(name, Writer(WriterConfig(name, LATCHED)))
            writer.set = True
            self._take(turn, writer, _E.LEFT, "an earlier agent left it set")

    # -- how far they are

    def _in(self, *states: WriterState) -> list[Writer]:
        return [writer for writer in self._all.values() if writer.state in states]

    @property
    def ready(self) -> bool:
        """Whether none has yet to prepare."""
        return not self._in(_S.PREPARING)

    @property
    def quiesced(self) -> bool:
        """Whether none has yet to quiesce."""
        return not self._in(_S.PREPARING, _S.READY, _S.QUIESCING)

    @property
    def confirmed(self) -> bool:
        """Whether none has yet to confirm."""
        return self.quiesced and not self._in(_S.QUIESCED)

    @property
    def released(self) -> bool:
        """Whether none is being let go, or has yet to be; one that is stuck is tried again beside all else."""
        return not self._unreleased()

    def _unreleased(self) -> list[Writer]:
        return [w for w in self._all.values() if (w.worker or w.set) and w.state is not _S.STUCK]

    @property
    def waited_for(self) -> str:
        """The names of those that have yet to do what they were told, "" if there are none."""
        return listed(writer.name for writer in self._all.values() if writer.asked is not None)

    @property
    def application_consistent(self) -> bool:
        """Whether there are writers, and all have held over the freeze, with all that they have on what is frozen."""
        return bool(self._all) and all(writer.held_over_the_freeze for writer in self._all.values())

    def stall(self, now: float) -> float:
        """Return the longest time for which one of the applications stood still; -1 if none takes part."""
        part = [writer.stands(now) for writer in self._all.values() if writer.state is not _S.SKIPPED]
        return max(part, default=-1.0)

    def limit_left(self, turn: Turn) -> float:
        """Return how many seconds the slowest has left for its step; -1 if there is no limit."""
        workers = (self._workers.get(writer.worker) for writer in self._all.values() if writer.asked)
        left = [turn.left(worker.key) for worker in workers if worker is not None]
        return max(0.0, max(left) - LATER) if left and min(left) >= 0 else -1.0

    def status(self, now: float) -> tuple[WriterStatus, ...]:
        """Return the records of the writers."""
        return tuple(writer.status(now) for writer in self._all.values())

    # -- what happens to them

    def owns(self, worker: Worker) -> bool:
        """Return whether the worker is one of a writer."""
        return any(writer.worker == worker.id for writer in self._all.values())

    def _of(self, worker: Worker) -> Writer:
        return next(writer for writer in self._all.values() if writer.worker == worker.id)

    def receive(self, turn: Turn, worker: Worker, message: messages.Report) -> str:
        """Take a report of a writer's worker; return what is wrong with it, "" if nothing is."""
        writer = self._of(worker)
        if isinstance(message, messages.Acted):
            if not worker.alive:
                return ""
            wrong = self._acted(turn, writer, message)
            if not wrong:
                self._advance(turn)
            return wrong
        if isinstance(message, messages.Started | messages.Done | messages.Failed):
            return ""
        return f"{type(message).__name__} from {worker.row.name}"

    def _acted(self, turn: Turn, writer: Writer, acted: messages.Acted) -> str:
        if writer.let_go:
            return f"{acted.step[:20]} {acted.outcome[:20]} from a writer that has let go"
        if acted.step == "held" and acted.outcome == "lost":
            self._fails(turn, writer, _E.LOST, acted.text)
            return ""
        if acted.step == Step.RELEASE.value and acted.outcome == "ok":
            if acted.text and writer.state is _S.RELEASING and hold(writer.config) is not Hold.LATCH:
                self._breaks(writer, acted.text)  # since when, nobody knows
            writer.info |= {name: str(value) for name, value in acted.info.items()}
            self._let_go(turn, writer, acted.text)
            return ""
        if writer.asked is Step.RELEASE and acted.step in _STEPS:
            return ""  # it was told to let go meanwhile
        if writer.asked is None or acted.step != writer.asked.value or acted.outcome not in ("ok", *_WRONG):
            return f"{acted.step[:20]} {acted.outcome[:20]} from a writer that was asked to {writer.asked}"
        step, writer.asked = writer.asked, None
        self._limit(turn, writer, Phase.RUN, 0)
        writer.seconds[step.value] = turn.now - writer.since
        writer.note(acted.info, self._frozen)
        if acted.outcome != "ok" or writer.state in _FAILED:  # lost as it was told to confirm, it stays so
            self._fails(turn, writer, _WRONG.get(acted.outcome, _E.LOST), acted.text)
            return ""
        if step is Step.QUIESCE:
            writer.quiesced_at, writer.set = turn.now, True
        writer.confirmed = step is Step.CONFIRM
        self._take(turn, writer, _DONE[step])
        return ""

    def _fails(self, turn: Turn, writer: Writer, event: WriterEvent, why: str) -> None:
        """Take note that it refuses, overran or is lost: that refuses the freeze if it is required and not too late."""
        before = writer.state
        if writer.let_go or before in (*_FAILED, _S.RELEASING, _S.STUCK):
            return
        self._take(turn, writer, event, why)
        if writer.config.required and before is not _S.CONFIRMED:
            how = {_E.REFUSED: "refused the freeze", _E.OVERRAN: "refused the freeze"}.get(event, "was lost")
            if not self.refusal:
                self.refusal, self.refused_by = f"{writer.name} {how}: {why}", writer.name
        elif before is _S.CONFIRMED:
            self._breaks(writer, why)
        elif before not in _HELD:
            self._begin_release(turn, writer)  # the freeze goes on without it

    def _breaks(self, writer: Writer, why: str) -> None:
        """Take note that its hold may have ended while the freeze was held: what is not frozen may be written to."""
        if writer.config.required and writer.not_frozen and writer.confirmed:
            where = ", ".join(writer.not_frozen)
            self.broken = self.broken or f"{writer.name} was lost, and {where} is not frozen: {why}"

    def exited(self, turn: Turn, worker: Worker, death: str) -> None:
        """Take note that a writer's worker, or one that undid, was reaped; `death` is the sentence for that."""
        writer = self._of(worker)
        writer.worker, writer.asked = 0, None
        undid = worker.row is RPCS["unlatch"]
        if isinstance(worker.outcome, messages.Failed) and not worker.killed:
            death = worker.outcome.text  # why it could not
        match worker.outcome:
            case messages.Done(str(wrong)) if undid and not worker.killed:
                self._let_go(turn, writer, wrong)
            case _ if undid or writer.state is _S.STUCK:
                self._not_undone(turn, writer, death)
            case _ if writer.set or writer.state in (*_HELD, _S.PREPARING, _S.READY, _S.QUIESCING):
                self._died(turn, writer, death)
        self._advance(turn)

    def _died(self, turn: Turn, writer: Writer, death: str) -> None:
        if not writer.latches:
            writer.set = False  # the server has ended the session
        if writer.state is _S.RELEASING:
            if hold(writer.config) is not Hold.LATCH:
                self._breaks(writer, death)  # whether it held until the thaw died with it
            writer.error = death
            if writer.set:
                self._undo(turn, writer)
            else:
                self._let_go(turn, writer, death)
        else:
            self._fails(turn, writer, _E.LOST, death)

    def limit_passed(self, turn: Turn, worker: Worker) -> None:
        """Kill a worker that does not keep its own limit, or an undo that does not end."""
        asked = self._of(worker).asked
        self._workers.kill(turn, worker, WorkerEvent.LIMIT, f": its limit of {worker.limit - LATER:g} s passed")
        self.killed(turn, worker, f"it did not {asked.value if asked else 'end'} in time", _E.OVERRAN)

    def killed(self, turn: Turn, worker: Worker, why: str, event: WriterEvent = _E.LOST) -> None:
        """Take note that a worker got SIGKILL, which it may not die of; `event` is what that is to its writer."""
        if worker.row is not RPCS["unlatch"]:
            why = worker.outcome.text if isinstance(worker.outcome, messages.Failed) else why
            self._fails(turn, self._of(worker), event, why)
        self._advance(turn)

    def due(self, turn: Turn, name: str) -> None:
        """Try again to undo what a writer has left set; not in another freeze, in which it takes no part."""
        writer = self._all.get(name)
        if writer is None or writer.state is not _S.STUCK or writer.worker:
            return
        if self._step in (None, Step.RELEASE):
            self._undo(turn, writer)
        else:
            turn.arm(writer.key, writer.backoff)

    # -- the next step

    def _advance(self, turn: Turn) -> None:
        """Do what is possible now, then tell the freeze."""
        if self._step is Step.QUIESCE and not self.refusal:
            for writer in self._in(_S.READY):
                if not any(self._all[name].state in (_S.READY, _S.QUIESCING) for name in writer.config.after):
                    self._take(turn, writer, _E.QUIESCE)
                    writer.still_since = writer.still_since or turn.now
                    self._tell(turn, writer, Step.QUIESCE, writer.config.quiesce_limit)
        if self._step is Step.RELEASE:
            held = self._unreleased()
            waited_for = {name for writer in held if not writer.let_go for name in writer.config.after}
            for writer in held:
                if writer.name not in waited_for and writer.asked is not Step.RELEASE and not writer.let_go:
                    self._begin_release(turn, writer)
            if self.released:
                turn.cancel(RELEASE)
        self._on_change(turn)

    def _tell(self, turn: Turn, writer: Writer, step: Step, limit: float) -> None:
        writer.asked, writer.since = step, turn.now
        early = step is Step.RELEASE and self._step is not Step.RELEASE  # whether the freeze is good is not known yet
        turn.tell(writer.worker, messages.Act(step.value, limit, BAD if early else self._verdict))
        self._limit(turn, writer, _PHASES.get(step, Phase.RELEASE), limit + LATER)

    def _limit(self, turn: Turn, writer: Writer, phase: Phase, limit: float) -> None:
        worker = self._workers.get(writer.worker)
        if worker is not None and worker.alive:
            self._workers.enter_phase(turn, worker, phase, limit)

    # -- letting go

    def _begin_release(self, turn: Turn, writer: Writer) -> None:
        """Tell it to let go; if its worker is dead, undo what that may have left."""
        worker = self._workers.get(writer.worker)
        if worker is not None and worker.row is RPCS["unlatch"]:
            return
        if writer.quiesced_at:
            writer.seconds.setdefault("held", turn.now - writer.quiesced_at)
        if writer.state is not _S.RELEASING:
            self._take(turn, writer, _E.RELEASE)
        if worker is not None and worker.alive:
            self._tell(turn, writer, Step.RELEASE, writer.config.release_limit)
        elif worker is None and writer.set:
            self._undo(turn, writer)
        elif worker is None:
            self._let_go(turn, writer, "")
        # Else it is dying, and `exited` goes on.

    def _undo(self, turn: Turn, writer: Writer) -> None:
        limit = writer.config.release_limit if writer.config.release_limit > 0 else self._release_limit
        args = {"name": writer.name, "folder": self._folder, "limit": limit}
        worker = self._workers.spawn(turn, RPCS["unlatch"], args, None, limit + LATER)
        writer.worker, writer.asked = worker.id, Step.RELEASE
        writer.since = turn.now
        self._workers.enter_phase(turn, worker, Phase.RELEASE, limit + LATER)

    def _let_go(self, turn: Turn, writer: Writer, wrong: str) -> None:
        """Take note that nothing of it is set any more; `wrong` is what went wrong meanwhile."""
        if writer.state not in (*_FAILED, _S.RELEASING, _S.STUCK):
            self._take(turn, writer, _E.RELEASE)  # it has let go by itself
        writer.set, writer.let_go, writer.asked, writer.backoff = False, True, None, RETRY_FIRST
        writer.seconds["release"] = turn.now - writer.since
        writer.stood = turn.now - writer.still_since if writer.still_since else 0.0
        self._take(turn, writer, _E.RELEASED, wrong)
        turn.cancel(writer.key)

    def _not_undone(self, turn: Turn, writer: Writer, why: str) -> None:
        self._take(turn, writer, _E.NOT_UNDONE, f"{why}; trying again in {writer.backoff:g} s")
        turn.arm(writer.key, writer.backoff)
        writer.backoff = min(writer.backoff * 2, RETRY_MAX)

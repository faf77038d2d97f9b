"""A freeze as the worker carries it out: plan, sync, freeze, hold, thaw. Also the sync alone, and the thaw alone.

These are scripts: all the decisions, and no I/O. They yield steps and are sent the results (`steps`), so that the code
that freezes also runs where nothing can be frozen.

Write-ahead: before each FIFREEZE begins the supervisor can read `Step(mount, freezing)`, and after it
`Step(mount, frozen)`. So it always knows which file systems may be frozen.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Mapping, Sequence

from ..api import options, records
from ..api.bounds import bounded
from ..api.errors import Code, Fault
from ..api.states import MountState, Phase
from ..api.structs import Value
from ..api.text import digits, listed
from . import messages, steps
from .evidence import Evidence
from .file_systems import FileSystem, FileSystems
from .patience import THAW_SECONDS, Patience
from .steps import Event, Gone, Operation, Result, Script, Taken, Timeout, Told

SYNC_ROUNDS = 3
SYNC_SHORT = 0.05  # seconds; after a shorter round another is not worth while
SYNC_STUCK = 1.0  # seconds after which a file system on several disks no longer keeps others off them
SYNC_GAIN = 0.8  # rounds no longer get shorter if one takes more than this share of the one before
PROGRESS_FIRST, PROGRESS_EVERY = 0.05, 0.25  # seconds; most syncs are over before there are figures
OWN_LIMIT_LATER = 1.0
BUSY_AGAIN = 0.05  # seconds until the next attempt to freeze what someone else has frozen
THAW_AGAIN_FIRST, THAW_AGAIN_MAX = 0.02, 30.0  # seconds


class Limit(Value):
    """A limit in seconds (0: no limit), and when it is enforced here (CLOCK_MONOTONIC, seconds)."""

    seconds: float = 0.0
    until: float = math.inf

    @classmethod
    def of(cls, seconds: float, later: float = 0.0) -> Script[Limit]:
        """Return the limit that begins now, enforced `later` seconds after it has passed."""
        now: float = yield steps.Now()
        return cls(seconds, now + seconds + later) if seconds else cls()


class GiveUp(Exception):
    """The freeze cannot go on: thaw what is frozen."""

    code = Code.FREEZE_FAILED


class Overran(GiveUp):
    """A limit passed."""

    code = Code.OVERRUN


class _Together:
    """One operation on all planned file systems simultaneously, and the sync rounds."""

    def __init__(self, options: options.Options) -> None:
        self._options = options
        self._fatal = [] if options.partial else [MountState.FAILED]
        self._mounts = FileSystems(())
        self._figures = messages.Progress(Phase.SYNC.value)

    def _take(self, plan: records.Plan, *, obeys: bool) -> Script[None]:
        self._mounts = FileSystems(enumerate(plan.mounts))
        yield from self._mounts.start(obeys=obeys)

    def _sync_rounds(self, limit: Limit) -> Script[None]:
        short = self._options.queue_records, self._options.sync_requests
        yield from self._mounts.with_short_queues(*short, self._rounds(limit))

    def _rounds(self, limit: Limit) -> Script[None]:
        """Sync all in rounds until another round is not worth while.

        One after another on each disk, since a writer that waits for its journal would wait behind the data of all of
        them; in the last round all simultaneously, so that none has become dirty again for longer than the others.
        """
        before = math.inf
        for number in range(1, SYNC_ROUNDS + 1):
            self._figures = yield steps.Measure(Phase.SYNC, number)
            yield steps.Post((self._figures,))
            begun: float = yield steps.Now()
            those = self._mounts.in_state(MountState.PENDING, MountState.SYNCED)
            yield from self._sync_these(those, Phase.SYNC, number, limit, in_turn=number < SYNC_ROUNDS)
            took = (yield steps.Now()) - begun
            if took < SYNC_SHORT or took > before * SYNC_GAIN:
                break
            before = took

    def _sync_these(
        self, those: Sequence[FileSystem], phase: Phase, number: int, limit: Limit, *, in_turn: bool = False
    ) -> Script[None]:
        """Sync these; raise GiveUp at the first that fails, the others still in flight. `in_turn`: on each disk."""
        waiting = list(those)
        began: dict[int, float] = {}
        yield from self._sync_next(waiting, began, in_turn=in_turn)
        yield from self._mounts.describe(Operation.SYNC.during.value)
        due = (yield steps.Now()) + (PROGRESS_FIRST if number == 1 else PROGRESS_EVERY)
        while self._mounts.busy or waiting:
            event = yield from self._mounts.wait(min(due, limit.until))
            if isinstance(event, Timeout):
                yield from self._check(limit, phase)
                self._figures = yield steps.Measure(phase, number, frozenset(self._mounts.busy))
                yield steps.Inform(self._figures)
                yield from self._mounts.describe(Operation.SYNC.during.value)
                due = (yield steps.Now()) + PROGRESS_EVERY
            else:
                self._attend(event)
            if waiting:
                yield from self._sync_next(waiting, began, in_turn=in_turn)

    def _sync_next(self, waiting: list[FileSystem], began: dict[int, float], *, in_turn: bool) -> Script[None]:
        """Begin to sync, of those that wait, all whose turn it is: of each disk one after another.

        One that is stuck on one of its disks does not keep others off the rest of them.
        """
        now: float = yield steps.Now()
        taken: set[str] = set()
        for index in self._mounts.busy:
            disks = self._mounts[index].mount.bottom
            if len(disks) == 1 or now < began[index] + SYNC_STUCK:
                taken.update(disks)
        those = []
        for fs in waiting:
            if not in_turn or taken.isdisjoint(fs.mount.bottom):
                those.append(fs)
                taken.update(fs.mount.bottom)
                began[fs.index] = now
        waiting[:] = [fs for fs in waiting if fs.index not in began]
        yield from self._mounts.announce(those, Operation.SYNC)
        yield from self._mounts.order(those, Operation.SYNC)

    def _check(self, limit: Limit, phase: Phase) -> Script[None]:
        if (yield steps.Now()) >= limit.until:
            raise Overran(f"the {phase.value} limit of {limit.seconds:g} s passed")

    def _attend(self, event: Event) -> None:
        if isinstance(event, Result) and (fs := self._mounts[event.mount]).state in self._fatal:
            raise GiveUp(f"{fs.mount.mountpoint}: {fs.words}")


class Flush(_Together):
    """One sync of the planned file systems, freezing nothing."""

    def run(self) -> Script[int]:
        """Return the number of file systems synced; raise Fault FAILED or OVERRUN that names the mount."""
        yield steps.Title("planning")
        plan: records.Plan = yield steps.ReadPlan(self._options.rules)
        yield steps.Send(messages.Plan(bounded(plan).dump()))
        yield from self._take(plan, obeys=False)
        try:
            yield from self._sync_rounds((yield from Limit.of(self._options.sync_limit)))
        except Overran as why:
            at = listed(fs.mount.mountpoint for fs in self._mounts.at_work())
            raise Fault(Code.OVERRUN, f"{why} while syncing {at}; nothing was frozen") from None
        except GiveUp as why:
            raise Fault(Code.FAILED, f"{why}; nothing was frozen") from None
        return len(self._mounts.in_state(MountState.SYNCED))


class FreezeScript(_Together):
    """One freeze from plan to thaw."""

    def __init__(self, options: options.Options) -> None:
        super().__init__(options)
        if not options.partial:
            self._fatal.append(MountState.BUSY)
        if options.strict:
            self._fatal.append(MountState.UNSUPPORTED)
        self._proceed = False
        self._prepared = not options.waits
        self._patience = Patience(FileSystems(()), 0)
        self._busy: dict[int, float] = {}
        self._evidence = Evidence()

    @property
    def thawed(self) -> bool:
        """Whether it has left nothing frozen, now that it has ended."""
        return self._mounts.thawed

    def run(self) -> Script[int]:
        """Carry out the freeze; return the number of file systems frozen and thawed.

        Raises Fault: FREEZE_FAILED if it failed and all is thawed again, FREEZE_BROKEN if the hold did not last until
        the thaw was asked for, FAILED if a thaw was refused.
        """
        yield steps.Title("planning")
        yield steps.LockMemory()
        yield steps.Send(messages.Progress(Phase.PLAN.value))
        plan: records.Plan = yield steps.ReadPlan(self._options.rules)
        refused = [f"{left.mountpoint} ({left.reason})" for left in plan.left_out if left.strict_error]
        if self._options.strict and refused:
            raise Fault(Code.FREEZE_FAILED, f"strict: cannot be frozen: {listed(refused)}; nothing was frozen")
        expedites: bool = yield steps.PrepareToExpedite()
        yield steps.Send(messages.Plan(bounded(plan).dump(), int(expedites)))
        yield from self._take(plan, obeys=True)
        try:
            return (yield from self._freeze_and_hold())
        except GiveUp as why:
            yield from self._thaw(str(why), why.code)
            undone = sum(fs.froze for fs in self._mounts.all())
            raise Fault(why.code, f"{why}; thawed again: {undone}") from None
        except Fault:
            raise
        except Exception as error:
            # A defect or a refused system call. Whatever it is, nothing may stay frozen because of it.
            yield from self._thaw(f"{type(error).__name__}: {error}", Code.INTERNAL)
            raise

    def _freeze_and_hold(self) -> Script[int]:
        yield from self._sync()
        yield from self._freeze()
        count = len(self._mounts.in_state(MountState.FROZEN))
        if count == 0:
            return 0  # ADR 0009: nothing is held
        yield from self._evidence.begin(fs.mount for fs in self._mounts.in_state(MountState.FROZEN))
        reason = yield from self._hold(count)
        yield from self._thaw(reason)
        # ADR 0014: here EINVAL is proof, since each FIFREEZE of this worker has returned.
        lost = [
            fs.mount.mountpoint
            for fs in self._mounts.in_state(MountState.THAWED)
            if fs.froze and fs.error == errno.EINVAL
        ]
        found = [self._evidence.wrote, f"someone else had thawed {listed(lost)}" if lost else ""]
        if reason := reason or "; ".join(filter(None, found)):
            raise Fault(Code.FREEZE_BROKEN, reason)
        return count

    def _sync(self) -> Script[None]:
        while not self._prepared:
            self._attend((yield from self._mounts.wait()))
        early = bool(self._options.sync_requests)  # while a disk's queue changes, a read of its settings may wait
        if early:
            yield steps.OpenCounters()
        yield from self._sync_rounds(Limit())  # the supervisor kills at the limit
        yield steps.Post((messages.Synced(),))
        if not early:
            yield steps.OpenCounters()  # here, while the supervisor writes the journal
        self._figures = yield steps.Measure(Phase.FREEZE, 0)
        while not self._proceed:  # ADR 0003: not before the plan is in the journal
            self._attend((yield from self._mounts.wait()))

    def _freeze(self) -> Script[None]:
        # The supervisor kills at the limit. This is in case the supervisor itself is stopped or stuck.
        limit = yield from Limit.of(self._options.freeze_limit, OWN_LIMIT_LATER)
        yield steps.Post((self._figures,))
        by_level: dict[int, list[FileSystem]] = {}
        for fs in self._mounts.in_state(MountState.SYNCED):  # all, unless the freeze is partial
            by_level.setdefault(fs.mount.level, []).append(fs)
        try:
            yield from self._by_level([by_level[level] for level in sorted(by_level)], limit)
            if self._patience.slow:
                yield from self._learn()
                yield from self._freeze_the_others(limit)
        except Exception:
            yield steps.EndExpedite()
            raise
        yield steps.EndExpedite()

    def _by_level(self, levels: Iterable[list[FileSystem]], limit: Limit) -> Script[None]:
        """Freeze level by level, until all is frozen or patience is lost; then with no FIFREEZE under way."""
        again = bool(self._patience.slow)
        self._patience = Patience(self._mounts, self._options.patience)
        for those in levels:
            yield from self._announce(those, limit)
            # ADR 0022: only after the announcement, so that a thaw worker puts this back if this one dies.
            yield steps.Expedite()
            yield from self._mounts.order(those, Operation.FREEZE)
            yield from self._mounts.describe(Operation.FREEZE.during.value)
            now: float = yield steps.Now()
            self._patience.freezes(those, now)
            progress_due = now + PROGRESS_EVERY
            while self._mounts.busy or self._busy:
                due = min(progress_due, limit.until, self._patience.due(), *self._busy.values())
                event = yield from self._mounts.wait(due)
                if not isinstance(event, Timeout):
                    self._attend(event)
                    continue
                yield from self._check(limit, Phase.FREEZE)
                now = yield steps.Now()
                yield from self._lose_patience(now, again=again)
                yield from self._try_busy_again(now, limit)
                if now >= progress_due:
                    self._figures = yield steps.Measure(Phase.FREEZE, 0)
                    yield steps.Inform(self._figures)
                    yield from self._mounts.describe(Operation.FREEZE.during.value)
                    progress_due = now + PROGRESS_EVERY
            if self._patience.slow:
                return

    def _lose_patience(self, now: float, *, again: bool) -> Script[None]:
        """Thaw those that have stood still for too long because of one that is slow to freeze."""
        if late := self._patience.late(now):
            raise Overran(f"{_listed(late)}: FITHAW did not return within {THAW_SECONDS:g} s")
        if not (tired := self._patience.tired(now)):
            return
        if again:
            slow = _listed(self._mounts[index] for index in sorted(self._patience.slow))
            raise Overran(f"{slow} did not freeze within {self._options.patience:g} s, for the second time")
        yield steps.EndExpedite()
        yield from self._mounts.announce(tired, Operation.THAW)
        yield from self._mounts.order(tired, Operation.THAW)
        self._patience.thaws(tired, now)
        yield from self._mounts.describe(Operation.FREEZE.during.value)

    def _try_busy_again(self, now: float, limit: Limit) -> Script[None]:
        """Try again to freeze what someone else had frozen a moment ago."""
        if those := [self._mounts[index] for index, due in self._busy.items() if now >= due]:
            for fs in those:
                del self._busy[fs.index]
            yield from self._announce(those, limit)
            yield from self._mounts.order(those, Operation.FREEZE)

    def _learn(self) -> Script[None]:
        """Take note of what the slow ones lie on, and tell it."""
        for index in self._patience.telling:
            hosts = sorted(self._mounts.learn(index, self._patience.learnt(index)))
            ids = yield steps.Identify(tuple(self._mounts[i].mount for i in (index, *hosts)))
            yield steps.Post((messages.Learnt(index, hosts, ids),))

    def _freeze_the_others(self, limit: Limit) -> Script[None]:
        """Freeze what was thawed while a slow one was waited for, by what is known now of what lies on what."""
        others = self._mounts.in_state(MountState.SYNCED, MountState.THAWED)
        yield from self._sync_these(others, Phase.FREEZE, 0, limit, in_turn=True)
        yield from self._by_level(self._mounts.levels(self._mounts.in_state(MountState.SYNCED)), limit)

    def _announce(self, those: Sequence[FileSystem], limit: Limit) -> Script[None]:
        """Report that these are about to freeze; return when the supervisor can read that.

        If this is given up, what was announced must end: they are ordered to freeze, and each reports that it did not.
        """
        yield from self._mounts.announce(those, Operation.FREEZE)
        try:
            while not isinstance(event := (yield from self._mounts.wait(limit.until, taken=True)), Taken):
                yield from self._check(limit, Phase.FREEZE)
                self._attend(event)
        except Exception:
            yield steps.StopFreezing()
            yield from self._mounts.order(those, Operation.FREEZE)
            raise

    def _attend(self, event: Event) -> None:
        match event:
            case Told(messages.Sync()):
                self._prepared = True
            case Told(messages.Proceed()):
                self._proceed = True
            case Told(messages.Thaw()):
                raise GiveUp("the freeze was cancelled")
            case Gone(reason):
                raise GiveUp(reason)
            case Result():
                self._attend_result(event)
            case _:
                super()._attend(event)

    def _attend_result(self, result: Result) -> None:
        busy = result.operation is Operation.FREEZE and self._mounts[result.mount].state is MountState.BUSY
        if busy and result.at < self._patience.since(result.mount) + self._options.busy_wait:
            self._busy[result.mount] = result.at + BUSY_AGAIN
            self._patience.tried_again(result.mount)
            return
        self._patience.returned(result)
        if result.operation is Operation.THAW and self._mounts[result.mount].refused:
            raise GiveUp(_named([self._mounts[result.mount]]))
        super()._attend(result)

    def _hold(self, count: int) -> Script[str]:
        """Hold what is frozen; return why the hold ended, empty if the supervisor asked for the thaw."""
        yield steps.BecomeKeeper()
        limit = self._options.hold_limit
        at = now = yield steps.Now()
        until: float = at + limit if limit else math.inf
        tell: messages.Report | None = messages.Frozen(count, at, until if limit else 0)
        while True:
            seconds = max(0, math.ceil(until - now)) if limit else 0
            yield steps.Title(f"{count} frozen" + (f", {seconds} s left" if limit else ""))
            if tell is not None:
                yield steps.Post((tell,))  # after the title, since the host may look immediately
                tell = None
            # Wake every second to count down in the title: what an operator reads in ps must be true.
            match (yield from self._mounts.wait(until - max(0, seconds - 1) if limit else math.inf)):
                case Told(messages.Thaw()):
                    return ""
                case Told(messages.Hold(new)):
                    until, limit, tell = new, new - at, messages.Held(new)  # ADR 0011: the keeper's word
                case Gone(reason):
                    return reason
            now = yield steps.Now()
            if now >= until:
                return f"the hold limit of {digits(limit)} s passed"

    def _thaw(self, reason: str, code: int = 0) -> Script[None]:
        now: float = yield steps.Now()
        yield from self._evidence.end()
        written = self._evidence.written, self._evidence.wrote
        yield steps.Post((messages.Thawing(reason, now, int(code), *written),))  # ADR 0010: the supervisor waits for it
        yield from self._mounts.thaw()
        again = THAW_AGAIN_FIRST
        while (refused := self._mounts.refused()) and (yield steps.Alone()):
            yield from self._mounts.wait((yield steps.Now()) + again)
            again = min(again * 2, THAW_AGAIN_MAX)
            for fs in refused:
                fs.state, fs.refused = MountState.FROZEN, False
            yield from self._mounts.thaw()
        if refused:
            raise Fault(Code.FAILED, f"{_named(refused)}; thawing because {reason or 'the host asked'}")


def thaw_again(planned: Mapping[int, records.Mount], expedited: bool) -> Script[int]:
    """Thaw the file systems of a freeze whose worker is dead or was killed; return how many are proved thawed.

    `expedited`: it may have left grace periods expedited. Raises Fault FAILED that names those that the kernel refused
    to thaw.
    """
    if expedited:
        yield steps.PutBack()
    mounts = FileSystems(planned.items(), MountState.FROZEN)
    yield from mounts.start(obeys=False)
    yield from mounts.thaw()
    if refused := mounts.refused():
        raise Fault(Code.FAILED, _named(refused))
    return len(mounts.all())


def _listed(those: Iterable[FileSystem]) -> str:
    return listed(fs.mount.mountpoint for fs in those)


def _named(those: Iterable[FileSystem]) -> str:
    return listed((f"{fs.mount.mountpoint}: {fs.words}" for fs in those), "; ")

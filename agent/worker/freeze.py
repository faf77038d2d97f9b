"""The freeze transaction, as the worker runs it: plan, sync, freeze, hold, thaw. And its sync phase alone (`Flush`).

Write-ahead: `Step(mount, freezing)` is in the pipe before each FIFREEZE, `Step(mount, frozen)` follows it, so the
supervisor always knows the set that may be frozen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..api import options, records
from ..api.errors import Code, Fault
from ..api.states import MountState, Phase
from ..api.text import listed
from . import kernel, messages, progress, rcu, sysfs
from .mount_threads import FREEZE, SYNC, Event, Gone, MountThread, Operation, Result, Taken, Timeout, Told, WorkerLoop

if TYPE_CHECKING:
    from .context import Worker

SYNC_ROUNDS = 3
SYNC_SHORT = 0.05  # seconds; a round below this leaves nothing worth another round
SYNC_GAIN = 0.8  # a round that takes more than this share of the one before has stopped getting shorter
PROGRESS_EVERY = 0.25
OWN_LIMIT_LATER = 1.0
THAW_AGAIN_FIRST, THAW_AGAIN_MAX = 0.02, 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit in seconds, 0 is none, and the CLOCK_MONOTONIC second at which it is enforced here."""

    seconds: float = 0.0
    until: float = math.inf

    @classmethod
    def of(cls, seconds: float, later: float = 0.0) -> Limit:
        """Return the limit that begins now, enforced `later` seconds after it has passed."""
        return cls(seconds, time.monotonic() + seconds + later) if seconds else cls()


class GiveUp(Exception):
    """The freeze cannot go on; what is frozen is to be thawed."""


class Overran(GiveUp):
    """A limit passed."""


class _Together:
    """What is done to all planned file systems at once, and the sync rounds."""

    def __init__(self, worker: Worker, options: options.Options) -> None:
        self._worker = worker
        self._options = options
        self._wrong = [MountState.FAILED]

    def _take(self, plan: records.Plan, *, obeys: bool) -> None:
        self._board = WorkerLoop(self._worker, enumerate(plan.mounts), obeys=obeys)
        self._gauge = progress.WritebackMeter({disk for mount in plan.mounts for disk in mount.disks})

    def _rounds(self, limit: Limit) -> None:
        """Sync all until a round leaves nothing worth another."""
        before = math.inf
        hands = list(self._board.hands.values())
        for number in range(1, SYNC_ROUNDS + 1):
            self._worker.reporter.post(self._gauge.progress(Phase.SYNC, number))
            begun = time.monotonic()
            self._board.announce(hands, SYNC)
            self._together(hands, SYNC, Phase.SYNC, number, limit)
            took = time.monotonic() - begun
            if took < SYNC_SHORT or took > before * SYNC_GAIN:
                break
            before = took

    def _together(self, hands: Sequence[MountThread], verb: Operation, phase: Phase, number: int, limit: Limit) -> None:
        """Do `verb` on all hands at once; raises GiveUp at the first that fails, with the others still in flight."""
        self._board.order(hands, verb)
        self._board.describe(verb.during.value)
        due = time.monotonic() + PROGRESS_EVERY
        while self._board.busy:
            event = self._board.next(min(due, limit.until))
            if not isinstance(event, Timeout):
                self._attend(event)
                continue
            self._check(limit, phase)
            self._worker.reporter.inform(self._gauge.progress(phase, number))
            self._board.describe(verb.during.value)
            due = time.monotonic() + PROGRESS_EVERY

    def _check(self, limit: Limit, phase: Phase) -> None:
        if time.monotonic() >= limit.until:
            raise Overran(f"the {phase.value} limit of {limit.seconds:g} s passed")

    def _attend(self, event: Event) -> None:
        match event:
            case Result(hand) if hand.state in self._wrong:
                raise GiveUp(f"{hand.mount.mountpoint}: {hand.words}")


class Flush(_Together):
    """One sync of the planned file systems, freezing nothing."""

    def run(self) -> int:
        """Return the number of file systems synced; raise Fault FAILED or OVERRUN, which names the mount."""
        self._worker.title("planning")
        self._take(sysfs.read_plan(self._options.rules), obeys=False)
        try:
            self._rounds(Limit.of(self._options.sync_limit))
        except Overran as why:
            at = listed(hand.mount.mountpoint for hand in self._board.at_work())
            raise Fault(Code.OVERRUN, f"{why} while syncing {at}; nothing was frozen") from None
        except GiveUp as why:
            raise Fault(Code.FAILED, f"{why}; nothing was frozen") from None
        return len(self._board.hands)


class FreezeScript(_Together):
    """One freeze from plan to thaw."""

    def __init__(self, worker: Worker, options: options.Options) -> None:
        super().__init__(worker, options)
        self._wrong.append(MountState.BUSY)
        if options.strict:
            self._wrong.append(MountState.UNSUPPORTED)
        self._proceed = False

    def run(self) -> int:
        """Carry the transaction through and return the number of file systems frozen and thawed.

        Raises Fault FREEZE_FAILED (all is thawed again), FREEZE_BROKEN (the hold did not last until the thaw was
        asked) or FAILED (a thaw was refused).
        """
        self._worker.title("planning")
        with contextlib.suppress(OSError):
            kernel.lock_memory()  # the supervisor has logged that this is not allowed
        self._worker.reporter.send(messages.Progress(Phase.PLAN.value))
        plan = sysfs.read_plan(self._options.rules)
        self._grace = rcu.Expediter()
        self._worker.reporter.send(messages.Plan(plan.dump(), int(self._grace.able)))
        self._take(plan, obeys=True)
        try:
            return self._freeze_and_hold()
        except GiveUp as why:
            self._thaw(str(why))
            undone = sum(hand.froze for hand in self._board.hands.values())
            raise Fault(Code.FREEZE_FAILED, f"{why}; thawed again: {undone}") from None
        except Fault:
            raise
        except Exception as error:
            # A defect or a refused system call: whatever it is, nothing may stay frozen for it.
            self._thaw(f"{type(error).__name__}: {error}")
            raise

    def _freeze_and_hold(self) -> int:
        self._sync()
        self._freeze()
        count = len(self._board.in_state(MountState.FROZEN))
        if count == 0:
            return 0
        reason = self._hold(count)
        self._thaw(reason)
        lost = [h.mount.mountpoint for h in self._board.hands.values() if h.froze and h.error == errno.EINVAL]
        if lost:
            reason = reason or f"someone else had thawed {listed(lost)}"
        if reason:
            raise Fault(Code.FREEZE_BROKEN, reason)
        return count

    def _sync(self) -> None:
        self._rounds(Limit())  # the supervisor kills at the limit
        while not self._proceed:
            self._attend(self._board.next())

    def _freeze(self) -> None:
        # The supervisor kills at the limit; this is for the case that it is stopped or stuck itself.
        limit = Limit.of(self._options.freeze_limit, OWN_LIMIT_LATER)
        self._worker.reporter.post(dataclasses.replace(self._gauge.last, phase=Phase.FREEZE.value, round=0))
        by_level: dict[int, list[MountThread]] = {}
        for hand in self._board.hands.values():
            by_level.setdefault(hand.mount.level, []).append(hand)
        try:
            for level in sorted(by_level):
                self._announce(by_level[level], limit)
                # Not before the first is announced: whoever has to thaw for a dead worker puts this back, too.
                self._grace.begin()
                self._together(by_level[level], FREEZE, Phase.FREEZE, 0, limit)
        finally:
            self._grace.end()

    def _announce(self, hands: Sequence[MountThread], limit: Limit) -> None:
        """Have it in the pipe that the hands are about to freeze; if that is given up they say that they do not."""
        self._board.announce(hands, FREEZE)
        taken = False
        try:
            while not (taken := isinstance(event := self._board.next(limit.until, taken=True), Taken)):
                self._check(limit, Phase.FREEZE)
                self._attend(event)
        finally:
            if not taken:
                self._board.ending = True
                self._board.order(hands, FREEZE)

    def _attend(self, event: Event) -> None:
        match event:
            case Told(messages.Proceed()):
                self._proceed = True
            case Told(messages.Thaw()):
                raise GiveUp("the freeze was cancelled")
            case Gone(reason):
                raise GiveUp(reason)
            case _:
                super()._attend(event)

    def _hold(self, count: int) -> str:
        """Hold what is frozen; return why the hold ended, empty if the supervisor told so."""
        self._worker.become_keeper()
        limit = self._options.hold_limit
        at = time.monotonic()
        until = at + limit if limit else math.inf
        tell: messages.Report | None = messages.Frozen(count, at, until if limit else 0)
        while True:
            left = until - time.monotonic()
            self._worker.title(f"{count} frozen" + (f", {max(0, math.ceil(left))} s left" if limit else ""))
            if tell is not None:
                self._worker.reporter.post(tell)  # after the title: the host may look at once
                tell = None
            # The title counts down a second at a time: what an operator reads in ps must be true.
            next_second = until - max(0, math.ceil(left) - 1) if limit else math.inf
            match self._board.next(next_second):
                case Told(messages.Thaw()):
                    return ""
                case Told(messages.Hold(new)):
                    until, limit, tell = new, new - at, messages.Held(new)
                case Gone(reason):
                    return reason
            if time.monotonic() >= until:
                return f"the hold limit of {limit:.3g} s passed"

    def _refused(self) -> list[MountThread]:
        return [hand for hand in self._board.in_state(MountState.FAILED) if hand.froze]

    def _thaw(self, reason: str) -> None:
        self._worker.reporter.post(messages.Thawing(reason, time.monotonic()))
        self._board.thaw()
        again = THAW_AGAIN_FIRST
        while (refused := self._refused()) and self._board.alone:
            self._board.next(time.monotonic() + again)
            again = min(again * 2, THAW_AGAIN_MAX)
            for hand in refused:
                hand.state = MountState.FROZEN
            self._board.thaw()
        if refused:
            words = listed((f"{h.mount.mountpoint}: {h.words}" for h in refused), "; ")
            raise Fault(Code.FAILED, f"{words}; thawing because {reason or 'the host asked'}")


def thaw_again(worker: Worker, planned: dict[int, records.Mount], expedited: bool) -> int:
    """Thaw the file systems of a freeze whose worker is dead or was killed; return how many are proved thawed.

    `expedited`: it may have left grace periods expedited. Raises Fault FAILED that names those that the kernel refused
    to thaw.
    """
    if expedited:
        with contextlib.suppress(OSError):  # no reason not to thaw
            rcu.put_back()
    board = WorkerLoop(worker, planned.items(), obeys=False)
    for hand in board.hands.values():
        hand.state = MountState.FROZEN
    board.thaw()
    failed = board.in_state(MountState.FAILED)
    if failed:
        raise Fault(Code.FAILED, listed((f"{h.mount.mountpoint}: {h.words}" for h in failed), "; "))
    return len(board.hands)

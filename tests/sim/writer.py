"""Applications that are held around a freeze, and the workers of their writers, as agent/worker/writers has them.

A worker goes from one thing that can be seen from outside to the next: it writes its record, sets its latch, takes its
session, says so. It may be killed or stopped between any two of them, and its application may refuse, hang or end the
session by itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from virtagent.agent.api.errors import Code
from virtagent.agent.api.writers import TYPES, Hold, Step, WriterConfig
from virtagent.agent.worker import messages

from . import process
from .process import Process

if TYPE_CHECKING:
    from .world import World

FAULTS = ("refuses", "hangs", "undo_fails")
"""What an application may do next: refuse a step, not answer, refuse to be let go."""


class App:
    """One application. Moments are those of the world, 0 is never.

    `holder` is the worker whose session holds it, `latched`: something is set that nobody ends by itself. `recorded`:
    memory has a record of what is, or is about to be, set. It is held since `since`, and its worker has proved that at
    `confirmed`; both are of its last hold, and `before` of the one before that. `required`: the present freeze does not
    go on without it.
    """

    __slots__ = (
        *("before", "config", "confirmed", "hangs", "holder", "latched"),
        *("recorded", "refuses", "required", "since", "undo_fails"),
    )

    def __init__(self, config: WriterConfig) -> None:
        self.config = config
        self.holder: WriterProcess | None = None
        self.latched = self.recorded = False
        self.refuses = self.hangs = self.undo_fails = False
        self.required = config.required
        self.since = self.confirmed = 0
        self.before = 0, 0

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.config.name

    @property
    def latch(self) -> bool:
        """Whether nobody ends its hold by itself."""
        return TYPES[self.config.type].hold is Hold.LATCH

    @property
    def records(self) -> bool:
        """Whether its worker leaves something behind that is on record."""
        return self.latch or TYPES[self.config.type].latches

    @property
    def held(self) -> bool:
        """Whether it stands still."""
        return self.latched or self.holder is not None

    def end_session(self, worker: WriterProcess) -> None:
        """Go on if that worker's session held it."""
        if self.holder is worker:
            self.holder = None


class WriterProcess(Process):
    """The worker of a writer, or one that undoes what a dead one has left."""

    def __init__(self, world: World, name: int, pid: int, number: int, rpc: str, args: Mapping[str, Any]) -> None:
        super().__init__(world, name, pid, number, rpc, args)
        self.app = world.apps[args["writer"].name if rpc == "writer" else args["name"]]
        self.lifeline: Process | None = None
        self.failed = self.locked = self._let_go = False
        if rpc == "writer":
            self.app.required = args["writer"].required
        self._todo: deque[Callable[[], None]] = deque()
        self._doing: Step | None = None
        self._until = math.inf
        self._held_since = 0.0
        self._at_most: float = args.get("at_most", 0.0)
        self._told_lost = False
        self._held_until = 0.0

    @property
    def busy(self) -> bool:
        """Whether it is in the middle of a step."""
        return bool(self._todo)

    @property
    def quiesced(self) -> bool:
        """Whether it has held its application's writes."""
        return self._held_since > 0

    def terminate(self) -> None:
        """Take SIGTERM: a handler does nothing with it."""

    def _leave(self) -> None:
        super()._leave()
        self.app.end_session(self)

    def due(self) -> float:
        """Return when it wakes by itself, infinity if never."""
        if self.script is None:
            return math.inf
        if self._todo:
            return self._until
        ends = self._held_since + self._at_most if self._held_since and self._at_most else math.inf
        return max(ends, self._held_until)

    @property
    def unheard(self) -> bool:
        """Whether it has ended its work, and cannot say so."""
        return self._finished and self._sends

    # -- what can go on

    def main_can(self) -> bool:
        """Whether it can go on."""
        if self.script is None or self.stopped:
            return False
        if self._backlog and (not self.world.pipes_full or self._read_end_closed):
            return True
        if self._sends:
            return not self._backlog
        return not self._begun or self._move() is not None

    def main_step(self) -> None:
        """Do the next thing that can be seen."""
        if not self._begun:
            self._begun = True
            self._send(messages.Started(self.pid))
            return
        if not self._drain() and self._sends:
            return
        if self._sends:
            self._sends = False
            if self._finished:
                self._exit()
            return
        move = self._move()
        if move is not None:
            move()

    def _move(self) -> Callable[[], None] | None:
        app, now = self.app, self.world.now
        if not self.locked:
            return None if any(self._locks_out(one) for one in self.world.processes) else self._lock
        if self._let_go:
            return lambda: self._finish(messages.Done(""))
        if self._todo:
            if self._doing is not Step.RELEASE and self._interrupted:
                return self._interrupt
            if now >= self._until:
                return self._too_slow
            return None if app.hangs else self._go_on
        if now >= self.due():
            return self._held_too_long
        if self.control:
            return self._obey
        if self._read_end_closed:
            return self._alone_now()
        lost = self._held_since and not app.latch and app.holder is not self and not self._told_lost
        return self._tell_lost if lost else None

    def _locks_out(self, one: Process) -> bool:
        return isinstance(one, WriterProcess) and one.app is self.app and one.locked and not one.ended

    @property
    def _interrupted(self) -> bool:
        orders = [order for order in self.control if isinstance(order, messages.Act)]
        return self._read_end_closed or any(order.step == Step.RELEASE.value for order in orders)

    def _alone_now(self) -> Callable[[], None] | None:
        """Return what to do now that the supervisor is dead: it waits for the end of the freeze worker."""
        if not self._held_since or (self.lifeline is not None and self.lifeline.tells_thawed):
            return lambda: self._begin(Step.RELEASE, 0)
        if self.lifeline is None or self.lifeline.ended:
            return lambda: self._finish(messages.Done("the next start lets go"))
        return None

    # -- steps

    def _lock(self) -> None:
        if self._read_end_closed:
            self._finish(messages.Done("the next start lets go"))  # what is on record may be a later supervisor's
            return
        self.locked = True
        if self.rpc == "unlatch":
            self._begin(Step.RELEASE, 0)
        elif self.app.recorded:  # what one left whose worker died just now
            self._todo.extend((self._unset, self._clear))
            self._doing = Step.RELEASE

    def _obey(self) -> None:
        order = self.control.popleft()
        if isinstance(order, messages.Hold):
            self._held_until = max(self._held_until, order.until)
            return
        assert isinstance(order, messages.Act)
        self._begin(Step(order.step), order.limit)

    def _begin(self, step: Step, limit: float) -> None:
        app, world = self.app, self.world
        world.count(f"writer {step.value}")
        self._doing = step
        self._until = world.now + limit if limit else math.inf
        sets = step is app.config.when and app.latch
        if step is Step.QUIESCE and not app.latch:
            self._todo.extend((self._record, self._take_session) if app.records else (self._take_session,))
        elif sets:
            self._todo.extend((self._record, self._set))
        elif step is Step.RELEASE:
            self._until = world.now + (limit or app.config.release_limit)
            self._todo.extend((self._unset, self._clear))
        self._todo.append(self._end_of_step)

    def _go_on(self) -> None:
        self._todo.popleft()()

    def _record(self) -> None:
        self.app.recorded = True
        self._note("writes its record")

    def _set(self) -> None:
        self.world.oracle.app_held(self.app)
        self.app.latched = True
        self._note("sets its latch")

    def _take_session(self) -> None:
        self.world.oracle.app_held(self.app)
        self.app.holder = self
        self._note("holds")

    def _unset(self) -> None:
        app = self.app
        if app.undo_fails and app.recorded:
            self._refuse("it cannot be let go")
            return
        if app.held:
            self.world.oracle.app_let_go(app, self)
        app.latched = False
        app.end_session(self)
        self._note("lets go")

    def _clear(self) -> None:
        self.app.recorded = False
        self._note("removes its record")
        if not self._todo:
            self._doing = None

    def _end_of_step(self) -> None:
        step, app = self._doing, self.app
        assert step is not None
        if step is Step.RELEASE:
            if self.rpc == "writer":
                self._post((messages.Acted(step.value, "ok", "", {}),))
            self._let_go = True
            return
        lost = step is Step.CONFIRM and not app.latch and app.holder is not self
        if app.refuses or lost:
            app.refuses = False
            self._refuse("no" if not lost else "its session has ended")
            return
        if step is Step.QUIESCE:
            self._held_since = self.world.now
        if step is Step.CONFIRM:
            app.confirmed = self.world.moment
        self._say(step, "ok", "")

    def _say(self, step: Step, outcome: str, text: str) -> None:
        self._todo.clear()
        self.failed |= outcome != "ok"
        self._until = math.inf
        self._send(messages.Acted(step.value, outcome, text, {}))

    def _refuse(self, why: str) -> None:
        step = self._doing
        self._todo.clear()
        assert step is not None
        if step is Step.RELEASE:
            self._finish(messages.Failed(int(Code.FAILED), why))
        else:
            self._say(step, "refused", why)

    def _too_slow(self) -> None:
        step = self._doing
        assert step is not None
        if step is not Step.RELEASE:
            self._say(step, "overran", "it did not answer in time")
        elif self.app.recorded:
            self._refuse("it did not answer in time")
        else:
            self._todo.clear()
            self._todo.append(self._end_of_step)
            self._until = math.inf
            if self.app.held:
                self.world.oracle.app_let_go(self.app, self)
            self.app.end_session(self)

    def _interrupt(self) -> None:
        self._todo.clear()
        self._until = math.inf

    def _held_too_long(self) -> None:
        self._post((messages.Acted("held", "lost", "it was held as long as it may be", {}),))
        self.failed = True
        self._begin(Step.RELEASE, 0)

    def _tell_lost(self) -> None:
        self._told_lost = self.failed = True
        self._post((messages.Acted("held", "lost", "its session has ended", {}),))

    def _note(self, what: str) -> None:
        self.world.moment += 1
        self.world.note(f"    {self.name}: {self.app.name} {what}")


def process_of(rpc: str) -> type[Process]:
    """Return the kind of process that runs this RPC."""
    return WriterProcess if rpc in ("writer", "unlatch") else process.Process

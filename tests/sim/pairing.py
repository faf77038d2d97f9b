"""What must be true of writers, and of the instant of a freeze: judged by what their applications went through.

Each application that is held is let go, once, and not while anything is frozen. A freeze that is told good had every
required one held from before the first FIFREEZE until after the last. None is told that a broken freeze was good.
Nothing is held or frozen before the instant that the host has set, nor before it lets go a freeze that it attends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtagent.agent.api.records import Last
from virtagent.agent.api.states import FreezeState, Phase
from virtagent.agent.api.writers import Step

from .writer import App, WriterProcess

if TYPE_CHECKING:
    from virtagent.supervisor.core.engine import Engine

    from .oracle import Frozen
    from .process import Process
    from .world import Asked, World

EARLY = 1e-3


class Violation(AssertionError):
    """A promise is broken."""


class Pairing:
    """The judge of the writers of one storm."""

    def __init__(self, world: World, wall: float) -> None:
        """Judge; `wall` is the time of day at second 0 of the world."""
        self._world = world
        self._wall = wall
        self._instant = 0.0
        self._attended_by = 0
        self._left = False
        self._gone: set[int] = set()
        self._last: Last | None = None

    # -- the instant

    def begins(self) -> None:
        """Take note that a freeze worker was forked."""
        freezer = self._world.freezer
        assert freezer is not None
        options = freezer.args["options"]
        self._instant = options.at
        self._attended_by, self._left = self._host() if options.attended else 0, False
        if self._attended_by in self._gone:
            raise Violation("a freeze begins which a host is to let go that has left")

    def _host(self) -> int:
        supervisor = self._world.supervisor
        assert supervisor is not None
        transaction = supervisor.engine.freeze.transaction
        if transaction is None or not transaction.attended_by:
            raise Violation("a freeze begins which a host is to let go, and nobody knows which")
        return transaction.attended_by

    def lost(self, connection: int) -> None:
        """Take note that the supervisor knows that a host is gone: what it was to let go is called off."""
        self._gone.add(connection)
        if connection == self._attended_by:
            self._left = True
            self._world.count("attended freeze left alone")

    def answered(self, call: Asked) -> None:
        """Take note that a call is to be answered with 1: it may have set the instant, by default to now."""
        if call.method == "va.fsgo":
            self._instant = float(call.params[0]) if call.params else 0.0
            if self._left:
                raise Violation("va.fsgo lets a freeze go whose host has left before")
            self._world.count("attended freeze let go" if self._attended_by else "freeze let go")
            self._attended_by = 0

    def not_before(self, what: str) -> None:
        """Require that the instant has come, and that a host has let it go which was to do that."""
        if self._attended_by:
            raise Violation(f"{what}, and no host has let the freeze go")
        if self._wall + self._world.now < self._instant - EARLY:
            raise Violation(f"{what} before its instant")

    # -- the applications

    def held(self, app: App) -> None:
        """Take note that an application comes to be held."""
        if app.held:
            raise Violation(f"{app.name} is held, and is held once more")
        if app.config.when is Step.QUIESCE:
            self.not_before(f"{app.name} is held")
            for other in self._workers():
                if other.app.name in app.config.after and not (other.failed or other.quiesced):
                    raise Violation(f"{app.name} is held before {other.app.name}")
        self._world.count("writer held")
        app.before = app.since, app.confirmed
        app.since, app.confirmed = self._world.moment, 0

    def let_go(self, app: App, worker: WriterProcess) -> None:
        """Take note that a worker lets an application go: that comes after the thaw."""
        self._world.count("writer let go")
        if not app.required or worker.failed:
            return
        freezer = self._world.freezer
        if worker.rpc == "unlatch" and freezer is not None and worker.pid < freezer.pid:
            return  # the freeze that has begun since has no part in it: it was asked to do without writers
        for fs in self._world.kernel.every:
            if fs.frozen > 0:
                raise Violation(f"{app.name} is let go while /srv/{fs.index} is frozen")

    def told_good(self, worker: int, freeze: Frozen | None) -> None:
        """Take note that the supervisor tells a writer's worker that the freeze was good."""
        if freeze is None or freeze.over or freeze.is_broken:
            raise Violation(f"promise 5: the writer of worker {worker} is told that the freeze was good")

    def held_over(self, app: App, freezer: Process) -> bool:
        """Return whether it was held from before the first FIFREEZE of that worker until after the last."""
        holds = (app.since, app.confirmed), app.before  # it may be held anew when the last freeze is summed up
        return any(0 < since < freezer.first_freeze and confirmed > freezer.last_freeze for since, confirmed in holds)

    def told_frozen(self, freezer: Process) -> None:
        """Require that all that are required have held: a host is told that all is frozen."""
        for app in self._world.apps.values():
            if freezer.args["options"].writers == "all" and app.config.required and not self.held_over(app, freezer):
                raise Violation(f"promise 5: frozen was told, and {app.name} did not hold over the freeze")

    def told_last(self, last: Last | None, freeze: Frozen | None) -> None:
        """Require that what the status says of the last freeze is true of the applications."""
        if last is self._last:
            return
        self._last = last
        if last is None or freeze is None or last.freeze_id != freeze.id or last.consistency != "application":
            return
        for app in self._world.apps.values():
            if not self.held_over(app, freeze.process):
                raise Violation(f"promise 5: the freeze is said to be consistent, and {app.name} did not hold over it")

    # -- when nobody can go on

    def _workers(self) -> list[WriterProcess]:
        """Return the workers of writers that the present supervisor has forked, and that can go on."""
        found = [one for one in self._world.processes if isinstance(one, WriterProcess) and one.rpc == "writer"]
        return [one for one in found if one.parent is self._world.supervisor and not (one.ended or one.killed)]

    def quiet(self, engine: Engine) -> None:
        """Require that a freeze goes on at its instant, and that no application is held when there is no freeze."""
        freezer = None if engine.thawed else engine.freeze._freezer()
        ready = freezer is not None and freezer.phase is Phase.READY
        if ready and self._wall + self._world.now > self._instant + EARLY:
            raise Violation("the instant has come, and the freeze does not go on")
        if self._left and engine.freeze.state is FreezeState.INPROGRESS:
            raise Violation("the host has left which was to let the freeze go, and it is not called off")
        for one in self._workers():
            if engine.idle and one.app.held and not (one.stopped or one.app.hangs or one.unheard):
                raise Violation(f"{one.app.name} is held, and no freeze is under way")

    # -- the end

    def nobody_is_held(self, when: str) -> None:
        """Require that no application is held, and that nothing is on record."""
        for app in self._world.apps.values():
            if app.held or app.recorded:
                raise Violation(f"{when} {app.name} is {'held' if app.held else 'on record'} still")

    def nobody_holds(self) -> None:
        """Require that no worker that the supervisor's death left alone holds its application."""
        for app in self._world.apps.values():
            if app.holder is not None:
                raise Violation(f"{app.name} is held by a worker after the supervisor's death")

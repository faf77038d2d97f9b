"""Moments of a storm at which faults do most."""

from __future__ import annotations

from collections.abc import Callable

from virtagent.agent.api.states import Phase
from virtagent.agent.worker.steps import Operation

from .world import World
from .writer import WriterProcess


def any_thread(world: World, operation: Operation, *, back: bool = False) -> bool:
    for one in world.processes:
        for thread in one.threads.values():
            if thread.operation is operation and (thread.error is not None if back else thread.call is not None):
                return True
    return False


def freeze_is_back(world: World) -> bool:
    return any_thread(world, Operation.FREEZE, back=True)


def thaw_is_back(world: World) -> bool:
    return any_thread(world, Operation.THAW, back=True)


def is_held(world: World) -> bool:
    return any(one.held and not one.thaws for one in world.processes)


def goes_on(world: World) -> bool:
    one = world.freezer
    return one is not None and not (one.ended or one.first_freeze) and bool(one.control) and world.journal is not None


def is_over(world: World) -> bool:
    """Whether a keeper has said that it has thawed all, and has not ended."""
    return any(one.held and one.finished and not (one.ended or one.killed) for one in world.processes)


def is_ready(world: World) -> bool:
    """Whether a freeze waits for its instant."""
    supervisor = world.supervisor
    if supervisor is None or supervisor.engine.thawed:
        return False
    worker = supervisor.engine.freeze._freezer()
    return worker is not None and worker.phase is Phase.READY


MOMENTS: tuple[Callable[[World], bool], ...] = (
    lambda world: any_thread(world, Operation.FREEZE),
    freeze_is_back,
    lambda world: any_thread(world, Operation.THAW),
    thaw_is_back,
    lambda world: any(fs.frozen > 0 for fs in world.kernel.every),
    lambda world: any(one.rpc == "thaw" for one in world.processes),
    lambda world: any(one.rpc == "thaw" and one.pipe for one in world.processes),
    lambda world: any(one.killed and not one.ended for one in world.processes),
    lambda world: any(one.ended for one in world.processes),
    is_over,
)
"""Moments at which faults do most."""


def any_writer(test: Callable[[WriterProcess], bool]) -> Callable[[World], bool]:
    return lambda world: any(isinstance(one, WriterProcess) and test(one) for one in world.processes)


WRITERS_MOMENTS: tuple[Callable[[World], bool], ...] = (
    any_writer(lambda one: one.busy),
    any_writer(lambda one: one.app.recorded and not one.app.held),
    any_writer(lambda one: one.app.held and not one.app.confirmed),
    any_writer(lambda one: one.app.held and one.app.confirmed > 0),
    any_writer(lambda one: one.rpc == "unlatch"),
    lambda world: any(fs.frozen > 0 for fs in world.kernel.every) and any(app.held for app in world.apps.values()),
    lambda world: any(app.confirmed and not app.held for app in world.apps.values()),
)
"""Moments at which faults do most to writers."""

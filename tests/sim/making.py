"""Storms are made from a seed: actions are chosen, by chance and by a climate, while the storm is played."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping

from virtagent.agent.worker.steps import Operation

from .actions import AHEAD, ASKS, LAYOUTS, Action
from .kernel import FLOWS, STUCK, STUCK_FOR_WRITERS
from .world import World
from .writer import FAULTS, WriterProcess


class Maker:
    """Chooses the actions of one storm while it is played."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.layout = self.random.choices(range(len(LAYOUTS)), (6, 8, 3, 6, 4, 2, 2, 2, 4, 4, 4, 4))[0]
        # A storm has its own climate: some faults are likely in it, others do not occur.
        climate = {kind: self.random.choice((0, 1, 1, 3)) * weight for kind, (weight, _) in _CHOICES.items()}
        climate["ask"] = climate["ask"] or 6
        climate["steps"] = climate["steps"] or 10
        self._kinds = list(climate)
        self._weights = [float(weight) for weight in climate.values()]
        self.length = self.random.randint(6, 40)

    def next(self, world: World) -> Iterable[Action]:
        """Return the next actions, each to be done before the next is taken."""
        kind = self.random.choices(self._kinds, self._weights)[0]
        return _CHOICES[kind][1](self.random, world)


def _choose_ask(rng: random.Random, world: World) -> list[Action]:
    frozen = any(fs.frozen > 0 for fs in world.kernel.every) or world.oracle.has_news
    if frozen:
        what = rng.choices(
            ("thaw", "thaw-wait", "guest-thaw", "guest-status", "hold", "hold-short", "watch", "freeze", "sync"),
            (8, 2, 3, 1, 2, 2, 1, 1, 1),
        )[0]
    else:
        asks, weights = list(ASKS), [14, 2, 3, 4, 3, 1, 2, 1, 1, 1, 1, 1, 1, 0, 0, 0]
        if world.apps or rng.random() < 0.2:
            asks, weights = [*asks, *AHEAD], [*weights[:-3], 2, 1, 1, 2, 1, 1, 1, 1]
        what = rng.choices(asks, weights)[0]
    same = bool(world.connections) and rng.random() < 0.3
    return [("ask", what, rng.choice(sorted(world.connections)) if same else None)]


def _choose_hang_up(rng: random.Random, world: World) -> list[Action]:
    return [("hang up", rng.choice(sorted(world.connections)), rng.random() < 0.5)] if world.connections else []


def _choose_steps(rng: random.Random, _world: World) -> list[Action]:
    return [("steps", min(int(rng.expovariate(1 / 12)) + 1, 80), None)]


def _choose_moment(rng: random.Random, _world: World) -> list[Action]:
    return [("steps", 80, rng.choice(MOMENTS))]


def _choose_strike(rng: random.Random, world: World) -> Iterator[Action]:
    """Yield several faults at one moment, and then let everybody go on with those."""
    yield ("steps", 80, rng.choice(MOMENTS))
    for _ in range(rng.randint(1, 4)):
        kind = rng.choices(
            ("signal", "ask", "time", "another", "death", "disk", "steps", "start"), (6, 3, 4, 2, 1, 3, 4, 1)
        )
        yield from _CHOICES[kind[0]][1](rng, world)
    yield ("settle",)


def _choose_stall(rng: random.Random, world: World) -> Iterator[Action]:
    """Yield disks that get stuck under calls, an end for the freeze, and then some of the disks work again."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, rng.choice(MOMENTS[:4]))
    stuck = [fs.index for fs in world.kernel.every if rng.random() < 0.6]
    for index in stuck:
        yield ("disk", index, rng.choice((STUCK, STUCK_FOR_WRITERS)))
    yield from _choose_steps(rng, world)
    end = rng.random()
    if end < 0.3:
        yield ("ask", "thaw", None)
    elif end < 0.5:
        yield from _choose_signal(rng, world)
    elif end < 0.6:
        yield from _choose_rubbish(rng, world)
    else:
        yield from [("time",)] * rng.randint(1, 6)
    if rng.random() < 0.5:
        yield ("settle",)
    else:
        yield ("steps", 60, rng.choice(MOMENTS))
    rng.shuffle(stuck)
    for index in stuck[: rng.randint(0, len(stuck))]:
        yield ("disk", index, FLOWS)
        yield from _choose_steps(rng, world)


def _choose_meddling(rng: random.Random, world: World) -> Iterator[Action]:
    """Let somebody else thaw what is held, and kill or stop whoever thaws then, or the supervisor."""
    yield ("fault", "no_counters", rng.random() < 0.7)
    yield ("ask", rng.choice(("freeze", "guest-freeze")), None)
    yield ("steps", 120, _is_held)
    keepers = [one for one in world.processes if one.held and not one.thaws]
    late = rng.random() < 0.3
    if keepers and rng.random() < 0.3:
        yield ("fault", "pipes_full", late)
        yield ("signal", str(keepers[-1].name), int(signal.SIGTERM))
        yield ("steps", rng.randint(1, 20), None, "S")
    elif rng.random() < 0.7:
        yield ("another", "thaws", rng.randrange(len(world.kernel.every)))
    if late and rng.random() < 0.5:
        yield ("time",)
    if rng.random() < 0.7:
        yield ("ask", "thaw", None)
    else:
        yield from [("time",)] * rng.randint(1, 6)
    yield ("steps", 60, rng.choice(MOMENTS))
    yield ("fault", "pipes_full", False)
    yield from _choose_signal(rng, world)
    yield from _choose_steps(rng, world)


def _choose_theft(rng: random.Random, world: World) -> Iterator[Action]:
    """Let somebody else thaw what is held, with no other evidence, and kill the keeper in or after its FITHAW."""
    yield ("fault", "no_counters", True)
    yield ("ask", "freeze", None)
    yield ("steps", 120, _is_held)
    yield ("settle",)
    for fs in world.kernel.every:
        if rng.random() < 0.7:
            yield ("another", "thaws", fs.index)
    yield ("ask", "thaw", None)
    yield ("steps", 60, rng.choice((_thaw_is_back, MOMENTS[2])))
    for one in [one for one in world.processes if any(t.operation is Operation.THAW for t in one.threads.values())]:
        yield ("signal", str(one.name), int(signal.SIGKILL))


def _choose_late(_rng: random.Random, _world: World) -> Iterator[Action]:
    """Let time pass between what a keeper says and what the supervisor reads."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, _is_held, "S")
    yield ("steps", 1, None, "S")  # the keeper begins to wait
    yield ("time",)
    yield ("settle",)


def _is_held(world: World) -> bool:
    return any(one.held and not one.thaws for one in world.processes)


def _choose_stuck_thaw(rng: random.Random, world: World) -> Iterator[Action]:
    """Let the keeper get stuck in its FITHAWs, and one of them fail when its disk works again."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, _is_held)
    yield ("settle",)
    for fs in world.kernel.every:
        yield ("disk", fs.index, STUCK)
    yield ("ask", "thaw", None)
    yield ("settle",)
    yield from [("time",), ("settle",)] * rng.randint(1, 4)
    one = rng.randrange(len(world.kernel.every))
    yield ("error", one, "THAW", errno.EIO)
    yield ("disk", one, FLOWS)
    yield ("settle",)


def _choose_deaf(rng: random.Random, _world: World) -> Iterator[Action]:
    """Let a worker go on to freeze while nobody reads what it announces."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, _goes_on)
    yield ("fault", "pipes_full", True)
    yield ("signal", "S", int(signal.SIGSTOP))
    yield ("settle",)
    yield from [("time",), ("settle",)] * rng.randint(1, 5)
    yield ("fault", "pipes_full", False)
    yield ("signal", "S", int(signal.SIGCONT))


def _goes_on(world: World) -> bool:
    one = world.freezer
    return one is not None and not (one.ended or one.first_freeze) and bool(one.control) and world.journal is not None


def _choose_lag(rng: random.Random, world: World) -> Iterator[Action]:
    """Let a worker that has come back from a call not say so, while all others go on and no disk is stuck."""
    yield ("steps", 120, rng.choice((_thaw_is_back, _freeze_is_back)))
    back = [one for one in world.processes if any(thread.error is not None for thread in one.threads.values())]
    if back:
        for fs in world.kernel.every:
            if fs.disk != FLOWS:
                yield ("disk", fs.index, FLOWS)
        yield ("steps", 60, None, str(rng.choice(back).name))


def _any_thread(world: World, operation: Operation, *, back: bool = False) -> bool:
    for one in world.processes:
        for thread in one.threads.values():
            if thread.operation is operation and (thread.error is not None if back else thread.call is not None):
                return True
    return False


def _freeze_is_back(world: World) -> bool:
    return _any_thread(world, Operation.FREEZE, back=True)


def _thaw_is_back(world: World) -> bool:
    return _any_thread(world, Operation.THAW, back=True)


MOMENTS: tuple[Callable[[World], bool], ...] = (
    lambda world: _any_thread(world, Operation.FREEZE),
    _freeze_is_back,
    lambda world: _any_thread(world, Operation.THAW),
    _thaw_is_back,
    lambda world: any(fs.frozen > 0 for fs in world.kernel.every),
    lambda world: any(one.rpc == "thaw" for one in world.processes),
    lambda world: any(one.rpc == "thaw" and one.pipe for one in world.processes),
    lambda world: any(one.killed and not one.ended for one in world.processes),
    lambda world: any(one.ended for one in world.processes),
)
"""Moments at which faults do most."""


def _choose_settle(_rng: random.Random, _world: World) -> list[Action]:
    return [("settle",)]


def _choose_time(_rng: random.Random, _world: World) -> list[Action]:
    return [("time",)]


def _choose_signal(rng: random.Random, world: World) -> list[Action]:
    names = [str(p.name) for p in world.processes if not p.ended]
    if not names or rng.random() < 0.25:
        whom = "S"
        number = rng.choices((signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM), (3, 2, 2, 1))[0]
    else:
        whom = rng.choice(names)
        number = rng.choices((signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM), (6, 3, 2, 2))[0]
    return [("signal", whom, int(number))]


def _choose_death(rng: random.Random, _world: World) -> list[Action]:
    soon = [("die in", rng.randint(1, 30))]
    return [*soon, ("slow", 30)] if rng.random() < 0.3 else soon


def _choose_start(_rng: random.Random, world: World) -> list[Action]:
    return [("start",)] if world.supervisor is None else []


def _choose_disk(rng: random.Random, world: World) -> list[Action]:
    index = rng.randrange(len(world.kernel.every))
    return [("disk", index, rng.choices((FLOWS, STUCK, STUCK_FOR_WRITERS), (4, 3, 2))[0])]


def _choose_error(rng: random.Random, world: World) -> list[Action]:
    index = rng.randrange(len(world.kernel.every))
    operation = rng.choice(("SYNC", "FREEZE", "THAW"))
    return [("error", index, operation, errno.EIO)]


def _choose_another(rng: random.Random, world: World) -> list[Action]:
    index = rng.randrange(len(world.kernel.every))
    return [("another", rng.choice(("thaws", "thaws", "freezes")), index)]


def _choose_fault(rng: random.Random, _world: World) -> list[Action]:
    name = rng.choice(("forks_fail", "journal_fails", "pipes_full", "no_threads", "hosts_slow"))
    return [("fault", name, rng.random() < 0.5)]


def _choose_rubbish(rng: random.Random, world: World) -> list[Action]:
    names = [str(p.name) for p in world.processes if not p.ended]
    return [("rubbish", rng.choice(names))] if names else []


def _choose_app(rng: random.Random, world: World) -> list[Action]:
    if not world.apps:
        return []
    return [("app", rng.choice(list(world.apps)), rng.choice((*FAULTS, "loses", "loses", "recovers")))]


def _choose_writers(rng: random.Random, world: World) -> Iterator[Action]:
    """Let a freeze with writers come to one of their moments, and strike there."""
    if not world.apps:
        return
    yield ("ask", rng.choice(("freeze", "freeze", "freeze-at", "freeze-try")), None)
    yield ("steps", 150, rng.choice(WRITERS_MOMENTS))
    for _ in range(rng.randint(1, 3)):
        kind = rng.choices(
            ("app", "holder", "signal", "ask", "time", "death", "steps", "start"), (4, 4, 3, 2, 2, 1, 4, 1)
        )
        yield from _CHOICES[kind[0]][1](rng, world)


def _choose_holder(rng: random.Random, world: World) -> list[Action]:
    those = [str(p.name) for p in world.processes if isinstance(p, WriterProcess) and not p.ended]
    number = rng.choices((signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT), (4, 2, 1))[0]
    return [("signal", rng.choice(those), int(number))] if those else []


def _any_writer(test: Callable[[WriterProcess], bool]) -> Callable[[World], bool]:
    return lambda world: any(isinstance(one, WriterProcess) and test(one) for one in world.processes)


WRITERS_MOMENTS: tuple[Callable[[World], bool], ...] = (
    _any_writer(lambda one: one.busy),
    _any_writer(lambda one: one.app.recorded and not one.app.held),
    _any_writer(lambda one: one.app.held and not one.app.confirmed),
    _any_writer(lambda one: one.app.held and one.app.confirmed > 0),
    _any_writer(lambda one: one.rpc == "unlatch"),
    lambda world: any(fs.frozen > 0 for fs in world.kernel.every) and any(app.held for app in world.apps.values()),
    lambda world: any(app.confirmed and not app.held for app in world.apps.values()),
)
"""Moments at which faults do most to writers."""


def _choose_tear(_rng: random.Random, world: World) -> list[Action]:
    return [("tear",)] if world.supervisor is None and world.journal is not None else []


_CHOICES: Mapping[str, tuple[float, Callable[[random.Random, World], Iterable[Action]]]] = {
    "ask": (8, _choose_ask),
    "steps": (8, _choose_steps),
    "moment": (6, _choose_moment),
    "strike": (2, _choose_strike),
    "stall": (2, _choose_stall),
    "lag": (2, _choose_lag),
    "meddling": (2, _choose_meddling),
    "theft": (0.5, _choose_theft),
    "stuck thaw": (0.5, _choose_stuck_thaw),
    "deaf": (0.5, _choose_deaf),
    "late": (0.5, _choose_late),
    "settle": (4, _choose_settle),
    "time": (4, _choose_time),
    "hang up": (1, _choose_hang_up),
    "signal": (7, _choose_signal),
    "death": (1, _choose_death),
    "start": (3, _choose_start),
    "disk": (3, _choose_disk),
    "error": (1, _choose_error),
    "another": (1.5, _choose_another),
    "fault": (1, _choose_fault),
    "slow": (0.5, lambda rng, _: [("slow", rng.randint(1, 40))]),
    "rubbish": (0.4, _choose_rubbish),
    "tear": (0.5, _choose_tear),
    "app": (2, _choose_app),
    "holder": (1, _choose_holder),
    "writers": (3, _choose_writers),
}

"""Scenes of a storm: several things after one another, which chance alone seldom brings together."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

from virtagent.agent.worker.steps import Operation

from . import choices
from .actions import ATTENDED, Action
from .kernel import FLOWS, STUCK, STUCK_FOR_WRITERS
from .moments import MOMENTS, WRITERS_MOMENTS, freeze_is_back, goes_on, is_held, is_over, is_ready, thaw_is_back
from .world import World
from .writer import WriterProcess


def stall(rng: random.Random, world: World) -> Iterator[Action]:
    """Yield disks that get stuck under calls, an end for the freeze, and then some of the disks work again."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, rng.choice(MOMENTS[:4]))
    stuck = [fs.index for fs in world.kernel.every if rng.random() < 0.6]
    for index in stuck:
        yield ("disk", index, rng.choice((STUCK, STUCK_FOR_WRITERS)))
    yield from choices.steps(rng, world)
    end = rng.random()
    if end < 0.3:
        yield ("ask", "thaw", None)
    elif end < 0.5:
        yield from choices.signal(rng, world)
    elif end < 0.6:
        yield from choices.rubbish(rng, world)
    else:
        yield from [("time",)] * rng.randint(1, 6)
    if rng.random() < 0.5:
        yield ("settle",)
    else:
        yield ("steps", 60, rng.choice(MOMENTS))
    rng.shuffle(stuck)
    for index in stuck[: rng.randint(0, len(stuck))]:
        yield ("disk", index, FLOWS)
        yield from choices.steps(rng, world)


def meddling(rng: random.Random, world: World) -> Iterator[Action]:
    """Let somebody else thaw what is held, and kill or stop whoever thaws then, or the supervisor."""
    yield ("fault", "no_counters", rng.random() < 0.7)
    yield ("ask", rng.choice(("freeze", "guest-freeze")), None)
    yield ("steps", 120, is_held)
    keepers = [one for one in world.processes if one.held and not one.thaws]
    late = rng.random() < 0.3
    if keepers and rng.random() < 0.3:
        yield ("fault", "pipes_full", late)
        yield ("signal", str(keepers[-1].name), int(SIGTERM))
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
    yield from choices.signal(rng, world)
    yield from choices.steps(rng, world)


def theft(rng: random.Random, world: World) -> Iterator[Action]:
    """Let somebody else thaw what is held, with no other evidence, and kill the keeper in or after its FITHAW."""
    yield ("fault", "no_counters", True)
    yield ("ask", "freeze", None)
    yield ("steps", 120, is_held)
    yield ("settle",)
    for fs in world.kernel.every:
        if rng.random() < 0.7:
            yield ("another", "thaws", fs.index)
    yield ("ask", "thaw", None)
    yield ("steps", 60, rng.choice((thaw_is_back, MOMENTS[2])))
    for one in [one for one in world.processes if any(t.operation is Operation.THAW for t in one.threads.values())]:
        yield ("signal", str(one.name), int(SIGKILL))


def late(_rng: random.Random, _world: World) -> Iterator[Action]:
    """Let time pass between what a keeper says and what the supervisor reads."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, is_held, "S")
    yield ("steps", 1, None, "S")  # the keeper begins to wait
    yield ("time",)
    yield ("settle",)


def lapse(rng: random.Random, world: World) -> Iterator[Action]:
    """Let time pass between two effects of a freeze that begins when a host was told that the one before was broken."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, is_held)
    yield ("signal", str(world.processes[-1].name) if world.processes else "S", int(SIGKILL))
    yield ("settle",)
    yield ("ask", "thaw", None)
    yield ("settle",)
    yield ("ask", "freeze", None)
    yield ("steps", rng.randint(1, 40), None)
    yield ("late in", rng.randint(1, 8))
    yield ("settle",)


def stuck_thaw(rng: random.Random, world: World) -> Iterator[Action]:
    """Let the keeper get stuck in its FITHAWs, and one of them fail when its disk works again."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, is_held)
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


def deaf(rng: random.Random, _world: World) -> Iterator[Action]:
    """Let a worker go on to freeze while nobody reads what it announces."""
    yield ("ask", "freeze", None)
    yield ("steps", 120, goes_on)
    yield ("fault", "pipes_full", True)
    yield ("signal", "S", int(SIGSTOP))
    yield ("settle",)
    yield from [("time",), ("settle",)] * rng.randint(1, 5)
    yield ("fault", "pipes_full", False)
    yield ("signal", "S", int(SIGCONT))


def lag(rng: random.Random, world: World) -> Iterator[Action]:
    """Let a worker that has come back from a call not say so, while all others go on and no disk is stuck."""
    yield ("steps", 120, rng.choice((thaw_is_back, freeze_is_back)))
    back = [one for one in world.processes if any(thread.error is not None for thread in one.threads.values())]
    if back:
        for fs in world.kernel.every:
            if fs.disk != FLOWS:
                yield ("disk", fs.index, FLOWS)
        yield ("steps", 60, None, str(rng.choice(back).name))


def over(rng: random.Random, world: World) -> Iterator[Action]:
    """Let something befall a keeper that has said that all is thawed, and that has not ended yet (ADR 0040)."""
    yield ("ask", rng.choice(("freeze", "guest-freeze")), None)
    yield ("steps", 150, is_held)
    yield ("settle",)
    yield ("ask", rng.choice(("thaw", "guest-thaw")), None)
    yield ("steps", 100, is_over)
    keeper = world.freezer
    if keeper is None or not is_over(world):
        return
    name = str(keeper.name)
    yield ("steps", rng.randint(0, 12), None, name)
    for _ in range(rng.randint(1, 3)):
        kinds = ("rubbish", "kill", "stop", "ask", "attended", "another", "death", "time")
        what = rng.choices(kinds, (4, 3, 2, 3, 2, 1, 1, 1))[0]
        if what == "rubbish":
            yield ("rubbish", name)
        elif what in ("kill", "stop"):
            yield ("signal", name, int(SIGKILL if what == "kill" else SIGSTOP))
        elif what == "ask":
            yield ("ask", rng.choice(("freeze", "guest-freeze", "guest-status", "thaw", "sync")), None)
        elif what == "attended":
            yield ("ask", rng.choice(ATTENDED), None)
            host = max(world.connections, default=0)
            if rng.random() < 0.7:
                yield ("steps", rng.randint(1, 6), None, name)
                yield from [("time",)] * rng.randint(0, 2)
                yield ("steps", rng.randint(1, 6), None, name)
                yield ("hang up", host, rng.random() < 0.5)
        elif what == "another":
            yield from choices.another(rng, world)
        elif what == "death":
            yield from choices.death(rng, world)
        else:
            yield ("time",)
        yield ("steps", rng.randint(1, 12), None, name)


def orphan(rng: random.Random, world: World) -> Iterator[Action]:
    """Let a writer's worker outlive one supervisor or two, and run when a later one has begun to freeze."""
    if not world.apps:
        return
    yield ("start",)
    yield ("ask", rng.choice(("freeze", "freeze", "freeze-try")), None)
    yield ("steps", 150, rng.choice(WRITERS_MOMENTS))
    if rng.random() < 0.5:
        yield from choices.holder(rng, world)
        yield ("steps", 40, lambda world: any(one.rpc == "unlatch" for one in world.processes))
    late = set[str]()
    for _ in range(rng.randint(1, 2)):
        those = [one for one in world.processes if isinstance(one, WriterProcess) and not (one.ended or one.killed)]
        if those:
            last = str(those[-1].name if rng.random() < 0.5 else rng.choice(those).name)
            late.add(last)
            yield ("signal", last, int(SIGSTOP))
        yield ("signal", "S", int(SIGKILL))
        yield from choices.steps(rng, world)
        yield ("start",)
        yield from choices.steps(rng, world)
    yield ("ask", "freeze", None)
    yield ("steps", 200, rng.choice((is_held, *WRITERS_MOMENTS)))
    if rng.random() < 0.5:
        yield from choices.holder(rng, world)
    for name in sorted(late):
        yield ("signal", name, int(SIGCONT))
    yield from choices.steps(rng, world)


def attended(rng: random.Random, world: World) -> Iterator[Action]:
    """Let a host ask for a freeze that it is to let go, and leave, be late, or let it go (ADR 0039)."""
    yield ("ask", rng.choice(ATTENDED), None)
    host = max(world.connections, default=0)
    if rng.random() < 0.8:
        yield ("steps", 120, is_ready)
    else:
        yield from choices.steps(rng, world)
    for what in rng.choices(("leave", "go", "steps", "time", "signal", "ask"), (4, 6, 3, 2, 1, 1), k=rng.randint(1, 4)):
        if what == "leave":
            yield ("hang up", host, rng.random() < 0.5)
        elif what == "go":
            yield ("ask", rng.choice(("go", "go-at")), host if rng.random() < 0.5 else None)
        elif what == "time":
            yield from [("time",)] * rng.randint(1, 4)
        else:
            yield from {"steps": choices.steps, "signal": choices.signal, "ask": choices.ask}[what](rng, world)

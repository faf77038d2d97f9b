"""What may happen next in a storm, chosen by chance: one thing at a time. The names are those of the actions."""

from __future__ import annotations

import errno
import random
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

from .actions import AHEAD, ASKS, Action
from .kernel import FLOWS, STUCK, STUCK_FOR_WRITERS
from .moments import MOMENTS
from .world import World
from .writer import FAULTS, WriterProcess


def ask(rng: random.Random, world: World) -> list[Action]:
    """A host asks for something."""
    frozen = any(fs.frozen > 0 for fs in world.kernel.every) or world.oracle.has_news
    if frozen:
        what = rng.choices(
            ("thaw", "thaw-wait", "guest-thaw", "guest-status", "hold", "hold-short", "watch", "freeze", "sync"),
            (8, 2, 3, 1, 2, 2, 1, 1, 1),
        )[0]
    else:
        asks, weights = list(ASKS), [14, 2, 3, 4, 3, 1, 2, 1, 1, 1, 1, 1, 1, 0, 0, 0]
        if world.apps or rng.random() < 0.2:
            asks, weights = [*asks, *AHEAD], [*weights[:-3], 2, 1, 1, 2, 1, 1, 1, 1, 2, 1, 1]
        what = rng.choices(asks, weights)[0]
    same = bool(world.connections) and rng.random() < 0.3
    return [("ask", what, rng.choice(sorted(world.connections)) if same else None)]


def hang_up(rng: random.Random, world: World) -> list[Action]:
    """A host hangs up."""
    return [("hang up", rng.choice(sorted(world.connections)), rng.random() < 0.5)] if world.connections else []


def steps(rng: random.Random, _world: World) -> list[Action]:
    """Some go on."""
    return [("steps", min(int(rng.expovariate(1 / 12)) + 1, 80), None)]


def moment(rng: random.Random, _world: World) -> list[Action]:
    """Some go on until one of the moments."""
    return [("steps", 80, rng.choice(MOMENTS))]


def settle(_rng: random.Random, _world: World) -> list[Action]:
    """Everybody goes on until nobody can."""
    return [("settle",)]


def time(_rng: random.Random, _world: World) -> list[Action]:
    """Time passes."""
    return [("time",)]


def signal(rng: random.Random, world: World) -> list[Action]:
    """The supervisor or a worker gets a signal."""
    names = [str(p.name) for p in world.processes if not p.ended]
    if not names or rng.random() < 0.25:
        whom = "S"
        number = rng.choices((SIGKILL, SIGSTOP, SIGCONT, SIGTERM), (3, 2, 2, 1))[0]
    else:
        whom = rng.choice(names)
        number = rng.choices((SIGKILL, SIGSTOP, SIGCONT, SIGTERM), (6, 3, 2, 2))[0]
    return [("signal", whom, int(number))]


def death(rng: random.Random, _world: World) -> list[Action]:
    """The supervisor dies before one of its next effects."""
    soon = [("die in", rng.randint(1, 30))]
    return [*soon, ("slow", 30)] if rng.random() < 0.3 else soon


def start(_rng: random.Random, world: World) -> list[Action]:
    """The daemon starts."""
    return [("start",)] if world.supervisor is None else []


def disk(rng: random.Random, world: World) -> list[Action]:
    """A disk gets stuck, or works again."""
    index = rng.randrange(len(world.kernel.every))
    return [("disk", index, rng.choices((FLOWS, STUCK, STUCK_FOR_WRITERS), (4, 3, 2))[0])]


def error(rng: random.Random, world: World) -> list[Action]:
    """The next call of a kind fails."""
    index = rng.randrange(len(world.kernel.every))
    operation = rng.choice(("SYNC", "FREEZE", "THAW"))
    return [("error", index, operation, errno.EIO)]


def another(rng: random.Random, world: World) -> list[Action]:
    """Somebody else freezes or thaws."""
    index = rng.randrange(len(world.kernel.every))
    return [("another", rng.choice(("thaws", "thaws", "freezes")), index)]


def fault(rng: random.Random, _world: World) -> list[Action]:
    """Something that the machine gives begins or ends to fail."""
    name = rng.choice(("forks_fail", "journal_fails", "pipes_full", "no_threads", "hosts_slow"))
    return [("fault", name, rng.random() < 0.5)]


def rubbish(rng: random.Random, world: World) -> list[Action]:
    """What a worker says cannot be read."""
    names = [str(p.name) for p in world.processes if not p.ended]
    return [("rubbish", rng.choice(names))] if names else []


def app(rng: random.Random, world: World) -> list[Action]:
    """An application refuses, hangs, or loses its session."""
    if not world.apps:
        return []
    return [("app", rng.choice(list(world.apps)), rng.choice((*FAULTS, "loses", "loses", "recovers")))]


def holder(rng: random.Random, world: World) -> list[Action]:
    """The worker of a writer is killed, stopped or let go on."""
    those = [str(p.name) for p in world.processes if isinstance(p, WriterProcess) and not p.ended]
    number = rng.choices((SIGKILL, SIGSTOP, SIGCONT), (4, 2, 1))[0]
    return [("signal", rng.choice(those), int(number))] if those else []


def tear(_rng: random.Random, world: World) -> list[Action]:
    """The journal becomes unreadable."""
    return [("tear",)] if world.supervisor is None and world.journal is not None else []

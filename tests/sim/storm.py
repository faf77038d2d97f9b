"""Storms: actions from a seed, played in a world, then calm. A storm is its list of actions, so it can be shrunk."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from virtagent.supervisor.config import Config

from .actions import APPLY, LAYOUTS, LIMITS, STEPS, Action
from .kernel import FLOWS
from .making import Maker
from .pairing import Violation
from .world import World

CALM = 150.0
"""Seconds without faults after which all must be thawed: the longest back-off is 30 s."""
STUCK_CALM = 50.0
"""Seconds without other faults after which what does not lie on a stuck disk must be thawed."""


class Failure(NamedTuple):
    """A storm that broke a promise: what it is made of, and what went wrong."""

    seed: int
    layout: int
    actions: list[Action]
    why: str
    counts: dict[str, int]


# -- playing


def _begin(layout: int, trace: list[str] | None) -> World:
    known = {name: LIMITS[name] for name in LIMITS.keys() & {f.name for f in fields(Config)}}
    world = World(LAYOUTS[layout], known, trace=trace)
    world.start()
    return world


def _apply(world: World, action: Action, counts: bool = True) -> bool:
    done = APPLY[action[0]](world, *action[1:])
    if done and action[0] not in STEPS and counts:
        world.count(" ".join(map(str, action[:2])) if action[0] in ("signal", "ask", "fault") else action[0])
    return done


def trace_of(seed: int) -> list[str]:
    """Return the trace of the storm of a seed."""
    trace: list[str] = []
    run(seed, trace)
    return trace


def run(seed: int, trace: list[str] | None = None) -> tuple[dict[str, int], Failure | None]:
    """Make and play the storm of a seed; return the counts of what happened, and the failure if there was one."""
    maker = Maker(seed)
    world = _begin(maker.layout, trace)
    done: list[Action] = []
    try:
        for _ in range(maker.length):
            for action in maker.next(world):
                if action[0] == "steps":
                    _go_on(maker.random, world, done, *action[1:])
                else:
                    done.append(action)
                    _apply(world, action)
        calm(world)
    except Exception as error:  # noqa: BLE001 - whatever the core or a script raises is a finding
        return world.counts, Failure(seed, maker.layout, done, f"{type(error).__name__}: {error}", world.counts)
    return world.counts, None


def _go_on(
    rng: random.Random,
    world: World,
    done: list[Action],
    most: int,
    moment: Callable[[World], bool] | None,
    lags: str = "",
) -> None:
    """Let some go on, chosen at random, at most so many steps, and at most until that moment.

    One may lag behind as long as others can go on: that of the name `lags`, or one that is chosen here, or nobody.
    """
    for _ in range(most):
        if moment is not None and moment(world):
            return
        able = world.runnable()
        if not able:
            return
        if not lags:
            lags = rng.choice(able) if rng.random() < 0.5 else "nobody"
            if rng.random() < 0.5:
                lags = lags.partition(":")[0]
        one: Action = ("let", rng.choice([name for name in able if not name.startswith(lags)] or able))
        done.append(one)
        _apply(world, one)


def replay(layout: int, actions: Sequence[Action], trace: list[str] | None = None) -> str:
    """Play these actions as far as they are possible, and the calm; return what went wrong, "" if nothing."""
    world = _begin(layout, trace)
    try:
        for action in actions:
            _apply(world, action, counts=False)
        calm(world)
    except Exception as error:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: {error}"
    return ""


def calm(world: World) -> None:
    """End all faults, let time pass, and require that everything is as it should be."""
    world.end_faults()
    if any(fs.disk != FLOWS for fs in world.kernel.every):
        _see_to_the_others(world)
        world.release_disks()
        world.settle()
    if world.supervisor is None:
        world.settle()
        _let_time_pass(world)
        if all(world.layout.known):
            world.oracle.nobody_but_the_keeper()
        world.start()
        world.settle()
    _let_time_pass(world)
    if world.supervisor is None:  # it was told to end
        world.start()
        _let_time_pass(world)
    world.oracle.at_rest()
    _thaw_until_good(world)
    freeze = world.ask("va.fsfreeze")
    assert freeze is not None
    world.settle()
    count = sum(fs.supported for fs in world.kernel.every)
    if freeze.answers != [count]:
        raise Violation(f"in calm a freeze is answered {freeze.answers}, expected {count}")
    thaw = world.ask("va.fsthaw")
    assert thaw is not None
    world.settle()
    if thaw.answers != [count]:
        raise Violation(f"in calm a thaw is answered {thaw.answers}, expected {count}")
    _let_time_pass(world)
    world.oracle.at_rest()
    if world.journal is not None:
        raise Violation("a journal is left")


def _see_to_the_others(world: World) -> None:
    world.start()
    _let_time_pass(world, STUCK_CALM)
    if world.supervisor is None:  # it was told to end
        world.start()
        _let_time_pass(world, STUCK_CALM)
    world.oracle.while_disks_are_stuck()


def _let_time_pass(world: World, seconds: float = CALM) -> None:
    end = world.now + seconds
    world.settle()
    while world.jump(end):
        world.settle()


def _thaw_until_good(world: World) -> None:
    answers: list[Any] = []
    for _ in range(3):
        thaw = world.ask("va.fsthaw")
        assert thaw is not None
        world.settle()
        answers += thaw.answers
        if answers[-1:] == [0]:
            if world.journal is not None:
                raise Violation("all is told, and a journal is left")
            return
        _let_time_pass(world, LIMITS["news_limit"] + 1)  # what was told is told again until news-limit has passed
    raise Violation(f"in calm thaws are answered {answers}")


# -- shrinking


def shrink(failure: Failure, most: int = 3000) -> Failure:
    """Return the failure with as few actions as `most` tries find, failing with the same kind of violation."""
    wanted = kind(failure.why)
    actions, why, tries = list(failure.actions), failure.why, 0
    size = max(1, len(actions) // 2)
    while True:
        smaller = False
        at = 0
        while at < len(actions) and tries < most:
            fewer = actions[:at] + actions[at + size :]
            tries += 1
            found = replay(failure.layout, fewer)
            if found and kind(found) == wanted:
                actions, why, smaller = fewer, found, True
            else:
                at += size
        if tries >= most or (size == 1 and not smaller):
            return failure._replace(actions=actions, why=why)
        size = max(1, size // 2)


def kind(why: str) -> str:
    """Return what a violation is, without the numbers in it."""
    return "".join(c for c in why if not c.isdigit())[:60]


def traced(failure: Failure) -> list[str]:
    """Return the trace of a failure's actions."""
    trace: list[str] = []
    why = replay(failure.layout, failure.actions, trace)
    return [*trace, why]

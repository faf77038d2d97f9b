"""Storms: actions from a seed, played in a world, then calm. A storm is its list of actions, so it can be shrunk."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from virtagent.agent.worker.steps import Operation
from virtagent.supervisor.config import Config

from .kernel import FLOWS, STUCK, STUCK_FOR_WRITERS
from .oracle import Violation
from .world import Layout, World

LIMITS: Mapping[str, float] = {
    "plan_limit": 2,
    "sync_limit": 4,
    "freeze_limit": 3,
    "hold_limit": 4,
    "hold_limit_max": 8,
    "thaw_limit": 1,
    "exit_grace": 0.5,
    "kill_grace": 0.2,
    "guest_hold_limit": 5,
    "news_limit": 20,
}
_NONE: tuple[int, ...] = ()
LAYOUTS = (
    Layout((_NONE,), (True,), (True,)),
    Layout((_NONE, _NONE), (True, True), (True, True)),
    Layout((_NONE, _NONE, _NONE), (True,) * 3, (True,) * 3),
    Layout(((1,), _NONE), (True, True), (True, True)),
    Layout(((2,), _NONE, _NONE), (True,) * 3, (True,) * 3),
    Layout(((1,), (2,), _NONE), (True,) * 3, (True,) * 3),
    Layout(((1,), _NONE), (False, True), (True, True)),
    Layout((_NONE, _NONE), (True, True), (True, False)),
)
CALM = 150.0
"""Seconds without faults after which all must be thawed: the longest back-off is 30 s."""
STUCK_CALM = 50.0
"""Seconds without other faults after which what does not lie on a stuck disk must be thawed."""

Action = tuple[Any, ...]


class Failure(NamedTuple):
    """A storm that broke a promise: what it is made of, and what went wrong."""

    seed: int
    layout: int
    actions: list[Action]
    why: str
    counts: dict[str, int]


# -- actions


def _let(world: World, name: str) -> bool:
    return world.let(name)


def _settle(world: World) -> bool:
    if not world.runnable():
        return False
    world.settle()
    return True


def _jump(world: World) -> bool:
    return world.jump()


_ASKS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "freeze": ("va.fsfreeze", ()),
    "freeze-wait": ("va.fsfreeze", ({"wait": 0.5},)),
    "freeze-strict": ("va.fsfreeze", ({"strict": True, "hold_limit": 2.0},)),
    "guest-freeze": ("guest-fsfreeze-freeze", {}),
    "thaw": ("va.fsthaw", ()),
    "thaw-wait": ("va.fsthaw", ({"wait": 0.5},)),
    "guest-thaw": ("guest-fsfreeze-thaw", {}),
    "guest-status": ("guest-fsfreeze-status", {}),
    "hold": ("va.fshold", (6.0,)),
    "hold-short": ("va.fshold", (1.0,)),
    "sync": ("va.fssync", ()),
    "watch": ("va.fsstatus", ({"since": 0, "wait": 5.0},)),
    "plan": ("va.fsplan", ()),
}


def _ask(world: World, what: str, connection: int | None = None) -> bool:
    method, params = _ASKS[what]
    if what == "watch" and world.supervisor is not None:
        params = ({"since": world.supervisor.seq(), "wait": 5.0},)
    return world.ask(method, params, connection) is not None


def _hang_up(world: World, connection: int, unread: bool) -> bool:
    return world.hang_up(connection, unread=unread)


def _signal(world: World, whom: str, number: int) -> bool:
    if whom == "S":
        return _signal_supervisor(world, number)
    one = next((p for p in world.processes if p.name == int(whom) and not p.ended), None)
    if one is None:
        return False
    world.note(f"process {whom} gets {signal.Signals(number).name}")
    if number == signal.SIGSTOP:
        one.stopped = True
    elif number == signal.SIGCONT:
        one.stopped = False
    elif number == signal.SIGTERM:
        one.terminate()
    else:
        one.kill()
    return True


def _signal_supervisor(world: World, number: int) -> bool:
    supervisor = world.supervisor
    if supervisor is None:
        return False
    if number == signal.SIGKILL:
        return world.die()
    world.note(f"the supervisor gets {signal.Signals(number).name}")
    if number in (signal.SIGSTOP, signal.SIGCONT):
        supervisor.stopped = number == signal.SIGSTOP
    else:
        supervisor.signals.append(number)
    return True


def _die_in(world: World, effects: int) -> bool:
    if world.supervisor is None:
        return False
    world.note(f"the supervisor is to die before the {effects}. effect from now")
    world.dies_in = effects
    return True


def _slow(world: World, effects: int) -> bool:
    if world.supervisor is None:
        return False
    world.note(f"all others go on before each of the next {effects} effects")
    world.slow_for = effects
    return True


def _start(world: World) -> bool:
    return world.start()


def _disk(world: World, index: int, how: int) -> bool:
    fs = world.kernel.every[index]
    if fs.disk == how:
        return False
    world.note(f"the disk of /srv/{index}: {('works', 'is stuck', 'is stuck for a writer')[how]}")
    fs.disk = how
    return True


def _error(world: World, index: int, operation: str, number: int) -> bool:
    world.note(f"the next {operation} of /srv/{index} fails with {errno.errorcode[number]}")
    world.kernel.every[index].errors.setdefault(Operation[operation], []).append(number)
    return True


def _another(world: World, what: str, index: int) -> bool:
    fs = world.kernel.every[index]
    if what == "thaws":
        return world.kernel.thaw_by_another(fs)
    return not world.oracle.counts_on(index) and world.kernel.freeze_by_another(fs)


def _fault(world: World, name: str, value: bool) -> bool:
    if getattr(world, name) is value:
        return False
    world.note(f"{name}: {value}")
    setattr(world, name, value)
    return True


def _rubbish(world: World, whom: str) -> bool:
    return world.supervisor is not None and world.supervisor.cannot_read(int(whom))


def _tear(world: World) -> bool:
    return world.tear_journal()


APPLY: Mapping[str, Callable[..., bool]] = {
    "let": _let,
    "settle": _settle,
    "time": _jump,
    "ask": _ask,
    "hang up": _hang_up,
    "signal": _signal,
    "die in": _die_in,
    "slow": _slow,
    "start": _start,
    "disk": _disk,
    "error": _error,
    "another": _another,
    "fault": _fault,
    "rubbish": _rubbish,
    "tear": _tear,
}
STEPS = ("let", "settle", "time")


# -- making a storm


class Maker:
    """Chooses the actions of one storm while it is played."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.layout = self.random.choices(range(len(LAYOUTS)), (6, 8, 3, 6, 4, 2, 2, 2))[0]
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
        what = rng.choices(list(_ASKS), (14, 2, 3, 4, 3, 1, 2, 1, 1, 1, 1, 1, 1))[0]
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
}


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
    while world.now < end and world.jump():
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

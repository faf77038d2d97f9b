"""What can be done to a world, by name, and the layouts of worlds."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Mapping
from typing import Any

from virtagent.agent.api.writers import Step, WriterConfig
from virtagent.agent.worker.steps import Operation

from .oracle import WALL
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


def _writer(name: str, kind: str, **more: Any) -> WriterConfig:
    limits = {"prepare_limit": 2.0, "quiesce_limit": 1.5, "confirm_limit": 1.0, "release_limit": 2.0}
    return WriterConfig(name, kind, **limits, **more)


LAYOUTS = (
    Layout((_NONE,), (True,), (True,)),
    Layout((_NONE, _NONE), (True, True), (True, True)),
    Layout((_NONE, _NONE, _NONE), (True,) * 3, (True,) * 3),
    Layout(((1,), _NONE), (True, True), (True, True)),
    Layout(((2,), _NONE, _NONE), (True,) * 3, (True,) * 3),
    Layout(((1,), (2,), _NONE), (True,) * 3, (True,) * 3),
    Layout(((1,), _NONE), (False, True), (True, True)),
    Layout((_NONE, _NONE), (True, True), (True, False)),
    Layout((_NONE, _NONE), (True, True), (True, True), (_writer("db", "postgresql"),)),
    Layout(
        (_NONE,),
        (True,),
        (True,),
        (_writer("lock", "pair"), _writer("db", "postgresql", required=False, after=("lock",))),
    ),
    Layout(
        ((1,), _NONE),
        (True, True),
        (True, True),
        (_writer("orders", "mariadb"), _writer("docs", "mongodb", after=("orders",))),
    ),
    Layout(
        (_NONE, _NONE),
        (True, True),
        (True, True),
        (_writer("early", "pair", when=Step.PREPARE, required=False), _writer("db", "mariadb")),
    ),
)
Action = tuple[Any, ...]
STEPS = ("let", "settle", "time")


def _let(world: World, name: str) -> bool:
    return world.let(name)


def _settle(world: World) -> bool:
    if not world.runnable():
        return False
    world.settle()
    return True


def _jump(world: World) -> bool:
    return world.jump()


ASKS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
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
    "freeze-try": ("va.fsfreeze", ({"writers": "try"},)),
    "freeze-none": ("va.fsfreeze", ({"writers": "none"},)),
    "go": ("va.fsgo", ()),
}
AHEAD: Mapping[str, tuple[str, float, dict[str, Any]]] = {
    "freeze-at": ("va.fsfreeze", 3.0, {}),
    "freeze-far": ("va.fsfreeze", 40.0, {}),
    "freeze-past": ("va.fsfreeze", -1.0, {}),
    "go-at": ("va.fsgo", 2.0, {}),
    "go-late": ("va.fsgo", -2.0, {}),
    "freeze-attended": ("va.fsfreeze", 5.0, {"attended": True}),
    "freeze-attended-far": ("va.fsfreeze", 40.0, {"attended": True}),
    "freeze-attended-wait": ("va.fsfreeze", 9.0, {"attended": True, "wait": 0.3}),
}
"""What is asked for an instant, how many seconds that is ahead, and the other options."""
ATTENDED = tuple(what for what, (_, _, options) in AHEAD.items() if options.get("attended"))
"""Freezes that a host is to let go, and that are called off if it leaves before."""


def _ask(world: World, what: str, connection: int | None = None) -> bool:
    params: tuple[Any, ...]
    if what in AHEAD:
        method, ahead, options = AHEAD[what]
        at = WALL + world.now + ahead
        params = ({"at": at, **options},) if method == "va.fsfreeze" else (at,)
    else:
        method, params = ASKS[what]
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


def _late_in(world: World, effects: int) -> bool:
    if world.supervisor is None:
        return False
    world.note(f"time passes before the {effects}. effect from now")
    world.late_in = effects
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


def _app(world: World, name: str, what: str) -> bool:
    app = world.apps.get(name)
    if app is None:
        return False
    world.note(f"{name}: {what}")
    if what == "recovers":
        app.refuses = app.hangs = app.undo_fails = False
    elif what == "loses":
        if app.holder is None:
            return False
        app.end_session(app.holder)
    else:
        setattr(app, what, True)
    return True


APPLY: Mapping[str, Callable[..., bool]] = {
    "let": _let,
    "settle": _settle,
    "time": _jump,
    "ask": _ask,
    "hang up": _hang_up,
    "signal": _signal,
    "die in": _die_in,
    "slow": _slow,
    "late in": _late_in,
    "start": _start,
    "disk": _disk,
    "error": _error,
    "another": _another,
    "fault": _fault,
    "rubbish": _rubbish,
    "tear": _tear,
    "app": _app,
}

"""The kill points of a hooked virtagentd: each report message, each journal write, each thing the supervisor takes.

A point's name says when, who and what: `before va.fsfreeze Step 0 freezing` (the worker is about to send it),
`after supervisor thaw Done` (the supervisor has handled it), `before journal rename 1`. `hooks.Hooks.at` orders what is
done at the first passing of one of them, by the process that passes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from virtagent.agent.worker import context, messages, rcu
from virtagent.supervisor.core import events
from virtagent.supervisor.io import effects, journal, loop

from .orders import Orders
from .processes import process_state, until

PATIENCE = 3.0  # seconds to wait for what was killed or stopped to be so; shorter than any bound that a test has
ADOPTED = "va.fsfreeze"
"""What a worker that was not forked by this supervisor was forked for."""
_pids: dict[str, int] = {}
"""Who is who: `supervisor`, and by the RPC's name the last worker that was forked for it."""
_phase = "plan"
"""What this worker said last that it is in; saying it again changes nothing."""


class Through:
    """A module in which some functions are replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def name_of(message: messages.Report) -> str:
    """Return the message's name as a point has it."""
    match message:
        case messages.Step(mount, state):
            return f"Step {mount} {state}"
        case messages.Progress(phase):
            return f"Progress {phase}"
        case messages.Acted(step):
            return f"Acted {step}"
    return type(message).__name__


class Points:
    """What the folder says about the points."""

    def __init__(self, folder: Path) -> None:
        self._list = folder / "points"
        self._orders = Orders(folder, "order")

    def passed(self, point: str, reporter: context.Reporter | None = None) -> None:
        """This point has been reached."""
        if self._list.exists():
            line = os.open(self._list, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.write(line, f"{point}\n".encode())
            os.close(line)
        order = self._orders.take(lambda text: text.partition("|")[0] == point)
        if order is None:
            return
        acts = order.text.partition("|")[2]
        for act in sorted(acts.split(","), key=lambda act: act.endswith(self._myself())):
            self._do(act, reporter)
        order.done()

    @staticmethod
    def _myself() -> str:
        return next((f":{who}" for who, pid in _pids.items() if pid == os.getpid()), ":nobody")

    @staticmethod
    def _do(act: str, reporter: context.Reporter | None) -> None:
        what, _, who = act.partition(":")
        if what == "fill":
            assert reporter is not None
            with contextlib.suppress(OSError):  # what is in it already may be more
                fcntl.fcntl(reporter.fd, fcntl.F_SETPIPE_SZ, messages.PIPE_BUF)
            frame = messages.encode(messages.Progress(_phase))[0]
            try:
                while True:
                    os.write(reporter.fd, frame)
            except BlockingIOError:
                return
        pid = _pids.get(who, 0)
        if not _is_ours(pid):
            return  # there is none, or none any more
        os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        if pid == os.getpid():
            return
        over = ("Z", "X", "") if what == "kill" else ("T", "D", "Z", "X", "")
        # What follows should find it so. In D it is not dead yet, and one that is stopped may go on before it was seen.
        with contextlib.suppress(TimeoutError):
            until(lambda: process_state(pid) in over, PATIENCE, f"{act} of {pid}")


def _is_ours(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return pid == os.getpid() or comm.read().startswith("virtagentd")
    except OSError:
        return False


def install(folder: Path) -> None:
    """Put the points in place."""
    points = Points(folder)
    _pids["supervisor"] = os.getpid()
    _install_reports(points)
    _install_grace_periods(points)
    _install_journal(points)
    _install_supervisor(points)


def _install_reports(points: Points) -> None:
    put = context.Reporter.post
    rpc = again = ""
    parting = False

    def post(self: context.Reporter, *reports: messages.Report) -> None:
        nonlocal rpc, again, parting
        global _phase
        for message in reports:
            if isinstance(message, messages.Started):
                rpc = sys._getframe(2).f_locals["job"].rpc
                _pids[rpc] = os.getpid()
            name = name_of(message) + (again if isinstance(message, messages.Step) else "")
            points.passed(f"before {rpc} {name}", self)
            put(self, message)
            match message:
                case messages.Thawing():
                    again, parting = "", True
                case messages.Step(_, "thawed") if rpc == ADOPTED and not parting:
                    again = " again"  # what was thawed before anything is held is frozen again
            if isinstance(message, messages.Progress):
                _phase = message.phase
            points.passed(f"after {rpc} {name}", self)

    replaced: Any = post
    context.Reporter.post = replaced  # type: ignore[method-assign]


def _install_grace_periods(points: Points) -> None:
    def hooked(what: str, real: Any) -> Any:
        def call(self: rcu.Expediter) -> None:
            points.passed(f"before grace {what}")
            real(self)
            points.passed(f"after grace {what}")

        return call

    rcu.Expediter.begin = hooked("expedite", rcu.Expediter.begin)  # type: ignore[method-assign]
    rcu.Expediter.end = hooked("restore", rcu.Expediter.end)  # type: ignore[method-assign]


def _install_journal(points: Points) -> None:
    counts: Counter[str] = Counter()

    def hooked(what: str, real: Any) -> Any:
        def call(*args: Any, **names: Any) -> Any:
            if what == "remove" and args[0].endswith(".new"):
                return real(*args, **names)  # the rest of a write that was cut short
            counts[what] += 1
            number = counts[what]
            points.passed(f"before journal {what} {number}")
            value = real(*args, **names)
            points.passed(f"after journal {what} {number}")
            return value

        return call

    replaced: Any = Through(os, rename=hooked("rename", os.rename), unlink=hooked("remove", os.unlink))
    journal.os = replaced
    journal.Journal.write = hooked("write", journal.Journal.write)  # type: ignore[method-assign]


def _install_supervisor(points: Points) -> None:
    feed, spawn = loop.Loop.feed, effects.Effects._spawn
    rpcs: dict[int, str] = {}

    def hooked_spawn(self: effects.Effects, effect: events.Spawn) -> Any:
        rpcs[effect.worker] = effect.rpc
        drawn = spawn(self, effect)
        if isinstance(drawn, events.Spawned):
            _pids[effect.rpc] = drawn.pid
        return drawn

    def hooked_feed(self: loop.Loop, event: events.Event | None = None) -> None:
        match event:
            case events.Reported(number, message):
                what = f"supervisor {rpcs.get(number, ADOPTED)} {name_of(message)}"
            case events.Exited(number):
                what = f"supervisor {rpcs.get(number, ADOPTED)} exit"
            case events.Requested():
                what = f"supervisor asked {event.method}"
            case _:
                feed(self, event)
                return
        points.passed(f"before {what}")
        feed(self, event)
        points.passed(f"after {what}")

    replaced: Any = hooked_feed
    loop.Loop.feed = replaced  # type: ignore[method-assign]
    replaced = hooked_spawn
    effects.Effects._spawn = replaced  # type: ignore[method-assign]

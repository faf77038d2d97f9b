"""The life of a writer's worker: it obeys orders one at a time, and lets go when told, or whatever dies.

Until it has said that it has quiesced, no file system freezes; so an order to let go, or the death of the supervisor,
interrupts what it does. From then on it lets go when told; if the supervisor is dead, when the freeze worker has thawed
and ended; and at the latest when all limits of a freeze have passed.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from ...api.errors import Code, Fault
from ...api.writers import TYPES, Step, WriterConfig
from .. import kernel, messages, sysfs
from ..probe import ask
from ..view import View
from .drivers import DRIVERS, Driver, undo
from .latch import Latch, locked
from .orders import Gone, Interrupted, Orders
from .step import STRETCH, Refused, TooSlow, wait

if TYPE_CHECKING:
    from ..context import Args, Worker

BAD = "bad"
UNKNOWN = "unknown"  # in the place of a device: none of a freeze
CHECK_SECONDS = 5.0  # in which a server that is held must answer that the session is there


def serve(worker: Worker, args: Args) -> str:
    """Be the writer `args["writer"]` (writers.WriterConfig) for one freeze; return what went wrong with its end.

    `args["folder"]` has the records of latches, `args["at_most"]` is how many seconds it may be held, 0 for no limit.
    """
    config: WriterConfig = args["writer"]
    worker.become_writer(config.name)
    # An operator's or a service manager's SIGTERM must not end a hold; not ignored, which programs would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(OSError):  # the supervisor has logged that this is not allowed
        kernel.lock_memory()
    worker.title("starting")
    orders = Orders(worker)
    latch = locked(worker.supervisor, args["folder"], config.name)
    return _Life(worker, config, orders, latch, args["at_most"]).run()


def unlatch(worker: Worker, args: Args) -> str:
    """Undo what the writer `args["name"]` left set; return what went wrong. Raises Fault FAILED.

    It waits until the worker of that writer is dead. `args["limit"]` is in seconds.
    """
    worker.become_writer(args["name"])
    worker.title("letting go for one that died")
    try:
        latch = locked(worker.supervisor, args["folder"], args["name"])
    except (OSError, ValueError) as error:
        raise Fault(Code.FAILED, str(error)) from None
    try:
        return undo(latch, time.monotonic() + args["limit"], BAD)
    except Refused as error:
        raise Fault(Code.FAILED, str(error)) from None


def devices_of(paths: Collection[str], until: float = math.inf) -> dict[str, str]:
    """Return the device (major:minor, as in mountinfo) of the file system that each path lies on, "" if none is.

    UNKNOWN is that of a path whose links cannot be read within a second, and before `until`: a server that does not
    answer may stand on the way.
    """
    view = View(sysfs.read_mountinfo())
    real = ask({path: functools.partial(os.path.realpath, path) for path in paths}, until=until)
    mounts = {path: view.at(at) for path, at in real.items()}
    found = {path: mount.device if mount else "" for path, mount in mounts.items()}
    return {path: found.get(path, UNKNOWN) for path in paths}


class Lost(NamedTuple):
    """The hold is lost, and why."""

    why: str


class _Life:
    def __init__(
        self,
        worker: Worker,
        config: WriterConfig,
        orders: Orders,
        latch: Latch,
        at_most: float,
    ) -> None:
        self._worker = worker
        self._config = config
        self._orders = orders
        self._latch = latch
        self._at_most = at_most
        self._checking = False
        self._driver: Driver = DRIVERS[config.type](config, latch, self._wait, at_most)
        self._state = "starting"
        self._since = time.monotonic()
        self._held_since = self._renewed_until = 0.0
        self._lost = self._confirmed = False

    def run(self) -> str:
        """Obey until the application is let go; return what went wrong with that."""
        try:
            return self._obey()
        except Fault:
            raise
        except Exception as error:
            if self._orders.alone:
                traceback.print_exc(file=sys.stderr)  # nobody else hears of it
            # A defect, or a refused system call. Whatever it is, the application must not stay held because of it.
            self._driver.release(time.monotonic() + self._config.release_limit, BAD)
            if isinstance(error, Refused):
                raise Fault(Code.FAILED, str(error)) from None
            raise

    def _obey(self) -> str:
        undo(self._latch, math.inf, BAD)  # what an earlier one left: nothing, unless its worker died just now
        while True:
            match self._next():
                case messages.Act("release", limit, verdict):
                    return self._release(limit, verdict)
                case messages.Act(step, limit):
                    self._do(Step(step), limit)
                case Gone.THAWED:
                    return self._release(0, BAD)
                case Gone.UNKNOWN if not self._held_since:
                    return self._release(0, BAD)  # it had not said that it has quiesced: nothing froze
                case Gone.UNKNOWN:
                    return "the agent died, and perhaps left something frozen: the next start lets go"
                case Lost(why):
                    self._worker.reporter.post(messages.Acted("held", "lost", why, {}))
                    self._lost = True
                case None:
                    self._worker.reporter.post(messages.Acted("held", "lost", "it was held as long as it may be", {}))
                    return self._release(0, BAD)

    def _next(self) -> messages.Act | Gone | Lost | None:
        """Return the next order; None if it was held as long as it may be."""
        if self._orders.alone and not self._held_since:
            return Gone.UNKNOWN
        while True:
            if wrong := self._renew():
                return Lost(wrong)
            now = time.monotonic()
            seconds = int(now - self._since)
            self._worker.title(f"{self._state}, {seconds} s" if self._held_since else self._state)
            # Only what is held counts up: what an operator reads in ps must be true.
            tick = self._since + seconds + 1 if self._held_since else math.inf
            watched = () if self._lost or not self._held_since else self._driver.fds
            found = self._orders.next(min(tick, self._ends), watched)
            if found is not None:
                return found
            if any(wait(fd, 0) for fd in watched) and (wrong := self._driver.lost()):
                return Lost(wrong)
            if time.monotonic() >= tick and self._confirmed and not self._lost and (wrong := self._check()):
                return Lost(wrong)
            if time.monotonic() >= self._ends:
                return None

    @property
    def _ends(self) -> float:
        """The second at which it lets go by itself; the supervisor may put it off."""
        if not (self._held_since and self._at_most):
            return math.inf
        return max(self._held_since + self._at_most, self._orders.held_until)

    def _wait(self, fd: int, until: float) -> bool:
        return wait(fd, until) if self._checking else self._orders.wait(fd, until)

    def _check(self) -> str:
        """Return why the hold is lost. A client of a database does not see that its server has ended the session."""
        return self._undisturbed(self._driver.confirm) if TYPES[self._config.type].silent else ""

    def _renew(self) -> str:
        """Hold as long as the supervisor lets it now; return why the hold is lost."""
        ends = self._orders.held_until if self._at_most else self._stretched
        if not self._held_since or self._lost or ends <= self._renewed_until:
            return ""
        self._renewed_until = ends
        return self._undisturbed(lambda until: self._driver.renew(until, ends))

    @property
    def _stretched(self) -> float:
        """The second until which it is held next, as nothing limits that; 0 while there is time."""
        now = time.monotonic()
        return now + STRETCH if now >= self._renewed_until - STRETCH / 2 else 0.0

    def _undisturbed(self, ask: Callable[[float], object]) -> str:
        self._checking = True  # orders wait: a statement that is cut off would say nothing, now and afterwards
        try:
            ask(time.monotonic() + CHECK_SECONDS)
        except Refused as error:
            return str(error)
        except OSError as error:
            return f"{error.strerror}"
        finally:
            self._checking = False
        return ""

    def _do(self, step: Step, limit: float) -> None:
        until = time.monotonic() + limit if limit else math.inf
        doing = {Step.PREPARE: self._driver.prepare, Step.QUIESCE: self._driver.quiesce}
        self._enter({Step.PREPARE: "preparing", Step.QUIESCE: "quiescing"}.get(step, "confirming"))
        self._worker.title(self._state)
        text, info = "", dict[str, Any]()
        try:
            info = doing.get(step, self._driver.confirm)(until)
            outcome = "ok"
            if step is Step.PREPARE and self._config.paths:
                info["paths"] = list(self._config.paths)
            if "paths" in info:
                info["devices"] = devices_of(info.pop("paths"), until)
        except TooSlow as slow:
            outcome, text = "overran", str(slow)
        except Refused as refused:
            outcome, text = "refused", str(refused)
        except OSError as error:
            outcome, text = "refused", f"{error.strerror}"
        except Interrupted:
            return
        if outcome == "ok":
            self._enter({Step.PREPARE: "ready", Step.QUIESCE: "quiesced"}.get(step, "confirmed"))
        else:
            self._enter("has refused")
        if step is Step.QUIESCE and outcome == "ok":
            self._held_since = time.monotonic()
            self._renewed_until = 0.0 if self._at_most else self._held_since + STRETCH
        self._confirmed = step is Step.CONFIRM and outcome == "ok"
        self._worker.reporter.send(messages.Acted(step.value, outcome, text, info))

    def _release(self, limit: float, verdict: str) -> str:
        self._enter("releasing")
        self._worker.title(self._state)
        limit = limit or self._config.release_limit
        try:
            wrong = self._driver.release(time.monotonic() + limit, verdict)
        except Refused as error:
            raise Fault(Code.FAILED, str(error)) from None  # what it has set is on record: another worker tries again
        self._worker.reporter.send(messages.Acted("release", "ok", wrong, dict(self._driver.told)))
        return wrong

    def _enter(self, state: str) -> None:
        self._state, self._since = state, time.monotonic()

"""One connection to libvirt for each URI, shared by all agents behind it.

libvirtd takes 5 requests of a connection simultaneously, and does 20 in all. So a connection has 5 threads at most, and
another connection is opened, up to 4, only when all of them have been inside libvirt for so long that domains behind
them would wait for hung ones. A domain has one request at a time; what waits for its turn can be cancelled, and what
was cancelled is never sent. Each URI has its own threads: one that hangs delays no other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .errors import Unreachable

REQUESTS = 5  # max_client_requests of libvirtd.conf: of a connection with as many under way no further one is read
CONNECTIONS = 4  # with REQUESTS each that is max_workers of libvirtd.conf
PATIENCE = 2.0  # ADR 0034
_POOLS: dict[str | None, Pool] = {}
_POOLS_LOCK = threading.Lock()


@dataclass(eq=False, slots=True)
class Order:
    """One command for the agent of a domain; `meaning` makes our exception of an error of libvirt's."""

    name: str
    text: str
    deadline: float
    meaning: Callable[[ModuleType, Any], Exception]
    reply: concurrent.futures.Future[str] = field(default_factory=concurrent.futures.Future)


@dataclass(eq=False, slots=True)
class _Link:
    """One connection: `handle` is None until it is open, `calls` has the domains that are asked, and since when."""

    libvirt: Any = None
    qemu: Any = None
    handle: Any = None
    answered: bool = False
    dead: bool = False
    threads: int = 0
    calls: dict[str, float] = field(default_factory=dict)
    domains: dict[str, Any] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.threads - len(self.calls) if self.handle is not None else 0


def pool(uri: str | None) -> Pool:
    """Return the pool of the URI, with one user more; `leave` gives it back."""
    with _POOLS_LOCK:
        found = _POOLS.setdefault(uri, Pool(uri))
        found.users += 1
        return found


class Pool:
    """The connections to one URI. If `uri` is None, libvirt chooses."""

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self.users = 0
        self._changed = threading.Condition()
        self._waiting: list[Order] = []
        self._links: list[_Link] = []
        self._standby = False
        self._no_other_before = 0.0

    def leave(self) -> None:
        """Take one user away; the last one ends the threads and connections as soon as their calls have ended."""
        with _POOLS_LOCK:
            self.users -= 1
            if self.users:
                return
            del _POOLS[self._uri]
        with self._changed:
            for order in self._waiting:
                order.reply.cancel()
            self._changed.notify_all()

    def take(self, order: Order) -> None:
        """Have the order carried out; its reply is cancelled to take it back while it waits."""
        with self._changed:
            self._waiting.append(order)
            self._grow()

    # -- under the lock

    def _usable(self) -> list[_Link]:
        return [link for link in self._links if not link.dead]

    def _ready(self) -> list[Order]:
        """Return what can be asked now: the first order of each domain that is not asked at the moment."""
        self._waiting = [order for order in self._waiting if not order.reply.cancelled()]
        found: dict[str, Order] = {}
        for order in self._waiting:
            if not any(order.name in link.calls for link in self._links):
                found.setdefault(order.name, order)
        return list(found.values())

    def _grow(self) -> None:
        """Wake free threads; if there are too few for what can be asked, start more."""
        self._changed.notify_all()
        usable = self._usable()
        lacking = len(self._ready()) - sum(link.free for link in usable)
        if lacking <= 0 or any(link.handle is None for link in usable):
            return  # who opens a connection comes here again
        if not usable:
            self._start(_Link(), self._open_and_work)
            return
        for link in usable:
            for _ in range(min(lacking, REQUESTS - link.threads)):
                lacking -= 1
                self._start(link, self._work)
        if lacking > 0 and len(usable) < CONNECTIONS and not self._standby:
            self._standby = True
            threading.Thread(target=self._stand_by, daemon=True, name=f"libvirt {self._uri}").start()

    def _start(self, link: _Link, what: Callable[[_Link], None]) -> None:
        if link not in self._links:
            self._links.append(link)
        link.threads += 1
        threading.Thread(target=what, args=(link,), daemon=True, name=f"libvirt {self._uri}").start()

    # -- threads

    def _stand_by(self) -> None:
        """Open another connection when nothing has moved on the others for `PATIENCE`, while something waits."""
        with self._changed:
            while self._ready():
                usable = self._usable()
                if not usable or len(usable) >= CONNECTIONS or any(link.free for link in usable):
                    break
                begun = [at for link in usable for at in link.calls.values()]
                left = max([*(at + PATIENCE for at in begun), self._no_other_before]) - time.monotonic()
                if left <= 0:
                    self._start(_Link(), self._open_and_work)
                    break
                self._changed.wait(left)
            self._standby = False
            self._grow()

    def _open_and_work(self, link: _Link) -> None:
        failed: Any = None
        try:
            link.libvirt, link.qemu = _modules()
            try:
                link.handle = link.libvirt.open(self._uri)
            except link.libvirt.libvirtError as error:
                failed = error
        except Unreachable as error:
            failed = error
        with self._changed:
            if failed is not None:
                link.dead = True
                self._no_other_before = time.monotonic() + PATIENCE
                untold = [] if self._usable() else self._waiting
                self._waiting = [] if untold else self._waiting
                for order in untold:
                    _fail(order, failed if isinstance(failed, Unreachable) else no_domain(order.name, failed))
            else:
                self._grow()
        self._work(link)

    def _work(self, link: _Link) -> None:
        while (order := self._next(link)) is not None:
            self._carry_out(link, order)
        with self._changed:
            link.threads -= 1
            last = not link.threads
            if last:
                self._links.remove(link)
            self._grow()
        if last and link.handle is not None:
            link.domains.clear()  # each of them keeps the connection open
            with contextlib.suppress(link.libvirt.libvirtError):  # its daemon may be gone
                link.handle.close()

    def _next(self, link: _Link) -> Order | None:
        """Wait for an order that this connection can carry out; return None when the connection has had its time."""
        with self._changed:
            while not link.dead and self.users:
                if ready := self._ready():
                    self._waiting.remove(ready[0])
                    link.calls[ready[0].name] = time.monotonic()
                    return ready[0]
                self._changed.wait()
            return None

    def _carry_out(self, link: _Link, order: Order) -> None:
        found: str | BaseException | None
        try:
            found = self._asked(link, order)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the reply gets it
            found = error
        with self._changed:
            del link.calls[order.name]
            if found is None and not order.reply.cancelled():
                self._waiting.insert(0, order)  # nothing was sent: another connection carries it out
            self._grow()
        if isinstance(found, BaseException):
            _fail(order, found)
        elif found is not None:
            order.reply.set_result(found)

    def _asked(self, link: _Link, order: Order) -> str | Exception | None:
        """Return the agent's answer, or why there is none; None if nothing was asked, of a dead connection or too late.

        What is wrong is returned, not raised: a traceback would keep the domain, and that the connection.
        """
        libvirt = link.libvirt
        try:
            link.handle.getLibVersion()  # isAlive notices that the daemon is gone only after a failed call
        except libvirt.libvirtError as error:
            link.dead = True
            return None if link.answered else no_domain(order.name, error)  # a new connection would do no better
        link.answered = True
        try:
            if order.name not in link.domains:
                link.domains[order.name] = link.handle.lookupByName(order.name)
        except libvirt.libvirtError as error:
            return no_domain(order.name, error)
        left = order.deadline - time.monotonic()
        if left <= 0:
            return TimeoutError()
        if not order.reply.set_running_or_notify_cancel():
            return None
        try:
            domain = link.domains[order.name]
            return str(link.qemu.qemuAgentCommand(domain, order.text, max(1, math.ceil(left)), 0))
        except libvirt.libvirtError as error:
            link.domains.pop(order.name, None)  # it may be another one of that name by now
            return order.meaning(libvirt, error)


def no_domain(name: str, error: Any) -> Unreachable:
    """Return the exception for a domain that libvirt does not give."""
    text = error.get_error_message() or error
    return Unreachable(f"no connection to libvirt's domain {name!r} ({text}); see `virsh list`")


def _fail(order: Order, error: BaseException) -> None:
    if order.reply.running() or order.reply.set_running_or_notify_cancel():
        order.reply.set_exception(error)


def _modules() -> tuple[ModuleType, ModuleType]:
    try:
        libvirt, qemu = importlib.import_module("libvirt"), importlib.import_module("libvirt_qemu")
    except ImportError:
        raise Unreachable("libvirt: URLs need libvirt-python; install virtagent[libvirt]") from None
    # Otherwise libvirt also prints each error, in its own form.
    libvirt.registerErrorHandler(_said, None)
    return libvirt, qemu


def _said(_context: None, _error: Any) -> None:
    """Ignore the error, which is raised as well."""

"""A domain of libvirt. Its daemon owns the channel to the agent, so QGA JSON goes through libvirt-python.

Its calls block, and not only for the agent. So each domain has a thread of its own for them, and a time-out here works
whatever libvirt does. libvirt turns an agent's error into one of its own, in which only the text is the agent's.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import math
import queue
import re
import threading
from types import ModuleType
from typing import Any

from ..agent.api.errors import Code, Fault
from .errors import Lost, Unreachable

_AGENT_SAYS = "unable to execute QEMU agent command"
# libvirt drops the agent's code. This code means that a snapshot is worthless, so it is recognized by the sentence.
_BROKEN = re.compile(r"\bfreeze \d+ was broken: ")
_Order = tuple[str, float, "concurrent.futures.Future[str]"]


class Domain:
    """A domain by its name; the first command connects to it. If `uri` is None, libvirt chooses."""

    def __init__(self, name: str, uri: str | None) -> None:
        self._name, self._uri = name, uri
        self._orders: queue.SimpleQueue[_Order | None] | None = None

    def ask(self, text: str, seconds: float) -> concurrent.futures.Future[str]:
        """Return the future reply, which raises Fault, Unreachable, Lost or TimeoutError."""
        if self._orders is None:
            self._orders = queue.SimpleQueue()
            threading.Thread(
                target=self._serve, args=(self._orders,), daemon=True, name=f"libvirt {self._name}"
            ).start()
        reply: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._orders.put((text, seconds, reply))
        return reply

    def wait(self, text: str, seconds: float) -> str:
        """Return the reply after waiting at most so many seconds."""
        try:
            return self.ask(text, seconds).result(seconds)
        except concurrent.futures.TimeoutError:
            raise TimeoutError from None  # in Python 3.10 these are two different classes

    def close(self) -> None:
        """End the thread and its connection when its present call has ended."""
        if self._orders is not None:
            self._orders.put(None)
            self._orders = None

    def _serve(self, orders: queue.SimpleQueue[_Order | None]) -> None:
        libvirt: Any = None
        connection: Any = None
        domain: Any = None
        while (order := orders.get()) is not None:
            text, seconds, reply = order
            if not reply.set_running_or_notify_cancel():
                continue
            try:
                libvirt, qemu = _modules()
                if connection is not None and not _lives(libvirt, connection):
                    _closed(libvirt, connection)
                    connection = None
                try:
                    if connection is None:
                        connection = libvirt.open(self._uri)
                        domain = connection.lookupByName(self._name)
                except libvirt.libvirtError as error:
                    if connection is not None:
                        _closed(libvirt, connection)
                        connection = None
                    raise self._no_domain(error) from None
                try:
                    reply.set_result(str(qemu.qemuAgentCommand(domain, text, max(1, math.ceil(seconds)), 0)))
                except libvirt.libvirtError as error:
                    raise self._meaning(libvirt, error) from None
            except BaseException as error:  # noqa: BLE001 - whoever waits for the reply gets it
                reply.set_exception(error)
        if connection is not None:
            _closed(libvirt, connection)

    def _no_domain(self, error: Any) -> Unreachable:
        text = error.get_error_message() or error
        return Unreachable(f"no connection to libvirt's domain {self._name!r} ({text}); see `virsh list`")

    def _meaning(self, libvirt: ModuleType, error: Any) -> Exception:
        text = str(error.get_error_message() or error)
        code = error.get_error_code()

        def is_(*names: str) -> bool:
            return code in [getattr(libvirt, f"VIR_ERR_{name}", None) for name in names]

        if _AGENT_SAYS in text:
            said = text.partition(_AGENT_SAYS)[2].partition(": ")[2] or text
            return Fault(Code.FREEZE_BROKEN if _BROKEN.search(said) else Code.FAILED, said)
        if is_("AGENT_UNRESPONSIVE", "AGENT_UNSYNCED", "AGENT_COMMAND_TIMEOUT", "OPERATION_TIMEOUT"):
            return TimeoutError(text)
        if is_("NO_DOMAIN", "OPERATION_INVALID", "ARGUMENT_UNSUPPORTED", "CONFIG_UNSUPPORTED"):
            return Unreachable(f"libvirt has no agent for domain {self._name!r} ({text}); see `virsh list`")
        return Lost(
            f"libvirt could not pass a command on to domain {self._name!r} ({text}); see its log, then call again"
        )


def _lives(libvirt: ModuleType, connection: Any) -> bool:
    """Return whether the daemon answers; `isAlive` notices that it is gone only after a failed call."""
    try:
        connection.getLibVersion()
    except libvirt.libvirtError:
        return False
    return True


def _closed(libvirt: ModuleType, connection: Any) -> None:
    """Close the connection, whether the daemon is alive or not."""
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


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

"""A domain of libvirt. Its daemon owns the channel to the agent, so QGA JSON goes through libvirt-python.

Its calls block, and not only for the agent. So threads of the URI's pool make them, and a time-out here works whatever
libvirt does. libvirt turns an agent's error into one of its own, in which only the text is the agent's.
"""

from __future__ import annotations

import concurrent.futures
import re
import time
from types import ModuleType
from typing import Any

from ..agent.api.errors import Code, Fault
from .errors import Lost, Unreachable
from .libvirt_pool import Order, Pool, pool

_AGENT_SAYS = "unable to execute QEMU agent command"
# libvirt drops the agent's code. That a snapshot is worthless, and that a job goes on, is recognized by the sentence.
_BROKEN = re.compile(r"\bfreeze \d+ was broken: ")
_GOES_ON = re.compile(r"\bis still in progress after [\d.]+ s; the job goes on\b")


class Domain:
    """A domain by its name; the first command of one behind its URI connects. If `uri` is None, libvirt chooses."""

    def __init__(self, name: str, uri: str | None) -> None:
        self._name, self._uri = name, uri
        self._pool: Pool | None = None

    def ask(self, text: str, seconds: float) -> concurrent.futures.Future[str]:
        """Return the future reply, which raises Fault, Unreachable, Lost or TimeoutError.

        Cancelled before libvirt was asked, it has no effect.
        """
        if self._pool is None:
            self._pool = pool(self._uri)
        order = Order(self._name, text, time.monotonic() + seconds, self._meaning)
        self._pool.take(order)
        return order.reply

    def close(self) -> None:
        """Leave the pool, which closes its connection when nobody uses it and its calls have ended."""
        if self._pool is not None:
            self._pool.leave()
            self._pool = None

    def _meaning(self, libvirt: ModuleType, error: Any) -> Exception:
        text = str(error.get_error_message() or error)
        code = error.get_error_code()

        def is_(*names: str) -> bool:
            return code in [getattr(libvirt, f"VIR_ERR_{name}", None) for name in names]

        if _AGENT_SAYS in text:
            said = text.partition(_AGENT_SAYS)[2].partition(": ")[2] or text
            goes_on = Code.IN_PROGRESS if _GOES_ON.search(said) else Code.FAILED
            return Fault(Code.FREEZE_BROKEN if _BROKEN.search(said) else goes_on, said)
        if is_("AGENT_UNRESPONSIVE", "AGENT_UNSYNCED", "AGENT_COMMAND_TIMEOUT", "OPERATION_TIMEOUT"):
            return TimeoutError(text)
        if is_("NO_DOMAIN", "OPERATION_INVALID", "ARGUMENT_UNSUPPORTED", "CONFIG_UNSUPPORTED"):
            return Unreachable(f"libvirt has no agent for domain {self._name!r} ({text}); see `virsh list`")
        return Lost(
            f"libvirt could not pass a command on to domain {self._name!r} ({text}); see its log, then call again"
        )

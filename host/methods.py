"""The typed methods of an agent, each defined once (`calls.py`), for a caller that blocks and for one that awaits."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, Protocol, TypedDict, TypeVar, overload

from . import calls
from .calls import Call
from .client_session import ClientSession, Speech
from .transports import DEFAULT_URL, Endpoint, parse
from .xmlrpc import REPLY_MAX

P = ParamSpec("P")
T = TypeVar("T")


class Blocks(Protocol):
    """An agent for a thread that may block (`client.Agent`)."""

    def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Carry out the call and return its value; `timeout`, in seconds, replaces the agent's."""


class Awaits(Protocol):
    """An agent for asyncio (`aio.AsyncAgent`)."""

    def carry_out(self, call: Call[T], timeout: float | None = None) -> Awaitable[T]:
        """Return an awaitable for the value of the call; `timeout`, in seconds, replaces the agent's."""


class Method(Generic[P, T]):
    """One RPC as a method: an agent that blocks returns the value, one for asyncio an awaitable."""

    def __init__(self, make: Callable[P, Call[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, agent: None, owner: type) -> Method[P, T]: ...
    @overload
    def __get__(self, agent: Blocks, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, agent: Awaits, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, agent: Blocks | Awaits | None, owner: type) -> Any:
        if agent is None:
            return self
        carry_out = agent.carry_out

        @functools.wraps(self._make)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            return carry_out(self._make(*args, **kwargs))

        bound.__signature__ = self._signatures[inspect.iscoroutinefunction(carry_out)]  # type: ignore[attr-defined]
        return bound

    @functools.cached_property
    def _signatures(self) -> tuple[inspect.Signature, inspect.Signature]:
        """What help() and IPython show of the method of an agent that blocks, and of one for asyncio."""
        made = inspect.signature(self._make)
        value = str(made.return_annotation).removeprefix("Call[").removesuffix("]")
        return made.replace(return_annotation=value), made.replace(return_annotation=f"Awaitable[{value}]")

    def __call__(self, agent: Blocks | Awaits, *args: P.args, **kwargs: P.kwargs) -> Any:
        return agent.carry_out(self._make(*args, **kwargs))


class AgentOptions(TypedDict, total=False):
    """The options of an agent, as `Methods` explains them."""

    timeout: float | None
    connect_timeout: float
    reply_max: int
    protocol: str


class Methods(ABC):
    """All RPCs of one agent by its URL, each with an optional time-out of its own. The guest is never trusted.

    `timeout` is how many seconds a call may take, including connecting and waiting; a longer wait is shortened. Without
    it a call may take ANSWER seconds in addition to the wait that it asks the agent for.
    `protocol` is "json" or "xmlrpc" if it is known.
    Every call raises Fault (the agent refused or failed), a HostError (Unreachable, Lost, TimedOut, BadReply,
    Unsupported), or Unsendable if an argument cannot be sent. The constructor raises ValueError if `url` is invalid.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        reply_max: int = REPLY_MAX,
        protocol: str = "auto",
    ) -> None:
        self.url = url
        endpoint = parse(url)
        self._options: dict[str, Any] = {"connect_timeout": connect_timeout, "protocol": protocol}
        self._options["reply_max"] = reply_max
        self._session = ClientSession(
            endpoint,
            timeout=timeout,
            connect_timeout=connect_timeout,
            reply_max=reply_max,
            speech=Speech(protocol),
        )
        self._set_up(endpoint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @abstractmethod
    def _set_up(self, endpoint: Endpoint) -> None:
        """Make the object that does the I/O for this agent."""

    @property
    def stock(self) -> bool:
        """Whether the other end was a stock qemu-ga at the last call."""
        return self._session.stock

    ping = Method(calls.ping)
    hello = Method(calls.hello)
    capabilities = Method(calls.capabilities)
    plan = Method(calls.plan)
    sync = Method(calls.sync)
    freeze = Method(calls.freeze)
    go = Method(calls.go)
    thaw = Method(calls.thaw)
    status = Method(calls.status)
    history = Method(calls.history)
    state = Method(calls.state)
    hold = Method(calls.hold)
    forget = Method(calls.forget)
    getfile = Method(calls.getfile)
    getdmesg = Method(calls.getdmesg)
    shutdown = Method(calls.shutdown)
    call = Method(calls.call)

"""The typed methods of an agent, each defined once (`calls.py`), for a caller that blocks and for one that awaits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from . import calls
from .calls import Call

if TYPE_CHECKING:
    from .client import Agent, AsyncAgent

P = ParamSpec("P")
T = TypeVar("T")


class Method(Generic[P, T]):
    """One RPC as a method: `Agent` returns the value, `AsyncAgent` something to await."""

    def __init__(self, make: Callable[P, Call[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, agent: None, owner: type) -> Method[P, T]: ...
    @overload
    def __get__(self, agent: Agent, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, agent: AsyncAgent, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, agent: Agent | AsyncAgent | None, owner: type) -> Any:
        if agent is None:
            return self
        return lambda *args, **kwargs: self(agent, *args, **kwargs)

    def __call__(self, agent: Agent | AsyncAgent, *args: P.args, **kwargs: P.kwargs) -> Any:
        return agent.carry_out(self._make(*args, **kwargs))


class Methods:
    """All RPCs. Each raises Fault (the agent refused or failed), a HostError, or Unsendable."""

    ping = Method(calls.ping)
    hello = Method(calls.hello)
    capabilities = Method(calls.capabilities)
    plan = Method(calls.plan)
    sync = Method(calls.sync)
    freeze = Method(calls.freeze)
    thaw = Method(calls.thaw)
    status = Method(calls.status)
    state = Method(calls.state)
    hold = Method(calls.hold)
    getfile = Method(calls.getfile)
    getdmesg = Method(calls.getdmesg)
    shutdown = Method(calls.shutdown)
    call = Method(calls.call)

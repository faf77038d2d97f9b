"""Doing something with guests while somebody looks on: a picture on a terminal, or events for a program."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..agent.api.errors import Fault, VirtagentError
from ..agent.api.records import Status
from . import calls
from .aio import AsyncAgent
from .following import Following
from .guest_status import GuestStatus
from .holding import Script
from .watch import watch_script

T = TypeVar("T")


class Observer(Protocol):
    """What is shown, from its beginning to its end. `blind` says by URL why a guest is not followed."""

    blind: Mapping[str, str]

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def put(self, record: GuestStatus) -> None:
        """Take a new record of a guest."""

    async def make_room(self) -> bool:
        """Give the terminal to somebody else; return whether this had it."""


def following(observer: Observer, urls: Sequence[str], **options: Any) -> Following:
    """Return what tells the observer of these guests; `options` are those of `AsyncAgent`."""
    found = Following([AsyncAgent(url, **options) for url in urls], observer.put)
    observer.blind = found.failed
    return found


def reporting(script: Script[T], url: str, follow: Following) -> Script[T]:
    """Play the script, and then tell the last record, which those who follow may not have been given yet."""
    try:
        found = yield from script
    except Fault:
        with contextlib.suppress(VirtagentError):  # what the script raised says what went wrong
            follow.add(url, (yield calls.status()))
        raise
    with contextlib.suppress(VirtagentError):  # it was done, which is what was asked for
        follow.add(url, (yield calls.status()))
    return found


async def ask(script: Script[T], url: str, timeout: float | None, observer: Observer) -> T:
    """Return what the script comes to with one agent, while the observer looks on."""
    async with observer, following(observer, [url]) as follow, AsyncAgent(url, timeout=timeout) as agent:
        return await agent.play(reporting(script, url, follow))


async def watch(
    urls: Sequence[str],
    timeout: float | None,
    until: str | None,
    deadline: float,
    observer: Observer,
    note: Callable[[Status], None],
) -> None:
    """Let the observer see what happens until all are in the state `until`; `note` gets each record, too.

    Raises TimedOut, or what fails first.
    """
    agents = [AsyncAgent(url, timeout=timeout) for url in urls]
    try:
        for agent in agents:
            await agent.status()  # an agent that is not there is reported without a picture
        async with observer:

            async def follow(agent: AsyncAgent) -> None:
                def put(record: Status) -> None:
                    note(record)
                    observer.put(GuestStatus.of(agent.url, record))

                await agent.play(watch_script(put, until, deadline))

            tasks = [asyncio.ensure_future(follow(agent)) for agent in agents]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
    finally:
        for agent in agents:
            agent.close()

"""One guest of a group, with what was done with it: reached, made ready, frozen, thawed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..agent.api.errors import Fault
from .aio import AsyncAgent
from .barrier import Barrier
from .errors import FreezeBroken, NotThawed
from .following import Watches
from .holding import Freeze, Span, Wanted


class Member(Protocol):
    """What a group freezes: one guest, or all those of a hypervisor. `go` and `thaw` are called for all together."""

    url: str
    watches: Sequence[Watches]
    """What its guests are followed through from `connect` on, besides those that are reached from here."""
    not_watched: str
    """Why they cannot be followed, "" if they can."""

    @property
    def begun(self) -> float:
        """When the host learned that all is frozen, in seconds of the monotonic clock."""

    @property
    def ended(self) -> float:
        """When the host began to ask for the thaw."""

    @property
    def guests(self) -> Mapping[str, Freeze]:
        """The freezes that are or were held, by URL."""

    @property
    def by_agents(self) -> Span | None:
        """When it was frozen by the agents' own figures; None if they do not say."""

    @property
    def by_clocks(self) -> Span | None:
        """The same by the clock of the machine that the agents are on, as it is."""

    @property
    def by_round_trip(self) -> Span | None:
        """The same by our clock, as round trips show it."""

    @property
    def lead(self) -> float:
        """Seconds that an instant must be ahead so that it is not over when this hears of it."""

    async def connect(self) -> None:
        """Reach it; raise Unreachable, or what else prevents that."""

    async def prepare(self, within: float) -> None:
        """Have all planned and synced; raise what prevents it."""

    async def go(self, at: float | None, within: float) -> None:
        """Freeze at that time of the monotonic clock (None: now); raise what prevents it, after the thaw."""

    async def thaw(self) -> list[FreezeBroken]:
        """Thaw what is frozen, call off what waits; return what was broken or could not be undone."""

    async def extend(self) -> None:
        """Extend the hold until this is cancelled."""

    async def close(self) -> None:
        """Close the connection."""


class Guest:
    """A guest whose agent is reached from here."""

    watches: Sequence[Watches] = ()
    not_watched = ""

    def __init__(self, agent: AsyncAgent, wanted: Wanted) -> None:
        self.url = agent.url
        self._agent = agent
        self._barrier = Barrier(agent.url, wanted)

    @property
    def begun(self) -> float:
        return self._barrier.begun

    @property
    def ended(self) -> float:
        return self._barrier.ended

    @property
    def guests(self) -> Mapping[str, Freeze]:
        return {self.url: self._barrier.freeze} if self._barrier.frozen else {}

    @property
    def by_agents(self) -> Span | None:
        at = self._barrier.begun_by_agent
        return (at, at) if at >= 0 else None

    @property
    def by_clocks(self) -> Span | None:
        return self.by_agents

    @property
    def by_round_trip(self) -> Span | None:
        return self.by_agents

    @property
    def lead(self) -> float:
        return 0.0

    async def connect(self) -> None:
        with contextlib.suppress(Fault):  # to refuse it is an answer, too
            await self._agent.ping()

    async def prepare(self, within: float) -> None:
        await self._agent.play(self._barrier.prepare(within))

    async def go(self, at: float | None, within: float) -> None:
        if at is not None:
            await asyncio.sleep(at - time.monotonic())
        freeze = await self._agent.play(self._barrier.go(None, within))
        freeze.cannot_wait = self._barrier.cannot_wait

    async def thaw(self) -> list[FreezeBroken]:
        try:
            if self._barrier.frozen:
                await self._agent.play(self._barrier.end())
            elif self._barrier.prepared:
                await self._agent.play(self._barrier.call_off())
        except FreezeBroken as error:
            return [error]
        return []

    async def extend(self) -> None:
        await self._agent.extend(self._barrier, apart=False)

    async def close(self) -> None:
        self._agent.close()


def not_thawed(broken: list[FreezeBroken]) -> bool:
    """Return whether one of these may be frozen still."""
    return any(isinstance(one, NotThawed) for one in broken)

"""One consistent point over many guests: all are made ready, and when the last one is, all are let go together.

`AsyncAgentGroup` runs one task for each guest on the caller's event loop; `AgentGroup` (group_thread.py) blocks. Any
refusal, overrun or lost connection thaws all, and so does a skew that is too large.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..agent.api.errors import VirtagentError
from .aio import AsyncAgent, relayed
from .barrier import FREEZE_SECONDS, PREPARE_SECONDS, syncs_still
from .calls import Texts, texts
from .errors import FreezeBroken, GroupFailed, TooSkewed
from .following import Following
from .holding import Freeze, Options, Span, Wanted, note
from .hypervisor import Hypervisor
from .member import Guest, Member, not_thawed
from .methods import AgentOptions
from .relayed import apart
from .transports import Far, parse

if TYPE_CHECKING:
    from typing_extensions import Unpack

CONNECTS = 32  # simultaneously
SYNCS = 3  # attempts of PREPARE_SECONDS each: more than the usual sync-limit of an agent
_NAMED = 3


@dataclass(slots=True)
class GroupFreeze:
    """All guests of a group, frozen, by their URLs. Times are in seconds.

    `skew` is the time between the first and the last answer that a guest is frozen; `skew_by_agents` is that from the
    agents' own figures, -1 unless all give them. Over hosts, whose clocks may differ, what is known of that is taken
    off there; `skew_by_clocks` is what the clocks say as they are, `skew_by_round_trip` what round trips alone show,
    wrong by at most `skew_error`. `hosts` are the other hosts by their URLs.

    After the block `window` is how long all were frozen, from the last answer to the first request to thaw, and
    `broken` says why a snapshot is worthless; None if it is good.
    """

    guests: dict[str, Freeze]
    skew: float
    skew_by_agents: float
    window: float = -1
    broken: FreezeBroken | None = None
    skew_by_clocks: float = -1
    skew_by_round_trip: float = -1
    skew_error: float = 0
    hosts: dict[str, Hypervisor] = field(default_factory=dict)

    @property
    def true_skew(self) -> float:
        """The skew by the agents' figures, or if they are not known that of the answers, which is no smaller."""
        return self.skew_by_agents if self.skew_by_agents >= 0 else self.skew


def refuse_twice(urls: Sequence[str]) -> None:
    """Raise ValueError if a URL stands twice."""
    for url, count in Counter(urls).items():
        if count > 1:
            raise ValueError(f"{url!r} stands twice in the group")


def _one_a_host(fars: Sequence[Far]) -> list[Far]:
    """Return each host once, with the agents of all its URLs. Raises ValueError if one names none and another some."""
    found: dict[str, Far] = {}
    for far in fars:
        before = found.get(far.name)
        if before is not None and bool(before.agents) != bool(far.agents):
            raise ValueError(f"{far.name} stands in the group for all that are named there, and with agents, too")
        agents = (*before.agents, *far.agents) if before is not None else far.agents
        found[far.name] = replace(far, agents=agents)
    return list(found.values())


def report(members: Sequence[Member]) -> GroupFreeze:
    """Return the freeze of all guests, each of which is frozen."""
    begun = [member.begun for member in members]
    hosts = {member.url: member for member in members if isinstance(member, Hypervisor)}
    return GroupFreeze(
        {url: freeze for member in members for url, freeze in member.guests.items()},
        skew=max(begun) - min(begun),
        skew_by_agents=spread([member.by_agents for member in members]),
        skew_by_clocks=spread([member.by_clocks for member in members]),
        skew_by_round_trip=spread([member.by_round_trip for member in members]),
        skew_error=_error_of(members),
        hosts=hosts,
    )


def _error_of(members: Sequence[Member]) -> float:
    """Return by how much the time between two of them may be wrong, each by half of its round trip."""
    clocks = [member.clock if isinstance(member, Hypervisor) else None for member in members]
    halves = sorted((clock.round_trip / 2 if clock is not None else 0.0 for clock in clocks), reverse=True)
    return sum(halves[:2]) if len(halves) > 1 else 0.0


def spread(spans: Sequence[Span | None]) -> float:
    """Return the time from the first to the last, -1 if one is not known."""
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return -1
    return max(last for _, last in known) - min(first for first, _ in known)


class AsyncAgentGroup:
    """Many agents, by their URLs. Raises ValueError if a URL is invalid, or is there twice, or `connects` is below 1.

    `connects` is how many connections are opened simultaneously; the other options are those of `AsyncAgent`.
    """

    def __init__(self, urls: Texts, *, connects: int = CONNECTS, **options: Unpack[AgentOptions]) -> None:
        if connects < 1:
            raise ValueError(f"connects is {connects}, expected 1 at least")
        self.urls = texts("urls", urls)
        if not self.urls:
            raise ValueError("a group of no agents; name one at least")
        refuse_twice(self.urls)
        self.not_followed: dict[str, str] = {}
        """Why `progress` is not told of a guest (any more), by its URL, or by that of its host."""
        self._agents = [AsyncAgent(url, **options) for url in self.urls]
        self._connects, self._options = connects, options
        self._hosts = _one_a_host([far for url in self.urls if (far := parse(url).far) is not None])

    @contextlib.asynccontextmanager
    async def frozen(
        self,
        include: Texts = (),
        exclude: Texts = (),
        *,
        freeze_wait: float = FREEZE_SECONDS,
        max_skew: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[GroupFreeze]:
        """Hold all guests frozen while the block runs, and thaw them whatever happens.

        Raises GroupFailed if a guest cannot be made ready, or not all can be frozen within `freeze_wait` seconds, and
        TooSkewed if more than `max_skew` seconds lie between the first and the last; then all are thawed, and it names
        those of which that is not known. Raises FreezeBroken after the block if a guest was not held frozen all the
        time. The rest is as in `Agent.frozen`; each record that `progress` gets has the `url` of its guest.
        """
        wanted = Wanted(include, exclude, **options)
        members = self._members(wanted)
        extenders: list[asyncio.Future[None]] = []
        following = self._following(wanted)
        await following.begin()
        try:
            group = await self._begin(members, following, freeze_wait, max_skew)
            for url, one in group.guests.items():
                following.add(url, one.status)
            if wanted.extend:
                extenders = [asyncio.ensure_future(member.extend()) for member in members]
            try:
                yield group
            except BaseException as error:
                try:
                    await self._end(group, members, extenders)
                except FreezeBroken as broken:
                    note(error, broken)
                raise
            else:
                await self._end(group, members, extenders)
            finally:
                for url, one in group.guests.items():
                    following.add(url, one.ended)
                    one.not_followed = following.failed.get(url, "")
        finally:
            await _cancelled(extenders)
            await following.end()
            await _closed(members)

    async def freeze(
        self,
        include: Texts = (),
        exclude: Texts = (),
        *,
        freeze_wait: float = FREEZE_SECONDS,
        max_skew: float | None = None,
        **options: Unpack[Options],
    ) -> GroupFreeze:
        """Freeze all guests, and leave them frozen until each is thawed or its hold ends; nothing extends the hold.

        Raises GroupFailed and TooSkewed as `frozen` does, and then all are thawed.
        """
        if far := next((url for url in self.urls if parse(url).far is not None), None):
            raise ValueError(
                f"{far} cannot be left frozen: the relay there thaws when its connection ends; "
                "run what is to be done in `snapshot -- COMMAND`, or freeze on that host"
            )
        wanted = Wanted(include, exclude, **options)
        members = self._members(wanted)
        following = self._following(wanted)
        await following.begin()
        try:
            group = await self._begin(members, following, freeze_wait, max_skew)
            for url, one in group.guests.items():
                following.add(url, one.status)
            return group
        finally:
            await following.end()
            await _closed(members)

    def _members(self, wanted: Wanted) -> list[Member]:
        here: list[Member] = [Guest(agent, wanted) for agent in self._agents if parse(agent.url).far is None]
        return [*here, *(Hypervisor(far, wanted, relayed) for far in self._hosts)]

    def _following(self, wanted: Wanted) -> Following:
        here = [url for url in self.urls if wanted.progress and parse(url).far is None]
        self.not_followed.clear()
        return Following([AsyncAgent(url, **self._options) for url in here], wanted.progress, self.not_followed)

    def _follow_there(self, members: Sequence[Member], following: Following) -> None:
        """Follow the guests of other hosts through the relays that are reached."""
        watches = [one for member in members for one in member.watches]
        following.more(watches, apart(len(watches)))
        self.not_followed.update({member.url: member.not_watched for member in members if member.not_watched})

    async def _begin(
        self, members: list[Member], following: Following, within: float, max_skew: float | None
    ) -> GroupFreeze:
        """Connect to all, make all ready, and when the last one is, freeze all."""
        gate = asyncio.Semaphore(self._connects)

        async def connect(member: Member) -> None:
            async with gate:
                await member.connect()

        try:
            await self._together(members, "connect", connect)
            self._follow_there(members, following)
            await self._get_ready(members)
            lead = max(member.lead for member in members)
            at = time.monotonic() + lead if lead else None
            await self._together(members, "freeze", lambda one: one.go(at, within), within + lead)
            group = report(members)
            if max_skew is not None and group.true_skew > max_skew:
                raise TooSkewed(
                    f"{group.true_skew * 1000:.1f} ms lay between the first and the last freeze of the group, which is "
                    f"more than the {max_skew * 1000:g} ms that are allowed"
                )
        except BaseException as error:
            broken = await self._thaw(members)
            for one in broken:
                note(error, one)
            frozen = isinstance(error, TooSkewed) or (isinstance(error, GroupFailed) and error.froze)
            if isinstance(error, GroupFailed | TooSkewed) and frozen and not not_thawed(broken):
                error.args = (f"{error}; all were thawed",)
            raise
        return group

    async def _get_ready(self, members: list[Member]) -> None:
        """Have all planned and synced. A sync may outlast the instant, minutes ahead at most: then once more."""
        for left in reversed(range(SYNCS)):
            try:
                await self._together(members, "get ready", lambda m: m.prepare(PREPARE_SECONDS), PREPARE_SECONDS + 1)
            except GroupFailed as error:
                if not left or not error.causes or not all(map(syncs_still, error.causes.values())):
                    raise
                if broken := await self._thaw(members):
                    raise broken[0] from error
            else:
                return

    async def _end(self, group: GroupFreeze, members: list[Member], extenders: list[asyncio.Future[None]]) -> None:
        for extender in extenders:
            extender.cancel()
        # This holds until the freeze is known to be good.
        group.broken = FreezeBroken("how the freeze of the group ended was not asked; throw the snapshot away")
        broken = await self._thaw(members)
        group.window = min(member.ended for member in members) - max(member.begun for member in members)
        if broken:
            more = f" (and {len(broken) - _NAMED} more)" if len(broken) > _NAMED else ""
            group.broken = FreezeBroken("; ".join(str(one) for one in broken[:_NAMED]) + more)
            raise group.broken from broken[0]
        group.broken = None

    async def _thaw(self, members: Sequence[Member]) -> list[FreezeBroken]:
        """Thaw all that is frozen, and call off what waits; return the freezes that were broken."""
        found = await asyncio.gather(*(member.thaw() for member in members), return_exceptions=True)
        broken: list[FreezeBroken] = []
        for one in found:
            if isinstance(one, BaseException):
                raise one
            broken += one
        return broken

    async def _together(
        self,
        members: Sequence[Member],
        what: str,
        doing: Callable[[Member], Coroutine[Any, Any, None]],
        within: float | None = None,
    ) -> None:
        """Do it for all; if one fails or is late, cancel all and raise GroupFailed."""
        tasks = [asyncio.ensure_future(doing(member)) for member in members]
        try:
            _, late = await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            failed = {member.url: error for member, task in zip(members, tasks, strict=True) if (error := _error(task))}
            await _cancelled(tasks)
        if not failed and not late:
            return
        causes: dict[str, VirtagentError] = {}
        for url, error in failed.items():
            if not isinstance(error, VirtagentError):
                raise error
            causes |= error.causes if isinstance(error, GroupFailed) else {url: error}
        froze = what == "freeze"
        done = "" if froze else "; nothing was frozen"
        if not failed:
            slow = [member.url for member, task in zip(members, tasks, strict=True) if task in late]
            raise GroupFailed(f"{slow[0]} did not {what} within {within:g} s{done}", {}, froze=froze)
        url, error = next(iter(causes.items()))
        first = next(iter(failed.values()))
        more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
        raise GroupFailed(f"{url}{more} did not {what} ({error}){done}", causes, froze=froze) from first


def _error(task: asyncio.Future[Any]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


async def _closed(members: Sequence[Member]) -> None:
    await asyncio.gather(*(member.close() for member in members))


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel the tasks that have not ended, and wait until they have, even if this is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    interrupted: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted

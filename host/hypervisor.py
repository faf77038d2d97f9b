"""All guests of a group that are on one other host: a relay there, by ssh, which multiplexes them.

What the relay says is believed as far as it fits together: who was made ready is frozen, and who was frozen was held or
is broken; the instants lie between question and answer. Its clock is measured by the quickest of some round trips.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..agent.api.errors import VirtagentError
from ..agent.api.records import Last, Misshapen, MountStatus, Status, load
from .barrier import FREEZE_SECONDS, PREPARE_SECONDS
from .client_session import ANSWER
from .errors import BadReply, FreezeBroken, GroupFailed, HostError, NotThawed
from .following import Following, Watches
from .holding import Freeze, Options, Span, Wanted, note, only
from .processes import OUTPUT_MAX
from .relayed import apart
from .ssh_process import CONNECT_SECONDS, Remote
from .transports import AGENTS_MAX, Far

PROBES = 5
MARGIN = 5.0  # seconds that an answer may be later than what was asked may take
ALIVE_SECONDS = 5.0  # a relay that extends holds wants to hear something that often
LEAD = 0.05  # seconds by which an instant is ahead, besides the time that the record travels
_SLACK = 1.0  # seconds by which an instant may lie outside of what is possible, since a busy relay looks late
EXIT_CODES = range(-64, 256)  # or the negative number of a signal
_SHOWN = 400  # characters of what a relay says of a guest


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of another host. Times are in seconds.

    `ahead` is by how much its time of day is ahead of ours, `round_trip` how long the question took: half of that is
    how wrong `ahead` may be. `offset` is its time of day less our monotonic clock.
    """

    ahead: float
    round_trip: float
    offset: float

    @property
    def differs(self) -> bool:
        """Whether it differs from ours by more than the round trip explains."""
        return abs(self.ahead) > self.round_trip / 2


@dataclass(slots=True)
class Ran:
    """What became of a command on another host: its exit code (-1: none), what it wrote, and what else went wrong."""

    code: int
    output: str
    error: str = ""


Watch = Callable[[Far, str, Remote], Watches]
"""From a host, the name of an agent there, and the connection to its relay, to what the agent is followed through."""


class Hypervisor:
    """The guests of one other host, as a member of a group. `watch` makes what one is followed through."""

    def __init__(self, far: Far, wanted: Wanted, watch: Watch | None = None) -> None:
        self.url = far.name
        self.begun = self.ended = 0.0
        self.clock: Clock | None = None
        self.window = -1.0
        """How long all were frozen there, by the relay's figures."""
        self.watches: Sequence[Watches] = ()
        self.not_watched = ""
        self._far = far
        self._watch_through = watch
        self._wanted = wanted
        self._remote = Remote(far)
        self._guests: dict[str, Freeze] = {}
        self._ready = 0
        self._span: Span = (0.0, 0.0)
        self._prepared = self._let_go = False
        self._alive: asyncio.Future[None] | None = None

    @property
    def guests(self) -> Mapping[str, Freeze]:
        return self._guests

    @property
    def by_agents(self) -> Span | None:
        """By our clock: what the round trips show of its clock is taken off, unless they cannot tell the two apart."""
        assert self.clock is not None
        return self._ours(self.clock.offset if self.clock.differs else _wall())

    @property
    def by_clocks(self) -> Span | None:
        return self._ours(_wall())

    @property
    def by_round_trip(self) -> Span:
        """By our clock, whatever its clock says."""
        assert self.clock is not None
        return self._ours(self.clock.offset)

    def _ours(self, offset: float) -> Span:
        first, last = self._span
        return first - offset, last - offset

    @property
    def lead(self) -> float:
        """Seconds that an instant must be ahead so that it is not over when the relay hears of it."""
        return LEAD + (1.5 * self.clock.round_trip if self.clock else 0.0)

    async def connect(self) -> None:
        await self._remote.start()
        await self._remote.clock(CONNECT_SECONDS)
        if self._wanted.progress is not None and self._watch_through is not None:
            try:
                found = await self._remote.agents(CONNECT_SECONDS)
                self.watches = [self._watch_through(self._far, one, self._remote) for one in found]
            except BadReply as error:
                if not self._remote.open:
                    raise
                self.not_watched = str(error)  # what is wrong with the agents is for `prepare` to say

    async def prepare(self, within: float) -> None:
        agents = {"agents": list(self._far.agents)} if self._far.agents else {}
        record = {**agents, "options": _options(self._wanted), "within": within}
        self._prepared = True
        answer = await self._remote.ask(within + MARGIN, prepare=record)
        match answer:
            case {"ready": int(count)} if 0 < count <= AGENTS_MAX and not isinstance(count, bool):
                self._ready = count
            case _:
                self._prepared = False
                raise self._refused("get ready", answer, froze=False)
        self.clock = await self._measure()

    async def _measure(self) -> Clock:
        """Return the clock there, by the quickest of some questions for the time."""
        best: Clock | None = None
        for _ in range(PROBES):
            asked = time.monotonic()
            now = await self._remote.clock(MARGIN)
            heard = time.monotonic()
            if best is None or heard - asked < best.round_trip:
                offset = now - (asked + heard) / 2
                best = Clock(offset - _wall(), heard - asked, offset)
        assert best is not None
        return best

    async def go(self, at: float | None, within: float) -> None:
        assert self.clock is not None, "not prepared"
        record: dict[str, Any] = {"within": within, "each": True}
        asked = time.monotonic()
        self._let_go = True
        if at is not None:
            record["at"] = at + (self.clock.offset if self.clock.differs else _wall())
        ahead = max(0.0, at - asked) if at is not None else 0.0
        answer = await self._remote.ask(within + ahead + MARGIN, freeze=record)
        self.begun = time.monotonic()
        if "frozen" not in answer:
            raise self._refused("freeze", answer, froze=True)
        try:
            self._take_frozen(answer["frozen"], asked)
        except (KeyError, TypeError, ValueError) as error:
            raise BadReply(f"{self.url} answered freeze with what does not fit together ({error})") from None
        if self._wanted.extend:
            self._alive = asyncio.ensure_future(self._tell_alive())  # now: those of other hosts may take long

    def _take_frozen(self, frozen: Any, asked: float) -> None:
        """Believe that these are frozen; raise ValueError and its like if that does not fit together."""
        each = frozen["each"]
        first, last = _number(frozen["first"]), _number(frozen["last"])
        if not isinstance(each, dict) or len(each) != self._ready:
            raise ValueError(f"{self._ready} were ready and {len(each)} are frozen")
        if not first <= last:
            raise ValueError("the last was frozen before the first")
        self._span = first, last
        begun, ended = self.by_round_trip
        if not asked - _SLACK <= begun or not ended <= self.begun + _SLACK:
            raise ValueError("its instants lie outside of the time that it took; see that its clock is not being set")
        assert self.clock is not None
        offset = self.clock.offset - _wall()
        for agent, one in each.items():
            count, number = one["count"], one["freeze_id"]
            at, left = _number(one["at"]), _number(one["hold_left"])
            mounts = tuple(one.get("mounts", []))
            plain = all(isinstance(point, str) for point in mounts) and not isinstance(one.get("mounts"), str)
            if not isinstance(count, int) or not isinstance(number, int) or count < 1 or not plain:
                raise ValueError(f"it does not say how {agent[:_SHOWN]} is frozen")
            if not first <= at <= last:
                raise ValueError(f"{agent[:_SHOWN]} is not frozen")
            points = tuple(MountStatus(point, state="frozen") for point in mounts)
            since = max(0.0, self.begun - (at - self.clock.offset))
            status = Status("FROZEN", 2, -1, number, phase="hold", since=since, hold_left=left, mounts=points)
            guest = Freeze(count, number, mounts, at - offset, left, status)
            guest.cannot_wait = str(one.get("cannot_wait", ""))[:_SHOWN]
            self._guests[self._far.guest(agent)] = guest

    async def thaw(self) -> list[FreezeBroken]:
        self.ended = time.monotonic()
        if not self._prepared:
            return []
        self._prepared = False
        self._broken_until_known()
        # The relay waits so long for a guest that is asked when the time is nearly over, and for how it ended.
        within = MARGIN if self._remote.late else self._wanted.thaw_wait + 2 * ANSWER + MARGIN
        try:
            answer = await self._answered(within, thaw={"each": True})
        except HostError as error:
            if not self._let_go:
                return []  # its guests are called off, since nobody attends them any more (ADR 0039)
            worse = NotThawed(f"{error}; its guests thaw at the end of their hold; throw the snapshot away")
            for guest in self._guests.values():
                guest.broken = worse
            return [worse]
        found: list[FreezeBroken] = []
        held, broken, each = answer.get("held"), answer.get("broken"), answer.get("each")
        if not isinstance(held, list) or not isinstance(broken, dict) or not isinstance(each, dict):
            return self._all_broken("answered thaw with what does not fit together")
        window = answer.get("window")
        self.window = float(window) if isinstance(window, int | float) else -1.0
        still = answer.get("not_thawed")
        for agent, why in broken.items():
            known = self._guests.get(self._far.guest(agent))
            kind = NotThawed if isinstance(still, list) and agent in still else FreezeBroken
            found.append(kind(f"{self._far.guest(agent)}: {str(why)[:_SHOWN]}"))
            if known is not None:
                known.broken = found[-1]
        for url, guest in self._guests.items():
            agent = url.partition("?agents=")[2]
            guest.ended = self._ended(each.get(agent))
            last = guest.last
            if agent in broken:
                continue
            if agent in held and (last is None or (last.freeze_id == guest.freeze_id and last.held_continuously)):
                guest.broken = None
                guest.held_seconds = last.held_seconds if last is not None else -1
            elif guest.broken is not None:
                found.append(guest.broken)
        return found

    def _broken_until_known(self) -> None:
        for url, guest in self._guests.items():
            guest.broken = FreezeBroken(f"{url}: the relay does not say that it was held; throw the snapshot away")

    def _all_broken(self, how: str) -> list[FreezeBroken]:
        error = FreezeBroken(f"{self.url} {how}; throw the snapshot away")
        for guest in self._guests.values():
            guest.broken = error
        return [error]

    @staticmethod
    def _ended(said: Any) -> Status | None:
        """Return the record after the thaw, None if the relay had none."""
        if not said:
            return None
        try:
            return Status("THAWED", 0, -1, last=load(Last, said, "last"))
        except Misshapen:
            return None

    async def extend(self) -> None:
        """Wait as long as the relay hears that somebody is there, and so extends the holds."""
        if self._alive is not None:
            await asyncio.wait([self._alive])

    async def _tell_alive(self) -> None:
        with contextlib.suppress(HostError):  # what comes next finds it, too, and has somebody to tell
            await self._watch()

    async def _watch(self) -> dict[str, Any]:
        """Ask the relay for the time, again and again; raise a HostError when it does not answer any more."""
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            await self._remote.clock(2 * ALIVE_SECONDS)

    async def _answered(self, within: float, **record: Any) -> dict[str, Any]:
        """Return the answer to what may take long, as long as the relay tells the time meanwhile."""
        asking = asyncio.ensure_future(self._remote.ask(within, **record))
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait([asking, watching], return_when=asyncio.FIRST_COMPLETED)
            return (asking if asking.done() else watching).result()
        finally:
            asking.cancel()
            watching.cancel()
            await asyncio.wait([asking, watching])

    async def run(self, words: list[str], timeout: float | None) -> Ran:
        """Run a command there while all are frozen; return what became of it, also if the relay is gone."""
        limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        within = math.inf if timeout is None else timeout + MARGIN
        try:
            answer = await self._answered(within, run={"command": words, **limit})
        except HostError as error:
            return Ran(-1, "", str(error))
        return _ran(answer.get("ran")) or Ran(-1, "", f"{self.url} did not say what became of the command")

    async def close(self) -> None:
        if self._alive is not None:
            self._alive.cancel()
            await asyncio.wait([self._alive])
        await self._remote.close()

    def _refused(self, what: str, answer: Mapping[str, Any], *, froze: bool) -> HostError:
        failed = answer.get("failed")
        if not isinstance(failed, dict) or not failed:
            return BadReply(f"{self.url} did not answer {what}; see that virtagent is of one version there")
        causes: dict[str, VirtagentError] = {
            self._far.guest(agent): HostError(str(why)[:_SHOWN]) for agent, why in failed.items()
        }
        url, why = next(iter(causes.items()))
        more = f", and {len(causes) - 1} more there" if len(causes) > 1 else ""
        return GroupFailed(f"{url}: {why}{more}", causes, froze=froze)


@contextlib.asynccontextmanager
async def frozen_alone(far: Far, wanted: Wanted, watch: Watch) -> AsyncIterator[Freeze]:
    """Hold the one guest there that is meant frozen while the block runs; raises what `Agent.frozen` does."""
    host = Hypervisor(far, wanted, watch)
    following = Following((), wanted.progress)
    extender: asyncio.Future[None] | None = None
    try:
        await host.connect()
        following.more(host.watches, apart(1))
        await host.prepare(PREPARE_SECONDS)
        try:
            await host.go(None, FREEZE_SECONDS)
        except BaseException as error:
            for one in await host.thaw():
                note(error, one)
            raise
        extender = asyncio.ensure_future(host.extend())
        freeze = only(host.guests)
        (url,) = host.guests
        following.add(url, freeze.status)
        try:
            yield freeze
        except BaseException as error:
            for one in await host.thaw():
                note(error, one)
            raise
        else:
            for one in await host.thaw():
                raise one
        finally:
            following.add(url, freeze.ended)
            freeze.not_followed = following.failed.get(url, host.not_watched)
    finally:
        await following.end()
        if extender is not None:
            extender.cancel()
            await asyncio.wait([extender])
        await host.close()


def _ran(said: Any) -> Ran | None:
    """Return what became of a command, None if that is not said."""
    match said:
        case {"code": int(code), "output": str(output), **more} if code in EXIT_CODES and not isinstance(code, bool):
            left_out, cut = more.get("output_left_out"), max(0, len(output) - OUTPUT_MAX)
            cut += left_out if isinstance(left_out, int) else 0
            told = f"\n[{cut} bytes more were left out]" if cut else ""
            return Ran(code, output[:OUTPUT_MAX] + told, str(more.get("error", ""))[:_SHOWN])
    return None


def _number(value: Any) -> float:
    """Return the number; raise TypeError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]} is no number")
    return float(value)


def _wall() -> float:
    """Return the time of day less the monotonic clock."""
    return time.time() - time.monotonic()


def _options(wanted: Wanted) -> dict[str, Any]:
    """Return what differs from the defaults, as the record prepare takes it."""
    default = Wanted()
    names = ["include", "exclude", *(name for name in Options.__annotations__ if name != "progress")]
    plain = replace(wanted, progress=None)
    found = {name: getattr(plain, name) for name in names if getattr(plain, name) != getattr(default, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

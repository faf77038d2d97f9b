"""Following guests while something is done with them: each is watched on a connection of its own.

A channel that takes only one client at a time cannot be followed; what the caller itself learns is told all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from ..agent.api.errors import VirtagentError
from ..agent.api.records import Status
from ..agent.api.structs import replace
from .guest_status import GuestStatus, Tell
from .holding import Script
from .transports import parse
from .watch import watch_script

FIRST = 1.0  # seconds to wait for the first record of each guest


class Watches(Protocol):
    """An agent that a guest is watched through (`aio.AsyncAgent`)."""

    url: str

    async def play(self, script: Script[None]) -> None:
        """Run a script of `watch`."""

    def close(self) -> None:
        """Close its connection."""


class Following:
    """Calls `tell` with each new record of each guest until the block is left; with None it does nothing.

    `agents` are for this alone, and closed at the end. `failed` (the caller's own, if it has one) says why a guest is
    not followed (any more), by its URL. If `tell` raises an exception it is called no more.
    """

    def __init__(self, agents: Sequence[Watches], tell: Tell | None, failed: dict[str, str] | None = None) -> None:
        self.failed = failed if failed is not None else {}
        self._agents = agents
        self._tell = tell
        self._last: dict[str, GuestStatus] = {}
        self._tasks: list[asyncio.Future[None]] = []
        self._begun = asyncio.Event()

    async def __aenter__(self) -> Following:
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.end()

    async def begin(self) -> None:
        """Begin to follow, and wait a little for the first record of each guest."""
        if self._tell is None:
            return
        self._tasks = [asyncio.ensure_future(self._follow(agent, 0)) for agent in self._agents]
        self._note_begun()
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            # What is done next is then seen from its beginning.
            await asyncio.wait([begun], timeout=FIRST)
        except BaseException:
            await self.end()
            raise
        finally:
            begun.cancel()

    def more(self, agents: Sequence[Watches], apart: float) -> None:
        """Follow these, too, with so many seconds at least between two records of one."""
        if self._tell is not None:
            self._tasks += [asyncio.ensure_future(self._follow(agent, apart)) for agent in agents]

    async def end(self) -> None:
        """Follow no longer."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def add(self, url: str, record: Status | None) -> None:
        """Tell a record that was learned in another way, if it says something new.

        While the guest is followed, one with no higher `seq` is no newer, and not that of an agent started again. What
        a relay sums up (`seq` is -1) is, if it tells of a step that has not been seen: of a freeze, or of its end.
        """
        last = self._last.get(url)
        if record is None or last is None or record.seq > last.seq:
            self._add(url, record)
        elif record.seq < 0:
            if (found := _summed_up(last, record)) is not None:
                self._put(GuestStatus.of(url, found))
        elif url in self.failed:
            self._add(url, record)

    def _add(self, url: str, record: Status | None) -> None:
        if record is None or self._tell is None:
            return
        guest = GuestStatus.of(url, record)
        if guest.newer_than(self._last.get(url)):
            self._put(guest)

    def _put(self, guest: GuestStatus) -> None:
        if self._tell is None:
            return
        self._last[guest.url] = guest
        try:
            self._tell(guest)
        except Exception as error:  # noqa: BLE001 - the caller's own: it must not prevent a thaw
            self._tell = None
            self.failed[guest.url] = f"progress raised {type(error).__name__}: {error}"

    async def _follow(self, agent: Watches, apart: float) -> None:
        def put(record: Status) -> None:
            self._add(agent.url, record)
            self._note_begun()

        try:
            if _by_libvirt(agent.url):
                self.failed[agent.url] = "libvirt passes on one command at a time"  # a long poll would delay the others
            else:
                await agent.play(watch_script(put, None, math.inf, apart))
        except VirtagentError as error:
            self.failed[agent.url] = str(error)
        finally:
            agent.close()
            self._note_begun()

    def _note_begun(self) -> None:
        if len(self._last.keys() | self.failed.keys()) >= len(self._agents):
            self._begun.set()


def _summed_up(last: Status, record: Status) -> Status | None:
    """Return what a relay says of its guest, with what was known of it; None if nothing of it is new."""
    over = last.last is not None and last.last.freeze_id == (record.last or record).freeze_id
    if over or (last.state, last.freeze_id) == (record.state, record.freeze_id):
        return None
    known = {mount.mountpoint: mount for mount in last.mounts}
    frozen = {mount.mountpoint: replace(known.get(mount.mountpoint, mount), state="frozen") for mount in record.mounts}
    mounts = tuple({**known, **frozen}.values()) if frozen else ()
    return replace(record, seq=last.seq, version=last.version, mounts=mounts)


def _by_libvirt(url: str) -> bool:
    """Return whether it is libvirt that passes on what is asked, here or on another host. Raises ValueError."""
    endpoint = parse(url)
    return bool(endpoint.domain or (endpoint.far and any(parse(one).domain for one in endpoint.far.agents)))


class FollowingThread:
    """The same for a caller that blocks: `tell` is called in a thread of this."""

    def __init__(self, agents: Sequence[Watches], tell: Tell) -> None:
        self._following = Following(agents, tell)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = threading.Event()
        self._ends: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="virtagent progress")

    def __enter__(self) -> FollowingThread:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._loop is not None, "not entered"
        assert self._ends is not None, "not entered"
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join()

    @property
    def failed(self) -> dict[str, str]:
        """Why a guest is not followed (any more), by its URL."""
        return self._following.failed

    def add(self, url: str, record: Status | None) -> None:
        """Tell a record that was learned in another way, if it says something new."""
        assert self._loop is not None, "not entered"
        self._loop.call_soon_threadsafe(self._following.add, url, record)

    def _run(self) -> None:
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        self._loop, self._ends = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._following:
                self._begun.set()
                await self._ends.wait()
        finally:
            self._begun.set()

"""One agent behind a relay on another host: its calls, as JSON, through the one ssh that all agents of that host share.

Whoever blocks and whoever has an event loop use the same connections, which live on a loop in a thread of their own.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from .errors import BadReply
from .ssh_process import CONNECT_SECONDS, Remote
from .transports import Far

T = TypeVar("T")


class _Shared:
    """The relay of one host, and how many use it."""

    def __init__(self, far: Far) -> None:
        self.users = 0
        self._far = far
        self._remote: Remote | None = None
        self._lock = asyncio.Lock()

    async def remote(self) -> Remote:
        """Return the relay; start it, or start it again if it has ended."""
        async with self._lock:
            if self._remote is None or not self._remote.open:
                if self._remote is not None:
                    await self._remote.close()
                self._remote = Remote(self._far)
                await self._remote.start()
                await self._remote.clock(CONNECT_SECONDS)
            return self._remote

    async def close(self) -> None:
        async with self._lock:
            if self._remote is not None:
                await self._remote.close()
                self._remote = None


class _Hub:
    """The loop, in its thread, and the relays by host and port; the thread begins with the first and never ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, int], _Shared] = {}
        self._ending: set[concurrent.futures.Future[None]] = set()

    def do(self, doing: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True, name="virtagent ssh").start()
                atexit.register(self._close)
        return asyncio.run_coroutine_threadsafe(doing, self._loop)

    def join(self, far: Far) -> _Shared:
        with self._lock:
            shared = self._shared.setdefault((far.host, far.port), _Shared(far))
            shared.users += 1
        return shared

    def leave(self, far: Far, shared: _Shared) -> None:
        with self._lock:
            shared.users -= 1
            if shared.users:
                return
            self._shared.pop((far.host, far.port), None)
        ending = self.do(shared.close())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        if not _in_a_loop():  # which has others to see to
            with contextlib.suppress(Exception):  # nobody uses it any more; whoever asks next starts another
                ending.result(CONNECT_SECONDS)

    def _close(self) -> None:
        """End all relays before the program ends: an ssh that outlives it is somebody's riddle."""
        ending = [*self._ending, *(self.do(shared.close()) for shared in self._shared.values())]
        concurrent.futures.wait(ending, CONNECT_SECONDS)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_HUB = _Hub()


class SshGuest:
    """One agent by the URL ssh:HOST?agents=AGENT."""

    def __init__(self, far: Far) -> None:
        self._far = far
        self._shared: _Shared | None = None

    def ask(self, text: str, seconds: float) -> concurrent.futures.Future[str]:
        """Return the future answer to a command in JSON, which raises a HostError."""
        if self._shared is None:
            self._shared = _HUB.join(self._far)
        return _HUB.do(self._ask(self._shared, text, seconds))

    async def _ask(self, shared: _Shared, text: str, seconds: float) -> str:
        remote = await shared.remote()
        if len(self._far.agents) != 1:
            count = len(self._far.agents) or "no"
            raise BadReply(f"{self._far.url} names {count} agents, expected one: ssh:HOST?agents=URL")
        return await remote.call(self._far.agents[0], text, seconds)

    def close(self) -> None:
        """Leave the relay, which ends when nobody uses it."""
        if self._shared is not None:
            shared, self._shared = self._shared, None
            _HUB.leave(self._far, shared)


def guests_of(far: Far, within: float = CONNECT_SECONDS) -> list[str]:
    """Return the URLs of the agents there that are meant, one by one; raise a HostError.

    The relay stays for the calls that follow, until the program ends.
    """
    shared = _HUB.join(far)

    async def ask() -> list[str]:
        remote = await shared.remote()
        return [far.guest(one) for one in await remote.agents(within)]

    return _HUB.do(ask()).result()

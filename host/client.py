"""The client of one agent for a thread that may block.

`client_session.py` and `holding.py` decide what is said to the agent, and when; `aio.py` is the same for asyncio.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .calls import Call, Texts
from .connection import CHUNK, Connection, drive, finish
from .errors import FreezeBroken
from .holding import CallOnOwnConnection, Freeze, Holding, Options, Pause, Script, Wanted, note, only
from .methods import Methods
from .transports import Endpoint, connect, parse

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .following import FollowingThread
    from .libvirt_domain import Domain
    from .ssh_guest import SshGuest

T = TypeVar("T")


class _Stop(Exception):
    """The block has ended: extend the hold no more."""


class Agent(Methods):
    """One agent by its URL. It connects at the first call and stays connected; calls of several threads take turns."""

    def _set_up(self, endpoint: Endpoint) -> None:
        self._connection = Connection(endpoint, _Blocking())
        self._lock = threading.Lock()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            self._session.open = False
            self._connection.close()

    def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Carry out the call and return its value; `timeout` replaces the agent's."""
        until = self._session.turn_until(timeout)
        if not self._lock.acquire(timeout=-1 if until is None else max(0.0, until - time.monotonic())):
            raise self._session.no_turn(call)
        try:
            return finish(self._connection.run(self._session, self._session.perform(call, timeout, until)))
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def frozen(self, include: Texts = (), exclude: Texts = (), **options: Unpack[Options]) -> Iterator[Freeze]:
        """Hold the guest frozen while the block runs, and thaw it whatever happens.

        Raises FreezeBroken after the block if the guest was not held frozen all the time; NotThawed, which is a
        FreezeBroken, if it could not be told to thaw. If the block raises an exception, that is raised instead, with
        the other as a note. Options: `strict`, and in seconds `sync_limit`, `freeze_limit`, `hold` as the agent has
        them; `extend`: a thread with a connection of its own extends the hold while the block runs; `thaw_wait`: for
        how many seconds to try the thaw; `progress`: a callable that another such thread calls with each status record
        from before the freeze until after the thaw.
        """
        if parse(self.url).far is not None:
            from .group_thread import AgentGroup  # asyncio takes long

            with AgentGroup(self.url).frozen(include, exclude, **options) as group:
                yield only(group.guests)
            return
        wanted = Wanted(include, exclude, **options)
        holding = Holding(self.url, wanted)
        freeze: Freeze | None = None
        stop = threading.Event()
        extender = threading.Thread(target=self._extend, args=(holding, stop), daemon=True, name="virtagent hold")
        with self._following(wanted) as following:
            try:
                freeze = self.play(holding.begin())
                if wanted.extend:
                    extender.start()
                if following is not None:
                    following.add(self.url, freeze.status)
                yield freeze
            except BaseException as error:
                stop.set()
                if holding.frozen:
                    try:
                        self.play(holding.end())
                    except FreezeBroken as broken:
                        note(error, broken)
                raise
            else:
                stop.set()
                self.play(holding.end())
            finally:
                if extender.ident is not None:
                    extender.join()
                if following is not None and freeze is not None:
                    following.add(self.url, freeze.ended)
                    freeze.not_followed = following.failed.get(self.url, "")

    def _following(self, wanted: Wanted) -> contextlib.AbstractContextManager[FollowingThread | None]:
        if wanted.progress is None:
            return contextlib.nullcontext()
        from .aio import AsyncAgent  # asyncio takes long
        from .following import FollowingThread

        return FollowingThread([AsyncAgent(self.url, **self._options)], wanted.progress)

    def play(self, script: Script[T]) -> T:
        """Run a script of `holding`."""
        never = threading.Event()

        def take(step: Call[Any] | Pause) -> Any:
            return never.wait(step.seconds) if isinstance(step, Pause) else self.carry_out(step)

        return drive(script, take)

    def _extend(self, holding: Holding, stop: threading.Event) -> None:
        with Agent(self.url, **self._options) as own, contextlib.suppress(_Stop):

            def take(step: CallOnOwnConnection | Pause) -> Any:
                if stop.wait(step.seconds if isinstance(step, Pause) else 0):
                    raise _Stop
                if isinstance(step, Pause):
                    return None
                return (own if step.apart else self).carry_out(step.call, step.seconds)

            drive(holding.extension(), take)


class _Blocking:
    """The `Io` for a thread that waits itself."""

    async def connect(self, endpoint: Endpoint, seconds: float) -> socket.socket:
        return connect(endpoint, seconds)

    async def send(self, sock: socket.socket, data: bytes, seconds: float) -> None:
        sock.settimeout(seconds)
        sock.sendall(data)

    async def receive(self, sock: socket.socket, seconds: float) -> bytes:
        sock.settimeout(seconds)
        return sock.recv(CHUNK)

    async def ask(self, domain: Domain | SshGuest, text: str, seconds: float) -> str:
        import concurrent.futures  # rarely needed, and slow to import

        reply = domain.ask(text, seconds)
        try:
            return reply.result(seconds)
        except concurrent.futures.TimeoutError:
            raise TimeoutError from None  # in Python 3.10 these are two different classes
        finally:
            reply.cancel()

"""A host's hold on one agent, for a thread that may block.

What is said to the agent, and when, is in `link.py` and `holding.py`; `aio.py` does the same for asyncio.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import calls
from .calls import Call
from .errors import FreezeBroken, HostError
from .holding import Freeze, Holding, Pause, Script, Wanted, note
from .methods import Methods
from .transports import Endpoint
from .wire import Wire, drive

T = TypeVar("T")


class _Stop(Exception):
    """The block has ended; nothing is to be extended any more."""


class Agent(Methods):
    """One agent by its URL. It connects at the first call and keeps the connection; calls of threads take turns."""

    def _set_up(self, endpoint: Endpoint) -> None:
        self._wire = Wire(endpoint)
        self._lock = threading.Lock()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            self._link.open = False
            self._wire.close()

    def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Return what the call returns; `timeout` in the place of the agent's."""
        with self._lock:
            return self._wire.run(self._link, self._link.perform(call, timeout))

    @contextlib.contextmanager
    def frozen(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        strict: bool = False,
        hold: float | None = None,
        extend: bool = False,
        sync_limit: float | None = None,
        freeze_limit: float | None = None,
        thaw_wait: float = calls.THAW_WAIT,
    ) -> Iterator[Freeze]:
        """Hold the guest frozen while the block runs, and thaw it whatever happens.

        Raises FreezeBroken after the block if the guest was not held frozen all the time, also NotThawed if it could
        not be told to thaw. An exception of the block comes first, with that as a note. `hold` is the agent's limit in
        seconds; `extend` has it extended as long as the block runs, from a thread with a connection of its own.
        """
        wanted = Wanted(include, exclude, strict, hold, sync_limit, freeze_limit)
        holding = Holding(self.url, wanted, thaw_wait=thaw_wait)
        freeze = self._play(holding.begin())
        stop = threading.Event()
        extender = threading.Thread(target=self._extend, args=(holding, stop), daemon=True, name="virtagent hold")
        try:
            if extend:
                extender.start()
            yield freeze
        except BaseException as error:
            stop.set()
            try:
                self._play(holding.end())
            except FreezeBroken as broken:
                note(error, f"besides: {broken}")
            raise
        else:
            stop.set()
            self._play(holding.end())
        finally:
            if extender.ident is not None:
                extender.join()

    def _play(self, script: Script[T]) -> T:
        never = threading.Event()

        def take(step: Call[Any] | Pause) -> Any:
            return never.wait(step.seconds) if isinstance(step, Pause) else self.carry_out(step)

        return drive(script, take)

    def _extend(self, holding: Holding, stop: threading.Event) -> None:
        # A channel that takes one client at a time has no second connection: then it is done on the first.
        alone = False
        with Agent(self.url, **self._options) as own, contextlib.suppress(_Stop):

            def take(step: Call[Any] | Pause) -> Any:
                if isinstance(step, Pause):
                    if stop.wait(step.seconds):
                        raise _Stop
                    return None
                nonlocal alone
                try:
                    if not alone:
                        return own.carry_out(step, holding.patience)
                except HostError:
                    alone = True
                if stop.is_set():
                    raise _Stop
                return self.carry_out(step, 4 * holding.patience)

            drive(holding.extension(), take)

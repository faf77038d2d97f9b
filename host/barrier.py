"""A freeze that waits at a barrier: made ready first, then let go together with those of other guests. No I/O.

The agent plans and syncs at once and waits in phase ready (va.fsfreeze with `at`) until va.fsgo sets the instant. What
no coordinator lets go in time freezes by itself at the end of READY_SECONDS, and is thawed at the end of its hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ..agent.api.errors import Code, Fault
from ..agent.api.records import Status
from . import calls
from .errors import FreezeBroken
from .holding import Freeze, Holding, Script, Wanted

READY_SECONDS = 240.0  # how far ahead the instant is at first; the agent allows 300, and its clock may be another
_AT_ONCE = 0.001  # seconds that the call waits, which is for a job that takes long


class Barrier(Holding):
    """One freeze: `prepare` it, let it `go`, then `end` it; `call_off` ends it before `go`."""

    def __init__(self, url: str, wanted: Wanted, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(url, wanted, clock=clock)
        self.prepared = False
        """Whether the freeze waits, so that `go` or `call_off` must be run."""

    @property
    def extends(self) -> bool:
        """Whether the hold is to be extended as long as it is wanted."""
        return self._wanted.extend

    @property
    def freeze(self) -> Freeze:
        """The freeze that is held; there must be one."""
        assert self._freeze is not None, "nothing is frozen"
        return self._freeze

    def prepare(self, within: float) -> Script[None]:
        """Have all planned and synced within so many seconds; raise what prevents it, and then nothing is frozen."""
        until = self._clock() + within
        wanted = self._wanted.freeze()
        (options,) = wanted.params
        call = replace(wanted, params=(options | {"at": time.time() + READY_SECONDS, "wait": _AT_ONCE},), wait=_AT_ONCE)
        try:
            try:
                yield call
            except Fault as fault:
                if fault.code is not Code.IN_PROGRESS:
                    raise
            else:
                raise FreezeBroken(f"{self.url} froze at once, though it was to wait; it was told to thaw")
            self.prepared = True
            status = yield from self._until("ready", until)
            self._freeze_id = status.freeze_id
        except GeneratorExit:
            raise
        except BaseException as error:
            if self.prepared or not isinstance(error, Fault):
                yield from self._undo(error)
            self.prepared = False
            raise

    def go(self, at: float | None, within: float) -> Script[Freeze]:
        """Freeze at that time of day (None: now); return when all is frozen, at the latest `within` seconds later.

        If the agent or the caller raises an exception, what can be reached is thawed.
        """
        until = self._clock() + within + (max(0.0, at - time.time()) if at is not None else 0.0)
        try:
            yield calls.go(at)
            status = yield from self._until("hold", until)
            self.begun, now = self._clock(), time.time()
            count = sum(mount.state == "frozen" for mount in status.mounts)
            self.prepared = False
            return self._held(count, now, status)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.prepared = False
            yield from self._undo(error)
            raise

    def call_off(self) -> Script[None]:
        """End the freeze that waits; raise NotThawed or FreezeBroken if that is not known to have worked."""
        self.prepared = False
        yield from self._thaw()

    def _until(self, phase: str, until: float) -> Script[Status]:
        """Return the status in which the freeze is in that phase; raise how it ended if it has ended before."""
        status: Status = yield calls.status()
        while status.phase != phase:
            if status.state not in ("INPROGRESS", "FROZEN"):
                why = status.last.error if status.last is not None and status.last.error else f"it is {status.state}"
                raise Fault(Code.FREEZE_FAILED, f"{self.url} did not get to phase {phase}: {why}")
            left = until - self._clock()
            if left <= 0:
                raise Fault(Code.OVERRUN, f"{self.url} did not get to phase {phase} in time; it is in {status.phase}")
            status = yield calls.status(status.seq, min(left, calls.STATUS_WAIT))
        return status

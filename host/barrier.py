"""A freeze that waits at a barrier: made ready first, then let go together with those of other guests. No I/O.

The agent plans and syncs at once and waits in phase ready (va.fsfreeze with `at`) until va.fsgo sets the instant. What
no coordinator lets go is called off (`attended`): when its connection ends, where the agent sees that, and at the
latest at the end of READY_SECONDS. So the same connection is used from prepare to go.
An agent that cannot wait is synced, and frozen when the others are let go; a stock qemu-ga is not even synced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ..agent.api.errors import Code, Fault
from ..agent.api.records import Capabilities, Status
from ..agent.api.states import Outcome
from . import calls
from .errors import FreezeBroken, Unsupported
from .holding import Freeze, Holding, Script, Wanted

READY_SECONDS = 240.0  # until it is called off if it is not let go; the agent allows 300
PREPARE_SECONDS = READY_SECONDS - 10  # until all are ready: then none is called off while it waits for the others
FREEZE_SECONDS = 60.0  # until all are frozen after the instant
_SYNCS = "it is still in phase sync"
_AT_ONCE = 0.001  # seconds that the call waits, which is for a job that takes long
_ENDED = {Outcome.VETOED.value: Code.VETOED, Outcome.OVERRAN.value: Code.OVERRUN}


class Barrier(Holding):
    """One freeze: `prepare` it, let it `go`, then `end` it; `call_off` ends one that is not to be, or has failed."""

    def __init__(self, url: str, wanted: Wanted, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(url, wanted, clock=clock)
        self.prepared = False
        """Whether the freeze waits, or did and failed, so that `go` or `call_off` must be run."""
        self.cannot_wait = ""
        """Why the guest freezes when it is let go and not before, and is not ready for it; "" if it waits."""
        self._seq = -1

    @property
    def extends(self) -> bool:
        """Whether the hold is to be extended as long as it is wanted."""
        return self._wanted.extend

    @property
    def freeze(self) -> Freeze:
        """The freeze that is held; there must be one."""
        assert self._freeze is not None, "nothing is frozen"
        return self._freeze

    def prepare(self, within: float = PREPARE_SECONDS) -> Script[None]:
        """Have all planned and synced within so many seconds; raise what prevents it, and then nothing is frozen."""
        until = self._clock() + within
        self._freeze_id = None  # of one that was made ready before, and called off
        wanted = self._wanted.freeze()
        (options,) = wanted.params
        at = (yield from self._guest_time()) + READY_SECONDS
        try:
            more = {"at": at, "attended": True, "wait": _AT_ONCE}
            call = replace(wanted, params=(options | more,), wait=_AT_ONCE)
            try:
                yield call
            except Unsupported as error:
                self.cannot_wait = f"a stock qemu-ga neither syncs first nor waits ({error})"
                return
            except Fault as fault:
                # Through libvirt a refusal has no code of the agent's.
                if fault.code in (Code.PARAMS, Code.FAILED) and (yield from self._knows_no_instant()):
                    yield self._wanted.sync()
                    return
                if fault.code is not Code.IN_PROGRESS:
                    raise
            else:
                raise FreezeBroken(f"{self.url} froze at once, though it was to wait; it was told to thaw")
            self.prepared = True
            status = yield from self._until("ready", until)
            self._freeze_id, self._seq = status.freeze_id, status.seq
        except GeneratorExit:
            raise
        except BaseException as error:
            if self.prepared or not isinstance(error, Fault):
                yield from self._undo(error)
            raise

    def _guest_time(self) -> Script[float]:
        """Return the time of day in the guest, whose clock may be wrong by hours; where that is not told, ours."""
        try:
            nanoseconds = yield calls.call("guest-get-time")
        except Fault:  # it may be blocked
            return time.time()
        return nanoseconds / 1e9 if isinstance(nanoseconds, int) and 0 <= nanoseconds < 1 << 63 else time.time()

    def _knows_no_instant(self) -> Script[bool]:
        able: Capabilities = yield calls.capabilities()
        if "va.fsgo" not in able.methods:
            self.cannot_wait = f"virtagentd {able.version} knows no va.fsgo; it was synced first"
        return bool(self.cannot_wait)

    def go(self, at: float | None = None, within: float = FREEZE_SECONDS) -> Script[Freeze]:
        """Freeze at that time of day by the guest's clock (None: now); return when all is frozen.

        That is at the latest `within` seconds later. If the agent or the caller raises an exception, it is for
        `call_off` to thaw.
        """
        if self.cannot_wait:
            return (yield from self.begin())
        until = self._clock() + within + (max(0.0, at - time.time()) if at is not None else 0.0)
        try:
            yield calls.go(at)
            status = yield from self._until("hold", until, since=self._seq)
            self.begun, now = self._clock(), time.time()
            count = sum(mount.state == "frozen" for mount in status.mounts)
            self.prepared = False
            return self._held(count, now, status)
        except GeneratorExit:
            raise
        except BaseException as error:
            yield from self._undo(error)
            raise

    def _undo(self, error: BaseException) -> Script[None]:
        """Leave it to `call_off`: the others of the group are not to stand still until a slow thaw has ended."""
        self._freeze, self.prepared = None, True
        yield from ()

    def call_off(self) -> Script[None]:
        """End the freeze that waits or failed; raise NotThawed or FreezeBroken if that is not known to have worked."""
        self.prepared = False
        yield from self._thaw()

    def _until(self, phase: str, until: float, since: int | None = None) -> Script[Status]:
        """Return the status in which the freeze is in that phase; raise how it ended if it has ended before.

        It may have to wait until the writers of another one are let go.
        """
        status: Status = yield calls.status(since, max(0.0, min(until - self._clock(), calls.STATUS_WAIT)))
        while status.phase != phase:
            if status.state == "FROZEN" and phase == "ready":
                raise FreezeBroken(
                    f"{self.url} froze before it was let go; see that its clock does not differ from the host's"
                )
            others = status.state == "THAWED" and status.phase in ("prepare", "release")
            if status.state not in ("INPROGRESS", "FROZEN") and not others:
                last = status.last
                why = last.error if last is not None and last.error else f"the state is {status.state}"
                raise Fault(_ENDED.get(last.outcome if last else "", Code.FREEZE_FAILED), why)
            left = until - self._clock()
            if left <= 0:
                stands = _SYNCS if status.phase == "sync" else f"it is in phase {status.phase}"
                raise Fault(Code.OVERRUN, f"{self.url} did not get to phase {phase} in time; {stands}")
            status = yield calls.status(status.seq, min(left, calls.STATUS_WAIT))
        return status


def syncs_still(error: Exception) -> bool:
    """Return whether a guest is not ready only because it syncs; what it has written by then it need not write again.

    It is known by the sentence, of which a relay hands on nothing else.
    """
    return _SYNCS in str(error)

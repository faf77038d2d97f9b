"""A freeze around a block of code: what to ask the agent, in which order, and whether the freeze was good. No I/O.

A script is a generator that yields a Call or a Pause and is sent the result; a thread or an event loop runs it.
Whatever happens in the block, the guest is told to thaw, and asked whether it held the freeze all the time since the
answer to freeze. A freeze that is not known to be good counts as broken.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from ..agent.api.errors import Code, Fault
from ..agent.api.records import Last, Status
from . import calls
from .calls import Call, Texts
from .errors import BadReply, FreezeBroken, HostError, Lost, NothingFrozen, NotThawed, TimedOut, Unsendable, Unsupported
from .guest_status import Tell

T = TypeVar("T")

INTERRUPTS = 2  # so many Ctrl-C or cancellations do not prevent the thaw
THAW_AGAIN_FIRST, THAW_AGAIN_MAX = 0.1, 2.0  # seconds
EXTEND_SECONDS = 2.5
_FACTOR = 3  # a hold is extended when a third of it has passed
_NUMBER_MAX = 2**31 - 1  # the largest int of XML-RPC
_PAUSE_MAX = 3600.0  # whatever a guest says about its hold


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CallOnOwnConnection:
    """A call to carry out within so many seconds; `apart`: not on the connection of the other calls."""

    call: Call[Any]
    seconds: float
    apart: bool


Script = Generator["Call[Any] | Pause", Any, T]
Span = tuple[float, float]
"""When the first and the last of several guests was frozen, in seconds of the monotonic clock."""


class Options(TypedDict, total=False):
    """How to freeze, as the options of `frozen`: see `Wanted`."""

    strict: bool
    partial: bool
    writers: str | None
    hold: float | None
    extend: bool
    sync_limit: float | None
    freeze_limit: float | None
    thaw_wait: float
    progress: Tell | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to freeze and how. Times are in seconds.

    `partial` leaves out what cannot be frozen; `writers` says which take part ("all", "try", "none"; None: as the agent
    is configured). `hold` is the hold limit, None for the agent's own; `extend`: extend it; `thaw_wait` is how long to
    try the thaw. `progress` is called with each status record from before the freeze until after the thaw.
    """

    include: Texts = ()
    exclude: Texts = ()
    strict: bool = False
    partial: bool = False
    writers: str | None = None
    hold: float | None = None
    extend: bool = False
    sync_limit: float | None = None
    freeze_limit: float | None = None
    thaw_wait: float = calls.THAW_WAIT
    progress: Tell | None = None

    def __post_init__(self) -> None:
        """Take the selectors now, so that each call has the same; raise TypeError if one is no string."""
        for name in ("include", "exclude"):
            object.__setattr__(self, name, calls.texts(name, getattr(self, name)))

    def freeze(self) -> Call[int]:
        """Return the call that freezes."""
        return calls.freeze(
            self.include,
            self.exclude,
            strict=self.strict,
            partial=self.partial,
            writers=self.writers,
            sync_limit=self.sync_limit,
            freeze_limit=self.freeze_limit,
            hold_limit=self.hold,
        )

    def sync(self) -> Call[int]:
        """Return the call that syncs the same file systems."""
        return calls.sync(self.include, self.exclude, partial=self.partial, sync_limit=self.sync_limit)


@dataclass(slots=True)
class Freeze:
    """A freeze that is or was held. With a stock qemu-ga only `count` is known; the rest is -1 or empty.

    `frozen_at` is when the host learned of it (seconds since the epoch), `hold_seconds` how long it was to be held
    then, or when the hold was extended last.
    `not_extended` is why the last try to extend the hold failed, `not_followed` why `progress` was not told (any more),
    `cannot_wait` why it could not be made ready beforehand with the others of its group.
    After the block, `ended` is the record after the thaw, None if it is not known, and `broken` says why a snapshot
    that was taken in it is worthless; None if it is good.
    """

    count: int
    freeze_id: int
    mounts: tuple[str, ...]
    frozen_at: float
    hold_seconds: float
    status: Status
    held_seconds: float = -1
    broken: FreezeBroken | None = None
    not_extended: str = ""
    not_followed: str = ""
    cannot_wait: str = ""
    ended: Status | None = None
    _since: float = field(default_factory=time.monotonic, repr=False)

    @property
    def hold_left(self) -> float:
        """Seconds until the agent thaws by itself, 0 when that is due, -1 if the hold has no limit or is not known."""
        if self.hold_seconds < 0:
            return -1.0
        return max(0.0, self.hold_seconds - (time.monotonic() - self._since))

    @property
    def last(self) -> Last | None:
        """How it ended, as the agent says; None if that is not known."""
        return self.ended.last if self.ended else None

    def extended(self, seconds: float) -> None:
        """Take note that the freeze is held for so many seconds from now."""
        self.hold_seconds, self._since = seconds, time.monotonic()


class Holding:
    """One freeze: `begin` it, then `end` it."""

    def __init__(self, url: str, wanted: Wanted, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._wanted = wanted
        self._clock = clock
        self._freeze: Freeze | None = None
        self._freeze_id: int | None = None  # so that no thaw of ours ends the freeze of another host
        self.begun = self.ended = 0.0
        """When the host learned that all is frozen, and when it began to ask for the thaw; seconds of the clock."""
        self.begun_by_agent = -1.0
        """When all was frozen according to the agent, -1 if it does not say."""
        self.undo_failed: FreezeBroken | None = None
        """Why a `begin` that failed could not undo everything that it did."""

    @property
    def frozen(self) -> bool:
        """Whether `begin` has frozen, so that `end` must be run."""
        return self._freeze is not None

    @property
    def patience(self) -> float:
        """Seconds that one try to extend the hold may take."""
        assert self._freeze is not None, "nothing is frozen"
        return min(EXTEND_SECONDS, max(0.0, self._freeze.hold_seconds) / 4)

    def begin(self) -> Script[Freeze]:
        """Freeze. If the agent or the caller raises an exception, everything that can be reached is thawed."""
        frozen = False
        try:
            count = yield self._wanted.freeze()
            self.begun = self._clock()
            at = time.time()
            frozen = True
            if not count:
                raise NothingFrozen(
                    f"{self.url} froze nothing: the agent leaves every file system out; see what `plan` says"
                )
            status: Status = yield calls.status()
            self._freeze_id = ours(status)
            if status.state != "FROZEN":
                raise FreezeBroken(f"{self.url} was frozen, and is {status.state} already; {_why(status)}")
            return self._held(count, at, status)
        except GeneratorExit:
            raise
        except BaseException as error:
            if frozen or _may_be_frozen(error):
                yield from self._undo(error)
            raise

    def _held(self, count: int, at: float, status: Status) -> Freeze:
        if status.phase == "hold" and status.since >= 0:
            self.begun_by_agent = self._clock() - status.since
        mounts = tuple(mount.mountpoint for mount in status.mounts if mount.state == "frozen")
        self._freeze = Freeze(count, status.freeze_id, mounts, at, status.hold_left, status)
        return self._freeze

    def _undo(self, error: BaseException) -> Script[None]:
        """Thaw because of `error`, which is told what that could not."""
        self._freeze = None
        try:
            yield from self._thaw()
        except FreezeBroken as worse:
            self.undo_failed = worse
            note(error, worse)

    def end(self) -> Script[None]:
        """Thaw; raise FreezeBroken if the freeze is not known to have been held all the time."""
        assert self._freeze is not None, "nothing is frozen"
        freeze = self._freeze
        self.ended = self._clock()
        # This holds until the freeze is known to be good.
        freeze.broken = FreezeBroken(f"{self.url}: how the freeze ended was not asked; throw the snapshot away")
        try:
            thawed = yield from self._thaw()
            if thawed < freeze.count:
                raise FreezeBroken(
                    f"{self.url}: {freeze.count} file systems were frozen and {thawed} still were at the thaw; "
                    "someone else thawed, or the thaw's first answer was lost: throw the snapshot away"
                )
            if not freeze.status.stock:
                yield from self._check(freeze)
        except FreezeBroken as broken:
            freeze.broken = broken
            why = broken.__cause__
            if isinstance(why, Fault) and why.code is Code.FREEZE_BROKEN and not freeze.status.stock:
                with contextlib.suppress(Fault, HostError):  # it answers, and knows more of what broke the freeze
                    freeze.ended = yield calls.status()
            raise
        freeze.broken = None

    def _check(self, freeze: Freeze) -> Script[None]:
        try:
            freeze.ended = yield calls.status()
        except (Fault, HostError) as error:
            raise FreezeBroken(
                f"{self.url}: how the freeze ended is not known ({error}); throw the snapshot away"
            ) from error
        last = freeze.last
        if last is None or last.freeze_id != freeze.freeze_id or not last.held_continuously:
            how = f"{last.freeze_id} {last.outcome} {last.error}".strip() if last else "none"
            raise FreezeBroken(
                f"{self.url}: freeze {freeze.freeze_id} was not held without a break (the last is {how}); "
                "throw the snapshot away"
            )
        freeze.held_seconds = last.held_seconds

    def _thaw(self) -> Script[int]:
        """Ask for the thaw until there is an answer, in spite of some interruptions, which are raised afterwards.

        A thaw may be asked for twice: the second thaws what the first did not. Raises FreezeBroken or NotThawed.
        """
        try:
            return (yield from self._ask_to_thaw())
        except (Fault, Unsupported, Unsendable) as error:
            unsure = isinstance(error, Fault) and error.code in (Code.IN_PROGRESS, Code.FAILED)
            kind = NotThawed if unsure else FreezeBroken
            text = error.text if isinstance(error, Fault) else str(error)
            raise kind(f"{self.url}: {text}; throw the snapshot away") from error

    def _ask_to_thaw(self) -> Script[int]:
        until = self._clock() + self._wanted.thaw_wait
        again = THAW_AGAIN_FIRST
        interrupted: BaseException | None = None
        interrupts = 0
        while True:
            left = max(1.0, until - self._clock())
            try:
                try:
                    thawed: int = yield calls.thaw(left, freeze_id=self._freeze_id)
                    break
                except Fault as fault:
                    if fault.code is Code.PARAMS and self._freeze_id is not None:
                        self._freeze_id = None  # an agent of version 0.1 cannot be told which one
                        continue
                    if fault.code is not Code.IN_PROGRESS or self._clock() >= until:
                        raise
                except (Unsupported, Unsendable):
                    raise
                except HostError as error:
                    if self._clock() >= until:
                        raise NotThawed(
                            f"{self.url} may be frozen, since no thaw was answered within {self._wanted.thaw_wait:g} s "
                            f"({error}); throw the snapshot away"
                        ) from error
                yield Pause(again)
                again = min(again * 2, THAW_AGAIN_MAX)
            except (Exception, GeneratorExit):
                raise
            except BaseException as interrupt:
                interrupts += 1
                if interrupts > INTERRUPTS:
                    raise
                interrupted = interrupt
        if interrupted is not None:
            raise interrupted
        return thawed

    def extension(self, *, apart: bool = True) -> Generator[CallOnOwnConnection | Pause, Any, None]:
        """Extend the hold again and again, until this is closed or the agent holds nothing any more.

        `apart`: on a connection of its own; if that fails, as on a channel that takes one client at a time, on the one
        of the other calls.
        """
        assert self._freeze is not None, "nothing is frozen"
        hold = calls.hold(self._freeze.hold_seconds if self._wanted.hold is None else self._wanted.hold)
        left = self._freeze.hold_seconds
        while left > 0:
            yield Pause(min(left / _FACTOR, _PAUSE_MAX))
            try:
                try:
                    left = yield CallOnOwnConnection(hold, self.patience if apart else 4 * self.patience, apart)
                except HostError:
                    if not apart:
                        raise
                    apart = False
                    left = yield CallOnOwnConnection(hold, 4 * self.patience, apart)
                self._freeze.extended(left)
            except Fault as fault:
                self._freeze.not_extended = str(fault)
                if fault.code is Code.WRONG_STATE:
                    return
                left = min(left, 1.0)
            except HostError as error:
                self._freeze.not_extended = str(error)
                left = min(left, 1.0)


def only(guests: Mapping[str, Freeze]) -> Freeze:
    """Return the one freeze that there is; raise ValueError if there are more."""
    if len(guests) != 1:
        raise ValueError(f"{', '.join(guests)[:400]} are {len(guests)} guests, expected one; use a group")
    return next(iter(guests.values()))


def note(error: BaseException, more: BaseException | str) -> None:
    """Add what else is wrong to the traceback of `error` (shown from Python 3.11 on)."""
    words = more if isinstance(more, str) else f"besides: {more}"
    error.__notes__ = [*notes(error), words]  # type: ignore[attr-defined,unused-ignore]


def notes(error: BaseException) -> list[str]:
    """Return the notes of `error`."""
    return list(getattr(error, "__notes__", ()))


def _may_be_frozen(error: BaseException) -> bool:
    """Return whether a freeze that ended with `error` may go on, or may have frozen something."""
    match error:
        case Fault(code=code):
            return code is Code.IN_PROGRESS
        case Lost() | TimedOut() | BadReply():
            return error.asked
        case HostError() | Unsendable():
            return False
    return True


def ours(status: Status) -> int | None:
    """Return the number of the freeze that has just been answered, None if the agent tells none that can be sent."""
    over = status.state == "INPROGRESS"  # a later one, of another host
    number = status.freeze_id if not over else status.last.freeze_id if status.last else -1
    return number if 0 < number <= _NUMBER_MAX else None


def _why(status: Status) -> str:
    return status.last.error if status.last and status.last.error else "look at the agent's log"

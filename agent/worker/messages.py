"""The messages between workers and supervisor, and their msgpack codec. Pure: the pipes are elsewhere.

A message is a msgpack array [name, field, ...]. A frame is what one write to the pipe carries: at most PIPE_BUF bytes,
so that threads may write without a lock (pipe(7)). A longer message travels as frames ["Part", bytes] and a last
["Whole"]; other frames may come between them, since only one thread of a worker sends a long message at a time.
"""

from __future__ import annotations

import math
import select
from typing import Any, ClassVar

import msgpack

from ..api.structs import Value, field

PIPE_BUF = select.PIPE_BUF
MESSAGE_MAX = 66 << 20  # 48 MiB of a file as base64, and the rest of the message
_PART = PIPE_BUF - 16


class Rubbish(Exception):
    """The peer sent bytes that are not a message: not msgpack, of the wrong shape, or too long."""


Shape = tuple[type | tuple[type, ...], ...]
_NUMBER = (int, float)
_PLAIN = frozenset({str, bytes, int})


class Started(Value):
    """The worker runs with this pid."""

    shape: ClassVar[Shape] = (int,)
    pid: int


class Plan(Value):
    """What the worker is going to freeze, said before it does anything else: `records.Plan.dump()`.

    `expedites`: 1 if it is going to expedite grace periods meanwhile (`rcu.Expediter`) and put them back afterwards.
    """

    shape: ClassVar[Shape] = (dict, int)
    plan: dict[str, Any]
    expedites: int = 0


class Step(Value):
    """One file system (index into the plan) has changed its state (a `MountState` value), or is about to."""

    shape: ClassVar[Shape] = (int, str, int, str, _NUMBER)
    mount: int
    state: str
    errno: int = 0
    error: str = ""
    seconds: float = 0.0


class Progress(Value):
    """The phase (a `Phase` value), the sync round, and the figures of the disks; -1 where unknown.

    `mounts` has, for file systems that are being synced, [index into the plan, bytes written since its sync began,
    bytes left, bytes a second, eta in seconds].
    """

    shape: ClassVar[Shape] = (str, int, int, int, _NUMBER, _NUMBER, list)
    phase: str
    round: int = 0
    dirty_bytes: int = -1
    flushed_bytes: int = -1
    bytes_per_second: float = -1
    eta: float = -1
    mounts: list[list[float]] = field(default_factory=list)


class Synced(Value):
    """The freeze worker has synced, and asks to proceed. Until it hears `Proceed` it freezes nothing."""

    shape: ClassVar[Shape] = ()


class Frozen(Value):
    """All has been frozen since `at` and is held until `until` (CLOCK_MONOTONIC seconds; `until` 0 means no limit)."""

    shape: ClassVar[Shape] = (int, _NUMBER, _NUMBER)
    count: int
    at: float
    until: float


class Held(Value):
    """The keeper has taken the new end of the hold (CLOCK_MONOTONIC seconds)."""

    shape: ClassVar[Shape] = (_NUMBER,)
    until: float


class Learnt(Value):
    """One file system (index into the plan) lies on one of these; if there are none, what was learnt is wrong.

    `ids` are those of their superblocks (`sysfs.superblock_id`), its own first.
    """

    shape: ClassVar[Shape] = (int, list, list)
    mount: int
    hosts: list[int]
    ids: list[str]


class Thawing(Value):
    """The freeze worker begins to thaw, `at` that CLOCK_MONOTONIC second; the `reason` is empty if it was told to.

    `code` is the number of the fault (`errors.Code`) if it gives up a freeze, else 0. `written` are the bytes written
    to the file systems' own devices while they were held, -1 if that is not known; `wrote` says so if there were any.
    """

    shape: ClassVar[Shape] = (str, _NUMBER, int, int, str)
    reason: str
    at: float
    code: int = 0
    written: int = -1
    wrote: str = ""


class Acquired(Value):
    """The worker holds what its RPC opened or started; `key` is its number (a handle, a pid), `value` the answer."""

    shape: ClassVar[Shape] = (int, object)
    key: int
    value: object


class Replied(Value):
    """The value for the `Ask` of call `call`."""

    shape: ClassVar[Shape] = (int, object)
    call: int
    value: object


class Declined(Value):
    """The fault for the `Ask` of call `call`: `errors.Code` number and sentence."""

    shape: ClassVar[Shape] = (int, int, str)
    call: int
    code: int
    text: str


class Releasable(Value):
    """The resource may be dropped when room is needed: a program that has ended, and that nobody asked about."""

    shape: ClassVar[Shape] = ()


class Acted(Value):
    """A writer has done a step (a `writers.Step` value), or has not: `outcome` is ok, refused, overran or lost.

    `text` says what went wrong. `info` is what whoever restores wants to know.
    """

    shape: ClassVar[Shape] = (str, str, str, dict)
    step: str
    outcome: str
    text: str
    info: dict[str, Any]


class Done(Value):
    """The RPC's value: str, bytes, number, bool, list or dict of those."""

    shape: ClassVar[Shape] = (object,)
    value: object


class Failed(Value):
    """The RPC's fault: `errors.Code` number and sentence."""

    shape: ClassVar[Shape] = (int, str)
    code: int
    text: str


class Sync(Value):
    """To the freeze worker, which has planned and waits: the writers are prepared, the sync may begin."""

    shape: ClassVar[Shape] = ()


class Proceed(Value):
    """To the freeze worker, which has synced: the plan is in the journal, freezing may begin."""

    shape: ClassVar[Shape] = ()


class Thaw(Value):
    """To the keeper: thaw now."""

    shape: ClassVar[Shape] = ()


class Hold(Value):
    """To the keeper: hold until this CLOCK_MONOTONIC second. To a writer: let go by itself only after it."""

    shape: ClassVar[Shape] = (_NUMBER,)
    until: float


class Ask(Value):
    """To a worker that holds a resource: run this RPC's handler on it, for call `call`."""

    shape: ClassVar[Shape] = (int, str, dict)
    call: int
    rpc: str
    args: dict[str, Any]


class Drop(Value):
    """To a worker that holds a resource: drop it, and end."""

    shape: ClassVar[Shape] = ()


class Act(Value):
    """To a writer: do this step (a `writers.Step` value) within `limit` seconds, 0 for no limit.

    `verdict` is for the release: good, or bad if whoever took the image is to throw it away.
    """

    shape: ClassVar[Shape] = (str, _NUMBER, str)
    step: str
    limit: float
    verdict: str = ""


Report = (
    Started
    | Plan
    | Step
    | Progress
    | Synced
    | Frozen
    | Held
    | Learnt
    | Thawing
    | Acquired
    | Replied
    | Declined
    | Releasable
    | Acted
    | Done
    | Failed
)
Control = Sync | Proceed | Thaw | Hold | Ask | Drop | Act

REPORTS: dict[str, type[Report]] = {
    c.__name__: c
    for c in (
        Started,
        Plan,
        Step,
        Progress,
        Synced,
        Frozen,
        Held,
        Learnt,
        Thawing,
        Acquired,
        Replied,
        Declined,
        Releasable,
        Acted,
        Done,
        Failed,
    )
}
CONTROLS: dict[str, type[Control]] = {c.__name__: c for c in (Sync, Proceed, Thaw, Hold, Ask, Drop, Act)}


def encode(message: Report | Control) -> list[bytes]:
    """Return the frames of `message`, each at most PIPE_BUF bytes, to be written by one write each.

    Text travels as UTF-8 with lone surrogates, so that a path is the very bytes that the kernel gave.
    Raises ValueError if the message is longer than MESSAGE_MAX or has a value that msgpack cannot carry.
    """
    fields = [getattr(message, name) for name in message.__match_args__]
    try:
        packed: bytes = msgpack.packb([type(message).__name__, *fields], unicode_errors="surrogateescape")
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(message).__name__}: {error}") from None
    if not all(type(value) in _PLAIN or _known(value) for value in fields):
        raise ValueError(f"{type(message).__name__} with a value that no field has")
    if len(packed) <= PIPE_BUF:
        return [packed]
    if len(packed) > MESSAGE_MAX:
        raise ValueError(f"message of {len(packed)} bytes is over {MESSAGE_MAX}")
    # ADR 0002: frames of PIPE_BUF, each one atomic write
    parts = [msgpack.packb(["Part", packed[i : i + _PART]]) for i in range(0, len(packed), _PART)]
    return [*parts, msgpack.packb(["Whole"])]


class Decoder:
    """A decoder from the bytes of one pipe to messages. It stores at most MESSAGE_MAX bytes."""

    def __init__(self, messages: dict[str, type[Any]], message_max: int = MESSAGE_MAX) -> None:
        self._messages = messages
        self._max = message_max
        self._frames = self._unpacker(PIPE_BUF * 32)
        self._parts = bytearray()

    @staticmethod
    def _unpacker(size: int) -> Any:
        return msgpack.Unpacker(
            raw=False, strict_map_key=True, max_buffer_size=size, unicode_errors="surrogateescape", use_list=True
        )

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes; raise Rubbish, after which the decoder must not be used."""
        found: list[Any] = []
        for i in range(0, len(data), PIPE_BUF):
            try:
                self._frames.feed(data[i : i + PIPE_BUF])
                for frame in self._frames:
                    self._take(frame, found)
            except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
                raise Rubbish(f"not a msgpack message: {type(error).__name__} {error}") from None
        return found

    def _take(self, frame: Any, found: list[Any]) -> None:
        match frame:
            case ["Part", bytes(part)]:  # ADR 0002: other messages may come between the parts
                if len(self._parts) + len(part) > self._max:
                    raise Rubbish(f"message over {self._max} bytes")
                self._parts += part
            case ["Whole"]:
                whole, self._parts = self._parts, bytearray()
                one = msgpack.unpackb(whole, raw=False, unicode_errors="surrogateescape", strict_map_key=True)
                found.append(self._shaped(one))
            case _:
                found.append(self._shaped(frame))

    def _shaped(self, frame: Any) -> Any:
        if not isinstance(frame, list) or not frame or not isinstance(frame[0], str):
            raise Rubbish(f"not a message: {str(frame)[:80]}")
        kind = self._messages.get(frame[0])
        if kind is None:
            raise Rubbish(f"unknown message {frame[0][:80]!r}")
        fields = frame[1:]
        shape: Shape = kind.shape
        if len(fields) != len(shape):
            raise Rubbish(f"{frame[0]} with {len(fields)} fields, expected {len(shape)}")
        for value, wanted in zip(fields, shape, strict=True):
            if type(value) in _PLAIN and isinstance(value, wanted):
                continue  # as nearly all of them
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not object) or not _known(value):
                raise Rubbish(f"{frame[0]} with a field of type {type(value).__name__}, or in it what no field has")
        return kind(*fields)


def _known(value: Any) -> bool:
    """Return whether `value` is made only of text, bytes, finite numbers, None, lists, and dicts with text as keys."""
    match value:
        case str() | bytes() | int() | None:
            return True
        case float():
            return math.isfinite(value)
        case list():
            return all(map(_known, value))
        case dict():
            return all(isinstance(key, str) for key in value) and all(map(_known, value.values()))
    return False

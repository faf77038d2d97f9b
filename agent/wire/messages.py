"""What every codec makes of the bytes of a channel: the same few facts, whatever the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request. `token` names it to `reply` and `fault` of the stream that it came from.

    `params` is the list of positional parameters, or (JSON) the dict of arguments.
    Values are str, int, float, bool, bytes, None, list and dict with str keys. `unheard` says that the host gave up on
    it before its turn came: it is to be done, but there is nobody to be told.
    """

    token: int
    method: str
    params: list[Any] | dict[str, Any]
    tag: str | None = None
    unheard: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The host has given up on this request: its reply will be dropped, never sent late."""

    token: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Bytes that are no request. The error reply already stands in the stream's output; this is for the log.

    `text` quotes nothing of a value: the bytes may be a secret that was sent malformed. A `reset` is a byte 0xFF where
    nothing was begun: a host that makes sure where it stands, which is no news.
    """

    code: int
    text: str
    reset: bool = False


Incoming = Request | Abandoned | Refused


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stream may cost: bytes of a header and of a body, levels of nesting."""

    header: int = 4096
    body: int = 2 << 20
    nesting: int = 64

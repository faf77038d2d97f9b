"""What the codecs make of the bytes of a connection: the same few records for every protocol."""

from __future__ import annotations

from typing import Any

from ..api import qemu
from ..api.structs import Value


class Request(Value):
    """A well-formed request. `token` names it to `reply` and `fault` of the session that it came from.

    `params` is the list of positional parameters, or (JSON) the dict of arguments.
    Values are str, int, float, bool, bytes, None, list and dict with str keys. `unheard`: the host gave up on it before
    its turn came, so it is to be done, but nobody reads the answer.
    """

    token: int
    method: str
    params: list[Any] | dict[str, Any]
    tag: str | None = None
    unheard: bool = False


class Abandoned(Value):
    """The host has given up on this request: its reply will be dropped, and never sent late."""

    token: int


class Refused(Value):
    """Bytes that are not a request. The error reply is already in the session's output; this is for the log.

    `text` quotes no value: the bytes may be a secret in a malformed request. `reset`: a byte 0xFF outside of any
    message, with which a host only makes sure where it stands; that is not worth a line in the log.
    """

    code: int
    text: str
    reset: bool = False


Incoming = Request | Abandoned | Refused


ITEMS_MAX = 100_000
"""Commas and brackets, or elements, of one request: what is made of them costs time, and memory many times theirs."""


class Shared(dict[str, Any]):
    """A value that is told to many and does not change: it keeps what is sent of it, once that is made.

    That is the pieces of a reply in XML, and its line of JSON.
    """

    pieces: tuple[bytes, ...] = ()
    line: bytes = b""


class Limits(Value):
    """What one session may cost: bytes of a header and of a body, levels of nesting. `qga`: whose texts it speaks."""

    header: int = 4096
    body: int = 2 << 20
    nesting: int = 64
    qga: qemu.Version = qemu.LATEST

"""The Kubernetes API as far as it is needed: one request with a bounded reply, and many simultaneously, in time.

Each request runs in a thread of its own that nobody needs to wait for, so that no server, however slowly it answers,
holds up what must be done next. The token is read for each request: Kubernetes replaces it about every hour.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import http.client
import json
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

REPLY_MAX = 8 << 20  # bytes
PAGE = 100  # objects of one reply to a list
PAGES_MAX = 100
LISTS = 3  # times that one is begun
SIMULTANEOUSLY = 32  # threads, not a client library: ADR 0035
REQUEST_SECONDS = 10.0
_SAID_MAX = 300  # characters of a server's message
_HALF = re.compile("[\ud800-\udfff]")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class KubeError(Exception):
    """What went wrong, in one sentence."""


class NoAnswer(KubeError):
    """The API server was not reached, or did not answer in time; what was asked may have happened."""


class Refused(KubeError):
    """The API server answered with an error; `status` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.status in (408, 409, 429) or self.status >= 500


class BadReply(KubeError):
    """What the API server sent is not what the API promises."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where the API server is, and what is shown to it and asked of it. Files are read for each request."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if the URL is none, or would carry the token in the clear."""
        try:
            parts = urllib.parse.urlsplit(self.url)
            sound = parts.port != 0  # raises ValueError for one over 65535
        except ValueError:
            sound = False
        if not sound or parts.scheme not in ("https", "http") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{self.url!r} is no API server; expected https://HOST[:PORT]")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"{self.url!r} would carry the token unencrypted; only a server on loopback may be http:")


def request(
    server: Server,
    method: str,
    path: str,
    body: Any = None,
    *,
    content: str = "application/json",
    seconds: float = REQUEST_SECONDS,
) -> Any:
    """Carry out one request; return the JSON of the reply, None if it has none or is to PUT. Raises KubeError.

    It may take some times `seconds` if the server sends byte by byte: `together` does not wait for it.
    """
    what = f"{method} {path.partition('?')[0]}"
    headers = {"Accept": "application/json", "Connection": "close"}
    if server.token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {server.token_file.read_text(encoding='ascii').strip()}"
        except (OSError, ValueError) as error:
            raise KubeError(f"the token in {server.token_file} cannot be read ({_why(error)})") from None
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = content
    with contextlib.closing(_connection(server, seconds)) as connection:
        try:
            connection.request(method, path, data, headers)
            with connection.getresponse() as reply:
                text = reply.read(REPLY_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{what} had no answer from {server.url} ({_why(error)})") from None
        except ValueError:  # its text may have the token
            raise KubeError(f"{what} cannot be asked: {server.url} is no name of a host, or the token none") from None
    if len(text) > REPLY_MAX:
        raise BadReply(f"{what}: the reply is over {REPLY_MAX} bytes")
    if not 200 <= reply.status < 300:
        raise Refused(reply.status, f"{what}: {reply.status} {_said(text) or reply.reason}{_advice(reply.status)}")
    if method == "PUT" or not text.strip():
        return None  # KubeVirt promises no body
    try:
        return _loaded(text)
    except (ValueError, RecursionError) as error:
        why = (
            str(error) if isinstance(error, _Odd) else "it nests too deep" if isinstance(error, RecursionError) else ""
        )
        raise BadReply(f"{what}: the reply is no JSON" + (f" ({why})" if why else "")) from None


class _Odd(ValueError):
    """What the json module takes and JSON does not."""


def _loaded(text: bytes) -> Any:
    """Return the value of a JSON text; raise ValueError or RecursionError."""

    def constant(name: str) -> Any:
        raise _Odd(f"{name} is no number")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _Odd("it has a member twice")
        return found

    found = json.loads(text.decode(), parse_constant=constant, object_pairs_hook=members)
    if b"\\u" in text and _HALF.search(json.dumps(found, ensure_ascii=False)):
        raise _Odd("it has half of a surrogate pair")
    return found


def listed(server: Server, path: str, selector: str, *, seconds: float = REQUEST_SECONDS) -> list[Any]:
    """Return the objects of a list that match a label selector. Raises KubeError.

    A list whose next page has expired (410 Gone, after some minutes) is read again from its start.
    """
    for left in reversed(range(LISTS)):
        try:
            return list(_pages(server, path, selector, seconds))
        except Refused as error:
            if error.status != 410 or not left:
                raise
    raise AssertionError("the last one returns or raises")


def _pages(server: Server, path: str, selector: str, seconds: float) -> Iterator[Any]:
    onward = ""
    for _ in range(PAGES_MAX):
        query = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        query |= {"continue": onward} if onward else {}
        found = request(server, "GET", f"{path}?{urllib.parse.urlencode(query)}", seconds=seconds)
        items = found.get("items") if isinstance(found, dict) else None
        if not isinstance(items, list):
            raise BadReply(f"GET {path}: the reply is no list")
        yield from items
        metadata = found.get("metadata")
        onward = metadata.get("continue") or "" if isinstance(metadata, dict) else ""
        if not isinstance(onward, str):
            raise BadReply(f"GET {path}: the reply says {onward!r} where its next page should be")
        if not onward:
            return
    raise BadReply(f"GET {path}: the list has over {PAGES_MAX} pages")


def together(doing: Mapping[str, Callable[[], T]], seconds: float) -> dict[str, T | KubeError]:
    """Do all of it simultaneously; return each result, or its error, after at most so many seconds.

    What has not ended by then is left to end by itself, and counts as unanswered.
    """
    until = time.monotonic() + seconds
    results: dict[str, concurrent.futures.Future[T]] = {name: concurrent.futures.Future() for name in doing}
    left = collections.deque((do, results[name]) for name, do in doing.items())

    def run() -> None:
        while left and time.monotonic() < until:
            try:
                do, result = left.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                result.set_result(do())
            except BaseException as error:  # noqa: BLE001 - raised below
                result.set_exception(error)

    for number in range(min(len(doing), SIMULTANEOUSLY)):
        try:
            threading.Thread(target=run, daemon=True, name=f"kube {number}").start()
        except RuntimeError:  # the limit of processes, which may be that of the pod
            if not number:
                return {name: NoAnswer("no thread could be started to ask") for name in doing}
            break
    concurrent.futures.wait(results.values(), timeout=max(0.0, until - time.monotonic()))
    found: dict[str, T | KubeError] = {}
    for name, result in results.items():
        error = result.exception() if result.done() else NoAnswer(f"no answer within {seconds:.3g} s")
        if error is not None and not isinstance(error, KubeError):
            raise error
        found[name] = result.result() if error is None else error
    return found


def _connection(server: Server, seconds: float) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(server.url)
    assert parts.hostname is not None, "checked when it was made"
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
    try:
        context = ssl.create_default_context(cafile=server.ca_file)
    except OSError as error:
        raise KubeError(f"the certificates in {server.ca_file} cannot be used ({_why(error)})") from None
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=seconds, context=context)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _said(text: bytes) -> str:
    """Return the message of a Status object, or the text itself, on one line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text.decode(errors="replace")
    message = found.get("message") if isinstance(found, dict) else found
    return " ".join(str(message or "").split())[:_SAID_MAX]


def _advice(status: int) -> str:
    if status in (401, 403):
        return "; see that the service account has the rights of rbac.yaml"
    return "; see that KubeVirt and the snapshot controller are installed, and the name" if status == 404 else ""

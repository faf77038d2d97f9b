"""From a URL to a connected socket, with one row for each scheme; it does not know what is said on the socket."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import Unreachable
from .left_behind import frozen_words

DEFAULT_URL = "unix:/run/virtagent/virtagentd.sock"
GLOB = frozenset("*?[")
AGENTS_MAX = 1000  # of one relay
RECORD_MAX = 1 << 20  # bytes of one line that a relay takes
_PATH_MAX = 107  # sun_path of unix(7) without its closing NUL
_WORD_MAX = (1 << 32) - 2  # of a CID or port; 2^32 - 1 is "any" (vsock(7))


@dataclass(frozen=True, slots=True)
class Far:
    """Where a relay is started by ssh, and which agents of that host are meant; none: those that are named there."""

    url: str
    host: str
    port: int
    agents: tuple[str, ...]

    @property
    def name(self) -> str:
        """The URL without the agents, which may be many."""
        return f"ssh:{self.host}" + (f":{self.port}" if self.port else "")

    def guest(self, agent: str) -> str:
        """Return the URL of one agent there."""
        return f"{self.name}?agents={agent}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an agent listens: the URL as it was given, and what is needed to connect.

    That is the family and address of a socket and, for Firecracker's hybrid vsock, the line `hello` that names the
    port. Or it is a libvirt `domain` and its `connect` URI, or a relay by ssh (`far`). `stock`: the URL says that a
    stock qemu-ga is there.
    """

    url: str
    family: int = -1
    address: Any = ""
    hello: bytes = b""
    domain: str = ""
    connect: str | None = None
    stock: bool = False
    far: Far | None = None

    @property
    def passed_on(self) -> bool:
        """Whether somebody passes on whole commands, so that there is no stream to the agent."""
        return bool(self.domain) or self.far is not None


def _unix(url: str, rest: str) -> Endpoint:
    return Endpoint(url, socket.AF_UNIX, _path(url, rest, "unix:PATH"))


def _vsock(url: str, rest: str) -> Endpoint:
    cid, _, port = rest.partition(":")
    address = _number(url, cid, "CID", "vsock:CID:PORT"), _number(url, port, "port", "vsock:CID:PORT")
    return Endpoint(url, socket.AF_VSOCK, address)


def _firecracker(url: str, rest: str) -> Endpoint:
    path, _, port = rest.rpartition(":")
    number = _number(url, port, "port", "firecracker:PATH:PORT")
    return Endpoint(url, socket.AF_UNIX, _path(url, path, "firecracker:PATH:PORT"), b"CONNECT %d\n" % number)


def _libvirt(url: str, rest: str) -> Endpoint:
    domain, mark, query = rest.partition("?")
    connect = query.removeprefix("connect=")
    try:
        rest.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{url!r} is not UTF-8, as libvirt's names are") from None
    if not domain or "\0" in rest:
        raise ValueError(f"{url!r} names no domain; expected libvirt:DOMAIN[?connect=URI]")
    if mark and (connect == query or not connect):
        raise ValueError(f"{url!r} says {query!r} after the domain; expected libvirt:DOMAIN[?connect=URI]")
    return Endpoint(url, domain=domain, connect=connect or None)


def _ssh(url: str, rest: str) -> Endpoint:
    where, mark, query = rest.partition("?")
    expected = "expected ssh:[USER@]HOST[:PORT][?agents=GLOB[&agents=GLOB...]]"
    name, colon, port = where.rpartition(":")
    host = name if colon and port.isdecimal() else where
    # What begins with a dash would be an option of ssh.
    if not re.fullmatch(r"[A-Za-z0-9_.@\[\]:%][A-Za-z0-9_.@\[\]:%-]*", host) or "@-" in host:
        raise ValueError(f"{url!r} names no host; {expected}")
    number = _number(url, port, "port", expected) if host != where else 0
    agents = []
    for part in re.split("&(?=agents=)", query) if mark else ():
        agent = part.removeprefix("agents=")
        if agent == part or not agent:
            raise ValueError(f"{url!r} says {part!r} after the host; {expected}")
        agents.append(agent)
    return Endpoint(url, far=Far(url, host, number, tuple(agents)))


def _qemu_ga(url: str, rest: str) -> Endpoint:
    scheme = rest.partition(":")[0]
    if scheme in ("qemu-ga", "ssh") or scheme not in SCHEMES:
        raise ValueError(f"{url!r} says not where the qemu-ga listens; expected qemu-ga:unix:PATH")
    return replace(SCHEMES[scheme](url, rest.partition(":")[2]), stock=True)


SCHEMES: Mapping[str, Callable[[str, str], Endpoint]] = {
    "unix": _unix,
    "vsock": _vsock,
    "firecracker": _firecracker,
    "libvirt": _libvirt,
    "ssh": _ssh,
    "qemu-ga": _qemu_ga,
}


def parse(url: str) -> Endpoint:
    """Return the endpoint that `url` (SCHEME:REST) names; raise ValueError with a sentence if it is invalid."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        meant = f"did you mean unix:{url}?" if url.startswith("/") else ""
        raise ValueError(
            f"{url!r} is no agent's URL; {meant or 'expected ' + ' or '.join(f'{s}:...' for s in SCHEMES)}"
        )
    return SCHEMES[scheme](url, rest)


def _path(url: str, path: str, expected: str) -> str:
    if not path or "\0" in path:
        raise ValueError(f"{url!r} names no socket; expected {expected}")
    if len(os.fsencode(path)) > _PATH_MAX:
        raise ValueError(f"{url!r} is over the {_PATH_MAX} bytes of a socket's path; use a shorter one")
    return path


def _number(url: str, text: str, what: str, expected: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _WORD_MAX):
        raise ValueError(f"{url!r} has {text!r} for the {what}, which is no number up to {_WORD_MAX}; {expected}")
    return int(text)


def connect(endpoint: Endpoint, seconds: float) -> socket.socket:
    """Return a socket connected within `seconds`; raise Unreachable."""
    try:
        return _connected(endpoint, seconds)
    except OSError as error:
        raise refused(endpoint, error, seconds) from None


def refused(endpoint: Endpoint, error: OSError, seconds: float) -> Unreachable:
    """Return the exception for a connection that was refused, or took longer than `seconds`."""
    if isinstance(error, BlockingIOError | TimeoutError):
        why, advice = f"none within {seconds:.3g} s", "see that virtagentd is not stopped"
    elif isinstance(error, PermissionError):
        why, advice = str(error.strerror), "run this as the user who owns the socket"
    elif endpoint.family == socket.AF_VSOCK:
        cid, port = endpoint.address
        why, advice = str(error.strerror), f"see that virtagentd listens at vsock:{port} in the guest with CID {cid}"
        advice += ", and that the host has vhost_vsock"
    else:
        why, advice = str(error.strerror), "see that virtagentd runs and that the URL names its socket"
    if endpoint.family == socket.AF_UNIX and isinstance(error, ConnectionRefusedError | FileNotFoundError):
        advice = frozen_words(endpoint.address) or advice
    return Unreachable(f"no connection to {endpoint.url} ({why}); {advice}")


def _connected(endpoint: Endpoint, seconds: float) -> socket.socket:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        if endpoint.family == socket.AF_UNIX:
            # Only a blocking connect waits for room in the listener's queue. Its limit must not be 0, which means none.
            bound = divmod(max(1, int(seconds * 1e6)), 1_000_000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *bound))
        else:
            sock.settimeout(seconds)
        sock.connect(endpoint.address)
    except BaseException:
        sock.close()
        raise
    return sock

"""From a URL to a connected socket. One row a scheme; what is said over the socket is none of its business."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .errors import Unreachable

DEFAULT_URL = "unix:/run/virtagent/virtagentd.sock"
_PATH_MAX = 107  # sun_path of unix(7) without its closing NUL


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an agent listens: the URL as it was given, and what `socket` needs to go there."""

    url: str
    family: int
    address: str


def _unix(url: str, rest: str) -> Endpoint:
    if not rest or "\0" in rest:
        raise ValueError(f"{url!r} names no socket; expected unix:PATH")
    if len(os.fsencode(rest)) > _PATH_MAX:
        raise ValueError(f"{url!r} is over the {_PATH_MAX} bytes of a socket's path; use a shorter one")
    return Endpoint(url, socket.AF_UNIX, rest)


SCHEMES: Mapping[str, Callable[[str, str], Endpoint]] = {"unix": _unix}


def parse(url: str) -> Endpoint:
    """Return the endpoint that `url` (SCHEME:REST) names; raise ValueError with a sentence if it names none."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ValueError(f"{url!r} is no agent's URL; expected {' or '.join(f'{s}:...' for s in SCHEMES)}")
    return SCHEMES[scheme](url, rest)


def connect(endpoint: Endpoint, seconds: float) -> socket.socket:
    """Return a socket connected within `seconds`; raise Unreachable."""
    try:
        return _connected(endpoint, seconds)
    except BlockingIOError:
        why, advice = f"none within {seconds:.3g} s", "see that virtagentd is not stopped"
    except PermissionError as error:
        why, advice = str(error.strerror), "run this as the user who owns the socket"
    except OSError as error:
        why, advice = (
            str(error.strerror),
            "see that virtagentd runs and that --agent or $VIRTAGENT_AGENT names its socket",
        )
    raise Unreachable(f"no connection to {endpoint.url} ({why}); {advice}")


def _connected(endpoint: Endpoint, seconds: float) -> socket.socket:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        # On a unix socket only a blocking connect waits for room in the listener's queue. Its bound: 0 would be none.
        bound = divmod(max(1, int(seconds * 1e6)), 1_000_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *bound))
        sock.connect(endpoint.address)
    except BaseException:
        sock.close()
        raise
    return sock

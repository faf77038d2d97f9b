"""The values of the daemon's options, each made from its text by a function that gets the option's name, too."""

from __future__ import annotations

import shlex

from ..agent.api import qemu
from ..agent.api.methods import RPCS
from ..agent.api.params import seconds

LEVELS = ("err", "warning", "notice", "info", "debug")
TARGETS = ("stderr", "syslog", "journal")
SOCKET_PATH_MAX = 107  # bytes in the address of a unix socket
PORT_MAX = 2**32 - 2  # of vsock; the next number means any port
REQUESTS_MIN, REQUESTS_MAX = 4, 128  # BLKDEV_MIN_RQ, BLKDEV_DEFAULT_RQ of the kernel (include/linux/blkdev.h)
NESTING_MAX = 256  # repr and other recursive functions can go as deep


def to_text(name: str, text: str) -> str:
    """Return the text, which must not be empty; raise ValueError."""
    if not text or "\0" in text:
        raise ValueError(f"{name} is empty or has a NUL")
    return text


def to_limit(name: str, text: str) -> float:
    """Return the seconds, 0 for no limit; raise ValueError."""
    try:
        return seconds(name, float(text))
    except ValueError:
        raise ValueError(f"{name} is {text!r:.60}, expected seconds, 0 for none") from None


def to_over_zero(name: str, text: str) -> float:
    """Return the seconds, which must be over 0; raise ValueError."""
    value = to_limit(name, text)
    if not value:
        raise ValueError(f"{name} is {text!r:.60}, expected seconds over 0")
    return value


def to_count(name: str, text: str) -> int:
    """Return the whole number, which must be over 0; raise ValueError."""
    if not text.isdecimal() or not 0 < int(text) <= 1 << 30:
        raise ValueError(f"{name} is {text!r:.60}, expected a whole number over 0")
    return int(text)


def to_depth(name: str, text: str) -> int:
    """Return the depth of nesting; raise ValueError."""
    value = to_count(name, text)
    if value > NESTING_MAX:
        raise ValueError(f"{name} is {value}, expected at most {NESTING_MAX}")
    return value


def to_requests(name: str, text: str) -> int:
    """Return the length of a request queue, 0 for that which it has; raise ValueError."""
    if not (text.isascii() and text.isdecimal()) or not (int(text) == 0 or REQUESTS_MIN <= int(text) <= REQUESTS_MAX):
        raise ValueError(f"{name} is {text!r:.60}, expected 0 or a whole number from {REQUESTS_MIN} to {REQUESTS_MAX}")
    return int(text)


def to_level(name: str, text: str) -> str:
    """Return the level of the log; raise ValueError."""
    if text not in LEVELS:
        raise ValueError(f"{name} is {text!r:.60}, expected one of {', '.join(LEVELS)}")
    return text


def to_qga_version(name: str, text: str) -> str:
    """Return the version of qemu-ga; raise ValueError."""
    try:
        qemu.version(text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None
    return text


def to_target(name: str, text: str) -> str:
    """Return where the log goes; raise ValueError."""
    scheme, _, path = text.partition(":")
    if text not in TARGETS and not (scheme == "file" and path.startswith("/") and "\0" not in path):
        raise ValueError(
            f"{name} is {text!r:.200}, expected one of {', '.join(TARGETS)}, or file: and an absolute path"
        )
    return text


def to_channel(name: str, text: str) -> str:
    """Return the channel; raise ValueError."""
    scheme, colon, rest = text.partition(":")
    good = rest.startswith("/") and "\0" not in rest
    match scheme:
        case "unix" if not good:
            raise ValueError(f"{name} is {text!r:.200}, expected unix:PATH with an absolute path")
        case "unix" if len(rest.encode(errors="surrogateescape")) > SOCKET_PATH_MAX:
            raise ValueError(f"{name}: the path is over the {SOCKET_PATH_MAX} bytes that a unix socket's address holds")
        case "vsock" if not (rest.isdecimal() and rest.isascii() and 0 < int(rest) <= PORT_MAX):
            raise ValueError(f"{name} is {text!r:.200}, expected vsock:PORT with a port from 1 to {PORT_MAX}")
        case "virtio" if colon and not good:
            raise ValueError(f"{name} is {text!r:.200}, expected virtio or virtio:PATH with an absolute path")
        case "serial" if not good:
            raise ValueError(f"{name} is {text!r:.200}, expected serial:PATH with an absolute path")
        case "unix" | "vsock" | "virtio" | "serial":
            return text
    raise ValueError(f"{name} is {text!r:.200}, expected unix:PATH, vsock:PORT, virtio[:PATH] or serial:PATH")


def to_absolute(name: str, text: str) -> str:
    """Return the absolute path; raise ValueError."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{name} is {text!r:.200}, expected an absolute path")
    return text


def to_rpcs(name: str, text: str) -> tuple[str, ...]:
    """Return the names of RPCs that are separated by commas; raise ValueError."""
    names = tuple(filter(None, (item.strip() for item in text.split(","))))
    if not names:
        raise ValueError(f"{name} is {text!r:.60}, expected names of RPCs")
    for rpc in names:
        if rpc not in RPCS or not RPCS[rpc].public:
            raise ValueError(f"{name}: there is no RPC {rpc!r:.80}")
    return names


def to_command(name: str, text: str) -> tuple[str, ...]:
    """Return the program and its arguments; raise ValueError."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{name} is {text!r:.60}: {error}") from None
    if not words:
        raise ValueError(f"{name} is empty, expected a program and its arguments")
    return words

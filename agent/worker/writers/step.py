"""One step of a writer: it ends well, is refused or is too slow; and waiting within it."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable

DIGITS_MAX = 18
STRETCH = 86400.0
"""Seconds for which what ends by the clock is held at a time, if nothing limits the hold; it is renewed in time."""
_LONGEST = (1 << 31) - 1  # milliseconds that poll(2) takes
Waits = Callable[[int, float], bool]
"""Waits until the descriptor is readable (True) or that CLOCK_MONOTONIC second has come; may raise Interrupted."""


class Refused(Exception):
    """The application refuses; one sentence."""


class TooSlow(Refused):
    """The limit of the step passed."""


def wait(fd: int, until: float) -> bool:
    """Wait until the descriptor is readable (True), or that second has come."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not poll.poll(milliseconds(until - time.monotonic())):
        if time.monotonic() >= until:
            return False
    return True


def milliseconds(left: float) -> int | None:
    """Return for how long poll(2) is to wait for what comes in so many seconds; it may have to be asked again."""
    return None if left == math.inf else min(math.ceil(max(0.0, left) * 1000), _LONGEST)


def whole(text: str, what: str) -> int:
    """Return the whole number that an application has answered; raise Refused if it is not one, or is absurd."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= DIGITS_MAX):
        raise Refused(f"{what} is {text[:60]!r}, expected a whole number")
    return int(text)


def left(until: float) -> int:
    """Return the whole seconds until that CLOCK_MONOTONIC second, at least 1."""
    return max(1, int(min(until - time.monotonic(), 1 << 30)))

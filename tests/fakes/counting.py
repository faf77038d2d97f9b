"""How much work something is, counted and not timed: the number of function calls that it makes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any


def calls(work: Callable[[], Any]) -> int:
    """Return how many functions, of Python and of C, are called while `work` is done in this thread.

    Garbage is not collected meanwhile: when it is depends on all that ran before, and what is told of it (Hypothesis
    has it told to itself) calls functions, too.
    """
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return count


def assert_linear(work: Callable[[int], Callable[[], Any]], size: int) -> None:
    """Fail if four times as much of it takes more than five times the calls; `work` prepares it for a size."""
    once, fourfold = calls(work(size)), calls(work(4 * size))
    assert once > size / 10, f"{once} calls for {size}: nothing was done"
    assert fourfold < 5 * once, f"{once} calls for {size}, {fourfold} for {4 * size}"

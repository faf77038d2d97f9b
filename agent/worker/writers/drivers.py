"""What each type of writer does in each step, and how what it has left set is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ...api.writers import WriterConfig
from . import databases, hook
from .hook_program import Waits
from .latch import Latch
from .redis import Redis

Info = dict[str, Any]


class Driver(Protocol):
    """One writer: each step until a CLOCK_MONOTONIC second, and what to tell of it. They raise Refused, Interrupted."""

    @property
    def fds(self) -> tuple[int, ...]:
        """What becomes readable, between two steps, if the hold is lost."""

    def prepare(self, until: float) -> Info:
        """Connect, check, flush."""

    def quiesce(self, until: float) -> Info:
        """Hold the application's writes."""

    def confirm(self, until: float) -> Info:
        """Prove that it held until now."""

    def release(self, until: float) -> str:
        """Let go; return what went wrong with that."""


DRIVERS: Mapping[str, Callable[[WriterConfig, Latch, Waits, float], Driver]] = {
    "hook": hook.Hooks,
    "hook-dir": hook.Hooks,
    "mariadb": databases.MariaDb,
    "postgresql": databases.PostgreSql,
    "redis": Redis,
}
_UNDO: Mapping[str, Callable[[Latch, float], str]] = {
    "hook": hook.undo,
    "hook-dir": hook.undo,
    "mariadb": databases.put_back,
}


def undo(latch: Latch, until: float) -> str:
    """Undo what is on record; return what went wrong. Raises Refused if it stays on record."""
    kind = (latch.record or {}).get("type", "")
    return _UNDO[kind](latch, until) if kind else ""

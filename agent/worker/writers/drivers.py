"""What each type of writer does in each step, and how what it has left set is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ...api.writers import WriterConfig
from . import hook, live, mariadb, mongodb, mysql, mysql_family, postgresql, redis, sql
from .latch import Latch
from .step import Waits

Info = dict[str, Any]


class Driver(Protocol):
    """One writer: each step until a CLOCK_MONOTONIC second, and what to tell of it. They raise Refused, Interrupted."""

    @property
    def fds(self) -> tuple[int, ...]:
        """What becomes readable, between two steps, if the hold is lost."""

    @property
    def told(self) -> Mapping[str, str]:
        """What whoever restores wants to know, and is known only after `release`."""

    def prepare(self, until: float) -> Info:
        """Connect, check, flush."""

    def quiesce(self, until: float) -> Info:
        """Hold the application's writes."""

    def confirm(self, until: float) -> Info:
        """Prove that it held until now."""

    def renew(self, until: float, ends: float) -> None:
        """Have the hold last until `ends` (CLOCK_MONOTONIC): that of a lease, which the clock would end before."""

    def lost(self) -> str:
        """Return why the hold is lost, "" if it is not, after one of `fds` has become readable."""

    def release(self, until: float, verdict: str) -> str:
        """Let go after a good or a bad freeze; return what went wrong with that."""


DRIVERS: Mapping[str, Callable[[WriterConfig, Latch, Waits, float], Driver]] = {
    "hook": hook.Hooks,
    "hook-dir": hook.Hooks,
    "live": live.Live,
    "mariadb": mariadb.MariaDb,
    "mongodb": mongodb.MongoDb,
    "mysql": mysql.MySql,
    "pair": hook.Hooks,
    "postgresql": postgresql.PostgreSql,
    "redis": redis.Redis,
    "sql": sql.Sql,
    "vmware": hook.Hooks,
}
_UNDO: Mapping[str, Callable[[Latch, float, str], str]] = {
    "hook": hook.undo,
    "hook-dir": hook.undo,
    "live": live.undo,
    "mariadb": mysql_family.put_back,
    "mongodb": mongodb.undo,
    "mysql": mysql_family.put_back,
    "pair": hook.undo,
    "redis": redis.undo,
    "sql": sql.undo,
    "vmware": hook.undo,
}


def undo(latch: Latch, until: float, verdict: str) -> str:
    """Undo what is on record after a good or a bad freeze; return what went wrong.

    Raises Refused if it stays on record.
    """
    kind = (latch.record or {}).get("type", "")
    return _UNDO[kind](latch, until, verdict) if kind else ""

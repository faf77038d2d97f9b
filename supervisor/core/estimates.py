"""What the next freeze may take, by the last ones; and which options count for it, and whence they are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...agent.api.options import Options
from ...agent.api.records import Estimate, InForce, PastFreeze
from ..config import Config

LONG_ENOUGH = 0.5  # seconds of a sync that has a rate
ENOUGH = 1 << 20  # bytes
LOOKED_AT = 20  # freezes
NAMES = (
    *("include", "exclude", "strict", "partial", "writers", "plan-limit", "prepare-limit", "sync-limit"),
    *("quiesce-limit", "freeze-limit", "confirm-limit", "hold-limit", "hold-limit-max", "thaw-limit"),
    *("release-limit", "patience", "busy-wait", "sync-requests"),
)
"""The options that count for a freeze, in the order of its phases."""
_ASKED = ("strict", "partial", "writers", "sync-limit", "freeze-limit", "hold-limit")


def expected(past: Sequence[PastFreeze]) -> Estimate:
    """Return what the last freezes foretell: the rate of the last sync, and the longest standstill without the hold."""
    last = past[-LOOKED_AT:]
    rates = [one.synced_bytes / one.sync_seconds for one in last if _has_rate(one)]
    still = [one.freeze_seconds + one.thaw_seconds for one in last if one.held_continuously and one.freeze_seconds >= 0]
    return Estimate(bytes_per_second=rates[-1] if rates else -1, still_seconds=max(still, default=-1))


def _has_rate(one: PastFreeze) -> bool:
    return one.sync_seconds >= LONG_ENOUGH and one.synced_bytes >= ENOUGH


def in_force(config: Config, options: Options) -> tuple[InForce, ...]:
    """Return the options that count for a freeze with these, and whence each is."""
    rules = options.rules
    found = []
    for name in NAMES:
        member = name.replace("-", "_")
        value = getattr(options, member) if name in _ASKED else getattr(config, member)
        whence, file = _whence(config, name)
        if name in _ASKED and value != getattr(config, member):
            whence, file = "request", ""
        found.append(InForce(name, _text(value), whence, file))
        asked = {"include": rules.request_include, "exclude": rules.request_exclude}.get(name)
        if asked:
            found.append(InForce(name, _text(asked), "request"))
    return tuple(found)


def _whence(config: Config, name: str) -> tuple[str, str]:
    if name in config.in_file:
        return "file", config.file
    return ("command line" if name in dict(config.given) else "default"), ""


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float | int) else str(value)

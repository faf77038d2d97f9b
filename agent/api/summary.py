"""What became of a freeze, in figures and in one sentence: of the same shape in the log, on a terminal and in JSON."""

from __future__ import annotations

import json
from typing import Any

from .records import Last, PastFreeze
from .states import Outcome
from .text import size, took

_WORDS = {Outcome.BROKEN.value: "BROKEN", Outcome.EXPIRED.value: "BROKEN"}
_FIGURES = (
    "file_systems",
    "held_seconds",
    "stall_seconds",
    "app_stall_seconds",
    "synced_bytes",
    "sync_seconds",
    "slowest",
    "freeze_seconds",
    "thaw_seconds",
    "error",
)


def result(last: Last | PastFreeze) -> str:
    """Return one word for how it ended: good, BROKEN, or its outcome."""
    return "good" if last.held_continuously else _WORDS.get(last.outcome, last.outcome)


def figures(last: Last | PastFreeze) -> dict[str, Any]:
    """Return what is known of it, by the names of the status record: seconds, bytes and texts."""
    found = {name: getattr(last, name) for name in _FIGURES}
    known = {name: value for name, value in found.items() if value != "" and value != -1}
    return {"freeze": last.freeze_id, "result": result(last), **known}


def line(last: Last | PastFreeze, by: str = "") -> str:
    """Return it as name=value fields for the log; `by` is who asked for the freeze."""
    fields = figures(last) | ({"by": by} if by else {})
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value) if isinstance(value, int) or value.isalnum() else json.dumps(value)


def sentence(last: Last | PastFreeze) -> str:
    """Return it as one sentence for an operator."""
    many = last.file_systems
    what = f"{many} file system{'' if many == 1 else 's'}" if many > 0 else ""
    if last.held_continuously:
        parts = [f"good: {f'{what} ' if what else ''}held {_known(last.held_seconds)} without a break"]
    else:
        word = result(last)
        parts = [f"{word}: {last.error}" if last.error else word]
        if last.held_seconds > 0:
            parts.append(f"{f'{what} ' if what else ''}held {took(last.held_seconds)}")
        elif last.held_seconds == 0:
            parts.append("nothing was held")
        elif last.outcome in _WORDS:
            parts.append("for how long it was held is not known")
    parts.extend(filter(None, (_synced(last), _stood_still(last))))
    if last.app_stall_seconds >= 0:
        parts.append(f"applications {took(last.app_stall_seconds)}")
    if isinstance(last, Last) and last.consistency == "application":
        parts.append("consistent for applications")
    return "; ".join(filter(None, (parts[0], ", ".join(parts[1:]))))


def _synced(last: Last | PastFreeze) -> str:
    if last.sync_seconds < 0:
        return ""
    wrote = f"synced {size(last.synced_bytes)}" if last.synced_bytes >= 0 else "synced"
    return f"{wrote} in {took(last.sync_seconds)}" + (f" (slowest {last.slowest})" if last.slowest else "")


def _stood_still(last: Last | PastFreeze) -> str:
    if last.stall_seconds <= 0:
        return "nobody knows how long writers stood still" if last.stall_seconds < 0 and last.outcome in _WORDS else ""
    parts = {"freezing": last.freeze_seconds, "thawing": last.thaw_seconds}
    known = ", ".join(f"{name} {took(seconds)}" for name, seconds in parts.items() if seconds >= 0)
    return f"stood still {took(last.stall_seconds)}" + (f" ({known})" if known else "")


def _known(seconds: float) -> str:
    return took(seconds) if seconds >= 0 else "an unknown time"

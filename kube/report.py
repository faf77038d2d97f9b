"""The report of one snapshot, and the annotations that say the same on the snapshots themselves."""

from __future__ import annotations

import datetime
from typing import Any

from .transaction import Done, Wanted


def report(wanted: Wanted, done: Done, error: str) -> dict[str, Any]:
    """Return the report as docs/kube.md has it; `error` says why there is no snapshot, "" if there is one."""
    cuts = [one.cut for one in done.snapshots if one.cut is not None]
    broken = list(done.broken)
    verdict = "broken" if broken or done.groups or done.snapshots else "failed"
    if not (error or broken):
        verdict = "good"
    return {
        "verdict": verdict,
        "error": error,
        "broken": broken,
        "namespace": wanted.namespace,
        "guests": [{"name": guest.name, "uid": guest.uid, "volumes": list(guest.claims)} for guest in done.guests],
        "asked_at": _time(done.asked_at),
        "frozen_at": _time(done.last_frozen),
        "thawed_at": _time(done.thaw_asked),
        "window": _between(done.last_frozen, done.thaw_asked),
        "standstill": _between(done.asked_at, done.thaw_asked),
        "frozen_skew": _between(done.first_frozen, done.last_frozen),
        "cut_asked_at": _time(done.cut_asked),
        "cut_seen_at": _time(done.cut_seen),
        "skew": round(max(cuts) - min(cuts), 3) if cuts else -1,
        "groups": [_shown(one) for one in done.groups],
        "snapshots": [_shown(one) for one in done.snapshots],
        "not_thawed": dict(sorted(done.not_thawed.items())),
        "not_annotated": [],
    }


def notes_of(found: dict[str, Any]) -> dict[str, str]:
    """Return what is written on the snapshots: verdict, window, skew, guests, and why it is broken."""
    notes = {
        "verdict": found["verdict"],
        "window": f"{found['frozen_at']}/{found['thawed_at']}",
        "window-seconds": str(found["window"]),
        "skew-seconds": str(found["skew"]),
        "guests": ",".join(guest["name"] for guest in found["guests"]),
    }
    if why := "; ".join([*found["broken"], *([found["error"]] if found["error"] else [])]):
        notes["broken"] = why
    return {f"virtagent/{name}": text[:4096] for name, text in notes.items()}


def _shown(one: Any) -> dict[str, Any]:
    return {"name": one.name, "volume": one.claim, "created_at": _time(one.cut or 0.0)}


def _time(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).isoformat("T", "milliseconds") if at else ""


def _between(begin: float, end: float) -> float:
    return round(end - begin, 3) if begin and end else -1

"""What is read from the API's objects. Whatever has not the published shape raises BadReply, and is never guessed.

Shapes: VirtualMachineInstance of kubevirt.io/v1, PersistentVolumeClaim of v1, VolumeSnapshot of
snapshot.storage.k8s.io/v1, VolumeGroupSnapshot of groupsnapshot.storage.k8s.io.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any

from .api import BadReply


@dataclass(frozen=True, slots=True)
class Guest:
    """A VirtualMachineInstance: `claims` are those of its disks, `trouble` is why it cannot be frozen, "" if it can."""

    name: str
    uid: str
    node: str
    frozen: bool
    claims: tuple[str, ...]
    trouble: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A VolumeSnapshot or VolumeGroupSnapshot: `cut` is its creationTime in seconds since 1970, None before it is.

    Of which group it is, its owner (`group`, a uid) or its status (`group_name`) says, by the controller's version.

    Kubernetes writes it in whole seconds, so the cut was in the second that begins there.
    """

    name: str
    uid: str
    cut: float | None
    error: str
    claim: str
    group: str
    group_name: str = ""


_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME_MAX = 253
_FIRST, _LAST = -62135596800, 253402300799  # the years 1 to 9999 of UTC, in which a time can be told


def is_name(text: str) -> bool:
    """Return whether objects may be called so: a subdomain of DNS (RFC 1123), which is the most that any may."""
    return len(text) <= NAME_MAX and _NAME.fullmatch(text) is not None


def guest(found: Any) -> Guest:
    """Return what a VirtualMachineInstance says. Raises BadReply."""
    metadata, spec, status = (_part(found, name, "a guest") for name in ("metadata", "spec", "status"))
    name = _own_name(metadata, "a guest")
    what = f"guest {name!r}"
    conditions = {_text(one, "type", what): _text(one, "status", what) for one in _items(status, "conditions", what)}
    phase = _text(status, "phase", what)
    if phase != "Running":
        trouble = f"it is in phase {phase or 'unknown'}, not Running"
    elif conditions.get("AgentConnected") != "True":
        trouble = "its guest agent is not connected"
    elif conditions.get("Paused") == "True":
        trouble = "it is paused"
    else:
        trouble = ""
    claims = []
    for volume in _items(spec, "volumes", what):
        claim, made = volume.get("persistentVolumeClaim"), volume.get("dataVolume")
        if claim is not None:
            claims.append(_own_name(_dict(claim, what), what, "claimName"))
        elif made is not None:
            claims.append(_own_name(_dict(made, what), what))
    return Guest(
        name,
        _text(metadata, "uid", what, needed=True),
        _text(status, "nodeName", what),
        _text(status, "fsFreezeStatus", what) == "frozen",
        tuple(dict.fromkeys(claims)),
        trouble,
    )


def snapshot(found: Any) -> Snapshot:
    """Return what a VolumeSnapshot or a VolumeGroupSnapshot says. Raises BadReply."""
    metadata = _part(found, "metadata", "a snapshot")
    name = _own_name(metadata, "a snapshot")
    what = f"snapshot {name!r}"
    spec, status = _part(found, "spec", what), _part(found, "status", what)
    error = _dict(status.get("error") or {}, what)
    owners = _items(metadata, "ownerReferences", what)
    group = [_text(one, "uid", what) for one in owners if one.get("kind") == "VolumeGroupSnapshot"]
    written = _text(status, "creationTime", what)
    return Snapshot(
        name,
        _text(metadata, "uid", what, needed=True),
        _seconds(written, what) if written else None,
        _text(error, "message", what) or ("an error without a message" if error else ""),
        _text(_dict(spec.get("source") or {}, what), "persistentVolumeClaimName", what),
        group[0] if group else "",
        _text(status, "volumeGroupSnapshotName", what),
    )


def claim_name(found: Any) -> str:
    """Return the name of a PersistentVolumeClaim. Raises BadReply."""
    return _own_name(_part(found, "metadata", "a claim"), "a claim")


def _seconds(text: str, what: str) -> float:
    try:
        found = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise BadReply(f"{what} has {text!r} for its creationTime") from None
    if found.tzinfo is None:
        raise BadReply(f"{what} has {text!r} for its creationTime, without a time zone")
    at = found.timestamp()
    if not _FIRST <= at <= _LAST:
        raise BadReply(f"{what} has {text!r} for its creationTime, which is out of range")
    return at


def _dict(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise BadReply(f"{what} has not the shape of the API")
    return found


def _part(found: Any, name: str, what: str) -> dict[str, Any]:
    return _dict(_dict(found, what).get(name) or {}, f"{name} of {what}")


def _items(found: dict[str, Any], name: str, what: str) -> list[dict[str, Any]]:
    items = found.get(name) or []
    if not isinstance(items, list):
        raise BadReply(f"{what} has {name} that are no list")
    return [_dict(one, f"{name} of {what}") for one in items]


def _own_name(found: dict[str, Any], what: str, member: str = "name") -> str:
    name = _text(found, member, what, needed=True)
    if not is_name(name):
        raise BadReply(f"{what} has {name[:80]!r} for its {member}, which is no name of Kubernetes")
    return name


def _text(found: dict[str, Any], name: str, what: str, *, needed: bool = False) -> str:
    text = found.get(name) or ""
    if not isinstance(text, str) or (needed and not text):
        raise BadReply(f"{what} has {text!r} for its {name}")
    return text

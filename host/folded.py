"""What of many file systems gets a row of its own: what somebody may have to act on. The rest is counted. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..agent.api.bounds import not_shown
from ..agent.api.records import LeftOut, MountStatus, Plan, Status
from ..agent.api.states import MountState, Reason
from ..agent.api.text import brief, listed

FEW = 10  # planned file systems that all have a row
_DONE = ("pending", "synced", "frozen", "thawed")
_INCONSISTENT = {
    *(reason.value for reason in (Reason.DAMAGED, Reason.UNREACHABLE, Reason.ZFS)),
    *(state.value for state in (MountState.UNSUPPORTED, MountState.BUSY, MountState.FAILED)),
}


def count(number: int, noun: str = "file system") -> str:
    """Return "1 file system" or "3 file systems"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def planned(mounts: Iterable[MountStatus], *, verbose: bool = False) -> list[MountStatus]:
    """Return those planned that have a row: all of a few, else what is waited for, or what something is wrong with."""
    those = [mount for mount in mounts if mount.state != MountState.LEFT_OUT.value]
    return [m for m in those if verbose or len(those) <= FEW or m.state not in _DONE or (m.may_be_frozen and m.error)]


def counted_planned(mounts: Iterable[MountStatus], rows: Collection[MountStatus]) -> Iterator[str]:
    """Count by their states those planned that have no row."""
    states: dict[str, list[str]] = {}
    for mount in mounts:
        if mount.state != MountState.LEFT_OUT.value and mount not in rows:
            states.setdefault(mount.state, []).append(brief(mount.mountpoint))
    for state, names in states.items():
        yield f"{len(names)} {state}: {listed(names)}"


def matters(left: LeftOut | MountStatus) -> bool:
    """Return whether a snapshot of its disk is not consistent because it is left out, and nobody has asked for that."""
    strict = isinstance(left, LeftOut) and left.strict_error
    return strict or left.reason in _INCONSISTENT or left.fstype == "fuseblk"


def all_left_out(record: Plan | Status) -> tuple[LeftOut | MountStatus, ...]:
    """Return all of a record that are left out and named."""
    if isinstance(record, Plan):
        return record.left_out
    return tuple(mount for mount in record.mounts if mount.state == MountState.LEFT_OUT.value)


def left_out(shown: Iterable[LeftOut | MountStatus], *, verbose: bool = False) -> list[LeftOut | MountStatus]:
    """Return those that have a row: what matters, or with `verbose` all but what is on no disk."""
    rows = [one for one in shown if one.reason != Reason.PSEUDO.value and (verbose or matters(one))]
    return sorted(rows, key=lambda one: (one.reason, one.mountpoint))


def counted_left_out(
    shown: Sequence[LeftOut | MountStatus], counts: Mapping[str, int], rows: Collection[LeftOut | MountStatus]
) -> Iterator[str]:
    """Count by their reasons those that have no row, among them what the agent does not name."""
    more = not_shown(shown, counts)
    rest: dict[str, list[str]] = {}
    for one in shown:
        if one not in rows:
            rest.setdefault(one.reason, []).append(brief(one.mountpoint))
    pseudo = len(rest.pop(Reason.PSEUDO.value, ())) + more.pop(Reason.PSEUDO.value, 0)
    for reason in sorted({*rest, *more}):
        names, unnamed = rest.get(reason, []), more.get(reason, 0)
        if names:
            yield f"{count(len(names) + unnamed)} ({reason}): {listed(sorted(names), more=unnamed)}"
        else:
            yield f"{count(unnamed)} more ({reason})"
    if pseudo:
        yield f"{count(pseudo)} on no disk ({Reason.PSEUDO.value})"

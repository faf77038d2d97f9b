"""The picture of what happens in guests: status records in, lines out. Pure.

It answers, in this order: who and where; whether applications stand still now; how far it is and when it ends; what is
waited for, the slowest first. What is done is counted. Only ASCII is drawn, no line is longer than the terminal is
wide, and what a colour says is also said by a word or a sign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..agent.api.records import MountStatus, Progress, Status, WorkerStatus
from ..agent.api.text import left, printable
from . import text
from .guest_status import GuestStatus
from .layout import GAP, Line, aligned, bar, cells, cut, middle, of, seconds_of, size, width_of, wrapped

Clock = Callable[[float], str]
"""From seconds from now to the time of day as words."""

STANDS, RUNS = "applications stand still", "applications run"
_BARS = ((100, 24), (60, 14), (0, 8))  # from so many columns on, so long
_WIDE = 60  # columns; from there on there is room for a time of day in each row
_ROWS_LEAST = 2
_STILL = ("freezing", "frozen", "thawing")
_BAD = ("failed", "busy", "unsupported")
_GOING = ("syncing", "freezing", "thawing")
_PHASES = {
    "plan": "PLANNING",
    "prepare": "PREPARING",
    "sync": "SYNCING",
    "ready": "READY",
    "quiesce": "QUIESCING",
    "freeze": "FREEZING",
    "confirm": "CONFIRMING",
    "release": "RELEASING",
}
_STATES = {
    "FROZEN": ("*", "FROZEN", "still"),
    "ERROR": ("!", "ERROR", "bad"),
    "THAWINPROGRESS": ("~", "THAWING", "bold"),
}
_LEAVES = {
    "watch": ("q or Ctrl-C ends this; what goes on in the guest goes on",) * 2,
    "snapshot": ("Ctrl-C cancels; nothing is frozen yet", "Ctrl-C cancels, and thaws"),
    "freeze": ("Ctrl-C leaves; the freeze goes on: `virtagentctl thaw` ends it",) * 2,
    "sync": ("Ctrl-C leaves; the sync goes on",) * 2,
    "thaw": ("Ctrl-C leaves; the thaw goes on",) * 2,
}


def draw(
    guests: Sequence[GuestStatus],
    *,
    doing: str,
    width: int,
    height: int,
    clock: Clock,
    blind: Mapping[str, str] | None = None,
) -> list[Line]:
    """Return the lines, at most `height` of at most `width` cells; `doing` is the command that is under way."""
    blind = blind or {}
    if len(guests) + len(blind) > 1:
        above, rows, below = _of_many(guests, width, clock)
    elif guests:
        above, rows, below = _of_one(guests[0], width, clock)
    else:
        above, rows, below = [], [], []
    for url, why in blind.items():
        below += wrapped(f"{url}: no progress to be seen ({why})", width)
    foot = _foot(doing, any(_standing(one) for one in guests), width)
    room = height - len(above) - len(below) - len(foot)
    if len(rows) > room:
        room = max(_ROWS_LEAST, room - 1)
        more = len(rows) - room
        rows = [*rows[:room], *([[(f"  and {more} more", "")]] if more > 0 else ())]
    lines = [*above, *rows, *below][: max(1, height - len(foot))] + foot
    return [cut(line, width) for line in lines[:height]]


def plain(lines: Sequence[Line]) -> str:
    """Return the lines without their styles."""
    return "\n".join("".join(words for words, _ in line).rstrip() for line in lines)


def last_words(guests: Sequence[GuestStatus], clock: Clock) -> list[str]:
    """Return what is left on the terminal when the picture goes: a line for each guest."""
    found = []
    for one in guests:
        sign, word, _ = _named(one)
        ends = " ".join(filter(None, (_until(one), _when(one, clock))))
        found.append(GAP.join(filter(None, (f"{one.url}  {sign} {word}", meaning(one), ends))))
    return found


def _foot(doing: str, still: bool, width: int) -> list[Line]:
    words = _LEAVES.get(doing, ("", ""))[still]
    if cells(words) > width:
        words = words.partition(";")[0].partition(",")[0]
    return [[(words, "")]] if words else []


def meaning(status: Status) -> str:
    """Say whether applications stand still now."""
    standing = _standing(status)
    if status.state == "ERROR":
        frozen = f"{text.count(standing)} may be frozen" if standing else "nothing is frozen"
        return f"{frozen}; no new freeze until this ends"
    if status.state == "INPROGRESS" and status.phase == "quiesce":
        return "applications are being held"
    return STANDS if standing else RUNS


def _standing(status: Status) -> int:
    """Return how many file systems stand still, or may."""
    if status.state == "THAWED":
        return 0
    if status.state == "FROZEN":
        return max(1, sum(mount.state in _STILL for mount in status.mounts))
    return sum(mount.state in _STILL for mount in status.mounts)


def _named(status: Status) -> tuple[str, str, str]:
    """Return a sign, a word and a style for what is going on."""
    if status.state in _STATES:
        return _STATES[status.state]
    if status.phase:
        return "~", _PHASES.get(status.phase, status.phase.upper()), "bold"
    return ("-", "THAWED", "good") if status.state == "THAWED" else ("~", status.state, "bold")


def _of_one(guest: GuestStatus, width: int, clock: Clock) -> tuple[list[Line], list[Line], list[Line]]:
    sign, word, style = _named(guest)
    if guest.state == "ERROR" and guest.since >= 0:
        word += f" for {seconds_of(guest.since)}"
    who = guest.url + (f"  freeze {guest.freeze_id}" if guest.freeze_id > 0 and guest.state != "THAWED" else "")
    state: Line = [(f"{sign} {word}", style), ("  " + meaning(guest), "still" if style == "still" else "")]
    room = width - width_of(state) - len(GAP)
    if cells(who) <= room:
        above: list[Line] = [[(who, "bold"), (" " * (room - cells(who)) + GAP, ""), *state]]
    else:
        above = [[(middle(who, width), "bold")]]
        above += [state] if width_of(state) <= width else [state[:1], *wrapped(meaning(guest), width)]
    above += filter(None, [_how_far(guest, width, clock)])
    above += wrapped(guest.error, width, "bad")
    mounts = [mount for mount in guest.mounts if mount.state != text.LEFT_OUT]
    shown = [mount for mount in mounts if _has_row(mount, guest)]
    rows = aligned([_mount_cells(mount, guest) for mount in sorted(shown, key=_slowest_first)], width)
    below = _counted([mount for mount in mounts if mount not in shown], width) if guest.phase else []
    if guest.state == "ERROR":  # below, since of a low screen it is what can be missed
        for worker in guest.workers:
            below += wrapped(_worker(worker), width)
    if guest.state == "THAWED" and not guest.phase and guest.last is not None:
        below += wrapped(f"last freeze: {text.last_freeze(guest.last)}", width)
    return above, rows, below


def _of_many(guests: Sequence[GuestStatus], width: int, clock: Clock) -> tuple[list[Line], list[Line], list[Line]]:
    standing = sum(_standing(one) > 0 for one in guests)
    how = f"{STANDS} in {standing} of {len(guests)}" if standing else f"{RUNS} in all"
    counts = Counter(_named(one)[:2] for one in guests)
    words = GAP.join(f"{sign} {number} {word}" for (sign, word), number in sorted(counts.items()))
    head: Line = [(f"{len(guests)} guests", "bold")]
    how_line: Line = [(how, "still" if standing else "")]
    heads = [[*head, (GAP, ""), *how_line]]
    if width_of(heads[0]) > width:
        heads = [head, [("  ", ""), *how_line]]

    def ends(one: Status) -> str:
        return " ".join(filter(None, (_until(one), _when(one, clock) if width >= _WIDE else "")))

    rows = []
    for one in sorted(guests, key=_most_urgent_first):
        sign, word, style = _named(one)
        slow = min((m for m in one.mounts if m.state in _GOING), key=_slowest_first, default=None)
        share = _share(one)
        rows.append(
            [
                (0, one.url, ""),
                (0, f"{sign} {word}", style),
                (2, f"{share:.0%}" if share >= 0 and one.phase == "sync" else "", ""),
                (0, ends(one) or one.error[: width // 2], "bad" if one.error else ""),
                (3, f"waits for {slow.mountpoint} {text.device(slow)}" if slow else "", ""),
            ]
        )
    return [*heads, *wrapped(words, width)], aligned(rows, width), []


def _how_far(status: Status, width: int, clock: Clock) -> Line:
    """Draw the bar, what is left, the rate, and when it ends."""
    share = _share(status)
    if status.state == "ERROR" or (share < 0 and not status.phase):
        return []
    progress = status.progress if status.phase == "sync" else Progress()
    spent = ""
    frozen = status.state == "FROZEN"
    if not frozen and status.phase and status.since >= 0:
        spent = seconds_of(status.since)
        if status.limit_left >= 0:
            spent += f" of {seconds_of(round(status.since + status.limit_left))}"
    parts = [
        (2, bar(share, next(long for least, long in _BARS if width >= least)), "still" if frozen else ""),
        (1, f"{share:.0%}" if share >= 0 and not frozen else "", ""),
        (3, f"{size(progress.dirty_bytes)} left" if progress.dirty_bytes >= 0 else "", ""),
        (4, f"{size(progress.bytes_per_second)}/s" if progress.bytes_per_second >= 0 else "", ""),
        (0, _until(status), "bold"),
        (1, _when(status, clock), ""),
        (1, spent, ""),
    ]
    (line,) = aligned([parts], width)
    return line


def _share(status: Status) -> float:
    """Return how far the phase is, from 0 to 1; -1 if that is not known."""
    mounts = [mount for mount in status.mounts if mount.state != text.LEFT_OUT]
    if status.state == "FROZEN":
        whole = status.since + status.hold_left
        return status.since / whole if status.since >= 0 and status.hold_left >= 0 and whole > 0 else -1
    if status.phase == "sync":
        flushed, dirty = status.progress.flushed_bytes, status.progress.dirty_bytes
        return flushed / (flushed + dirty) if flushed >= 0 and dirty >= 0 and flushed + dirty > 0 else -1
    done = {"freeze": "frozen", "thaw": "thawed"}.get(status.phase)
    return sum(mount.state == done for mount in mounts) / len(mounts) if done and mounts else -1


def _until(status: Status) -> str:
    """Say in how long what goes on ends."""
    if status.state == "FROZEN":
        return f"thaws by itself in {left(status.hold_left)}" if status.hold_left >= 0 else "held without a limit"
    if status.progress.eta >= 0 and status.phase == "sync":
        return f"about {seconds_of(max(1, round(status.progress.eta)))}"
    return ""


def _when(status: Status, clock: Clock) -> str:
    """Say at what time of day it thaws by itself."""
    return f"({clock(status.hold_left)})" if status.state == "FROZEN" and status.hold_left >= 0 else ""


def _has_row(mount: MountStatus, status: Status) -> bool:
    return mount.state in (*_GOING, *_BAD) or (status.state == "ERROR" and mount.state == "frozen")


def _slowest_first(mount: MountStatus) -> tuple[bool, float, float]:
    return mount.state not in _BAD, -mount.eta, -mount.seconds


def _most_urgent_first(status: GuestStatus) -> tuple[int, float]:
    rank = {"ERROR": 0, "THAWINPROGRESS": 1, "INPROGRESS": 1, "FROZEN": 2}.get(status.state, 3)
    if status.state == "FROZEN":
        return rank, status.hold_left
    return (1 if status.phase and rank > 1 else rank), -status.since


def _mount_cells(mount: MountStatus, status: Status) -> list[tuple[int, str, str]]:
    written, left = mount.written_bytes, mount.dirty_bytes
    amount = of(written, written + left) if left >= 0 else size(written)
    bad = mount.state in _BAD
    said = f"! {mount.state}: {mount.error}" if bad else "" if _evident(mount, status) else mount.state
    return [
        (0, mount.mountpoint, "bad" if bad else ""),
        (0, text.device(mount), ""),
        (4, bar(written / (written + left), 10) if left >= 0 and written + left > 0 <= written else "", ""),
        (3, amount if written >= 0 and not bad else "", ""),
        (2, f"{size(mount.bytes_per_second)}/s" if mount.bytes_per_second >= 0 and not bad else "", ""),
        (1, f"about {seconds_of(max(1, round(mount.eta)))}" if mount.eta >= 0 and not bad else "", ""),
        (0, seconds_of(mount.seconds) if mount.seconds >= 0 and not bad else "", ""),
        (0, said, "bad" if bad else ""),
    ]


def _evident(mount: MountStatus, status: Status) -> bool:
    return mount.state == {"sync": "syncing", "freeze": "freezing", "thaw": "thawing"}.get(status.phase)


def _worker(worker: WorkerStatus) -> str:
    waits = " waits in the kernel" if worker.process_state == "disk-sleep" else f": {worker.phase}"
    doing = f" while {worker.doing}" if worker.doing else ""
    return f"worker {worker.id} (pid {worker.pid}, for {seconds_of(worker.seconds)}){waits}{doing}"


def _counted(mounts: Sequence[MountStatus], width: int) -> list[Line]:
    """Count what has no row, with names where they fit."""
    states: dict[str, list[str]] = {}
    for mount in mounts:
        states.setdefault(mount.state, []).append(mount.mountpoint)
    lines: list[Line] = []
    for state, names in states.items():
        head = f"  {len(names)} {state}"
        named = " ".join(map(printable, names))
        lines.append([(f"{head}{GAP}{named}" if cells(head + GAP + named) <= width else head, "")])
    return lines

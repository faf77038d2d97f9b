"""How much is shown of what has no bound of its own: other mount points, what is left out, what was learnt. Pure.

Anybody who may mount by FUSE decides how many such file systems there are and what they are called. So their number is
told, and only some of them by name; those that an operator has to know about come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .records import Learnt, LeftOut, Mount, MountStatus, Plan, Status
from .states import MountState, Reason
from .structs import replace

LEFT_OUT_MAX = 50  # entries
SHOWN_MAX = 256  # characters of a text of an entry that is left out
ALIASES_MAX = 8  # other mount points of one file system, or others that it may lie on
ALIASES_TEXT_MAX = 4096  # characters of all of them
LEARNT_MAX = 50  # file systems of which a record tells on what they lie
NOTE_MAX = 1024  # characters of a note
NOTES_MAX = 20
_OF_USERS = frozenset({Reason.NETWORK.value, Reason.FUSE.value, Reason.PSEUDO.value})


def bounded(plan: Plan) -> Plan:
    """Return the plan with some of the other mount points, at most 50 entries that are left out, and their counts.

    What is to be frozen keeps its mount point whole, since that is opened.
    """
    notes = tuple(_cut(note, NOTE_MAX) for note in plan.notes[:NOTES_MAX])
    counts = dict(Counter(left.reason for left in plan.left_out))
    left_out = tuple(map(_left_out, _chosen(plan.left_out)))
    return Plan(tuple(map(_mount, plan.mounts)), left_out, notes, counts)


def without_details(status: Status) -> Status:
    """Return the record without other mount points and without what is left out: what `brief` asks for."""
    mounts = (replace(m, aliases=(), more_aliases=0) for m in status.mounts if m.state != MountState.LEFT_OUT.value)
    return replace(status, mounts=tuple(mounts), left_out_counts={})


def not_shown(shown: Iterable[LeftOut | MountStatus], counts: Mapping[str, int]) -> dict[str, int]:
    """Return for each reason how many file systems are left out that are not among the `shown`, if there are any."""
    here = Counter(one.reason for one in shown if one.reason)
    return {reason: number - here[reason] for reason, number in sorted(counts.items()) if number > here[reason]}


def learnt(mountpoint: str, hosts: Sequence[str]) -> Learnt:
    """Return that a file system lies on one of these, some of them by name."""
    named = tuple(_some(hosts))
    return Learnt(mountpoint, named, len(hosts) - len(named))


def also_at(record: Mount | LeftOut | MountStatus) -> str:
    """Return the other mount points as words: the first of them, and how many more there are."""
    more = [f"{record.more_aliases} more"] if record.more_aliases > 0 else []
    return ", ".join([*record.aliases, *more])


def _mount(mount: Mount) -> Mount:
    aliases = tuple(_some(mount.aliases))
    return replace(mount, aliases=aliases, more_aliases=len(mount.aliases) - len(aliases))


def _left_out(left: LeftOut) -> LeftOut:
    aliases = tuple(_some([_cut(alias) for alias in left.aliases[:ALIASES_MAX]]))
    return replace(
        left,
        mountpoint=_cut(left.mountpoint),
        aliases=aliases,
        fstype=_cut(left.fstype),
        namespace=_cut(left.namespace),
        more_aliases=len(left.aliases) - len(aliases),
    )


def _some(aliases: Sequence[str]) -> Iterator[str]:
    room = ALIASES_TEXT_MAX
    for alias in aliases[:ALIASES_MAX]:
        room -= len(alias)
        if room < 0:
            return
        yield alias


def _chosen(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """Return at most 50: errors under strict first, then what no user makes; of each reason about as many."""
    if len(left_out) <= LEFT_OUT_MAX:
        return list(left_out)
    nth: Counter[str] = Counter()
    ranks = []
    for at, left in enumerate(left_out):
        ranks.append((not left.strict_error, left.reason in _OF_USERS, nth[left.reason], at))
        nth[left.reason] += 1
    return [left_out[at] for at in sorted(at for *_, at in sorted(ranks)[:LEFT_OUT_MAX])]


def _cut(text: str, length: int = SHOWN_MAX) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

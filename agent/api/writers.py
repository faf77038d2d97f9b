"""Writers: applications that take part in a freeze. Their configuration, and the table of a writer's life. Pure data.

A writer holds its application's writes around a freeze, may refuse it, and is let go whatever dies. What ends a hold if
everybody of ours dies is its kind: the server, when a session ends; the clock, for a lease; nobody, for a latch, which
is therefore journaled before it is set, and undone by whoever is left.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .params import seconds

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HOOK = "hook"
"""The name of the writer that the options --hook and --hook-dir make."""


class Hold(str, enum.Enum):
    """What ends a writer's hold if all of ours dies."""

    SESSION = "session"
    LEASE = "lease"
    LATCH = "latch"


class Step(str, enum.Enum):
    """What a writer is asked to do, in this order."""

    PREPARE = "prepare"
    QUIESCE = "quiesce"
    CONFIRM = "confirm"
    RELEASE = "release"


class BadWriter(ValueError):
    """A writer's configuration is wrong; one sentence names it."""


@dataclass(frozen=True, slots=True)
class WriterConfig:
    """One writer. Limits are in seconds; -1 means the daemon's.

    `required`: without it there is no freeze; otherwise the freeze goes on when it refuses. `after` names writers that
    are quiesced before this one, and let go after it. `path` is a program or a folder. `user` is whom the
    application's own client runs as, `client` its path; `socket` is where the application listens.
    """

    name: str
    type: str
    required: bool = True
    after: tuple[str, ...] = ()
    path: str = ""
    user: str = ""
    client: str = ""
    socket: str = ""
    when: Step = Step.QUIESCE
    prepare_limit: float = -1
    quiesce_limit: float = -1
    confirm_limit: float = -1
    release_limit: float = -1


@dataclass(frozen=True, slots=True)
class WriterType:
    """One type: the kind of its hold, the options that it has besides those of all types, and those that it needs.

    `latches`: it may also set something that nobody ends by itself. A latch always does.
    """

    hold: Hold
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    latches: bool = False


TYPES: Mapping[str, WriterType] = {
    "hook": WriterType(Hold.LATCH, ("path", "when"), ("path",)),
    "hook-dir": WriterType(Hold.LATCH, ("path", "when"), ("path",)),
    "mariadb": WriterType(Hold.SESSION, ("user", "client", "socket"), latches=True),
    "postgresql": WriterType(Hold.SESSION, ("user", "client", "socket")),
    "redis": WriterType(Hold.LEASE, ("socket",)),
}
"""The types of writers."""


def _type(text: str) -> str:
    if text not in TYPES:
        raise ValueError(f"expected one of {', '.join(TYPES)}")
    return text


def _truth(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return text == "yes"


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected no NUL")
    return text


def _names(text: str) -> tuple[str, ...]:
    found = tuple(text.split())
    if wrong := [name for name in found if not NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r:.80} is no name of a writer")
    return found


def _absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError("expected an absolute path")
    return text


def when(text: str) -> Step:
    """Return in which step hooks run; raise ValueError."""
    if text not in (Step.PREPARE.value, Step.QUIESCE.value):
        raise ValueError("expected quiesce or prepare")
    return Step(text)


def _limit(text: str) -> float:
    try:
        value = seconds("", float(text))
    except ValueError:
        raise ValueError("expected seconds over 0") from None
    if not value:
        raise ValueError("expected seconds over 0")
    return value


_LIMITS = ("prepare-limit", "quiesce-limit", "confirm-limit", "release-limit")
_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "type": _type,
    "required": _truth,
    "after": _names,
    "path": _absolute,
    "user": _text,
    "client": _absolute,
    "socket": _text,
    "when": when,
    **dict.fromkeys(_LIMITS, _limit),
}
_OF_ALL = ("type", "required", "after", *_LIMITS)


def parse(name: str, text: str, where: str) -> WriterConfig:
    """Return the writer of a configuration file: a line is `option value`, or a comment after #.

    `where` names the file in errors. Raises BadWriter that names file, line and option.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        option, _, value = re.sub(r"\s*=\s*|\s+", "\0", stripped, count=1).partition("\0")
        at = f"{where} line {number}"
        if option not in _OPTIONS:
            raise BadWriter(f"{at}: there is no option {option!r:.60}")
        if option in lines:
            raise BadWriter(f"{at}: {option} stands there for the second time")
        if not value:
            raise BadWriter(f"{at}: {option} has no value")
        try:
            values[option.replace("-", "_")] = _OPTIONS[option](value)
        except ValueError as error:
            raise BadWriter(f"{at}: {option} is {value!r:.80}, {error}") from None
        lines[option] = number
    if "type" not in values:
        raise BadWriter(f"{where}: it has no type")
    kind = TYPES[values["type"]]
    for option, number in lines.items():
        if option not in (*_OF_ALL, *kind.options):
            raise BadWriter(f"{where} line {number}: a writer of type {values['type']} has no option {option}")
    for option in kind.needs:
        if option not in values:
            raise BadWriter(f"{where}: a writer of type {values['type']} needs the option {option}")
    return WriterConfig(name, **values)


def ordered(writers: tuple[WriterConfig, ...]) -> tuple[WriterConfig, ...]:
    """Return the writers such that each stands behind those that it is `after`; else by name.

    Raises BadWriter if two have one name, one is after a writer that is not there, or they wait for each other.
    """
    left = {writer.name: writer for writer in sorted(writers, key=lambda writer: writer.name)}
    if len(left) < len(writers):
        names = [writer.name for writer in writers]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadWriter(f"there are two writers with the name {twice}")
    for writer in left.values():
        if missing := [name for name in writer.after if name not in left]:
            raise BadWriter(f"writer {writer.name}: after names {missing[0]}, which is no writer")
    found: list[WriterConfig] = []
    while left:
        free = [writer for writer in left.values() if not left.keys() & set(writer.after)]
        if not free:
            raise BadWriter(f"writers that are after each other: {', '.join(left)}")
        found.append(free[0])
        del left[free[0].name]
    return tuple(found)


class WriterState(str, enum.Enum):
    """A stage in the life of a writer (writers[].state of the status record)."""

    IDLE = "idle"
    PREPARING = "preparing"
    READY = "ready"
    QUIESCING = "quiescing"
    QUIESCED = "quiesced"
    CONFIRMED = "confirmed"
    RELEASING = "releasing"
    RELEASED = "released"
    VETOED = "vetoed"
    OVERRAN = "overran"
    LOST = "lost"
    STUCK = "stuck"
    SKIPPED = "skipped"


class WriterEvent(str, enum.Enum):
    """What changes a writer: what it is told, what it answers, its limits, its death."""

    PREPARE = "told to prepare"
    PREPARED = "is prepared"
    QUIESCE = "told to quiesce"
    QUIESCED = "has quiesced"
    CONFIRMED = "has held over the freeze"
    RELEASE = "told to let go"
    RELEASED = "has let go"
    REFUSED = "refused"
    OVERRAN = "a limit passed"
    LOST = "died, or lost its hold"
    NOT_UNDONE = "could not let go"
    LEFT = "an earlier agent left it set"
    SKIP = "not asked to take part"


_S, _E = WriterState, WriterEvent
_ENDED = (_S.IDLE, _S.RELEASED, _S.VETOED, _S.OVERRAN, _S.LOST, _S.SKIPPED)
_AT_WORK = (_S.PREPARING, _S.READY, _S.QUIESCING, _S.QUIESCED, _S.CONFIRMED)
_FAILED = (_S.VETOED, _S.OVERRAN, _S.LOST)

WRITER_TABLE: Mapping[tuple[WriterState, WriterEvent], tuple[WriterState, str]] = {
    **{(s, _E.PREPARE): (_S.PREPARING, "fork its worker: it connects, checks, flushes") for s in _ENDED},
    **{(s, _E.SKIP): (_S.SKIPPED, "the freeze goes on without it") for s in _ENDED},
    (_S.PREPARING, _E.PREPARED): (_S.READY, "sync when all are ready"),
    (_S.READY, _E.QUIESCE): (_S.QUIESCING, "it holds its application's writes"),
    (_S.QUIESCING, _E.QUIESCED): (_S.QUIESCED, "freeze when all are quiesced"),
    (_S.QUIESCED, _E.CONFIRMED): (_S.CONFIRMED, "reply when all have confirmed"),
    **{(s, _E.REFUSED): (_S.VETOED, "if it is required: nothing is, or stays, frozen") for s in _AT_WORK},
    **{(s, _E.OVERRAN): (_S.OVERRAN, "if it is required: nothing is, or stays, frozen") for s in _AT_WORK},
    **{(s, _E.LOST): (_S.LOST, "before confirm as a veto; afterwards told") for s in _AT_WORK},
    **{(s, _E.RELEASE): (_S.RELEASING, "after the thaw: it lets its application go") for s in _AT_WORK},
    (_S.RELEASING, _E.RELEASED): (_S.RELEASED, ""),
    (_S.RELEASING, _E.NOT_UNDONE): (_S.STUCK, "try again; the next freeze is vetoed until that has worked"),
    **{(s, _E.RELEASE): (s, "undo what it may have left set") for s in _FAILED},
    **{(s, _E.RELEASED): (s, "nothing of it is set any more") for s in _FAILED},
    **{(s, _E.NOT_UNDONE): (_S.STUCK, "try again; the next freeze is vetoed until that has worked") for s in _FAILED},
    (_S.IDLE, _E.LEFT): (_S.RELEASING, "undo it, once nothing is frozen"),
    (_S.STUCK, _E.RELEASED): (_S.RELEASED, "undone at last"),
    (_S.STUCK, _E.NOT_UNDONE): (_S.STUCK, "try again, in the end every 30 s"),
}
"""What each event does to a writer in each state. A pair that is not listed is a defect."""

"""Writers: applications that take part in a freeze. Their configuration, and the table of a writer's life. Pure data.

A writer holds its application's writes around a freeze, may refuse it, and is let go whatever dies. What ends a hold if
everybody of ours dies is its kind: the server, when a session ends; the clock, for a lease; nobody, for a latch, which
is therefore journaled before it is set, and undone by whoever is left.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

from .structs import Value, field

NAME = re.compile(r"(?!.*\.(lock|new|begun|undone)\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A writer's name. With one of those ends its record would be a part of another one's (worker/writers/latch.py)."""
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


class WriterConfig(Value):
    """One writer. Limits are in seconds; -1 means the daemon's.

    `required`: without it there is no freeze; otherwise the freeze goes on when it refuses. `after` names writers that
    are quiesced before this one, and let go after it. `paths` are where its data are, () if the application is asked.
    `path` is a program or a folder. `user` is whom the application's own client runs as, `client` its path,
    `client_options` what it is called with besides; `socket` is where the application listens. `command` is a program
    that is told the steps, `freeze` and `thaw` are two that are called; `verdict`: tell whether the freeze was good.
    `prepare` to `release` are statements for the steps, `undo` those that undo what they set beyond the session;
    `sentinel` is one that answers what stands for {}. `login_script` has the client make itself
    known; `login` is a name for that, whose password `password_file` has. `backup_mode`: have the server keep what a
    backup of it needs to be restored.
    """

    name: str
    type: str
    required: bool = True
    after: tuple[str, ...] = ()
    path: str = ""
    user: str = ""
    client: str = ""
    client_options: tuple[str, ...] = ()
    socket: str = ""
    when: Step = Step.QUIESCE
    command: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    thaw: tuple[str, ...] = ()
    verdict: bool = False
    paths: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    quiesce: tuple[str, ...] = ()
    confirm: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    sentinel: str = "select '{}'"
    login_script: str = ""
    login: str = ""
    password_file: str = ""
    backup_mode: bool = False
    prepare_limit: float = -1
    quiesce_limit: float = -1
    confirm_limit: float = -1
    release_limit: float = -1


class WriterType(Value):
    """One type: the kind of its hold, the options that it has besides those of all types, and those that it needs.

    `latches`: its worker may also leave something behind that another one must end. A latch always does. `defaults` are
    the values of options that are not given. `silent`: the end of its session is not seen, but when it is asked.
    """

    hold: Hold
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    latches: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    silent: bool = False


_STATEMENTS = ("prepare", "quiesce", "confirm", "release", "undo")
_CLIENT = ("user", "client", "client-options", "socket")

TYPES: Mapping[str, WriterType] = {
    "hook": WriterType(Hold.LATCH, ("path", "when"), ("path",)),
    "hook-dir": WriterType(Hold.LATCH, ("path", "when"), ("path",)),
    "live": WriterType(Hold.SESSION, ("command", "user", "verdict"), ("command",), latches=True),
    "mariadb": WriterType(Hold.SESSION, _CLIENT, latches=True, silent=True),
    "mongodb": WriterType(Hold.LATCH, (*_CLIENT, "login-script")),
    "mysql": WriterType(Hold.SESSION, _CLIENT, latches=True, silent=True),
    "pair": WriterType(Hold.LATCH, ("freeze", "thaw", "user", "when"), ("freeze", "thaw")),
    "postgresql": WriterType(Hold.SESSION, (*_CLIENT, "backup-mode"), silent=True),
    "redis": WriterType(Hold.LEASE, ("socket", "login", "password-file"), latches=True),
    "sql": WriterType(
        Hold.SESSION,
        ("user", "client", "client-options", "sentinel", *_STATEMENTS),
        ("client", "quiesce"),
        latches=True,
        silent=True,
    ),
    "vmware": WriterType(Hold.LATCH, ("path", "when"), defaults={"path": "/etc/vmware-tools/backupScripts.d"}),
}
"""The types of writers."""


def hold(config: WriterConfig) -> Hold:
    """Return what ends its hold if all of ours dies: nobody, if its session sets more than it holds itself."""
    return Hold.LATCH if config.undo else TYPES[config.type].hold


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

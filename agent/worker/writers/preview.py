"""What a plan says of the writers: where each has its data, what is not frozen of that. Nothing is changed or held."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from ...api.records import PlannedWriter
from ...api.text import listed
from ...api.writers import WriterConfig, hold
from ..probe import ask
from . import calls, mongodb, mysql_family, postgresql, redis, sql
from .accounts import account
from .client import LOOK_GRACE
from .life import UNKNOWN, devices_of
from .step import Refused

LOOK_SECONDS = 3.0  # in which an application must say where its data are
_GRACE = LOOK_GRACE + 0.5  # seconds after which one that could not even say that it had no answer hangs in the kernel
Look = Callable[[WriterConfig, float], Sequence[str]]


def _programs(config: WriterConfig, _until: float) -> Sequence[str]:
    account(config.user)
    try:
        calls.calls(config)
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    return ()


def _program(config: WriterConfig, _until: float) -> Sequence[str]:
    account(config.user)
    try:
        calls.check_program(config.command[0])
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    return ()


LOOKS: Mapping[str, Look] = {
    "hook": _programs,
    "hook-dir": _programs,
    "live": _program,
    "mariadb": mysql_family.look,
    "mongodb": mongodb.look,
    "mysql": mysql_family.look,
    "pair": _programs,
    "postgresql": postgresql.look,
    "redis": redis.look,
    "sql": sql.look,
    "vmware": _programs,
}
"""Where an application of this type has its data; of the others only what the configuration says is known."""


def preview(
    writers: Collection[WriterConfig], devices: Collection[str], *, required: bool
) -> tuple[PlannedWriter, ...]:
    """Return the writers as a freeze of these devices (major:minor) would have them; `required`: those that are may be.

    All are asked at the same time, and those that do not answer are named.
    """
    until = time.monotonic() + LOOK_SECONDS
    looked = _look_at_all(writers, until)
    places = devices_of({path for _, (paths, _) in looked for path in paths})
    return tuple(_planned(writer, paths, wrong, places, devices, required) for writer, (paths, wrong) in looked)


def _look_at_all(
    writers: Collection[WriterConfig], until: float
) -> list[tuple[WriterConfig, tuple[tuple[str, ...], str]]]:
    looks = {writer.name: functools.partial(_look, writer, until) for writer in writers}
    found = ask(looks, patience=math.inf, until=until + _GRACE)
    hangs = f"it did not answer within {LOOK_SECONDS:g} s"
    return [(writer, found.get(writer.name, (writer.paths, hangs))) for writer in writers]


def _look(writer: WriterConfig, until: float) -> tuple[tuple[str, ...], str]:
    """Return its paths, and what is wrong."""
    try:
        found = tuple(LOOKS[writer.type](writer, until))
    except Refused as error:
        return writer.paths, str(error)
    except OSError as error:
        return writer.paths, error.strerror or str(error)
    return writer.paths or found, ""


def _planned(
    writer: WriterConfig,
    paths: tuple[str, ...],
    wrong: str,
    places: Mapping[str, str],
    devices: Collection[str],
    required: bool,
) -> PlannedWriter:
    unknown = [path for path in paths if places[path] == UNKNOWN]
    if unknown and not wrong:
        wrong = f"where {listed(unknown)} lies is not known: its server does not answer"
    return PlannedWriter(
        name=writer.name,
        type=writer.type,
        hold=hold(writer).value,
        required=writer.required and required,
        after=writer.after,
        paths=paths,
        not_frozen=tuple(path for path in paths if places[path] not in devices),
        error=wrong,
    )

"""The options of writers: what each line of a file means, what is wrong with it, and the order of all. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from .params import seconds
from .writers import NAME, TYPES, BadWriter, Step, WriterConfig


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


def _words(text: str) -> tuple[str, ...]:
    """Return the words of a line; one with blanks stands in quotes, as for a shell."""
    try:
        return tuple(shlex.split(_text(text)))
    except ValueError as error:
        raise ValueError(f"expected words: {error}") from None


def _command(text: str) -> tuple[str, ...]:
    found = _words(text)
    _absolute(found[0] if found else "")
    return found


def _paths(text: str) -> tuple[str, ...]:
    found = () if text == "auto" else _words(text)
    for path in found:
        _absolute(path)
    return found


def _statement(text: str) -> str:
    found = _text(text).rstrip("; \t")
    if not found:
        raise ValueError("expected a statement")
    return found


def _sentinel(text: str) -> str:
    if _text(text).count("{}") != 1 or "{" in text.replace("{}", "") or "}" in text.replace("{}", ""):
        raise ValueError("expected a statement with one {}")
    return _statement(text)


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


REPEATED = ("prepare", "quiesce", "confirm", "release", "undo")
"""The options that may stand there more than once: statements, in their order."""
_LIMITS = ("prepare-limit", "quiesce-limit", "confirm-limit", "release-limit")
_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "type": _type,
    "required": _truth,
    "after": _names,
    "paths": _paths,
    "path": _absolute,
    "backup-mode": _truth,
    "user": _text,
    "client": _absolute,
    "client-options": _words,
    "login": _text,
    "login-script": _absolute,
    "password-file": _absolute,
    "socket": _text,
    "command": _command,
    "freeze": _command,
    "thaw": _command,
    "verdict": _truth,
    "sentinel": _sentinel,
    **dict.fromkeys(REPEATED, _statement),
    "when": when,
    **dict.fromkeys(_LIMITS, _limit),
}
_OF_ALL = ("type", "required", "after", "paths", *_LIMITS)


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
        if option in lines and option not in REPEATED:
            raise BadWriter(f"{at}: {option} stands there for the second time")
        if not value:
            raise BadWriter(f"{at}: {option} has no value")
        try:
            found = _OPTIONS[option](value)
        except ValueError as error:
            raise BadWriter(f"{at}: {option} is {value!r:.80}, {error}") from None
        field = option.replace("-", "_")
        values[field] = (*values.get(field, ()), found) if option in REPEATED else found
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
    if "login" in lines and "password-file" not in lines:
        raise BadWriter(f"{where} line {lines['login']}: login needs the option password-file, too")
    return WriterConfig(name, **(dict(kind.defaults) | values))


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

"""What the records of virtagentctl relay may hold."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ..agent.api.errors import Fault
from ..agent.wire import json_values
from .client_session import SECONDS_MAX
from .group import refuse_twice
from .holding import Options, Wanted
from .named_agents import SYSTEM, everything, expand
from .transports import AGENTS_MAX, GLOB

T = TypeVar("T")

_OPTIONS = {name for name in Options.__annotations__ if name != "progress"}
_SWITCHES = ("strict", "partial", "extend")
_SECONDS = ("hold", "sync_limit", "freeze_limit", "thaw_wait")
_WRITERS = ("all", "try", "none")
_NO_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class Bad(Exception):
    """A record that cannot be carried out; nothing was done."""


def loaded(line: bytes) -> Any:
    """Return the value of a line; raise Bad with what is wrong with it.

    Bytes of a path that are no UTF-8 come as half a surrogate pair each (PEP 383); no other half is one of a character.
    """
    try:
        record = json_values.load(line, lone_surrogates=True)
    except Fault as fault:
        raise Bad(f"a line is no JSON ({fault.text.partition(', ')[2]})") from None
    except RecursionError:
        raise Bad("a line is no JSON that is carried out (it nests too deep)") from None
    if b"\\u" in line and (half := _NO_CHARACTER.search(json.dumps(record, ensure_ascii=False))):
        raise Bad(f"a line has \\u{ord(half[0]):04x}, which is not a valid Unicode character")
    return record


def known(what: str, body: Mapping[str, Any], names: set[str]) -> None:
    """Raise Bad if the record has a member that is none of `names`."""
    if unknown := sorted(body.keys() - names):
        raise Bad(f"{what}: unknown member {unknown[0][:40]!r}; known: {', '.join(sorted(names)) or 'none'}")


def number(what: str, body: Mapping[str, Any], name: str, default: T) -> float | T:
    """Return the number that the member is, `default` if it is not there; raise Bad if it is none over 0."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e11:
        raise Bad(f"{what}: {name} is {_brief(value)}, expected a number over 0")
    return float(value)


def _brief(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:40]


def wanted(options: Any) -> Wanted:
    """Return what is to be frozen, and how; raise Bad if an option is none."""
    if not isinstance(options, dict):
        raise Bad(f"prepare: options is {type(options).__name__}, expected an object")
    known("prepare: options", options, {"include", "exclude", *_OPTIONS})
    for name, value in options.items():
        if name in _SWITCHES and not isinstance(value, bool):
            raise Bad(f"prepare: options: {name} is {_brief(value)}, expected true or false")
        if name in ("include", "exclude") and not isinstance(value, str | list):
            raise Bad(f"prepare: options: {name} is {_brief(value)}, expected a string or several")
        if name == "writers" and value is not None and value not in _WRITERS:
            raise Bad(f"prepare: options: writers is {_brief(value)}, expected {' or '.join(_WRITERS)}")
        if name in _SECONDS and not (value is None and name != "thaw_wait"):
            seconds = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= SECONDS_MAX
            if not seconds:
                raise Bad(f"prepare: options: {name} is {_brief(value)}, expected seconds up to {SECONDS_MAX:g}")
    try:
        return Wanted(**options)
    except (TypeError, ValueError) as error:
        raise Bad(f"prepare: options: {error}") from None


def urls(agents: Any) -> list[str]:
    """Return the URLs of the agents; raise Bad if there is none.

    Names are those of the configuration; a glob matches the unix sockets that are there.
    """
    if not isinstance(agents, list) or not agents or not all(isinstance(one, str) for one in agents):
        raise Bad("prepare: agents is the list of their URLs, one at least")
    found: list[str] = []
    try:
        for one in expand(agents):
            path = one.removeprefix("unix:")
            if path != one and GLOB & set(path) and not os.path.exists(path):
                matches = sorted(glob.glob(path))
                if not matches:
                    raise Bad(f"prepare: nothing matches {one}")
                found += [f"unix:{match}" for match in matches]
            else:
                found.append(one)
        refuse_twice(found)
    except ValueError as error:
        raise Bad(f"prepare: {error}") from None
    if len(found) > AGENTS_MAX:
        raise Bad(f"prepare: {len(found)} agents, at most {AGENTS_MAX}")
    return found


def named() -> list[str]:
    """Return the URLs that the configuration of this host names; raise Bad if there are none."""
    try:
        found = list(dict.fromkeys(everything()))
    except ValueError as error:
        raise Bad(f"prepare: {error}") from None
    if not found:
        raise Bad(f"prepare: no agents are given, and {SYSTEM} names none")
    return found

"""Records (records.py) as what is sent, and back: one `dump` and one `load` for all of them. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from .structs import is_kind, needed

R = TypeVar("R")


class Misshapen(ValueError):
    """Data that does not fit a record; one sentence names the member."""


def dump(record: object) -> dict[str, Any]:
    """Return a record as it is sent, with all members: a dict of texts, numbers, dicts, lists and tuples.

    None becomes {}. Thousands of mounts must cost little, so tuples of plain values are passed on unseen.
    """
    names, values, inner = _layout(cast("Hashable", type(record)))
    found = dict(zip(names, values(record), strict=True))
    for name, convert in inner:
        found[name] = convert(found[name])
    return found


@cache
def _layout(
    kind: type,
) -> tuple[tuple[str, ...], Callable[[object], Any], tuple[tuple[str, Callable[[Any], Any]], ...]]:
    """Return the names of a record's members, a getter of all values, and how to dump those that are not plain."""
    names = tuple(name for name, *_ in _members(cast("Hashable", kind)))
    converts = ((name, _converter(hint)) for name, hint, _ in _members(cast("Hashable", kind)))
    return names, operator.attrgetter(*names), tuple((name, convert) for name, convert in converts if convert)


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    if get_origin(hint) is tuple:
        return _dump_each if is_kind(get_args(hint)[0]) else None
    if is_kind(hint):
        return dump
    if get_origin(hint) is Mapping:
        return dict
    return (lambda value: {} if value is None else dump(value)) if get_args(hint) else None


def _dump_each(records: tuple[object, ...]) -> list[dict[str, Any]]:
    if not records:
        return []
    names, _, inner = _layout(cast("Hashable", type(records[0])))
    if inner:
        return [dump(record) for record in records]
    return [{name: getattr(record, name) for name in names} for record in records]


def load(kind: type[R], data: object, where: str, *, exact: bool = False) -> R:
    """Return `data` as a record; raise Misshapen that names the data by `where`.

    Absent members get their defaults, unknown ones are ignored, and a whole double is taken for an integer: the other
    side may be older or newer, or speak XML-RPC. `exact` is for data that this version has dumped.
    """
    if not isinstance(data, dict):
        raise _wrong(where, data, "a struct")
    values: dict[str, Any] = {}
    members = _members(cast("Hashable", kind))
    for name, hint, required in members:
        if name in data:
            values[name] = _load_member(hint, data[name], f"{where}.{name}", exact)
        elif required or exact:
            raise Misshapen(f"{where} has no {name}")
    if exact and len(data) > len(members):
        raise Misshapen(f"{where} has members that are not of {', '.join(name for name, *_ in members)}")
    return kind(**values)


@cache
def _members(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = get_type_hints(kind)
    return tuple((name, hints[name], must) for name, must in needed(kind))


def _load_member(hint: Any, value: Any, where: str, exact: bool) -> Any:
    if type(value) is hint:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and not exact and isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            item = get_args(hint)[0]
            return tuple(_load_member(item, one, f"{where}[{i}]", exact) for i, one in enumerate(value))
    elif get_origin(hint) is Mapping:
        if isinstance(value, dict):
            kind = get_args(hint)[1]
            return {key: _load_member(kind, one, f"{where}.{key:.40}", exact) for key, one in value.items()}
    elif is_kind(hint):
        return load(cast("type[Any]", hint), value, where, exact=exact)
    elif get_args(hint):
        return None if value == {} else load(get_args(hint)[0], value, where, exact=exact)
    raise _wrong(where, value, {tuple: "a list", Mapping: "a struct"}.get(get_origin(hint)) or hint.__name__)


def _wrong(where: str, value: object, expected: str) -> Misshapen:
    return Misshapen(f"{where} is of type {type(value).__name__}, expected {expected}")

"""Classes made of fields, frozen (`Value`) or not (`Struct`), for which nothing is compiled when they are imported.

To a reader and to the type checker they are dataclasses with slots, and `dataclasses.replace`, `fields` and `asdict`
take them as such. They differ at the start: the methods of a dataclass are generated and compiled again by each process
that imports it, up to six for a class, and stay in memory. The daemon has some 140 such classes, which was a third of
its start; here they share the methods of two base classes (ADR 0041). Fields have annotations that are texts (PEP 563).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from dataclasses import replace as replace

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_options):
        """Tell the type checker, and only that, what a class is."""
        return lambda kind: kind

    def replace(record, /, **changes):
        """Return a copy with other values in the named fields; raise TypeError if there is no field of a name."""
        for name in record.__match_args__:
            if name not in changes:
                changes[name] = getattr(record, name)
        return type(record)(**changes)


class Frozen(AttributeError):
    """A field of a `Value` was to be set or deleted."""


class _Made:
    """The default of a field whose value is made anew for each object."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], T]) -> T:
    """Return the default of a field whose value `default_factory` makes anew for each object."""
    return _Made(default_factory)  # type: ignore[return-value]


class _Kind(type):
    """Makes a slot of each field, and keeps the defaults elsewhere: a class cannot have both by one name."""

    __match_args__: tuple[str, ...]
    _field_names: frozenset[str]
    _setters: tuple[Callable[[object, object], None], ...]  # what sets each field, also in a frozen object
    _field_defaults: dict[str, Any]
    _last_defaults: tuple[object, ...]  # the defaults of the last fields, if these are the same for each object

    def __new__(cls, name: str, bases: tuple[_Kind, ...], namespace: dict[str, Any]) -> _Kind:
        hints: Mapping[str, str] = namespace.get("__annotations__", {})
        own = tuple(each for each, hint in hints.items() if not hint.startswith("ClassVar"))
        names = (*(each for base in bases for each in base.__match_args__), *own)
        defaults = {each: default for base in bases for each, default in base._field_defaults.items()}
        defaults |= {each: namespace.pop(each) for each in own if each in namespace}
        assert names[len(names) - len(defaults) :] == tuple(defaults), f"{name}: a field after one with a default"
        kind = super().__new__(cls, name, bases, {**namespace, "__slots__": own, "__match_args__": names})
        kind._field_names = frozenset(names)
        kind._setters = tuple(getattr(kind, each).__set__ for each in names)
        kind._field_defaults = defaults
        made = any(type(default) is _Made for default in defaults.values())
        kind._last_defaults = () if made else tuple(defaults.values())
        return kind


def is_kind(kind: object) -> bool:
    """Return whether it is a class of this module."""
    return isinstance(kind, _Kind)


def needed(kind: type) -> Iterator[tuple[str, bool]]:
    """Yield the name of each field of such a class, and whether it has no default."""
    assert isinstance(kind, _Kind)
    return ((name, name not in kind._field_defaults) for name in kind.__match_args__)


def _completed(kind: _Kind, given: tuple[object, ...], named: Mapping[str, object]) -> tuple[object, ...]:
    """Return a value for each field, the default where none is given; raise TypeError if they do not fit."""
    names = kind.__match_args__
    less = len(given) - len(names)
    if not named and less + len(kind._last_defaults) >= 0 > less:
        return given + kind._last_defaults[less:]
    found = {**kind._field_defaults, **dict(zip(names, given, strict=False)), **named}
    if less > 0 or found.keys() != kind._field_names or not named.keys().isdisjoint(names[: len(given)]):
        wrong = [f"no {name}" for name in names if name not in found]
        wrong += [f"unknown: {name}" for name in found if name not in names]
        raise TypeError(f"{kind.__qualname__}: {', '.join(wrong) or 'more is given than there are fields for'}")
    if kind._last_defaults:
        return tuple(map(found.__getitem__, names))
    values = map(found.__getitem__, names)
    return tuple(value.make() if type(value) is _Made else value for value in values)


class _AsDataclass:
    """What `dataclasses` knows a class by, for those who ask there; the daemon does not, nor import it."""

    def __get__(self, _record: object, kind: _Kind) -> dict[str, Any]:
        return _as_dataclass(kind)


@functools.cache
def _as_dataclass(kind: _Kind) -> dict[str, Any]:
    import dataclasses

    hints = {name: hint for base in kind.__mro__ for name, hint in getattr(base, "__annotations__", {}).items()}
    fields = []
    for name in kind.__match_args__:
        default = kind._field_defaults.get(name, dataclasses.MISSING)
        either = {"default_factory": default.make} if type(default) is _Made else {"default": default}
        fields.append((name, hints[name], dataclasses.field(**either)))
    made: Any = dataclasses.make_dataclass(kind.__name__, fields)
    found: dict[str, Any] = made.__dataclass_fields__
    return found


class _Fields(metaclass=_Kind):
    """What values and structs have in common."""

    if not TYPE_CHECKING:
        __dataclass_fields__ = _AsDataclass()
        __replace__ = replace  # copy.replace, since Python 3.13

        def __init__(self, *given, **named):
            kind = type(self)
            setters = kind._setters
            if named or len(given) != len(setters):
                given = _completed(kind, given, named)
            for put, value in zip(setters, given, strict=True):
                put(self, value)

    def __eq__(self, other: object) -> bool:
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in type(self).__match_args__)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), _values(self)


def _values(record: object) -> tuple[object, ...]:
    return tuple([getattr(record, name) for name in type(record).__match_args__])  # type: ignore[attr-defined]


@dataclass_transform(field_specifiers=(field,))
class Struct(_Fields):
    """An object whose fields may be set; it has no hash."""

    __hash__ = None  # type: ignore[assignment]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value(_Fields):
    """An object whose fields are set once, when it is made; equal ones have one hash."""

    def __hash__(self) -> int:
        return hash(_values(self))

    if not TYPE_CHECKING:

        def __setattr__(self, name, _value):
            raise Frozen(f"{type(self).__qualname__}: {name} cannot be set")

        def __delattr__(self, name):
            raise Frozen(f"{type(self).__qualname__}: {name} cannot be deleted")

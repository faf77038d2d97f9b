"""Parameters of RPCs, and the check that turns a host's values into arguments or a fault.

There is one check with two wordings: that of our own methods, and that of the QEMU guest agent protocol. The words of
the latter were taken from the replies of QEMU 7.2 (qapi/qobject-input-visitor.c).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol

from .errors import Code, Fault
from .structs import Value

SECONDS_MAX = 10_000_000.0
TIME_MAX = 1e11
GLOBS_MAX = 256
TEXT_MAX = 4096
_FOREIGN = re.compile(r"[^A-Za-z0-9+/=\n]")
_INT64 = range(-(1 << 63), 1 << 63)


class Kind(enum.Enum):
    """The type of a parameter, as the docs name it."""

    STRING = "string"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    SECONDS = "seconds (number)"
    TIME = "time of day (number)"
    GLOBS = "array of globs"
    STRUCT = "struct"
    LIST = "array"
    BASE64 = "base64 (string)"
    WHENCE = "integer or string"
    CAPTURE = "boolean or string"


class Param(Value):
    """One parameter, or one member of a struct. `fields` are the members of a struct, or the one item type of a list.

    What is `secret` is not written to the audit records. `refused` are a command's own words for a value that is none
    of its `choices`, or no base64; {} in it is the value. `any_value` says that there is none to refuse.
    """

    name: str
    kind: Kind
    doc: str
    required: bool = True
    choices: tuple[str, ...] = ()
    fields: tuple[Param, ...] = ()
    secret: bool = False
    refused: str = ""
    any_value: bool = False

    def unchecked(self) -> Iterator[str]:
        """Name what of it could have a value that only a handler would refuse."""
        if self.fields:
            for field in self.fields:
                yield from (f"{self.name}.{name}" for name in field.unchecked())
        elif not (self.choices or self.any_value or self.kind in _WHOLE):
            yield self.name


_WHOLE = (Kind.BOOLEAN, Kind.SECONDS, Kind.TIME, Kind.GLOBS, Kind.BASE64, Kind.STRUCT)
"""Kinds of which `check` knows every value; a glob is one whatever it matches."""

_TYPES: dict[Kind, tuple[type, ...]] = {
    Kind.STRING: (str,),
    Kind.BOOLEAN: (bool,),
    Kind.INTEGER: (int,),
    Kind.SECONDS: (int, float),
    Kind.TIME: (int, float),
    Kind.GLOBS: (list,),
    Kind.STRUCT: (dict,),
    Kind.LIST: (list,),
    Kind.BASE64: (str,),
    Kind.WHENCE: (int, str),
    Kind.CAPTURE: (bool, str),
}


class Wording(Protocol):
    """What is said about wrong arguments. Every method raises ValueError with its sentence.

    `unknown_first`: unknown members are complained about before wrong or missing ones. `whole_path`: a member is named
    together with all that it lies in.
    """

    unknown_first: bool
    whole_path: bool

    def missing(self, path: str) -> str:
        """Say that the parameter is not there."""

    def unknown(self, path: str, known: Iterable[str]) -> str:
        """Say that there is no such parameter."""

    def type_of(self, param: Param, value: object, path: str) -> str:
        """Say that the value has another type than the parameter."""

    def check_value(self, param: Param, value: Any, path: str) -> None:
        """Raise ValueError if the value has the right type, but is not accepted."""


class _Ours:
    unknown_first = True
    whole_path = False

    def missing(self, path: str) -> str:
        return f"member {path!r} is missing"

    def unknown(self, path: str, known: Iterable[str]) -> str:
        return f"unknown member {path[:80]!r}; known: {', '.join(sorted(known)) or 'none'}"

    def type_of(self, param: Param, value: object, path: str) -> str:
        return f"{path} is of type {type(value).__name__}, expected {param.kind.value}"

    def check_value(self, param: Param, value: Any, path: str) -> None:
        match param.kind:
            case Kind.STRING if len(value) > TEXT_MAX or "\0" in value:
                raise ValueError(f"{path} has a NUL or is over {TEXT_MAX} characters")
            case Kind.STRING if param.choices and value not in param.choices:
                raise ValueError(f"{path} is {value[:80]!r}, expected one of {', '.join(param.choices)}")
            case Kind.SECONDS:
                seconds(path, value)
            case Kind.TIME if not 0 < value <= TIME_MAX:  # also refuses NaN
                raise ValueError(f"{path} is {value!r:.40}, expected seconds since 1970 (CLOCK_REALTIME)")
            case Kind.GLOBS if len(value) > GLOBS_MAX:
                raise ValueError(f"{path} holds {len(value)} globs, at most {GLOBS_MAX}")
            case Kind.GLOBS:
                for glob in value:
                    if not isinstance(glob, str) or not 0 < len(glob) <= TEXT_MAX or "\0" in glob:
                        expected = f"globs of 1 to {TEXT_MAX} characters"
                        raise ValueError(f"{path} holds {str(glob)[:80]!r}, expected {expected}")


class _QemuGa:
    unknown_first = False
    whole_path = True
    _names: ClassVar[dict[Kind, str]] = {
        Kind.INTEGER: "integer",
        Kind.STRING: "string",
        Kind.BASE64: "string",
        Kind.BOOLEAN: "boolean",
        Kind.LIST: "array",
        Kind.STRUCT: "object",
        Kind.WHENCE: "GuestFileWhence",
        Kind.CAPTURE: "GuestExecCaptureOutput",
    }

    def missing(self, path: str) -> str:
        return f"Parameter '{path}' is missing"

    def unknown(self, path: str, known: Iterable[str]) -> str:
        return f"Parameter '{path}' is unexpected"

    def type_of(self, param: Param, value: object, path: str) -> str:
        # A number is taken for the integer among the alternatives before its value is looked at.
        number = param.kind is Kind.WHENCE and type(value) in (int, float)
        return f"Invalid parameter type for '{path}', expected: {'integer' if number else self._names[param.kind]}"

    def check_value(self, param: Param, value: Any, path: str) -> None:
        if type(value) is int and value not in _INT64:
            raise ValueError(self.type_of(param, value, path))
        # qemu-ga accepts a NUL that is an overlong UTF-8 sequence; no path, name or argument needs one.
        if param.kind is Kind.STRING and "\0" in value:
            raise ValueError(f"Parameter '{path}' has a NUL")
        if isinstance(value, str) and param.choices and not param.refused and value not in param.choices:
            raise ValueError(f"Parameter '{path}' does not accept value '{value[:80]}'")


OURS: Wording = _Ours()
QEMU_GA: Wording = _QemuGa()


def check(method: str, signature: tuple[Param, ...], given: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name; absent optional ones are None, and so are absent members of a given struct.

    A dict is the struct of a method that takes only a struct; otherwise it is the parameters by name.
    Raises Fault PARAMS that names the method and the parameter.
    """
    try:
        if isinstance(given, dict):
            if len(signature) == 1 and signature[0].kind is Kind.STRUCT:
                return {signature[0].name: _value(signature[0], given, signature[0].name, OURS)}
            return _members(signature, given, "", OURS)
        needed = sum(p.required for p in signature)
        if not needed <= len(given) <= len(signature):
            wanted = str(needed) if needed == len(signature) else f"{needed} to {len(signature)}"
            raise ValueError(f"takes {wanted} parameters, got {len(given)}")
        named = dict(zip((p.name for p in signature), given, strict=False))
        return {p.name: _value(p, named[p.name], p.name, OURS) if p.name in named else None for p in signature}
    except ValueError as error:
        raise Fault(Code.PARAMS, f"{method}: {error}") from None


def check_guest(method: str, signature: tuple[Param, ...], given: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command of the QEMU guest agent by name, as `check` does.

    Raises Fault PARAMS in qemu-ga's order and words, with the parameter as qemu-ga names it: `vcpus[0].online`.
    """
    if not isinstance(given, dict):
        raise Fault(Code.PARAMS, f"{method} takes its arguments by name")
    try:
        found = _members(signature, given, "", QEMU_GA)
        for param in signature:  # what qemu-ga's commands themselves refuse, after all types are right
            if found[param.name] is not None and not _is_taken(param, found[param.name]):
                raise ValueError(param.refused.replace("{}", str(found[param.name])[:80]))
        return found
    except ValueError as error:
        raise Fault(Code.PARAMS, str(error)) from None


def _is_taken(param: Param, value: Any) -> bool:
    if param.kind is Kind.BASE64:
        return _FOREIGN.search(value) is None
    return not (param.refused and param.choices) or value in param.choices


def _members(members: tuple[Param, ...], given: dict[str, Any], inside: str, wording: Wording) -> dict[str, Any]:
    known = {param.name for param in members}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None and wording.unknown_first:
        raise ValueError(wording.unknown(inside + unknown, known))
    found: dict[str, Any] = {}
    for param in members:
        if param.name in given:
            found[param.name] = _value(param, given[param.name], inside + param.name, wording)
        elif param.required:
            raise ValueError(wording.missing(inside + param.name))
        else:
            found[param.name] = None
    if unknown is not None:
        raise ValueError(wording.unknown(inside + unknown, known))
    return found


def _value(param: Param, value: Any, path: str, wording: Wording) -> Any:
    if type(value) not in _TYPES[param.kind]:
        raise ValueError(wording.type_of(param, value, path))
    wording.check_value(param, value, path)
    match param.kind:
        case Kind.STRUCT:
            return _members(param.fields, value, f"{path}." if wording.whole_path else "", wording)
        case Kind.LIST:
            [item] = param.fields
            if item.kind is Kind.STRING and not item.choices and _are_texts(value):
                return list(value)  # a host may send 100,000
            return [_value(item, one, f"{path}[{i}]", wording) for i, one in enumerate(value)]
        case Kind.GLOBS:
            return tuple(value)
        case Kind.SECONDS | Kind.TIME:
            return float(value)
    return value


def _are_texts(values: list[Any]) -> bool:
    """Return whether each of these is a text as qemu-ga's commands take it, which alone have such lists."""
    return set(map(type, values)) <= {str} and "\0" not in "".join(values)


def seconds(name: str, value: float) -> float:
    """Return `value` if it is from 0 to SECONDS_MAX seconds; otherwise raise ValueError that gives `name`."""
    if not 0 <= value <= SECONDS_MAX:  # also refuses NaN and infinity
        raise ValueError(f"{name} is {value!r:.40}, expected 0 to {SECONDS_MAX:.0f} seconds")
    return float(value)

"""Parameters of an RPC: what they are, and the check that turns a host's values into arguments or a fault."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from .errors import Code, Fault

SECONDS_MAX = 10_000_000.0
GLOBS_MAX = 256
TEXT_MAX = 4096


class Kind(enum.Enum):
    """Type of a parameter, as the docs name it."""

    STRING = "string"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    SECONDS = "seconds (number)"
    GLOBS = "array of globs"
    STRUCT = "struct"
    LIST = "array"
    WHENCE = "integer or string"
    CAPTURE = "boolean or string"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter or one member of a struct. `fields` are a struct's members, or the one item of a list.

    What is `secret` is not written to the audit records.
    """

    name: str
    kind: Kind
    doc: str
    required: bool = True
    choices: tuple[str, ...] = ()
    fields: tuple[Param, ...] = ()
    secret: bool = False


def check(method: str, signature: tuple[Param, ...], given: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name; absent optional ones are None, and so are absent members of a struct that is given.

    A dict stands for the struct of a method that takes only one, else for the parameters by name.
    Raises Fault PARAMS, which names the method and the parameter.
    """
    try:
        if isinstance(given, dict):
            if len(signature) == 1 and signature[0].kind is Kind.STRUCT:
                return {signature[0].name: _value(signature[0], given)}
            return _members(signature, given)
        needed = sum(p.required for p in signature)
        if not needed <= len(given) <= len(signature):
            wanted = str(needed) if needed == len(signature) else f"{needed} to {len(signature)}"
            raise ValueError(f"takes {wanted} parameters, got {len(given)}")
        named = dict(zip((p.name for p in signature), given, strict=False))
        return {p.name: _value(p, named[p.name]) if p.name in named else None for p in signature}
    except ValueError as error:
        raise Fault(Code.PARAMS, f"{method}: {error}") from None


def _members(fields: tuple[Param, ...], given: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown member {name[:80]!r}; known: {', '.join(sorted(known)) or 'none'}")
    for field in fields:
        if field.required and field.name not in given:
            raise ValueError(f"member {field.name!r} is missing")
    return {f.name: _value(f, given[f.name]) if f.name in given else None for f in fields}


def _value(param: Param, value: Any) -> Any:
    match param.kind, value:
        case Kind.STRING, str():
            if len(value) > TEXT_MAX or "\0" in value:
                raise ValueError(f"{param.name} has a NUL or is over {TEXT_MAX} characters")
            if param.choices and value not in param.choices:
                raise ValueError(f"{param.name} is {value[:80]!r}, expected one of {', '.join(param.choices)}")
            return value
        case Kind.BOOLEAN, bool():
            return value
        case Kind.INTEGER, int() if not isinstance(value, bool):
            return value
        case Kind.SECONDS, int() | float() if not isinstance(value, bool):
            return seconds(param.name, value)
        case Kind.GLOBS, list() if len(value) <= GLOBS_MAX:
            for glob in value:
                if not isinstance(glob, str) or not 0 < len(glob) <= TEXT_MAX or "\0" in glob:
                    raise ValueError(
                        f"{param.name} holds {str(glob)[:80]!r}, expected globs of 1 to {TEXT_MAX} characters"
                    )
            return tuple(value)
        case Kind.GLOBS, list():
            raise ValueError(f"{param.name} holds {len(value)} globs, at most {GLOBS_MAX}")
        case Kind.STRUCT, dict():
            return _members(param.fields, value)
        case _:
            raise ValueError(f"{param.name} is of type {type(value).__name__}, expected {param.kind.value}")


def seconds(name: str, value: float) -> float:
    """Return `value` if it is a number of seconds from 0 to SECONDS_MAX; raise ValueError that names it else."""
    if not 0 <= value <= SECONDS_MAX:  # which neither NaN nor infinity is
        raise ValueError(f"{name} is {value!r:.40}, expected 0 to {SECONDS_MAX:.0f} seconds")
    return float(value)

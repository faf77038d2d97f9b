"""Arguments of the QEMU guest agent protocol: checked in qemu-ga's order, refused in its words.

The words are those of QEMU 7.2's qapi/qobject-input-visitor.c, read off the wire: members in the order of the schema,
the first that is wrong is told, unknown ones last.
"""

from __future__ import annotations

from typing import Any

from .errors import Code, Fault
from .params import Kind, Param

INT64 = range(-(1 << 63), 1 << 63)
WHENCES = ("set", "cur", "end")
CAPTURES = ("none", "stdout", "stderr", "separated", "merged")


def check(method: str, signature: tuple[Param, ...], given: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name; absent optional ones, and absent members of a struct, are None.

    Raises Fault PARAMS, which names the parameter as qemu-ga does: `vcpus[0].online`.
    """
    if not isinstance(given, dict):
        raise Fault(Code.PARAMS, f"{method} takes its arguments by name")
    return _members(signature, given, "")


def _members(fields: tuple[Param, ...], given: dict[str, Any], inside: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields:
        if field.name in given:
            found[field.name] = _value(field, given[field.name], inside + field.name)
        elif field.required:
            raise Fault(Code.PARAMS, f"Parameter '{inside}{field.name}' is missing")
        else:
            found[field.name] = None
    for name in given:
        if name not in found:
            raise Fault(Code.PARAMS, f"Parameter '{inside}{name}' is unexpected")
    return found


def _value(param: Param, value: Any, path: str) -> Any:
    match param.kind, value:
        case Kind.INTEGER, int() if not isinstance(value, bool) and value in INT64:
            return value
        case Kind.WHENCE, int() if not isinstance(value, bool) and value in INT64:
            return value
        case Kind.STRING, str():
            return _text(value, path)
        case Kind.WHENCE, str():
            return _choice(value, WHENCES, path)
        case Kind.CAPTURE, str():
            return _choice(value, CAPTURES, path)
        case Kind.BOOLEAN | Kind.CAPTURE, bool():
            return value
        case Kind.LIST, list():
            [item] = param.fields
            return [_value(item, one, f"{path}[{i}]") for i, one in enumerate(value)]
        case Kind.STRUCT, dict():
            return _members(param.fields, value, f"{path}.")
        case kind, _:
            raise Fault(Code.PARAMS, f"Invalid parameter type for '{path}', expected: {_NAMES[kind]}")


_NAMES = {
    Kind.INTEGER: "integer",
    Kind.STRING: "string",
    Kind.BOOLEAN: "boolean",
    Kind.LIST: "array",
    Kind.STRUCT: "object",
    Kind.WHENCE: "GuestFileWhence",
    Kind.CAPTURE: "GuestExecCaptureOutput",
}


def _text(value: str, path: str) -> str:
    # qemu-ga takes it as an overlong UTF-8 sequence, which no path, name or argument means.
    if "\0" in value:
        raise Fault(Code.PARAMS, f"Parameter '{path}' has a NUL")
    return value


def _choice(value: str, choices: tuple[str, ...], path: str) -> str:
    if value not in choices:
        raise Fault(Code.PARAMS, f"Parameter '{path}' does not accept value '{value[:80]}'")
    return value

"""JSON as in the QEMU guest agent protocol, for both sides: a text to a value, a value to a line. No I/O.

The json module reads and writes it. Duplicate keys, NaN and infinity, and half a surrogate pair are refused in
qemu-ga's words, since clients compare them (seen in replies of QEMU 7.2; qobject/json-lexer.c, json-parser.c).
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from ..api.errors import Code, Fault

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(\.\d+)?([eE][+-]?\d+)?$")
_BRACKET = re.compile(r"[][{}]")
_PIECE = 64 << 10  # characters that are searched for brackets in one go: a long text is never copied as a whole
_LITERALS = ("true", "false", "null")
_ESCAPE = re.compile(r"\\(?:ud[89ab]..\\ud[c-f]..|(ud[89a-f]..)|.)")  # as json writes it; a group if it is half a pair
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _parse_error(text: str) -> Fault:
    return Fault(Code.PARSE, f"JSON parse error, {text}")


def load(data: bytes | bytearray, *, lone_surrogates: bool = False) -> Any:
    """Return the value of a JSON text; raise Fault PARSE in qemu-ga's words.

    What it may nest and hold is for the caller to bound. `lone_surrogates` says that half a surrogate pair is taken,
    since the other side is not trusted to know better.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _parse_error("invalid UTF-8 sequence in string") from None
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _parse_error(_words(error)) from None
    if not lone_surrogates and _ESCAPED_SURROGATE.search(text):
        _refuse_lone_surrogates(value, text)
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _parse_error("duplicate key")
    return found


def _integer(digits: str) -> int | float:
    # What does not fit in 64 bits is a double, as in qemu-ga. Python needs quadratic time for very long integers.
    value = int(digits) if len(digits) <= 20 else _double(digits)
    return value if -(2**63) <= value < 2**64 else float(value)


def _double(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _parse_error(f"number out of range '{digits[:64]}'")
    return value


def _constant(name: str) -> Any:
    raise _parse_error(f"stray '{name[:1]}'")


_decoder = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_double, parse_constant=_constant
)


def _words(error: json.JSONDecodeError) -> str:
    """Return qemu-ga's words for an error of the json module."""
    rest = error.doc[error.pos : error.pos + 64]
    word = re.match(r"[a-z]+", rest)
    match error.msg:
        case "Expecting ':' delimiter":
            return "missing : in object pair"
        case "Expecting ',' delimiter":
            return _behind_a_value(error.doc, error.pos, rest)
        case "Expecting value" if rest[:1] == "-":
            return f"stray '{rest[:2]}'"
        case "Invalid \\uXXXX escape":
            escape = error.doc[error.doc.rfind("\\u", 0, error.pos + 2) :][:6]
            escape = escape[: escape.find('"') + 1 or 6]
            return f"{escape} is not a valid Unicode character"
        case "Invalid \\escape":
            return "invalid escape sequence in string"
        case "Expecting property name enclosed in double quotes" if not word or word[0] in _LITERALS:
            return "expecting value" if rest[:1] in ("}", "]", ",", ":") else "key is not a string in object"
        case _ if word:
            return f"invalid keyword '{word[0]}'"
        case "Expecting value" if rest[:1] not in ("", "}", "]", ",", ":"):
            return f"stray '{rest[:1]}'"
    return "expecting value"


def _behind_a_value(text: str, at: int, rest: str) -> str:
    """Return what is wrong with what follows a value: it goes on in a way that it cannot, or there is no comma."""
    before = text[max(0, at - 64) : at]
    keyword, more = re.search(r"[a-z]+$", before), re.match(r"[a-z]+", rest)
    if keyword and more:
        return f"invalid keyword '{keyword[0]}{more[0]}'"
    if number := _NUMBER.search(before):
        whole = number[2] is None and number[3] is None
        if whole and number[1] in ("0", "-0") and rest[:1].isdecimal():
            return f"stray '{number[0]}{rest[0]}'"
        if rest[:1] == ".":
            return f"stray '{number[0]}{rest[:2]}'" if whole else "stray '.'"
        if rest[:1] in ("e", "E") and number[3] is None and number[0] not in ("0", "-0"):
            return f"stray '{number[0]}{rest[: 3 if rest[1:2] in ('+', '-') else 2]}'"
    return f"expected separator in {'list' if _innermost(text, at) == '[' else 'dict'}"


def _innermost(text: str, end: int) -> str:
    """Return the bracket that was opened last and is not closed before `end`; up to there the text is JSON."""
    open_ones = [""]
    quoted, left = False, ""
    for at in range(0, end, _PIECE):
        piece = (left + text[at : min(at + _PIECE, end)]).replace("\\\\", "")
        left = "\\" if piece.endswith("\\") else ""  # what that escapes comes with the next piece
        piece = piece.removesuffix("\\")
        for index, part in enumerate(piece.replace('\\"', "").split('"')):
            quoted ^= index > 0
            for bracket in () if quoted else _BRACKET.findall(part):
                if bracket in "[{":
                    open_ones.append(bracket)
                else:
                    open_ones.pop()
    return open_ones[-1]


def _refuse_lone_surrogates(value: Any, text: str) -> None:
    match value:
        case str() if found := LONE_SURROGATE.search(value):
            spelt = re.search(rf"\\u{ord(found[0]):04x}", text, re.IGNORECASE)
            raise _parse_error(f"{spelt[0] if spelt else ''} is not a valid Unicode character")
        case list():
            for item in value:
                _refuse_lone_surrogates(item, text)
        case dict():
            for name, item in value.items():
                _refuse_lone_surrogates(name, text)
                _refuse_lone_surrogates(item, text)


def dump(value: Any) -> bytes:
    """Return `value` as one line of ASCII; bytes become base64, undecodable bytes of a path U+FFFD.

    Raises TypeError, ValueError or RecursionError if JSON has no form for it.
    """
    text = json.dumps(value, default=_plain, allow_nan=False)
    if "\\ud" in text:
        text = _ESCAPE.sub(lambda escape: "\\ufffd" if escape[1] else escape[0], text)
    return text.encode("ascii") + b"\n"


def _plain(value: Any) -> str:
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"{type(value).__name__} has no form in JSON")

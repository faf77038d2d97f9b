"""XML-RPC for both sides: a methodCall or a methodResponse to its values, and back. No I/O.

pyexpat parses the XML. A document with a DTD is refused where the DTD begins, so no entity can be declared, expanded or
fetched. Neither xmlrpc.client nor defusedxml.xmlrpc is imported (ADR 0013): they bring in http.client, ssl and pydoc,
which is 7 and 9 MiB of a daemon that may have 20; and their reader takes almost any element for a parameter.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.parsers import expat

from ..api.errors import Code, Fault, reported_by_other
from ..api.structs import Struct, Value, field
from .messages import ITEMS_MAX, Shared

METHOD_NAME_MAX = 256
TOKEN_MAX = 16 << 10
"""Bytes of a tag or comment that may have come without its end."""


def dump_call(method: str, params: Sequence[Any]) -> bytes:
    """Return the bytes of a methodCall.

    Raises TypeError, ValueError, OverflowError or RecursionError if XML-RPC has no form for a parameter.
    """
    out = [b"<?xml version='1.0'?>\n<methodCall><methodName>%b</methodName><params>" % _xml_text(method)]
    for value in params:
        out.append(b"<param>")
        _dump(value, out.append)
        out.append(b"</param>")
    out.append(b"</params></methodCall>\n")
    return b"".join(out)


def dump_reply(value: Any) -> list[bytes]:
    """Return the pieces of the methodResponse with `value`.

    Raises TypeError, ValueError, OverflowError or RecursionError if XML-RPC has no form for it.
    """
    if isinstance(value, Shared):
        value.pieces = value.pieces or tuple(dump_reply(dict(value)))
        return [*value.pieces]
    out = [b"<?xml version='1.0' encoding='UTF-8'?>\n<methodResponse><params><param>"]
    _dump(value, out.append)
    out.append(b"</param></params></methodResponse>\n")
    return out


def dump_fault(fault: Fault) -> list[bytes]:
    """Return the pieces of the methodResponse with `fault`."""
    out = [b"<?xml version='1.0' encoding='UTF-8'?>\n<methodResponse><fault>"]
    _dump({"faultCode": int(fault.code), "faultString": fault.text}, out.append)
    out.append(b"</fault></methodResponse>\n")
    return out


def _dump(value: Any, write: Callable[[bytes], None]) -> None:
    match value:
        case str():
            write(b"<value><string>%b</string></value>" % _xml_text(value))
        case bool():
            write(b"<value><boolean>%d</boolean></value>" % value)
        case int() if -(1 << 31) <= value < 1 << 31:
            write(b"<value><int>%d</int></value>" % value)
        case int() | float():
            # ADR 0005: not every client knows <i8>, and a double is exact up to 2**53.
            number = float(value)
            if not math.isfinite(number):
                raise ValueError(f"{number} is not a number that XML-RPC has")
            write(b"<value><double>%a</double></value>" % number)
        case bytes() | bytearray():
            write(b"<value><base64>")
            write(binascii.b2a_base64(value, newline=False))
            write(b"</base64></value>")
        case list() | tuple():
            write(b"<value><array><data>")
            for item in value:
                _dump(item, write)
            write(b"</data></array></value>")
        case dict():
            write(b"<value><struct>")
            for name, item in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"a struct's member is named {name!r}")
                write(b"<member><name>%b</name>" % _xml_text(name))
                _dump(item, write)
                write(b"</member>")
            write(b"</struct></value>")
        case _:  # ADR 0005: None, too, since not every client knows <nil/>
            raise TypeError(f"{type(value).__name__} has no form in XML-RPC")


# Not characters of XML 1.0 (2.2), and the carriage return, which a reader would turn into a line feed.
UNSENDABLE = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


def _xml_text(text: str) -> bytes:
    r"""Return `text` for XML; what XML cannot contain is escaped visibly, as \x1b, and so are undecodable bytes."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return UNSENDABLE.sub(_visible, text).encode()


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x0D:
        return "&#13;"
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: surrogateescape put a byte here
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class CallReader:
    """Reads one methodCall as it comes in, at most `nesting` arrays and structs deep and ITEMS_MAX elements long.

    Both methods raise Fault: PARSE if it is not well-formed XML or has a DTD, REQUEST if it is no methodCall or over a
    limit, PARAMS for what stands inside <params>. A text comes in pieces; but a tag with its attributes, or a comment,
    is looked at only when it is whole, and then at one go, so it must be short.
    """

    def __init__(self, nesting: int) -> None:
        self._reader = _Reader(_CALL, nesting, ITEMS_MAX)
        self._parser = self._reader.parser()
        self._fed = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Take more of it; not too little: expat before 2.6 reads a long token anew for each piece (CVE-2023-52425)."""
        _parse(self._parser, data, last=False)
        self._fed += len(data)
        if self._fed - self._parser.CurrentByteIndex > TOKEN_MAX:
            raise Fault(Code.REQUEST, f"a tag or comment is over the limit of {TOKEN_MAX} bytes")

    def close(self) -> tuple[str, list[Any]]:
        """Return method name and parameters."""
        _parse(self._parser, b"", last=True)
        method, *params = self._reader.result()
        return method, params[0] if params else []


class ReplyReader:
    """A reader of one methodResponse as it comes in, at most `nesting` arrays and structs deep."""

    def __init__(self, nesting: int) -> None:
        self._reader = _Reader(_RESPONSE, nesting)
        self._parser = self._reader.parser()

    def feed(self, data: bytes) -> None:
        """Take more bytes; raise Fault that says what is wrong if they cannot become a methodResponse."""
        _parse(self._parser, data, last=False)

    def close(self) -> Any | Fault:
        """Return the value or the fault in it; raise Fault if it is not a whole methodResponse."""
        _parse(self._parser, b"", last=True)
        return self._reader.result()


def _parse(parser: expat.XMLParserType, data: bytes | bytearray, *, last: bool) -> None:
    try:
        parser.Parse(data, last)
    except (expat.ExpatError, ValueError) as error:  # pyexpat raises ValueError if it cannot decode expat's text
        raise Fault(Code.PARSE, f"the body is not well-formed XML: {error}") from None


_ENCODINGS = ("UTF-8", "UTF-16", "UTF-16BE", "UTF-16LE", "ISO-8859-1", "US-ASCII")
_METHOD_NAME = re.compile(r"[A-Za-z0-9_.:/]+")
_INT = re.compile(r"[+-]?[0-9]{1,20}")
_DOUBLE_MAX = 1100
"""In characters. The longest exact decimal form of a double is shorter."""


def _method_name(text: str) -> str:
    if len(text) > METHOD_NAME_MAX or not _METHOD_NAME.fullmatch(text):
        raise ValueError(f"is not 1 to {METHOD_NAME_MAX} of A-Z a-z 0-9 _ . : /")
    return text


def _int(text: str) -> int:
    if not _INT.fullmatch(text := text.strip()) or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError("is not an integer of 64 bits")
    return int(text)


def _double(text: str) -> float:
    try:
        if len(text) <= _DOUBLE_MAX and "_" not in text:
            return float(text)
    except ValueError:
        pass
    raise ValueError("is not a number")


def _boolean(text: str) -> bool:
    if (text := text.strip()) not in ("0", "1"):
        raise ValueError("is not 0 or 1")
    return text == "1"


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ValueError("is not base64") from None


def _nil(text: str) -> None:
    if text.strip():
        raise ValueError("is not empty")


def _date(text: str) -> None:
    raise ValueError("is a date, and no method takes one")


def _finite(text: str) -> float:
    if not math.isfinite(number := _double(text)):
        raise ValueError("is not a finite number")
    return number


def _first(items: list[Any]) -> Any:
    return items[0]


def _fault(items: list[Any]) -> Fault:
    match items:
        case [{"faultCode": int(code), "faultString": str(text)}]:
            return reported_by_other(code, text)
    raise ValueError("is without a number and a text")


class _Element(Value):
    """What may be in an element, and what its value is.

    `children` are the names allowed at each place, of which at least `least` must be there; if it `repeats`, the first
    are allowed at every place. `value` makes the element's value from the values of its children; without children,
    `of_text` makes it from its text. If there is no `of_text`, text is refused. Both raise ValueError with the end of a
    sentence that names the element.
    """

    children: tuple[tuple[str, ...], ...] = ()
    least: int = 0
    repeats: bool = False
    value: Callable[[list[Any]], Any] = list
    of_text: Callable[[str], Any] | None = None


_TYPES: dict[str, _Element] = {
    **dict.fromkeys(("i4", "int", "i8", "i1", "i2", "biginteger"), _Element(of_text=_int)),
    **dict.fromkeys(("double", "float"), _Element(of_text=_double)),
    "boolean": _Element(of_text=_boolean),
    "string": _Element(of_text=str),
    "base64": _Element(of_text=_base64),
    "dateTime.iso8601": _Element(of_text=_date),
    "nil": _Element(of_text=_nil),
    "array": _Element((("data",),), least=1, value=_first),
    "struct": _Element((("member",),), repeats=True, value=dict),
}
_INSIDE: dict[str, _Element] = {
    "param": _Element((("value",),), least=1, value=_first),
    "data": _Element((("value",),), repeats=True),
    "member": _Element((("name",), ("value",)), least=2),
    "name": _Element(of_text=str),
}
_REPLY_TYPES = {name: row for name, row in _TYPES.items() if name not in ("nil", "dateTime.iso8601")}
_REPLY_TYPES |= dict.fromkeys(("double", "float"), _Element(of_text=_finite))


class _Document(Value):
    """A kind of document: its root, what that is called, who reads it, and what may be in each element."""

    root: str
    what: str
    reader: str
    elements: Mapping[str, _Element]


_CALL = _Document(
    "methodCall",
    "request",
    "this agent",
    {
        **_TYPES,
        **_INSIDE,
        "": _Element((("methodCall",),), value=_first),
        "methodCall": _Element((("methodName",), ("params",)), least=1),
        "methodName": _Element(of_text=_method_name),
        "params": _Element((("param",),), repeats=True),
        "value": _Element((tuple(_TYPES),), value=_first, of_text=str),
    },
)
_RESPONSE = _Document(
    "methodResponse",
    "reply",
    "this client",
    {
        **_REPLY_TYPES,
        **_INSIDE,
        "": _Element((("methodResponse",),), value=_first),
        "methodResponse": _Element((("params", "fault"),), least=1, value=_first),
        "params": _Element((("param",),), least=1, value=_first),
        "fault": _Element((("value",),), least=1, value=_fault),
        "value": _Element((tuple(_REPLY_TYPES),), value=_first, of_text=str),
    },
)


class _Open(Struct):
    """An element that has not ended: its name, its row, the values of its children and its text so far."""

    name: str
    row: _Element
    items: list[Any] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


class _Reader:
    """The state of parsing one document: the stack of open elements, with the document itself at the bottom."""

    def __init__(self, document: _Document, nesting: int, items: float = math.inf) -> None:
        self._document = document
        self._items = items  # elements that may still come
        self._open = [_Open("", document.elements[""])]
        self._nesting = nesting
        self._nested = 0

    def parser(self) -> expat.XMLParserType:
        """Return a parser that calls this reader. The reader does not refer to it: no cycle of references."""
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._check_encoding
        parser.StartDoctypeDeclHandler = self._refuse_dtd
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        return parser

    def result(self) -> Any:
        """Return the value of the document once it has ended."""
        return self._open[0].items[0]

    def _check_encoding(self, version: str, encoding: str | None, standalone: int) -> None:
        # For any other encoding pyexpat would import one of Python's codecs, from a disk that may be stuck.
        if encoding is not None and encoding.upper() not in _ENCODINGS:
            reads = f"{self._document.reader} reads {', '.join(_ENCODINGS)}"
            raise Fault(Code.PARSE, f"encoding {excerpt(encoding)}: {reads}")

    @staticmethod
    def _refuse_dtd(name: str, system_id: str | None, public_id: str | None, internal: bool) -> None:
        raise Fault(Code.PARSE, "a document type declaration is refused, and so are entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        """Open an element; its namespace prefix, as in <ex:nil/>, is ignored."""
        self._items -= 1
        if self._items < 0:
            raise Fault(Code.REQUEST, f"more elements than the limit of {ITEMS_MAX}")
        name = name.rpartition(":")[2]
        parent = self._open[-1]
        place = 0 if parent.row.repeats else len(parent.items)
        if place >= len(parent.row.children) or name not in parent.row.children[place]:
            raise self._fault(f"<{_cut(name)}> is not expected {self._where(parent)}")
        if name in ("array", "struct"):
            self._nested += 1
            if self._nested > self._nesting:
                raise Fault(Code.REQUEST, f"arrays and structs nest deeper than the limit of {self._nesting}")
        self._open.append(_Open(name, self._document.elements[name]))

    def _text(self, text: str) -> None:
        """Add to the text of the open element."""
        self._open[-1].text.append(text)

    def _end(self, name: str) -> None:
        """Close the open element and give its value to its parent."""
        element = self._open.pop()
        row, text = element.row, "".join(element.text)
        if row.of_text is not None and not element.items:
            try:
                value = row.of_text(text)
            except ValueError as error:
                raise self._fault(f"<{element.name}> {excerpt(text)} {error}") from None
        elif text.strip():
            raise self._fault(f"text {excerpt(text)} is not expected {self._where(element)}")
        elif len(element.items) < row.least:
            raise self._fault(f"<{row.children[len(element.items)][0]}> is missing {self._where(element)}")
        else:
            try:
                value = row.value(element.items)
            except ValueError as error:
                raise self._fault(f"<{element.name}> {error}") from None
        if element.name in ("array", "struct"):
            self._nested -= 1
        self._open[-1].items.append(value)

    def _fault(self, sentence: str) -> Fault:
        inside_params = any(element.name == "params" for element in self._open)
        return Fault(Code.PARAMS if inside_params else Code.REQUEST, sentence)

    def _where(self, element: _Open) -> str:
        document = self._document
        return (
            f"in <{element.name}>"
            if element.name
            else f"as the document: an XML-RPC {document.what} is a <{document.root}>"
        )


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def excerpt(text: str) -> str:
    """Return the beginning of `text` in quotes, for an error's sentence."""
    return repr(_cut(text.strip()))

"""JSON as the QEMU guest agent protocol has it, and what is none: for whoever reads a request or a reply, or writes.

The words are qemu-ga's.
"""

from __future__ import annotations

from typing import Any

READ: list[tuple[bytes, Any]] = [
    (b"{}", {}),
    (b'{ "b" : [1, {"c": "}]"}] }', {"b": [1, {"c": "}]"}]}),
    (b'{"a":"\\u00e9\\ud83d\\ude00\xc3\xa9\\/\\""}', {"a": 'é😀é/"'}),
    (b'{"i":-9223372036854775808}', {"i": -(2**63)}),
    (b'{"u":18446744073709551615}', {"u": 2**64 - 1}),
    (b'{"i":1000000000000000000000}', {"i": 1e21}),
    (b'{"i":-9223372036854775809}', {"i": -(2.0**63)}),
    (b'{"a":-2.5e1,"b":null,"c":true}', {"a": -25.0, "b": None, "c": True}),
]
BAD: list[tuple[bytes, str]] = [
    (b"{1:2}", "key is not a string in object"),
    (b'{"a"}', "missing : in object pair"),
    (b'{"a" 1}', "missing : in object pair"),
    (b'{"a":[1 2]}', "expected separator in list"),
    (b'{"a":1 "b":2}', "expected separator in dict"),
    (b'{"a":"[{\\"[" 1}', "expected separator in dict"),
    (b'{"a":1 true}', "expected separator in dict"),
    (b'{"a":0x10}', "expected separator in dict"),
    (b'{"a":truex}', "invalid keyword 'truex'"),
    (b'{execute:"guest-ping"}', "invalid keyword 'execute'"),
    (b"{true:1}", "key is not a string in object"),
    (b"{:1}", "expecting value"),
    (b'{"a":"\\u00e"}', '\\u00e" is not a valid Unicode character'),
    (b'{"a":"\\u"}', '\\u" is not a valid Unicode character'),
    (b'{"a":"\\uZZZZ"}', "\\uZZZZ is not a valid Unicode character"),
    (b'{"a":1e+}', "stray '1e+}'"),
    (b'{"a":1.5.5}', "stray '.'"),
    (b"[1,]", "expecting value"),
    (b"{,}", "expecting value"),
    (b'{"a":nul}', "invalid keyword 'nul'"),
    (b'{"a":1,"a":2}', "duplicate key"),
    (b'{"a":"\\q"}', "invalid escape sequence in string"),
    (b'{"a":"\xc3"}', "invalid UTF-8 sequence in string"),
    (b'{"a":1e999}', "number out of range '1e999'"),
    (b'{"a":' + b"9" * 5000 + b"}", f"number out of range '{'9' * 64}'"),
    *((b'{"a":' + number + b"}", "") for number in b"NaN Infinity -Infinity +1 01 1. .5 -".split()),
]
"""What is said of it is empty where a stream of requests breaks off before the text is whole."""

WRITTEN: list[tuple[Any, bytes]] = [
    ({"a": [1, 2.5, True, None, ""]}, b'{"a": [1, 2.5, true, null, ""]}'),
    ('é\x1b"😀', b'"\\u00e9\\u001b\\"\\ud83d\\ude00"'),
    ((-(2**63), 2**63 - 1), b"[-9223372036854775808, 9223372036854775807]"),
]

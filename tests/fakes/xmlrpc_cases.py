"""Values as XML-RPC has them, and what is none: for whoever reads or writes a call or a reply, agent and client alike.

What stands in <value>...</value> is called `inner`.
"""

from __future__ import annotations

import math
from typing import Any

READ: list[tuple[str, Any]] = [
    ("", ""),
    (" kept ", " kept "),
    ("<string/>", ""),
    ("\n <string> kept </string>\n", " kept "),
    ("&lt;&#65;<![CDATA[<b>]]>&amp;", "<A<b>&"),
    ("<!-- no --><i4>-7</i4>", -7),
    ("<int> +12 </int>", 12),
    ("<i8>9223372036854775807</i8>", (1 << 63) - 1),
    ("<ex:i8 xmlns:ex='http://ws.apache.org/xmlrpc/namespaces/extensions'>5</ex:i8>", 5),
    ("<boolean>1</boolean>", True),
    ("<double>-1.5e3</double>", -1500.0),
    ("<base64>\n aGVs\r\nbG8= \n</base64>", b"hello"),
    ("<base64/>", b""),
    ("<array><data/></array>", []),
    ("<struct/>", {}),
    ("<struct><member><name/><value><int>1</int></value></member></struct>", {"": 1}),
]
READ_IN_CALLS: list[tuple[str, Any]] = [
    ("<ex:nil/>", None),
    ("<nil/>", None),
    ("<nil></nil>", None),
    ("<double>inf</double>", math.inf),
]
BAD_VALUES: list[tuple[str, str]] = [
    ("<int>five</int>", "<int> 'five' is not an integer"),
    ("<int/>", "not an integer"),
    ("<int>1_0</int>", "not an integer"),
    ("<i4>\u0663</i4>", "not an integer"),
    ("<i8>9223372036854775808</i8>", "64 bits"),
    ("<int>" + "9" * 1_000_000 + "</int>", "999...' is not an integer of 64 bits"),
    ("<double>1,5</double>", "'1,5' is not a number"),
    ("<double>1_0</double>", "not a number"),
    ("<double>" + "9" * 1_000_000 + "</double>", "not a number"),
    ("<boolean>true</boolean>", "not 0 or 1"),
    ("<base64>a</base64>", "not base64"),
    ("<base64>aGVs$bG8=</base64>", "not base64"),
    ("<base64>\u00e9\u00e9\u00e9\u00e9</base64>", "not base64"),
    ("<decimal>1</decimal>", "<decimal> is not expected in <value>"),
    ("<int>1</int><int>2</int>", "<int> is not expected"),
    ("1<int>2</int>", "text '1'"),
    ("<int>1</int>2", "text '2'"),
    ("<string>a<b>c</b></string>", "<b> is not expected in <string>"),
    ("<array/>", "<data> is missing in <array>"),
    ("<array><data/><data/></array>", "<data> is not expected"),
    ("<array><data><int>1</int></data></array>", "<int> is not expected in <data>"),
    ("<struct><member/></struct>", "<name> is missing in <member>"),
    ("<struct><member><name>a</name></member></struct>", "<value> is missing in <member>"),
    ("<struct><member><value/><name/></member></struct>", "<value> is not expected in <member>"),
    ("<" + "x" * 1000 + "/>", "..."),
]
"""And what is said about them."""
BAD_IN_CALLS = [
    ("<nil>x</nil>", "is not empty"),
    ("<dateTime.iso8601>20111001T12:00:00</dateTime.iso8601>", "no method takes one"),
]
BAD_IN_REPLIES = [
    ("<nil/>", "<nil> is not expected in <value>"),
    ("<dateTime.iso8601>20260101T00:00:00</dateTime.iso8601>", "is not expected in <value>"),
    ("<double>nan</double>", "not a finite number"),
    ("<double>inf</double>", "not a finite number"),
    ("<double>1e999</double>", "not a finite number"),
]
"""No method returns these."""

BOMB = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
BAD_XML = [
    (b"", "&nbsp;", "undefined entity"),
    (b"", "\x00", "not well-formed"),
    (b"", "&#xd800;", "invalid character"),
    (b"<?xml version='1.0' encoding='koi8-r'?>", "", "'koi8-r'"),
    (b"<?xml version='1.0' encoding='rot13'?>", "", "'rot13'"),
    (b"<!DOCTYPE methodCall>", "", "document type"),
    (f'<!DOCTYPE m [<!ENTITY l0 "l">{BOMB}]>'.encode(), "&l9;", "document type"),
    (f'<!DOCTYPE m [<!ENTITY a "{"a" * 50000}">]>'.encode(), "&a;" * 50000, "document type"),
    (b'<!DOCTYPE m [<!ENTITY x SYSTEM "file:///etc/shadow">]>', "&x;", "document type"),
    (b'<!DOCTYPE m SYSTEM "http://host/x.dtd">', "", "document type"),
    (b'<!DOCTYPE m [<!ENTITY % x SYSTEM "file:///x"> %x;]>', "", "document type"),
]
"""What stands before the document, `inner`, and what is said."""

WRITTEN: list[tuple[Any, bytes]] = [
    ("a<b>&\"'", b"<value><string>a&lt;b&gt;&amp;\"'</string></value>"),
    (True, b"<value><boolean>1</boolean></value>"),
    (-(1 << 31), b"<value><int>-2147483648</int></value>"),
    (1 << 31, b"<value><double>2147483648.0</double></value>"),
    (0.1, b"<value><double>0.1</double></value>"),
    (b"\0\xff", b"<value><base64>AP8=</base64></value>"),
    ((), b"<value><array><data></data></array></value>"),
    (
        [1, ""],
        b"<value><array><data><value><int>1</int></value><value><string></string></value></data></array></value>",
    ),
    ({"a": {}}, b"<value><struct><member><name>a</name><value><struct></struct></value></member></struct></value>"),
]
_ENDLESS: list[Any] = []
_ENDLESS.append(_ENDLESS)
UNSENDABLE: list[Any] = [
    None,
    [None],
    {"a": None},
    {1: "a"},
    math.nan,
    math.inf,
    [-math.inf],
    10**400,
    object(),
    {1, 2},
    _ENDLESS,
]

"""Bytes in the JSON of the guest agent protocol: text is UTF-8, anything else base64.

Base64 is accepted as by qemu-ga: a newline may be anywhere, padding may be missing or in the middle, and an incomplete
group of four at the end is ignored.
"""

from __future__ import annotations

import binascii
import re

from ..api.errors import Code, Fault

_FOREIGN = re.compile(r"[^A-Za-z0-9+/=\n]")


def octets(text: str) -> bytes:
    """Return the bytes of a text from a host, whatever the locale is."""
    return text.encode("utf-8", "surrogateescape")


def from_base64(text: str) -> bytes:
    """Return the decoded bytes; raise Fault PARAMS if a character is not one of base64."""
    if _FOREIGN.search(text):
        raise Fault(Code.PARAMS, "Base64 data contains invalid characters")
    if "\n" in text:
        text = text.replace("\n", "")
    text = text[: len(text) & ~3]
    whole = text.find("=") & ~3 if "=" in text else len(text)
    decoded = binascii.a2b_base64(text[:whole])
    if whole == len(text):
        return decoded
    return decoded + b"".join(_padded(text[i : i + 4]) for i in range(whole, len(text), 4))


def to_base64(data: bytes | bytearray) -> str:
    """Return the data as base64, without newlines."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _padded(group: str) -> bytes:
    """Return the bytes of a group of four: one, and one more for each of its last two that is not padding."""
    first, second, third = binascii.a2b_base64(group.replace("=", "A"))
    found = [first]
    if group[2] != "=":
        found.append(second)
    if group[3] != "=":
        found.append(third)
    return bytes(found)

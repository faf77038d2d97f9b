"""Key files of GLib, as qemu-ga reads and prints them: `[group]`, `key=value`, # comments. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SPACE = " \t\n\v\f\r"
_ESCAPES = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_GROUP = re.compile(r"\[([^\[\]\0-\x1f\x7f]+)\][ \t\n\v\f\r]*")
_KEY = re.compile(r"[^=\[\]]*[^=\[\] ](\[[\w.@-]*\])?")


class BadKeyFile(Exception):
    """The text is not a key file; one sentence names the line or key."""


def parse(data: bytes) -> dict[str, dict[str, str]]:
    """Return the raw values by group and key; the last one counts if a key is there twice. Raises BadKeyFile."""
    groups: dict[str, dict[str, str]] = {}
    group: dict[str, str] | None = None
    for line in data.decode(errors="surrogateescape").split("\n"):
        text = line.removesuffix("\r").partition("\0")[0].lstrip(_SPACE)
        if not text or text.startswith("#"):
            continue
        if found := _GROUP.fullmatch(text):
            group = groups.setdefault(found[1], {})
            continue
        key, equals, value = text.partition("=")
        key = key.rstrip(_SPACE)
        if not equals or not key:
            raise BadKeyFile(f"line {text!r:.80} is not a key-value pair, group, or comment")
        if group is None:
            raise BadKeyFile("it does not start with a group")
        if not _KEY.fullmatch(key):
            raise BadKeyFile(f"there is no key of the name {key!r:.80}")
        group[key] = value.lstrip(_SPACE)
    return groups


def text_of(key: str, raw: str) -> str:
    r"""Return a value with its escapes \s \t \n \r and \\ replaced; raise BadKeyFile."""
    if re.search(r"[\udc80-\udcff]", raw):
        raise BadKeyFile(f"the value of {key} is not UTF-8")

    def plain(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise BadKeyFile(f"the value of {key} cannot be interpreted: {found[0]!r}")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.?)", plain, raw, flags=re.DOTALL)


def truth_of(key: str, raw: str) -> bool:
    """Return the truth of a value that is true, 1, false or 0; raise BadKeyFile."""
    text = raw.rstrip(_SPACE)
    if text not in ("true", "1", "false", "0"):
        raise BadKeyFile(f"the value of {key} is {raw!r:.80}, expected true or false")
    return text in ("true", "1")


def form(group: str, values: Mapping[str, str | bool]) -> str:
    """Return the text of a key file with one group."""
    lines = [f"[{group}]"]
    for key, value in values.items():
        lines.append(f"{key}={str(value).lower() if isinstance(value, bool) else _escaped(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return the text with escapes; of blanks only leading ones are escaped."""
    lead = len(text) - len(text.lstrip(" \t"))
    head = text[:lead].replace(" ", "\\s").replace("\t", "\\t")
    return head + text[lead:].replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")

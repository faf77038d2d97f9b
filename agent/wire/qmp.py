"""The QEMU guest agent protocol, the server's side of one message: bytes to Request, value or Fault to a line. No I/O.

A request is one JSON object, with or without a newline behind it. Its end is found by counting brackets and skipping
strings, in one pass over the bytes; then `json_values` reads it. Error classes and texts are qemu-ga's, since clients
compare them (seen in replies of QEMU 7.2; qobject/json-lexer.c, json-parser.c, qapi/qmp-dispatch.c). As in qemu-ga,
single quotes are accepted, and comments, NaN and infinity are refused.

The byte 0xFF resets: it ends a message that has begun, with an error reply, as clients that resynchronise expect.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..api import qemu
from ..api.errors import Code, Fault
from . import json_values
from .messages import ITEMS_MAX, Limits, Refused, Request, Shared

SYNCS = frozenset({"guest-sync", "guest-sync-delimited"})
"""What a host sends when it has given up on all that it asked for before."""
SILENT = frozenset({"guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"})
"""Commands that send no reply if they succeed."""
WAITING = SILENT | {
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-fsfreeze-thaw",
    "guest-fsfreeze-status",
}
"""Commands that may wait for a freeze or thaw. A request behind one of them does not wait for its turn."""
OURS = ("va.", "system.")
"""How the names of our own methods begin. They also take their parameters by place."""
LARGE = re.compile(rb'"execute"\s*:\s*"guest-file-write"')
LARGE_MAX = (48 << 20) + 4096
"""Bytes of a guest-file-write: 48 MiB of base64 and the rest; its name must be in the first LARGE_WITHIN bytes."""
LARGE_WITHIN = 4096

# A run that opens and closes nothing; the inside of a string, by its quote, with some escapes, since a match takes
# memory for each; a word outside of strings; a number.
_PLAIN = re.compile(rb"[0-9a-zE+\-., :\t\r\n]*")
_IN_STRING = {
    ord('"'): re.compile(rb'[^"\\\x00-\x1f\xff]*(?:\\[^\x00-\x1f\xff][^"\\\x00-\x1f\xff]*){0,64}'),
    ord("'"): re.compile(rb"[^'\\\x00-\x1f\xff]*(?:\\[^\x00-\x1f\xff][^'\\\x00-\x1f\xff]*){0,64}"),
}
_WORD = re.compile(rb"[0-9a-zE+\-.]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
WORD_MAX = 64
"""Bytes of a word outside of any bracket, which is an error however it goes on."""
SLICE_MIN, SLICE = 64, 16 << 10
"""Bytes that are taken and looked at in one step: as many as before, so that little is taken of what comes next."""
QUOTED = 64
"""Characters of a string that an error quotes, its last ones."""

SKIP_GARBAGE = re.compile(rb"[^\x00-\x1f{}\[\],:\xfe\xff]*")
"""What is skipped after a byte that is not JSON: everything up to a byte that could begin a message."""


class Message:
    """One request and its reply: a `session.Message`."""

    def __init__(self, token: int, limits: Limits, write: Callable[[bytes], None]) -> None:
        self.tag: str | None = None
        self.last = False
        self.resets = False
        self.waits = False
        self.in_turn = True
        self.size = 0
        self.skip: re.Pattern[bytes] | None = None
        self._token = token
        self._limits = limits
        self._write = write
        self._method = ""
        self._echo: dict[str, Any] = {}
        self._text = bytearray()
        self._at = 0
        self._quote = 0  # of the string that is open
        self._done = 0  # how far that string is JSON already, and `_tail` the last bytes of it before, as they came
        self._tail = b""
        self._grown = 0  # bytes that the text is longer than what came
        self._ascii = True
        self._open = bytearray()  # the brackets that are, at most as deep as the limit
        self._beyond = 0  # how many more
        self._items = 0
        self._desc = ""
        self._reset = False
        self._trouble = ""

    @property
    def held(self) -> int:
        """How many bytes of the half message are stored."""
        return len(self._text)

    def read(self, source: bytearray) -> Request | Refused | None:
        """Take some of the message's bytes off the front of `source`; None means that more are needed."""
        piece = source[: min(max(SLICE_MIN, len(self._text)), SLICE)]
        self._text += piece
        self._ascii = self._ascii and piece.isascii()
        wrong, ended = self._scan()
        more = not wrong and not ended
        del source[: len(piece) if more else len(piece) - (len(self._text) - self._at)]
        self._check_size()
        if more:
            return None
        if wrong:
            return self._refuse(wrong)
        if self._trouble:
            return self._refuse(self._trouble)
        del self._text[self._at :]
        return self._whole()

    def break_off(self, fault: Fault) -> Refused:
        """Give up the half message; what follows begins another, since it may come from a new host."""
        return self._refuse(fault.text)

    def reply(self, value: Any) -> None:
        """Send `value`, or an error if JSON has no form for it; nothing if the method is silent."""
        if self._method in SILENT:
            return
        try:
            line = self._line(value)
        except (TypeError, ValueError, RecursionError) as error:
            self.fault(Fault(Code.INTERNAL, f"the reply cannot be sent as JSON: {error}"))
            return
        self._write((b"\xff" if self._method == "guest-sync-delimited" else b"") + line)

    def _line(self, value: Any) -> bytes:
        if not isinstance(value, Shared):
            return json_values.dump({"return": value, **self._echo})
        value.line = value.line or json_values.dump(dict(value))
        rest = b", " + json_values.dump(self._echo)[1:] if self._echo else b"}\n"
        return b'{"return": ' + value.line[:-1] + rest

    def fault(self, fault: Fault) -> None:
        """Send `fault` with qemu-ga's class and text, for our own methods also with its number and name."""
        error: dict[str, Any] = {"class": "GenericError", "desc": self._desc or fault.text}
        ours = self._method.startswith(OURS)
        if fault.code is Code.METHOD:
            error = {"class": "CommandNotFound", "desc": f"The command {self._method} has not been found"}
        elif fault.code is Code.BLOCKED or (not ours and fault.code is Code.REFUSED_WHILE_FROZEN):
            why = ": the command is not allowed"
            if self._limits.qga < qemu.NOT_ALLOWED:
                why = "" if fault.code is Code.BLOCKED else ": the agent is in frozen state"
            error = {"class": "CommandNotFound", "desc": f"Command {self._method} has been disabled{why}"}
        if ours:  # ADR 0021: the errors of guest-* are qemu-ga's to the letter
            error |= {"code": int(fault.code), "name": fault.code.name}
        self._write(json_values.dump({**self._echo, "error": error}))

    def _scan(self) -> tuple[str, bool]:
        """Look at the new bytes; return what is wrong with one ("" if nothing), and whether the message ends there."""
        text, end = self._text, len(self._text)
        while self._at < end:
            if self._quote:
                self._at = _match_end(_IN_STRING[self._quote], text, self._at)
                if self._at == end:
                    self._requote()
                    break
                byte = text[self._at]
                if byte == 0x5C:  # a backslash: the next byte does not end the string
                    if self._at + 1 == end:
                        self._requote()
                        break
                    if text[self._at + 1] >= 0x20 and text[self._at + 1] != 0xFF:
                        self._at += 2
                        continue
                    self._at += 1
                    return self._stray(), True
                if byte != self._quote:
                    return self._stray(), True
                self._requote()
                end = len(text)
                text[self._at] = 0x22
                self._at += 1
                self._quote = 0
                if not self._open:
                    return "QMP input must be a JSON object", True
                continue
            at = self._at
            self._at = _match_end(_PLAIN, text, at)
            self._items += text.count(b",", at, self._at)
            if not self._open and self._at > at:
                self._at = at
                if (wrong := self._outside()) is not None:
                    return wrong, bool(wrong)
                continue
            if self._at == end:
                break
            byte = text[self._at]
            if byte in _IN_STRING:
                self._quote, self._tail, self._done = byte, bytes([byte]), self._at + 1
                text[self._at] = 0x22
                self._at += 1
                continue
            self._at += 1
            self._items += 1
            if byte in b"{[":
                if len(self._open) < self._limits.nesting:
                    self._open.append(byte)
                else:
                    self._beyond += 1
                    self._trouble = self._trouble or "JSON nesting depth limit exceeded"
            elif byte not in b"}]":
                self._at -= 1
                return self._stray(), True
            elif self._beyond:
                self._beyond -= 1
            elif not self._open or self._open.pop() != byte - 2:  # "{" and "}" are 2 apart, and so are "[" and "]"
                return self._trouble or self._wrong_so_far(), True
            elif not self._open:
                return "", True
        return "", False

    def _wrong_so_far(self) -> str:
        rest = self._text[self._at :]
        del self._text[self._at :]  # and not a copy of what may be long
        try:
            json_values.load(self._text)
        except Fault as fault:
            return fault.text
        finally:
            self._text += rest
        raise AssertionError("its last bracket does not match")

    def _outside(self) -> str | None:
        """Look at what is outside of any bracket; return an error, "" if more is needed, None for white space."""
        byte = self._text[self._at]
        if byte in b" \t\r\n":
            self._at += 1
            return None
        if byte in b",:":
            self._at += 1
            return "JSON parse error, expecting value"
        end = min(_match_end(_WORD, self._text, self._at), self._at + WORD_MAX)
        if end == len(self._text) and end - self._at < WORD_MAX:
            return ""
        word = self._text[self._at : end].decode("ascii")
        self._at = end
        if len(word) < WORD_MAX and (word in ("null", "true", "false") or _NUMBER.fullmatch(word)):
            return "QMP input must be a JSON object"
        if word.isalpha() and word.islower():
            return f"JSON parse error, invalid keyword '{word}'"
        self.skip = SKIP_GARBAGE
        return f"JSON parse error, stray '{word}'"

    def _requote(self) -> None:
        """Turn what was looked at of a string in single quotes into JSON.

        Only what is between `_done` and `_at`, and at once: a long message is never copied as a whole. The bytes 0 and
        1, which do not stand in a string, keep what is escaped already apart.
        """
        if self._quote != 0x27:
            return
        came = bytes(self._text[self._done : self._at])
        if b'"' in came or b"\\" in came:
            json = came.replace(b"\\\\", b"\0").replace(b'\\"', b"\1").replace(b"\\'", b"'")
            json = json.replace(b'"', b'\\"').replace(b"\1", b'\\"').replace(b"\0", b"\\\\")
            self._text[self._done : self._at] = json
            self._at += len(json) - len(came)
            self._grown += len(json) - len(came)
        self._looked_at(came)

    def _looked_at(self, came: bytes) -> None:
        self._tail = (self._tail + came)[-4 * QUOTED - 4 :]
        self._done = self._at

    def _stray(self) -> str:
        """Return what to say of the byte that may not stand here; a string that it stands in is quoted."""
        begin = self._at
        byte = self._text[self._at] if self._at < len(self._text) else 0
        self._at += 1
        self._reset = byte == 0xFF and not self._open and not self._quote
        if byte != 0xFF:
            self.skip = SKIP_GARBAGE
        if self._quote:
            begin = max(self._done, self._at - 4 * QUOTED - 4)
        token = bytes(self._text[begin : self._at])
        if self._quote and begin == self._done:
            token = self._tail + token
        return f"JSON parse error, stray '{token.decode('utf-8', 'replace')[-QUOTED:]}'"

    def _check_size(self) -> None:
        """Keep no more than the limit; the scan goes on to where the message ends.

        A large one must be ASCII and have few quotes in quotes: all else takes a multiple of its length as JSON and as
        Python's text, and base64 has neither.
        """
        limit, size = self._limits.body, self._at - self._grown
        plain = self._ascii and self._grown <= LARGE_WITHIN
        if size > limit and plain and LARGE.search(self._text, 0, LARGE_WITHIN):
            limit = max(limit, LARGE_MAX)
        if self._items > ITEMS_MAX:
            self._trouble = self._trouble or "JSON token count limit exceeded"
        if size > limit:
            self._trouble = self._trouble or "JSON token size limit exceeded"
        if self._trouble:
            if self._quote:
                self._looked_at(bytes(self._text[max(self._done, self._at - 4 * QUOTED - 4) : self._at]))
            del self._text[: self._at]
            self._done = self._at = 0

    def _whole(self) -> Request | Refused:
        text, self._text = self._text, bytearray()
        self.size = len(text) - self._grown
        try:
            request = self._request(json_values.load(text))
        except Fault as fault:
            return self._refuse(fault.text)
        if self.size > self._limits.body and request.method != "guest-file-write":
            return self._refuse("JSON token size limit exceeded")
        return request

    def _request(self, found: Any) -> Request:
        """Return the request that is in a JSON value; raise Fault in the words and in the order of qmp-dispatch.c."""
        if not isinstance(found, dict):
            raise _input("must be a JSON object")
        if "id" in found:
            self._echo = {"id": found["id"]}
            self.tag = "id"
        method: Any = None
        for name, value in found.items():
            if name == "execute":
                if not isinstance(value, str):
                    raise _input("member 'execute' must be a string")
                method = value
            elif name == "arguments":
                positional = isinstance(value, list) and str(found.get("execute")).startswith(OURS)
                if not isinstance(value, dict) and not positional:
                    raise _input("member 'arguments' must be an object")
            elif name != "id":
                raise _input(f"member '{name}' is unexpected")
        if method is None:
            raise _input("lacks member 'execute'")
        self._method = method
        self.resets = method in SYNCS
        self.waits = method in WAITING or not method.startswith("guest-")
        none: list[Any] | dict[str, Any] = [] if method.startswith(OURS) else {}
        return Request(self._token, method, found.get("arguments", none), self.tag)

    def _refuse(self, text: str) -> Refused:
        self._text = bytearray()
        self._desc = text
        quotes = text.startswith("JSON parse error")
        return Refused(Code.PARSE, re.sub(r" '.*", "", text, flags=re.DOTALL) if quotes else text, self._reset)


def _match_end(pattern: re.Pattern[bytes], text: bytearray, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None  # every pattern matches the empty text
    return match.end()


def _input(text: str) -> Fault:
    return Fault(Code.REQUEST, f"QMP input {text}")

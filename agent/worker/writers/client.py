"""The command-line client of a database, kept open on pipes: a statement, then a sentinel that ends its rows.

So no password is ours, nothing is done that an administrator could not do, and no library of a database is in memory.
Its standard input closed means its end, and the server then ends the session and all locks of it.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from .hook_program import Waits

SAID_MAX = 64 << 10
_END_GRACE = 1.0


class Refused(Exception):
    """The application refuses; one sentence."""


class TooSlow(Refused):
    """The limit of the step passed."""


class Client:
    """One session."""

    def __init__(self, command: Sequence[str], user: str, sentinel: str) -> None:
        """Start the client as that user, "" for ours; `sentinel` makes it print what stands for {}.

        Raises Refused if there is no such user or it cannot be executed.
        """
        as_user: dict[str, Any] = {}
        if user:
            try:
                found = pwd.getpwnam(user)
            except KeyError:
                raise Refused(f"there is no user {user}") from None
            as_user = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": os.getgrouplist(user, found.pw_gid)}
        home = {"HOME": found.pw_dir, "USER": user} if user else {}
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**os.environ, "LC_ALL": "C", **home},
                start_new_session=True,
                **as_user,
            )
        except OSError as error:
            raise Refused(f"{command[0]}: {error.strerror}") from None
        self._sentinel = sentinel
        self._asked = 0
        self._said = b""
        self._busy = False
        assert self._process.stdout is not None
        self.fd = self._process.stdout.fileno()

    def ask(self, statement: str, waits: Waits, until: float) -> list[str]:
        """Return the rows of a statement, tabs between columns. Raises Refused with what the client says, TooSlow."""
        if self._busy:
            raise Refused("an earlier statement is still under way")
        self._busy = True
        self._asked += 1
        mark = f"va-{self._asked}"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(f"{statement};\n{self._sentinel.format(mark)};\n".encode())
        except OSError:
            raise Refused(self._last_words()) from None
        rows: list[str] = []
        while True:
            while b"\n" in self._said:
                line, _, self._said = self._said.partition(b"\n")
                row = line.decode(errors="replace").rstrip("\r")
                if row == mark:
                    self._busy = False
                    return rows
                if row.startswith("ERROR"):
                    raise Refused(row[:300])
                rows.append(row)
            if not waits(self.fd, until):
                raise TooSlow(f"{statement.split(';')[0][:60]!r} had no answer in time")
            data = os.read(self.fd, 65536)
            if not data:
                raise Refused("; ".join(rows)[:300] or self._last_words())
            self._said += data
            if len(self._said) > SAID_MAX:
                raise Refused("it says more than it may")

    def _last_words(self) -> str:
        said = self._said.decode(errors="replace").strip()
        return said[:300] or "the session has ended"

    def close(self) -> None:
        """End the session: the server lets go of what it held."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_END_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_END_GRACE)
        if self._process.stdout is not None:
            self._process.stdout.close()


def left(until: float) -> int:
    """Return the whole seconds until that CLOCK_MONOTONIC second, at least 1."""
    return max(1, int(until - time.monotonic()))

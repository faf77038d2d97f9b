"""The command-line client of a database, kept open on pipes: a statement, then a sentinel that ends its rows.

So no password is ours, nothing is done that an administrator could not do, and no library of a database is in memory.
Its standard input closed means its end, and the server then ends the session and all locks of it. What it writes to
standard error is kept apart: a warning is no row. An error ends the client, or is a line that begins with that word.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ...api.errors import no_more
from .accounts import account
from .step import Refused, TooSlow, Waits, wait

SAID_MAX = 64 << 10
WORDS_MAX = 300
_END_GRACE = 1.0
LOOK_GRACE = 0.2
"""Seconds in which a client ends that has held nothing."""
_MARK = "va-"
# "ERROR 1227 (42000): Access denied" of MariaDB, "ERROR:  syntax error" of psql, "Parse error near line 1" of sqlite3.
_ERROR = re.compile(r"(\S+ )?(error|fatal)\b", re.IGNORECASE)


class Client:
    """One session. `waits` is how it waits for an answer."""

    def __init__(
        self,
        command: Sequence[str],
        user: str,
        sentinel: str,
        waits: Waits,
        end: str = ";",
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start the client as that user, "" for ours; `sentinel` makes it print what stands for {}.

        `end` ends a statement, `env` is added to its environment. Raises Refused if there is no such user or it cannot
        be executed.
        """
        whom = account(user)
        complaints, self._complains = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._complaints = complaints
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complains,
                cwd="/",
                env={**os.environ, "LC_ALL": "C", **whom.env, **env},
                start_new_session=True,
                user=whom.uid if user else None,
                group=whom.gid if user else None,
                extra_groups=whom.groups if user else None,
            )
        except OSError as error:
            os.close(complaints)
            raise Refused(f"{command[0]}: {(no_more(error) or error).strerror}") from None
        finally:
            os.close(self._complains)
        self._sentinel = sentinel
        self._end = end
        self._asked = 0
        self._said = b""
        self._words = ""
        self.busy = False
        """Whether a statement was interrupted: there is no answer to any other before its own has come."""
        self.refused = False
        """Whether it has been told already that this session is of no more use."""
        self.waits = waits
        assert self._process.stdout is not None
        self.fd = self._process.stdout.fileno()

    def ask(self, statement: str, until: float) -> list[str]:
        """Return the lines of an answer. Raises Refused with what the client says, TooSlow, or what `waits` raises.

        Several statements, with `;` and the end of a line between, are said in one go; an error ends them all.
        """
        try:
            return self._ask(statement, until)
        except Refused:
            self.refused = True
            raise

    def _ask(self, statement: str, until: float) -> list[str]:
        if self.busy:
            raise Refused("an earlier statement is still under way")
        self.busy = True
        self._asked += 1
        mark = f"{_MARK}{self._asked}"
        assert self._process.stdin is not None
        try:
            sentinel = self._sentinel.format(mark)
            said = f"{statement}{self._end}\n{sentinel}{self._end}\n"
            self._process.stdin.write(said.encode(errors="surrogateescape"))
        except OSError:
            raise Refused(self.last_words([])) from None
        lines: list[str] = []
        while True:
            while b"\n" in self._said:
                line, _, self._said = self._said.partition(b"\n")
                row = line.decode(errors="replace").rstrip("\r")
                if row == mark or row.endswith(f"> {mark}"):  # behind a prompt
                    self.busy = False
                    self._must_not_complain()
                    return lines
                lines.append(row)
            if not self.waits(self.fd, until):
                first, _, more = statement.partition(";")
                raise TooSlow(f"{first[:60]!r}{' and what follows' if more else ''} had no answer in time")
            data = os.read(self.fd, 65536)
            if not data:
                raise Refused(self.last_words(lines))
            self._said += data
            if len(self._said) > SAID_MAX:
                raise Refused("it says more than it may")

    def rows(self, statement: str, until: float) -> list[list[str]]:
        """Return the rows of a statement as columns, between which the client prints a tab. Raises as `ask`."""
        return [line.split("\t") for line in self.ask(statement, until)]

    def row(self, statement: str, until: float, columns: int) -> list[str]:
        """Return the one row of a statement; raise Refused, too, if it is not one row with so many columns."""
        if (found := self.row_or_none(statement, until, columns)) is None:
            raise Refused(f"{statement[:60]!r} was answered with no row")
        return found

    def row_or_none(self, statement: str, until: float, columns: int) -> list[str] | None:
        """Return the one row of a statement, None if there is none; raise Refused, too, for any other answer."""
        found = self.rows(statement, until)
        if [len(row) for row in found] not in ([], [columns]):
            raise Refused(f"{statement[:60]!r} was answered with {found!r:.100}, expected one row of {columns} columns")
        return found[0] if found else None

    def _must_not_complain(self) -> None:
        """Raise Refused if the client goes on after an error that it has told only on standard error."""
        said = self._complained()
        if errors := [line for line in said.splitlines() if _ERROR.match(line)]:
            raise Refused(errors[0][:WORDS_MAX])
        self._words = said or self._words

    def _complained(self) -> str:
        """Return what it has written to standard error since the last look."""
        found = b""
        while wait(self._complaints, 0):
            data = os.read(self._complaints, 65536)
            if not data or len(found) > SAID_MAX:
                break
            found += data
        return found.decode(errors="replace").strip()

    def last_words(self, lines: Sequence[str] = ()) -> str:
        """Return why it has ended, in its own words if there are any."""
        said = [self._complained(), *lines, self._said.decode(errors="replace"), self._words]
        words = [line.strip() for text in said for line in text.splitlines() if line.strip()]
        errors = [line for line in words if _ERROR.match(line)]
        return "; ".join(errors or words)[:WORDS_MAX] or "the session has ended"

    def close(self, grace: float = _END_GRACE) -> None:
        """End the session: the server lets go of what it held. One that does not end within `grace` is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is in the kernel
                self._process.wait(_END_GRACE)
        self._process.stdout.close()
        os.close(self._complaints)

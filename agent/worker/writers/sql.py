"""Any database with a command-line client: statements of the operator's, in one session that is kept open.

What a session sets beyond itself is undone by `undo`, in a session of its own, by whoever is left: that is a latch. A
row of two columns that a statement answers is a fact to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...api.writers import WriterConfig
from .client import LOOK_GRACE, Client
from .latch import Latch
from .session import ClientSession
from .step import Waits, wait

Info = dict[str, Any]
# Between its columns psql prints a bar, MariaDB's client a tab.
_FACT = re.compile(r"(?P<key>[A-Za-z_][A-Za-z0-9_.-]{0,31})[\t|](?P<value>[^\t|]*)")


class Sql(ClientSession):
    """One session, and what it has set beyond itself."""

    def prepare(self, until: float) -> Info:
        """Connect, and say the statements for that. Raises Refused, Interrupted."""
        client = self._open(_connect(self._config, self._waits))
        return self._say(self._config.prepare, until) or self._here(client, until)

    def quiesce(self, until: float) -> Info:
        """Say the statements that hold; what undoes them is on record before. Raises Refused, Interrupted."""
        config = self._config
        if config.undo:
            about = {name: getattr(config, name) for name in ("client", "user", "sentinel")}
            words = {name: list(getattr(config, name)) for name in ("client_options", "undo")}
            self._latch.write({"type": "sql", **about, **words})
        return self._say(config.quiesce, until)

    def confirm(self, until: float) -> Info:
        """Say the statements that prove the hold; show that the session is there. Raises Refused, Interrupted."""
        return self._say(self._config.confirm, until) or self._here(self._client, until)

    def release(self, until: float, verdict: str) -> str:
        """Say the statements that let go, end the session, and undo what it has set beyond itself."""
        wrong = self._end(until, *self._config.release, self._config.sentinel.format("here"))
        undo(self._latch, until, verdict)
        return wrong

    def _here(self, client: Client, until: float) -> Info:
        _answers(client, self._config, until)
        return {}

    def _say(self, statements: Iterable[str], until: float) -> Info:
        lines = [line for statement in statements for line in self._client.ask(statement, until)]
        return {found["key"]: found["value"] for line in lines if (found := _FACT.fullmatch(line))}


def look(config: WriterConfig, until: float) -> list[str]:
    """Ask whether the application answers; where its data are only the configuration says. Raises Refused."""
    client = _connect(config, wait)
    try:
        _answers(client, config, until)
    finally:
        client.close(LOOK_GRACE)
    return []


def undo(latch: Latch, until: float, _verdict: str) -> str:
    """Say the statements that are on record in a session of their own; nothing is on record afterwards.

    Raises Refused.
    """
    record = latch.record
    if record is None:
        return ""
    about = {name: record[name] for name in ("client", "user", "sentinel")}
    client = _connect(WriterConfig(latch.name, "sql", client_options=tuple(record["client_options"]), **about), wait)
    try:
        for statement in record["undo"]:
            client.ask(statement, until)
    finally:
        client.close()
    latch.clear()
    return ""


def _connect(config: WriterConfig, waits: Waits) -> Client:
    return Client([config.client, *config.client_options], config.user, config.sentinel, waits)


def _answers(client: Client, config: WriterConfig, until: float) -> None:
    client.ask(config.sentinel.format("here"), until)

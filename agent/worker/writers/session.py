"""What the types have in common whose hold is one session of their database's command-line client.

The server ends what the session holds when the session ends, whoever is dead: so letting go is saying the statements
for that, and ending the session all the same if they fail.
"""

from __future__ import annotations

from typing import Any

from ...api.writers import WriterConfig
from .client import Client
from .latch import Latch
from .step import Refused, Waits, wait

Info = dict[str, Any]


class ClientSession:
    """One session, and the record of what it sets beyond itself. `at_most` is for how many seconds it may hold."""

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._at_most = at_most
        self._opened: Client | None = None
        self.told: Info = {}

    def _open(self, client: Client) -> Client:
        self._opened = client
        return client

    @property
    def _client(self) -> Client:
        assert self._opened is not None
        return self._opened

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor that becomes readable if the session ends."""
        return (self._opened.fd,) if self._opened is not None else ()

    def renew(self, _until: float, _ends: float) -> None:
        """Do nothing: the session lasts as long as it says something now and then."""

    def lost(self) -> str:
        """Return that the session has ended, in the client's words."""
        return self._client.last_words()

    def _end(self, until: float, *statements: str) -> str:
        """Say the statements, and end the session; return what went wrong.

        It is only ended if it has refused one already, or was interrupted at one that it cannot have answered.
        """
        if self._opened is None:
            return ""
        client, self._opened, wrong = self._opened, None, ""
        client.waits = wait
        try:
            if not client.refused and not client.busy:
                for statement in statements:
                    client.ask(statement, until)
        except Refused as error:
            wrong = str(error)  # closed all the same: the server ends what the session holds
        client.close()
        return wrong

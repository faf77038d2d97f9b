"""MongoDB: its lock may come after the death of the session that asked for it, and its client may say anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker.writers import mongodb
from virtagent.agent.worker.writers.step import Refused, wait

RECORD = {"client": "", "user": "", "socket": "", "login_script": "", "client_options": []}


class Server:
    """A mongod that takes its fsyncLock after it was looked at so many times; also the client, the latch, the clock."""

    name = "db"
    fd = -1

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
        self.record: dict[str, Any] | None = RECORD
        self.now = 100.0
        self.closed = 0
        self._looks, self._locked = looks, False
        monkeypatch.setattr(mongodb, "_connect", lambda config, waits, until: self)
        monkeypatch.setattr(mongodb, "_command", self._command)
        monkeypatch.setattr(mongodb, "time", SimpleNamespace(monotonic=lambda: self.now))

    def _command(self, _client: object, command: dict[str, Any], _until: float) -> dict[str, Any]:
        if "fsyncUnlock" in command:
            assert self._locked
            self._locked = False
            return {"ok": 1}
        self._looks -= 1
        self._locked = self._locked or self._looks == 0
        return {"ok": 1, "inprog": [{}] if self._looks > 0 else [], "fsyncLock": self._locked}

    @property
    def locked(self) -> bool:
        return self._locked or self._looks > 0

    def waits(self, _fd: int, until: float) -> None:
        self.now = until

    def close(self) -> None:
        self.closed += 1

    def clear(self) -> None:
        self.record = None


@pytest.mark.parametrize("looks", [1, 2, 7])
def test_a_lock_that_is_under_way_is_waited_for_and_undone(monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    server: Any = Server(monkeypatch, looks)
    mongodb.undo(server, server.now + 10, "")
    assert not server.locked
    assert server.record is None
    assert server.closed == 1


def test_a_lock_that_does_not_come_in_time_stays_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = Server(monkeypatch, 1000)
    with pytest.raises(Refused, match="still under way"):
        mongodb.undo(server, server.now + 3, "")
    assert server.record == RECORD
    assert server.closed == 1


@pytest.mark.parametrize("word", ["va-json ", "va-error "])
@pytest.mark.parametrize("said", ["[" * 100_000, "{", "7", ""])
def test_an_answer_that_is_no_record_is_refused(word: str, said: str) -> None:
    client: Any = SimpleNamespace(ask=lambda _statement, _until: [word + said])
    with pytest.raises(Refused):
        mongodb._command(client, {"ping": 1}, 0.0)


def test_a_socket_whose_path_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(mongodb, "Client", lambda command, *_, **__: called.extend(command))
    mongodb._connect(WriterConfig("db", "mongodb", socket="/run/gr\udcfc\udcdfe.sock"), wait, 0.0)
    assert called[-1] == "mongodb://%2Frun%2Fgr%FC%DFe.sock/admin?directConnection=true"

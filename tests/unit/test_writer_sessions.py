"""What the sessions of databases are told before they hold anything."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker.writers import mariadb, mysql, postgresql
from virtagent.agent.worker.writers.latch import Latch
from virtagent.agent.worker.writers.session import ClientSession
from virtagent.agent.worker.writers.step import wait

ANSWERS = {
    "select version(), @@global.innodb": ["10.11.6-MariaDB", "1"],
    "select version(), current_setting": ["PostgreSQL 15.5 on x86_64", "on"],
    "select version()": ["8.0.36"],
    "select connection_id(), @@global": ["17", "1"],
    "select connection_id()": ["17"],
    "select @@global.general_log": ["0", "0", "FILE"],
    "select @@datadir": ["/srv/db", "./", "./", "", ""],
    "select count(*)": ["0"],
    "select current_setting('data_directory')": ["/srv/db"],
}


class Server:
    """A session that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, statement: str, _until: float) -> list[str]:
        """Answer nothing."""
        self.asked.append(statement)
        return []

    def rows(self, statement: str, _until: float) -> list[list[str]]:
        """Answer what is known."""
        self.asked.append(statement)
        return [row for begins, row in ANSWERS.items() if statement.startswith(begins)][:1]

    def row(self, statement: str, until: float, columns: int) -> list[str]:
        """Answer one row."""
        (found,) = self.rows(statement, until)
        assert len(found) == columns
        return found


@pytest.mark.parametrize(
    ("kind", "module", "connects", "says"),
    [
        (mariadb.MariaDb, mariadb, "connect", "set session wait_timeout = 31536000"),
        (mysql.MySql, mysql, "connect", "set session wait_timeout = 31536000"),
        (postgresql.PostgreSql, postgresql, "_connect", "'idle_session_timeout'"),
    ],
)
def test_a_server_does_not_end_the_session_while_file_systems_are_synced(
    kind: type[ClientSession],
    module: SimpleNamespace,
    connects: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From prepare to quiesce it may be idle for longer than a server allows: each freeze was refused."""
    server = Server()
    monkeypatch.setattr(module, connects, lambda _config, _waits: server)
    kind(WriterConfig("db", "x"), Latch(str(tmp_path), "db"), wait).prepare(math.inf)  # type: ignore[attr-defined]
    assert [said for said in server.asked if says in said]

"""Databases without a type of their own, or whose server Debian lacks: `sql`, `mysql`, and the docs' live program."""

from __future__ import annotations

import json
import re
import threading
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Unmet, databases
from harness.applications import pid_of
from harness.daemon import Daemon
from harness.databases import Server
from harness.filesystems import LoopFs
from harness.fixtures import unmet
from harness.hosts import Asking
from harness.processes import kill, until
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(240)
RUNNING = "select info from information_schema.processlist where info like 'do %';"
FLUSH_IS = "select @@global.innodb_flush_log_at_trx_commit;"


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.stop()


def serve(rig: Rig, servers: list[Server], kind: type[Server], *setup: str, options: tuple[str, ...] = ()) -> LoopFs:
    fs = rig.fs("ext4", size=500 << 20)
    server = kind(fs.path, rig.area.fresh("run"), options)
    servers.append(server)
    server.make()
    server.start()
    for line in setup:
        server.ask(line)
    return fs


def daemon_with(rig: Rig, fs: LoopFs, text: str, state_dir: Path | None = None) -> Daemon:
    folder = rig.area.fresh("writers.d")
    folder.mkdir(mode=0o700)
    (folder / "db.conf").write_text(text)
    return rig.daemon([fs], ["--writers-dir", str(folder)], state_dir=state_dir)


def refused(daemon: Daemon) -> str:
    with pytest.raises(xmlrpc.client.Fault) as raised:
        daemon.proxy().va.fsfreeze()
    assert raised.value.faultCode == Code.VETOED, raised.value
    return raised.value.faultString


# -- sql


def maria(rig: Rig, servers: list[Server]) -> tuple[LoopFs, databases.MariaDb, str]:
    """Return a server, and the lines of a writer of type sql for it."""
    try:
        fs = serve(rig, servers, databases.MariaDb, "create database t;", "create table t.n (n int primary key);")
    except Unmet as reason:
        unmet(reason)
    server = servers[0]
    assert isinstance(server, databases.MariaDb)
    client = f"client {server.client[0]}\nclient-options --no-defaults '--socket={server.run}/s' -ABNn\n"
    return fs, server, f"type sql\n{client}"


def test_a_session_of_statements(rig: Rig, servers: list[Server]) -> None:
    fs, server, lines = maria(rig, servers)
    held = "confirm select 'held', count(*) from information_schema.metadata_lock_info\nconfirm do 0\n"
    server.ask("install soname 'metadata_lock_info';")
    daemon = daemon_with(
        rig,
        fs,
        f"{lines}prepare set session lock_wait_timeout = 3\nquiesce flush tables with read lock;\n"
        f"quiesce select 'gtid', @@gtid_current_pos\n{held}release unlock tables\n",
    )
    host = daemon.proxy()
    done = threading.Event()
    inserting = threading.Thread(target=lambda: (server.ask("insert into t.n values (1);"), done.set()))
    assert host.va.fsfreeze() == 1
    (writer,) = daemon.status()["writers"]
    assert (writer["hold"], writer["state"]) == ("session", "confirmed")
    assert writer["info"] == {"gtid": "", "held": "1"}
    inserting.start()
    waiting = "select count(*) from information_schema.processlist where state like 'Waiting for%lock';"
    until(lambda: server.ask(waiting).strip() == "1", 10, "the insert waits in the server")
    assert host.va.fsthaw() == 1
    assert done.wait(20)
    assert daemon.status()["writers"][0]["error"] == ""
    assert server.found() == {1}


@pytest.mark.parametrize("who", ["nobody", "writer", "supervisor", "all"])
def test_what_is_set_beyond_the_session_is_undone(rig: Rig, servers: list[Server], who: str) -> None:
    fs, server, lines = maria(rig, servers)
    text = f"{lines}quiesce set global read_only = 1\nundo set global read_only = 0\nundo do 0\n"
    daemon = daemon_with(rig, fs, text)
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.status()["writers"][0]["hold"] == "latch"
    assert server.ask("select @@global.read_only;").strip() == "1"
    if who in ("writer", "all"):
        kill(pid_of(daemon, "writer"))
    if who == "all":
        kill(pid_of(daemon, "keeper"))
    if who in ("nobody", "writer"):
        assert daemon.proxy().va.fsthaw() == 1
    else:
        daemon.kill()
        daemon.wait_orphans(20)
        again = daemon_with(rig, fs, text, daemon.state_dir)
        again.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    assert server.ask("select @@global.read_only;").strip() == "0"


def test_a_statement_that_is_cut_short_is_no_failure_to_let_go(rig: Rig, servers: list[Server]) -> None:
    fs, server, client = maria(rig, servers)
    daemon = daemon_with(rig, fs, f"{client}prepare do sleep(60)\nquiesce do 0\n")
    waiting = Asking(daemon, "va.fsfreeze")
    until(lambda: "sleep(60)" in server.ask(RUNNING), 20, "the statement runs")
    assert daemon.proxy().va.fsthaw() == 0
    assert isinstance(waiting.wait(), xmlrpc.client.Fault)
    daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    assert daemon.status()["writers"][0]["error"] == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quiesce selekt 1", "ERROR 1064"),
        ("quiesce select sleep(60)\nquiesce-limit 0.5", "'select sleep(60)' had no answer in time"),
        ("quiesce do 0\nconfirm kill connection_id()", "ERROR"),
        ("quiesce do 0\nuser nobody-here", "there is no user nobody-here"),
        ("quiesce do 0\nsentinel select 1, '{}'\nprepare-limit 0.5", "had no answer in time"),
    ],
)
def test_statements_that_fail_refuse(rig: Rig, servers: list[Server], text: str, said: str) -> None:
    fs, server, lines = maria(rig, servers)
    daemon = daemon_with(rig, fs, f"{lines}{text}\n")
    assert said in refused(daemon)
    fs.assert_thawed()
    server.ask("insert into t.n values (1);")


def test_postgresql_by_statements_of_the_operators(rig: Rig, servers: list[Server]) -> None:
    try:
        fs = serve(rig, servers, databases.PostgreSql, "create table n (n int primary key);")
    except Unmet as reason:
        unmet(reason)
    server = servers[0]
    assert isinstance(server, databases.PostgreSql)
    options = f"-AtqX -v ON_ERROR_STOP=1 -h {server.run} -d postgres"
    text = f"type sql\nclient {server.client[0]}\nuser postgres\nclient-options {options}\n"
    text += "quiesce begin\nquiesce lock table n in exclusive mode\nquiesce select 'lsn', pg_current_wal_flush_lsn()\n"
    daemon = daemon_with(rig, fs, text + "release rollback\n")
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", daemon.status()["writers"][0]["info"]["lsn"])
    locks = "select count(*) from pg_locks where mode = 'ExclusiveLock' and relation = 'n'::regclass;"
    assert server.ask(locks) == "1\n"
    assert host.va.fsthaw() == 1
    assert daemon.status()["writers"][0]["error"] == ""
    server.ask("insert into n values (1);")
    daemon_2 = daemon_with(rig, fs, text + "confirm select 1/0\n")
    assert "division by zero" in refused(daemon_2)


def test_the_live_program_of_the_docs(rig: Rig, servers: list[Server]) -> None:
    docs = (Path(__file__).parents[2] / "docs/writers.md").read_text()
    found = re.search(r"^    #!/bin/bash\n(?:    .*\n)+", docs, re.MULTILINE)
    assert found is not None
    fs, server, _ = maria(rig, servers)
    program = rig.area.fresh("live")
    client = f"{server.client[0]} --no-defaults --socket={server.run}/s"
    shown = "/usr/bin/mariadb"
    assert shown in found[0]
    program.write_text(re.sub("^    ", "", found[0], flags=re.MULTILINE).replace(shown, client))
    program.chmod(0o755)
    daemon = daemon_with(rig, fs, f"type live\ncommand {program}\npaths {fs.path}\n")
    host = daemon.proxy()
    sessions = "select count(*) from information_schema.processlist where command = 'Sleep';"
    for times in (1, 2, 3):
        assert host.va.fsfreeze() == 1
        assert server.ask(sessions).strip() == "1"
        if times == 2:
            kill(pid_of(daemon, "writer"))
        assert host.va.fsthaw() == 1
        server.ask(f"insert into t.n values ({times});")
        if times != 2:
            assert daemon.status()["writers"][0]["error"] == ""
        until(lambda: server.ask(sessions).strip() == "0", 10, "its session has ended")
    server.stop()
    assert "the server does not answer" in refused(daemon)


# -- mysql


def test_mysql_refuses_mariadb_by_name(rig: Rig, servers: list[Server]) -> None:
    fs, server, _ = maria(rig, servers)
    daemon = daemon_with(rig, fs, f"type mysql\nclient {server.client[0]}\nsocket {server.run}/s\n")
    assert re.search(r"it is 1\d\.\d+\.\d+-MariaDB.*: its type is mariadb", refused(daemon))
    server.stop()
    assert "ERROR 2002" in refused(daemon)


STAND_IN = """#!/usr/bin/python3
import json, re, sys
folder = {folder!r}
answers = json.load(open(folder + '/answers'))
for line in sys.stdin:
    line = line.strip().rstrip(';')
    open(folder + '/asked', 'a').write(line + chr(10))
    if found := re.fullmatch("select '(va-[0-9]+)'", line):
        print(found[1], flush=True)
        continue
    for pattern, rows in answers:
        if re.search(pattern, line):
            for row in rows:
                if row.startswith('ERROR'):
                    sys.exit(row)
                print(row, flush=True)
            break
"""
ANSWERS = {
    "select version": ["8.4.6"],
    "select connection_id.*@@global": ["17\t2"],
    "select @@datadir": ["/srv/my/\t./\t./\t\t/var/log/my/binlog"],
    "select connection_id": ["17"],
    "general_log": ["1\t1\tFILE"],
    "plugin_type = 'AUDIT'": [],
    "information_schema.tables": ["0"],
    "log_status": ["uuid:1-5,\\nuuid2:1-3\tbinlog.000007\t158\t19353796"],
    "processlist": [],
}


class StandIn:
    """A client that answers as MySQL's does, and notes what it is asked."""

    def __init__(self, rig: Rig, **changed: list[str]) -> None:
        self.folder = rig.area.fresh("standin")
        self.folder.mkdir()
        self.program = self.folder / "mysql"
        self.program.write_text(STAND_IN.format(folder=str(self.folder)))
        self.program.chmod(0o755)
        answers = ANSWERS | {name.replace("_", " "): rows for name, rows in changed.items()}
        self.answer(answers)

    def answer(self, answers: dict[str, list[str]]) -> None:
        first = sorted(answers.items(), key=lambda item: -len(item[0]))
        (self.folder / "answers").write_text(json.dumps(first))

    @property
    def asked(self) -> list[str]:
        lines = (self.folder / "asked").read_text().splitlines()
        return [line for line in lines if not line.startswith("select ")]


@pytest.mark.parametrize("unlogged", [False, True])
def test_mysql_says_the_right_statements(rig: Rig, unlogged: bool) -> None:
    fs = rig.fs("ext4")
    client = StandIn(rig)
    if unlogged:
        client.answer(ANSWERS | {"information_schema.tables": ["3"]})
    daemon = daemon_with(rig, fs, f"type mysql\nclient {client.program}\n")
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    (writer,) = daemon.status()["writers"]
    assert writer["info"]["gtid"] == "uuid:1-5,uuid2:1-3"
    assert (writer["info"]["binlog"], writer["info"]["lsn"]) == ("binlog.000007:158", "19353796")
    assert writer["paths"] == ["/srv/my", "/var/log/my"]
    assert writer["not_frozen"] == writer["paths"]
    host.va.fsthaw()
    said = [line.partition(" = ")[0] for line in client.asked]
    assert said == [
        "set session wait_timeout",
        "set session sql_log_off",
        "set session long_query_time",
        "set global innodb_flush_log_at_trx_commit",
        "set session lock_wait_timeout",
        "set session wait_timeout",
        "lock instance for backup",
        *(["flush tables with read lock"] if unlogged else []),
        "flush no_write_to_binlog engine logs",
        "unlock tables",
        "unlock instance",
        "set global innodb_flush_log_at_trx_commit",
    ]
    assert client.asked[-1] == "set global innodb_flush_log_at_trx_commit = 2"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"select version": ["5.7.44-log"]}, "LOCK INSTANCE FOR BACKUP needs 8.0"),
        ({"select version": ["unknown"]}, "its version is 'unknown'"),
        ({"select version": []}, "was answered with no row"),
        ({"lock instance": ["ERROR 1227 (42000): Access denied; you need BACKUP_ADMIN"]}, "you need BACKUP_ADMIN"),
        ({"information_schema.tables": ["1"], "processlist": ["9\t312"]}, "session 9, which runs for 312 s"),
        ({"select connection_id": ["18"]}, "its session was lost, and with it the locks"),
        ({"plugin_type = 'AUDIT'": ["audit_log"]}, "its audit plugin audit_log would write"),
    ],
)
def test_mysql_refuses(rig: Rig, changed: dict[str, list[str]], said: str) -> None:
    fs = rig.fs("ext4")
    client = StandIn(rig)
    client.answer(ANSWERS | changed)
    assert said in refused(daemon_with(rig, fs, f"type mysql\nclient {client.program}\n"))
    fs.assert_thawed()


@pytest.mark.parametrize("engine", ["InnoDB", "MyISAM"])
@pytest.mark.parametrize("who", ["nobody", "writer", "all"])
def test_a_real_mysql(rig: Rig, servers: list[Server], engine: str, who: str) -> None:
    create = f"create table t.n (n int primary key) engine={engine};"
    flush = "--innodb-flush-log-at-trx-commit=0"
    try:
        fs = serve(rig, servers, databases.MySql, "create database t;", create, options=(flush, "--general-log=1"))
    except Unmet as reason:
        pytest.skip(str(reason))
    server = servers[0]
    assert isinstance(server, databases.MySql)
    text = f"type mysql\nclient {server.client[0]}\nclient-options --no-defaults\nsocket {server.run}/s\n"
    daemon = daemon_with(rig, fs, text)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    (writer,) = daemon.status()["writers"]
    assert writer["not_frozen"] == []
    assert writer["info"]["binlog"].startswith("binlog.")
    if who in ("writer", "all"):
        kill(pid_of(daemon, "writer"))
    if who == "all":
        kill(pid_of(daemon, "keeper"))
        daemon.kill()
        daemon.wait_orphans(20)
        daemon = daemon_with(rig, fs, text, daemon.state_dir)
        daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    else:
        assert host.va.fsthaw() == 1
    assert server.ask(FLUSH_IS).strip() == "0"
    server.ask("insert into t.n values (1); create table t.m (n int);")  # nothing holds writes, nor DDL
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1
    text = text.replace("type mysql", "type mariadb")
    assert "its type is mysql" in refused(daemon_with(rig, fs, text))

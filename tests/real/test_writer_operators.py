"""Writers as an operator tries them on real servers: passwords, blanks in paths, two of a kind, no rights, none."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Unmet, databases
from harness.applications import daemon_with, let_go, pid_of, refused
from harness.databases import Server
from harness.filesystems import LoopFs
from harness.fixtures import unmet
from harness.hosts import Asking
from harness.processes import kill, until
from harness.rig import Rig
from harness.terminal import CTL

pytestmark = pytest.mark.timeout(240)
ODD = "a'b\"c #d\\e %f $g"
FLUSH_IS = "select @@global.innodb_flush_log_at_trx_commit;"
Serve = Callable[..., tuple[Server, LoopFs]]


@pytest.fixture
def serve(rig: Rig) -> Iterator[Serve]:
    """Start a server on a file system of its own; its socket lies below a folder with blanks in its name."""
    made: list[Server] = []

    def start(kind: type[Server], *setup: str, options: tuple[str, ...] = ()) -> tuple[Server, LoopFs]:
        fs = rig.fs("ext4", size=400 << 20)
        run = rig.area.fresh("run of it")
        server = kind(fs.path, run, options)
        made.append(server)
        try:
            server.make()
            server.start()
        except Unmet as reason:
            unmet(reason)
        for line in setup:
            server.ask(line)
        return server, fs

    yield start
    for server in made:
        if server.process is not None:
            server.process.send_signal(signal.SIGCONT)
        server.stop()


class Guarded(databases.MariaDb):
    """With grant tables: root of the machine comes in by its socket."""

    def command(self) -> list[str]:
        return [word for word in super().command() if word != "--skip-grant-tables"]


def secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


# -- MariaDB


def test_mariadb_with_an_odd_password_and_with_too_few_rights(rig: Rig, serve: Serve) -> None:
    told = ODD.replace("\\", "\\\\").replace("'", "\\'")
    user = f"create user backup identified by '{told}';"
    server, fs = serve(Guarded, user, "create database t;", "create table t.n (n int);", options=("--general-log=1",))
    quoted = ODD.replace("\\", "\\\\").replace('"', '\\"')
    options = secret(server.run / "my options.cnf", f'[client]\nuser=backup\npassword="{quoted}"\n')
    text = f"type mariadb\nsocket {server.run}/s\nclient-options '--defaults-file={options}'\n"
    daemon = daemon_with(rig, fs, text)
    assert "ERROR 1227 (42000)" in refused(daemon)
    server.ask("grant reload, super, binlog monitor, process on *.* to backup;")
    assert daemon.proxy().va.fsfreeze() == 1
    (writer,) = daemon.status()["writers"]
    assert (writer["state"], writer["not_frozen"]) == ("confirmed", [])
    assert daemon.proxy().va.fsthaw() == 1
    assert daemon.status()["writers"][0]["error"] == ""
    secret(options, "[client]\nuser=backup\npassword=wrong\n")
    assert "ERROR 1045 (28000): Access denied for user 'backup'" in refused(daemon)
    fs.assert_thawed()


def test_an_audit_plugin_that_would_hang_the_proof_is_named(rig: Rig, serve: Serve) -> None:
    server, fs = serve(Guarded, "install soname 'server_audit';", "set global server_audit_logging = on;")
    daemon = daemon_with(rig, fs, f"type mariadb\nclient-options --no-defaults\nsocket {server.run}/s\n")
    assert "its audit plugin SERVER_AUDIT would write each statement to a file" in refused(daemon)
    server.ask("set global server_audit_output_type = 'syslog';")
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1


@pytest.mark.parametrize("when", ["before", "while frozen"])
def test_a_hung_mariadb_holds_up_nothing(rig: Rig, serve: Serve, when: str) -> None:
    setup = ("create database t;", "create table t.n (n int primary key);")
    server, fs = serve(databases.MariaDb, *setup, options=("--innodb-flush-log-at-trx-commit=2",))
    assert server.process is not None
    limits = "prepare-limit 2\nrelease-limit 1\n"
    text = f"type mariadb\nclient-options --no-defaults\nsocket {server.run}/s\n{limits}"
    daemon = daemon_with(rig, fs, text)
    host = daemon.proxy(60)
    if when == "before":
        server.process.send_signal(signal.SIGSTOP)
        command = [*CTL, "--agent", daemon.url, "doctor"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert re.search(r"FAIL +writer db \(mariadb\) would refuse the freeze: .* had no answer in time", ran.stdout)
        assert "had no answer in time" in refused(daemon)
    else:
        assert host.va.fsfreeze() == 1
        server.process.send_signal(signal.SIGSTOP)
        assert host.va.fsthaw() == 1
        (writer,) = daemon.status()["writers"]
        assert writer["state"] == "stuck"
        assert "no answer in time" in writer["error"]
    fs.assert_thawed()
    server.process.send_signal(signal.SIGCONT)
    daemon.wait_status(lambda record: record["writers"][0]["state"] != "stuck", 60)
    server.ask("insert into t.n values (1);")
    assert server.ask(FLUSH_IS).strip() == "2"
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1


def test_a_stopped_holder_does_not_keep_mariadb(rig: Rig, serve: Serve) -> None:
    setup = ("create database t;", "create table t.n (n int primary key);")
    server, fs = serve(databases.MariaDb, *setup, options=("--innodb-flush-log-at-trx-commit=2",))
    text = f"type mariadb\nclient-options --no-defaults\nsocket {server.run}/s\nrelease-limit 1\n"
    daemon = daemon_with(rig, fs, text)
    host = daemon.proxy(60)
    assert host.va.fsfreeze() == 1
    os.kill(pid_of(daemon, "writer"), signal.SIGSTOP)
    waiting = Asking(daemon, "va.fsthaw")
    until(lambda: daemon.status()["phase"] == "release", 10, "all is thawed")
    fs.assert_thawed()
    assert waiting.wait() == 1
    server.ask("insert into t.n values (1);")
    assert server.ask(FLUSH_IS).strip() == "2"


def test_mariadb_killed_in_the_hold_and_started_again(rig: Rig, serve: Serve) -> None:
    setup = ("create database t;", "create table t.n (n int primary key);")
    server, fs = serve(databases.MariaDb, *setup, options=("--innodb-flush-log-at-trx-commit=0",))
    daemon = daemon_with(rig, fs, f"type mariadb\nclient-options --no-defaults\nsocket {server.run}/s\n")
    host = daemon.proxy(60)
    assert host.va.fsfreeze() == 1
    server.stop()
    assert daemon.wait_status(lambda record: record["writers"][0]["state"] == "lost")["state"] == "FROZEN"
    assert host.va.fsthaw() == 1
    assert daemon.status()["writers"][0]["state"] == "stuck"
    assert "ERROR 2002" in daemon.status()["writers"][0]["error"]
    assert "db refuses the freeze: it could not be let go before" in refused(daemon)
    server.start()
    daemon.wait_status(lambda record: record["writers"][0]["state"] == "released", 60)
    assert server.ask(FLUSH_IS).strip() == "0"
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1


# -- PostgreSQL


def test_two_clusters_and_one_that_is_down(rig: Rig, serve: Serve) -> None:
    # A collation that has changed makes psql warn at each start.
    warns = "update pg_database set datcollversion = '0' where datcollversion is not null;"
    one, fs_one = serve(databases.PostgreSql, "create table n (n int primary key);", warns)
    two, fs_two = serve(databases.PostgreSql, "create table n (n int primary key);")
    texts = {
        "one": f"type postgresql\nsocket {one.run}\nafter two\n",
        "two": f"type postgresql\nsocket {two.run}\nrequired no\n",
    }
    daemon = daemon_with(rig, [fs_one, fs_two], texts)
    host = daemon.proxy(60)
    assert host.va.fsfreeze() == 2
    found = {writer["name"]: writer for writer in daemon.status()["writers"]}
    assert {name: writer["state"] for name, writer in found.items()} == {"one": "confirmed", "two": "confirmed"}
    assert not [path for writer in found.values() for path in writer["not_frozen"]]
    assert found["one"]["info"]["lsn"]
    assert host.va.fsthaw() == 2
    assert daemon.status()["last"]["consistency"] == "application"
    two.stop()
    assert host.va.fsfreeze() == 2
    found = {writer["name"]: writer for writer in daemon.status()["writers"]}
    assert found["one"]["state"] == "confirmed"
    assert "No such file or directory" in found["two"]["error"] or "Connection refused" in found["two"]["error"]
    assert host.va.fsthaw() == 2
    assert daemon.status()["last"]["consistency"] == "file-system"
    one.stop()
    assert refused(daemon).startswith("one refused the freeze: psql: error: connection to server on socket")


def test_a_role_of_postgresql_without_rights_or_password(rig: Rig, serve: Serve) -> None:
    server, fs = serve(
        databases.PostgreSql, f"create role backup login password '{ODD.replace(chr(39), chr(39) * 2)}';"
    )
    text = f"type postgresql\nsocket {server.run}\nclient-options -U backup\n"
    daemon = daemon_with(rig, fs, text)
    assert "must be superuser or have privileges of pg_checkpoint" in refused(daemon)
    assert "CHECKPOINT" in daemon.status()["writers"][0]["error"]  # and not how its session ended afterwards
    server.ask("grant pg_monitor, pg_checkpoint to backup;")
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1
    assert daemon.status()["writers"][0]["error"] == ""
    # Now the server wants a password, which psql must not ask for: its standard input is the statements.
    (fs.path / "data/pg_hba.conf").write_text("local all postgres peer\nlocal all backup scram-sha-256\n")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "password" in refused(daemon), 20, "a password is wanted")
    assert "no password supplied" in refused(daemon)
    escaped = ODD.replace("\\", "\\\\").replace(":", "\\:")
    passwords = secret(server.run / "pgpass", f"*:*:*:backup:{escaped}\n")
    postgres = pwd.getpwnam("postgres")
    os.chown(passwords, postgres.pw_uid, postgres.pw_gid)
    daemon_2 = daemon_with(rig, fs, text, env={"PGPASSFILE": str(passwords)})
    assert daemon_2.proxy().va.fsfreeze() == 1
    assert daemon_2.proxy().va.fsthaw() == 1


# -- Redis


def test_redis_with_a_password_and_with_a_user(rig: Rig, serve: Serve) -> None:
    server, fs = serve(databases.Redis)
    file = secret(server.run / "pass word", f"{ODD}\n")
    shown = ODD.replace("\\", "\\\\").replace('"', '\\"')
    server.ask(f'ACL SETUSER backup on ">{shown}" +@all ~*')
    server.ask(f'CONFIG SET requirepass "{shown}"')
    base = f"type redis\nsocket {server.run}/s\n"
    assert "NOAUTH" in refused(daemon_with(rig, fs, base))
    for who in ("", "login backup\n"):
        daemon = daemon_with(rig, fs, f"{base}password-file {file}\n{who}")
        assert daemon.proxy().va.fsfreeze() == 1
        assert daemon.proxy().va.fsthaw() == 1
        assert daemon.status()["writers"][0]["error"] == ""
        daemon.stop()
    daemon = daemon_with(rig, fs, f"{base}password-file {file}\n")
    secret(file, "wrong\n")
    assert "WRONGPASS" in refused(daemon)
    file.chmod(0o640)
    assert f"{file} must be a file that is owned by root and that nobody else may read" in refused(daemon)
    file.unlink()
    assert f"{file}: No such file or directory" in refused(daemon)


@pytest.mark.parametrize("when", ["before", "while frozen"])
def test_a_hung_redis_holds_up_nothing(rig: Rig, serve: Serve, when: str) -> None:
    server, fs = serve(databases.Redis)
    assert server.process is not None
    limits = "prepare-limit 1\nrelease-limit 1\n"
    daemon = daemon_with(rig, fs, f"type redis\nsocket {server.run}/s\n{limits}")
    host = daemon.proxy(60)
    if when == "before":
        server.process.send_signal(signal.SIGSTOP)
        assert "no answer in time" in refused(daemon)
    else:
        assert host.va.fsfreeze() == 1
        server.process.send_signal(signal.SIGSTOP)
        assert host.va.fsthaw() == 1
        (writer,) = daemon.status()["writers"]
        assert writer["state"] == "stuck"
        assert "no answer in time" in writer["error"]
    fs.assert_thawed()
    server.process.send_signal(signal.SIGCONT)
    daemon.wait_status(lambda record: record["writers"][0]["state"] != "stuck", 60)
    assert server.ask("SET a 1") == "+OK", "it is not paused any more"
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1


@pytest.mark.parametrize("who", ["writer", "supervisor", "all"])
def test_redis_goes_on_whoever_dies(rig: Rig, serve: Serve, who: str) -> None:
    server, fs = serve(databases.Redis)
    word = secret(server.run / "password", "word\n")
    text = f"type redis\nsocket {server.run}/s\npassword-file {word}\n"
    server.ask("CONFIG SET requirepass word")
    daemon = daemon_with(rig, fs, text)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert said_to(server, 1, "AUTH word", "SET a 1") == ["+OK"], "it is paused"
    keeper = pid_of(daemon, "keeper")
    if who != "supervisor":
        kill(pid_of(daemon, "writer"))
    if who == "all":
        kill(keeper)
    if who == "writer":
        assert host.va.fsthaw() == 1
        let_go(daemon)
    else:
        daemon.kill()
        daemon.wait_orphans(20)
        let_go(daemon_with(rig, fs, text, state_dir=daemon.state_dir))
    assert said_to(server, 20, "AUTH word", "SET a 1") == ["+OK", "+OK"], "it is not paused any more"


def said_to(server: Server, seconds: float, *lines: str) -> list[str]:
    """Return the first lines of the answers of one connection, of which each comes within so many seconds."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect(f"{server.run}/s")
        found = []
        with sock.makefile("rwb") as file:
            for line in lines:
                file.write(line.encode() + b"\r\n")
                file.flush()
                try:
                    found.append(file.readline().decode().strip())
                except TimeoutError:
                    break
        return found


# -- all types


@pytest.mark.parametrize("kind", ["mariadb", "mysql", "postgresql", "mongodb", "redis", "sql"])
def test_a_server_and_a_client_that_are_not_there(rig: Rig, kind: str) -> None:
    fs = rig.fs("ext4")
    nowhere = f"{rig.area.fresh('no where')}/s.sock"
    more = "quiesce do 0\n" if kind == "sql" else f"socket {nowhere}\n"
    client = "" if kind == "redis" else "client /no/such client\n"
    daemon = daemon_with(rig, fs, f"type {kind}\n{more}{client}")
    (planned,) = daemon.proxy().va.fsplan()["writers"]
    assert ("/no/such client: No such file" if client else f"{nowhere}: No such file") in planned["error"]
    assert ("/no/such client: No such file" if client else f"{nowhere}: No such file") in refused(daemon)
    assert daemon.proxy().va.fsfreeze({"writers": "try"}) == 1
    assert daemon.proxy().va.fsthaw() == 1
    daemon.stop()
    let_go(daemon_with(rig, fs, {}))

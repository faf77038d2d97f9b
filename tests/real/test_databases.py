"""Real servers under a freeze with their writer: nothing acknowledged is lost, and all is as before afterwards."""

from __future__ import annotations

import shutil
import subprocess
import threading
import xmlrpc.client

import pytest
from harness import databases
from harness.daemon import Daemon
from harness.databases import Server
from harness.filesystems import LoopFs
from harness.processes import kill, until
from harness.rig import Rig
from harness.serving import INNODB, daemon_for, serve
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(240)
MYISAM = "create table t.n (n int primary key) engine=MyISAM;"


FLUSH = "--innodb-flush-log-at-trx-commit="
CASES = {
    "postgresql": (databases.PostgreSql, [], "create table n (n int primary key);", "postgresql"),
    "redis": (databases.Redis, [], "", "redis"),
    "mariadb-1": (databases.MariaDb, [f"{FLUSH}1"], f"create database t;\n{INNODB}", "mariadb"),
    "mariadb-2": (databases.MariaDb, [f"{FLUSH}2"], f"create database t;\n{INNODB}", "mariadb"),
    "mariadb-0": (databases.MariaDb, [f"{FLUSH}0"], f"create database t;\n{INNODB}", "mariadb"),
    "myisam": (databases.MariaDb, [], f"create database t;\n{MYISAM}", "mariadb"),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_acknowledged_is_lost(rig: Rig, servers: list[Server], case: str) -> None:
    kind, options, setup, name = CASES[case]
    server, fs = serve(rig, servers, kind, options, setup)
    daemon = daemon_for(rig, server, fs, name)
    host = daemon.proxy()
    acknowledged: list[int] = []
    stop = threading.Event()
    inserting = threading.Thread(target=server.insert, args=(stop, acknowledged))
    inserting.start()
    copy = rig.area.fresh("copy")
    try:
        for round_ in range(3):
            before = len(acknowledged)
            until(lambda before=before: len(acknowledged) > before + 300, 60, "it inserts")
            assert host.va.fsfreeze() == 1
            (writer,) = daemon.status()["writers"]
            assert writer["state"] == "confirmed", writer
            assert writer["not_frozen"] == [], writer
            sure = len(acknowledged)
            if round_ == 2:
                shutil.copyfile(fs.image, copy)
            assert host.va.fsthaw() == 1
            assert daemon.status()["last"]["consistency"] == "application"
    finally:
        stop.set()
        inserting.join(60)
    server.stop()
    # The same place and the same file system, made of the copy: as after a restore.
    fs.unmount()
    shutil.copyfile(copy, fs.image)
    subprocess.run(["blockdev", "--flushbufs", fs.device], check=True)
    fs.mount()
    server.start()
    lost = set(acknowledged[:sure]) - server.found()
    assert not lost, f"{len(lost)} of {sure} lost: {sorted(lost)[:5]}"


# -- nothing stays set


FLUSH_IS = "select @@global.innodb_flush_log_at_trx_commit;"


def writer_of(daemon: Daemon) -> int:
    (found,) = [pid for pid, title in daemon.titles().items() if ": writer " in title]
    return found


@pytest.fixture
def maria(rig: Rig, servers: list[Server]) -> tuple[databases.MariaDb, LoopFs, Daemon]:
    server, fs = serve(rig, servers, databases.MariaDb, [f"{FLUSH}2"], f"create database t;\n{INNODB}")
    assert isinstance(server, databases.MariaDb)
    return server, fs, daemon_for(rig, server, fs, "mariadb")


def goes_on(server: databases.MariaDb) -> None:
    """Require that a commit goes through, and that the variable is as before."""
    number = 1 + max(server.found(), default=0)
    server.ask(f"insert into t.n values ({number});")
    assert number in server.found()
    assert server.ask(FLUSH_IS).strip() == "2"


@pytest.mark.parametrize("who", ["nobody", "writer", "keeper", "supervisor", "all"])
def test_the_server_is_as_before_whoever_dies(
    maria: tuple[databases.MariaDb, LoopFs, Daemon], rig: Rig, who: str
) -> None:
    server, fs, daemon = maria
    goes_on(server)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert server.ask(FLUSH_IS).strip() == "1"
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    if who in ("writer", "all"):
        kill(writer_of(daemon))
    if who in ("keeper", "all"):
        kill(keeper)
    if who in ("supervisor", "all"):
        daemon.kill()
    if who in ("nobody", "writer"):
        assert host.va.fsthaw() == 1
    elif who == "keeper":
        daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    else:
        daemon.wait_orphans(20)
        if who == "all":
            options = daemon.command[daemon.command.index("--writers-dir") :]
            again = rig.daemon([fs], options, state_dir=daemon.state_dir)
            again.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    goes_on(server)


def test_a_server_that_is_not_there_refuses(maria: tuple[databases.MariaDb, LoopFs, Daemon]) -> None:
    server, fs, daemon = maria
    server.stop()
    with pytest.raises(xmlrpc.client.Fault) as raised:
        daemon.proxy().va.fsfreeze()
    assert raised.value.faultCode == Code.VETOED
    assert raised.value.faultString.startswith("db refused the freeze: ERROR 2002")
    fs.assert_thawed()


def test_a_session_that_is_lost_while_frozen_is_told(maria: tuple[databases.MariaDb, LoopFs, Daemon]) -> None:
    server, _, daemon = maria
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    idle = "select id from information_schema.processlist where command = 'Sleep';"
    (session,) = server.ask(idle).split()
    server.ask(f"kill {session};")
    assert host.va.fsthaw() == 1
    assert daemon.status()["writers"][0]["error"].startswith("ERROR 20")
    goes_on(server)

"""What goes wrong with a database that takes part: the host gets the right word, the application runs, nothing is set.

Each with a limit: the application is free again within the limits of its writer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import databases
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.processes import until
from harness.rig import Rig
from harness.serving import INNODB, daemon_for, serve
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(240)

FLUSH_IS = "select @@global.innodb_flush_log_at_trx_commit;"
SHORT = ("--prepare-limit", "3", "--quiesce-limit", "2", "--confirm-limit", "1", "--release-limit", "2")
KILLED_LATER = 6.0  # seconds after its limit at which the supervisor ends a writer that does not end its step itself


@pytest.fixture
def maria(rig: Rig, servers: list[databases.Server]) -> tuple[databases.MariaDb, LoopFs]:
    options = ["--innodb-flush-log-at-trx-commit=2"]
    server, fs = serve(rig, servers, databases.MariaDb, options, f"create database t;\n{INNODB}")
    assert isinstance(server, databases.MariaDb)
    return server, fs


def goes_on(server: databases.MariaDb) -> None:
    """Require that a commit goes through, and that the variable is as before."""
    number = 1 + max(server.found(), default=0)
    server.ask(f"insert into t.n values ({number});")
    assert number in server.found()
    assert server.ask(FLUSH_IS).strip() == "2"


def refused(call: Callable[..., Any], *params: Any) -> tuple[Code, str]:
    with pytest.raises(xmlrpc.client.Fault) as raised:
        call(*params)
    return Code(raised.value.faultCode), raised.value.faultString


def nothing_is_left(daemon: Daemon) -> None:
    until(
        lambda: not [p.name for p in (daemon.state_dir / "writers").glob("*") if p.suffix != ".lock"],
        40,
        "nothing is on record any more",
    )


def writer_of(daemon: Daemon) -> int:
    (found,) = [pid for pid, title in daemon.titles().items() if ": writer " in title]
    return found


def fill(path: Path) -> None:
    """Write until there is no room left."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass


def works_again(daemon: Daemon) -> None:
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1
    assert daemon.status()["last"]["consistency"] == "application"


def test_the_server_hangs(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb", *SHORT)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        code, text = refused(daemon.proxy().va.fsfreeze)
        assert time.monotonic() - began < 3 + 2 + 2 * KILLED_LATER
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert code is Code.VETOED
    assert "db refused the freeze" in text
    assert "in time" in text
    assert "nothing was frozen" in text
    fs.assert_thawed()
    goes_on(server)
    nothing_is_left(daemon)
    works_again(daemon)


def test_its_holder_is_stopped_while_frozen(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb", *SHORT)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    os.kill(writer_of(daemon), signal.SIGSTOP)
    began = time.monotonic()
    assert host.va.fsthaw() == 1
    assert time.monotonic() - began < 2 + 2 * KILLED_LATER
    fs.assert_thawed()
    goes_on(server)
    nothing_is_left(daemon)
    works_again(daemon)


def test_its_holder_is_stopped_and_the_agent_is_dead(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    options = (*SHORT, "--freeze-limit", "1", "--hold-limit", "3", "--hold-limit-max", "3", "--thaw-limit", "1")
    daemon = daemon_for(rig, server, fs, "mariadb", *options, "--guest-hold-limit", "3")
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    writer = writer_of(daemon)
    os.kill(writer, signal.SIGSTOP)
    daemon.kill()
    # The keeper thaws, but the writer hears of nothing: the next start ends it, and puts back what it has set.
    again = rig.daemon([fs], daemon.command[daemon.command.index("--writers-dir") :], state_dir=daemon.state_dir)
    again.wait_status(lambda record: record["state"] == "THAWED")
    os.kill(writer, signal.SIGCONT)
    again.wait_status(lambda record: not record["phase"], 40)
    goes_on(server)
    nothing_is_left(again)


def test_the_server_is_killed_and_started_again(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb", *SHORT)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    server.stop()
    daemon.wait_status(lambda record: record["writers"][0]["state"] == "lost", 10)
    assert host.va.fsthaw() == 1
    last = daemon.status()["last"]
    # Nothing could reach what is frozen, and all of its files are.
    assert (last["consistency"], last["writers"][0]["not_frozen"]) == ("application", [])
    code, text = refused(host.va.fsfreeze)
    assert code is Code.VETOED, text
    server.start()
    nothing_is_left(daemon)
    goes_on(server)
    works_again(daemon)


def test_there_is_no_client(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb", more="client /nowhere/mariadb\n")
    code, text = refused(daemon.proxy().va.fsfreeze)
    assert code is Code.VETOED
    assert text.startswith("db refused the freeze: /nowhere/mariadb: No such file or directory"), text
    (planned,) = daemon.proxy().va.fsplan()["writers"]
    assert planned["error"] == "/nowhere/mariadb: No such file or directory"
    goes_on(server)
    nothing_is_left(daemon)


def test_the_password_is_wrong(rig: Rig, servers: list[databases.Server]) -> None:
    server, fs = serve(rig, servers, databases.PostgreSql, [], "create table n (n int primary key);")
    (fs.path / "data" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
    assert server.process is not None
    server.ask("select pg_reload_conf();")
    daemon = daemon_for(rig, server, fs, "postgresql")
    code, text = refused(daemon.proxy().va.fsfreeze)
    assert code is Code.VETOED
    assert text.startswith("db refused the freeze: "), text
    assert "no password supplied" in text
    fs.assert_thawed()


def test_a_full_disk_of_the_server(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb")
    fill(fs.path / "fills")
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1
    (fs.path / "fills").unlink()
    goes_on(server)
    nothing_is_left(daemon)


@pytest.fixture
def small(rig: Rig) -> Iterator[Path]:
    """A folder in memory that has room for little."""
    folder = rig.area.fresh("small")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_room_for_the_record_of_a_latch(rig: Rig, maria: tuple[databases.MariaDb, LoopFs], small: Path) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb", state_dir=small / "state")
    works_again(daemon)
    fills = small / "fills"
    fill(fills)
    code, text = refused(daemon.proxy().va.fsfreeze)
    # Where the agent itself has no room for its journal that is said; nothing was frozen or set in any case.
    assert code in (Code.VETOED, Code.FREEZE_FAILED), text
    assert "No space left on device" in text
    fs.assert_thawed()
    goes_on(server)
    fills.unlink()
    works_again(daemon)
    nothing_is_left(daemon)


def test_a_path_that_is_not_frozen(rig: Rig, servers: list[databases.Server]) -> None:
    other = rig.fs("ext4")
    options = ["--innodb-flush-log-at-trx-commit=2", f"--log-bin={other.path}/binlog"]
    server, fs = serve(rig, servers, databases.MariaDb, options, f"create database t;\n{INNODB}")
    assert isinstance(server, databases.MariaDb)
    daemon = daemon_for(rig, server, fs, "mariadb")
    host = daemon.proxy()
    (planned,) = host.va.fsplan()["writers"]
    assert str(other.path) in planned["paths"]
    assert planned["not_frozen"] == [str(other.path)]
    assert host.va.fsfreeze() == 1
    (writer,) = daemon.status()["writers"]
    assert writer["not_frozen"] == [str(other.path)]
    assert set(writer["info"]) >= {"gtid", "binlog"}
    assert host.va.fsthaw() == 1
    assert daemon.status()["last"]["consistency"] == "file-system"
    # Once its lock is gone, what is not frozen is written to: the snapshot is worthless.
    assert host.va.fsfreeze() == 1
    (session,) = server.ask("select id from information_schema.processlist where command = 'Sleep';").split()
    server.ask(f"kill {session};")
    daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"], 20)
    code, text = refused(host.va.fsthaw)
    assert code is Code.FREEZE_BROKEN
    assert f"db was lost, and {other.path} is not frozen" in text
    goes_on(server)
    nothing_is_left(daemon)


def test_a_sync_has_it_prepare(rig: Rig, maria: tuple[databases.MariaDb, LoopFs]) -> None:
    server, fs = maria
    daemon = daemon_for(rig, server, fs, "mariadb")
    assert daemon.proxy().va.fssync() == 1
    (writer,) = daemon.status()["writers"]
    assert writer["state"] == "released"
    assert writer["seconds"]["prepare"] > 0
    goes_on(server)
    nothing_is_left(daemon)

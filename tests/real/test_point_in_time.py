"""A point-in-time restore, as docs/writers.md tells it: the image, and the server's own log from the recorded position.

No row is lost, and none is there twice.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import databases
from harness.databases import Server, program
from harness.processes import until
from harness.rig import Rig
from harness.serving import Made, daemon_for, serve

pytestmark = pytest.mark.timeout(240)
Info = dict[str, str]


@contextmanager
def restored(rig: Rig, image: Path) -> Iterator[Path]:
    """Mount the image at another place."""
    place = rig.area.fresh("restored")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def backed_up(rig: Rig, made: Made, kind: str, more: str = "") -> tuple[Path, Info, set[int]]:
    """Insert all the time, take an image in the middle; return it, its position, and all that was acknowledged."""
    server, fs = made
    daemon = daemon_for(rig, server, fs, kind, more=more)
    host = daemon.proxy()
    acknowledged: list[int] = []
    stop = threading.Event()
    inserting = threading.Thread(target=server.insert, args=(stop, acknowledged))
    inserting.start()
    image = rig.area.fresh("image")
    try:
        until(lambda: len(acknowledged) > 300, 60, "it inserts")
        assert host.va.fsfreeze() == 1
        info = daemon.status()["writers"][0]["info"]
        shutil.copyfile(fs.image, image)
        assert host.va.fsthaw() == 1
        info = daemon.status()["last"]["writers"][0]["info"] | info
        before = len(acknowledged)
        until(lambda: len(acknowledged) > before + 300, 60, "it goes on")
    finally:
        stop.set()
        inserting.join(60)
    assert daemon.status()["last"]["consistency"] == "application"
    return image, info, set(acknowledged)


def test_mariadb_image_and_binary_log(rig: Rig, servers: list[Server]) -> None:
    logs = rig.area.fresh("binlogs")
    logs.mkdir()
    options = ["--log-bin=binlog", "--sync-binlog=1", "--server-id=1"]
    setup = "create database t;\ncreate table t.n (n int primary key) engine=InnoDB;"
    made = serve(rig, servers, databases.MariaDb, options, setup)
    image, info, acknowledged = backed_up(rig, made, "mariadb")
    server, fs = made
    first = info["binlog"].partition(":")[0]
    files = sorted(path for path in (fs.path / "data").glob("binlog.0*") if path.name >= first)
    with restored(rig, image) as place:
        again = databases.MariaDb(place, rig.area.fresh("run"), options)
        servers.append(again)
        again.start()
        in_image = again.found()
        assert in_image < acknowledged
        # From there on: a row that is in the image already would be refused (ERROR 1062), which ends the client.
        reader = [program("mariadb-binlog", "mariadb-server"), f"--start-position={info['gtid']}", *map(str, files)]
        statements = subprocess.run(reader, check=True, capture_output=True, timeout=60).stdout
        subprocess.run(again.client, input=statements, check=True, capture_output=True, timeout=60)
        assert again.found() == acknowledged == server.found()
        again.stop()


@pytest.mark.parametrize("label", [False, True])
def test_postgresql_image_and_archived_log(rig: Rig, servers: list[Server], label: bool) -> None:
    archive = rig.area.fresh("archive")
    archive.mkdir()
    archive.chmod(0o777)
    options = ["-c", "archive_mode=on", "-c", f"archive_command=cp %p {archive}/%f"]
    made = serve(rig, servers, databases.PostgreSql, options, "create table n (n int primary key);")
    image, info, acknowledged = backed_up(rig, made, "postgresql", "backup-mode yes\n" if label else "")
    assert ("backup_label" in info) == label
    server, _ = made
    last = server.ask("select pg_walfile_name(pg_switch_wal());").strip()
    until(lambda: (archive / last).exists(), 30, "the log is archived")
    with restored(rig, image) as place:
        options = ["-c", f"restore_command=cp {archive}/%f %p"]
        (place / "data" / "postmaster.pid").unlink()  # of a server that runs here still, but not where one restores
        (place / "data" / "recovery.signal").touch()
        if label:
            (place / "data" / "backup_label").write_text(info["backup_label"])
        for name in ("recovery.signal", *["backup_label"] * label):
            shutil.chown(place / "data" / name, "postgres", "postgres")
        again = databases.PostgreSql(place, rig.area.fresh("run"), options)
        servers.append(again)
        again.start()
        until(lambda: again.ask("select pg_is_in_recovery();").strip() == "f", 30, "it has recovered")
        reached = again.ask(f"select pg_wal_lsn_diff(pg_current_wal_lsn(), '{info['lsn']}') > 0;").strip()
        assert reached == "t"
        assert again.found() == acknowledged == server.found()
        again.stop()

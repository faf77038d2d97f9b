"""PostgreSQL 17, MariaDB 11.8 and Valkey 8 of Debian 13 in a guest of that release, and a second guest from its image.

Without KVM this takes minutes, so that it is tried only when VIRTAGENT_VM_RELEASED is set. The servers run as Debian
sets them up, and the agent is confined by its unit as it is shipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Unmet
from harness.fixtures import unmet
from harness.processes import until
from harness.vm import image
from harness.vm.image import Base
from harness.vm.machine import Machine

pytestmark = [
    pytest.mark.skipif(
        "VIRTAGENT_VM_RELEASED" not in os.environ, reason="takes minutes: VIRTAGENT_VM_RELEASED=1 scripts/test --vm"
    ),
    pytest.mark.timeout(1800),
]
PACKAGES = ("postgresql", "mariadb-server", "valkey-server")
LONG = 600.0
WRITERS = {
    "postgresql": "type postgresql\n",
    "mariadb": "type mariadb\n",
    "valkey": "type redis\nsocket /run/valkey/valkey-server.sock\n",
}
CONF = "channel unix:/run/virtagent/virtagentd.sock\nchannel virtio\n"
VALKEY = "unixsocket /run/valkey/valkey-server.sock\nappendonly yes\n"
UNITS = ("postgresql@17-main", "mariadb", "valkey-server")
# A row of each, one commit after another; what the server has acknowledged is noted in memory.
LOADS = {
    "postgresql": (
        "insert into n values ($i) returning n;",
        "/usr/bin/setpriv --reuid=postgres --regid=postgres --init-groups psql -AtqX",
        "select n from n",
    ),
    "mariadb": ("insert into t.n values ($i); select $i;", "mariadb -ABNn", "select n from t.n"),
    "valkey": ("incr n", "valkey-cli -s /run/valkey/valkey-server.sock", "get n"),
}
LOAD = """cd /
i=0
while i=$((i+1)); do echo "{statement}"; usleep 2000; done | {client} >/run/ram/{name}
"""
FLUSH = "select @@global.innodb_flush_log_at_trx_commit"


def ask(guest: Machine, name: str, statement: str) -> str:
    client = LOADS[name][1]
    return str(guest.shell(f'cd /; echo "{statement}" | {client}', LONG)).strip()


def boot(base: Base, folder: Path) -> Machine:
    over = folder / "over"
    settings = over / "etc/virtagent/writers.d"
    settings.mkdir(parents=True)
    (settings.parent / "virtagentd.conf").write_text(CONF)
    for name, text in WRITERS.items():
        (settings / f"{name}.conf").write_text(text)
    guest = Machine(base, image.initramfs(base, folder, over), folder)
    try:
        guest.wait_up(LONG)
        for unit in UNITS:
            guest.shell(f"systemctl start {unit} || {{ systemctl status {unit}; false; }}", LONG)
    except BaseException:
        guest.close()
        raise
    return guest


@pytest.fixture
def base() -> Base:
    try:
        return image.base("trixie", PACKAGES)
    except Unmet as reason:
        unmet(reason)


@pytest.fixture
def debian(base: Base, tmp_path: Path) -> Iterator[Machine]:
    folder = tmp_path / "first"
    folder.mkdir()
    made = boot(base, folder)
    yield made
    made.close()


def snapshot(guest: Machine, target: Path) -> None:
    """Begin a copy of the disk as it is now."""
    (disk,) = [block for block in guest.monitor("query-block") if block["device"] == "root"]
    with open(target, "wb") as file:
        file.truncate(disk["inserted"]["image"]["virtual-size"])
    guest.monitor(
        "blockdev-add", driver="raw", **{"node-name": "copy"}, file={"driver": "file", "filename": str(target)}
    )
    guest.monitor("blockdev-backup", device="root", target="copy", sync="full", **{"job-id": "backup"})


def test_what_was_acknowledged_is_in_the_image(base: Base, debian: Machine, tmp_path: Path) -> None:
    guest = debian
    guest.shell(f"echo '{VALKEY}' >>/etc/valkey/valkey.conf && systemctl restart valkey-server", LONG)
    guest.shell("until [ -S /run/valkey/valkey-server.sock ]; do usleep 100000; done", LONG)
    ask(guest, "postgresql", "create table n (n int primary key)")
    ask(guest, "mariadb", "create database t; create table t.n (n int primary key);")
    ask(guest, "mariadb", "set global innodb_flush_log_at_trx_commit = 0")
    for name, (statement, client, _) in LOADS.items():
        script = LOAD.format(statement=statement, client=client, name=name)
        guest.shell(f"cat >/run/ram/{name}.sh <<'E-N-D'\n{script}E-N-D")
        guest.shell(f"setsid sh /run/ram/{name}.sh >/dev/null 2>&1 </dev/null &")
    for name in LOADS:
        guest.shell(f"until [ $(wc -l </run/ram/{name}) -gt 100 ]; do usleep 100000; done", LONG)
    port = guest.port(timeout=LONG)
    assert port.ask("va.fsfreeze", {"hold_limit": 300}) == {"return": 1}
    sure = {name: int(str(guest.shell(f"tail -n 1 /run/ram/{name}")).strip()) for name in LOADS}
    record = port.ask("va.fsstatus", {})["return"]
    writers = {writer["name"]: writer for writer in record["writers"]}
    assert {name: (writer["state"], writer["not_frozen"]) for name, writer in writers.items()} == dict.fromkeys(
        WRITERS, ("confirmed", [])
    )
    assert writers["postgresql"]["info"]["version"].startswith("PostgreSQL 17")
    assert writers["mariadb"]["info"]["version"].startswith("11.8")
    print({name: (writer["info"], writer["seconds"]) for name, writer in writers.items()})
    target = tmp_path / "root.img"
    snapshot(guest, target)
    assert port.ask("va.fsthaw") == {"return": 1}
    last = port.ask("va.fsstatus", {})["return"]["last"]
    port.close()
    assert (last["outcome"], last["consistency"]) == ("thawed", "application")
    assert ask(guest, "mariadb", FLUSH) == "0"
    for name in LOADS:
        before = guest.shell(f"wc -l </run/ram/{name}").strip()
        guest.shell(f"until [ $(wc -l </run/ram/{name}) -gt {before} ]; do usleep 100000; done", LONG)
    until(lambda: guest.monitor("query-block-jobs") == [], LONG, "the disk is copied")
    guest.close()

    taken = tmp_path / "taken"
    shutil.copytree(base.folder, taken, symlinks=True, ignore=lambda *_: ["root.img"])
    (taken / "root.img").symlink_to(target)
    folder = tmp_path / "second"
    folder.mkdir()
    restored = boot(Base(taken), folder)
    try:
        for name, (_, _, select) in LOADS.items():
            there = {int(number) for number in re.findall(r"\d+", ask(restored, name, select))}
            wanted = {sure[name]} if name == "valkey" else set(range(1, sure[name] + 1))
            lost = {n for n in wanted if n > max(there, default=0)} if name == "valkey" else wanted - there
            assert not lost, f"{name}: {len(lost)} of {sure[name]} are not in the image"
            print(f"{name}: {sure[name]} acknowledged, none missing")
    finally:
        restored.close()

"""A database server on a file system of the test, and the daemon whose writer it is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from . import Unmet
from .daemon import Daemon
from .databases import Server
from .filesystems import LoopFs
from .fixtures import unmet
from .rig import Rig

Made = tuple[Server, LoopFs]
INNODB = "create table t.n (n int primary key) engine=InnoDB;"


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """The servers of the test, which end with it."""
    made: list[Server] = []
    yield made
    for server in made:
        server.stop()


def serve(rig: Rig, servers: list[Server], kind: type[Server], options: list[str], setup: str) -> Made:
    """Start a server on a file system of its own, and have it take the lines of `setup`."""
    fs = rig.fs("ext4", size=400 << 20)
    server = kind(fs.path, rig.area.fresh("run"), options)
    servers.append(server)
    try:
        server.make()
        server.start()
    except Unmet as reason:
        unmet(reason)
    for line in filter(None, setup.split("\n")):
        server.ask(line)
    return server, fs


def daemon_for(
    rig: Rig,
    server: Server,
    fs: LoopFs,
    kind: str,
    *options: str,
    more: str = "",
    beside: Sequence[LoopFs] = (),
    **others: object,
) -> Daemon:
    """Start the daemon, with the server as its writer `db`; `more` are further lines of its file.

    It freezes `fs`, and those `beside`.
    """
    folder = rig.area.fresh("writers.d")
    folder.mkdir(mode=0o700)
    where = f"{server.run}/s" if kind != "postgresql" else str(server.run)
    (folder / "db.conf").write_text(f"type {kind}\nsocket {where}\n{more}")
    return rig.daemon([fs, *beside], ["--writers-dir", str(folder), *options], **others)  # type: ignore[arg-type]


def lost_in(rig: Rig, kind: type[Server], options: list[str], image: Path, sure: Sequence[int]) -> int:
    """Start a server from a copy of its disk, and return how many of these numbers are not there; remove the copy."""
    place, run = rig.area.fresh("copy-at"), rig.area.fresh("run")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    (place / "data" / "postmaster.pid").unlink(missing_ok=True)  # of a server that runs here still
    server = kind(place, run, options)
    try:
        server.start()
        return len(set(sure) - server.found())
    finally:
        server.stop()
        subprocess.run(["umount", str(place)], check=True)
        image.unlink()

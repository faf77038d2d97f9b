"""What virtagentctl draws: by itself, and on a terminal in front of an agent of the test's making."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, WORKER, status_record
from rich.console import Console
from virtagent.agent.api import records
from virtagent.host import screen, text

EVIL = "[red]/srv/\x1b]0;own\x07\n\u202e\u2028\x9b2J[/red]"
SHOWN = "[red]/srv/\\x1b]0;own\\x07\\n\\u202e\\u2028\\x9b2J[/red]"


def drawn(thing: Any, width: int = 200, height: int = 60) -> str:
    """Return what a terminal would show."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=height, highlight=False, markup=False, emoji=False
    )
    console.print(thing)
    styled = out.getvalue()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", styled)
    assert all(c.isprintable() or c == "\n" for c in bare)
    return "\n".join(line.rstrip() for line in bare.splitlines())


def load(**changed: Any) -> records.Status:
    return records.load(records.Status, status_record(**changed), "va.fsstatus")


def test_status() -> None:
    mounts = [
        MOUNT,
        MOUNT | {"mountpoint": "/srv/x", "aliases": [], "state": "failed", "errno": 5, "error": "EIO"},
        MOUNT | {"mountpoint": "/net", "aliases": [], "state": "left-out", "reason": "network", "seconds": -1},
        MOUNT | {"mountpoint": "/proc", "aliases": [], "state": "left-out", "reason": "pseudo", "seconds": -1},
    ]
    progress = {"dirty_bytes": 3 << 20, "flushed_bytes": 1 << 20, "bytes_per_second": 1 << 20, "eta": 3.0}
    shown = drawn(screen.status(load(mounts=mounts, progress=progress, last=LAST), verbose=True))
    head, bar, now, ends, to_do, *_ = shown.split("\n")
    assert head == "FROZEN: hold for 19 s, freeze 17, thaws in 41 s"
    assert bar == "  [######..................] 1 MiB written, 3 MiB dirty, 1 MiB/s, 3 s left"
    assert now == "  now      2 file systems frozen; who writes to them waits, for 19 s"
    assert ends.split()[:5] == ["ends", "it", "thaws", "by", "itself"]
    assert to_do.split()[:2] == ["to", "do"]
    assert shown[shown.index("file system  state") :].startswith(
        "file system  state   type  device    took\n"
        "/srv/db      frozen  ext4  /dev/vdb  sync 2.5 s, still 19 s  also /mnt/db\n"
        "/srv/x       failed  ext4  /dev/vdb  sync 2.5 s, still 19 s  EIO\n"
        "left out\n"
        "  network  /net  ext4\n"
        "  1 file system on no disk (pseudo)\n"
        "worker          process   phase  for   kernel\n"
        "17 va.fsfreeze  pid 4711  hold   19 s  sleeping\n"
        "last freeze  16 BROKEN: the hold limit passed; 4 file systems held 1 min"
    )


def test_plan() -> None:
    mounts = (
        records.Mount("/srv/in", level=0, hosts=(1,), fstype="ext4", source="/dev/loop1"),
        records.Mount("/srv", level=1, fstype="xfs", source="/dev/loop0"),
    )
    left_out = (records.LeftOut("/proc", reason="pseudo"), records.LeftOut("/n", fstype="nfs4", reason="network"))
    assert drawn(screen.plan(records.Plan(mounts, left_out))) == (
        "a freeze would freeze 2 file systems\n"
        "├── level 0, all at once\n"
        "│   └── /srv/in  ext4  /dev/loop1  lies on /srv\n"
        "├── level 1, all at once\n"
        "│   └── /srv  xfs  /dev/loop0\n"
        "└── left out\n"
        "    ├── 1 file system (network): /n\n"
        "    └── 1 file system on no disk (pseudo)"
    )


def test_what_a_guest_says_is_neither_markup_nor_a_command_to_the_terminal() -> None:
    mount = MOUNT | {"mountpoint": EVIL, "fstype": EVIL, "aliases": [EVIL], "state": EVIL}
    worker = WORKER | {"rpc": EVIL, "process_state": EVIL}
    record = load(state=EVIL, mounts=[mount], workers=[worker], last=LAST | {"error": EVIL}, version=EVIL, error=EVIL)
    plan = records.Plan((records.Mount(EVIL, fstype=EVIL, source=EVIL),), (records.LeftOut(EVIL, reason=EVIL),))
    able = records.Capabilities(EVIL, (EVIL,))
    for thing in (screen.status(record, verbose=True), screen.plan(plan), screen.capabilities(able)):
        assert SHOWN in drawn(thing, 2000)


def test_what_is_counted_goes_on() -> None:
    mounts = [MOUNT | {"state": "syncing", "seconds": 1.0}, MOUNT]
    progress = {"dirty_bytes": 1, "flushed_bytes": 0, "bytes_per_second": 1.0, "eta": 5.0}
    later = text.aged(load(phase="sync", limit_left=10.0, hold_left=-1, mounts=mounts, progress=progress), 7)
    assert (later.since, later.limit_left, later.hold_left, later.progress.eta) == (26, 3, -1, 0)
    assert [mount.seconds for mount in later.mounts] == [8, 0.031]


@pytest.mark.parametrize("width", [1, 20, 49])
def test_a_terminal_too_narrow_for_a_table_shows_words_whole(width: int) -> None:
    shown = drawn(screen.status(load(workers=[WORKER]), verbose=True), width)
    if width > 1:
        assert {"frozen", "ext4", "/srv/db", "sleeping", "va.fsfreeze"} <= set(shown.split())

"""The picture of guests: status records in, lines out. The text is kept here for three sizes of a terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, WORKER, status_record
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api import records
from virtagent.agent.api.states import FreezeState, MountState, Phase
from virtagent.agent.api.structs import replace
from virtagent.host import picture
from virtagent.host.guest_status import GuestStatus
from virtagent.host.layout import cells, width_of

MIB = 1 << 20
URL = "unix:/run/virtagent/virtagentd.sock"
EVIL = "[red]/srv/\x1b]0;own\x07\n\u202e\u2028\x9b2J[/red]"


def guest(url: str = URL, **changed: Any) -> GuestStatus:
    return GuestStatus.of(url, records.load(records.Status, status_record(**changed), "va.fsstatus"))


def mount(point: str, source: str, state: str, **changed: Any) -> dict[str, Any]:
    unknown = {"written_bytes": -1, "dirty_bytes": -1, "seconds": -1.0}
    return MOUNT | unknown | {"mountpoint": point, "aliases": [], "source": source, "state": state} | changed


def syncing(point: str, source: str, written: int, left: int, eta: float) -> dict[str, Any]:
    figures = {"written_bytes": written * MIB, "dirty_bytes": left * MIB, "bytes_per_second": 4.0 * MIB, "eta": eta}
    return mount(point, source, "syncing", seconds=10.6, **figures)


SYNC = {
    "state": "INPROGRESS",
    "code": 1,
    "phase": "sync",
    "since": 10.2,
    "limit_left": 589.8,
    "hold_left": -1,
    "workers": [WORKER | {"process_state": "disk-sleep"}],
    "progress": {"dirty_bytes": 39 * MIB, "flushed_bytes": 80 * MIB, "bytes_per_second": 8.0 * MIB, "eta": 4.9},
    "mounts": [
        mount("/", "/dev/vda", "synced"),
        syncing("/srv/mail", "/dev/vdc", 40, 19, 4.8),
        syncing("/srv/db", "/dev/vdb", 40, 20, 5.0),
        mount("/srv/web", "/dev/vdd", "synced"),
        mount("/srv/in", "/dev/vde", "pending"),
        mount("/net", "server:/x", "left-out", reason="network"),
    ],
}
FREEZE = SYNC | {
    "phase": "freeze",
    "since": 1.25,
    "limit_left": 28.75,
    "mounts": [mount("/", "/dev/vda", "synced"), mount("/srv", "vg0-srv", "freezing", seconds=1.2), MOUNT],
}
HOLD = {"since": 6.0, "hold_left": 14.2, "mounts": [mount(f"/srv/{n}", "/dev/vdb", "frozen") for n in range(4)]}
ERROR = {
    "state": "ERROR",
    "code": -1,
    "phase": "thaw",
    "hold_left": -1,
    "since": 47.0,
    "error": "worker 28 va.fsfreeze is stuck while freezing /srv/db; not yet thawed: /srv/db",
    "workers": [WORKER | {"process_state": "disk-sleep", "seconds": 53.0, "phase": "freeze"}],
    "mounts": [mount("/srv/db", "/dev/vdb", "freezing", seconds=53.0), mount("/", "/dev/vda", "thawed")],
}
REST = {"state": "THAWED", "code": 0, "phase": "", "hold_left": -1, "mounts": [], "workers": []}


def drawn(*guests: GuestStatus, width: int = 80, height: int = 24, doing: str = "snapshot", **more: Any) -> str:
    lines = picture.draw(guests, doing=doing, width=width, height=height, clock=lambda left: f"+{left:.0f}", **more)
    assert len(lines) <= height
    assert all(width_of(line) <= width for line in lines)
    return picture.plain(lines)


def test_a_sync_at_80_columns() -> None:
    assert drawn(guest(**SYNC)) == (
        "unix:/run/virtagent/virtagentd.sock  freeze 17       ~ SYNCING  applications run\n"
        "  [#########.....]   67%   39 MiB left   8.0 MiB/s   about 5 s   10 s of 10 min\n"
        "  /srv/db     /dev/vdb   40 of 60 MiB   4.0 MiB/s   about 5 s   11 s\n"
        "  /srv/mail   /dev/vdc   40 of 59 MiB   4.0 MiB/s   about 5 s   11 s\n"
        "  2 synced   / /srv/web\n"
        "  1 pending   /srv/in\n"
        "Ctrl-C cancels; nothing is frozen yet"
    )


def test_a_sync_at_160_columns_has_a_bar_for_each_disk() -> None:
    shown = drawn(guest(**SYNC), width=160, height=50)
    assert (
        "\n  [################........]   67%   39 MiB left   8.0 MiB/s   about 5 s   10 s of 10 min\n"
        "  /srv/db     /dev/vdb   [######....]   40 of 60 MiB   4.0 MiB/s   about 5 s   11 s\n"
        "  /srv/mail   /dev/vdc   [######....]   40 of 59 MiB   4.0 MiB/s   about 5 s   11 s\n"
    ) in shown


def test_a_sync_at_40_columns() -> None:
    assert drawn(guest(**SYNC), width=40, height=12) == (
        "unix:/run/virtagent..ntd.sock  freeze 17\n"
        "~ SYNCING  applications run\n"
        "  67%   about 5 s   10 s of 10 min\n"
        "  /srv/db     /dev/vdb   11 s\n"
        "  /srv/mail   /dev/vdc   11 s\n"
        "  2 synced   / /srv/web\n"
        "  1 pending   /srv/in\n"
        "Ctrl-C cancels; nothing is frozen yet"
    )


def test_a_freeze_says_that_applications_stand_still() -> None:
    assert drawn(guest(**FREEZE), doing="freeze", width=100) == (
        "unix:/run/virtagent/virtagentd.sock  freeze 17                  ~ FREEZING  applications stand still\n"
        "  [########................]   33%   1.2 s of 30 s\n"
        "  /srv   vg0-srv   1.2 s\n"
        "  1 synced   /\n"
        "  1 frozen   /srv/db\n"
        "Ctrl-C leaves; the freeze goes on: `virtagentctl thaw` ends it"
    )


def test_a_hold_counts_down() -> None:
    assert drawn(guest(**HOLD)) == (
        "unix:/run/virtagent/virtagentd.sock  freeze 17\n"
        "* FROZEN  applications stand still\n"
        "  [####..........]   thaws by itself in 14 s   (+14)\n"
        "  4 frozen   /srv/0 /srv/1 /srv/2 /srv/3\n"
        "Ctrl-C cancels, and thaws"
    )
    assert "held without a limit" in drawn(guest(**HOLD | {"hold_left": -1}))


def test_a_low_screen_in_error_has_the_file_systems_rather_than_the_worker() -> None:
    """Of 12 lines none was left for what is stuck, and "and 0 more" stood there."""
    stuck = [MOUNT | {"mountpoint": f"/srv/{n}", "state": "freezing", "seconds": 61.0} for n in range(3)]
    hangs = WORKER | {"process_state": "disk-sleep", "doing": "freezing /srv/0"}
    error = "worker 17 va.fsfreeze is stuck while freezing /srv/0; not yet thawed: /srv/0, /srv/1; trying again"
    record = guest(
        state="ERROR", code=-1, phase="thaw", since=47.0, hold_left=-1.0, error=error, mounts=stuck, workers=[hangs]
    )
    lines = picture.plain(picture.draw([record], doing="freeze", width=40, height=12, clock=str)).split("\n")
    assert len(lines) <= 12
    assert [line.split()[0] for line in lines if "/dev/vdb" in line] == ["/srv/0", "/srv/1"]
    assert "  and 1 more" in lines
    with_two = picture.draw([replace(record, mounts=record.mounts[:2])], doing="freeze", width=40, height=12, clock=str)
    assert "more" not in picture.plain(with_two).replace("no more", "")


def test_an_error_says_whether_anything_is_frozen_and_who_waits() -> None:
    shown = drawn(guest(**ERROR), doing="watch")
    assert shown == (
        "unix:/run/virtagent/virtagentd.sock  freeze 17\n"
        "! ERROR for 47 s  1 file system may be frozen; no new freeze until this ends\n"
        "  worker 28 va.fsfreeze is stuck while freezing /srv/db; not yet thawed: /srv/db\n"
        "  /srv/db   /dev/vdb   53 s   freezing\n"
        "  1 thawed   /\n"
        "  worker 17 (pid 4711, for 53 s) waits in the kernel\n"
        "q or Ctrl-C ends this; what goes on in the guest goes on"
    )
    waits = ERROR | {"mounts": [mount("/srv/db", "/dev/vdb", "syncing", seconds=53.0)]}
    assert "nothing is frozen; no new freeze" in drawn(guest(**waits))


def test_at_rest_the_last_freeze_is_told() -> None:
    shown = drawn(guest(**REST, last=LAST), doing="watch")
    assert shown.startswith(
        "unix:/run/virtagent/virtagentd.sock                   - THAWED  applications run\n  last freeze: "
    )
    assert "the hold limit passed" in shown


def test_a_group() -> None:
    three = [guest("unix:/a", **SYNC), guest("unix:/b"), guest("libvirt:vm3", **ERROR)]
    assert drawn(*three, width=100, blind={"unix:/c": "no connection"}) == (
        "3 guests   applications stand still in 2 of 3\n"
        "  ! 1 ERROR   * 1 FROZEN   ~ 1 SYNCING\n"
        "  libvirt:vm3   ! ERROR           worker 28 va.fsfreeze is stuck while freezing /srv\n"
        "  unix:/a       ~ SYNCING   67%   about 5 s\n"
        "  unix:/b       * FROZEN          thaws by itself in 41 s (+41)\n"
        "  unix:/c: no progress to be seen (no connection)\n"
        "Ctrl-C cancels, and thaws"
    )
    assert "2 guests   applications run in all\n" in drawn(guest("unix:/a", **SYNC), guest("unix:/b", **REST))


@pytest.mark.parametrize(("count", "width", "height"), [(30, 80, 24), (300, 80, 24), (300, 40, 12), (30, 160, 50)])
def test_many_file_systems_slowest_first_and_the_rest_counted(count: int, width: int, height: int) -> None:
    mounts = [mount(f"/srv/{n:03}", "/dev/vdb", "syncing" if n % 3 else "synced", seconds=n / 10) for n in range(count)]
    shown = drawn(guest(**SYNC | {"mounts": mounts}), width=width, height=height).splitlines()
    rows = [int(found[1]) for line in shown if (found := re.match(r"  /srv/(\d+) ", line))]
    assert rows == sorted((n for n in range(count) if n % 3), reverse=True)[: len(rows)]
    assert any(line.startswith(f"  {count // 3} synced") for line in shown)
    more = count - count // 3 - len(rows)
    assert (f"  and {more} more" in shown) == (more > 0)
    assert shown[-1].startswith("Ctrl-C cancels")


def test_three_hundred_guests() -> None:
    shown = drawn(*(guest(f"unix:/{n}", **(SYNC if n else ERROR)) for n in range(300)))
    lines = shown.splitlines()
    assert lines[1] == "  ! 1 ERROR   ~ 299 SYNCING"
    assert lines[2].startswith("  unix:/0 ")
    assert "  and 280 more" in lines


def test_what_failed_comes_first_and_says_why() -> None:
    failed = mount("/srv/x", "/dev/vdx", "failed", errno=5, error="FIFREEZE: Input/output error (EIO)")
    shown = drawn(guest(**SYNC | {"mounts": [*SYNC["mounts"], failed]}), width=120).splitlines()  # type: ignore[misc]
    assert shown[2].startswith("  /srv/x ")
    assert "! failed: FIFREEZE: Input/output error (EIO)" in shown[2]


def test_only_what_stands_still_or_goes_wrong_is_coloured() -> None:
    lines = picture.draw([guest(**SYNC)], doing="sync", width=80, height=24, clock=str)
    assert {style for line in lines for _, style in line} == {"", "bold"}
    lines = picture.draw([guest(**HOLD)], doing="sync", width=80, height=24, clock=str)
    assert ("* FROZEN", "still") in lines[1]


def test_wide_characters_and_control_characters() -> None:
    odd = [mount(f"/srv/\u65e5\u672c{n}" * 9, "/dev/vdb", "syncing", seconds=1.0) for n in range(3)]
    drawn(guest(**SYNC | {"mounts": odd}), width=60)
    evil = guest(EVIL, **SYNC | {"mounts": [mount(EVIL, EVIL, "syncing")], "error": EVIL, "state": EVIL})
    for guests in ([evil], [evil, guest("unix:/b")]):
        shown = drawn(*guests, width=200, blind={EVIL: EVIL})
        assert all(line.isprintable() for line in shown.splitlines())
        assert "\\x1b]0;own\\x07\\n\\u202e\\u2028\\x9b2J" in shown


@given(
    states=st.lists(st.sampled_from(list(MountState)), max_size=40),
    state=st.sampled_from(list(FreezeState)),
    phase=st.sampled_from(["", *(one.value for one in Phase)]),
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    figures=st.floats(-1, 1e12),
    others=st.integers(0, 3),
)
def test_a_picture_fits_and_tells_no_more_than_is_known(
    states: list[MountState], state: FreezeState, phase: str, width: int, height: int, figures: float, others: int
) -> None:
    mounts = [mount(f"/srv/{n}", "/dev/vdb", one.value, seconds=figures, eta=figures) for n, one in enumerate(states)]
    progress = {"dirty_bytes": int(figures), "flushed_bytes": int(figures), "bytes_per_second": figures, "eta": figures}
    one = guest(
        state=state.name, phase=phase, since=figures, hold_left=figures, mounts=mounts, progress=progress, error="why"
    )
    shown = drawn(one, *(guest(f"unix:/{n}") for n in range(others)), width=width, height=height, doing="watch")
    assert "-1" not in re.sub(r"\(.*?\)|\+-1", "", shown)
    if width >= 40 and height >= 5 and not others:
        runs = state is FreezeState.THAWED or not {"freezing", "frozen", "thawing"} & {one.value for one in states}
        says = picture.meaning(one)
        assert says in " ".join(shown.split())
        if state in (FreezeState.INPROGRESS, FreezeState.THAWINPROGRESS) and phase != "quiesce":
            assert says == ("applications run" if runs else "applications stand still")


def test_cells() -> None:
    assert [cells(words) for words in ("abc", "\u65e5\u672c", "e\u0301", "\xfc")] == [3, 4, 1, 1]

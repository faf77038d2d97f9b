"""`status` and `plan` of many file systems: rows only for what somebody may have to act on, the rest is counted."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import pytest
from fakes.agent_socket import MOUNT, status_record
from rich.console import Console
from virtagent.agent.api.records import LeftOut, Mount, MountStatus, Plan, Status, load
from virtagent.agent.api.structs import replace
from virtagent.host import screen, text

Say = Callable[..., str]


def plain(record: Plan | Status, **how: bool) -> str:
    lines = text.plan_lines(record, **how) if isinstance(record, Plan) else text.status_lines(record, **how)
    return "\n".join(lines)


def drawn(record: Plan | Status, **how: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200, color_system=None, highlight=False, markup=False)
    console.print(screen.plan(record, **how) if isinstance(record, Plan) else screen.status(record, **how))
    return out.getvalue()


@pytest.fixture(params=[plain, drawn])
def say(request: pytest.FixtureRequest) -> Say:
    """Both ways of saying it: in lines, and on a terminal."""
    found: Say = request.param
    return found


OTHERS = [LeftOut(f"/others/{n:02}", (), f"8:{n}", "ext4", "not-included") for n in range(50)]
PSEUDO = [LeftOut("/proc", (), "0:5", "proc", "pseudo")]
BAD = LeftOut("/srv/hurt", (), "9:1", "ext4", "damaged", strict_error=True)
FUSEBLK = LeftOut("/srv/ntfs", (), "9:2", "fuseblk", "fuse", strict_error=True)
HARMLESS = LeftOut("/home/u/sshfs", (), "0:77", "fuse.sshfs", "fuse")


def as_mounts(left_out: Iterable[LeftOut]) -> tuple[MountStatus, ...]:
    return tuple(MountStatus(m.mountpoint, (), m.device, m.fstype, -1, "left-out", reason=m.reason) for m in left_out)


def status(*mounts: MountStatus, **counts: int) -> Status:
    record = load(Status, status_record(mounts=[], workers=[]), "status")
    return replace(record, mounts=mounts, left_out_counts=counts)


def lines_with(words: str, said: str) -> list[str]:
    return [line for line in said.splitlines() if words in line]


def test_what_is_not_included_is_counted(say: Say) -> None:
    left_out = (*OTHERS, *PSEUDO, BAD, FUSEBLK, HARMLESS)
    found = Plan((Mount("/srv/db", (), "7:1", "ext4", "/dev/vdb"),), left_out, (), {"not-included": 61})
    for record in (found, status(*as_mounts(left_out), **{"not-included": 61})):
        said = say(record)
        (line,) = lines_with("/others/", said)
        assert "61 file systems (not-included): /others/00, /others/01, " in line
        assert line.endswith(", 56 more"), "those that the agent did not name count, too"
        assert len(lines_with("1 file system on no disk (pseudo)", said)) == 1
        assert len(lines_with("1 file system (fuse): /home/u/sshfs", said)) == 1
        for hurt, why in (("/srv/hurt", "damaged"), ("/srv/ntfs", "fuse")):
            (line,) = lines_with(hurt, said)
            assert why in line.split(), "a snapshot of that is not consistent: it has a row"
        assert len(lines_with("/others/", say(record, verbose=True))) == 50
        assert "11 file systems more (not-included)" in say(record, verbose=True)


def test_of_many_that_are_frozen_only_those_that_something_is_wrong_with_have_a_row(say: Say) -> None:
    frozen = [load(MountStatus, MOUNT | {"mountpoint": f"/srv/{n:03}"}, "mount") for n in range(300)]
    busy = replace(frozen[0], mountpoint="/srv/busy", state="busy", error="frozen by someone else")
    said = say(status(*frozen, busy))
    assert len(said.splitlines()) < 15, said
    assert "300 frozen: /srv/000, /srv/001, /srv/002, /srv/003, /srv/004, 295 more" in said
    (line,) = lines_with("/srv/busy", said)
    assert "frozen by someone else" in line
    assert len(say(status(*frozen, busy), verbose=True).splitlines()) > 300
    few = say(status(*frozen[:3]))
    assert [len(lines_with(f"/srv/00{n}", few)) for n in range(3)] == [1, 1, 1], "a small guest is shown whole"

"""What `virtagentctl status` answers at three in the morning (section 4 of the newcomers' notes)."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, WORKER, status_record
from virtagent.agent.api.records import Status, load
from virtagent.host.answers import answers, lines

SLOW = MOUNT | {
    "state": "syncing",
    "seconds": 20.0,
    "may_be_frozen": False,
    "bytes_per_second": 4.0 * (1 << 20),
    "eta": 5.0,
}
QUIET = MOUNT | {
    "mountpoint": "/",
    "state": "thawed",
    "may_be_frozen": False,
    "source": "/dev/vda1",
    "still_seconds": 1.0,
}
IN_D = WORKER | {"id": 28, "pid": 20603, "phase": "thaw", "seconds": 53.0, "process_state": "disk-sleep"}
BROKEN = LAST | {"outcome": "expired"}


def said(**changed: Any) -> dict[str, list[str]]:
    """Return the answers, by what is asked."""
    found: dict[str, list[str]] = {}
    for asked, answer in answers(load(Status, status_record(**changed), "status")):
        found.setdefault(asked, []).append(answer)
    return found


def test_at_rest_nothing_is_to_be_done() -> None:
    assert said(state="THAWED", phase="", hold_left=-1.0, mounts=[], workers=[]) == {
        "now": ["nothing is frozen, applications run"]
    }


def test_after_a_broken_freeze_what_was_copied_is_to_be_thrown_away() -> None:
    (to_do,) = said(state="THAWED", phase="", hold_left=-1.0, mounts=[], workers=[], last=BROKEN)["to do"]
    assert "throw away what was copied during freeze 16" in to_do


def test_a_long_sync_harms_nobody() -> None:
    found = said(
        state="INPROGRESS", phase="sync", hold_left=-1.0, limit_left=580.0, mounts=[SLOW, QUIET], workers=[],
        progress={"dirty_bytes": 1 << 20, "flushed_bytes": 1, "bytes_per_second": 1.0, "eta": 5.0},
    )  # fmt: skip
    assert found == {
        "now": ["nothing is frozen yet, applications run"],
        "disk": ["/srv/db, ext4 on /dev/vdb: syncing for 20 s, 4.0 MiB/s, about 5 s left"],
        "ends": ["in about 5 s; gives up in 9 min 40 s, and then nothing was frozen"],
        "to do": ["nothing; `virtagentctl thaw` cancels it, and nothing is frozen"],
    }


def test_a_hold_says_since_when_and_when_it_ends() -> None:
    found = said()
    assert found["now"] == ["1 file system frozen; who writes to them waits, for 19 s"]
    assert found["ends"][0].startswith("it thaws by itself at ")
    assert found["ends"][0].endswith("(in 41 s)")
    assert "`virtagentctl thaw`" in found["to do"][0]
    assert said(hold_left=-1.0)["ends"] == ["not by itself: the hold has no limit"]


def test_a_hung_disk_in_fifreeze_with_the_others_thawed() -> None:
    stuck = MOUNT | {"state": "freezing", "seconds": 61.0, "still_seconds": 61.0}
    found = said(state="ERROR", code=-1, phase="thaw", hold_left=-1.0, mounts=[stuck, QUIET, QUIET], workers=[IN_D])
    assert found == {
        "now": ["1 of 3 file systems may be frozen still; who writes to them waits, for 1 min 1 s"],
        "disk": ["/srv/db, ext4 on /dev/vdb: freezing for 1 min 1 s"],
        "process": ["worker 28 va.fsfreeze (pid 20603) waits in the kernel for its disk"],
        "ends": ["by itself when the disk answers: the agent tries again at least every 30 s"],
        "to do": [
            "mend or detach /dev/vdb (`dmesg | grep vdb`); if it never will, boot, or `virtagentctl forget MOUNTPOINT`"
        ],
        "others": ["2 of 3 are not frozen"],
    }


def test_an_error_in_which_nothing_is_frozen_says_so() -> None:
    found = said(state="ERROR", code=-1, phase="thaw", hold_left=-1.0, mounts=[QUIET], workers=[])
    assert found["now"] == ["nothing is frozen, applications run; there is no new freeze until this ends"]
    assert "forget" not in found["to do"][0], "there is nothing to be forgotten"


def test_a_worker_that_was_called_off_is_harmless() -> None:
    (process,) = said(state="THAWED", phase="", hold_left=-1.0, mounts=[], workers=[IN_D])["process"]
    assert process.endswith("it freezes nothing any more")


def test_a_disk_that_hung_in_a_sync_is_named_when_the_freeze_is_long_over() -> None:
    """A worker waited "for its disk": of which one nothing said a word but its title in ps."""
    hangs = IN_D | {"doing": "syncing /srv/db"}
    found = said(state="THAWED", phase="", hold_left=-1.0, mounts=[], workers=[hangs])
    assert found["process"] == [
        "worker 28 va.fsfreeze (pid 20603) waits in the kernel while syncing /srv/db; it freezes nothing any more"
    ]
    assert "--exclude" in found["to do"][0]


def test_it_says_that_the_agent_is_stopping() -> None:
    stopping = "the agent was stopped: SIGTERM"
    found = said(state="ERROR", code=-1, phase="thaw", hold_left=-1.0, mounts=[QUIET], workers=[], stopping=stopping)
    assert found["ends"] == ["the agent is stopping (SIGTERM), when nothing may be frozen any more"]


@pytest.mark.parametrize("state", ["THAWED", "INPROGRESS", "FROZEN", "THAWINPROGRESS", "ERROR", "ODD"])
@pytest.mark.parametrize(
    "phase", ["", "plan", "prepare", "sync", "quiesce", "ready", "freeze", "confirm", "hold", "thaw"]
)
@pytest.mark.parametrize("mounts", [[], [QUIET], [MOUNT, SLOW], [SLOW | {"mountpoint": f"/{i}"} for i in range(9)]])
def test_whatever_it_is_it_fits_a_screen(state: str, phase: str, mounts: list[Any]) -> None:
    record = load(Status, status_record(state=state, phase=phase, mounts=mounts, workers=[IN_D]), "status")
    shown = list(lines(record))
    assert 1 <= len(shown) <= 10
    assert not [line for line in shown if "va.fs" in line and "worker" not in line], "no words of the machine"
    assert shown[0].split()[0] == "now"
    assert " -1 " not in " ".join(shown)

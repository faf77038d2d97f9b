"""A state folder that another user could write: nothing that lies there is believed, obeyed or killed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.filesystems import LoopFs
from harness.rig import Rig
from virtagent.agent.api.records import Mount, Plan
from virtagent.supervisor.io.journal import boot_id
from virtagent.supervisor.io.ours import start_time

NOBODY = 65534
ABSENT = "259:1048575"  # the last minor number of a major that many disks share


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process of root's, in a session of its own."""
    process = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def plant(state: Path, pid: int, *, device: str = ABSENT) -> Path:
    """Write a journal that names a process and a file system."""
    state.mkdir(mode=0o700, exist_ok=True)
    plan = Plan((Mount("/somewhere", device=device, fstype="ext4"),)).dump()
    path = state / "journal"
    worker = [pid, start_time(pid) if pid else 0]
    path.write_text(
        json.dumps({"version": 1, "boot": boot_id(), "worker": worker, "freeze": 3, "plan": plan, "untold": "broken"})
    )
    path.chmod(0o600)
    return path


def refused(rig: Rig, fs: LoopFs, state: Path) -> str:
    daemon = rig.daemon([fs], state_dir=state, wait_ready=False)
    assert daemon.process.wait(10) == 1
    said = daemon.log()
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def test_a_journal_that_another_user_planted_is_refused(rig: Rig, victim: subprocess.Popen[bytes]) -> None:
    fs, state = rig.fs("ext4"), rig.area.fresh("planted")
    plant(state, victim.pid)
    for spoil, mend, word in (
        (lambda: state.chmod(0o777), lambda: state.chmod(0o700), "can be written by others (mode 0777)"),
        (lambda: os.chown(state, NOBODY, NOBODY), lambda: os.chown(state, 0, 0), "belongs to uid 65534"),
        (
            lambda: os.chown(state / "journal", NOBODY, NOBODY),
            lambda: os.chown(state / "journal", 0, 0),
            "journal belongs to uid 65534",
        ),
        (lambda: (state / "journal").chmod(0o666), lambda: (state / "journal").chmod(0o600), "mode 0666"),
    ):
        spoil()
        assert word in refused(rig, fs, state)
        mend()
    os.rename(state / "journal", state / "real")
    os.symlink("real", state / "journal")
    assert "journal is no regular file" in refused(rig, fs, state)
    assert victim.poll() is None


def test_a_process_that_is_no_worker_is_not_killed_and_an_unknown_device_not_frozen(
    rig: Rig, victim: subprocess.Popen[bytes]
) -> None:
    """Root itself, or a mistake, has left a journal that names a stranger: pid and start time are right."""
    fs, state = rig.fs("ext4"), rig.area.fresh("planted")
    plant(state, victim.pid)
    daemon = rig.daemon([fs], state_dir=state)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    assert victim.poll() is None
    assert not (state / "journal.new").exists()


@pytest.mark.parametrize("others", [True, False])
def test_a_socket_where_anybody_could_put_another_is_refused(rig: Rig, others: bool) -> None:
    fs, folder = rig.fs("ext4"), rig.area.fresh("shared")
    folder.mkdir()
    folder.chmod(0o777 if others else 0o1777)
    daemon = rig.daemon([fs], ["--channel", f"unix:{folder}/socket"], wait_ready=not others)
    if others:
        assert daemon.process.wait(10) == 1
        assert "anybody there could put another socket in its place" in daemon.log()
    assert (folder / "socket").exists() is not others

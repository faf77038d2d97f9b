"""The journal: replaced as a whole, read back, and every kind of thing that may lie in its place."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes.drive import plan_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtagent.agent.api.records import Plan
from virtagent.agent.worker import sysfs
from virtagent.agent.worker.mountinfo import MountInfo
from virtagent.supervisor.core.events import JournalFound
from virtagent.supervisor.core.ledger import journal as record
from virtagent.supervisor.io import journal as module
from virtagent.supervisor.io.journal import BadStateDir, Journal


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that mountinfo calls tmpfs."""
    directory = tmp_path / "state"
    directory.mkdir(0o700)
    mounted(directory, "tmpfs", monkeypatch)
    return directory


def mounted(directory: Path, fstype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.stat(directory).st_dev
    info = MountInfo(1, 0, f"{os.major(device)}:{os.minor(device)}", "/", "/", fstype, "x", "rw")
    monkeypatch.setattr(sysfs, "read_mountinfo", lambda *_: [info])


WHOLE = record(7, plan_of(2), "freeze 7 was broken: the agent died")


def test_what_was_written_is_read(state_dir: Path) -> None:
    journal = Journal(str(state_dir))
    assert journal.read() is None
    journal.write(0, WHOLE)
    assert journal.read() == JournalFound(7, plan_of(2), "freeze 7 was broken: the agent died")
    assert sorted(os.listdir(state_dir)) == ["journal", "lock"]
    journal.remove()
    journal.remove()
    assert journal.read() is None


def test_a_path_of_any_bytes_survives(state_dir: Path) -> None:
    plan = plan_of(1).dump()
    plan["mounts"][0]["mountpoint"] = "/srv/\udcff\n\u2028\U0001f600"
    journal = Journal(str(state_dir))
    journal.write(0, {"freeze": 1, "plan": plan, "untold": "x"})
    found = journal.read()
    assert found is not None
    assert found.plan == Plan.load(plan)


def test_it_is_replaced_as_a_whole(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(state_dir))
    journal.write(0, WHOLE)

    def full(*args: Any, **more: Any) -> Any:
        file = open(*args, **more)  # noqa: SIM115 - the caller closes it
        whole = file.write

        def torn(text: str) -> int:
            whole(text[:16])
            raise OSError(28, "No space left on device")

        file.write = torn  # type: ignore[method-assign]
        return file

    monkeypatch.setattr(module, "open", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        journal.write(0, record(8, plan_of(1), "x"))
    assert sorted(os.listdir(state_dir)) == ["journal", "lock"], "the half of it is left"
    found = journal.read()
    assert found is not None
    assert found.freeze == 7
    monkeypatch.undo()


def changed(**more: Any) -> str:
    return json.dumps({"version": 1, "boot": module.boot_id(), "worker": [0, 0], **WHOLE} | more)


OF_THE_VERSION_BEFORE = {
    "mounts": [
        {
            "mountpoint": "/srv/in",
            "aliases": ["/mnt"],
            "device": "7:1",
            "fstype": "ext4",
            "source": "/dev/loop1",
            "level": 0,
            "hosts": [1],
            "disks": ["sda"],
        },
        {
            "mountpoint": "/srv",
            "aliases": [],
            "device": "8:1",
            "fstype": "ext4",
            "source": "/dev/sda1",
            "level": 1,
            "hosts": [],
            "disks": ["sda"],
        },
    ],
    "left_out": [{"mountpoint": "/proc", "aliases": [], "device": "0:5", "fstype": "proc", "reason": "pseudo"}],
}
"""A plan that had no notes, counts or strict errors."""


@pytest.mark.parametrize("unknown", [{}, {"of_a_later_version": [1]}])
def test_the_agent_was_upgraded_while_frozen(state_dir: Path, unknown: dict[str, Any]) -> None:
    journal = Journal(str(state_dir))
    (state_dir / "journal").write_text(changed(plan=OF_THE_VERSION_BEFORE | unknown))
    found = journal.read()
    assert found is not None
    assert [(m.mountpoint, m.hosts) for m in found.plan.mounts] == [("/srv/in", (1,)), ("/srv", ())]
    (left,) = found.plan.left_out
    assert (left.mountpoint, left.strict_error, found.plan.notes) == ("/proc", False, ())


UNREADABLE = {
    "empty": "",
    "torn": changed()[:100],
    "foreign": "Nov 23 systemd[1]: Started.\n",
    "another's json": "[1, 2, 3]",
    "nothing in it": "{}",
    "an older version": changed(version=0),
    "a newer version": changed(version=2),
    "a plan that is none": changed(plan={"mounts": 5, "left_out": []}),
    "a plan without its keys": changed(plan={}),
    "a text for a number": changed(freeze="7"),
    "null": changed(untold=None),
    "not ascii": changed().replace("srv", "sr\u00fc"),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_is_said_so_and_set_aside(state_dir: Path, text: str) -> None:
    journal = Journal(str(state_dir))
    planted(state_dir, text)
    with pytest.raises(ValueError, match=r"."):
        journal.read()
    aside = journal.set_aside()
    assert Path(aside).read_text(encoding="utf-8") == text
    journal.write(0, {"freeze": 0, "plan": Plan((), ()).dump(), "untold": "a freeze was broken"})
    assert journal.read() == JournalFound(0, Plan((), ()), "a freeze was broken")
    assert Path(aside).read_text(encoding="utf-8") == text


def test_nesting_without_end_cannot_be_read_either(state_dir: Path) -> None:
    journal = Journal(str(state_dir))
    planted(state_dir, "[" * 200_000)
    with pytest.raises(ValueError, match=r"."):
        journal.read()


def test_after_another_boot_nothing_is_frozen_but_the_host_is_told(state_dir: Path) -> None:
    journal = Journal(str(state_dir))
    planted(state_dir, changed(boot="00000000-0000"))
    assert journal.read() == JournalFound(7, Plan((), ()), "freeze 7 was broken: the agent died")


@pytest.mark.parametrize("ours", [True, False])
def test_the_worker_that_was_left_is_taken_only_if_it_is_ours(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    monkeypatch.setattr(module, "is_our_worker", lambda pid, started: (pid, started, ours) == (4711, 99, True))
    journal = Journal(str(state_dir))
    planted(state_dir, changed(worker=[4711, 99]))
    found = journal.read()
    assert found is not None
    assert found.orphan == ((4711, 99) if ours else (0, 0))
    assert found.plan == plan_of(2)


def test_the_worker_that_was_left_is_not_taken_for_dead_because_nothing_can_be_read_of_it(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H15: at the limit of open files it may still freeze."""

    def refused(*_: Any) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "is_our_worker", refused)
    journal = Journal(str(state_dir))
    planted(state_dir, changed(worker=[4711, 99]))
    found = journal.read()
    assert found is not None
    assert found.orphan == (4711, 99)


def planted(state_dir: Path, text: str, name: str = "journal") -> Path:
    path = state_dir / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o707])
def test_a_folder_that_others_can_write_is_refused(state_dir: Path, mode: int) -> None:
    planted(state_dir, changed())
    state_dir.chmod(mode)
    with pytest.raises(BadStateDir, match=f"can be written by others .mode {mode:04o}"):
        Journal(str(state_dir))


def test_a_folder_of_another_user_is_refused(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(BadStateDir, match=f"belongs to uid {os.getuid()}"):
        Journal(str(state_dir))


def test_a_folder_below_one_that_others_can_write_is_refused(state_dir: Path) -> None:
    below = state_dir / "a" / "b"
    below.mkdir(parents=True)
    state_dir.chmod(0o777)
    with pytest.raises(BadStateDir, match=f"the folder {state_dir} can be written by others"):
        Journal(str(below))
    state_dir.chmod(0o1777)  # in a sticky folder nobody else can rename what is ours
    Journal(str(below))


def test_a_link_to_a_folder_is_refused(state_dir: Path) -> None:
    link = state_dir / "link"
    link.symlink_to(state_dir)
    for path in (link, f"{link}/"):
        with pytest.raises(BadStateDir, match="symbolic link"):
            Journal(str(path))


@pytest.mark.parametrize("name", ["journal", "handles", "lock"])
@pytest.mark.parametrize("what", ["link", "fifo", "folder", "mode", "owner"])
def test_a_file_that_is_not_ours_is_refused(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    elsewhere = planted(tmp_path, changed(), "elsewhere")
    path = state_dir / name
    if what == "link":
        path.symlink_to(elsewhere)
    elif what == "fifo":
        os.mkfifo(path, 0o600)
    elif what == "folder":
        path.mkdir(0o700)
    else:
        planted(state_dir, changed() if name == "journal" else "7", name).chmod(0o622 if what == "mode" else 0o600)
    if what == "owner":
        real = os.stat(path)
        private = module.why_not_private

        def of_another(fd: int) -> str:
            same = os.fstat(fd).st_ino == real.st_ino
            return "belongs to uid 4711, not to uid 0" if same else private(fd)

        monkeypatch.setattr(module, "why_not_private", of_another)

    def use() -> None:
        journal = Journal(str(state_dir))
        journal.read() if name == "journal" else journal.next_handle()

    with pytest.raises(BadStateDir, match=name):
        use()
    assert elsewhere.read_text() == changed()


def test_what_was_planted_for_the_next_journal_is_not_followed(state_dir: Path, tmp_path: Path) -> None:
    elsewhere = planted(tmp_path, "precious", "elsewhere")
    journal = Journal(str(state_dir))
    for name in ("journal.new", "handles.new"):
        (state_dir / name).symlink_to(elsewhere)
    journal.write(0, WHOLE)
    journal.keep_handle(5000)
    assert elsewhere.read_text() == "precious"
    assert journal.next_handle() == 5000


@pytest.mark.parametrize("name", ["journal", "handles", "freeze-id"])
def test_the_start_removes_what_a_death_has_cut_short(state_dir: Path, name: str) -> None:
    """Seen by a storm of scripts/chaos: the half of a freeze's number lay there until the next freeze."""
    planted(state_dir, "half", f"{name}.new")
    Journal(str(state_dir))
    assert os.listdir(state_dir) == ["lock"]


def test_a_folder_that_is_renamed_is_still_the_one_that_was_opened(state_dir: Path) -> None:
    journal = Journal(str(state_dir))
    moved = state_dir.rename(state_dir.parent / "moved")
    state_dir.mkdir()
    journal.write(0, WHOLE)
    assert os.listdir(state_dir) == []
    assert (moved / "journal").exists()


def test_a_umask_gives_nobody_more(state_dir: Path) -> None:
    before = os.umask(0)
    try:
        journal = Journal(str(state_dir / "a" / "b"))
        journal.write(0, WHOLE)
        journal.keep_handle(5000)
    finally:
        os.umask(before)
    assert os.stat(state_dir / "a").st_mode & 0o022 == 0
    assert journal.read() is not None
    assert journal.next_handle() == 5000


def test_one_daemon_a_folder(state_dir: Path) -> None:
    first = Journal(str(state_dir))
    with pytest.raises(BadStateDir, match="in use"):
        Journal(str(state_dir))
    os.close(first._lock)
    Journal(str(state_dir))


def test_a_folder_that_is_not_there_is_made_for_us_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(tmp_path, "tmpfs", monkeypatch)
    Journal(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fstype", ["ext4", "btrfs", "overlay", "nfs"])
def test_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str) -> None:
    mounted(tmp_path, fstype, monkeypatch)
    with pytest.raises(BadStateDir) as caught:
        Journal(str(tmp_path))
    assert fstype in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_that_nobody_knows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysfs, "read_mountinfo", lambda *_: [])
    with pytest.raises(BadStateDir, match="unknown"):
        Journal(str(tmp_path))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(tmp_path, "tmpfs", monkeypatch)
    (tmp_path / "f").write_text("")
    with pytest.raises(BadStateDir):
        Journal(str(tmp_path / "f" / "g"))
    with pytest.raises(BadStateDir):
        Journal("/proc/nothing/here")


VALID = json.dumps({"version": 1, "boot": module.boot_id(), "worker": [1, 2], **WHOLE}).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.binary()
    | st.builds(
        lambda a, b, c: VALID[:a] + c + VALID[b:], st.integers(0, 900), st.integers(0, 900), st.binary(max_size=4)
    )
)
def test_any_bytes_are_a_journal_or_refused(state_dir: Path, data: bytes) -> None:
    planted(state_dir, "").write_bytes(data)
    journal = Journal(str(state_dir))
    try:
        found = journal.read()
    except ValueError:
        found = None
    finally:
        os.close(journal._lock)
    assert found is None or isinstance(found, JournalFound)

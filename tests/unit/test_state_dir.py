"""Where the state is kept if the folder that was named is on a disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from virtagent.agent.worker import kernel
from virtagent.supervisor import state_dir
from virtagent.supervisor.io import journal


class Guest:
    """A guest whose /run, /dev/shm and disk are below `root`; `memory` are the folders on tmpfs."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.shm, self.disk = (root / name for name in ("run", "shm", "disk"))
        for folder in (self.run, self.shm, self.disk):
            folder.mkdir()
        self.memory = {self.run, self.shm}
        self.mounted: list[str] = []
        monkeypatch.setattr(journal, "in_memory", self._in_memory)
        monkeypatch.setattr(kernel, "mount_tmpfs", self._mount)
        monkeypatch.setattr(state_dir, "BASES", (str(self.run), str(self.shm)))

    def _in_memory(self, path: str) -> bool:
        return any(Path(path).is_relative_to(folder) for folder in self.memory)

    def _mount(self, folder: str) -> None:
        self.mounted.append(folder)
        self.memory.add(Path(folder))


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(tmp_path.resolve(), monkeypatch)


def test_a_folder_on_tmpfs_is_taken(guest: Guest) -> None:
    assert state_dir.place(f"{guest.run}/x") == (f"{guest.run}/x/virtagent", "")


def test_a_folder_on_a_disk_has_its_own_place_in_run(guest: Guest) -> None:
    one, note = state_dir.place(f"{guest.disk}/a")
    assert one == f"{guest.run}/virtagent.at{guest.disk}/a/virtagent"
    assert note == f"statedir {guest.disk}/a is not on tmpfs: state is kept in {one}"
    assert state_dir.place(f"{guest.disk}/a/../a/")[0] == one
    assert state_dir.place(f"{guest.disk}/b")[0] != one
    assert state_dir.place(f"{guest.disk}/a/virtagent")[0] != one
    assert (guest.run / "virtagent.at").stat().st_mode & 0o777 == 0o700


def test_run_is_on_a_disk(guest: Guest) -> None:
    guest.memory.remove(guest.run)
    assert state_dir.place(str(guest.run))[0] == f"{guest.shm}/virtagent.at{guest.run}/virtagent"


@pytest.mark.parametrize("foreign", ["writable", "a link", "a file"])
def test_what_another_user_made_is_passed_by(guest: Guest, foreign: str) -> None:
    made = guest.run / "virtagent.at"
    match foreign:
        case "writable":
            made.mkdir()
            made.chmod(0o777)
        case "a link":
            made.symlink_to(guest.shm)
        case _:
            made.touch()
    assert state_dir.place(str(guest.disk))[0].startswith(f"{guest.shm}/virtagent.at")


def test_what_belongs_to_another_user_is_passed_by(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    (guest.run / "virtagent.at").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert state_dir.place(str(guest.disk))[0].startswith(f"{guest.shm}/virtagent.at")


def test_without_any_one_is_mounted_and_found_again(guest: Guest) -> None:
    guest.memory.clear()
    folder, note = state_dir.place(str(guest.disk))
    assert (folder, guest.mounted) == (f"{guest.disk}/virtagent", [f"{guest.disk}/virtagent"])
    assert note == f"statedir {guest.disk} is not on tmpfs: one was mounted at {folder}"
    assert state_dir.place(str(guest.disk)) == (folder, "")
    assert state_dir.place(f"{guest.disk}/other")[0] == f"{guest.disk}/other/virtagent"
    assert len(guest.mounted) == 2


def test_none_can_be_mounted(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    guest.memory.clear()
    monkeypatch.setattr(kernel, "mount_tmpfs", refuse)
    with pytest.raises(state_dir.NoPlace, match=r"none can be mounted at .*/disk/virtagent: Operation not permitted"):
        state_dir.place(str(guest.disk))

"""The keys of a made-up user, by root: whose they become, and what the user's own links lead to."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import signal
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.fixtures import unmet
from virtagent.agent.api.errors import Fault
from virtagent.agent.worker import kernel
from virtagent.agent.worker.commands import accounts

UID, GID, OTHER_GID = 54321, 54322, 54323
PR_GET_PDEATHSIG = 2


class _Worker:
    def title(self, doing: str) -> None:
        assert doing


WORKER: Any = _Worker()


class Ann:
    """A user with a home of her own; what is asked for her runs in a child, as it does in a worker."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ssh = home / ".ssh"
        self.file = self.ssh / "authorized_keys"

    def lookup(self, name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", UID, GID, "", str(self.home), "/bin/sh"))

    def get(self) -> str:
        return in_child(lambda: str(accounts.ssh_get_authorized_keys(WORKER, {"username": "ann"}, lookup=self.lookup)))

    def add(self, *keys: str) -> str:
        args = {"username": "ann", "keys": list(keys), "reset": None}
        return in_child(lambda: str(accounts.ssh_add_authorized_keys(WORKER, args, lookup=self.lookup)))

    def remove(self, *keys: str) -> str:
        args = {"username": "ann", "keys": list(keys)}
        return in_child(lambda: str(accounts.ssh_remove_authorized_keys(WORKER, args, lookup=self.lookup)))

    def give(self, *paths: Path) -> None:
        for path in paths:
            os.chown(path, UID, GID, follow_symlinks=False)


def in_child(ask: Callable[[], str]) -> str:
    """Return what it returns, or the text of its fault; the child must have all its rights back by then."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "crashed"
        try:
            try:
                said = ask()
            except Fault as fault:
                said = fault.text
            if (os.geteuid(), os.getegid(), UID in os.getgroups()) != (0, 0, False):
                said = "rights were not given back"
            os.fchown(writes, 0, 0)  # fails if the capabilities are gone
        except BaseException:  # noqa: BLE001 - a child of pytest must not return into it
            traceback.print_exc()
        finally:
            os.write(writes, said.encode())
            os._exit(0)
    os.close(writes)
    with open(reads, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return said


@pytest.fixture
def ann(tmp_path: Path) -> Ann:
    if os.geteuid() != 0:
        unmet("needs root to act for another user")
    for folder in tmp_path.parents:
        if folder.stat().st_mode & stat.S_IXOTH == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)  # pytest keeps its folders to itself
    tmp_path.chmod(0o755)
    home = tmp_path / "ann"
    home.mkdir()
    made = Ann(home)
    made.give(home)
    return made


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid, info.st_mode & 0o7777


def test_folder_and_file_are_the_users(ann: Ann) -> None:
    assert ann.add("k1", "k2") == "{}"
    assert owner_and_mode(ann.ssh) == (UID, GID, 0o700)
    assert owner_and_mode(ann.file) == (UID, GID, 0o600)
    assert ann.remove("k1") == "{}"
    assert owner_and_mode(ann.file) == (UID, GID, 0o600)
    assert ann.get() == "{'keys': ['k2']}"


def test_a_file_that_root_left_there_becomes_the_users(ann: Ann) -> None:
    assert ann.add("k1") == "{}"
    os.chown(ann.file, 0, 0)
    ann.file.chmod(0o644)
    assert ann.add("k2") == "{}"
    assert owner_and_mode(ann.file) == (UID, GID, 0o600)
    assert ann.file.read_text() == "k1\nk2\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "root-only"
    path.mkdir(mode=0o700)
    (path / "authorized_keys").write_text("root's\n")
    (path / "authorized_keys").chmod(0o600)
    return path


def unharmed(secret: Path) -> bool:
    file = secret / "authorized_keys"
    return os.listdir(secret) == [file.name] and file.read_text() == "root's\n" and owner_and_mode(file)[0] == 0


def test_a_link_in_place_of_the_folder(ann: Ann, secret: Path) -> None:
    ann.ssh.symlink_to(secret)
    ann.give(ann.ssh)
    assert "Permission denied" in ann.get()
    assert "Permission denied" in ann.add("k")
    assert "Permission denied" in ann.remove("root's")
    assert unharmed(secret)


def test_a_link_or_a_hard_link_in_place_of_the_file(ann: Ann, secret: Path) -> None:
    ann.ssh.mkdir(mode=0o700)
    ann.file.symlink_to(secret / "authorized_keys")
    ann.give(ann.ssh, ann.file)
    for _ in range(2):
        assert "Permission denied" in ann.get()
        assert "Permission denied" in ann.add("k")
        assert "Permission denied" in ann.remove("root's")
        assert unharmed(secret)
        ann.file.unlink()
        os.link(secret / "authorized_keys", ann.file)


def test_what_the_groups_of_the_agent_may_read_the_user_may_not(ann: Ann) -> None:
    ann.ssh.mkdir()
    ann.give(ann.ssh)
    ann.file.write_text("root's\n")
    os.chown(ann.file, 0, OTHER_GID)
    ann.file.chmod(0o640)

    def ask() -> str:
        os.setgroups([OTHER_GID])
        try:
            return str(accounts.ssh_get_authorized_keys(WORKER, {"username": "ann"}, lookup=ann.lookup))
        finally:
            assert os.getgroups() == [OTHER_GID]

    assert "Permission denied" in in_child(ask)


def test_the_worker_dies_with_the_agent_whosever_rights_it_has(ann: Ann) -> None:
    """A change of rights has the kernel forget that (prctl(2), PR_SET_PDEATHSIG)."""

    def ask() -> str:
        kernel.die_with_parent(signal.SIGKILL)
        accounts._read = lambda place: [f"{os.geteuid()}: {death_signal()}".encode()]
        said = accounts.ssh_get_authorized_keys(WORKER, {"username": "ann"}, lookup=ann.lookup)
        return f"{said['keys']}, then {death_signal()}"

    assert in_child(ask) == f"['{UID}: 9'], then 9"


def death_signal() -> int:
    """Return the signal that this process gets when its parent ends."""
    found = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(found), 0, 0, 0) == 0
    return found.value


def test_links_to_what_is_the_users_are_followed(ann: Ann) -> None:
    real = ann.home / "dotfiles"
    real.mkdir()
    ann.ssh.symlink_to("dotfiles")
    ann.give(real, ann.ssh)
    assert ann.add("k1") == "{}"
    assert (real / "authorized_keys").read_text() == "k1\n"


def test_a_fifo_is_not_waited_for(ann: Ann) -> None:
    ann.ssh.mkdir()
    os.mkfifo(ann.file)
    ann.give(ann.ssh, ann.file)
    for said in (ann.get(), ann.add("k"), ann.remove("k")):
        assert said == f"failed to read '{ann.file}': not a regular file"


def test_a_home_that_is_roots_is_refused(ann: Ann) -> None:
    os.chown(ann.home, 0, 0)
    assert ann.add("k") == f"failed to create directory '{ann.ssh}': Permission denied"
    assert ann.remove("k") == "{}"


@pytest.mark.parametrize("openat2", [True, False])
@pytest.mark.parametrize(
    "target", ["/proc/self/maps", "/proc/self/fd/2", "/proc/self/environ", "/dev/fd/2", "/proc/thread-self/stat"]
)
def test_a_link_to_procfs_gives_nothing_of_the_agent(
    ann: Ann, monkeypatch: pytest.MonkeyPatch, target: str, openat2: bool
) -> None:
    """There /proc/self is the worker, which may read itself whoever it acts for."""
    if not openat2:
        monkeypatch.setattr(kernel, "openat2", missing)
    ann.ssh.mkdir()
    ann.file.symlink_to(target)
    ann.give(ann.ssh, ann.file)
    for said in (ann.get(), ann.add("k"), ann.remove("k")):
        assert said.startswith(f"failed to read '{ann.file}': Failed to open file"), said
        assert any(why in said for why in ("leads to procfs", "Too many levels of symbolic links", "Permission denied"))
    assert os.readlink(ann.file) == target


@pytest.mark.parametrize("openat2", [True, False])
@pytest.mark.parametrize("target", ["/proc/self/cwd", "/proc/self/root/tmp", "/proc/self", "/proc/self/task"])
def test_a_folder_on_procfs_is_refused(
    ann: Ann, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, openat2: bool
) -> None:
    if not openat2:
        monkeypatch.setattr(kernel, "openat2", missing)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.chdir(open_to_all)
    ann.ssh.symlink_to(target)
    ann.give(ann.ssh)
    for said in (ann.add("k"), ann.add("k", "l")):
        assert said.startswith("failed to "), said
    assert os.listdir(open_to_all) == []


def missing(*_: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

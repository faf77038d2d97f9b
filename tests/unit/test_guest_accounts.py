"""Passwords through a program that only notes what it is given, and keys in homes that only the tests know."""

from __future__ import annotations

import os
import pwd
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.commands import accounts


class _Worker:
    def title(self, doing: str) -> None:
        assert "secret" not in doing


WORKER: Any = _Worker()


def refused(text: str, code: Code = Code.FAILED) -> Any:
    return pytest.raises(Fault, match=rf"^{text} \[{code.name} ")


# passwords


@pytest.fixture
def chpasswd(tmp_path: Path) -> str:
    path = tmp_path / "chpasswd"
    path.write_text(f'#!/bin/sh\necho "$#$*" >{tmp_path}/args\ncat >{tmp_path}/given\n')
    path.chmod(0o755)
    return str(path)


def set_password(program: str, password: bytes, username: str = "ann", crypted: bool = False) -> dict[str, Any]:
    args = {"username": username, "password": b64encode(password).decode(), "crypted": crypted}
    return accounts.set_user_password(WORKER, args, program=program)


def test_passwords_and_names_that_chpasswd_would_take_for_more(chpasswd: str, tmp_path: Path) -> None:
    for password in (b"a\nroot:x", b"a\0"):
        with refused("forbidden characters in raw password", Code.PARAMS):
            set_password(chpasswd, password)
    for username in ("ann:x", "ann\nroot"):
        with refused("forbidden characters in username", Code.PARAMS):
            set_password(chpasswd, b"secret", username)
    with refused("Base64 data contains invalid characters", Code.PARAMS):
        accounts.set_user_password(WORKER, {"username": "a", "password": "!", "crypted": False}, program=chpasswd)
    assert not (tmp_path / "given").exists()


# keys


class Keys:
    """The keys of one made-up user, who has our uid and the home `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / ".ssh/authorized_keys"

    def lookup(self, name: str) -> pwd.struct_passwd:
        if name != "ann":
            raise KeyError(name)
        return pwd.struct_passwd(("ann", "x", os.geteuid(), os.getegid(), "", str(self.home), "/bin/sh"))

    def get(self, name: str = "ann") -> list[str]:
        return accounts.ssh_get_authorized_keys(WORKER, {"username": name}, lookup=self.lookup)["keys"]

    def add(self, *keys: str, reset: bool | None = None, name: str = "ann") -> None:
        args = {"username": name, "keys": list(keys), "reset": reset}
        assert accounts.ssh_add_authorized_keys(WORKER, args, lookup=self.lookup) == {}

    def remove(self, *keys: str, name: str = "ann") -> None:
        args = {"username": name, "keys": list(keys)}
        assert accounts.ssh_remove_authorized_keys(WORKER, args, lookup=self.lookup) == {}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_no_such_user(keys: Keys) -> None:
    for action in (keys.get, keys.add, keys.remove):
        with refused("failed to lookup user 'bob': Success"):
            action(name="bob")


@pytest.mark.parametrize("key", ["#x", "#", "a\nb", "\n"])
def test_no_key(key: str, keys: Keys) -> None:
    for action in (keys.add, keys.remove):
        with refused(f"invalid OpenSSH public key: '{key}'", Code.PARAMS):
            action("ok", key, name="bob")
    assert not keys.file.exists()


def test_add_makes_the_folder_and_keeps_what_is_there(keys: Keys) -> None:
    before = os.umask(0)
    try:
        keys.add("k1 a", "k2 b", "k1 a")
    finally:
        os.umask(before)
    assert keys.file.read_text() == "k1 a\nk2 b\n"
    assert keys.file.stat().st_mode & 0o7777 == 0o600
    assert keys.file.parent.stat().st_mode & 0o7777 == 0o700
    keys.file.write_text("k1\n# c\n\n  k2  \nk1\nk3")  # the last line has no end
    keys.file.chmod(0o644)
    keys.file.parent.chmod(0o750)
    keys.add("k3", "k4")
    assert keys.file.read_text() == "k1\n# c\n\n  k2  \nk1\nk3\nk4\n"
    assert keys.file.stat().st_mode & 0o7777 == 0o600
    assert keys.file.parent.stat().st_mode & 0o7777 == 0o750
    assert keys.get() == ["k4", "k3", "k1", "k2", "k1"]
    assert os.listdir(keys.file.parent) == ["authorized_keys"]


def test_reset(keys: Keys) -> None:
    keys.add("k1", "k2")
    keys.add("k3", reset=True)
    assert keys.file.read_text() == "k3\n"
    keys.add(reset=True)
    assert keys.file.read_text() == ""
    assert keys.get() == []
    keys.add("k4", reset=False)
    assert keys.file.read_text() == "k4\n"


def test_remove(keys: Keys) -> None:
    keys.remove("k1")
    assert not keys.file.parent.exists()
    keys.file.parent.mkdir()
    keys.file.write_text("k1\n# c\nk1\n k2\nk3 x\n")
    keys.remove("k1", "k2", "k3")
    assert keys.file.read_text() == "# c\n k2\nk3 x\n"


def test_bytes_that_are_no_text_are_kept(keys: Keys) -> None:
    keys.file.parent.mkdir()
    keys.file.write_bytes(b"k1 \xff\r\nk2\n")
    keys.add("k3 \u00e4")
    assert keys.file.read_bytes() == b"k1 \xff\r\nk2\nk3 \xc3\xa4\n"
    assert keys.get() == ["k3 \u00e4", "k2", "k1 \ufffd"]


def test_what_cannot_be_read(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"failed to read '{keys.file}': "
    with refused(f"{text}Failed to open file \u201c{keys.file}\u201d: No such file or directory"):
        keys.get()
    keys.file.parent.mkdir()
    os.mkfifo(keys.file)
    for action in (keys.get, lambda: keys.add("k"), lambda: keys.remove("k")):
        with refused(f"{text}not a regular file"):
            action()
    keys.file.unlink()
    keys.file.symlink_to("authorized_keys")
    with refused(f"{text}Failed to open file .*: Too many levels of symbolic links"):
        keys.add("k")
    keys.file.unlink()
    monkeypatch.setattr(accounts, "KEYS_MAX", 10)
    keys.file.write_text("k" * 11)
    with refused(f"{text}over 10 bytes"):
        keys.add("k")
    assert keys.file.read_text() == "k" * 11


def test_what_cannot_be_written(keys: Keys) -> None:
    keys.file.parent.write_text("no folder")
    with refused(f"failed to create directory '{keys.file.parent}': File exists"):
        keys.add("k")
    keys.remove("k")
    keys.file.parent.unlink()
    keys.file.mkdir(parents=True)
    with refused(f"failed to write to '{keys.file}': Is a directory"):
        keys.add("k", reset=True)
    assert os.listdir(keys.file.parent) == ["authorized_keys"]

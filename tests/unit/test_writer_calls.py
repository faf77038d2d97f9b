"""What writers that call programs call, in which order, and what they refuse to call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker.writers import calls as listing
from virtagent.agent.worker.writers import hook
from virtagent.agent.worker.writers.calls import Call, calls
from virtagent.agent.worker.writers.hook_program import Command, Ended, NotStarted
from virtagent.agent.worker.writers.latch import BEGUN, UNDONE, Latch


def program(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which VMware's two old scripts are looked for."""
    monkeypatch.setattr(listing, "OLD_SCRIPTS", str(tmp_path / "sbin"))
    return tmp_path / "sbin"


def vmware(folder: Path) -> WriterConfig:
    folder.mkdir(exist_ok=True)
    return WriterConfig("x", "vmware", path=str(folder))


def test_a_pair_of_commands(tmp_path: Path) -> None:
    words = (program(tmp_path / "hold"), "a b")
    config = WriterConfig("x", "pair", freeze=words, thaw=(str(tmp_path / "go"),), user="nobody")
    with pytest.raises(FileNotFoundError) as missing:
        calls(config)
    assert missing.value.filename == str(tmp_path / "go")
    go = program(tmp_path / "go", 0o644)
    with pytest.raises(PermissionError):
        calls(config)
    os.chmod(go, 0o755)
    assert calls(config) == [Call(words, (go,), (go,), "nobody")]


def test_vmware_takes_every_file_by_its_octets(tmp_path: Path, old: Path) -> None:
    folder = tmp_path / "backupScripts.d"
    config = vmware(folder)
    assert calls(config) == []
    for name in ("b", "B", "a~", ".c", "a.sample"):
        program(folder / name)
    (folder / "nothing").symlink_to(tmp_path / "gone")
    (folder / "under").mkdir()
    assert [os.path.basename(call.freeze[0]) for call in calls(config)] == [".c", "B", "a.sample", "a~", "b"]
    assert calls(config)[1] == Call(
        (str(folder / "B"), "freeze"), (str(folder / "B"), "thaw"), (str(folder / "B"), "freezeFail"), shell=True
    )
    program(folder / "b", 0o644)
    with pytest.raises(PermissionError) as refused:
        calls(config)
    assert refused.value.filename == str(folder / "b")
    assert not old.exists()


@pytest.mark.parametrize("there", [("pre",), ("post",), ("pre", "post")])
def test_vmwares_old_scripts_are_first_and_each_may_be_missing(
    tmp_path: Path, old: Path, there: tuple[str, ...]
) -> None:
    config = vmware(tmp_path / "backupScripts.d")
    program(tmp_path / "backupScripts.d" / "a")
    pre = program(old / "pre-freeze-script") if "pre" in there else ""
    post = program(old / "post-thaw-script") if "post" in there else ""
    first, second = calls(config)
    assert first.freeze == ((pre, "freeze") if pre else ())
    assert first.good == ((post, "thaw") if post else ())
    assert first.bad == ((post, "freezeFail") if post else ())
    assert second.freeze[0].endswith("/a")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, old: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        calls(WriterConfig("x", "vmware", path=str(tmp_path / "none")))
    assert missing.value.filename == str(tmp_path / "none")
    assert not old.exists()


class Killed(BaseException):
    """The worker that undoes is killed here."""


def test_a_counterpart_that_is_gone_is_counted_so_that_none_is_called_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    dies = ["a"]

    def run(command: Command, latch: Latch, count: str, *_: Any) -> Ended:
        name = command.words[0]
        if name in dies:
            dies.remove(name)
            raise Killed
        called.append(name)
        if name == "c":
            raise NotStarted("c: it is gone")
        latch.add(count)
        return Ended("")

    monkeypatch.setattr(hook.hook_program, "run", run)
    latch = Latch(str(tmp_path), "hooks")
    words = {"user": "", "shell": False, "froze": [0, 0], "thawed": [0, 0]}
    latch.write({"type": "hook-dir", "runs": [{"undo": {"good": [n], "bad": [n]}, **words} for n in "abc"]})
    for _ in "abc":
        latch.add(BEGUN)
    with pytest.raises(Killed):
        hook.undo(latch, 0.0, "bad")
    assert latch.count(UNDONE) == 2
    assert hook.undo(latch, 0.0, "bad") == ""
    assert called == ["c", "b", "a"]
    assert latch.record is None

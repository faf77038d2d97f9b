"""Whose a path, a file and a process are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from virtagent.supervisor.io import ours


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    return folder


def test_a_path_below_our_own_folders_is_ours(tree: Path) -> None:
    assert ours.why_not_ours(f"{tree}/there") == ""
    assert ours.why_not_ours(f"{tree}/not/yet/there", group=True) == ""
    assert ours.why_not_ours("/run/x") == ""


WAYS: dict[str, Callable[[Path], str]] = {
    "straight": lambda tree: f"{tree}/x",
    "by a link": lambda tree: f"{link(tree.parent.parent / 'l', str(tree))}/x",
    "by a relative link": lambda tree: f"{link(tree.parent.parent / 'l', 'a/./b')}/x",
    "over dots": lambda tree: f"{tree}/../b//./x",
    "by a link out of it": lambda tree: link(tree / "l", "/run/x"),
    "by two links": lambda tree: link(tree.parent.parent / "m", link(tree / "l", "/run")),
}


def link(path: Path, target: str) -> str:
    path.symlink_to(target)
    return str(path)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("above", [False, True])
def test_a_folder_that_others_can_write_is_found(tree: Path, way: Callable[[Path], str], above: bool) -> None:
    path = way(tree)
    assert ours.why_not_ours(path) == ""
    spoilt = tree.parent if above else tree
    spoilt.chmod(0o770)
    assert ours.why_not_ours(path) == ""
    assert str(spoilt) in ours.why_not_ours(path, group=True)
    spoilt.chmod(0o777)
    assert str(spoilt) in ours.why_not_ours(path)
    spoilt.chmod(0o1777)
    assert ours.why_not_ours(path, group=True) == ""


def test_a_folder_of_another_user_is_found(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(tree, 4711, 4711)
        assert ours.why_not_ours(f"{tree}/x") == f"the folder {tree} belongs to uid 4711"
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        assert f"belongs to uid {os.getuid()}" in ours.why_not_ours(f"{tree}/x")


def test_links_in_a_circle_end(tree: Path) -> None:
    link(tree / "l", "l")
    assert ours.why_not_ours(f"{tree}/l/x") == ""


STAT = "{pid} ({name}) S 1 {pid} {session} 0 -1 4194560 {zeros}{started} 1 2 3"


@pytest.mark.parametrize(
    ("name", "session", "started", "uid", "expected"),
    [
        ("virtagentd: kee", 4711, 99, 0, True),
        ("virtagentd: ) (", 4711, 99, 0, True),
        ("sshd", 4711, 99, 0, False),
        ("my virtagentd: ", 4711, 99, 0, False),
        ("virtagentd: kee", 1, 99, 0, False),
        ("virtagentd: kee", 4711, 98, 0, False),
        ("virtagentd: kee", 4711, 99, 1000, False),
    ],
)
def test_a_worker_of_ours_is_known_by_title_session_time_and_user(
    monkeypatch: pytest.MonkeyPatch, name: str, session: int, started: int, uid: int, expected: bool
) -> None:
    text = STAT.format(pid=4711, name=name, session=session, zeros="0 " * 12, started=started)
    about = os.stat_result((0, 0, 0, 0, uid, 0, 0, 0, 0, 0))
    real = os.stat
    monkeypatch.setattr(ours, "_stat", lambda pid: text)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "stat", lambda path: about if path == "/proc/4711" else real(path))
    assert ours.is_our_worker(4711, 99) is expected


def test_of_no_process_nothing_is_known() -> None:
    assert not ours.is_our_worker(1 << 30, 0)
    assert ours.start_time(1 << 30) == 0
    assert ours.start_time(os.getpid()) > 0

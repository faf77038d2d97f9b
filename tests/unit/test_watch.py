"""Waiting for a path: readable when it may lead somewhere else, and not for what goes on beside it."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtagent.agent.worker import kernel
from virtagent.supervisor.channels.path_watch import PathWatch


@pytest.fixture
def made() -> Iterator[list[PathWatch]]:
    watches: list[PathWatch] = []
    yield watches
    for watch in watches:
        watch.close()


@pytest.fixture
def watching(made: list[PathWatch], tmp_path: Path) -> Callable[[str], PathWatch]:
    def watch(path: str) -> PathWatch:
        made.append(PathWatch(str(tmp_path / path)))
        return made[-1]

    return watch


def woken(watch: PathWatch) -> bool:
    """Whether it is readable, whatever for."""
    return bool(select.select([watch], [], [], 0)[0])


def told(watch: PathWatch) -> bool:
    """Whether it is readable and says that it was about the path; then nothing is left to read."""
    ready = woken(watch)
    found = watch.happened()
    assert ready or not found
    assert not woken(watch)
    return found


def test_each_folder_on_the_way_is_watched(watching: Callable[[str], PathWatch], tmp_path: Path) -> None:
    for made, path in (("a", "a/b/port"), ("a/b", "a/b/port"), ("a/b/port", "a/b/port")):
        watch = watching(path)
        assert not told(watch)
        (tmp_path / "beside").touch()
        (tmp_path / "beside").unlink()
        assert not told(watch), "that was about another"
        (tmp_path / made).mkdir() if made != path else (tmp_path / made).touch()
        assert told(watch)


@pytest.mark.parametrize("path", ["a/b/port", "a/b/missing", "a/link", "a/missing/b/port", "a/b/../b/port"])
def test_what_goes_on_in_a_folder_that_is_only_passed_wakes_nobody(
    watching: Callable[[str], PathWatch], tmp_path: Path, path: str
) -> None:
    """A serial line of a folder in /tmp had an idle daemon woken by whoever else worked in /tmp."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/port").touch()
    (tmp_path / "a/link").symlink_to("b/port")
    watch = watching(path)
    assert not told(watch)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/deeper").touch()
    (tmp_path / "beside").chmod(0o700)
    (tmp_path / "beside").rename(tmp_path / "elsewhere")
    assert not woken(watch)
    (tmp_path / "a").rename(tmp_path / "gone")
    assert told(watch)


def test_a_folder_that_is_replaced_by_a_link_is_told(watching: Callable[[str], PathWatch], tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    watch = watching("a/b/port")
    (tmp_path / "a/b").rmdir()
    assert told(watch)
    (tmp_path / "c").mkdir()
    (tmp_path / "a/b").symlink_to("../c")
    watch = watching("a/b/port")
    (tmp_path / "c/port").touch()
    assert told(watch)
    watch = watching("a/b/port")
    (tmp_path / "a/b").unlink()
    assert told(watch)


@pytest.mark.parametrize("gone", ["a/b/port", "a/b", "a"])
def test_what_goes_is_told(watching: Callable[[str], PathWatch], tmp_path: Path, gone: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/port").touch()
    watch = watching("a/b/port")
    os.rename(tmp_path / gone, tmp_path / "elsewhere")
    assert told(watch)


def test_links_are_followed_and_watched(watching: Callable[[str], PathWatch], tmp_path: Path) -> None:
    (tmp_path / "ports").mkdir()
    (tmp_path / "ports/name").symlink_to("../vport1p1")
    watch = watching("ports/name")
    (tmp_path / "ports/vport1p1").touch()
    assert not told(watch)
    (tmp_path / "vport1p1").touch()
    assert told(watch)
    watch = watching("ports/name")
    (tmp_path / "new").symlink_to("/nonexistent/port")
    (tmp_path / "new").rename(tmp_path / "ports/name")
    assert told(watch)
    (tmp_path / "ports/name").unlink()
    (tmp_path / "ports/name").symlink_to(str(tmp_path / "vport1p2"))
    watch = watching("ports/name")
    (tmp_path / "vport1p2").touch()
    assert told(watch)


def test_the_end_tells_when_it_is_closed_and_when_its_mode_changes(
    watching: Callable[[str], PathWatch], tmp_path: Path
) -> None:
    port = tmp_path / "port"
    port.touch()
    fd = os.open(port, os.O_RDONLY)
    watch = watching("port")
    assert not told(watch)
    os.close(fd)
    assert told(watch)
    port.chmod(0o600)
    assert told(watch)


def test_an_end_that_is_forgotten_tells_no_close(watching: Callable[[str], PathWatch], tmp_path: Path) -> None:
    port = tmp_path / "port"
    port.touch()
    watch = watching("port")
    with open(port):
        watch.forget_end()
    watch.forget_end()
    assert not told(watch)
    port.unlink()
    assert told(watch)


@pytest.mark.parametrize("links", [["port"], ["a", "b", "port"]])
def test_links_in_a_ring_end(watching: Callable[[str], PathWatch], tmp_path: Path, links: list[str]) -> None:
    for name, target in zip(links, [*links[1:], links[0]], strict=True):
        (tmp_path / name).symlink_to(target)
    watch = watching(links[0])
    assert not told(watch)
    (tmp_path / links[-1]).unlink()
    assert told(watch)


def test_what_cannot_be_had_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(28, "No space left on device")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(kernel, "inotify_watch", refused)
    with pytest.raises(OSError, match="No space left"):
        PathWatch(str(tmp_path / "port"))
    assert os.listdir("/proc/self/fd") == before

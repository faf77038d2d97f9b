"""Opening a path without magic links: by openat2(2), and by the walk that takes its place."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from virtagent.agent.worker import kernel, links
from virtagent.supervisor.io import log_writer


def has_openat2() -> bool:
    try:
        os.close(kernel.openat2(b"/", os.O_PATH | os.O_CLOEXEC, 0, kernel.Resolve.NO_MAGICLINKS))
    except OSError:
        return False
    return True


def no_openat2(number: int) -> Any:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


WAYS = [pytest.param(0, marks=pytest.mark.skipif(not has_openat2(), reason="no openat2")), errno.ENOSYS, errno.EPERM]


@pytest.fixture(params=WAYS, ids=["openat2", "ENOSYS", "EPERM"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open with openat2, or as where that is missing or forbidden."""
    if request.param:
        monkeypatch.setattr(kernel, "openat2", no_openat2(request.param))


def refusal(path: Path | str, flags: int = os.O_RDONLY, **more: Any) -> int:
    """Return the errno of opening it, 0 if it was opened."""
    try:
        os.close(links.open_plain(os.fsencode(path), flags, **more))
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "secret").write_text("")
    fd = os.open(tmp_path / "secret", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.usefixtures("way")
def test_a_magic_link_is_not_followed(tmp_path: Path, secret: int) -> None:
    magic = [f"/proc/self/fd/{secret}", "/proc/self/cwd", "/proc/self/root/etc/passwd", "/proc/thread-self/exe"]
    magic += [f"/dev/fd/{secret}", f"/proc/{os.getpid()}/fd/{secret}", "/proc/self/ns/mnt"]
    for number, target in enumerate(magic):
        link = tmp_path / f"l{number}"
        link.symlink_to(target)
        (tmp_path / f"ll{number}").symlink_to(link.name)
        for path in (target, link, tmp_path / f"ll{number}"):
            assert refusal(path) == errno.ELOOP, path
            assert refusal(path, os.O_PATH) == errno.ELOOP, path


@pytest.mark.usefixtures("way")
def test_a_plain_link_is_followed_also_one_of_procfs(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("/proc/self/maps")
    fd = links.open_plain(os.fsencode(tmp_path / "l"), os.O_RDONLY)
    assert kernel.is_procfs(fd)
    os.close(fd)
    assert refusal("/proc/mounts") == 0
    (tmp_path / "f").write_text("")
    (tmp_path / "to-f").symlink_to("f")
    fd = links.open_plain(os.fsencode(tmp_path / "to-f"), os.O_RDONLY)
    assert not kernel.is_procfs(fd)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.usefixtures("way")
def test_no_link_at_all_is_followed_if_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("")
    (tmp_path / "l").symlink_to("d")
    (tmp_path / "d" / "l").symlink_to("f")
    assert refusal(tmp_path / "d" / "f", follow=False) == 0
    assert refusal(tmp_path / "l" / "f", follow=False) == errno.ELOOP
    assert refusal(tmp_path / "d" / "l", follow=False) == errno.ELOOP
    assert refusal(tmp_path / "l" / "f") == refusal(tmp_path / "d" / "l") == 0


@pytest.mark.usefixtures("way")
def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("l")
    assert refusal(tmp_path / "l") == refusal(tmp_path / "l" / "x") == errno.ELOOP


@pytest.mark.usefixtures("way")
def test_a_host_may_name_a_magic_link_but_not_meet_one(tmp_path: Path, secret: int) -> None:
    os.close(links.open_asked(f"/proc/self/fd/{secret}".encode(), os.O_RDONLY))
    (tmp_path / "l").symlink_to(f"/proc/self/fd/{secret}")
    with pytest.raises(OSError, match="symbolic links"):
        links.open_asked(os.fsencode(tmp_path / "l"), os.O_RDONLY)


def test_a_nul_ends_no_path() -> None:
    with pytest.raises(ValueError, match="null byte"):
        links.open_plain(b"/etc/passwd\0.txt", os.O_RDONLY)


NAME = st.sampled_from(
    ["a", "b", "f", "up", "to-a", "to-f", "abs", "dangling", "circle", "slash", "gone", "..", ".", ""]
)
FLAGS = st.sampled_from(
    [
        os.O_RDONLY,
        os.O_PATH,
        os.O_PATH | os.O_NOFOLLOW,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDONLY | os.O_NOFOLLOW,
        os.O_WRONLY | os.O_CREAT,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        os.O_RDWR,
    ]
)


@pytest.fixture
def maze(tmp_path: Path) -> Path:
    maze = tmp_path / "1/2/3/4/5/6/7"  # so deep that six names do not lead out of it
    (maze / "a" / "b").mkdir(parents=True)
    for folder in (maze, maze / "a", maze / "a" / "b"):
        (folder / "f").write_text("x")
        for name, target in {
            "up": "..",
            "to-a": "a",
            "to-f": "./f",
            "abs": str(maze / "a"),
            "dangling": "gone/x",
            "circle": "circle",
            "slash": "f/",
        }.items():
            (folder / name).symlink_to(target)
    return maze


@pytest.mark.skipif(not has_openat2(), reason="no openat2")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(NAME, max_size=6), FLAGS, st.booleans(), st.booleans())
@example(["to-f", ""], os.O_RDONLY, True, True)
@example(["dangling"], os.O_WRONLY | os.O_CREAT, True, False)
@example(["to-f"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, True, False)
def test_the_walk_finds_what_the_kernel_finds(
    maze: Path, names: list[str], flags: int, follow: bool, absolute: bool
) -> None:
    path = os.fsencode("/".join([str(maze), *names] if absolute else names))
    folder = os.open(maze, os.O_PATH)
    resolve = kernel.Resolve.NO_MAGICLINKS if follow else kernel.Resolve.NO_SYMLINKS

    def end(opened: Any) -> tuple[int, int]:
        """Return the file that it opened, or an errno; what was made is removed."""
        try:
            fd = opened()
        except OSError as error:
            # That a folder is there is said so, or so.
            return -1, errno.EISDIR if error.errno == errno.EEXIST else error.errno or -1
        about, made = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
        if stat.S_ISREG(about.st_mode) and not about.st_size:
            os.unlink(made)
            return 0, 0
        return about.st_dev, about.st_ino

    try:
        if absolute or path[:1] != b"/":
            kernels = end(lambda: kernel.openat2(path, flags | os.O_CLOEXEC, 0o600, resolve, folder))
            walked = end(lambda: links._walk(path, flags | os.O_CLOEXEC, 0o600, folder, follow=follow))
            assert walked == kernels, path
    finally:
        os.close(folder)


# -- the log, where others may put what they like


def test_a_log_in_a_folder_of_others_is_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("")
    log = folder / "log"
    log.symlink_to(precious)
    os.close(log_writer._open(str(log)))  # in a folder of ours a link is our own will
    folder.chmod(0o777)
    with pytest.raises(OSError, match="symbolic links"):
        log_writer._open(str(log))
    log.unlink()
    os.link(precious, log)
    with pytest.raises(OSError, match="not a file of its own"):
        log_writer._open(str(log))
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(OSError, match=r"not a file of its own|No such device or address"):
        log_writer._open(str(log))
    log.unlink()
    os.close(log_writer._open(str(log)))
    assert log.stat().st_mode & 0o777 == 0o600

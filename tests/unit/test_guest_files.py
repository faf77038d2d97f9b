"""The handlers of guest-file-*, on files and FIFOs in a folder. What qemu-ga 7.2 answered is what is asked for."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.methods import RPCS, arguments
from virtagent.agent.worker.commands import files


class Worker:
    def title(self, doing: str) -> None:
        assert doing


Open = Callable[..., files.OpenFile]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    kept: list[files.OpenFile] = []

    def open_(name: str, mode: str | None = None) -> files.OpenFile:
        args = {"path": str(tmp_path / name) if name else "", "mode": mode, "handle": 1000 + len(kept)}
        kept.append(files.file_open(Worker(), args))  # type: ignore[arg-type]
        return kept[-1]

    yield open_
    for file in kept:
        file.close()


def read(file: files.OpenFile, count: int | None = None) -> tuple[bytes, bool]:
    answer = files.file_read(file, {"handle": file.key, "count": count})
    data = b64decode(answer["buf-b64"])
    assert answer["count"] == len(data)
    return data, answer["eof"]


def write(file: files.OpenFile, data: bytes, count: int | None = None) -> int:
    answer = files.file_write(file, {"handle": file.key, "buf-b64": b64encode(data).decode(), "count": count})
    assert answer["eof"] is False
    written: int = answer["count"]
    return written


def seek(file: files.OpenFile, offset: int, whence: int | str) -> int:
    answer = files.file_seek(file, {"handle": file.key, "offset": offset, "whence": whence})
    assert answer["eof"] is False
    position: int = answer["position"]
    return position


def refused(text: str, code: Code = Code.FAILED) -> Any:
    return pytest.raises(Fault, match=rf"^{text} \[{code.name} ")


@pytest.mark.parametrize("mode", ["", "x", "wx", "br", "rr", "r++", "rb++", "rbb", "+r", "R", "r ", "rw"])
def test_no_mode(mode: str) -> None:
    with refused(f"invalid file open mode '{mode}'".replace("+", r"\+"), Code.PARAMS):
        arguments(RPCS["guest-file-open"], {"path": "/x", "mode": mode})


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "rb+", "r+b", "w", "wb", "w+", "wb+", "w+b", "a", "ab", "a+", "a+b"])
def test_modes_are_those_of_fopen(mode: str, tmp_path: Path, opened: Open) -> None:
    (tmp_path / "f").write_bytes(b"old")
    file = opened("f", mode)
    can_read, can_write = mode[0] == "r" or "+" in mode, mode[0] != "r" or "+" in mode
    if can_write:
        assert write(file, b"new!") == 4
    else:
        with refused("failed to write to file: Bad file descriptor"):
            write(file, b"new!")
    if can_read:
        assert seek(file, 0, 0) == 0
        read(file)
    else:
        with refused("failed to read file: Bad file descriptor"):
            read(file)
    left = {"r": b"new!" if can_write else b"old", "w": b"new!", "a": b"oldnew!"}
    assert (tmp_path / "f").read_bytes() == left[mode[0]]


def test_pieces_and_the_end(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    file = opened("f")
    assert file.value == 1000
    assert read(file, 4) == (b"0123", False)
    assert read(file, 6) == (b"456789", False)
    assert read(file, 6) == (b"", True)
    assert seek(file, 0, "set") == 0
    assert read(file, 11) == (b"0123456789", True)
    assert read(file, 0) == (b"", False)


def test_default_count_and_bounds(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 20)
    file = opened("f")
    assert read(file) == (bytes(range(256)) * 16, False)
    for count in (-1, (48 << 20) + 1, 1 << 62):
        with refused(f"value '{count}' is invalid for argument count", Code.PARAMS):
            read(file, count)
    assert read(file, 48 << 20) == (bytes(range(256)) * 4, True)


def test_read_and_write_share_the_position(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    file = opened("f", "r+")
    assert write(file, b"AB") == 2
    assert read(file, 4) == (b"2345", False)
    assert seek(file, 0, "cur") == 6
    assert seek(file, 100, "end") == 110
    appended = opened("f", "a+")
    assert seek(appended, 0, 1) == 0
    assert read(appended, 4) == (b"AB23", False)
    assert write(appended, b"ZZ") == 2
    assert seek(appended, 0, 1) == 12


def test_count_of_a_write(opened: Open, tmp_path: Path) -> None:
    file = opened("f", "w")
    assert write(file, b"hello", 3) == 3
    assert write(file, b"hello", 0) == 0
    for count in (-1, 6):
        with refused(f"value '{count}' is invalid for argument count", Code.PARAMS):
            write(file, b"hello", count)
    with refused("Base64 data contains invalid characters", Code.PARAMS):
        files.file_write(file, {"handle": 1000, "buf-b64": "a b=", "count": None})
    assert files.file_flush(file, {"handle": 1000}) == {}
    assert (tmp_path / "f").read_bytes() == b"hel"


@pytest.mark.parametrize("whence", [3, -1, 1 << 40])
def test_no_whence(whence: int, opened: Open) -> None:
    with refused(f"invalid whence code {whence}", Code.PARAMS):
        seek(opened("f", "w"), 0, whence)


def test_seek_that_is_refused(opened: Open) -> None:
    file = opened("f", "w")
    with refused("Parameter 'whence' does not accept value 'nope'", Code.PARAMS):
        seek(file, 0, "nope")
    for offset in (-100, (1 << 63) - 1):
        with refused("failed to seek file: Invalid argument"):
            seek(file, offset, 0)


def test_open_that_is_refused(tmp_path: Path, opened: Open) -> None:
    with refused(f"failed to open file '{tmp_path}/none' .mode: 'r'.: No such file or directory"):
        opened("none")
    with refused(f"failed to open file '{tmp_path}/a/b' .mode: 'w'.: No such file or directory"):
        opened("a/b", "w")
    with refused("failed to open file '' .mode: 'w'.: No such file or directory"):
        opened("", "w")
    with refused(f"failed to open file '{tmp_path}/\\.' .mode: 'r.'.: Is a directory"):
        files.file_open(Worker(), {"path": f"{tmp_path}/.", "mode": "r+", "handle": 1})  # type: ignore[arg-type]
    with refused("failed to read file: Is a directory"):
        read(opened("."))


def test_a_dangling_link_is_not_written_through(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "link").symlink_to("target")
    with refused(f"failed to open file '{tmp_path}/link' .mode: 'w'.: No such file or directory"):
        opened("link", "w")
    assert not (tmp_path / "target").exists()


def test_a_new_file_heeds_the_umask(tmp_path: Path, opened: Open) -> None:
    before = os.umask(0o027)
    try:
        opened("f", "w")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


def test_a_fifo_never_waits(tmp_path: Path, opened: Open) -> None:
    os.mkfifo(tmp_path / "p")
    with refused(f"failed to open file '{tmp_path}/p' .mode: 'w'.: No such device or address"):
        opened("p", "w")
    file = opened("p")
    assert read(file) == (b"", True)
    with refused("failed to seek file: Illegal seek"):
        seek(file, 0, 1)
    writer = opened("p", "w")
    with refused("failed to read file: Resource temporarily unavailable"):
        read(file)
    assert write(writer, b"abc") == 3
    assert read(file, 2) == (b"ab", False)
    assert read(file, 1 << 20) == (b"c", False)  # qemu-ga loses it, with an error
    assert write(writer, bytes(4096)) == 4096
    with refused("failed to write to file: Resource temporarily unavailable"):
        write(writer, bytes(1 << 20))


def test_a_full_disk_is_told_by_the_write() -> None:
    file = files.file_open(Worker(), {"path": "/dev/full", "mode": "w", "handle": 1})  # type: ignore[arg-type]
    with refused("failed to write to file: No space left on device"):
        write(file, b"x")
    file.close()


def test_close_ends_the_worker_and_closes_once(opened: Open) -> None:
    file = opened("f", "w")
    assert not file.ended
    assert files.file_close(file, {"handle": 1000}) == {}
    assert file.ended
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)
    file.close()


def test_a_close_that_fails_has_closed(opened: Open) -> None:
    file = opened("f", "w")
    os.close(file.fd)
    with refused("failed to close handle: Bad file descriptor"):
        files.file_close(file, {"handle": 1000})
    assert file.ended


def test_the_file_is_not_inherited(opened: Open) -> None:
    assert not os.get_inheritable(opened("f", "w").fd)

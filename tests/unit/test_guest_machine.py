"""The handlers that act on the machine, on folders that look like sysfs; test_guest_helpers.py has their programs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.commands import machine
from virtagent.agent.worker.mountinfo import MountInfo


class _Worker:
    def __init__(self) -> None:
        self.titles: list[str] = []

    def title(self, doing: str) -> None:
        self.titles.append(doing)


WORKER: Any = _Worker()


def refused(text: str, code: Code = Code.FAILED) -> Any:
    return pytest.raises(Fault, match=rf"^{text} \[{code.name} ")


# time


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (-1, "Failed to set time to guest: Invalid argument"),
        (-(1 << 63), "Failed to set time to guest: Invalid argument"),
        (3155760000 * 10**9, "Invalid time"),
        ((1 << 63) - 1, "Invalid time"),
    ],
)
def test_set_time_to_a_year_that_no_clock_has(now: int, text: str) -> None:
    with refused(text, Code.PARAMS):
        machine.set_time(WORKER, {"time": now}, hwclock="/bin/true", set_clock=pytest.fail)


# processors


@pytest.fixture
def cpus(tmp_path: Path) -> Path:
    root = tmp_path / "cpu"
    for number, state in enumerate((None, "1", "1", "0")):
        (root / f"cpu{number}").mkdir(parents=True)
        if state is not None:
            (root / f"cpu{number}/online").write_text(f"{state}\n")
    return root


def set_vcpus(root: Path, *wanted: tuple[int, bool]) -> int:
    vcpus = [{"logical-id": number, "online": online, "can-offline": None} for number, online in wanted]
    return machine.set_vcpus(WORKER, {"vcpus": vcpus}, root=str(root))


def states(root: Path) -> str:
    return "".join((root / f"cpu{n}/online").read_text()[0] for n in (1, 2, 3))


def test_set_vcpus(cpus: Path) -> None:
    assert set_vcpus(cpus) == 0
    assert set_vcpus(cpus, (0, True), (1, False), (2, True), (3, True)) == 4
    assert states(cpus) == "011"


def test_set_vcpus_stops_at_the_first_that_fails(cpus: Path) -> None:
    assert set_vcpus(cpus, (1, False), (0, False), (2, False)) == 1
    assert states(cpus) == "010"


def test_set_vcpus_fails_if_the_first_does(cpus: Path) -> None:
    with refused("logical processor #0 can't be offlined"):
        set_vcpus(cpus, (0, False), (1, False))
    with refused(f'open."{cpus}/cpu9/".: No such file or directory'):
        set_vcpus(cpus, (9, True))
    with refused(f'open."{cpus}/cpu-1/".: No such file or directory'):
        set_vcpus(cpus, (-1, True))
    (cpus / "cpu1/online").write_text("")
    with refused(f'pread."{cpus}/cpu1//online".: unexpected EOF'):
        set_vcpus(cpus, (1, False))
    (cpus / "cpu2/online").unlink()
    (cpus / "cpu2/online").mkdir()
    with refused(f'open."{cpus}/cpu2//online".: Is a directory'):
        set_vcpus(cpus, (2, False))
    assert (cpus / "cpu3/online").read_text() == "0\n"


def test_set_vcpus_refused_by_the_kernel(cpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "pwrite", busy)
    assert set_vcpus(cpus, (1, True)) == 1
    with refused(f'pwrite."{cpus}/cpu1//online".: Device or resource busy'):
        set_vcpus(cpus, (1, False))


# memory


def test_set_memory_blocks(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    args = {"mem-blks": [{"phys-index": n, "online": online} for n, online in ((0, True), (1, False), (7, True))]}
    assert machine.set_memory_blocks(WORKER, args, root=str(root)) == [
        {"phys-index": n, "response": "operation-not-supported", "error-code": errno.ENOENT} for n in (0, 1, 7)
    ]
    for n in (0, 1, 2, 3):
        (root / f"memory{n}").mkdir(parents=True)
    (root / "memory0/state").write_text("offline\n")
    (root / "memory1/state").write_text("online\n")
    assert machine.set_memory_blocks(WORKER, args, root=str(root)) == [
        {"phys-index": 0, "response": "success"},
        {"phys-index": 1, "response": "success"},
        {"phys-index": 7, "response": "not-found", "error-code": errno.ENOENT},
    ]
    assert (root / "memory0/state").read_text() == "online"
    assert (root / "memory1/state").read_text() == "offline"

    (root / "memory3/state").mkdir()
    args = {"mem-blks": [{"phys-index": n, "online": online} for n, online in ((2, True), (2, False), (3, True))]}
    assert machine.set_memory_blocks(WORKER, args, root=str(root)) == [
        {"phys-index": 2, "response": "success"},
        {"phys-index": 2, "response": "operation-not-supported", "error-code": errno.ENOENT},
        {"phys-index": 3, "response": "operation-failed", "error-code": errno.EISDIR},
    ]


# trim


def test_what_is_trimmed() -> None:
    def mount(number: int, device: str, fstype: str, point: str) -> MountInfo:
        return MountInfo(number, 1, device, "/", point, fstype, "/dev/x", "rw")

    mounts = [
        mount(901, "0:901", "tmpfs", "/run"),
        mount(902, "990:1", "ext4", "/nowhere/a"),
        mount(903, "990:1", "ext4", "/nowhere/bind"),
        mount(904, "0:904", "btrfs", "/nowhere/b"),
        mount(905, "0:905", "nfs4", "/nowhere/n"),
        mount(906, "990:2", "fuseblk", "/nowhere/f"),
        mount(907, "0:907", "overlay", "/nowhere/o"),
    ]
    answer = machine.fstrim(WORKER, {"minimum": None}, read_mounts=lambda: mounts)
    assert answer == {
        "paths": [
            {"path": "/nowhere/f", "error": "trim not supported"},
            {"path": "/nowhere/b", "error": "failed to open: not mounted any more"},
            {"path": "/nowhere/a", "error": "failed to open: not mounted any more"},
        ]
    }

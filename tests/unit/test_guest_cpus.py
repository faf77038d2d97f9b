"""Facts on processors and memory: recorded texts of /proc/stat and trees of sysfs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Fault
from virtagent.agent.worker.commands import cpus

WORKER: Any = None  # these handlers need none
STAT = """\
cpu  221 0 75 3401 17 0 1 0 0 0
cpu0 89 1 35 1718 5 2 3 4 6 7
cpu12 132 0 40 1683 11 0
cpu13 132 0 40 1683
cpu14 1 2 3
cpu15 1 2 3 x
cpux 1 2 3 4
intr 1 2 3 4 5
"""


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the processors `cpu` and the memory blocks `memory`."""
    monkeypatch.setattr(cpus, "CPUS", str(tmp_path / "cpu"))
    monkeypatch.setattr(cpus, "MEMORY", f"{tmp_path}/memory/")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_cpustats_are_milliseconds() -> None:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestnice")

    def spent(*ticks: int) -> dict[str, int]:
        return dict(zip(names, (10 * t for t in ticks), strict=False))

    assert list(cpus.cpustats(STAT, 100)) == [
        {"type": "linux", "cpu": 0, **spent(89, 1, 35, 1718, 5, 2, 3, 4, 6, 7)},
        {"type": "linux", "cpu": 12, **spent(132, 0, 40, 1683, 11, 0)},
        {"type": "linux", "cpu": 13, **spent(132, 0, 40, 1683)},
    ]


def test_ticks_that_are_no_whole_milliseconds() -> None:
    assert next(cpus.cpustats("cpu0 1 2 3 2049", 1024)) == {
        "type": "linux",
        "cpu": 0,
        "user": 0,
        "nice": 1,
        "system": 2,
        "idle": 2000,
    }


def test_vcpus(sysfs: Path) -> None:
    (sysfs / "cpu/cpu0").mkdir(parents=True)
    for name, text in {"cpu10": "1\n", "cpu2": "0\n", "cpufreq": "1\n", "cpu": "1\n", "cpu²": "1\n"}.items():
        write(sysfs / "cpu" / name / "online", text)
    write(sysfs / "cpu/online", "0-1\n")
    assert cpus.get_vcpus(WORKER, {}) == [
        {"logical-id": 0, "online": True, "can-offline": False},
        {"logical-id": 2, "online": False, "can-offline": True},
        {"logical-id": 10, "online": True, "can-offline": True},
    ]


def test_vcpus_that_sysfs_does_not_tell(sysfs: Path) -> None:
    with pytest.raises(Fault, match=r"^failed to list entries: .*/cpu: No such file or directory"):
        cpus.get_vcpus(WORKER, {})
    write(sysfs / "cpu/cpu0/online", "maybe\n")
    with pytest.raises(Fault, match=r"""^unexpected contents of ".*/cpu0/online": 'maybe'"""):
        cpus.get_vcpus(WORKER, {})
    (sysfs / "cpu/cpu0/online").unlink()
    (sysfs / "cpu/cpu0/online").mkdir()
    with pytest.raises(Fault, match=r'^open\(".*/cpu0/online"\): Is a directory'):
        cpus.get_vcpus(WORKER, {})


def test_memory_blocks(sysfs: Path) -> None:
    for name, text in {
        "memory0/state": "online\n",
        "memory0/removable": "0\n",
        "memory12/state": "offline\n",
        "memory12/removable": "1\n",
        "memory3/state": "going-offline\n",
        "memory4/removable": "1\n",
        "memoryx/state": "online\n",
        "power/control": "auto\n",
        "block_size_bytes": "8000000\n",
    }.items():
        write(sysfs / "memory" / name, text)
    assert cpus.get_memory_blocks(WORKER, {}) == [
        {"phys-index": 0, "online": True, "can-offline": False},
        {"phys-index": 3, "online": False, "can-offline": False},
        {"phys-index": 4, "online": True, "can-offline": False},
        {"phys-index": 12, "online": False, "can-offline": True},
    ]
    assert cpus.get_memory_block_info(WORKER, {}) == {"size": 128 << 20}


def test_a_kernel_without_memory_blocks(sysfs: Path) -> None:
    assert cpus.get_memory_blocks(WORKER, {}) == []
    with pytest.raises(Fault, match=r'^open\(".*/memory/"\): No such file or directory'):
        cpus.get_memory_block_info(WORKER, {})


def test_memory_that_sysfs_does_not_tell(sysfs: Path) -> None:
    (sysfs / "memory").mkdir()
    with pytest.raises(Fault, match=r"^guest reported zero memory blocks!"):
        cpus.get_memory_blocks(WORKER, {})
    with pytest.raises(Fault, match=r'^open sysfs file "block_size_bytes": No such file or directory'):
        cpus.get_memory_block_info(WORKER, {})
    write(sysfs / "memory/block_size_bytes", "many\n")
    with pytest.raises(Fault, match=r"^unexpected contents of .*block_size_bytes"):
        cpus.get_memory_block_info(WORKER, {})
    (sysfs / "memory/block_size_bytes").unlink()
    (sysfs / "memory").rmdir()
    write(sysfs / "memory", "")
    with pytest.raises(Fault, match=r'^Can\'t open directory".*/memory/": Not a directory'):
        cpus.get_memory_blocks(WORKER, {})


def test_this_machine() -> None:
    assert cpus.get_vcpus(WORKER, {})
    assert cpus.get_cpustats(WORKER, {})

"""Sectors written while frozen are found on real file systems, and nothing else is taken for them."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import KINDS, MIB, LoopFs
from harness.rig import Rig
from virtagent.agent.api.errors import Code


def evidence(daemon: Daemon, good: bool = True) -> int:
    """Thaw, and return what was written meanwhile."""
    if good:
        assert daemon.proxy().va.fsthaw() > 0
    last = daemon.wait_state("THAWED")["last"]
    assert last["held_continuously"] is good, last
    return int(last["written_while_frozen"])


def broken(daemon: Daemon) -> str:
    """Thaw; return the fault that says that the freeze was broken."""
    with pytest.raises(xmlrpc.client.Fault) as raised:
        daemon.proxy().va.fsthaw()
    assert raised.value.faultCode == int(Code.FREEZE_BROKEN)
    return raised.value.faultString


def written(path: Path, size: int = 48 << 10) -> None:
    """Write to a file, and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


@pytest.mark.parametrize("kind", KINDS)
def test_thawed_and_frozen_again_by_someone_else(rig: Rig, kind: str) -> None:
    fs, other = rig.fs(kind), rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere])
    assert daemon.proxy().va.fsfreeze() == 2
    assert fs.thaw() == "ok"
    written(fs.path / "meanwhile")
    assert fs.freeze() == "ok"
    words = broken(daemon)
    assert f" were written to {fs.device} while frozen" in words
    assert words.count("written to") == 1
    assert other.device not in words
    last = daemon.wait_state("THAWED")["last"]
    assert last["outcome"] == "broken"
    assert last["written_while_frozen"] >= 48 << 10
    assert evidence(daemon, good=False) == last["written_while_frozen"]
    for one in (fs, other):
        one.assert_thawed()
    daemon.proxy().va.fsfreeze()
    assert evidence(daemon) == 0, "the next freeze is another one"


def test_a_member_of_a_btrfs_is_its_own_device(rig: Rig) -> None:
    fs = rig.fs("btrfs")
    image = rig.area.root / "member.img"
    with open(image, "wb") as file:
        file.truncate(128 * MIB)
    device, fd = linux.attach_loop(image)
    try:
        subprocess.run(["btrfs", "device", "add", "-f", device, str(fs)], check=True, capture_output=True, timeout=30)
        daemon = rig.daemon([rig.everywhere])
        (mount,) = daemon.proxy().va.fsplan()["mounts"]
        assert {f"/dev/{name}" for name in mount["devices"]} == {fs.device, device}
        daemon.proxy().va.fsfreeze()
        assert evidence(daemon) == 0
        daemon.proxy().va.fsfreeze()
        with open(device, "r+b", buffering=0) as raw:
            raw.seek(100 * MIB)
            raw.write(bytes(4096))
            os.fsync(raw.fileno())
        assert f"4 KiB were written to {device} while frozen" in broken(daemon)
    finally:
        fs.thaw()
        fs.unmount()
        os.close(fd)


class LogElsewhere(LoopFs):
    """An ext4 whose journal, or an xfs whose log, is on a device of its own; that goes with it."""

    def __init__(self, rig: Rig, kind: str) -> None:
        image = rig.area.fresh(f"log-{kind}")
        with open(image, "wb") as file:
            file.truncate(64 * MIB)
        self.log, self._log_fd = linux.attach_loop(image)
        options = ["-b", "4096", "-J", f"device={self.log}"] if kind == "ext4" else ["-l", f"logdev={self.log}"]
        if kind == "ext4":
            make = ["mke2fs", "-q", "-O", "journal_dev", "-b", "4096", self.log]
            subprocess.run(make, check=True, capture_output=True, timeout=20, cwd="/")
        super().__init__(rig.area, kind, options=options)
        rig.filesystems.append(self)

    def mount(self) -> None:
        data = "" if self.kind == "ext4" else f"logdev={self.log}"
        linux.mount(self.device, str(self.path), self.kind, data=data)

    def detach(self) -> None:
        super().detach()
        os.close(self._log_fd)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_journal_or_log_elsewhere_is_its_own_device(rig: Rig, kind: str) -> None:
    fs, other = LogElsewhere(rig, kind), rig.fs("ext4")
    daemon = rig.daemon([fs])
    (mount,) = daemon.proxy().va.fsplan()["mounts"]
    assert {f"/dev/{name}" for name in mount["devices"]} == {fs.device, fs.log}
    for _ in range(3):
        fs.fill(MIB)
        assert daemon.proxy().va.fsfreeze() == 1
        other.fill(MIB)
        os.sync()
        assert evidence(daemon) == 0, "nothing is written to it while it is frozen"
    daemon.proxy().va.fsfreeze()
    with open(fs.log, "r+b", buffering=0) as raw:
        raw.seek(32 * MIB)
        block = raw.read(4096)
        raw.seek(32 * MIB)
        raw.write(block)
        os.fsync(raw.fileno())
    words = broken(daemon)
    assert f"4 KiB were written to {fs.log} while frozen" in words
    assert fs.device not in words.replace(fs.log, "")
    assert daemon.wait_state("THAWED")["last"]["written_while_frozen"] == 4096
    daemon.proxy().va.fsfreeze()
    assert fs.thaw() == "ok"
    (fs.path / "name").touch()
    written(fs.path / "meanwhile", 4096)
    assert fs.freeze() == "ok"
    words = broken(daemon)
    for device in (fs.device, fs.log):
        assert f"to {device}" in words


def test_reads_writes_elsewhere_and_a_longer_hold_are_no_writes(rig: Rig) -> None:
    held = [rig.fs(kind) for kind in KINDS]
    elsewhere = rig.fs("ext4")
    for fs in held:
        written(fs.path / "before", MIB)
        fs.fill(MIB)
    daemon = rig.daemon(held)
    for _ in range(5):
        assert daemon.proxy().va.fsfreeze() == len(KINDS)
        for fs in held:
            subprocess.run(["blockdev", "--flushbufs", fs.device], check=True, timeout=20)
            with open(fs.path / "before", "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert len(file.read()) == MIB
            assert os.statvfs(fs.path).f_blocks
        elsewhere.fill(2 * MIB)
        subprocess.run(["fstrim", str(elsewhere)], check=False, capture_output=True, timeout=30)
        os.sync()
        daemon.proxy().va.fshold(20)
        assert evidence(daemon) == 0


def test_discards_are_no_writes(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    daemon.proxy().va.fsfreeze()
    name = os.path.basename(fs.device)
    counters = Path(f"/sys/class/block/{name}/stat")
    before = counters.read_text(encoding="ascii").split()
    trim = subprocess.run(["fstrim", str(fs)], check=False, capture_output=True, text=True, timeout=30)
    after = counters.read_text(encoding="ascii").split()
    assert after[6] == before[6]
    assert evidence(daemon) == 0
    if trim.returncode or after[11:15] == before[11:15]:
        pytest.skip(f"a frozen file system is not trimmed here: {trim.stderr.strip() or 'no discard came'}")


@contextlib.contextmanager
def partitioned(rig: Rig) -> Iterator[list[str]]:
    """Make a loop disk of two partitions of 64 MiB; yield their devices."""
    image = rig.area.root / "disk.img"
    entry = struct.Struct("<B3xB3xII")
    sectors = 64 * MIB // 512
    table = b"".join(entry.pack(0, 0x83, 2048 + n * sectors, sectors) for n in range(2)) + bytes(32)
    with open(image, "wb") as file:
        file.write(bytes(446) + table + b"\x55\xaa")
        file.truncate(2048 * 512 + 128 * MIB)
    device, fd = linux.attach_loop(image)
    nodes: list[str] = []
    try:
        added = subprocess.run(["partx", "-a", device], check=False, capture_output=True, text=True, timeout=20)
        folders = [Path(f"/sys/class/block/{os.path.basename(device)}p{n}") for n in (1, 2)]
        if not all(folder.exists() for folder in folders):
            pytest.skip(f"needs partitions on a loop device: {added.stderr.strip()}")
        for folder in folders:
            node = f"/dev/{folder.name}"
            if not os.path.exists(node):
                major, minor = map(int, (folder / "dev").read_text(encoding="ascii").split(":"))
                os.mknod(node, 0o600 | 0o060000, os.makedev(major, minor))
                nodes.append(node)
        yield [f"/dev/{folder.name}" for folder in folders]
    finally:
        subprocess.run(["partx", "-d", device], check=False, capture_output=True, timeout=20)
        os.close(fd)
        for node in nodes:
            os.unlink(node)


def test_another_partition_of_the_same_disk_is_no_matter(rig: Rig) -> None:
    with partitioned(rig) as devices:
        points = [rig.area.fresh("part") for _ in devices]
        try:
            for device, point in zip(devices, points, strict=True):
                subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True, capture_output=True, timeout=30)
                point.mkdir()
                linux.mount(device, str(point), "ext4")
            daemon = rig.daemon([points[0]])
            assert daemon.proxy().va.fsfreeze() == 1
            written(points[1] / "elsewhere", MIB)
            assert evidence(daemon) == 0
            assert daemon.proxy().va.fsfreeze() == 1
            linux.thaw(str(points[0]))
            written(points[0] / "meanwhile")
            linux.freeze(str(points[0]))
            assert f"written to {devices[0]} while frozen" in broken(daemon)
        finally:
            for point in points:
                with contextlib.suppress(OSError):
                    linux.thaw(str(point))
                with contextlib.suppress(OSError):
                    linux.umount(str(point))


@contextlib.contextmanager
def swapping(path: Path) -> Iterator[None]:
    """Swap to a new file."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * MIB)
    path.chmod(0o600)
    subprocess.run(["mkswap", str(path)], check=True, capture_output=True, timeout=20)
    on = subprocess.run(["swapon", str(path)], check=False, capture_output=True, text=True, timeout=20)
    if on.returncode:
        pytest.skip(f"needs a swap file: {on.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", str(path)], check=True, timeout=60)


def test_a_swap_file_takes_the_evidence_and_breaks_nothing(rig: Rig) -> None:
    fs, other = rig.fs("ext4"), rig.fs("ext4")
    with swapping(fs.path / "swap"):
        daemon = rig.daemon([rig.everywhere])
        assert daemon.proxy().va.fsfreeze() == 2
        assert fs.thaw() == "ok"
        written(fs.path / "meanwhile")
        assert fs.freeze() == "ok"
        assert evidence(daemon) == -1
        single = rig.daemon([other])
        assert single.proxy().va.fsfreeze() == 1
        assert evidence(single) == 0, "swap elsewhere"


def test_a_swap_partition_is_no_matter(rig: Rig) -> None:
    fs = rig.fs("ext4")
    image = rig.area.root / "swap.img"
    with open(image, "wb") as file:
        file.truncate(4 * MIB)
    device, fd = linux.attach_loop(image)
    try:
        subprocess.run(["mkswap", device], check=True, capture_output=True, timeout=20)
        on = subprocess.run(["swapon", device], check=False, capture_output=True, text=True, timeout=20)
        if on.returncode:
            pytest.skip(f"needs swap: {on.stderr.strip()}")
        try:
            daemon = rig.daemon([fs])
            daemon.proxy().va.fsfreeze()
            assert evidence(daemon) == 0
        finally:
            subprocess.run(["swapoff", device], check=True, timeout=60)
    finally:
        os.close(fd)


def test_counters_that_are_off_are_no_evidence(rig: Rig) -> None:
    fs = rig.fs("ext4")
    iostats = Path(f"/sys/class/block/{os.path.basename(fs.device)}/queue/iostats")
    try:
        iostats.write_text("0", encoding="ascii")
    except OSError as error:
        pytest.skip(f"needs a writable sysfs: {error}")
    try:
        daemon = rig.daemon([fs])
        daemon.proxy().va.fsfreeze()
        assert evidence(daemon) == -1
    finally:
        iostats.write_text("1", encoding="ascii")

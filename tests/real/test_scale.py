"""Many real file systems and mounts at once, file systems upon each other, long paths."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import guardian, linux
from harness.daemon import Daemon
from harness.filesystems import MIB, LoopFs, require
from harness.namespace import Area
from harness.processes import kill, until
from harness.rig import Rig
from harness.terminal import CTL, Terminal
from virtagent.agent.worker.mount_threads import FILES, THREADS

FILE_SYSTEMS, MOUNTS = 256, 1000
LEVELS = 8  # a flush of one is at least two flushes of the one below: twelve take 7 s, and sixty-four for ever

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def many(area: Area) -> Iterator[list[str]]:
    """Make 256 file systems and 1,000 mounts of them; return the first mount point of each."""
    require("ext4")
    root = area.fresh("many")
    root.mkdir()
    base = root / "image"
    with open(base, "wb") as image:
        image.truncate(4 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=1", str(base)], check=True, cwd="/")
    devices: list[int] = []
    points = [str(root / f"fs{i}") for i in range(FILE_SYSTEMS)]
    binds = [str(root / f"bind{i}") for i in range(MOUNTS - FILE_SYSTEMS)]
    try:
        for i, point in enumerate(points):
            shutil.copyfile(base, root / f"image{i}")
            device, fd = linux.attach_loop(root / f"image{i}")
            devices.append(fd)
            os.mkdir(point)
            linux.mount(device, point, "ext4")
        for i, bind in enumerate(binds):
            os.mkdir(bind)
            linux.mount(points[i % FILE_SYSTEMS], bind, flags=linux.MS_BIND)
        yield points
    finally:
        guardian.thaw_all(str(root))
        for mount in reversed(linux.mounts_under(str(root))):
            linux.umount(mount.mountpoint)
        for fd in devices:
            os.close(fd)
        until(lambda: not linux.loop_devices(str(root)), 10, "no loop device")
        shutil.rmtree(root)


def every(points: list[str]) -> str:
    """Return the glob that matches all of them and nothing else."""
    return f"{os.path.dirname(points[0])}/*"


def frozen(points: list[str]) -> int:
    """Count those that are frozen; not while a freeze is under way."""
    return sum(map(linux.is_frozen, points))


def thawed(points: list[str]) -> None:
    """Fail if one is frozen."""
    for point in points:
        with pytest.raises(OSError, match="Invalid argument"):  # EINVAL: there was nothing to thaw
            linux.thaw(point)


def keeper_of(daemon: Daemon) -> psutil.Process:
    (pid,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return psutil.Process(pid)


def fd_size(pid: int) -> int:
    """Return for how many descriptors a process has room (proc(5), status)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("FDSize:")]
    return int(line.split()[1])


def test_all_at_once_and_nothing_is_left(rig: Rig, many: list[str]) -> None:
    daemon = rig.daemon([every(many)])
    host = daemon.proxy(timeout=60)
    assert host.va.ping() == "dummy"
    before = rig.footprint(daemon)
    for _ in range(3):
        assert host.va.fsfreeze() == FILE_SYSTEMS
        assert frozen(many) == FILE_SYSTEMS
        record = daemon.status()
        held = [m for m in record["mounts"] if m["state"] == "frozen"]
        assert len(held) == FILE_SYSTEMS
        assert sum(1 + len(m["aliases"]) for m in held) == MOUNTS
        assert f"[frozen {FILE_SYSTEMS}/{FILE_SYSTEMS}" in daemon.titles()[daemon.pid]
        # One more for each call that hung for a moment: on a busy machine that may be all of them.
        assert THREADS < keeper_of(daemon).num_threads() <= FILE_SYSTEMS + 1
        # Made so large before there were threads: when it grows while there are, each time takes a grace period.
        assert fd_size(keeper_of(daemon).pid) >= FILES
        assert host.va.fsthaw() == FILE_SYSTEMS
        thawed(many)
        assert daemon.status()["last"]["outcome"] == "thawed"
    rig.assert_unchanged(before, daemon)


def test_thawed_when_the_supervisor_is_killed(rig: Rig, many: list[str]) -> None:
    daemon = rig.daemon([every(many)])
    assert daemon.proxy(timeout=60).va.fsfreeze() == FILE_SYSTEMS
    daemon.kill()
    daemon.wait_orphans()
    thawed(many)
    again = rig.daemon([every(many)], state_dir=daemon.state_dir)
    assert again.wait_state("THAWED")["last"]["outcome"] == "broken"


def test_thawed_when_the_keeper_is_killed(rig: Rig, many: list[str]) -> None:
    daemon = rig.daemon([every(many)])
    assert daemon.proxy(timeout=60).va.fsfreeze() == FILE_SYSTEMS
    kill(keeper_of(daemon).pid)
    assert daemon.wait_state("THAWED")["last"]["error"].endswith(f"thawed {FILE_SYSTEMS} of {FILE_SYSTEMS}")
    thawed(many)


def test_thawed_by_the_keeper_whose_reports_nobody_reads(rig: Rig, many: list[str]) -> None:
    daemon = rig.daemon([every(many)])
    assert daemon.proxy(timeout=60).va.fsfreeze({"hold_limit": 1}) == FILE_SYSTEMS
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        until(lambda: not frozen(many[::16]), 30, "thawed by itself")
        thawed(many)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "expired"


def test_more_than_the_usual_number_of_open_files(rig: Rig, many: list[str]) -> None:
    """The soft limit is for programs that use select(2); a worker raises its own, for the freeze and to undo it."""
    daemon = rig.daemon([every(many)])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (FILE_SYSTEMS // 2, most))
    assert daemon.proxy(timeout=60).va.fsfreeze() == FILE_SYSTEMS
    keeper = keeper_of(daemon)
    assert keeper.memory_info().rss < 64 * MIB
    kill(keeper.pid)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    thawed(many)


def test_a_picture_of_them_fits_the_screen(rig: Rig, many: list[str]) -> None:
    daemon = rig.daemon([every(many)])
    host = daemon.proxy(timeout=60)
    with Terminal([*CTL, "--agent", daemon.url, "watch"], lines=24, columns=80) as terminal:
        terminal.read_until("THAWED")
        assert host.va.fsfreeze() == FILE_SYSTEMS
        frozen_shown = terminal.read_until("* FROZEN  applications stand still", f"{FILE_SYSTEMS} frozen")
        assert host.va.fsthaw() == FILE_SYSTEMS
        thawed_shown = terminal.read_until("THAWED", "last freeze")
        terminal.type(b"\x03")
        assert terminal.wait() == 0
    for shown in (frozen_shown, thawed_shown):
        assert len(shown.splitlines()) <= 24, shown


def test_levels_upon_levels(rig: Rig) -> None:
    """The deepest freezes first and thaws last; in any other order this would not end."""
    levels: list[LoopFs] = []
    for i in range(LEVELS):
        levels.append(rig.fs("ext4", (64 - 4 * i) * MIB, levels[-1] if levels else None))
    daemon = rig.daemon(levels)
    host = daemon.proxy()
    plan = host.va.fsplan()
    assert [m["mountpoint"] for m in plan["mounts"]] == [str(fs) for fs in reversed(levels)]
    for _ in range(2):
        for fs in levels:
            fs.fill(MIB)
        assert host.va.fsfreeze() == LEVELS
        assert frozen([str(fs) for fs in levels]) == LEVELS
        assert host.va.fsthaw() == LEVELS
    assert host.va.fsfreeze() == LEVELS
    kill(keeper_of(daemon).pid)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    for fs in (levels[0], levels[-1]):
        fs.assert_writable()


def test_mount_points_as_long_as_can_be(rig: Rig) -> None:
    """Bytes that are no text, line ends and backslashes in 4,095 bytes: in the plan, the record, titles and the log."""
    fs = rig.fs("ext4")
    root = rig.area.fresh("long")
    folder = os.fsencode(root)
    while len(folder) < 4095 - 256:
        folder += b"/" + (b"\xff\n\\ \x1b" * 51)[:250]
    folder += b"/" + b"\xfe" * (4095 - len(folder) - 1)
    os.makedirs(folder)
    long = Path(os.fsdecode(folder))
    assert len(os.fsencode(long)) == 4095
    linux.umount(str(fs))
    linux.mount(fs.device, str(long), "ext4")
    try:
        daemon = rig.daemon([f"{root}/*"])
        host = daemon.proxy()
        assert host.va.fsfreeze() == 1
        assert linux.is_frozen(str(long))
        (mount,) = [m for m in daemon.status()["mounts"] if m["state"] == "frozen"]
        assert mount["mountpoint"].startswith(str(root))
        assert host.va.fsthaw() == 1
        assert host.va.fsfreeze() == 1
        kill(keeper_of(daemon).pid)
        assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
        assert not linux.is_frozen(str(long))
        for words in (["status"], ["plan"]):
            told = subprocess.run([*CTL, "--agent", daemon.url, *words], capture_output=True, check=True, timeout=30)
            assert b"\x1b[31m" not in told.stdout
    finally:
        guardian.thaw_all(str(root))
        linux.umount(str(long))
        linux.mount(fs.device, str(fs), "ext4")

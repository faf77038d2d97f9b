"""File systems that are mounted only in another mount namespace, and a daemon that is in one of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import xmlrpc.client
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.processes import Child, act
from harness.rig import Rig

SHORT = ["--freeze-limit", "5", "--sync-limit", "20"]
HOLD = 'mount --make-rprivate / && mount "$1" "$2" && echo ready && exec sleep 600'
CHROOTED = 'mount --make-rprivate / && mount "$1" "$2" && { chroot /usr sleep 600 & } && echo ready && exec sleep 600'


@contextlib.contextmanager
def only_elsewhere(rig: Rig, fs: LoopFs, script: str = HOLD) -> Iterator[Child]:
    """Have a file system mounted by a process in a mount namespace of its own, and nowhere else."""
    place = rig.area.fresh("there")
    place.mkdir()
    child = Child(["unshare", "--mount", "sh", "-ec", script, "sh", fs.device, str(place)], "holder")
    rig.area.guard(child.pid)
    try:
        assert child.line(20) == "ready"
        linux.umount(str(fs), linux.MNT_DETACH)
        child.name = str(place)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.close()
        fs.mount()


def inside(child: Child) -> str:
    return f"/proc/{child.pid}/root{child.name}"


def is_frozen(child: Child) -> bool:
    return act("frozen", inside(child)) == "yes"


def daemon_for(rig: Rig, include: Sequence[LoopFs], state_dir: Path | None = None) -> Daemon:
    """Return a daemon that freezes these, wherever they are mounted."""
    devices = [os.stat(fs.device).st_rdev for fs in include]
    numbers = [f"dev:{os.major(device)}:{os.minor(device)}" for device in devices]
    return rig.daemon(numbers, SHORT, state_dir=state_dir)


def keeper(daemon: Daemon) -> int:
    (pid,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return pid


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_file_system_that_only_another_namespace_has(rig: Rig, kind: str) -> None:
    fs, other = rig.fs(kind), rig.fs("ext4")
    number = fs.number
    with only_elsewhere(rig, fs) as child:
        daemon = daemon_for(rig, [fs, other])
        host = daemon.proxy()
        mounts = {m["device"]: m for m in host.va.fsplan()["mounts"]}
        assert mounts[number]["namespace"] == f"process {child.pid} (sleep)"
        assert mounts[number]["mountpoint"].startswith(f"/proc/{child.pid}/root{rig.area.root}/")
        assert mounts[other.number]["namespace"] == ""
        assert host.va.fsfreeze({"strict": True}) == 2
        assert is_frozen(child)
        assert host.va.fsthaw() == 2
        assert not is_frozen(child)


def test_an_include_by_path_leaves_it_out(rig: Rig) -> None:
    fs, other = rig.fs("ext4"), rig.fs("ext4")
    number = fs.number
    with only_elsewhere(rig, fs) as child:
        daemon = rig.daemon([rig.everywhere], SHORT)
        host = daemon.proxy()
        (left,) = [m for m in host.va.fsplan()["left_out"] if m["device"] == number]
        assert (left["reason"], left["namespace"]) == ("not-included", f"process {child.pid} (sleep)")
        assert host.va.fsfreeze() == 1
        assert not is_frozen(child)
        other.assert_frozen()
        assert host.va.fsthaw() == 1
        with pytest.raises(xmlrpc.client.Fault, match="matches no file system"):
            host.va.fsfreeze({"include": [child.name]})


@pytest.mark.parametrize("ended", [False, True], ids=["it lives", "it has ended"])
@pytest.mark.parametrize("both", [False, True], ids=["the keeper", "keeper and supervisor"])
def test_it_is_thawed_whoever_dies(rig: Rig, both: bool, ended: bool) -> None:
    """Also if the process by which it was found has ended: then its device is mounted."""
    fs = rig.fs("ext4")
    with only_elsewhere(rig, fs) as child:
        glimpse = os.open(inside(child), os.O_RDONLY | os.O_CLOEXEC)
        daemon = daemon_for(rig, [fs])
        assert daemon.proxy().va.fsfreeze() == 1
        holds = keeper(daemon)
        if ended:
            child.close()
        if both:
            os.kill(holds, signal.SIGSTOP)
            daemon.kill()
        os.kill(holds, signal.SIGKILL)
        if both:
            daemon.wait_orphans()
            assert act("frozen", f"/proc/{os.getpid()}/fd/{glimpse}") == "yes"
            daemon = daemon_for(rig, [fs], state_dir=daemon.state_dir)
        daemon.wait_state("THAWED")
        assert act("frozen", f"/proc/{os.getpid()}/fd/{glimpse}") == "no"
        os.close(glimpse)


def test_a_process_with_another_root_does_not_hide_it(rig: Rig) -> None:
    fs = rig.fs("ext4")
    number = fs.number
    with only_elsewhere(rig, fs, CHROOTED):
        assert [m["device"] for m in daemon_for(rig, [fs]).proxy().va.fsplan()["mounts"]] == [number]


def test_covered_here_and_seen_elsewhere(rig: Rig) -> None:
    """The other namespace shows it, so nothing need be uncovered."""
    fs = rig.fs("xfs")
    with only_elsewhere(rig, fs) as child:
        fs.mount()
        linux.mount("cover", str(fs), "tmpfs")
        daemon = rig.daemon([fs], SHORT)
        (mount,) = daemon.proxy().va.fsplan()["mounts"]
        assert (mount["mountpoint"], mount["namespace"]) == (str(fs), "")
        assert daemon.proxy().va.fsfreeze() == 1
        assert is_frozen(child)
        assert daemon.proxy().va.fsthaw() == 1
        linux.umount(str(fs), linux.MNT_DETACH)
        linux.umount(str(fs), linux.MNT_DETACH)


def test_an_image_that_lies_on_it(rig: Rig) -> None:
    """The order is by device numbers, also through what is mounted only elsewhere."""
    outer = rig.fs("ext4")
    inner = rig.fs("ext4", outer=outer)
    daemon = daemon_for(rig, [outer, inner])
    with only_elsewhere(rig, outer):
        mounts = daemon.proxy().va.fsplan()["mounts"]
        assert [(m["mountpoint"] == str(inner), m["hosts"]) for m in mounts] == [(True, [1]), (False, [])]
        inner.fill(100_000)
        assert daemon.proxy().va.fsfreeze() == 2
        assert daemon.proxy().va.fsthaw() == 2


def test_a_daemon_in_a_namespace_of_its_own_says_so(rig: Rig) -> None:
    """Process 1 is that of a PID namespace; only its namespace of mounts is looked at."""
    fs = rig.fs("ext4")
    program = rig.area.fresh("program")
    program.write_text(
        "#!/bin/sh\n"
        "exec unshare --pid --fork --mount-proc sh -c 'unshare --mount \"$@\" & wait' sh "
        f'{sys.executable} -m virtagent.supervisor.main "$@"\n'
    )
    program.chmod(0o755)
    daemon = rig.daemon([fs], SHORT, program=str(program))
    words = "the agent is in a mount namespace of its own, not in that of process 1"
    assert words in daemon.log()
    assert [note for note in daemon.proxy().va.fsplan()["notes"] if words in note]
    (agent,) = [pid for pid, title in daemon.titles().items() if title.startswith("virtagentd: supervisor")]
    os.kill(agent, signal.SIGTERM)
    assert daemon.process.wait(10) == 0

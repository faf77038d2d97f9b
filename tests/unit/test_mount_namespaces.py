"""Mount namespaces of other processes, from a made-up procfs; and what is planned of what only they have mounted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.counting import assert_linear, calls
from virtagent.agent.api.errors import Fault
from virtagent.agent.api.options import Rules
from virtagent.agent.api.records import Plan
from virtagent.agent.worker import namespaces
from virtagent.agent.worker.mountinfo import MountInfo, Superblock, superblocks
from virtagent.agent.worker.namespaces import Namespace
from virtagent.agent.worker.plan import BlockDevice, Survey
from virtagent.agent.worker.view import View

TYPES = frozenset({"ext4", "xfs", "btrfs"})
ROOT = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
HOME = "9 1 8:2 / /home rw - ext4 /dev/sda2 rw\n"
Add = Callable[..., Path]


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Make a process; "self" is in namespace 1."""

    def make(pid: int | str, namespace: int, text: str = ROOT, root: str = "/", **files: str) -> Path:
        folder = tmp_path / str(pid)
        (folder / "ns").mkdir(parents=True)
        (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (folder / "root").symlink_to(root)
        (folder / "mountinfo").write_text(text)
        for name, content in files.items():
            (folder / name).write_text(content)
        return folder

    make("self", 1)
    (tmp_path / "meminfo").touch()
    return make


def others(tmp_path: Path, known: tuple[str, ...] = ("8:1",)) -> dict[int, set[str]]:
    found, notes = namespaces.others(known, TYPES, str(tmp_path))
    assert notes == []
    return {one.pid: set(one.view.devices) for one in found}


def test_one_process_of_each_other_namespace_is_asked(add: Add, tmp_path: Path) -> None:
    add(1, 1, HOME)
    for pid in (10, 11, 12):
        add(pid, 2, ROOT + HOME)
    add(20, 3, ROOT + "9 1 8:3 / /srv rw - xfs /dev/sda3 rw\n")
    assert others(tmp_path) == {10: {"8:1", "8:2"}, 20: {"8:1", "8:3"}}


def test_a_namespace_with_nothing_new_is_none(add: Add, tmp_path: Path) -> None:
    tmpfs = "8 1 0:50 / /tmp rw - tmpfs tmpfs rw\n7 1 0:51 / / rw - overlay overlay rw\n"
    add(10, 2, ROOT + tmpfs)
    assert others(tmp_path) == {}
    add(20, 3, ROOT + tmpfs + "6 1 0:52 / /pool rw - btrfs /dev/sdc rw\n")
    assert set(others(tmp_path)) == {20}, "its number says nothing of a device, but its type does"


def test_who_has_changed_its_root_is_asked_last(add: Add, tmp_path: Path) -> None:
    add(10, 2, ROOT, root="/var/empty")
    add(11, 2, ROOT + HOME)
    assert set(others(tmp_path)) == {11}
    add(20, 3, ROOT + HOME, root="/var/empty")
    assert set(others(tmp_path)) == {11, 20}, "better than nobody"


def test_processes_end_meanwhile_and_some_may_not_be_looked_at(add: Add, tmp_path: Path) -> None:
    (add(9, 2) / "ns/mnt").unlink()
    (add(10, 3) / "mountinfo").unlink()
    add(11, 3, ROOT + HOME)
    (add(12, 4) / "mountinfo").write_text("garbage\n")
    assert set(others(tmp_path)) == {11}


def test_a_mountinfo_without_end_is_read_so_far(add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "MOUNTINFO_MAX", 1000)
    monkeypatch.setattr(namespaces, "_CHUNK", 100)
    add(10, 2, HOME + ROOT * 100)
    found, notes = namespaces.others(("8:1",), TYPES, str(tmp_path))
    assert [one.pid for one in found] == [10]
    assert notes == ["the mount namespace of process 10 was not read to its end: it is too long"]


def test_namespaces_without_number_take_a_second(add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "PATIENCE", -1.0)
    add(10, 2, ROOT + HOME)
    assert namespaces.others(("8:1",), TYPES, str(tmp_path))[1] == [
        "not all other mount namespaces were read: they took too long"
    ]


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        ("0::/system.slice/docker-" + "0123456789ab" + "c" * 52 + ".scope\n", "0123456789ab"),
        ("12:cpu:/docker/" + "a" * 64 + "\n", "a" * 12),
        ("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + "b" * 64 + ".scope\n", "b" * 12),
        ("0::/machine.slice/libpod-" + "d" * 64 + ".scope/container\n", "d" * 12),
        ("0::/lxc/web/init.scope\n", "web"),
        ("0::/lxc.payload.web/x\n", "web"),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", ""),
        ("0::/system.slice/cron.service\n", ""),
        ("", ""),
    ],
)
def test_the_container_is_what_the_cgroup_says(cgroup: str, container: str) -> None:
    assert namespaces.container_of(cgroup) == container


def test_a_process_is_named(add: Add, tmp_path: Path) -> None:
    add(10, 2, comm="my\x1b[2J app\n", cgroup="0::/lxc/web\n")
    assert namespaces.described(10, str(tmp_path)) == r"process 10 (my\x1b[2J app), container web"
    assert namespaces.described(11, str(tmp_path)) == "process 11 (?)"


def test_whether_this_process_is_in_a_namespace_of_its_own(add: Add, tmp_path: Path) -> None:
    assert namespaces.is_own(str(tmp_path)) is None, "there is no process 1 to be seen"
    add(1, 1)
    assert namespaces.is_own(str(tmp_path)) is False
    os.unlink(tmp_path / "1/ns/mnt")
    (tmp_path / "1/ns/mnt").symlink_to("mnt:[2]")
    assert namespaces.is_own(str(tmp_path)) is True


# What is planned of it

OWN = MountInfo(1, 0, "8:1", "/", "/", "ext4", "/dev/sda1", "rw")
DISKS = [BlockDevice(f"sda{i}", f"8:{i}") for i in range(1, 6)]


def there(number: str, point: str, mount_id: int, fstype: str = "ext4") -> MountInfo:
    return MountInfo(mount_id, 100, number, "/", point, fstype, f"/dev/sda{number[2:]}", "rw")


def found(*mounts: MountInfo) -> list[Superblock]:
    namespace = Namespace(77, View([OWN._replace(mount_id=100), *mounts]))
    return [*superblocks([OWN]), *namespaces.only_there([namespace], {"8:1"}, TYPES)]


def survey(*mounts: MountInfo, **rules: Any) -> Survey:
    return Survey(found(*mounts), TYPES, DISKS, Rules(**rules))


def reasons(plan: Plan) -> dict[str, str]:
    return {m.device: m.reason for m in plan.left_out}


def test_it_is_named_by_a_process_that_has_it() -> None:
    plan = survey(there("8:2", "/data", 101)).plan()
    (mount,) = [m for m in plan.mounts if m.device == "8:2"]
    assert mount.mountpoint == "/proc/77/root/data"
    assert mount.namespace.startswith("process 77 (")
    assert [m.namespace for m in plan.mounts if m.device == "8:1"] == [""]
    (root,) = [s for s in found(there("8:2", "/", 101)) if s.namespace]
    assert root.points == ("/proc/77/root",)


def test_only_what_is_on_disks_is_taken_from_others() -> None:
    mounts = [there("8:2", "/d", 101), there("0:50", "/t", 102, "tmpfs"), there("0:51", "/o", 103, "overlay")]
    mounts += [there("0:52", "/f", 104, "fuse.x"), there("0:53", "/n", 105, "nfs4"), there("0:54", "/z", 106, "zfs")]
    assert [s.info.device for s in found(*mounts)] == ["8:1", "8:2", "0:54"]


def test_the_mount_that_shows_it_is_named() -> None:
    below, over = there("8:2", "/a", 101), there("8:3", "/a", 102)._replace(parent_id=101)
    other = there("8:2", "/b", 103)
    assert [s.points for s in found(below, over, other)[1:]] == [("/proc/77/root/b",), ("/proc/77/root/a",)]


@pytest.mark.parametrize(
    ("rules", "planned"),
    [
        ({}, True),
        ({"include": ("/*",)}, False),
        ({"include": ("*",)}, False),
        ({"include": ("/proc/77/root/*",)}, False),
        ({"include": ("/*", "dev:8:2")}, True),
        ({"include": ("type:ext?",)}, True),
        ({"include": ("dev:/dev/sda2",), "request_include": ("type:ext4",)}, True),
        ({"include": ("type:ext4",), "request_include": ("/*",)}, False),
        ({"literal": ("/data", "/")}, False),
        ({"exclude": ("/proc/*", "/data")}, True),
        ({"exclude": ("*",)}, True),
        ({"exclude": ("dev:8:2",)}, False),
        ({"request_exclude": ("type:ext4",)}, False),
    ],
)
def test_which_selectors_mean_it(rules: dict[str, Any], planned: bool) -> None:
    plan = survey(there("8:2", "/data", 101), **rules).plan()
    assert ("8:2" in {m.device for m in plan.mounts}) == planned
    if not planned:
        assert reasons(plan)["8:2"] == ("excluded" if "exclude" in next(iter(rules)) else "not-included")


def test_a_path_in_a_request_does_not_mean_it() -> None:
    with pytest.raises(Fault, match="include '/data' matches no file system"):
        survey(there("8:2", "/data", 101), request_include=("/data",)).plan()


def test_it_counts_as_mounted_last() -> None:
    """What is not understood lies on all that was mounted before: also on what only others have."""
    served = MountInfo(5, 1, "43:0", "/", "/nbd", "ext4", "/dev/nbd0", "rw")
    nbd = BlockDevice("nbd0", "43:0", understood=False)
    namespace = Namespace(77, View([there("8:2", "/data", 101), there("43:1", "/nbd", 102)]))
    blocks = [*superblocks([OWN, served]), *namespaces.only_there([namespace], {"8:1", "43:0"}, TYPES)]
    devices = [*DISKS, nbd, BlockDevice("nbd1", "43:1", understood=False)]
    plan = Survey(blocks, TYPES, devices, Rules()).plan()
    on = {m.device: {plan.mounts[i].device for i in m.hosts} for m in plan.mounts}
    assert on == {"8:1": set(), "43:0": {"8:1"}, "8:2": set(), "43:1": {"8:1", "43:0", "8:2"}}


def test_under_strict_fuse_counts_only_where_the_agent_sees_it() -> None:
    on_disk = there("8:2", "/f", 101, "fuseblk")
    plan = survey(on_disk).plan()
    assert [(m.reason, m.strict_error) for m in plan.left_out] == [("fuse", True)]


# Thousands of mounts


def lines_of(count: int) -> str:
    known = (f"{n} 1 8:1 / /c/{n} rw - ext4 /dev/sda1 rw\n" for n in range(2, count))
    return ROOT + "".join(known)


def test_what_is_known_costs_a_glance(add: Add, tmp_path: Path) -> None:
    """A container's thousands of mounts of what the agent sees itself are not even parsed."""
    texts = {size: lines_of(size) for size in (100, 400)}
    for size, text in texts.items():
        add(size, size, text)
    assert calls(lambda: namespaces._is_of_interest(texts[400], {"8:1"}, TYPES)) < 5 * 400
    assert others(tmp_path) == {}


@pytest.mark.parametrize("depth", [1, 400])
def test_the_ways_to_ten_thousand_mounts_take_what_each_takes(depth: int) -> None:
    """A tenth are covered, all at one place."""

    def ways(count: int) -> Callable[[], object]:
        mounts = [OWN]
        for n in range(2, count + 2):
            on = mounts[-1] if n % 10 == 0 else OWN
            point = on.mountpoint if n % 10 == 0 and on is not OWN else f"/{n}" + "/d" * depth
            mounts.append(MountInfo(n, on.mount_id, f"8:{n}", "/", point, "ext4", "/dev/x", "rw"))

        def look() -> object:
            view = View(mounts)
            return [(view.ways(device, safe=True), view.covered(device)) for device in view.devices]

        return look

    assert_linear(ways, 2500)

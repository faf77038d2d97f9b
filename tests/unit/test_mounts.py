"""The plan: which file systems are frozen, in which order, and what is left out; all from text, with no file system."""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgpack
import pytest
from fakes.counting import assert_linear
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.options import Rules
from virtagent.agent.api.records import Plan
from virtagent.agent.worker.mountinfo import (
    MountInfo,
    Server,
    named_devices,
    parse_filesystems,
    parse_mountinfo,
    server_of,
    superblocks,
    upper_folder,
)
from virtagent.agent.worker.plan import BlockDevice, Survey, build_plan
from virtagent.agent.worker.reach import walk_down
from virtagent.agent.worker.view import View

BLOCK_TYPES = frozenset({"ext4", "xfs", "btrfs", "vfat", "fuseblk", "bcachefs", "squashfs", "f2fs", "jfs", "reiserfs"})
ROOT = MountInfo(1, 0, "8:1", "/", "/", "ext4", "/dev/sda1", "rw")
IDS = itertools.count(10_000)
SDA = BlockDevice("sda", "8:0")
SDA1 = BlockDevice("sda1", "8:1", disk="sda")


def mount(device: str, point: str, fstype: str = "ext4", **fields: Any) -> MountInfo:
    defaults: dict[str, Any] = {"parent_id": 1, "root": "/", "source": "none", "super_options": "rw"}
    defaults["mount_id"] = next(IDS)
    return MountInfo(device=device, mountpoint=point, fstype=fstype, **{**defaults, **fields})


def loop(number: int, path: str, **fields: Any) -> BlockDevice:
    """Return a loop device over a file or a device; `placed` finds out on what that lies."""
    below = {"slaves": (path.removeprefix("/dev/"),)} if path.startswith("/dev/") else {"file_on": path}
    return BlockDevice(f"loop{number}", f"7:{number}", **{**below, **fields})


def placed(mounts: Sequence[MountInfo], devices: Sequence[BlockDevice]) -> list[BlockDevice]:
    """Return the devices with the number of the file system for the path of each loop device's file."""

    def holder(path: str) -> str:
        at = {m.mountpoint: m.device for m in mounts}
        return max(((len(p), d) for p, d in at.items() if f"{path}/".startswith(f"{p.rstrip('/')}/")))[1]

    return [replace(d, file_on=holder(d.file_on)) if d.file_on.startswith("/") else d for d in devices]


def plan(
    mounts: Sequence[MountInfo],
    devices: Sequence[BlockDevice] = (),
    types: frozenset[str] = BLOCK_TYPES,
    uppers: Mapping[str, str] = MappingProxyType({}),
    **rules: Any,
) -> Plan:
    """Return the plan of these mounts over a root; a mounted device that is not named is a plain disk."""
    mounts = [ROOT, *mounts]
    known = {SDA.number, SDA1.number, *(d.number for d in devices)}
    numbers = {m.device for m in mounts} - known
    disks = [BlockDevice(f"disk{n.replace(':', '-')}", n) for n in sorted(numbers) if not n.startswith("0:")]
    return build_plan(mounts, types, [SDA, SDA1, *disks, *placed(mounts, devices)], Rules(**rules), uppers)


def levels(found: Plan) -> dict[str, int]:
    return {m.mountpoint: m.level for m in found.mounts}


def lies_on(found: Plan) -> dict[str, set[str]]:
    return {m.mountpoint: {found.mounts[i].mountpoint for i in m.hosts} for m in found.mounts}


def reasons(found: Plan) -> dict[str, str]:
    return {m.mountpoint: m.reason for m in found.left_out}


def disks(found: Plan, point: str) -> tuple[str, ...]:
    return next(m.disks for m in found.mounts if m.mountpoint == point)


# What serves, and what lies below


@pytest.mark.parametrize(
    ("fstype", "server"),
    [
        ("ext4", Server.KERNEL),
        ("fusectl", Server.KERNEL),
        ("nfsd", Server.KERNEL),
        ("nfs4", Server.NETWORK),
        ("virtiofs", Server.NETWORK),
        ("fuse", Server.FUSE),
        ("fuse.sshfs", Server.FUSE),
        ("fuseblk", Server.FUSE_ON_DISK),
        ("fuseblk.ntfs-3g", Server.FUSE_ON_DISK),
    ],
)
def test_who_serves_a_type(fstype: str, server: Server) -> None:
    assert server_of(fstype) is server


def test_walking_down_yields_each_once_a_branch_at_a_time() -> None:
    below = {"a": ["b", "c"], "b": ["d"], "c": ["d", "a"], "d": []}
    assert list(walk_down(["a"], below.__getitem__)) == ["a", "b", "d", "c"]
    assert list(walk_down(["d", "c"], below.__getitem__)) == ["d", "c", "a", "b"]
    assert list(walk_down([], below.__getitem__)) == []


# mountinfo


def test_a_line_gives_its_fields() -> None:
    text = "36 35 98:0 /sub /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n"
    assert parse_mountinfo(text) == [
        MountInfo(36, 35, "98:0", "/sub", "/mnt2", "ext3", "/dev/root", "rw,errors=continue")
    ]


def test_no_optional_fields_and_an_empty_source() -> None:
    (found,) = parse_mountinfo("36 35 0:40 / /mnt rw - tmpfs  rw\n")
    assert (found.fstype, found.source, found.super_options) == ("tmpfs", "", "rw")


def test_no_mounts() -> None:
    assert parse_mountinfo("") == []


def test_other_line_ends_are_part_of_a_path() -> None:
    point = "/a\rb\x0bc\x0cd\x1ce\x85f\u2028g"
    assert parse_mountinfo(f"1 0 8:1 / {point} rw - ext4 x rw\n")[0].mountpoint == point


def test_octal_escapes_of_bytes_that_are_no_utf8() -> None:
    (found,) = parse_mountinfo("1 0 8:1 / /a\\040\\377\\303\\244\udcfe\\134040\\9\\04 rw - ext4 x rw\n")
    assert found.mountpoint.encode("utf-8", "surrogateescape") == b"/a \xff\xc3\xa4\xfe\\040\\9\\04"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "garbage",
        "36 35 98:0 / /mnt rw shared:1",
        "36 35 98:0 / /mnt rw - ext3 /dev/root",
        "36 35 98:0 / rw - ext3 /dev/root rw",
        "x 35 98:0 / /mnt rw - ext3 /dev/root rw",
        "36 -5 98:0 / /mnt rw - ext3 /dev/root rw",
        "36 35 98 / /mnt rw - ext3 /dev/root rw",
        "36 35 98: / /mnt rw - ext3 /dev/root rw",
        "36 35 98:x / /mnt rw - ext3 /dev/root rw",
        "36 35 98:0 / mnt rw - ext3 /dev/root rw",
    ],
)
def test_a_malformed_line_is_named(line: str) -> None:
    good = "36 35 98:0 / /mnt rw - ext3 /dev/root rw"
    with pytest.raises(ValueError, match="line 2 "):
        parse_mountinfo(f"{good}\n{line}\n{good}\n")


def kernel_escape(text: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)


BYTES = st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@given(st.lists(st.tuples(BYTES, BYTES, BYTES)))
def test_what_the_kernel_escapes_comes_back(texts: list[tuple[str, str, str]]) -> None:
    lines = [
        f"1 0 8:1 /{kernel_escape(root)} /{kernel_escape(point)} rw - ext4 {kernel_escape(source)} rw\n"
        for root, point, source in texts
    ]
    assert [(m.root[1:], m.mountpoint[1:], m.source) for m in parse_mountinfo("".join(lines))] == texts


GOOD = "36 35 98:0 / /a\\040b rw master:1 - ext3 /dev/root rw,errors=continue\n"
SCRAPS = st.sampled_from([*GOOD, GOOD, "\\", " - ", "/", "\0", "\udc80", "\ud800", "9" * 5000, "\n"])


@given(st.one_of(st.text(), st.lists(SCRAPS).map("".join)))
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_mountinfo(text)
    except ValueError as error:
        assert str(error).startswith("mountinfo line ")  # noqa: PT017


@given(st.integers(0, 3 * len(GOOD)))
def test_a_text_that_is_cut_is_parsed_or_refused(end: int) -> None:
    try:
        assert len(parse_mountinfo((3 * GOOD)[:end])) == -(-end // len(GOOD))
    except ValueError as error:
        assert str(error).startswith(f"mountinfo line {end // len(GOOD) + 1} ")  # noqa: PT017


def test_types_that_are_not_nodev() -> None:
    assert parse_filesystems("nodev\tsysfs\nnodev\ttmpfs\n\text3\n\text4\n") == {"ext3", "ext4"}


# What is left out


@pytest.mark.parametrize(
    "fstype",
    [*["smbfs", "cifs", "smb3", "nfs", "nfs4", "ceph", "9p", "afs"], "fuse", "fuse.sshfs", "fuseblk", "virtiofs"],
)
def test_what_others_serve_is_never_planned_even_if_its_type_is_a_block_type(fstype: str) -> None:
    found = plan([mount("0:50", "/net", fstype)], types=BLOCK_TYPES | {fstype})
    assert reasons(found) == {"/net": "fuse" if fstype.startswith("fuse") else "network"}


@pytest.mark.parametrize(
    ("fields", "reason", "is_error"),
    [
        ({"fstype": "fuseblk", "source": "/dev/sdb1"}, "fuse", True),
        ({"fstype": "fuse.fuse2fs", "source": "/dev/sdb1", "super_options": "rw,user_id=0,group_id=0"}, "fuse", True),
        ({"fstype": "fuse.x", "source": "/dev/sdb1", "super_options": "rw,user_id=1000,group_id=0"}, "fuse", False),
        ({"fstype": "fuse.x", "source": "x", "super_options": "rw,user_id=0,group_id=0"}, "fuse", False),
        ({"fstype": "nfs4", "source": "/dev/sdb1"}, "network", False),
        ({"fstype": "zfs", "source": "tank/a"}, "zfs", True),
        ({"fstype": "zfs", "source": "tank/a", "super_options": "ro"}, "zfs", False),
        ({"super_options": "rw,errors=remount-ro,emergency_ro"}, "damaged", True),
        ({"super_options": "rw,shutdown"}, "damaged", True),
        ({"super_options": "ro,emergency_ro"}, "read-only", False),
        ({"fstype": "proc"}, "pseudo", False),
    ],
)
def test_what_it_is_and_whether_that_is_an_error_under_strict(
    fields: dict[str, Any], reason: str, is_error: bool
) -> None:
    (left,) = plan([mount("8:16", "/x", **fields)]).left_out
    assert (left.reason, left.strict_error) == (reason, is_error)
    (left,) = plan([mount("8:16", "/x", **fields)], exclude=("/x",)).left_out
    assert (left.reason, left.strict_error) == (reason, False), "what was not asked for is no error"


@pytest.mark.parametrize(
    ("source", "leads_to", "is_error"), [("/dev/fuse", "", False), ("/dev/vg/lv", "/dev/dm-0", True)]
)
def test_a_source_below_dev_need_not_be_a_disk(source: str, leads_to: str, is_error: bool) -> None:
    served = mount("0:60", "/x", "fuse", source=source, super_options="rw,user_id=0,group_id=0")
    found = Survey(superblocks([ROOT, served]), BLOCK_TYPES, [SDA, SDA1], Rules(), {source: leads_to}).plan()
    assert [left.strict_error for left in found.left_out] == [is_error]


# How it is reached


def survey(*mounts: MountInfo, **rules: Any) -> Survey:
    found = superblocks([ROOT, *mounts])
    disks = [BlockDevice(f"disk{m.device[2:]}", m.device) for m in mounts if m.device.startswith("8:")]
    return Survey(found, BLOCK_TYPES, [SDA, SDA1, *disks], Rules(**rules))


def covering(point: str = "/srv") -> tuple[MountInfo, MountInfo]:
    return mount("8:2", point, mount_id=10), mount("8:3", point, mount_id=11, parent_id=10)


def test_what_cannot_be_reached_is_left_out() -> None:
    found = survey(*covering()).plan(unreachable={"8:2"})
    assert reasons(found) == {"/srv": "unreachable"}
    assert [m.device for m in found.mounts if m.mountpoint == "/srv"] == ["8:3"]
    assert found.left_out[0].strict_error
    assert {m.device for m in survey(*covering()).plan().mounts} == {"8:1", "8:2", "8:3"}, "reached in some way"


def test_what_is_not_chosen_is_not_reached_for() -> None:
    assert survey(*covering(), mount("0:50", "/net", "nfs4"), exclude=("dev:8:2",)).chosen == ["8:1", "8:3"]
    found = survey(*covering(), exclude=("dev:8:2",)).plan(unreachable={"8:2"})
    assert reasons(found) == {"/srv": "excluded"}


def test_an_include_of_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(Fault, match=r"include 'dev:8:2' matches only what is left out: /srv \(unreachable\)"):
        survey(*covering(), request_include=("dev:8:2",)).plan(unreachable={"8:2"})


def test_a_list_of_mount_points_means_what_is_seen_there() -> None:
    assert survey(*covering(), literal=("/srv",)).chosen == ["8:3"]
    assert survey(*covering(), mount("8:2", "/bind"), literal=("/srv",)).chosen == ["8:3"]


def test_a_long_path_is_not_the_name_of_a_file_system_that_has_another() -> None:
    long = "/" + "\udcff" * 4095
    assert the(plan([mount("8:2", long), mount("8:2", "/b", root="/sub")]), "8:2") == ("/b", (long,))


@pytest.mark.parametrize("fstype", ["fuse.x", "nfs4", "autofs"])
def test_a_way_past_servers_is_chosen_if_there_is_one(fstype: str) -> None:
    behind = [mount("0:50", "/f", fstype, mount_id=20), mount("8:2", "/f/in", parent_id=20)]
    other = mount("8:2", "/other", root="/sub")
    assert the(plan([*behind, other]), "8:2") == ("/other", ("/f/in",))
    assert the(plan(behind), "8:2") == ("/f/in", ())
    view = View([ROOT, *behind, other])
    assert view.ways("8:2", safe=True) == [other]
    assert view.ways("8:2", safe=False) == [behind[1]]


def test_the_mount_point_that_led_there_is_named_first() -> None:
    fifo, file = mount("8:2", "/fifo", root="/fifo"), mount("8:2", "/file", root="/file")
    assert the(survey(fifo, file).plan(points={"8:2": "/file"}), "8:2") == ("/file", ("/fifo",))
    assert the(survey(fifo, file).plan(points={"8:2": ""}), "8:2") == ("/fifo", ("/file",))


def uncovered(mounts: Sequence[MountInfo], one: MountInfo) -> list[str]:
    """Return the paths that are detached, one after the other, until the mount is seen."""
    paths: list[str] = []
    left = list(mounts)
    while path := (view := View(left)).cover(one):
        paths.append(path)
        gone = {view.leads_to[path]}
        while more := {m.mount_id for m in left if m.parent_id in gone} - gone:
            gone |= more
        assert one.mount_id not in gone, "it went with its cover"
        left = [m for m in left if m.mount_id not in gone]
    return paths


def test_what_covers_a_mount_is_found_from_the_root_on() -> None:
    below, over = covering()
    assert uncovered([ROOT, below, over], below) == ["/srv"]
    assert uncovered([ROOT, below, over], over) == []
    again = mount("8:4", "/srv", parent_id=11)
    inside = mount("8:5", "/srv/in", parent_id=10)
    assert uncovered([ROOT, below, over, again, inside], below) == ["/srv", "/srv"]
    assert uncovered([ROOT, below, over, again, inside], inside) == ["/srv", "/srv"]
    parent = mount("0:50", "/srv", "fuse.x", mount_id=30)
    deep = mount("8:6", "/srv/a/b", mount_id=31)
    on_deep = mount("8:7", "/srv/a/b", parent_id=31)
    assert uncovered([ROOT, deep, on_deep, parent], deep) == ["/srv", "/srv/a/b"]
    assert uncovered([ROOT, deep, on_deep, parent], on_deep) == ["/srv"]


@given(st.data())
def test_whatever_covers_a_mount_it_comes_to_light_without_its_parents_going(data: st.DataObject) -> None:
    mounts = [ROOT]
    for number in range(2, data.draw(st.integers(2, 9))):
        parent = data.draw(st.sampled_from(mounts))
        below = data.draw(st.sampled_from(["", "/a", "/a/b", "/c"]))
        point = f"{parent.mountpoint.rstrip('/')}{below}" or "/"
        if point != "/":
            mounts.append(mount(f"8:{number}", point, mount_id=number, parent_id=parent.mount_id))
    for one in mounts:
        uncovered(mounts, one)


@pytest.mark.parametrize("fstype", ["tmpfs", "proc", "overlay", "fusectl", "unheardof"])
def test_types_without_a_block_device_are_pseudo(fstype: str) -> None:
    assert reasons(plan([mount("0:50", "/x", fstype)])) == {"/x": "pseudo"}


def test_autofs_is_pseudo_whatever_the_kernel_says() -> None:
    assert reasons(plan([mount("0:50", "/x", "autofs")], types=BLOCK_TYPES | {"autofs"})) == {"/x": "pseudo"}


def test_read_only_is_the_superblock_not_the_mount() -> None:
    text = "2 1 8:2 / /a ro,nosuid - ext4 /dev/sda2 rw,errors=remount-ro\n3 1 8:3 / /b rw - ext4 /dev/sda3 ro,x\n"
    found = plan(parse_mountinfo(text))
    assert reasons(found) == {"/b": "read-only"}
    assert set(levels(found)) == {"/", "/a"}


def test_left_out_file_systems_are_one_entry_a_superblock() -> None:
    found = plan([mount("0:50", "/a", "nfs"), mount("0:50", "/b", "nfs", root="/sub"), mount("0:50", "/c", "nfs")])
    (left_out,) = found.left_out
    assert (left_out.mountpoint, left_out.aliases, left_out.device) == ("/a", ("/b", "/c"), "0:50")


def test_what_it_is_comes_before_what_was_asked() -> None:
    mounts = [
        mount("0:50", "/a1", "nfs", super_options="ro"),
        mount("0:51", "/a2", "tmpfs", super_options="ro"),
        mount("8:2", "/a3", super_options="ro"),
        mount("8:3", "/a4"),
        mount("8:4", "/b"),
    ]
    assert list(reasons(plan(mounts, exclude=("/a*",), request_include=("/",))).items()) == [
        ("/a1", "network"),
        ("/a2", "pseudo"),
        ("/a3", "read-only"),
        ("/a4", "excluded"),
        ("/b", "not-included"),
    ]


# Globs

SRV = [mount("8:2", "/srv/a"), mount("8:3", "/srv/b/c"), mount("8:4", "/home")]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, {"/", "/home", "/srv/a", "/srv/b/c"}),
        ({"include": ("/srv/*",)}, {"/srv/a", "/srv/b/c"}),
        ({"request_include": ("/srv/*",)}, {"/srv/a", "/srv/b/c"}),
        ({"include": ("/srv/*",), "request_include": ("*/c",)}, {"/srv/b/c"}),
        ({"include": ("/srv/?", "/home")}, {"/srv/a", "/home"}),
        ({"include": ("/srv/[!b]",)}, {"/srv/a"}),
        ({"include": ("/SRV/*",)}, set()),
        ({"include": ("/srv",)}, set()),
        ({"exclude": ("/srv/*",)}, {"/", "/home"}),
        ({"request_exclude": ("/srv/*",)}, {"/", "/home"}),
        ({"exclude": ("/srv/a",), "request_exclude": ("/",)}, {"/srv/b/c", "/home"}),
        ({"include": ("/srv/*",), "request_exclude": ("*/a",)}, {"/srv/b/c"}),
        ({"literal": ("/home", "/typo", "/srv/*")}, {"/home"}),
        ({"literal": ()}, set()),
        ({"literal": ("/home", "/srv/a"), "include": ("/srv/*",)}, {"/srv/a"}),
        ({"literal": ("/home", "/srv/a"), "exclude": ("/srv/*",)}, {"/home"}),
    ],
)
def test_rules(rules: dict[str, Any], expected: set[str]) -> None:
    assert set(levels(plan(SRV, **rules))) == expected


@pytest.mark.parametrize(
    ("rules", "planned"),
    [
        ({"request_include": ("/alias",)}, True),
        ({"include": ("/alias",)}, True),
        ({"literal": ("/alias",)}, True),
        ({"exclude": ("/alias",)}, False),
        ({"request_exclude": ("/alias",)}, False),
    ],
)
def test_a_glob_is_matched_against_every_mount_point(rules: dict[str, Any], planned: bool) -> None:
    found = plan([mount("8:2", "/srv"), mount("8:2", "/alias")], **rules)
    assert ("/srv" in levels(found)) is planned


@pytest.mark.parametrize(
    ("rules", "glob"),
    [
        ({"request_include": ("/srv/*", "/typo")}, "/typo"),
        ({"request_include": ("/srv/*", "/home"), "include": ("/srv/*",)}, "/home"),
        ({"request_include": ("/srv/*", "/home"), "exclude": ("/home",)}, "/home"),
        ({"request_include": ("/srv/*", "/home"), "request_exclude": ("/home",)}, "/home"),
        ({"request_include": ("/srv/*", "/run")}, "/run"),
    ],
)
def test_a_request_include_that_matches_nothing_planned_is_refused_by_name(rules: dict[str, Any], glob: str) -> None:
    with pytest.raises(Fault) as caught:
        plan([*SRV, mount("0:50", "/run", "tmpfs")], **rules)
    assert caught.value.code is Code.PARAMS
    assert repr(glob) in caught.value.text


def test_the_refusal_says_why_what_matched_is_left_out() -> None:
    with pytest.raises(Fault, match=r"/run \(pseudo\)"):
        plan([mount("0:50", "/run", "tmpfs")], request_include=("/run",))


def test_a_daemon_include_that_matches_nothing_is_no_error() -> None:
    assert plan(SRV, include=("/typo",)).mounts == ()


@given(st.text(string.ascii_lowercase + "/*?[]!-^\\&~|.+()", max_size=12))
def test_globs_are_those_of_fnmatchcase(glob: str) -> None:
    found = set(levels(plan(SRV, include=(glob,))))
    assert found == {m.mountpoint for m in [ROOT, *SRV] if fnmatch.fnmatchcase(m.mountpoint, glob)}


DB = BlockDevice("dm-7", "253:7", mapper="vg-db")
POOL = [BlockDevice("sdp", "8:240", pool=("sdp", "sdq")), BlockDevice("sdq", "65:0", pool=("sdp", "sdq"))]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("type:ext?", {"/", "/db", "/srv"}),
        ("type:btrfs", {"/pool"}),
        ("type:", set()),
        ("dev:8:2", {"/srv"}),
        ("dev:65:0", {"/pool"}),
        ("dev:0:40", {"/pool"}),
        ("dev:/dev/sdq", {"/pool"}),
        ("dev:/dev/dm-7", {"/db"}),
        ("dev:/dev/mapper/vg-db", {"/db"}),
        ("dev:/dev/by-uuid/db", {"/db"}),
        ("dev:/dev/gone", set()),
    ],
)
def test_selectors_by_type_and_device(selector: str, expected: set[str]) -> None:
    mounts = [ROOT, mount("8:2", "/srv"), mount("253:7", "/db"), mount("0:40", "/pool", "btrfs", source="/dev/sdp")]
    devices = [SDA, SDA1, BlockDevice("sdb", "8:2"), DB, *POOL]
    links = {"/dev/by-uuid/db": "/dev/dm-7"}

    def chosen(**rules: Any) -> set[str]:
        return set(levels(Survey(superblocks(mounts), BLOCK_TYPES, devices, Rules(**rules), links).plan()))

    assert chosen(include=(selector,)) == expected
    assert chosen(exclude=(selector,)) == {"/", "/db", "/srv", "/pool"} - expected
    if expected:
        assert chosen(request_include=(selector,)) == expected
    else:
        with pytest.raises(Fault, match="matches no file system"):
            chosen(request_include=(selector,))


@pytest.mark.parametrize("selector", ["dev:", "dev:8", "dev:sda", "dev:8:1:2", "dev:8:*"])
def test_a_malformed_device_is_refused_by_name(selector: str) -> None:
    with pytest.raises(Fault, match=re.escape(repr(selector))) as caught:
        plan(SRV, include=(selector,))
    assert caught.value.code is Code.PARAMS


# One entry a superblock


def the(found: Plan, device: str) -> tuple[str, tuple[str, ...]]:
    return next((m.mountpoint, m.aliases) for m in found.mounts if m.device == device)


def test_bind_mounts_are_aliases_in_mount_order() -> None:
    found = plan([mount("8:2", "/b"), mount("8:2", "/a"), mount("8:2", "/c", root="/sub")])
    assert the(found, "8:2") == ("/b", ("/a", "/c"))


def test_the_mount_of_the_whole_file_system_is_the_primary() -> None:
    found = plan([mount("8:2", "/etc/file", root="/file"), mount("8:2", "/srv"), mount("8:2", "/srv2")])
    assert the(found, "8:2") == ("/srv", ("/etc/file", "/srv2"))


def test_without_one_the_first_is_the_primary() -> None:
    home = mount("0:40", "/home", "btrfs", root="/@home")
    assert the(plan([home, mount("0:40", "/var", "btrfs", root="/@var")]), "0:40") == ("/home", ("/var",))


def test_a_covered_mount_is_not_the_primary() -> None:
    lower = mount("8:2", "/srv", mount_id=10)
    over = mount("8:3", "/srv", mount_id=11, parent_id=10)
    assert the(plan([lower, over, mount("8:2", "/bind", root="/sub")]), "8:2") == ("/bind", ("/srv",))
    assert the(plan([lower, over]), "8:3") == ("/srv", ())


def test_a_mount_under_a_covered_folder_is_not_the_primary() -> None:
    mounts = [mount("8:2", "/srv/a", mount_id=10), mount("8:3", "/srv", mount_id=11), mount("8:2", "/bind")]
    assert the(plan(mounts), "8:2") == ("/bind", ("/srv/a",))


def test_the_root_mounted_after_what_was_moved_into_it_covers_nothing() -> None:
    early = mount("8:2", "/usr", mount_id=10, parent_id=27)
    root = mount("8:1", "/", mount_id=27, parent_id=1)
    bind = mount("8:2", "/bind", mount_id=28, parent_id=27)
    found = build_plan([early, root, bind], BLOCK_TYPES, [], Rules())
    assert the(found, "8:2") == ("/usr", ("/bind",))


def test_a_root_that_is_its_own_parent() -> None:
    root = mount("8:1", "/", mount_id=1, parent_id=1)
    mounts = [root, mount("8:2", "/srv/a"), mount("8:3", "/srv", mount_id=11), mount("8:2", "/bind", root="/sub")]
    assert the(build_plan(mounts, BLOCK_TYPES, [], Rules()), "8:2") == ("/bind", ("/srv/a",))


def test_the_same_mount_point_twice_is_named_once() -> None:
    mounts = [mount("8:2", "/srv", mount_id=10), mount("8:2", "/srv", mount_id=11, parent_id=10)]
    assert the(plan(mounts), "8:2") == ("/srv", ())


def test_an_id_that_was_used_again_while_mountinfo_was_read_does_not_hang() -> None:
    mounts = [mount("8:2", "/", mount_id=i, parent_id=j) for i, j in ((5, 0), (6, 5), (5, 6))]
    assert len(build_plan(mounts, BLOCK_TYPES, [], Rules()).mounts) == 1


# What lies on what


def test_a_loop_image_lies_on_the_file_system_that_holds_it() -> None:
    found = plan([mount("8:2", "/srv"), mount("7:3", "/db")], [loop(3, "/srv/images/db.img")])
    assert lies_on(found) == {"/db": {"/srv"}, "/srv": set(), "/": set()}
    assert levels(found) == {"/db": 0, "/srv": 1, "/": 0}
    assert disks(found, "/db") == ("loop3",)


def test_a_file_system_mounted_over_the_folder_of_its_own_image() -> None:
    mounts = [mount("8:2", "/srv", mount_id=10), mount("7:0", "/srv", mount_id=11, parent_id=10)]
    found = plan([*mounts, mount("8:2", "/bind")], [BlockDevice("loop0", "7:0", file_on="8:2")])
    assert lies_on(found) == {"/srv": {"/bind"}, "/bind": set(), "/": set()}


def test_a_partition_of_a_loop_device() -> None:
    devices = [loop(0, "/srv/disk.img"), BlockDevice("loop0p1", "259:0", disk="loop0")]
    found = plan([mount("8:2", "/srv"), mount("259:0", "/db")], devices)
    assert lies_on(found)["/db"] == {"/srv"}
    assert disks(found, "/db") == ("loop0",)


def test_slaves_are_followed_to_the_end() -> None:
    devices = [
        BlockDevice("dm-1", "253:1", mapper="vg-db", slaves=("dm-0",)),
        BlockDevice("dm-0", "253:0", mapper="crypt", slaves=("md0",)),
        BlockDevice("md0", "9:0", slaves=("loop0", "loop1p1")),
        loop(0, "/srv/0.img"),
        loop(1, "/home/1.img"),
        BlockDevice("loop1p1", "259:0", disk="loop1"),
    ]
    found = plan([mount("8:2", "/srv"), mount("8:3", "/home"), mount("253:1", "/db")], devices)
    assert lies_on(found)["/db"] == {"/srv", "/home"}
    assert disks(found, "/db") == ("dm-1",)


@pytest.mark.parametrize("path", ["/dev/loop0", "/dev/dm-0"])
def test_a_loop_device_on_a_block_device(path: str) -> None:
    devices = [loop(1, path), loop(0, "/srv/0.img"), BlockDevice("dm-0", "253:0", mapper="vg-x", slaves=("loop0",))]
    assert lies_on(plan([mount("8:2", "/srv"), mount("7:1", "/db")], devices))["/db"] == {"/srv"}


def test_slaves_in_a_circle_do_not_hang() -> None:
    devices = [BlockDevice("dm-0", "253:0", slaves=("dm-1",)), BlockDevice("dm-1", "253:1", slaves=("dm-0",))]
    assert levels(plan([mount("253:0", "/db")], devices)) == {"/": 0, "/db": 0}


def test_a_partition_writes_to_its_disk_and_a_slash_is_not_a_bang() -> None:
    found = plan([mount("104:1", "/srv")], [BlockDevice("cciss!c0d0p1", "104:1", disk="cciss!c0d0")])
    assert disks(found, "/") == ("sda",)
    assert disks(found, "/srv") == ("cciss/c0d0",)


BTRFS = [loop(0, "/srv/0.img", pool=("loop0", "loop1")), loop(1, "/home/1.img", pool=("loop0", "loop1"))]
HOSTS = [mount("8:2", "/srv"), mount("8:3", "/home")]


def test_btrfs_lies_on_all_its_members() -> None:
    found = plan([*HOSTS, mount("0:40", "/db", "btrfs", source="/dev/loop1")], BTRFS)
    assert lies_on(found)["/db"] == {"/srv", "/home"}
    assert set(disks(found, "/db")) == {"loop0", "loop1"}


def test_btrfs_on_a_mapped_device() -> None:
    devices = [
        BlockDevice("dm-0", "253:0", mapper="vg-x", slaves=("loop0",), pool=("dm-0",)),
        loop(0, "/srv/0.img"),
    ]
    found = plan([*HOSTS, mount("0:40", "/db", "btrfs", source="/dev/mapper/vg-x")], devices)
    assert lies_on(found)["/db"] == {"/srv"}
    assert disks(found, "/db") == ("dm-0",)


@pytest.mark.parametrize(
    ("source", "dm"),
    [("/dev/mapper/vg-db", "dm-7"), ("/dev/dm-7", "vg-db"), ("/dev/vg/db", "dm-7"), ("/dev/root", "dm-7")],
)
def test_a_mapped_device_has_both_of_its_names(source: str, dm: str) -> None:
    found = plan([*HOSTS, mount("253:7", "/db", "ext4", source=source)], [DB])
    assert {one.mountpoint: one.dm for one in found.mounts if one.dm} == {"/db": dm}
    of_pool = plan([*HOSTS, mount("0:40", "/db", "btrfs", source="/dev/mapper/vg-db")], [DB])
    assert [one.dm for one in of_pool.mounts if one.mountpoint == "/db"] == ["dm-7"]


def test_a_name_with_a_slash() -> None:
    devices = [BlockDevice("cciss!c0d0", "104:0", slaves=("loop0",)), loop(0, "/srv/0.img")]
    found = plan([*HOSTS, mount("0:40", "/db", "btrfs", source="/dev/cciss/c0d0")], devices)
    assert lies_on(found)["/db"] == {"/srv"}


def test_btrfs_of_unknown_source_lies_on_all_members_that_no_other_claims() -> None:
    devices = [*BTRFS, loop(2, "/opt/2.img", pool=("loop2",))]
    mounts = [*HOSTS, mount("8:4", "/opt"), mount("0:41", "/two", "btrfs", source="/dev/loop2")]
    found = plan([*mounts, mount("0:40", "/db", "btrfs", source="/dev/root")], devices)
    assert lies_on(found)["/db"] == {"/srv", "/home"}
    assert lies_on(found)["/two"] == {"/opt"}


def test_bcachefs_joins_its_devices_with_colons() -> None:
    devices = [loop(0, "/srv/0.img"), loop(1, "/home/1.img")]
    found = plan([*HOSTS, mount("0:40", "/db", "bcachefs", source="/dev/loop0:/dev/loop1")], devices)
    assert lies_on(found)["/db"] == {"/srv", "/home"}


def test_xfs_lies_on_its_log_device_too() -> None:
    devices = [loop(0, "/srv/0.img"), loop(1, "/home/log.img")]
    options = "rw,logbufs=8,logdev=/dev/loop1,noquota"
    found = plan([*HOSTS, mount("7:0", "/db", "xfs", super_options=options)], devices)
    assert lies_on(found)["/db"] == {"/srv", "/home"}
    assert set(disks(found, "/db")) == {"loop0", "loop1"}


def test_reiserfs_lies_on_its_journal_device_too() -> None:
    devices = [loop(0, "/srv/0.img"), loop(1, "/home/journal.img")]
    found = plan([*HOSTS, mount("7:0", "/db", "reiserfs", super_options="rw,jdev=/dev/loop1")], devices)
    assert lies_on(found)["/db"] == {"/srv", "/home"}


@pytest.mark.parametrize(
    ("fstype", "options", "devices"),
    [
        ("xfs", "rw", ("sdb",)),
        ("xfs", "rw,logdev=/dev/sda", ("sdb", "sda")),
        ("xfs", "rw,logdev=/srv/links/log", ()),
        ("reiserfs", "rw,jdev=/srv/links/log", ()),
        ("f2fs", "rw", ()),
        ("jfs", "rw", ()),
    ],
)
def test_the_devices_of_a_file_system_are_known_if_all_are(fstype: str, options: str, devices: tuple[str, ...]) -> None:
    found = plan([mount("8:16", "/x", fstype, super_options=options)], [BlockDevice("sdb", "8:16")])
    assert [m.devices for m in found.mounts if m.mountpoint == "/x"] == [devices]


def test_what_is_left_out_passes_on_what_it_lies_on() -> None:
    mounts = [
        *HOSTS,
        mount("7:0", "/ro", super_options="ro"),
        mount("7:1", "/db"),
        mount("0:60", "/merged", "overlay", super_options=r"rw,lowerdir=/home,upperdir=/srv/up\054per,workdir=/w"),
        mount("7:2", "/on-overlay"),
        mount("0:61", "/bindfs", "fuse.bindfs", source="/home/x"),
        mount("7:3", "/on-fuse"),
        mount("7:4", "/excluded"),
        mount("7:5", "/on-excluded"),
    ]
    devices = [
        loop(0, "/srv/0"),
        loop(1, "/ro/1"),
        loop(2, "/merged/2"),
        loop(3, "/bindfs/3"),
        loop(4, "/home/4"),
        loop(5, "/excluded/5"),
    ]
    found = lies_on(plan(mounts, devices, uppers={"0:60": "8:2"}, exclude=("/excluded",)))
    assert found["/db"] == {"/srv"}
    assert found["/on-overlay"] == {"/srv"}
    assert found["/on-excluded"] == {"/home"}
    assert found["/on-fuse"] == {"/", "/srv", "/home", "/db", "/on-overlay"}, "a source text of FUSE says nothing"


# What is not understood


EARLY, LATE = mount("8:2", "/early"), mount("8:3", "/late")
UNKNOWN = BlockDevice("nbd0", "43:0", understood=False)


@pytest.mark.parametrize(
    ("mounts", "devices"),
    [
        ([mount("43:0", "/x")], [UNKNOWN]),
        ([mount("7:0", "/x")], [BlockDevice("loop0", "7:0", understood=False)]),
        ([mount("7:0", "/x")], [loop(0, "/pool/x"), BlockDevice("sdb", "8:16")]),
        ([mount("7:0", "/x")], [BlockDevice("loop0", "7:0", file_on="0:99")]),
        ([mount("253:0", "/x")], [BlockDevice("dm-0", "253:0", slaves=("sdc", "gone"))]),
        ([mount("253:0", "/x")], [BlockDevice("dm-0", "253:0", slaves=("nbd0",)), UNKNOWN]),
        ([mount("0:70", "/x", "btrfs", source="/dev/root")], []),
        ([mount("8:16", "/x", "xfs", super_options="rw,logdev=/dev/gone")], [BlockDevice("sdb", "8:16")]),
        *(
            (
                [mount("8:16", "/x", fstype, super_options=f"rw,{option}={path}")],
                [BlockDevice("sdb", "8:16"), loop(5, "/late/5")],
            )
            for fstype, option in (("xfs", "logdev"), ("xfs", "rtdev"), ("reiserfs", "jdev"))
            for path in ("/srv/links/log", "dev/loop5", "//dev/loop5", "/./dev/loop5", "loop5", "")
        ),
        ([mount("0:70", "/x", "bcachefs", source="/dev/sdb:/srv/links/other")], [BlockDevice("sdb", "8:16")]),
        ([mount("8:16", "/x", "f2fs")], [BlockDevice("sdb", "8:16")]),
        ([mount("8:16", "/x", "jfs")], [BlockDevice("sdb", "8:16")]),
        ([mount("8:16", "/x")], [BlockDevice("sdb", "8:16", journal="nbd0"), UNKNOWN]),
        ([mount("0:70", "/up", "overlay", super_options="rw,upperdir=u"), mount("7:0", "/x")], [loop(0, "/up/x")]),
        ([mount("0:70", "/e", "ecryptfs", source="/late"), mount("7:0", "/x")], [loop(0, "/e/x")]),
    ],
)
def test_what_is_not_understood_lies_on_all_that_was_mounted_before(
    mounts: list[MountInfo], devices: list[BlockDevice]
) -> None:
    pool = mount("0:80", "/pool", "fuse.mergerfs", source="/early:/late")
    found = plan([EARLY, pool, *mounts, LATE], devices)
    assert lies_on(found) == {"/x": {"/", "/early"}, "/": set(), "/early": set(), "/late": set()}


ON_FUSE = mount("0:80", "/pool", "fuse.mergerfs", source="/early:/late")
OVER_FUSE = loop(0, "/pool/x")
HALVES = [BlockDevice(f"half{i}", f"259:{i}", disk="loop0") for i in (1, 2)]
ON_BOTH = [BlockDevice("dm-0", "253:0", slaves=("nbd0",)), BlockDevice("dm-1", "253:1", slaves=("nbd0", "nbd1"))]
NBD1 = BlockDevice("nbd1", "43:1", understood=False)


@pytest.mark.parametrize(
    ("numbers", "devices", "ordered"),
    [
        pytest.param(("259:1", "259:2"), [OVER_FUSE, *HALVES], False, id="two partitions of one disk"),
        pytest.param(("7:0", "7:1"), [OVER_FUSE, loop(1, "/pool/y")], True, id="two files on FUSE"),
        pytest.param(("43:0", "43:1"), [UNKNOWN, NBD1], True, id="two disks"),
        pytest.param(("0:70", "0:71"), [], True, id="no known device"),
        pytest.param(("253:1", "253:0"), [UNKNOWN, NBD1, *ON_BOTH], False, id="the first lies on more"),
        pytest.param(("253:0", "253:1"), [UNKNOWN, NBD1, *ON_BOTH], True, id="the second lies on more"),
    ],
)
def test_what_lies_on_a_device_is_not_taken_to_be_under_it(
    numbers: tuple[str, str], devices: list[BlockDevice], ordered: bool
) -> None:
    """Where such a device has its data cannot be on what lies on it: its file systems are frozen together."""
    first, second = (mount(number, f"/{i}") for i, number in enumerate(numbers))
    found = plan([EARLY, ON_FUSE, first, second], devices)
    assert lies_on(found)["/0"] == {"/", "/early"}
    assert lies_on(found)["/1"] == {"/", "/early"} | ({"/0"} if ordered else set())
    assert any("/1 " in note and "but for what lies on the same device" in note for note in found.notes) is not ordered


def test_a_device_that_sysfs_no_longer_knows_is_not_understood() -> None:
    found = build_plan([ROOT, EARLY, mount("7:9", "/db")], BLOCK_TYPES, [SDA, SDA1, BlockDevice("s", "8:2")], Rules())
    assert lies_on(found) == {"/": set(), "/early": set(), "/db": {"/", "/early"}}
    assert disks(found, "/db") == ()


@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs"])
def test_an_image_in_memory_lies_on_nothing(fstype: str) -> None:
    found = plan([EARLY, mount("0:70", "/run", fstype), mount("7:0", "/db")], [loop(0, "/run/x")])
    assert lies_on(found)["/db"] == set()


def test_an_overlay_without_an_upper_layer_lies_on_nothing() -> None:
    overlay = mount("0:70", "/o", "overlay", super_options="ro,lowerdir=/early")
    assert lies_on(plan([EARLY, overlay, mount("7:0", "/db")], [loop(0, "/o/x")]))["/db"] == set()


def test_what_lies_on_the_unknown_is_not_taken_to_be_under_it_and_that_is_noted() -> None:
    found = plan(
        [EARLY, mount("7:0", "/on-it"), mount("43:0", "/x")], [UNKNOWN, BlockDevice("loop0", "7:0", file_on="43:0")]
    )
    assert lies_on(found) == {"/on-it": {"/", "/early", "/x"}, "/x": {"/", "/early"}, "/": set(), "/early": set()}
    assert found.notes == (
        "/x (nbd0) is taken to lie on all that was mounted before it: what it lies on is not understood",
        "/x is not taken to lie on /on-it: mounted before it, but known to lie on it",
    )


def test_ext4_lies_on_its_journal_too() -> None:
    devices = [BlockDevice("sdb", "8:16", journal="loop0"), loop(0, "/late/journal")]
    found = plan([EARLY, mount("8:16", "/x"), LATE], devices)
    assert lies_on(found)["/x"] == {"/late"}
    assert set(disks(found, "/x")) == {"sdb", "loop0"}


def test_an_upper_folder_is_unescaped_after_the_options_are_split() -> None:
    overlay = mount("0:60", "/m", "overlay", source="overlay", super_options=r"rw,upperdir=/a\054b\040c,workdir=/w")
    assert upper_folder(overlay) == "/a,b c"
    assert upper_folder(ROOT) == ""


@pytest.mark.parametrize("fstype", ["nfs", "fuse.x", "tmpfs", "overlay"])
def test_a_source_that_a_user_may_write_names_no_device(fstype: str) -> None:
    assert named_devices(mount("0:60", "/m", fstype, source="/dev/sda1", super_options="rw,x=1")) == []
    options = "rw,upperdir=/a,logdev=/dev/sda1,rtdev=/dev/sda1,jdev=/dev/sda1"  # a kernel that does not escape commas
    assert named_devices(mount("0:60", "/m", fstype, super_options=options)) == []


# The order


def test_hosts_are_all_file_systems_below_and_levels_the_longest_path() -> None:
    mounts = [mount("7:0", "/a"), mount("7:1", "/b"), mount("253:0", "/c")]
    devices = [
        loop(0, "/0.img"),
        loop(1, "/a/1.img"),
        loop(2, "/2.img"),
        loop(3, "/b/3.img"),
        BlockDevice("dm-0", "253:0", slaves=("loop2", "loop3")),
    ]
    found = plan(mounts, devices)
    assert levels(found) == {"/c": 0, "/b": 1, "/a": 2, "/": 3}
    assert lies_on(found) == {"/c": {"/b", "/a", "/"}, "/b": {"/a", "/"}, "/a": {"/"}, "/": set()}


def test_the_deepest_of_several_guests_gives_the_level() -> None:
    guests = [mount(f"7:{i}", f"/g{i}") for i in range(5)]
    devices = [loop(i, "/g2/img" if i == 4 else f"/{i}.img") for i in range(5)]
    assert levels(plan(guests, devices)) == {"/g4": 0, "/g2": 1, "/": 2, "/g0": 0, "/g1": 0, "/g3": 0}


def test_inside_a_level_in_reverse_mount_order() -> None:
    mounts = [mount("8:5", "/x"), mount("7:0", "/in"), mount("8:3", "/y"), mount("8:4", "/z"), mount("8:5", "/x2")]
    found = plan(mounts, [loop(0, "/y/0.img")])
    assert [m.mountpoint for m in found.mounts] == ["/z", "/in", "/x", "/", "/y"]
    assert [m.hosts for m in found.mounts] == [(), (4,), (), (), ()]


def test_what_is_planned_alone_has_level_0() -> None:
    mounts = [mount("7:0", "/a"), mount("7:1", "/b")]
    found = plan(mounts, [loop(0, "/0.img"), loop(1, "/a/1.img")], include=("/", "/b"))
    assert levels(found) == {"/b": 0, "/": 1}


def nest(depth: int) -> tuple[list[MountInfo], list[BlockDevice]]:
    mounts = [mount(f"7:{i}", f"/n{i}", mount_id=i + 2) for i in range(depth)]
    return mounts, [loop(i, f"/n{i - 1}/img" if i else "/img") for i in range(depth)]


@pytest.mark.parametrize("depth", [64, 1500])
def test_deep_nesting(depth: int) -> None:
    mounts, devices = nest(depth)
    include = () if depth == 64 else ("/", f"/n{depth - 1}")
    found = plan(mounts, devices, include=include)
    assert found.mounts[0].mountpoint == f"/n{depth - 1}"
    assert found.mounts[-1].mountpoint == "/"
    assert [m.level for m in found.mounts] == list(range(len(found.mounts)))


CIRCLE = (
    [mount("7:0", "/a"), mount("7:1", "/b"), mount("7:2", "/c")],
    [
        loop(0, "/b/img"),
        loop(1, "/c/img"),
        loop(2, "/a/img"),
    ],
)


def test_a_circle_is_refused_and_names_the_mount_points() -> None:
    with pytest.raises(Fault, match="/a, /b, /c lie on each other") as caught:
        plan(*CIRCLE)
    assert caught.value.code is Code.FREEZE_FAILED


def test_a_circle_through_what_is_left_out_is_refused() -> None:
    with pytest.raises(Fault, match="/a, /c lie on each other"):
        plan(*CIRCLE, exclude=("/b",))


def test_a_circle_of_which_one_file_system_is_planned_needs_no_order() -> None:
    assert levels(plan(*CIRCLE, include=("/a",))) == {"/a": 0}


@st.composite
def systems(draw: st.DrawFn) -> tuple[list[MountInfo], list[BlockDevice], Rules]:
    """Any number of file systems on loop images, on any others, in any mount order, some of them left out."""
    count = draw(st.integers(1, 12))
    below = [draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else [] for i in range(count)]
    mounts = [ROOT]
    devices: list[BlockDevice] = []
    for i, hosts in enumerate(below):
        slaves = []
        for j in hosts:
            slaves.append(f"loop{len(devices)}")
            devices.append(loop(len(devices), f"/m{j}/img"))
        devices.append(BlockDevice(f"dm-{i}", f"253:{i}", slaves=tuple(slaves)))
        options = draw(st.sampled_from(["rw", "rw", "rw", "ro"]))
        mounts.append(mount(f"253:{i}", f"/m{i}", super_options=options, mount_id=i + 2))
    excluded = draw(st.lists(st.integers(0, count - 1), max_size=2))
    return draw(st.permutations(mounts)), placed(mounts, devices), Rules(exclude=tuple(f"/m{i}" for i in excluded))


@given(systems())
def test_every_host_has_a_higher_level_and_every_level_a_reason(system: Any) -> None:
    mounts, devices, rules = system
    found = build_plan(mounts, BLOCK_TYPES, devices, rules)
    for m in found.mounts:
        assert all(found.mounts[i].level > m.level for i in m.hosts)
        assert all(set(found.mounts[i].hosts) <= set(m.hosts) for i in m.hosts)
    for index, m in enumerate(found.mounts):
        guests = [g.level for g in found.mounts if index in g.hosts]
        assert m.level == max(guests, default=-1) + 1
    assert [m.level for m in found.mounts] == sorted(m.level for m in found.mounts)
    planned, left_out = {m.device for m in found.mounts}, {m.device for m in found.left_out}
    assert not planned & left_out
    assert planned | left_out == {m.device for m in mounts}
    assert Plan.load(msgpack.unpackb(msgpack.packb(found.dump()))) == found


# Made-up stacks

DISK, NBD = "disk", "nbd"


@st.composite
def stacks(draw: st.DrawFn) -> tuple[list[MountInfo], list[BlockDevice], dict[str, str], dict[str, set[str]], set[str]]:
    """Return mounts in the order of mounting, devices, upper layers, and what is true of each planned one.

    That is on which others it lies, by device number, and which have something below that nobody can tell.
    """
    mounts, devices, uppers = [], [], {}
    lies: dict[str, set[str]] = {}
    unknown: set[str] = set()
    passes_on: set[str] = set()
    for i in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["disk", "nbd", "loop", "partition", "dm", "pool", "overlay", "fuse", "cover"]))
        number = f"{'0' if kind in ('pool', 'overlay', 'fuse') else '250'}:{i + 100}"
        holder = draw(st.sampled_from(sorted(lies))) if lies else ""
        holders = {holder} if holder else set()
        under = set(holders).union(*(lies[one] for one in holders))
        is_unknown = holder in unknown & passes_on  # what lies on a planned one is known to
        loop_device = BlockDevice(f"loop{i}", f"7:{i}", file_on=holder)
        fields: dict[str, Any] = {"mount_id": i + 2}
        point = f"/m{i}"
        match kind:
            case "loop" | "cover":
                if kind == "cover" and mounts:
                    point, fields["parent_id"] = mounts[-1].mountpoint, mounts[-1].mount_id
                devices.append(replace(loop_device, number=number))
            case "partition":
                devices += [loop_device, BlockDevice(f"loop{i}p1", number, disk=f"loop{i}")]
            case "dm":
                devices += [loop_device, BlockDevice(f"dm-{i}", number, slaves=(f"loop{i}",))]
            case "pool":
                devices.append(replace(loop_device, pool=(f"loop{i}",)))
                fields |= {"fstype": "btrfs", "source": f"/dev/loop{i}"}
            case "overlay":
                fields |= {"fstype": "overlay", "super_options": "rw,upperdir=/u"}
                uppers |= {number: holder} if holder else {}
                is_unknown |= not holder
                passes_on.add(number)
            case "fuse":
                passes_on.add(number)
                fields |= {"fstype": "fuse.x", "source": holder}
                under, is_unknown = set(), True
            case _:
                under = set()
                is_unknown = kind == NBD
                devices.append(BlockDevice(f"{kind}{i}", number, understood=kind == DISK))
        mounts.append(mount(number, point, **fields))
        if is_unknown:
            unknown.add(number)
            under = under if number in passes_on else {*lies}
        lies[number] = under
    return mounts, devices, uppers, lies, unknown


@given(stacks())
def test_nothing_freezes_beside_or_after_what_it_lies_on(stack: Any) -> None:
    mounts, devices, uppers, lies, unknown = stack
    found = build_plan(mounts, BLOCK_TYPES, devices, Rules(), uppers)
    level = {m.device: m.level for m in found.mounts}
    at = {m.device: i for i, m in enumerate(mounts)}
    for upper in level:
        for lower in lies[upper] & level.keys():
            assert level[upper] < level[lower]
        if upper in unknown:
            assert all(level[upper] < level[lower] for lower in level if at[lower] < at[upper])
    assert not any("not taken" in note for note in found.notes), "what lies on it was mounted later"
    noted = [note.partition(" ")[0] for note in found.notes]
    by_number = {m.device: m.mountpoint for m in found.mounts}
    assert set(noted) >= {
        by_number[number] for number in unknown & level.keys() if any(at[o] < at[number] for o in level)
    }


def test_the_work_grows_with_what_is_mounted_and_no_faster() -> None:
    line = "36 35 98:0 / /some/where/deep/in/a\\040container rw,relatime shared:1 - overlay overlay rw,lowerdir=/x\n"

    def planned(size: int) -> Callable[[], Any]:
        pairs = [(2 * i, 2 * i + 1) for i in range(size)]  # each a file system, and one in a file on it
        devices = [loop(at, "", file_on=f"7:{at - 1}" if at % 2 else ROOT.device) for at in range(2 * size)]
        mounts = [mount(f"7:{at}", f"/n{at}", mount_id=at + 2) for pair in pairs for at in pair]
        binds = [mount(f"7:{at}", f"/deep/bind{at}", mount_id=at + 10_000) for pair in pairs for at in pair]
        every = [SDA, SDA1, *devices]
        return lambda: build_plan([ROOT, *mounts, *binds], BLOCK_TYPES, every, Rules(), {})

    assert_linear(lambda size: lambda: parse_mountinfo(line * size), 1000)
    assert_linear(planned, 64)


# Dump and load


def a_plan() -> Plan:
    point = b"/d\xff".decode("utf-8", "surrogateescape")
    mounts = [mount("8:2", "/srv"), mount("8:2", point), mount("7:0", "/db"), mount("0:50", "/n", "nfs")]
    return plan(mounts, [loop(0, "/srv/db.img")])


def test_dump_and_load_through_json_and_msgpack() -> None:
    found = a_plan()
    assert Plan.load(json.loads(json.dumps(found.dump()))) == found
    packed = msgpack.packb(found.dump(), unicode_errors="surrogateescape")
    assert Plan.load(msgpack.unpackb(packed, unicode_errors="surrogateescape")) == found
    assert Plan.load(Plan((), ()).dump()) == Plan((), ())


def test_dump_holds_lists_only() -> None:
    dumped = a_plan().dump()
    assert dumped == json.loads(json.dumps(dumped))


@pytest.mark.parametrize("data", [None, [], "plan", {}, {"mounts": []}, {"mounts": [], "left_out": {}}, {1: 2}])
def test_load_refuses_what_is_no_plan(data: Any) -> None:
    with pytest.raises(ValueError, match="the plan"):
        Plan.load(data)


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("mounts", "mountpoint", 1),
        ("mounts", "mountpoint", b"/srv"),
        ("mounts", "mountpoint", "srv"),
        ("mounts", "mountpoint", "/a\0b"),
        ("mounts", "aliases", "/srv"),
        ("mounts", "aliases", ["/a", None]),
        ("mounts", "aliases", ["a"]),
        ("mounts", "device", "8"),
        ("mounts", "device", "8:2\n"),
        ("mounts", "fstype", None),
        ("mounts", "level", "0"),
        ("mounts", "level", False),
        ("mounts", "level", -1),
        ("mounts", "level", 2),
        ("mounts", "hosts", [0]),
        ("mounts", "hosts", [-1]),
        ("mounts", "hosts", [9]),
        ("mounts", "hosts", [True]),
        ("mounts", "disks", [1]),
        ("mounts", "surprise", 1),
        ("left_out", "reason", "whim"),
        ("left_out", "reason", 1),
        ("left_out", "mountpoint", "n"),
        ("left_out", "device", "8:2"),
    ],
)
def test_load_refuses_a_field_that_is_wrong(where: str, field: str, value: Any) -> None:
    data = a_plan().dump()
    data[where][0][field] = value
    with pytest.raises(ValueError, match=r"/|mounts\[0\]|left_out\[0\]|device|mount point"):
        Plan.load(data)


@pytest.mark.parametrize("order", [(1, 1, 1), (0, 0, 2), (0, 1, 0), (-1, 0, 1)])
def test_load_refuses_levels_that_are_no_order(order: tuple[int, ...]) -> None:
    data = plan(SRV[:2]).dump()
    for record, level in zip(data["mounts"], order, strict=True):
        record["level"] = level
    with pytest.raises(ValueError, match="level"):
        Plan.load(data)


@pytest.mark.parametrize("where", ["mounts", "left_out"])
def test_load_refuses_a_missing_field_and_a_record_that_is_none(where: str) -> None:
    data = a_plan().dump()
    del data[where][0]["fstype"]
    with pytest.raises(ValueError, match=rf"{where}\[0\]"):
        Plan.load(data)
    data[where][0] = []
    with pytest.raises(ValueError, match=rf"{where}\[0\]"):
        Plan.load(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_load_of_a_mangled_plan_is_a_plan_or_a_value_error(data: st.DataObject) -> None:
    mangled = a_plan().dump()
    record = data.draw(st.sampled_from([*mangled["mounts"], *mangled["left_out"], mangled]))
    record[data.draw(st.sampled_from(list(record)))] = data.draw(JSON)
    try:
        found = Plan.load(mangled)
    except ValueError:
        return
    assert Plan.load(found.dump()) == found


# What earlier freezes have learnt

OTHERS = [MountInfo(20 + i, 1, f"8:{16 + i}", "/", f"/srv/{i}", "ext4", f"/dev/sd{i}", "rw") for i in range(3)]
A, B, C = (one.device for one in OTHERS)


def test_what_was_learnt_comes_before_what_it_lies_on() -> None:
    found = plan(OTHERS, learnt=((A, (B, C)),))
    assert lies_on(found)["/srv/0"] == {"/srv/1", "/srv/2"}
    assert levels(found) == {"/": 0, "/srv/0": 0, "/srv/1": 1, "/srv/2": 1}
    assert found.notes == ("/srv/0 lies on one of: /srv/1, /srv/2 (learnt)",)


def test_what_lies_on_what_was_learnt_of_lies_on_that_too() -> None:
    found = plan(OTHERS, learnt=((A, (B,)), (B, (C,))))
    assert lies_on(found)["/srv/0"] == {"/srv/1", "/srv/2"}
    assert [m.level for m in found.mounts if m.mountpoint == "/srv/2"] == [2]


def test_what_was_learnt_of_what_is_gone_or_left_out_counts_for_nothing() -> None:
    found = plan(OTHERS, learnt=(("9:9", (A,)), (A, ("9:8",)), (B, (C,))), exclude=("/srv/2",))
    assert not any(m.hosts for m in found.mounts)
    assert found.notes == ()


def test_what_is_known_comes_before_what_was_learnt() -> None:
    loop = BlockDevice("loop0", "7:0", file_on="/srv/0/img")
    inner = MountInfo(30, 1, "7:0", "/", "/srv/in", "ext4", "/dev/loop0", "rw")
    found = plan([*OTHERS, inner], [loop], learnt=((A, ("7:0", B)),))
    assert lies_on(found)["/srv/0"] == {"/srv/1"}
    assert lies_on(found)["/srv/in"] == {"/srv/0", "/srv/1"}
    assert "/srv/0 is not taken to lie on /srv/in, as was learnt: known to lie on it" in found.notes


def test_what_was_learnt_comes_before_what_is_assumed() -> None:
    nbd = BlockDevice("nbd0", "43:0", understood=False)
    served = MountInfo(30, 1, "43:0", "/", "/srv/nbd", "ext4", "/dev/nbd0", "rw")
    found = plan([*OTHERS, served], [nbd], learnt=((A, ("43:0",)),))
    assert "/srv/nbd" in lies_on(found)["/srv/0"]
    assert "/srv/0" not in lies_on(found)["/srv/nbd"]
    assert "/srv/1" in lies_on(found)["/srv/nbd"]


# The disks at the bottom


def bottom(found: Plan, point: str) -> set[str]:
    return {name for m in found.mounts if m.mountpoint == point for name in m.bottom}


def test_the_disks_at_the_bottom_are_those_that_everything_is_written_to_in_the_end() -> None:
    loop = BlockDevice("loop0", "7:0", file_on="/srv/0/img")
    volume = BlockDevice("dm-0", "253:0", slaves=("loop0", "sda1"))
    inner = MountInfo(30, 1, "253:0", "/", "/srv/in", "ext4", "/dev/mapper/x", "rw")
    found = plan([*OTHERS, inner], [loop, volume])
    assert bottom(found, "/") == {"sda"}
    assert bottom(found, "/srv/in") == {"disk8-16", "sda"}
    assert bottom(found, "/srv/0") == {"disk8-16"}


def test_what_is_not_understood_is_itself_at_the_bottom() -> None:
    served = MountInfo(30, 1, "43:0", "/", "/srv/nbd", "ext4", "/dev/nbd0", "rw")
    found = plan([served], [BlockDevice("nbd0", "43:0", understood=False)])
    assert bottom(found, "/srv/nbd") == {"nbd0"}


# Thousands of lines: what is read of them


def text_of(mounts: list[MountInfo]) -> str:
    lines = (
        f"{m.mount_id} {m.parent_id} {m.device} {m.root} {m.mountpoint} rw - {m.fstype} {m.source} rw" for m in mounts
    )
    return "\n".join(lines) + "\n"


def test_of_a_text_only_the_line_of_a_mount_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [MountInfo(i, 1, f"8:{i}", "/", f"/srv/{i}", "ext4", "/dev/x", "rw") for i in (7, 17, 177)]
    view = View(text=text_of(mounts) + "177 rubbish")
    assert [view.device(i) for i in (7, 17, 177, 1, 77)] == ["8:7", "8:17", "8:177", "", ""]
    with pytest.raises(ValueError, match="line 4 is malformed"):
        view.of("8:7")
    whole = View(text=text_of(mounts))
    assert whole.mounts == mounts
    assert [whole.device(i) for i in (7, 17, 177, 1, 77)] == ["8:7", "8:17", "8:177", "", ""]
    assert list(View().mounts) == list(View(()).mounts) == []


@given(st.lists(st.tuples(st.sampled_from(["/", "/a"]), st.integers(0, 3), st.booleans()), max_size=6))
def test_the_first_way_is_the_first_of_the_ways(binds: list[tuple[str, int, bool]]) -> None:
    """Some show a folder of it, some are at a long path, some are covered."""
    mounts = [MountInfo(1, 0, "8:1", "/", "/", "ext4", "/dev/a", "rw")]
    for number, (root, at, covered) in enumerate(binds):
        point = f"/m{at}" + ("/" + "x" * 254) * (20 if at == 3 else 0)
        mounts.append(MountInfo(2 + 2 * number, 1, "8:2", root, point, "ext4", "/dev/b", "rw"))
        if covered:
            mounts.append(MountInfo(3 + 2 * number, 2 + 2 * number, "0:9", "/", point, "tmpfs", "t", "rw"))
    view = View(mounts)
    ways = view.ways("8:2", safe=True)
    assert view.way("8:2") == (ways[0] if ways else None)

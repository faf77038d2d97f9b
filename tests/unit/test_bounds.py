"""What is told of mounts without number is bounded: on the pipe, in the journal, in the plan, in the status record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.counting import calls
from fakes.drive import Drive, plan_of
from virtagent.agent.api import bounds, records
from virtagent.agent.api.options import Rules
from virtagent.agent.api.records import LeftOut, Mount, Plan
from virtagent.agent.wire import json_values, xmlrpc
from virtagent.agent.worker import messages
from virtagent.agent.worker.mountinfo import parse_mountinfo
from virtagent.agent.worker.plan import BlockDevice, build_plan
from virtagent.host import text
from virtagent.supervisor import main
from virtagent.supervisor.core import events, status

TYPES = frozenset({"ext4"})
ROOT = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw"]
DEVICES = [BlockDevice("sda1", "8:1", disk="sda")]
REPLY_MAX = 1 << 20
"""Bytes. The host's library takes 8 MiB, and a message of the QEMU guest agent's is read a piece at a time."""


def binds(count: int) -> list[str]:
    return [
        f"{i + 10} 1 8:1 /srv/{i} /var/lib/kubelet/pods/{i:036}/volume rw - ext4 /dev/sda1 rw" for i in range(count)
    ]


def hostile(count: int) -> list[str]:
    """Return FUSE mounts of a user: 3,400 bytes that are no text, and a type that he made up."""
    odd = b"\xff\xfe\\012\\134".decode("utf-8", "surrogateescape") * 850
    return [
        f"{i + 20010} 1 0:{i + 100} / /home/u/{i}{odd} rw - fuse.{'x' * 900} evil rw,user_id=7" for i in range(count)
    ]


def late(reason: str) -> list[str]:
    """Return a file system that an operator must know about, mounted after all others."""
    return [f"90000 1 8:2 / /srv/{reason} rw - ext4 /dev/sdb {'rw,emergency_ro' if reason == 'damaged' else 'ro'}"]


def plan(*lines: str) -> Plan:
    return build_plan(parse_mountinfo("\n".join([*ROOT, *lines]) + "\n"), TYPES, DEVICES, Rules())


MANY = {
    "6,000 bind mounts": binds(6000),
    "10,000 bind mounts": binds(10_000),
    "1,000 hostile FUSE mounts": hostile(1000),
    "both": [*binds(6000), *hostile(1000)],
}


def taken(found: Plan) -> tuple[Drive, int]:
    """Play a freeze worker up to this plan."""
    drive = Drive()
    drive.ask("va.fsfreeze")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Progress("plan"), messages.Plan(found.dump()))
    return drive, worker


@pytest.mark.parametrize("lines", MANY.values(), ids=MANY)
def test_it_is_small_wherever_it_goes(lines: list[str]) -> None:
    found = bounds.bounded(plan(*lines, *late("damaged")))
    dumped = found.dump()
    sizes = {"plan as XML": len(b"".join(xmlrpc.dump_reply(dumped))), "plan as JSON": len(json_values.dump(dumped))}
    frames = messages.encode(messages.Plan(dumped))
    sizes["report"] = sum(map(len, frames))
    (told,) = messages.Decoder(messages.REPORTS).feed(b"".join(frames))
    assert Plan.load(told.plan) == found
    drive, _ = taken(found)
    sizes["journal"] = len(json.dumps(drive.journal))
    record = status.dump(drive.status(), lambda pid: "sleeping")
    sizes["record as XML"] = len(b"".join(xmlrpc.dump_reply(record)))
    sizes["record as JSON"] = len(json_values.dump(record))
    lines_of = [
        *text.plan_lines(found, verbose=True),
        *text.status_lines(records.load(records.Status, record, "record"), verbose=True),
    ]
    sizes["words"] = sum(map(len, lines_of)) + len(main.describe(found))
    assert {what: size for what, size in sizes.items() if size > REPLY_MAX // 4} == {}, sizes


def test_all_are_counted_and_some_are_named() -> None:
    found = bounds.bounded(plan(*binds(6000), *hostile(1000), *late("damaged")))
    (root,) = found.mounts
    assert (root.mountpoint, len(root.aliases), root.more_aliases) == ("/", 8, 5992)
    assert found.left_out_counts == {"fuse": 1000, "damaged": 1}
    assert len(found.left_out) == 50
    assert max(len(shown) for left in found.left_out for shown in (left.mountpoint, left.fstype)) == 256
    assert found.left_out[-1].mountpoint == "/srv/damaged"


def test_what_is_whole_stays_as_it_is() -> None:
    found = plan(*binds(3), *hostile(0), *late("damaged"))
    assert bounds.bounded(found) == Plan(found.mounts, found.left_out, (), {"damaged": 1})


@pytest.mark.parametrize("fuse", [1, 40, 1000])
def test_what_users_make_crowds_nothing_out(fuse: int) -> None:
    left_out = [
        *(LeftOut(f"/f{i}", device=f"0:{i}", reason="fuse") for i in range(fuse)),
        *(LeftOut(f"/p{i}", device=f"1:{i}", reason="pseudo") for i in range(40)),
        *(LeftOut(f"/x{i}", device=f"2:{i}", reason="not-included") for i in range(20)),
        *(LeftOut(f"/d{i}", device=f"3:{i}", reason="unreachable", strict_error=True) for i in range(5)),
    ]
    found = bounds.bounded(Plan((), tuple(left_out)))
    shown = [left.mountpoint for left in found.left_out]
    assert [point for point in shown if point[1] in "xd"] == [
        *(f"/x{i}" for i in range(20)),
        *(f"/d{i}" for i in range(5)),
    ]
    assert len(shown) == 50
    few = min(fuse, 13)
    assert [point for point in shown if point[1] == "f"] == [f"/f{i}" for i in range(few)]
    assert [point for point in shown if point[1] == "p"] == [f"/p{i}" for i in range(25 - few)]


def test_long_mount_points_are_named_whole_or_not_at_all() -> None:
    """A cut path would lead elsewhere if it were opened."""
    long = tuple(f"/{i}" + "a" * 1500 for i in range(4))
    found = bounds.bounded(Plan((Mount("/" + "m" * 4000, long, "8:1"),)))
    (mount,) = found.mounts
    assert (len(mount.mountpoint), mount.aliases, mount.more_aliases) == (4001, long[:2], 2)


def test_words_tell_what_is_not_named() -> None:
    found = bounds.bounded(plan(*binds(6000), *hostile(1000), *late("damaged")))
    assert "  951 file systems more (fuse)" in list(text.plan_lines(found, verbose=True))
    counted = [line for line in text.plan_lines(found) if line.startswith("  1000 file systems (fuse): ")]
    assert len(counted) == 1
    assert counted[0].endswith(", 995 more")
    assert any(line.endswith(", 5992 more") for line in text.plan_lines(found))
    said = main.describe(found)
    assert "\nleft out: 1001\n" in said
    assert "\n  fuse          951 more\n" in said
    assert ", 5992 more\n" in said


def test_words_have_the_notes() -> None:
    note = "/x (nbd0) is taken to lie on all"
    found = Plan(plan_of(1).mounts, (), (note,))
    assert f"note: {note}" in list(text.plan_lines(found))
    assert f"note: {note}\n" in main.describe(found)


def test_the_supervisor_does_not_notice_how_many_there_are() -> None:
    def work(count: int) -> int:
        dumped = bounds.bounded(plan(*binds(count), *hostile(count // 10))).dump()
        drive, worker = Drive(), 1

        def play() -> None:
            drive.ask("va.fsfreeze")
            drive.report(worker, messages.Started(1), messages.Progress("plan"), messages.Plan(dumped))
            status.dump(drive.status(), lambda pid: "sleeping")

        return calls(play)

    work(1000)
    assert work(10_000) == work(1000)


def test_what_a_user_calls_his_mounts_does_not_slow_the_reading_of_them() -> None:
    """The kernel escapes spaces, line ends and backslashes: 1,000 mounts at paths of 4 KiB have 4 million of them."""
    lines = hostile(100)
    plain = [line.replace("\\", "/") for line in lines]
    assert (
        calls(lambda: parse_mountinfo("\n".join(lines))) < 2 * calls(lambda: parse_mountinfo("\n".join(plain))) + 1000
    )


def test_a_brief_record_has_neither_aliases_nor_what_is_left_out() -> None:
    drive, worker = taken(bounds.bounded(plan(*binds(20), *hostile(3))))
    whole, brief = drive.status(), drive.ask("va.fsstatus", {"brief": True}).value
    assert len(whole.mounts) == 4
    assert whole.left_out_counts == {"fuse": 3}
    (root,) = brief.mounts
    assert (root.mountpoint, root.aliases, root.more_aliases, root.state) == ("/", (), 0, "pending")
    assert (brief.left_out_counts, brief.state, brief.seq) == ({}, "INPROGRESS", whole.seq)

    waiting = drive.ask("va.fsstatus", {"brief": True, "since": whole.seq})
    other = drive.ask("va.fsstatus", {"since": whole.seq})
    drive.report(worker, messages.Progress("sync", 1))
    assert (len(waiting.value.mounts), len(other.value.mounts)) == (1, 4)


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_brief_is_a_boolean(wrong: Any) -> None:
    assert "brief" in Drive().ask("va.fsstatus", {"brief": wrong}).fault.text


def test_notes_are_logged_once_a_freeze() -> None:
    drive, worker = taken(Plan(plan_of(1).mounts, (), ("/a is not taken to lie on /b",)))
    assert drive.logged("/a is not taken") == ["freeze 1: /a is not taken to lie on /b"]
    drive.sync(worker, 1)
    drive.freezes(worker, 0)
    assert len(drive.logged("/a is not taken")) == 1


def test_what_strict_would_refuse_is_logged_though_nobody_asked() -> None:
    left_out = tuple(LeftOut(f"/srv/{i}", device=f"8:{i}", reason="damaged", strict_error=i < 9) for i in range(20))
    drive, _ = taken(bounds.bounded(Plan(plan_of(1).mounts, left_out)))
    (line,) = drive.logged("freeze 1: left")
    assert line.startswith("freeze 1: left out, which strict would refuse: /srv/0 (damaged), /srv/1 (damaged), ")
    assert line.endswith(", 4 more")


def test_notes_are_bounded() -> None:
    found = bounds.bounded(Plan((), (), tuple(f"{i} " + "x" * 5000 for i in range(1000))))
    assert len(found.notes) == 20
    assert max(map(len, found.notes)) == 1024


def test_the_log_of_a_record_is_bounded(tmp_path: Path) -> None:
    drive, _ = taken(bounds.bounded(plan(*MANY["both"])))
    drive.feed(events.ShowStatus())
    (effect,) = drive.of(events.LogStatus)
    assert len(json.dumps(status.dump(effect.record, lambda pid: "gone"))) < REPLY_MAX // 4

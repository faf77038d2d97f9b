"""What a freeze leaves in the log: one line at level notice, and a warning where it takes its time (U10, U16)."""

from __future__ import annotations

import errno
import json
import shlex

import pytest
from fakes.drive import PEER, Drive
from fakes.scenarios import played
from virtagent.agent.api import summary
from virtagent.agent.api.records import Last, dump
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

GOOD = Last(
    *(17, "thawed", True, 3.0, 3.02, "", 1.7e9, "file-system", "good", (), 0),
    file_systems=4,
    synced_bytes=48 << 20,
    sync_seconds=10.6,
    slowest="/srv/db",
    freeze_seconds=0.011,
    thaw_seconds=0.005,
)


def notices(drive: Drive) -> list[str]:
    """Return the lines at level notice, and those that are worse."""
    return [line.text for line in drive.of(events.Log) if line.level == "notice"]


def fields(line: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in shlex.split(line))


def test_a_good_freeze_is_one_line(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.now += 12
    drive.ask("va.fsthaw")
    drive.thaws(keeper)
    (line,) = notices(drive)
    found = fields(line)
    assert (found["freeze"], found["result"], found["file_systems"]) == ("1", "good", "2")
    assert (found["held_seconds"], found["stall_seconds"]) == ("12.000", "12.000")
    assert found["by"] == f"{PEER.who} at {PEER.channel}"
    assert not [one for one in drive.of(events.Log) if one.level in ("warning", "err")]


@pytest.mark.parametrize(
    ("end", "result"),
    [("cancelled", "cancelled"), ("died", "failed"), ("expired", "BROKEN"), ("keeper died", "BROKEN")],
)
def test_a_freeze_is_one_line_however_it_ends(drive: Drive, end: str, result: str) -> None:
    if end == "cancelled":
        played(drive, "syncing")
        drive.ask("va.fsthaw")
    elif end == "died":
        _, worker = played(drive, "freezing", frozen=(0,))
        drive.die(worker)
        drive.compensates(refused={1: errno.EINVAL})
    elif end == "expired":
        _, keeper = drive.hold(1)
        drive.now += 60
        drive.thaws(keeper, 1, "the hold limit of 60 s passed")
    else:
        _, keeper = drive.hold(1)
        drive.die(keeper)
        drive.compensates()
    (line,) = notices(drive)
    assert fields(line)["result"] == result
    assert fields(line)["error"]


def test_watchers_leave_nothing(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    before = len(drive.of(events.Log))
    for _ in range(50):
        drive.status()
        drive.ask_by_name("guest-fsfreeze-status", {})
    said = drive.of(events.Log)[before:]
    assert {line.level for line in said} == {"debug"}
    assert drive.status().audit.waiting == 1, "only the freeze itself waits"
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert [line.text for line in drive.of(events.Log) if line.level == "audit" and "status" in line.text] == []


def test_a_long_sync_is_warned_of_at_5_20_and_80_seconds() -> None:
    drive = Drive(sync_limit=600)
    _, worker = drive.begin(2)
    drive.report(worker, messages.Progress("sync", 1, 3 << 20), messages.Step(1, "syncing"))
    drive.wait(4.9)
    assert not drive.logged("still syncing")
    drive.wait(0.2)
    assert drive.logged("still syncing") == [
        "freeze 1: still syncing /srv/1 for 5 s, 3 MiB dirty, gives up in 9 min 55 s"
    ]
    drive.wait(15)
    assert len(drive.logged("still syncing")) == 2
    drive.wait(59)
    assert len(drive.logged("still syncing")) == 2
    drive.wait(2)
    assert len(drive.logged("still syncing /srv/1 for 1 min 20 s")) == 1
    drive.ask("va.fsthaw")
    drive.die(worker)
    assert drive.idle()


def test_a_hold_that_is_about_to_end_is_warned_of_once(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(47.9)
    assert not drive.logged("by itself")
    drive.wait(0.2)
    (said,) = drive.logged("by itself")
    assert said.startswith("freeze 1 thaws by itself in 12 s: no host has asked")
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert drive.idle()


def test_a_hold_that_is_extended_is_warned_of_later(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(40)
    drive.ask("va.fshold", 100.0)
    drive.report(keeper, messages.Held(drive.now + 100))
    drive.wait(79)
    assert not drive.logged("by itself")
    drive.wait(2)
    assert drive.logged("thaws by itself in 20 s")


def test_while_it_stops_it_says_so(drive: Drive) -> None:
    """U16: "the agent was stopped" while it went on, and neither title nor status said anything."""
    played(drive, "freezing", frozen=(0,))
    drive.feed(events.Stopped("SIGTERM"))
    assert drive.logged("stopping: SIGTERM; the freeze is ended first")
    assert drive.of(events.SetTitle)[-1].text.startswith("stopping, thawing")


def test_the_sentence_has_the_figures_of_the_line() -> None:
    assert summary.sentence(GOOD) == (
        "good: 4 file systems held 3 s without a break; synced 48 MiB in 10.6 s (slowest /srv/db), "
        "stood still 3.02 s (freezing 11 ms, thawing 5 ms)"
    )
    line = fields(summary.line(GOOD, "libvirt"))
    document = json.loads(json.dumps(summary.figures(GOOD)))
    assert line.keys() == {*document, "by"}
    assert document["held_seconds"] == float(line["held_seconds"]) == 3
    assert document.keys() - {"freeze", "result"} <= dump(GOOD).keys(), "the names are those of the status record"


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (Last(3, "failed", held_seconds=0.0, stall_seconds=0.0, error="/srv/a: FIFREEZE: busy (EBUSY)"),
         "failed: /srv/a: FIFREEZE: busy (EBUSY); nothing was held"),
        (Last(3, "cancelled", held_seconds=0.0, stall_seconds=0.0), "cancelled; nothing was held"),
        (Last(3, "broken", stall_seconds=608.0, error="the agent died"),
         "BROKEN: the agent died; for how long it was held is not known, stood still 10 min 8 s"),
        (Last(3, "broken", error="the agent died"),
         "BROKEN: the agent died; for how long it was held is not known, nobody knows how long writers stood still"),
        (Last(3, "expired", held_seconds=30.0, stall_seconds=30.01, error="the limit passed", file_systems=1),
         "BROKEN: the limit passed; 1 file system held 30 s, stood still 30 s"),
    ],
)  # fmt: skip
def test_the_sentence_of_what_went_wrong(last: Last, words: str) -> None:
    assert summary.sentence(last) == words


@pytest.mark.parametrize("name", ["/srv/a b", '/srv/"q"', "/srv/x=y", "/srv/ü日本"])
def test_no_name_breaks_the_line(name: str) -> None:
    found = summary.line(Last(1, "thawed", True, 1.0, 1.0, slowest=name))
    assert "\n" not in found
    assert json.loads(found.partition("slowest=")[2].rpartition('"')[0] + '"') == name

"""The last freezes: what the supervisor keeps of each, and what virtagentctl shows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import run_virtagentctl, status_record
from fakes.drive import PEER, Drive
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import PastFreeze, Status, dump
from virtagent.host import text
from virtagent.supervisor.core.history import KEPT


def past(drive: Drive) -> tuple[PastFreeze, ...]:
    (record,) = drive.ask("va.fsstatus", {"history": True, "brief": True}).answers
    assert isinstance(record, Status)
    return record.history


def thawed(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)


def test_each_freeze_leaves_a_line(drive: Drive) -> None:
    assert past(drive) == ()
    thawed(drive)
    _, keeper = drive.hold(1)
    drive.die(keeper)
    for thawer in drive.workers("thaw"):
        drive.compensates(thawer)
    good, broken = past(drive)
    assert (good.freeze_id, good.outcome, good.held_continuously) == (1, "thawed", True)
    assert (broken.freeze_id, broken.outcome, broken.held_continuously) == (2, "broken", False)
    assert good.by == f"{PEER.who} at {PEER.channel}"
    assert good.began > 0
    assert good.at >= good.began
    assert good.before_seconds >= 0
    assert broken.error


def test_a_freeze_that_froze_nothing_has_no_time_before(drive: Drive) -> None:
    drive.ask("va.fsfreeze")
    drive.ask("va.fsthaw")
    (called_off,) = past(drive)
    assert (called_off.outcome, called_off.before_seconds, called_off.synced_bytes) == ("cancelled", -1, -1)


def test_only_the_last_are_kept(drive: Drive) -> None:
    for _ in range(KEPT + 3):
        thawed(drive)
    assert [one.freeze_id for one in past(drive)] == list(range(4, KEPT + 4))


def test_nobody_gets_it_unasked_and_nobody_waits_with_it(drive: Drive) -> None:
    thawed(drive)
    assert drive.status().history == ()
    assert drive.ask("va.fsstatus", {"history": True, "since": 3}).code is Code.PARAMS


BY = "pid:4711,uid:0 at unix:/run/virtagent/virtagentd.sock"


@pytest.mark.parametrize(
    ("by", "shown"),
    [
        (BY, "pid 4711"),
        ("pid:4711,uid:1000 at unix:/a", "uid 1000"),
        ("host at virtio:/dev/virtio-ports/org.qemu.guest_agent.0", "virtio"),
        ("cid:2 at vsock:9999", "vsock"),
        ("cid:7 at vsock:9999", "cid:7"),
        ("somebody", "somebody"),
    ],
)
def test_a_row_fits_into_80_columns(by: str, shown: str) -> None:
    one = PastFreeze(
        *(123456, 1769860800.0, by, "cancelled", False, 1023 << 20, 2.5, 60, 3599.1, ""), sync_seconds=123.4
    )
    lines = list(text.history_lines([one]))
    assert f"  {shown}  " in lines[1]
    assert max(map(len, lines)) <= 80


def test_the_command(tmp_path: Path) -> None:
    entries = [
        PastFreeze(
            *(17, 1769860800.0, BY, "expired", False, 1 << 20, 2.5, 60, 60.1, "the limit passed"), sync_seconds=2.5
        ),
        PastFreeze(18, -1, "", "thawed", True, -1, -1, 2.1, 2.2, "", 1769860900.0),
    ]
    asked: list[Any] = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append((method, params))
        return status_record(history=[dump(one) for one in entries])

    code, out, err = run_virtagentctl(tmp_path / "a", "history", answer=answer)
    assert (code, err) == (0, "")
    assert asked == [("va.fsstatus", [{"history": True, "brief": True}])]
    head, good, expired, note = out.splitlines()
    assert head.split() == ["freeze", "began", "(UTC)", "by", "result", "synced", "sync", "still"]
    assert good.split() == ["18", "-", "-", "good", "-", "-", "2.2", "s"]
    assert expired.split()[0] == "17"
    assert expired.endswith("pid 4711  BROKEN  1 MiB   2.5 s  1 min")
    assert note.strip() == "the limit passed"
    assert [
        one["freeze_id"] for one in json.loads(run_virtagentctl(tmp_path / "b", "--json", "history", answer=answer)[1])
    ] == [17, 18]


@pytest.mark.parametrize("history", [[], None])
def test_the_command_when_there_is_none(tmp_path: Path, history: list[Any] | None) -> None:
    record = status_record() if history is None else status_record(history=history)
    out = run_virtagentctl(tmp_path / "a", "history", answer=lambda *_: record)[1]
    assert out == "no freeze since the agent started\n"

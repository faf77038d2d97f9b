"""What operators and monitoring see of the writers: plan, status, watch, doctor, metrics, report, titles."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.drive import Drive
from virtagent.agent.api.records import (
    Last,
    Mount,
    Plan,
    PlannedWriter,
    Status,
    WriterSeconds,
    WriterStatus,
    dump,
    load,
)
from virtagent.agent.api.writers import TYPES, Step, WriterConfig
from virtagent.agent.worker import messages
from virtagent.agent.worker.writers import preview
from virtagent.host import doctor, metrics, outcome, text
from virtagent.host.group import GroupFreeze
from virtagent.host.snapshot import Report
from virtagent.supervisor.core import events
from virtagent.supervisor.main import describe

DB = PlannedWriter("db", "mariadb", "session", True, (), ("/srv/db", "/logs"), ("/logs",))
GONE = PlannedWriter("orders", "hook", "latch", False, ("db",), (), (), "/opt/orders: No such file or directory")
MOUNTS = (Mount("/srv/db", (), "8:1", "ext4"),)
HELD = WriterStatus(
    "db",
    "mariadb",
    "session",
    "confirmed",
    True,
    WriterSeconds(0.01, 0.002, 3.5),
    paths=("/srv/db",),
    info={"gtid": "0-1-42"},
)
GOOD = Last(7, "thawed", True, 3.5, 0.04, consistency="application", writers=(HELD,), app_stall_seconds=3.6)


def test_the_plan() -> None:
    lines = list(text.plan_lines(Plan(MOUNTS, writers=(DB, GONE))))
    assert lines[-3:] == [
        "writers",
        "  db      mariadb  /srv/db, /logs, NOT FROZEN: /logs",
        "  orders  hook     not required, after db, its paths are not known, /opt/orders: No such file or directory",
    ]


def test_the_plan_of_the_daemon() -> None:
    lines = describe(Plan(MOUNTS, writers=(DB, GONE))).splitlines()
    assert lines[-3:] == [
        "writers: 2",
        "  db (mariadb); /srv/db, /logs; NOT FROZEN: /logs",
        "  orders (hook); not required; after db; its paths are not known; /opt/orders: No such file or directory",
    ]
    assert "writers" not in describe(Plan(MOUNTS))


def test_a_plan_with_writers_is_read_as_it_was_sent() -> None:
    plan = Plan(MOUNTS, writers=(DB, GONE))
    assert Plan.load(plan.dump()) == plan


def test_the_status_and_what_changes() -> None:
    after = Status("FROZEN", 2, 9, writers=(HELD,))
    before = Status("FROZEN", 2, 8, writers=(WriterStatus("db", "mariadb", state="quiesced"),))
    line = "db  mariadb  confirmed  held 3.5 s  gtid 0-1-42"
    assert f"  {line}" in list(text.status_lines(after))
    assert list(text.changes(before, after)) == [f"writer {line}"]
    assert list(text.changes(after, after)) == []
    assert "applications 3.6 s, consistent for applications" in text.last_freeze(GOOD)


@pytest.mark.parametrize(
    ("writer", "level", "said"),
    [
        (PlannedWriter("a", "redis", paths=("/r",)), "ok", "writer a (redis): /r"),
        (DB, "warn", "writer db (mariadb) has data on what is not frozen: /logs; a snapshot of it is not consistent"),
        (GONE, "warn", "writer orders (hook) would refuse the freeze: /opt/orders: No such file or directory"),
        (PlannedWriter("a", "hook", error="no"), "FAIL", "writer a (hook) would refuse the freeze: no"),
    ],
)
def test_the_doctor_about_the_plan(writer: PlannedWriter, level: str, said: str) -> None:
    found = list(doctor.of_plan(Plan(MOUNTS, writers=(writer,))))
    assert (found[-1].level.value, found[-1].found) == (level, said)


def test_the_doctor_about_one_that_is_stuck() -> None:
    stuck = WriterStatus("db", state="stuck", error="the disk is full")
    (wrong,) = [c for c in doctor.of_status(Status("THAWED", 0, 1, writers=(stuck,))) if c.level is doctor.Level.FAIL]
    assert wrong.found == "writer db could not be let go, and each freeze is refused until it is: the disk is full"


def test_metrics() -> None:
    found = {s.family: s.value for s in metrics.samples("a", Status("THAWED", 0, 1, writers=(HELD,), last=GOOD))}
    assert found["virtagent_last_app_stall_seconds"] == 3.6
    assert found["virtagent_last_application_consistent"] == 1
    assert found["virtagent_writers"] == 1
    without = {s.family for s in metrics.samples("a", Status("THAWED", 0, 1, last=Last(7, "thawed")))}
    assert not {name for name in without if "app" in name}


def test_the_report_of_a_snapshot_has_what_whoever_restores_needs() -> None:
    one: Any = SimpleNamespace(
        count=1,
        freeze_id=7,
        mounts=("/srv/db",),
        held_seconds=3.5,
        broken=None,
        not_extended="",
        cannot_wait="",
        frozen_at=-1.0,
        last=GOOD,
        status=Status("FROZEN", 2, 1),
    )
    report = Report(GroupFreeze({"unix:/a": one}, skew=0, skew_by_agents=0), status=0, seconds=1)
    guest = outcome.document(report, "", 0)["guests"]["unix:/a"]
    assert guest["last"]["consistency"] == "application"
    assert guest["writers"][0]["info"] == {"gtid": "0-1-42"}
    assert "writer db  mariadb  confirmed  held 3.5 s  gtid 0-1-42" in list(outcome.lines(report))


def test_last_is_read_as_it_was_sent() -> None:
    assert load(Last, dump(GOOD), "last") == GOOD


# -- what a plan asks


def test_a_preview_asks_nobody_who_need_not_be_asked(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    writers = (
        WriterConfig("a", "hook", path=str(hook)),
        WriterConfig("b", "hook", path=f"{tmp_path}/none", after=("a",)),
        WriterConfig("c", "redis", socket=f"{tmp_path}/s", paths=(str(tmp_path),)),
    )
    a, b, c = preview.preview(writers, (), required=True)
    assert (a.error, a.paths, a.not_frozen) == ("", (), ())
    assert (b.error, b.after) == (f"{tmp_path}/none: No such file or directory", ("a",))
    assert (c.error, c.paths, c.not_frozen) == (
        f"{tmp_path}/s: No such file or directory",
        (str(tmp_path),),
        (str(tmp_path),),
    )
    assert not preview.preview(writers, (), required=False)[0].required


def test_a_preview_names_a_user_that_is_not_there() -> None:
    words = ("/bin/true",)
    writers = (
        WriterConfig("a", "pair", freeze=words, thaw=words, user="nobody-of-that-name"),
        WriterConfig("b", "live", command=words, user="nobody-of-that-name"),
    )
    for planned in preview.preview(writers, (), required=True):
        assert planned.error == "there is no user nobody-of-that-name"


@pytest.mark.parametrize("socket", ["db..local:6379", f"{'x' * 64}:6379", "\udcfc:6379", "/\ud8ff"])
def test_a_name_that_can_be_none_is_told_and_hides_no_other(socket: str) -> None:
    writers = (WriterConfig("a", "redis", socket=socket), WriterConfig("b", "hook", path="/nothing/there"))
    a, b = preview.preview(writers, (), required=True)
    assert a.error.startswith(f"{socket}: ")
    assert b.error == "/nothing/there: No such file or directory"


def test_a_path_or_a_program_behind_a_server_that_does_not_answer_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()

    def hangs(*_: object) -> tuple[str, ...]:
        answers.wait(3)
        return ()

    monkeypatch.setattr(preview, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(preview, "LOOKS", {"live": hangs, "redis": lambda *_: ("/hung/db", "/srv")})
    monkeypatch.setattr(preview, "devices_of", lambda _: {"/hung/db": "unknown", "/srv": "8:1"})
    writers = (WriterConfig("a", "live", command=("/hung/a",)), WriterConfig("b", "redis"))
    try:
        a, b = preview.preview(writers, ("8:1",), required=True)
    finally:
        answers.set()
    assert a.error == "it did not answer within 0.1 s"
    assert (b.error, b.not_frozen) == ("where /hung/db lies is not known: its server does not answer", ("/hung/db",))


def test_every_type_is_asked() -> None:
    assert preview.LOOKS.keys() == TYPES.keys()


def test_a_plan_gets_the_writers_of_the_configuration() -> None:
    writer = WriterConfig("a", "hook", path="/h")
    drive = Drive(every_writer=(writer,))
    drive.ask("va.fsplan")
    args = drive.spawned[drive.newest].args
    assert (args["writers"], args["options"].waits) == ((writer,), True)
    drive.ask("va.fsplan", {"writers": "none"})
    assert not drive.spawned[drive.newest].args["options"].waits


# -- titles


def test_the_title_names_those_that_are_waited_for() -> None:
    limits = {f"{step.value}_limit": 5.0 for step in Step}
    drive = Drive(every_writer=tuple(WriterConfig(name, "hook", path="/h", **limits) for name in ("a", "b")))  # type: ignore[arg-type]

    def title() -> str:
        return [effect.text for effect in drive.effects if isinstance(effect, events.SetTitle)][-1]

    drive.begin(1)
    one, two = sorted(w for w, s in drive.spawned.items() if s.rpc == "writer")
    for number in (one, two):
        drive.report(number, messages.Started(1))
    assert title() == "prepare a, b"
    drive.report(one, messages.Acted("prepare", "ok", "", {}))
    assert title() == "prepare b"
    drive.report(two, messages.Acted("prepare", "refused", "no", {}))
    assert title() == "thawed; writers letting go: a, b"
    for number in (one, two):
        drive.report(number, messages.Acted("release", "ok", "", {}))
        drive.exit(number)
    assert title() == "thawed"

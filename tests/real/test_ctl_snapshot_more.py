"""virtagentctl snapshot: dry run, retries, the report as a file, who is told when it is not good, the countdown."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import LAST
from fakes.many_agents import ManyAgents
from test_ctl_snapshot import GOOD, Guest, snapshot
from virtagent.agent.api.records import Status, load
from virtagent.host import snapshot as taking
from virtagent.host.group import GroupFreeze
from virtagent.host.holding import Freeze

BROKEN = LAST | {"freeze_id": 17}


def test_a_dry_run_shows_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    plan = {"mounts": [{"mountpoint": "/srv/db", "fstype": "ext4", "device": "8:1"}], "left_out": []}
    asked: list[Any] = []

    def refuse(n: int, method: str) -> Any:
        asked.append(method)
        return plan if method == "va.fsplan" else None

    with ManyAgents(tmp_path, 2, refuse) as agents:
        for urls in (agents.urls[:1], agents.urls):
            ran = snapshot("snapshot", "--dry-run", "--include", "/srv/*", "--", "cp", "a b", "c", urls=urls)
            assert (ran.returncode, ran.stderr) == (0, "would run: cp 'a b' c\n")
            assert ran.stdout.count("/srv/db") == len(urls)
        assert not agents.frozen
    assert set(asked) <= {"va.fsplan", "guest-info"}


class Flaky(Guest):
    """An agent whose first freezes are broken."""

    def __init__(self, path: Path, broken: int) -> None:
        super().__init__(path)
        self.left = broken

    def answer(self, method: str, params: list[Any]) -> Any:
        if method == "va.fsfreeze":
            self._last = BROKEN if self.left else GOOD
            self.left = max(0, self.left - 1)
        return super().answer(method, params)


@pytest.mark.parametrize(
    ("broken", "retries", "code", "runs"), [(2, 2, 0, 3), (2, 1, 5, 2), (0, 5, 0, 1), (1, 0, 5, 1)]
)
def test_a_broken_freeze_is_tried_again(tmp_path: Path, broken: int, retries: int, code: int, runs: int) -> None:
    count = tmp_path / "count"
    guest = Flaky(tmp_path / "a", broken)
    with guest.agent:
        argv = ["snapshot", "--retry", str(retries), "--", "sh", "-c", f"echo x >> {count}"]
        ran = snapshot(*argv, urls=[guest.agent.url])
    assert ran.returncode == code
    assert count.read_text() == "x\n" * runs
    assert ran.stderr.count("trying again in") == runs - 1


def test_a_command_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "a")
    with guest.agent:
        ran = snapshot("snapshot", "--retry", "3", "--", "false", urls=[guest.agent.url])
    assert ran.returncode == 1
    assert guest.asked.count("va.fsfreeze") == 1


def test_the_report_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for last, good in ((GOOD, True), (BROKEN, False)):
        guest = Guest(tmp_path / f"a{good}", last=last)
        with guest.agent:
            ran = snapshot("snapshot", "--report", str(file), "--json", "--", "true", urls=[guest.agent.url])
        report = json.loads(file.read_text())
        assert report == json.loads(ran.stdout)
        assert (report["good"], report["exit"]) == (good, ran.returncode)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("report")] == ["report.json"]


def test_a_report_that_cannot_be_kept_is_told_before_anything_is_frozen(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "a")
    with guest.agent:
        ran = snapshot("snapshot", "--report", str(tmp_path / "no/report"), "--", "true", urls=[guest.agent.url])
    assert ran.returncode == 2
    said = f"the report cannot be written to {tmp_path}/no/report (No such file or directory); nothing was frozen"
    assert said in ran.stderr
    assert "va.fsfreeze" not in guest.asked


def test_who_is_told_when_it_is_not_good(tmp_path: Path) -> None:
    told = tmp_path / "told"
    tell = f'printf "%s %s" "$VIRTAGENT_EXIT" "$VIRTAGENT_ERROR" > {told}'
    for last, words in ((GOOD, ""), (BROKEN, "5 ")):
        guest = Guest(tmp_path / f"a{len(words)}", last=last)
        with guest.agent:
            ran = snapshot("snapshot", "--notify", tell, "--", "true", urls=[guest.agent.url])
        assert told.exists() == bool(words)
        assert ran.returncode == (5 if words else 0)
    assert told.read_text().startswith("5 ")
    assert "freeze 17 was not held without a break" in told.read_text()
    guest = Guest(tmp_path / "a", last=BROKEN)
    with guest.agent:
        ran = snapshot("snapshot", "--notify", "exit 7", "--", "true", urls=[guest.agent.url])
    assert (ran.returncode, "virtagentctl: --notify ended with 7\n" in ran.stderr) == (5, True)


def test_the_countdown_while_the_command_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds))
        if seconds > 100:
            raise asyncio.CancelledError  # as when the command has ended

    monkeypatch.setattr(taking.asyncio, "sleep", sleep)
    status = load(Status, {"state": "FROZEN", "code": 2, "seq": 1}, "status")

    def group(*holds: float) -> GroupFreeze:
        freezes = {f"unix:/{n}": Freeze(1, 1, ("/",), 0.0, hold, status) for n, hold in enumerate(holds)}
        return GroupFreeze(freezes, skew=0, skew_by_agents=0)

    asyncio.run(taking._count_down(group(400, 40, -1), extended=False))
    lines = capsys.readouterr().err.splitlines()
    assert slept == [10, 20, 30, 36]
    assert [line.partition(", at ")[0] for line in lines] == [
        "the guest has stood still for 10 s; it thaws by itself in 30 s",
        "the guest has stood still for 20 s; it thaws by itself in 20 s",
        "the guest has stood still for 30 s; it thaws by itself in 10 s",
        "the guest has stood still for 36 s; it thaws by itself in 4 s",
    ]
    asyncio.run(taking._count_down(group(3), extended=False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("hold", "extended", "how"),
    [(40, True, "its hold is extended until the command has ended"), (-1, False, "its hold has no limit")],
)
def test_a_guest_that_stands_still_without_an_end_in_sight(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hold: float, extended: bool, how: str
) -> None:
    """U9: with --extend nothing moved for as long as a backup took."""

    async def sleep(seconds: float) -> None:
        if seconds > 100:
            raise asyncio.CancelledError  # as when the command has ended

    monkeypatch.setattr(taking.asyncio, "sleep", sleep)
    status = load(Status, {"state": "FROZEN", "code": 2, "seq": 1}, "status")
    freezes = {"unix:/a": Freeze(1, 1, ("/",), 0.0, hold, status)}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(taking._count_down(GroupFreeze(freezes, skew=0, skew_by_agents=0), extended=extended))
    assert capsys.readouterr().err.splitlines() == [
        f"the guest has stood still for {long}; {how}" for long in ("15 s", "30 s", "1 min")
    ]

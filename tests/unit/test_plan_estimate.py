"""What a plan says besides the file systems: how long a freeze would take, and which options count, and whence (P8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import run_virtagentctl
from fakes.drive import Drive, plan_of
from virtagent.agent.api import forecast
from virtagent.agent.api.options import Options
from virtagent.agent.api.records import Estimate, InForce, PastFreeze, Plan
from virtagent.agent.worker.progress import estimated
from virtagent.supervisor.config import Config, build
from virtagent.supervisor.core.estimates import NAMES, expected, in_force
from virtagent.supervisor.core.options import freeze_options

MIB = 1 << 20
GOOD = PastFreeze(
    *(3, 0.0, "", "thawed", True, 360 * MIB, 2.5, 2.0, 2.02, "", 1.0),
    sync_seconds=2.0,
    freeze_seconds=0.015,
    thaw_seconds=0.005,
)


def whence(config: Config, options: Options) -> dict[str, tuple[str, str, str]]:
    return {one.name: (one.value, one.whence, one.file) for one in in_force(config, options) if one.whence != "default"}


def test_the_rate_is_that_of_the_last_sync_that_had_one() -> None:
    short = PastFreeze(4, sync_seconds=0.01, synced_bytes=100 * MIB, outcome="thawed", held_continuously=True)
    assert expected([GOOD, short]).bytes_per_second == 180 * MIB
    assert expected([short]).bytes_per_second == expected([]).bytes_per_second == -1


def test_the_standstill_is_the_longest_of_the_good_ones_without_the_hold() -> None:
    bad = PastFreeze(5, outcome="broken", freeze_seconds=9.0, thaw_seconds=9.0)
    assert expected([GOOD, bad]).still_seconds == pytest.approx(0.02)
    assert expected([bad]).still_seconds == -1


def test_what_would_be_synced_takes_what_rate_and_bytes_say() -> None:
    found = estimated(expected([GOOD]), (), 60.0)
    assert found.whole_guest, "nothing is planned, so nothing is known apart"
    assert found.dirty_bytes >= 0
    assert found.sync_seconds == found.dirty_bytes / (180 * MIB)
    assert found.hold_limit == 60
    assert estimated(Estimate(), (), 0.0).sync_seconds == -1, "without a rate nobody knows"


def test_each_option_says_whence_it_is() -> None:
    config = build(
        {"sync-limit": ["90"]},
        {"sync-limit": ["80"], "hold-limit": ["30"], "exclude": ["/mnt/*"]},
        ("/etc/v.conf", True),
        {},
    )
    found = whence(config, freeze_options(config, "va.fsplan", {"freeze_limit": 5.0, "include": ["/srv/*"]}))
    assert found == {
        "sync-limit": ("90", "command line", ""),
        "hold-limit": ("30", "file", "/etc/v.conf"),
        "exclude": ("/mnt/*", "file", "/etc/v.conf"),
        "freeze-limit": ("5", "request", ""),
        "include": ("/srv/*", "request", ""),
    }


def test_by_default_all_are_named_and_none_is_given() -> None:
    config = build({}, {}, ("/etc/v.conf", False), {})
    options = freeze_options(config, "va.fsplan", None)
    assert whence(config, options) == {}
    assert [one.name for one in in_force(config, options)] == list(NAMES)


def test_the_worker_of_a_plan_gets_them() -> None:
    drive = Drive(hold_limit=44)
    drive.ask("va.fsplan", {"strict": True})
    args = drive.spawned[drive.newest].args
    assert InForce("strict", "yes", "request") in args["in_force"]
    assert args["estimate"] == Estimate()
    assert args["options"].hold_limit == 44


def test_a_plan_with_them_is_sent_and_read_whole() -> None:
    found = Plan(
        plan_of(1).mounts,
        estimate=Estimate(5, False, 1.0, 5.0, 0.1, 60.0),
        options=(InForce("strict", "no", "default"),),
    )
    assert Plan.load(found.dump()) == found


def test_the_command(tmp_path: Path) -> None:
    estimate = Estimate(412 * MIB, True, 180.0 * MIB, 2.3, 0.02, 60.0)
    options = (InForce("hold-limit", "30", "file", "/etc/v.conf"), InForce("sync-limit", "600", "default"))

    def answer(method: str, params: list[Any]) -> Any:
        return Plan(plan_of(1).mounts, estimate=estimate, options=options).dump()

    code, out, _ = run_virtagentctl(tmp_path / "a", "plan", answer=answer)
    assert code == 0
    assert out.splitlines()[-4:] == [
        "if run now: 412 MiB to write (of the whole guest), sync about 2.3 s at 180 MiB/s, standstill about 20 ms "
        "and the hold, thaws by itself after 1 min",
        "options in force",
        "  hold-limit  30  /etc/v.conf",
        "  by default: sync-limit 600",
    ]


def test_what_is_not_known_is_not_said() -> None:
    assert forecast.sentence(Estimate()) == ""
    assert "sync" not in forecast.sentence(Estimate(dirty_bytes=5))
    assert list(forecast.lines(Plan(()))) == []

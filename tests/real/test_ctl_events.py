"""virtagentctl --events in front of real daemons: every command that has it, and a group."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from harness.rig import Rig
from virtagent.agent.api import records
from virtagent.host import Agent

CTL = [sys.executable, "-m", "virtagent.host.main"]


def ctl(*words: str, exit: int = 0) -> list[dict[str, Any]]:
    ended = subprocess.run([*CTL, *words], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == exit, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def test_freeze_hold_and_thaw(rig: Rig) -> None:
    fs = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon(fs)
    agent = ["--agent", daemon.url]
    events = ctl(*agent, "freeze", "--hold", "30", "--events")
    assert events[0]["event"] == "phase"
    assert {event["agent"] for event in events[:-1]} == {daemon.url}
    (held,) = of(events, "held")
    assert (held["frozen"], held["freeze_id"]) == (2, events[-1]["freeze_id"])
    assert 0 < held["hold_left"] <= 30
    frozen = {event["mountpoint"] for event in of(events, "mount") if event["state"] == "frozen"}
    assert frozen == {str(one) for one in fs}
    assert {event["device"] for event in of(events, "mount")} == {mount.device for mount in plan(daemon.url)}
    assert (events[-1]["event"], events[-1]["frozen"], events[-1]["exit"]) == ("result", 2, 0)
    events = ctl(*agent, "thaw", "--events")
    (end,) = of(events, "end")
    assert end.keys() >= set(records.Last.__slots__)
    assert (end["freeze_id"], end["outcome"], end["held_continuously"]) == (held["freeze_id"], "thawed", True)
    assert (events[-1]["event"], events[-1]["thawed"]) == ("result", 2)
    assert ctl(*agent, "thaw", "--events", exit=6)[-1]["exit"] == 6


def plan(url: str) -> tuple[records.Mount, ...]:
    with Agent(url) as agent:
        return agent.plan().mounts


def test_a_snapshot_of_a_group(rig: Rig) -> None:
    fs = [rig.fs("ext4"), rig.fs("ext4")]
    urls = [rig.daemon([one]).url for one in fs]
    words = [word for url in urls for word in ("--agent", url)]
    events = ctl(*words, "snapshot", "--events", "--hold", "30", "--", "echo", "this is the command's")
    for url in urls:
        mine = [event for event in events if event.get("agent") == url]
        kinds = [event["event"] for event in mine]
        assert kinds.index("held") < kinds.index("end")
        assert of(mine, "end")[0]["held_continuously"]
    result = events[-1]
    assert (result["event"], result["good"], result["exit"], result["command"]["status"]) == ("result", True, 0, 0)
    assert set(result["guests"]) == set(urls)


def test_a_broken_snapshot(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")])
    events = ctl("--agent", daemon.url, "snapshot", "--hold", "0.3", "--events", "--", "sleep", "1", exit=5)
    (end,) = of(events, "end")
    assert (end["outcome"], end["held_continuously"]) == ("expired", False)
    assert (events[-1]["good"], events[-1]["exit"]) == (False, 5)


def test_sync_and_watch_of_a_group(rig: Rig) -> None:
    urls = [rig.daemon([rig.fs("ext4")]).url for _ in range(2)]
    words = [word for url in urls for word in ("--agent", url)]
    events = ctl(*words, "sync", "--events")
    assert events[-1] | {"t": ""} == {"t": "", "event": "result", "exit": 0, **{url: {"synced": 1} for url in urls}}
    events = ctl(*words, "watch", "--until", "THAWED", "--events")
    assert {event["agent"] for event in of(events, "phase")} == set(urls)
    assert events[-1]["event"] == "result"

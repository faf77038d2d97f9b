"""--events: what lines come of a run of records, and of commands in front of an agent of the test's making."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import LAST, MOUNT, run_virtagentctl, status_record
from virtagent.agent.api import records
from virtagent.host import events
from virtagent.host.guest_status import GuestStatus

Run = Callable[..., tuple[int, str, str]]
REST = {"state": "THAWED", "code": 0, "phase": "", "hold_left": -1, "mounts": [], "workers": [], "freeze_id": 0}


def record(seq: int, **changed: Any) -> records.Status:
    return records.load(records.Status, status_record(seq=seq, **changed), "va.fsstatus")


def syncing(seq: int, mount: str, flushed: int = -1) -> records.Status:
    going = {"state": "INPROGRESS", "code": 1, "phase": "sync", "limit_left": 590.0, "hold_left": -1}
    progress = {"dirty_bytes": 100, "flushed_bytes": flushed, "bytes_per_second": -1.0, "eta": -1.0}
    return record(seq, **going, mounts=[MOUNT | {"state": mount}], **({"progress": progress} if flushed >= 0 else {}))


RUN = [
    record(1, **REST, last=LAST),
    syncing(2, "syncing"),
    syncing(3, "syncing", 10),
    syncing(4, "synced", 10),
    record(5),
    record(6),
    record(7, **REST | {"mounts": [MOUNT | {"state": "thawed"}]}, last=LAST | {"freeze_id": 17, "outcome": "thawed"}),
]
KINDS = [
    ["phase"],
    ["phase", "mount"],
    ["progress"],
    ["mount"],
    ["phase", "mount", "held"],
    [],
    ["phase", "mount", "end"],
]


def test_each_change_is_told_once() -> None:
    found = [list(events.changes(old, new)) for old, new in zip([None, *RUN], RUN, strict=False)]
    assert [[event["event"] for event in some] for some in found] == KINDS
    assert found[1][0] == {
        "event": "phase",
        "freeze_id": 17,
        "state": "INPROGRESS",
        "phase": "sync",
        "limit_left": 590.0,
    }
    mount = found[1][1]
    assert (mount["mountpoint"], mount["device"], mount["state"]) == ("/srv/db", "7:0", "syncing")
    assert "aliases" not in mount
    assert (found[2][0]["flushed_bytes"], found[2][0]["eta"]) == (10, -1.0)
    assert found[4][2] == {"event": "held", "freeze_id": 17, "frozen": 1, "hold_left": 41.0}
    end = dict(found[6][2])
    assert end.pop("summary").startswith("thawed: the hold limit passed; 4 file systems held 1 min, synced 48 MiB")
    assert end == records.dump(RUN[6].last) | {"event": "end"}


def test_a_second_freeze_that_nobody_saw_begin_is_held_too() -> None:
    assert [event["event"] for event in events.changes(record(5), record(9, freeze_id=18))] == ["phase", "held"]


def test_what_was_left_out_and_an_old_end_are_no_events() -> None:
    mounts = [MOUNT | {"state": "left-out", "reason": "network"}]
    assert [event["event"] for event in events.changes(None, record(1, **REST | {"mounts": mounts}, last=LAST))] == [
        "phase"
    ]


def test_progress_comes_at_most_once_a_second_for_each_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(events.time, "monotonic", lambda: now)
    out = io.StringIO()
    lines = events.EventLines(out)
    for step in range(11):
        now = 100.0 + step / 4
        for url in ("unix:/a", "unix:/b"):
            lines.put(GuestStatus.of(url, syncing(step, "syncing", step)))
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    told = [event["flushed_bytes"] for event in found if event["event"] == "progress" and event["agent"] == "unix:/a"]
    assert told == [0, 4, 8]
    assert {event["agent"] for event in found} == {"unix:/a", "unix:/b"}


def test_a_stream_that_is_gone_is_written_to_no_more() -> None:
    class Gone(io.StringIO):
        def write(self, _words: str) -> int:
            raise BrokenPipeError

    lines = events.EventLines(Gone())
    for one in RUN:
        lines.put(GuestStatus.of("unix:/a", one))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_virtagentctl, tmp_path / "a")


def said(out: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in out.splitlines()]
    assert all(line["t"].endswith("Z") and "T" in line["t"] for line in found)
    return found


@pytest.mark.parametrize("command", ["freeze", "sync", "thaw"])
def test_the_last_line_is_the_result(run: Run, command: str) -> None:
    def answer(method: str, params: list[Any]) -> Any:
        return status_record() if method == "va.fsstatus" else 2

    code, out, err = run(command, "--events", answer=answer)
    lines = said(out)
    _, as_json, _ = run(command, "--json", answer=answer)
    assert (code, err) == (0, "")
    assert lines[-1] == {"t": lines[-1]["t"], "event": "result", "exit": 0, **json.loads(as_json)}
    assert {"phase", "mount", "held"} <= {line["event"] for line in lines}


def test_what_goes_wrong_is_the_result_too(run: Run) -> None:
    def answer(method: str, params: list[Any]) -> Any:
        if method == "va.fsstatus":
            return status_record()
        raise xmlrpc.Fault(2, "no")

    code, out, err = run("freeze", "--events", answer=answer)
    assert (code, err[:16]) == (1, "virtagentctl: no")
    last = said(out)[-1]
    assert (last["event"], last["exit"], last["error"]["name"]) == ("result", 1, "WRONG_STATE")
    code, out, _ = run("freeze", "--events", "--bogus", answer=answer)
    (only,) = said(out)
    assert (code, only["event"], only["exit"], only["error"]["name"]) == (2, "result", 2, "USAGE")


def test_a_command_without_events_refuses_them(run: Run) -> None:
    code, _, err = run("ping", "--events", answer=lambda method, params: "dummy")
    assert code == 2
    assert "unrecognized arguments: --events" in err


def test_a_sync_ends_and_tells_nothing_of_an_old_freeze(run: Run) -> None:
    rest = REST | {"freeze_id": 16, "mounts": [MOUNT | {"state": "thawed"}]}
    mounts = [MOUNT | {"state": "syncing"}]
    progress = {"dirty_bytes": 0, "flushed_bytes": 4096, "bytes_per_second": -1.0, "eta": -1.0}
    seq = iter(range(1, 100))
    asked: list[str] = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append(method)
        if method == "va.fssync":
            return 1
        going = len(asked) > 1 and "va.fssync" not in asked
        changed = {"phase": "sync", "since": 2.0, "mounts": mounts, "progress": progress} if going else {}
        return status_record(**rest | changed, seq=next(seq))

    code, out, _ = run("sync", "--events", answer=answer)
    *lines, end, result = said(out)
    assert code == 0
    assert (end["event"], end["outcome"], end["synced"], end["error"], end["freeze_id"]) == ("end", "synced", 1, "", 0)
    assert result["event"] == "result"
    assert not [line for line in lines if line["event"] == "mount" and line["state"] == "thawed"]


def test_the_end_of_a_sync_has_its_figures() -> None:
    rest = record(1, **REST | {"freeze_id": 16})
    progress = {"dirty_bytes": 0, "flushed_bytes": 4096, "bytes_per_second": -1.0, "eta": -1.0}
    going = record(2, **REST | {"freeze_id": 16, "phase": "sync", "since": 2.0, "progress": progress})
    out = io.StringIO()
    lines = events.EventLines(out)
    for one in (rest, going, record(3, **REST | {"freeze_id": 16})):
        lines.put(GuestStatus.of("unix:/a", one))
    lines.sync_ended("unix:/a", 1)
    lines.sync_ended("unix:/a", -1, "it hangs")
    *_, good, bad = said(out.getvalue())
    assert good["sync_seconds"] >= 2.0
    assert good["synced_bytes"] == 4096
    assert (bad["outcome"], bad["error"], bad["sync_seconds"], bad["synced_bytes"]) == ("failed", "it hangs", -1.0, -1)
    assert {line["freeze_id"] for line in said(out.getvalue()) if line.get("phase") == "sync"} == {0}

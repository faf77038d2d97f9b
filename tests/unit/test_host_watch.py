"""virtagentctl watch: a line a change that matters, from long polls."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import LAST, MOUNT, WORKER, Answer, run_virtagentctl, status_record
from virtagent.host import calls

Run = Callable[..., tuple[int, str, str]]

DIRTY = {"dirty_bytes": 1 << 20, "flushed_bytes": -1, "bytes_per_second": -1, "eta": 3}


def at(seq: int, phase: str, mount: str, **changed: Any) -> dict[str, Any]:
    """Return the record of a freeze in progress."""
    mounts = [MOUNT | {"state": mount, "seconds": -1, "sync_seconds": -1, "still_seconds": -1}]
    going = {"state": "INPROGRESS", "code": 1, "since": 0.0, "hold_left": -1, "workers": [], "mounts": mounts}
    return status_record(seq=seq, phase=phase, **going | changed)


def thawed(seq: int, **changed: Any) -> dict[str, Any]:
    """Return the record of an agent at rest."""
    rest = {"state": "THAWED", "code": 0, "phase": "", "hold_left": -1, "mounts": [], "workers": []}
    return status_record(seq=seq, **rest | changed)


STUCK = WORKER | {"process_state": "disk-sleep"}
WATCHED = [
    thawed(1),
    at(2, "sync", "pending"),
    at(3, "sync", "pending", since=1.0, progress=DIRTY),
    at(3, "sync", "pending", since=2.0, progress=DIRTY),
    at(4, "freeze", "freezing", workers=[STUCK]),
    at(5, "freeze", "freezing", since=2.0, workers=[STUCK | {"seconds": 20.0}]),
    status_record(seq=6),
    thawed(7, mounts=[MOUNT | {"state": "thawed"}], last=LAST | {"at": -1, "error": ""}),
]
WAIT = 0.25
LINES = """\
THAWED
INPROGRESS: sync for 0 s, freeze 17
pending  /srv/db  ext4  /dev/vdb  also /mnt/db
1 MiB dirty, 3 s left
INPROGRESS: freeze for 0 s, freeze 17
freezing  /srv/db  ext4  /dev/vdb  also /mnt/db
worker 17 va.fsfreeze, pid 4711, hold, 20 s, waits in the kernel (D)
FROZEN: hold for 19 s, freeze 17, thaws in 41 s
frozen  /srv/db  ext4  /dev/vdb  sync 2.5 s, still 19 s  also /mnt/db
THAWED
thawed  /srv/db  ext4  /dev/vdb  sync 2.5 s, still 19 s  also /mnt/db
last freeze: 16 BROKEN; 4 file systems held 1 min, synced 48 MiB in 10.6 s (slowest /srv/db), \
stood still 40 ms (freezing 11 ms, thawing 5 ms)
"""


def polled(records: list[dict[str, Any]], at_end: Answer) -> tuple[Answer, list[Any]]:
    """Answer long polls with these records in turn, an unchanged one after the wait; then as `at_end` does."""
    left, asked = list(records), []

    def answer(method: str, params: list[Any]) -> Any:
        assert method == "va.fsstatus"
        asked.append(params[0])
        if not left:
            return at_end(method, params)
        if left[0]["seq"] == params[0].get("since"):
            threading.Event().wait(params[0]["wait"])
        return left.pop(0)

    return answer, asked


def refusing(code: int, sentence: str) -> Answer:
    def answer(method: str, params: list[Any]) -> Any:
        raise xmlrpc.Fault(code, sentence)

    return answer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_virtagentctl, tmp_path / "a")


def test_watch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STATUS_WAIT", WAIT)
    answer, asked = polled(WATCHED, refusing(12, "enough"))
    code, out, _ = run("watch", answer=answer)
    assert code == 1
    times, lines = zip(*(line.split(" ", 1) for line in out.splitlines()), strict=True)
    assert all(datetime.fromisoformat(time.replace("Z", "+00:00")).utcoffset() is not None for time in times)
    assert "".join(f"{line}\n" for line in lines) == LINES
    assert asked == [{}] + [{"since": record["seq"], "wait": WAIT} for record in WATCHED]


def test_watch_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STATUS_WAIT", WAIT)
    answer, _ = polled(WATCHED, refusing(12, "enough"))
    _, out, _ = run("--json", "watch", answer=answer)
    *records, ended = [json.loads(line) for line in out.splitlines()]
    assert records == WATCHED[:3] + WATCHED[4:]
    assert (ended["error"]["code"], ended["error"]["name"]) == (12, "FAILED")


def test_watch_until(run: Run) -> None:
    records = [WATCHED[0], WATCHED[1], WATCHED[6]]
    code, out, err = run("watch", "--until", "FROZEN", answer=polled(records, refusing(12, "too far"))[0])
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("frozen  /srv/db  ext4  /dev/vdb  sync 2.5 s, still 19 s  also /mnt/db")
    assert run("watch", "--until", "THAWED", answer=polled(records, refusing(12, "too far"))[0])[0] == 0


def test_watch_has_a_time_out_of_its_own(run: Run) -> None:
    def answer(method: str, params: list[Any]) -> Any:
        threading.Event().wait(params[0].get("wait", 0))
        return WATCHED[0]

    code, _, err = run("watch", "--until", "FROZEN", "--timeout", "0.2", answer=answer)
    assert (code, err) == (4, "virtagentctl: the state is still THAWED; watch again, or longer\n")


def test_watch_does_not_spin_on_an_agent_that_does_not_wait(run: Run) -> None:
    code, _, err = run("watch", answer=lambda method, params: WATCHED[0])
    assert code == 1
    assert "does not wait for a change" in err

"""The trace of a snapshot: spans of OTLP's JSON, lengths by the agents' clocks, and a sink that harms nothing."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, status_record
from virtagent.agent.api.records import Status, load
from virtagent.host import trace as module
from virtagent.host import trace_sink
from virtagent.host.errors import FreezeBroken
from virtagent.host.group import GroupFreeze
from virtagent.host.guest_status import GuestStatus
from virtagent.host.holding import Freeze
from virtagent.host.snapshot import Report, Times
from virtagent.host.trace import Trace

URL = "unix:/run/a"
BEGUN = 1_700_000_000_000_000_000
SECONDS = {
    "plan": 0.01, "prepare": 0.2, "sync": 2.0, "quiesce": 0.1, "freeze": 0.05, "confirm": 0.02, "hold": 3.0,
    "thaw": 0.04, "release": 0.01,
}  # fmt: skip
FILE_SYSTEM = MOUNT | {"sync_seconds": 1.0, "freeze_seconds": 0.025}
WRITER = {
    "name": "pg", "type": "postgresql", "hold": "session", "state": "released", "required": True, "error": "",
    "seconds": {"prepare": 0.15, "quiesce": 0.08, "held": 3.1, "release": 0.005},
    "paths": [], "not_frozen": [], "info": {},
}  # fmt: skip

# The members of each message, and what they are, as in opentelemetry-proto (trace/v1/trace.proto,
# common/v1/common.proto, resource/v1/resource.proto) and the JSON mapping of the OTLP specification: ids in
# hexadecimal, enums as integers, 64-bit integers as decimal strings.
HEX16, HEX8, DECIMAL = r"[0-9a-f]{32}", r"[0-9a-f]{16}", r"\d{1,20}"


def is_attributes(found: Any) -> None:
    assert isinstance(found, list)
    assert len({one["key"] for one in found}) == len(found)
    for one in found:
        assert set(one) == {"key", "value"}
        ((kind, value),) = one["value"].items()
        expected = {"stringValue": str, "intValue": str, "doubleValue": float, "boolValue": bool}[kind]
        assert isinstance(value, expected)
        assert kind != "intValue" or re.fullmatch(r"-?\d+", value)


def is_span(span: dict[str, Any]) -> None:
    must = {"traceId", "spanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes", "status"}
    assert must <= set(span) <= must | {"parentSpanId"}
    assert re.fullmatch(HEX16, span["traceId"])
    assert re.fullmatch(HEX8, span["spanId"])
    assert re.fullmatch(HEX8, span.get("parentSpanId", "0" * 16))
    assert span["name"]
    assert span["kind"] in range(1, 6)
    assert isinstance(span["kind"], int)
    for name in ("startTimeUnixNano", "endTimeUnixNano"):
        assert re.fullmatch(DECIMAL, span[name])
    assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    is_attributes(span["attributes"])
    assert set(span["status"]) <= {"code", "message"}
    assert span["status"]["code"] in (0, 1, 2)


def spans_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the spans; require that all is of OTLP's shape, and that each has a parent that encloses it."""
    assert set(document) == {"resourceSpans"}
    (resource_spans,) = document["resourceSpans"]
    assert set(resource_spans) == {"resource", "scopeSpans"}
    assert set(resource_spans["resource"]) == {"attributes"}
    is_attributes(resource_spans["resource"]["attributes"])
    (scope_spans,) = resource_spans["scopeSpans"]
    assert set(scope_spans) == {"scope", "spans"}
    assert set(scope_spans["scope"]) == {"name", "version"}
    spans: list[dict[str, Any]] = scope_spans["spans"]
    for span in spans:
        is_span(span)
    assert len({span["spanId"] for span in spans}) == len(spans)
    assert len({span["traceId"] for span in spans}) == 1
    return json.loads(json.dumps(spans, allow_nan=False))  # type: ignore[no-any-return]


def seconds(span: dict[str, Any]) -> float:
    return (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e9


def about(span: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


class Clock:
    """What the host sees the time at."""

    def __init__(self) -> None:
        self.now = BEGUN

    def time_ns(self) -> int:
        return self.now

    def pass_by(self, length: float) -> None:
        self.now += round(length * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def record(**changed: Any) -> Status:
    return load(Status, status_record(**changed), "status")


def totals(*phases: str, before: float = 100.0) -> dict[str, Any]:
    """Return the totals when these phases are over."""
    spent = {name: before + (SECONDS[name] if name in phases else 0.0) for name in SECONDS}
    return {"freezes": {}, "phase_seconds": spent, "held_seconds": 0.0, "stall_seconds": 0.0, "last_success": -1.0}


def play(trace: Trace, clock: Clock, url: str = URL, *, upto: str = "release", last: dict[str, Any] = LAST) -> None:
    """Tell what an agent tells of a freeze with one file system and one writer, each record 1 ms late."""
    seq, done = 1, []

    def told(**changed: Any) -> None:
        nonlocal seq
        seq += 1
        at, clock.now = clock.now, clock.now + 1_000_000
        trace.tell(GuestStatus.of(url, record(seq=seq, totals=totals(*done), **changed)))
        clock.now = at

    told(state="THAWED", phase="", mounts=[], freeze_id=16)
    for phase, took in SECONDS.items():
        for mount in {
            "sync": ["syncing", "synced"],
            "freeze": ["freezing", "frozen"],
            "thaw": ["thawing", "thawed"],
        }.get(phase, [""]):
            clock.pass_by(took / 2 if mount else took)
            if mount:
                told(phase=phase, mounts=[FILE_SYSTEM | {"state": mount, "seconds": took / 2}])
        done.append(phase)
        if phase == upto:
            break
    told(
        state="THAWED", phase="", mounts=[FILE_SYSTEM | {"state": "thawed"}], writers=[WRITER], last=last, freeze_id=17
    )


def frozen(url: str = URL) -> GroupFreeze:
    return GroupFreeze({url: Freeze(1, 17, ("/srv/db",), BEGUN / 1e9, 60, record())}, 0, 0)


def report_of(frozen_at: int, thaw: int, **more: Any) -> Report:
    times = Times({URL: frozen_at}, frozen_at, thaw, thaw)
    return Report(freeze=frozen(), status=0, seconds=3.0, times=times, **more)


GOOD = LAST | {"freeze_id": 17, "outcome": "thawed", "held_continuously": True, "held_seconds": 3.0, "error": ""}


def test_a_snapshot_has_a_span_for_each_phase_mount_and_writer(clock: Clock) -> None:
    trace = Trace({})
    trace.begin()
    play(trace, clock, last=GOOD)
    until = sum(SECONDS[name] for name in list(SECONDS)[:6])
    frozen_at = BEGUN + round(until * 1e9)
    trace.end(report_of(frozen_at, frozen_at + 3_000_000_000), "")
    spans = {span["name"]: span for span in spans_of(trace.document())}
    assert set(spans) == {
        "snapshot", "guest", "command", *SECONDS, "sync /srv/db", "freeze /srv/db", "thaw /srv/db", "prepare pg",
        "quiesce pg", "release pg",
    }  # fmt: skip
    for name, took in SECONDS.items():
        assert seconds(spans[name]) == pytest.approx(took, abs=1e-6), name
        assert spans[name]["parentSpanId"] == spans["guest"]["spanId"]
    order = [spans[name] for name in SECONDS]
    for one, other in itertools.pairwise(order):
        assert one["endTimeUnixNano"] == other["startTimeUnixNano"], "one phase after the other"
    assert int(spans["hold"]["startTimeUnixNano"]) == frozen_at
    for phase in ("sync", "freeze", "thaw"):
        child = spans[f"{phase} /srv/db"]
        assert child["parentSpanId"] == spans[phase]["spanId"]
        assert seconds(child) == pytest.approx(SECONDS[phase] / 2, abs=1e-6)
        assert about(child)["virtagent.mount"] == "/srv/db"
        assert int(child["startTimeUnixNano"]) >= int(spans[phase]["startTimeUnixNano"])
        assert int(child["endTimeUnixNano"]) <= int(spans[phase]["endTimeUnixNano"])
    assert seconds(spans["quiesce pg"]) == pytest.approx(0.08)
    assert about(spans["quiesce pg"])["virtagent.writer"] == "pg"
    assert spans["guest"]["parentSpanId"] == spans["command"]["parentSpanId"] == spans["snapshot"]["spanId"]
    assert "parentSpanId" not in spans["snapshot"]
    assert {span["status"]["code"] for span in spans.values()} == {module.OK}
    assert about(spans["guest"])["virtagent.freeze_id"] == "17"


def test_a_freeze_that_failed_ends_where_it_failed(clock: Clock) -> None:
    trace = Trace({})
    trace.begin()
    play(trace, clock, upto="sync", last=LAST | {"freeze_id": 17, "outcome": "overran", "error": "too slow"})
    trace.end(Report(error=FreezeBroken("no")), "it failed")
    spans = {span["name"]: span for span in spans_of(trace.document())}
    assert {"plan", "prepare", "sync"} <= set(spans)
    assert not {"freeze", "hold", "thaw", "command"} & set(spans)
    assert spans["snapshot"]["status"] == {"code": module.ERROR, "message": "it failed"}
    assert spans["guest"]["status"] == {"code": module.ERROR, "message": "too slow"}


def test_a_broken_freeze_says_so(clock: Clock) -> None:
    trace = Trace({})
    trace.begin()
    play(trace, clock, last=LAST | {"freeze_id": 17})
    trace.end(report_of(BEGUN, BEGUN + 1), "broken")
    spans = {span["name"]: span for span in spans_of(trace.document())}
    assert spans["guest"]["status"] == {"code": module.ERROR, "message": "the hold limit passed"}


def test_each_try_is_there_and_a_group_has_a_guest_for_each_agent(clock: Clock) -> None:
    trace = Trace({})
    for _ in range(2):
        trace.begin()
        for url in (URL, "unix:/run/b"):
            play(trace, clock, url, last=GOOD)
        trace.end(Report(error=FreezeBroken("no")), "broken")
    names = [span["name"] for span in spans_of(trace.document())]
    assert (names.count("snapshot"), names.count("guest"), names.count("hold")) == (2, 4, 4)


def test_of_a_stock_agent_there_is_what_the_host_saw(clock: Clock) -> None:
    trace = Trace({})
    trace.begin()
    clock.pass_by(10)
    trace.end(report_of(BEGUN + 2_000_000_000, BEGUN + 5_000_000_000), "")
    spans = {span["name"]: span for span in spans_of(trace.document())}
    assert [(name, seconds(spans[name])) for name in ("freeze", "hold", "thaw")] == [
        ("freeze", 2.0), ("hold", 3.0), ("thaw", 5.0)
    ]  # fmt: skip


PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def test_the_trace_goes_on_from_whoever_runs_it_and_into_the_command() -> None:
    trace = Trace({"TRACEPARENT": PARENT})
    trace.begin()
    found = re.fullmatch(f"00-{'a' * 32}-({HEX8})-01", trace.traceparent)
    assert found
    trace.end(Report(times=Times(command_began=1, command_ended=2), status=3), "")
    spans = {span["name"]: span for span in spans_of(trace.document())}
    assert spans["snapshot"]["parentSpanId"] == "b" * 16
    assert spans["command"]["spanId"] == found[1]
    assert spans["command"]["status"]["code"] == module.ERROR
    assert about(spans["command"])["process.exit.code"] == "3"


@pytest.mark.parametrize(
    "bad", ["", "00", f"ff-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01",
            f"00-{'A' * 32}-{'b' * 16}-01", PARENT[:-1]]
)  # fmt: skip
def test_a_traceparent_that_is_none_is_left_alone(bad: str) -> None:
    trace = Trace({"TRACEPARENT": bad})
    assert re.fullmatch(HEX16, trace.id)
    assert trace.id != "a" * 32


# -- sinks


class Collector:
    """A collector of the test's making, over HTTP."""

    def __init__(self, status: int = 200, *, silent: bool = False) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, self.headers["Content-Type"], body))
                if silent:
                    outer.over.wait(30)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.over = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(params=[200])
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    made = Collector(request.param)
    yield made
    made.close()


@pytest.mark.parametrize(("path", "asked"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/x?y=1", "/x?y=1")])
def test_a_collector_gets_it_as_json(collector: Collector, path: str, asked: str) -> None:
    assert trace_sink.keep(collector.url + path, lambda: {"resourceSpans": []}) == ""
    assert collector.got == [(asked, "application/json", b'{"resourceSpans":[]}\n')]


@pytest.mark.parametrize("collector", [503], indirect=True)
def test_a_collector_that_refuses_is_told(collector: Collector) -> None:
    assert trace_sink.keep(collector.url, dict).startswith("503 Service Unavailable")


def test_a_collector_that_is_silent_is_not_waited_for() -> None:
    silent = Collector(silent=True)
    try:
        said = trace_sink.keep(silent.url, dict, 0.2)
        assert "0.2 s" in said or "timed out" in said
    finally:
        silent.close()


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:99999", "http://127.0.0.1:x", "http:///path"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    assert trace_sink.keep(url, dict)


def test_nobody_there_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert trace_sink.keep(f"http://127.0.0.1:{taken.getsockname()[1]}", dict) == "Connection refused"


def test_a_file_is_written_and_what_cannot_be_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("x" * 1000)
    assert trace_sink.keep(str(path), lambda: {"a": 1}) == ""
    assert path.read_bytes() == b'{"a":1}\n'
    assert trace_sink.keep(str(tmp_path / "no/trace"), dict) == "No such file or directory"
    os.mkfifo(tmp_path / "fifo")
    assert trace_sink.keep(str(tmp_path / "fifo"), dict) == "No such device or address"
    assert trace_sink.keep("/dev/full", dict) == "No space left on device"


def test_whatever_goes_wrong_in_making_it_is_told(tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        raise OverflowError("too far")

    assert trace_sink.keep(str(tmp_path / "trace"), make) == "it cannot be made: OverflowError: too far"
    assert "ValueError" in trace_sink.keep(str(tmp_path / "trace"), lambda: {"a": float("nan")})


def test_a_step_that_no_record_was_seen_of_is_there_with_its_length(clock: Clock) -> None:
    trace = Trace({})
    trace.begin()
    for seq, (state, done) in enumerate((("THAWED", ()), ("THAWED", tuple(SECONDS)))):
        mounts = [FILE_SYSTEM | {"state": "thawed", "seconds": 0.001}] if done else []
        trace.tell(
            GuestStatus.of(URL, record(seq=seq, state=state, phase="", totals=totals(*done), mounts=mounts, last=GOOD))
        )
        clock.pass_by(6)
    trace.end(report_of(BEGUN + 3_000_000_000, BEGUN + 5_000_000_000), "")
    spans = {span["name"]: span for span in spans_of(trace.document())}
    assert seconds(spans["sync /srv/db"]) == pytest.approx(1.0)
    assert seconds(spans["freeze /srv/db"]) == pytest.approx(0.025)
    assert "ready" not in spans

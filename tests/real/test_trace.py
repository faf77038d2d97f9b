"""virtagentctl snapshot --trace: a real freeze as spans, and a sink that fails, which harms nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.rig import Rig

CTL = str(Path(sys.executable).with_name("virtagentctl"))
PHASES = ("plan", "prepare", "sync", "quiesce", "freeze", "hold", "thaw", "release")


def snapshot(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [CTL, "--agent", url, "snapshot", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def spans_of(path: Path) -> list[dict[str, Any]]:
    (one,) = json.loads(path.read_text())["resourceSpans"]
    found: list[dict[str, Any]] = one["scopeSpans"][0]["spans"]
    return found


def test_a_real_freeze_has_a_span_for_all_that_was_done(rig: Rig) -> None:
    systems = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon(systems)
    file = rig.area.fresh("trace")
    ran = snapshot(daemon.url, "--trace", str(file), "--", "sh", "-c", "echo $TRACEPARENT")
    assert ran.returncode == 0, ran.stderr
    spans = {span["name"]: span for span in spans_of(file)}
    mounts = [str(fs.path) for fs in systems]
    each = {f"{phase} {mount}" for phase in ("sync", "freeze", "thaw") for mount in mounts}
    assert {"snapshot", "guest", "command", *PHASES, *each} <= set(spans), sorted(spans)
    command = spans["command"]
    assert ran.stdout == f"00-{command['traceId']}-{command['spanId']}-01\n"
    for name in ("startTimeUnixNano", "endTimeUnixNano"):
        times = [int(spans[phase][name]) for phase in PHASES]
        assert times == sorted(times)
    hold = spans["hold"]
    skew = 50_000_000  # the answer's way to the host, and what this machine does meanwhile
    assert int(hold["startTimeUnixNano"]) <= int(command["startTimeUnixNano"])
    assert int(command["endTimeUnixNano"]) <= int(hold["endTimeUnixNano"]) + skew
    assert all(span["status"]["code"] == 1 for span in spans.values())


@pytest.mark.parametrize("target", ["/no/folder/trace", "/dev/full", "http://127.0.0.1:1", "http://[::1"])
def test_a_sink_that_fails_harms_nothing(rig: Rig, target: str) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    ran = snapshot(daemon.url, "--trace", target, "--", "true")
    assert ran.returncode == 0
    assert f"the trace could not be left at {target}" in ran.stderr
    assert "without a break" in ran.stderr
    fs.assert_thawed()

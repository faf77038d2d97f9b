"""virtagentctl metrics: the text, the file, and that rules and dashboard ask for nothing else."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, WORKER, status_record
from virtagent.agent.api.records import Status, load
from virtagent.host import metrics
from virtagent.host.errors import HostError, Unreachable

MONITORING = Path(__file__).resolve().parents[2] / "packaging/monitoring"
LINE = re.compile(r'(virtagent_\w+)\{(agent="(?:[^"\\\n]|\\.)*"(?:,\w+="(?:[^"\\\n]|\\.)*")*)\} -?[0-9.e+-]+')


def record(**changed: Any) -> Status:
    return load(Status, status_record(**changed), "status")


def told(*statuses: tuple[str, Status | None]) -> str:
    return metrics.exposition(sample for url, status in statuses for sample in metrics.samples(url, status))


def values(text: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_every_line_is_openmetrics_and_each_family_is_told_once() -> None:
    text = told(("unix:/a", record(last=LAST)), ("vsock:4:1", record(state="THAWED")), ("unix:/b", None))
    assert text.endswith("# EOF\n")
    seen: list[str] = []
    family = ""
    for line in text.splitlines()[:-1]:
        if line.startswith("# TYPE "):
            family, kind = line.split()[2:]
            assert family not in seen
            assert kind in ("gauge", "counter"), "the textfile collector knows no others of OpenMetrics"
            seen.append(family)
        elif line.startswith("# HELP "):
            assert line.split()[2] == family
        else:
            match = LINE.fullmatch(line)
            assert match, line
            assert match[1] == (f"{family}_total" if metrics.FAMILIES[family][0] == "counter" else family)


def test_for_prometheus_itself_a_counter_has_its_type_and_help_by_its_whole_name() -> None:
    found = [*metrics.samples("a", record(last=LAST)), *metrics.samples("b", None)]
    text, opened = metrics.exposition(found, metrics.PROMETHEUS), metrics.exposition(found)
    assert values(text) == values(opened)
    described = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
    assert described == set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert described == {name.partition("{")[0] for name in values(text)}
    assert "# EOF" not in text


def test_what_an_agent_says() -> None:
    writer = {"name": "pg", "type": "postgres", "state": "released"}
    mounts = [MOUNT, MOUNT | {"mountpoint": "/x"}, MOUNT | {"mountpoint": "/y", "reason": "fuse", "state": "left-out"}]
    stuck = [WORKER, WORKER | {"process_state": "disk-sleep"}]
    found = values(
        told(("a", record(last=LAST, writers=[writer], mounts=mounts, workers=stuck, left_out_counts={"fuse": 7})))
    )
    expected = {
        'virtagent_up{agent="a"}': "1",
        'virtagent_build_info{agent="a",version="0.1.0"}': "1",
        'virtagent_state{agent="a",state="FROZEN"}': "1",
        'virtagent_state{agent="a",state="THAWED"}': "0",
        'virtagent_hold_left_seconds{agent="a"}': "41",
        'virtagent_freezes_total{agent="a",outcome="expired"}': "1",
        'virtagent_phase_seconds_total{agent="a",phase="sync"}': "12.5",
        'virtagent_stall_seconds_total{agent="a"}': "0.75",
        'virtagent_last_success_timestamp_seconds{agent="a"}': "86000",
        'virtagent_last_freeze_good{agent="a"}': "0",
        'virtagent_last_freeze_broken{agent="a"}': "1",
        'virtagent_last_stall_seconds{agent="a"}': "0.04",
        'virtagent_mounts{agent="a",state="frozen"}': "2",
        'virtagent_mounts_left_out{agent="a",reason="fuse"}': "7",
        'virtagent_writers{agent="a",writer="pg",type="postgres",state="released"}': "1",
        'virtagent_workers{agent="a"}': "2",
        'virtagent_workers_stuck{agent="a"}': "1",
        'virtagent_audit_waiting{agent="a"}': "3",
        'virtagent_audit_dropped_total{agent="a"}': "0",
        'virtagent_troubles_total{agent="a"}': "0",
    }
    assert {name: found.get(name) for name in expected} == expected


def test_what_is_not_known_is_not_told() -> None:
    found = values(told(("a", record(hold_left=-1, totals={}, last={}, troubles=-1, uptime=-1))))
    names = {name.partition("{")[0] for name in found}
    assert not names & {"virtagent_hold_left_seconds", "virtagent_troubles_total", "virtagent_uptime_seconds"}
    assert not any(value.startswith("-") for value in found.values())


def test_a_stock_qemu_ga_has_only_a_state() -> None:
    stock = load(Status, {"state": "THAWED", "code": 0, "seq": -1, "version": "stock qemu-ga 7.2"}, "status")
    names = {name.partition("{")[0] for name in values(told(("a", stock)))}
    assert names == {"virtagent_up", "virtagent_build_info", "virtagent_state"}


def test_labels_are_escaped() -> None:
    text = told(('unix:/a"b\\c\nd\udcff', None))
    assert 'virtagent_up{agent="unix:/a\\"b\\\\c\\nd\ufffd"} 0\n' in text


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        metrics.write(str(tmp_path), text)
        assert (tmp_path / "virtagent.prom").read_text() == text
        assert os.listdir(tmp_path) == ["virtagent.prom"]
    assert stat.S_IMODE((tmp_path / "virtagent.prom").stat().st_mode) == 0o644


def test_an_agent_that_does_not_answer_is_told_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"unix:/a": record(), "unix:/b": Unreachable("unix:/b: no connection")}
    assert metrics.tell(found, str(tmp_path), as_json=False) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "no connection" in said.err
    text = (tmp_path / "virtagent.prom").read_text()
    assert "# TYPE virtagent_freezes_total counter\n" in text
    assert 'virtagent_up{agent="unix:/a"} 1\nvirtagent_up{agent="unix:/b"} 0\n' in text
    assert metrics.tell({"unix:/a": record()}, None, as_json=True) == 0
    assert {"name": "virtagent_up", "labels": {"agent": "unix:/a"}, "value": 1} in json.loads(capsys.readouterr().out)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"none/virtagent.prom cannot be written \(No such file or directory\)"):
        metrics.tell({"a": record()}, str(tmp_path / "none"), as_json=False)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bvirtagent_\w+", text))


KNOWN = {f"{name}_total" if kind == "counter" else name for name, (kind, _) in metrics.FAMILIES.items()}


def test_the_alerts_ask_for_what_is_told() -> None:
    assert names_in((MONITORING / "virtagent.rules.yml").read_text()) <= KNOWN


def test_the_dashboard_is_one_and_asks_for_what_is_told() -> None:
    board = json.loads((MONITORING / "virtagent-dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(board)
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["type"] in ("stat", "timeseries", "table")
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert names_in(target["expr"])
            assert names_in(target["expr"]) <= KNOWN
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= variables


SCHEMA = Path(__file__).parents[1] / "data/grafana-dashboard.schema.json"


def wrong_in(board: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema of the extra `test`")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return [error.json_path for error in jsonschema.Draft7Validator(schema).iter_errors(board)]


def test_the_dashboard_is_what_grafana_takes() -> None:
    assert wrong_in(json.loads((MONITORING / "virtagent-dashboard.json").read_text())) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["panels", 0, "type"], "pie"),
        (["panels", 0, "gridPos", "w"], 25),
        (["panels", 0, "targets", 0, "expr"], ""),
        (["panels", 0, "target"], []),
        (["templating", "list", 1, "query"], {"query": "label_values(virtagent_up, agent)"}),
        (["time"], {"from": "now-6h"}),
        (["schemaVersion"], "38"),
    ],
)
def test_what_grafana_would_not_take_is_found(path: list[Any], value: Any) -> None:
    board = json.loads((MONITORING / "virtagent-dashboard.json").read_text())
    part = board
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    assert len(wrong_in(board)) == 1

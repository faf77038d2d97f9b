"""The metrics of a real agent, and the rules and the dashboard, given to Prometheus's own tool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.rig import Rig

MONITORING = Path(__file__).resolve().parents[2] / "packaging/monitoring"
CTL = str(Path(sys.executable).with_name("virtagentctl"))


def promtool(*words: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("needs promtool: of Debian's package prometheus, or as scripts/test fetches it")
    return subprocess.run([found, *words], input=given, capture_output=True, text=True, check=False, timeout=60)


def test_a_freeze_is_counted(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    folder = rig.area.fresh("textfile")
    folder.mkdir()
    daemon.proxy().va.fsfreeze()
    command = [CTL, "--agent", daemon.url, "metrics", "--textfile", str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    assert 'state="FROZEN"} 1\n' in (folder / "virtagent.prom").read_text()
    daemon.proxy().va.fsthaw()
    missing = f"unix:{folder}/none"
    command = [CTL, "--agent", daemon.url, "--agent", missing, "metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert missing in done.stderr
    assert f'virtagent_up{{agent="{daemon.url}"}} 1\nvirtagent_up{{agent="{missing}"}} 0\n' in done.stdout
    assert f'virtagent_freezes_total{{agent="{daemon.url}",outcome="thawed"}} 1\n' in done.stdout
    assert re.search(r'phase_seconds_total\{agent="[^"]*",phase="hold"\} [0-9.]+\n', done.stdout)
    plain = subprocess.run([*command, "--format", "prometheus"], capture_output=True, text=True, check=False).stdout
    for text in (plain, (folder / "virtagent.prom").read_text()):
        checked = promtool("check", "metrics", given=text)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_rules_are_taken_and_fire_when_they_should() -> None:
    for words in (("check", "rules", "virtagent.rules.yml"), ("test", "rules", "virtagent.rules.test.yml")):
        done = promtool(*words[:2], MONITORING / words[2])
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_questions_are_promql(tmp_path: Path) -> None:
    board = json.loads((MONITORING / "virtagent-dashboard.json").read_text())
    exprs = [target["expr"].replace("$agent", ".*") for panel in board["panels"] for target in panel["targets"]]
    rules = [{"record": f"r{i}", "expr": expr} for i, expr in enumerate(exprs)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr

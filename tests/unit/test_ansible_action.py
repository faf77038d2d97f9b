"""The action plugin of the Ansible collection, without Ansible: how it runs virtagentctl, and ends it."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[2] / "packaging/ansible/virtagent/fleet/plugins/action/virtagent_snapshot.py"


class ActionBase:
    """What Ansible gives a plugin, as far as this one takes it."""

    asked: dict[str, Any]

    def __init__(self) -> None:
        self._play_context = self._task = SimpleNamespace(check_mode=False)

    def run(self, _tmp: Any, _task_vars: Any) -> dict[str, Any]:
        return {}

    def validate_argument_spec(self, argument_spec: dict[str, dict[str, Any]], **_: Any) -> tuple[None, dict[str, Any]]:
        return None, {name: self.asked.get(name, spec.get("default")) for name, spec in argument_spec.items()}


class Process:
    """A virtagentctl that is not started."""

    started: Process
    returncode = 0
    hangs = False

    def __init__(self, words: list[str], **options: Any) -> None:
        Process.started, self.words, self.options, self.signals = self, words, options, list[str]()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None: ...

    def communicate(self, *_: Any, **_more: Any) -> tuple[Any, Any]:
        if self.hangs and not self.signals:
            raise InterruptedError("the task takes too long")
        if not self.options.get("text") and not self.options.get("universal_newlines"):
            return b'{"good": true}', b"caf\xe9\n"
        how = {"encoding": self.options.get("encoding") or "utf-8", "errors": self.options.get("errors")}
        return tuple(io.TextIOWrapper(io.BytesIO(said), **how).read() for said in (b'{"good": true}', b"caf\xe9\n"))

    def poll(self) -> int:
        return 0

    def wait(self, *_: Any) -> int:
        return 0

    def terminate(self) -> None:
        self.signals.append("TERM")

    def kill(self) -> None:
        self.signals.append("KILL")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    modules = {name: ModuleType(name) for name in ("ansible", "ansible.errors", "ansible.plugins")}
    modules["ansible.plugins.action"] = action = ModuleType("ansible.plugins.action")
    action.ActionBase = ActionBase  # type: ignore[attr-defined]
    modules["ansible.errors"].AnsibleActionFail = RuntimeError  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("virtagent_snapshot_action", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(loaded.shutil, "which", lambda name: f"/usr/bin/{name}")
    made = loaded.ActionModule()
    made.asked = {"agents": ["ssh:hv1"], "command": ["true"]}
    return made


def test_what_a_command_writes_need_not_be_utf_8(plugin: Any) -> None:
    """The snapshot was taken, and its report was lost with a traceback."""
    found = plugin.run(None, {})
    assert (found["rc"], found["report"]) == (0, {"good": True})
    assert found["stderr"] == "caf\\xe9\n"
    assert json.dumps(found)


def test_a_task_that_takes_too_long_thaws(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Ansible's `timeout`, and of Ctrl-C: virtagentctl was killed, and could tell nobody to thaw."""
    monkeypatch.setattr(Process, "hangs", True)
    with pytest.raises(InterruptedError):
        plugin.run(None, {})
    assert Process.started.signals == ["TERM"]


@pytest.mark.parametrize("about", ["ansible_{}", "ansible_ssh_{}"])
def test_old_names_of_variables_of_the_connection_count_too(plugin: Any, about: str) -> None:
    known = {about.format(name): value for name, value in {"host": "fe80::1", "user": "joe", "port": 2222}.items()}
    assert type(plugin).run.__globals__["urls"]("hv1", known) == ["ssh:joe@[fe80::1]:2222"]

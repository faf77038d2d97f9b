"""virtagentctl with several agents: all are served, or it says that it takes one; never the last alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.many_agents import ManyAgents
from virtagent.host import cli, options

PLAN = {"mounts": [], "left_out": []}


def usual(n: int, method: str) -> Any:
    capabilities = {"version": "1", "methods": []}
    return {"va.fsplan": PLAN, "va.capabilities": capabilities, "va.fsforget": 1}.get(method)


def command_lines() -> dict[str, list[str]]:
    """Return a command line of each command, whatever commands there come to be."""
    arguments = {
        "hold": ["5"],
        "call": ["va.ping"],
        "snapshot": ["--", "true"],
        "completion": ["bash"],
        "forget": ["/x"],
    }
    return {name: [name, *arguments.get(name, [])] for name in options.commands_of(options.parser())}


def agents(urls: list[str]) -> list[str]:
    return [word for url in urls for word in ("--agent", url)]


@pytest.mark.parametrize("name", command_lines())
def test_every_command_asks_all_agents_or_refuses(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(n: int, method: str) -> Any:
        # A unit test starts no program, so that here no snapshot gets so far.
        return OSError("EIO") if name == "snapshot" and method == "va.fsfreeze" else usual(n, method)

    with ManyAgents(tmp_path, 3, answer) as guests:
        code = cli.main([*agents(guests.urls), *command_lines()[name]])
        asked = {n for n, _ in guests.asked}
    err = capsys.readouterr().err
    if name == "completion":
        assert (code, asked) == (0, set())
    elif name == "relay":
        assert (code, asked) == (2, set())
        assert "`relay` takes no --agent" in err
    elif name == "watch":
        assert (code, asked) == (2, set())
        assert "`watch` of several --agent needs a terminal, or --events" in err
    else:
        assert (code, asked) == ({"thaw": 6, "snapshot": 1, "doctor": 1}.get(name, 0), {0, 1, 2}), err


@pytest.mark.parametrize("name", ["ping", "thaw", "status", "plan", "hold"])
def test_one_that_is_not_there_fails_the_command_and_hinders_no_other(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that is not there stands first: it was not even asked, and the exit code was 0."""
    with ManyAgents(tmp_path, 2, usual) as guests:
        guests.frozen |= {0, 1}
        code = cli.main([*agents([f"unix:{tmp_path}/none", *guests.urls]), *command_lines()[name]])
        assert {n for n, _ in guests.asked} == {0, 1}
        assert guests.frozen == (set() if name == "thaw" else {0, 1})
    out, err = capsys.readouterr()
    assert code == 3
    assert err.count("\n") == 1
    assert f"no connection to unix:{tmp_path}/none" in err
    assert all(url in out for url in guests.urls)


def test_several_freeze_together_and_stay_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ManyAgents(tmp_path, 2) as guests:
        assert cli.main([*agents(guests.urls), "freeze"]) == 0
        assert guests.frozen == {0, 1}
        out = capsys.readouterr().out
        assert re.match(r"frozen 2 file systems of 2 guests within [\d.]+ m?s\n", out)
        thaws = r": 1 file system \(freeze 17\); thaws by itself at [\d:]{8}\S+ \(in 4[01] s\)\n"
        assert all(re.search(re.escape(url) + thaws, out) for url in guests.urls)
        assert cli.main([*agents(guests.urls), "--json", "thaw"]) == 0
        assert not guests.frozen
        found = json.loads(capsys.readouterr().out)
        assert {url: (one["thawed"], one["cancelled"]) for url, one in found.items()} == dict.fromkeys(
            guests.urls, (1, False)
        )
        assert all(one["last"]["held_continuously"] and one["summary"].startswith("good: ") for one in found.values())
        assert cli.main([*agents(guests.urls), "--json", "freeze"]) == 0
        frozen = json.loads(capsys.readouterr().out)["guests"][guests.urls[1]]
        assert 0 < frozen.pop("hold_left") <= 41
        assert frozen == {"frozen": 1, "freeze_id": 17}


def test_several_freeze_together_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(n: int, method: str) -> Any:
        return OSError("EIO") if (n, method) == (2, "va.fsfreeze") else None

    with ManyAgents(tmp_path, 3, refuse) as guests:
        assert cli.main([*agents(guests.urls), "freeze"]) == 1
        assert not guests.frozen
        assert "EIO" in capsys.readouterr().err
        asked = len(guests.asked)
        assert cli.main([*agents([*guests.urls, f"unix:{tmp_path}/none"]), "freeze"]) == 3
        assert "va.fsfreeze" not in {method for _, method in guests.asked[asked:]}


@pytest.mark.parametrize("name", ["thaw", "freeze", "status"])
def test_what_is_wrong_with_several(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ManyAgents(tmp_path, 2) as guests:
        for urls, said in (
            ([guests.urls[0], guests.urls[0]], "stands twice"),
            (["tcp:1", guests.urls[0]], "is no agent's URL"),
            ([guests.urls[0], "tcp:1"], "is no agent's URL"),
        ):
            assert cli.main([*agents(urls), name]) == 2
            assert said in capsys.readouterr().err
        assert cli.main([*agents(guests.urls), "freeze", "--wait", "3"]) == 2
        assert "takes one --agent" in capsys.readouterr().err
        assert not guests.asked


def test_the_worst_that_any_told_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"error": {"class": "GenericError", "desc": "the keeper died", "code": 8}}

    class Broken(ManyAgents):
        def _reply(self, n: int, request: dict[str, Any]) -> bytes:
            if (n, request["execute"]) != (1, "va.fsthaw"):
                return super()._reply(n, request)
            return json.dumps(broken | {"id": request["id"]}).encode() + b"\n"

    with Broken(tmp_path, 3) as guests:
        guests.frozen |= {0}
        assert cli.main([*agents(guests.urls), "--json", "thaw"]) == 5
    out, err = capsys.readouterr()
    assert f"{guests.urls[1]}: the keeper died [FREEZE_BROKEN 8]" in err
    found = json.loads(out)
    assert (found[guests.urls[0]]["thawed"], found[guests.urls[0]]["cancelled"]) == (1, False)
    assert (found[guests.urls[1]]["error"]["name"], found[guests.urls[2]]["error"]["exit"]) == ("FREEZE_BROKEN", 6)

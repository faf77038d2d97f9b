"""What somebody types who knows other tools: each wrong word gets one sentence that helps, and nothing is frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import run_virtagentctl, status_record
from virtagent.host import exits, outcome

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def answer(method: str, params: list[Any]) -> Any:
        assert method == "va.fsstatus", f"{method} was asked for"
        return status_record()

    return partial(run_virtagentctl, tmp_path / "a", answer=answer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frezze"], "there is no command 'frezze'; did you mean `freeze`? see `virtagentctl --help`"),
        (["freeze", "srv/a"], "'srv/a' is no mount point; did you mean '/srv/a'? see `virtagentctl freeze --help`"),
        (["plan", "srv"], "'srv' is no mount point; did you mean '/srv'?"),
        (["sync", "./x"], "'./x' is no mount point"),
        (["thaw", "/srv/a"], "unrecognized arguments: /srv/a; see `virtagentctl thaw --help`"),
        (
            ["snapshot", "--report", "/nodir/x", "--", "true"],
            "written to /nodir/x (No such file or directory); nothing",
        ),
        (["snapshot", "--report", "/", "--", "true"], "the report cannot be written to / (Is a directory); nothing"),
        (["snapshot", "--", "no-such-program"], "there is no program 'no-such-program'; nothing was frozen"),
    ],
)
def test_a_wrong_word_has_one_sentence_also_for_programs(run: Run, words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    code, out, err = run("--json", *words)
    document = json.loads(out)["error"]
    assert (code, document["exit"], document["name"]) == (2, 2, "USAGE")
    assert said in document["text"]


def test_a_state_may_be_written_small(run: Run) -> None:
    assert run("watch", "--until", "frozen")[0] == 0
    code, _, err = run("watch", "--until", "molten")
    assert code == 2
    assert "FROZEN" in err


def test_selectors_and_globs_may_stand_as_mount_points(tmp_path: Path) -> None:
    asked: list[Any] = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append(params)
        return 1

    run_virtagentctl(tmp_path / "a", "sync", "/srv/a/", "*db", "type:ext4", "dev:7:1", answer=answer)
    assert asked[0][0]["include"] == ["/srv/a", "*db", "type:ext4", "dev:7:1"]


def test_a_report_that_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    assert outcome.not_writable(str(tmp_path / "report")) == ""
    assert not list(tmp_path.iterdir())


def test_a_long_sentence_breaks_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        said = ""

        def write(self, words: str) -> None:
            self.said += words

        def flush(self) -> None:
            pass

        def fileno(self) -> int:
            return 99

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(exits.os, "get_terminal_size", lambda fd: exits.os.terminal_size((30, 24)))
    terminal: Any = Terminal()
    exits.say("the quick brown fox jumps over the lazy dog", terminal)
    exits.say("  /srv/db   synced, and a row of a table", terminal)
    assert terminal.said == (
        "the quick brown fox jumps over\n  the lazy dog\n  /srv/db   synced, and a row\n    of a table\n"
    )

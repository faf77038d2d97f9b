"""virtagentctl as a process: signals, and outputs that are gone, full or of another alphabet."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import FakeAgent, status_record, virtagentctl
from virtagent.host import cli

NOTE = "interrupted; a freeze may go on in the guest: `virtagentctl thaw` ends it"


@pytest.mark.parametrize(
    ("argv", "record", "note"),
    [
        (("freeze",), None, NOTE),
        (("thaw",), None, NOTE),
        (("hold", "9"), None, NOTE),
        (("watch",), status_record(), NOTE),
        (("watch",), status_record(state="THAWED", code=0), ""),
        (("ping",), None, ""),
    ],
)
def test_ctrl_c(tmp_path: Path, argv: tuple[str, ...], record: dict[str, Any] | None, note: str) -> None:
    waiting, over = threading.Event(), threading.Event()

    def answer(method: str, params: list[Any]) -> Any:
        if record is not None and params == [{}]:
            return record
        waiting.set()
        assert over.wait(20)
        return record or 0

    with virtagentctl(tmp_path / "a", answer, *argv) as process:
        assert waiting.wait(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        over.set()
        assert process.returncode == 130
        assert err == (f"virtagentctl: {note}\n" if note else "")
        assert bool(out) == (record is not None)


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for command in ("status", "watch"):
        with virtagentctl(tmp_path / "a", lambda method, params: status_record(), command, stdout=write) as process:
            assert process.communicate(timeout=20)[1] == ""
            assert process.returncode == 0
    os.close(write)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        virtagentctl(tmp_path / "a", lambda *_: 3, "thaw", stdout=full) as process,
    ):
        assert process.communicate(timeout=20)[1] == (
            "virtagentctl: the output cannot be written (No space left on device); give it another place\n"
        )
        assert process.returncode == 1


def test_an_ascii_terminal_gets_escapes(tmp_path: Path) -> None:
    environ = {"PYTHONIOENCODING": "ascii:strict"}
    with virtagentctl(tmp_path / "a", lambda *_: "Größe", "call", "m", env=environ) as process:
        assert process.communicate(timeout=20) == ("Gr\\xf6\\xdfe\n", "")
        assert process.returncode == 0


def test_the_option_wins_over_the_environment(tmp_path: Path) -> None:
    with virtagentctl(tmp_path / "a", lambda *_: "dummy", "--agent", "unix:/nowhere", "ping") as process:
        assert "no connection to unix:/nowhere" in process.communicate(timeout=20)[1]
        assert process.returncode == 3


def test_without_a_standard_output(tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "a", lambda *_: 3) as fake, contextlib.redirect_stdout(None):
        assert cli.main(["--agent", fake.url, "thaw"]) == 0

"""virtagentctl as a process: signals, and outputs that are gone, full or of another alphabet."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import FakeAgent, status_record, virtagentctl

NOTE = "interrupted; a freeze may go on in the guest: `virtagentctl thaw` ends it"


@pytest.mark.parametrize(
    ("argv", "record", "note"),
    [
        (("freeze",), None, NOTE),
        (("thaw",), None, NOTE),
        (("hold", "9"), None, NOTE),
        (("watch", "--until", "ERROR"), status_record(), NOTE),
        (("watch", "--until", "ERROR"), status_record(state="THAWED", code=0), ""),
        (("watch",), status_record(), ""),
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
        assert process.returncode == (0 if argv == ("watch",) else 130)  # that is how a watch ends
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


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("thaw",), 0),
        (("--json", "thaw"), 0),
        (("--agent", "unix:/nowhere", "thaw"), 3),
        (("--agent", "unix:/nowhere", "--json", "snapshot", "--", "true"), 3),
        (("completion", "bash"), 0),
        (("no-such",), 2),
    ],
    ids=lambda argv: str(argv),
)
def test_a_standard_stream_that_is_closed(
    tmp_path: Path, argv: tuple[str, ...], code: int, closed: tuple[int, ...]
) -> None:
    words = shlex.join([sys.executable, "-m", "virtagent.host.main", *argv])
    shell = f"{words} {'<&-' if 0 in closed else ''} {'>&-' if 1 in closed else ''} {'2>&-' if 2 in closed else ''}"
    with FakeAgent(tmp_path / "a", lambda *_: 3) as fake:
        ran = subprocess.run(
            shell,
            shell=True,
            env=os.environ | {"VIRTAGENT_AGENT": fake.url},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ran.returncode == code
    assert "Traceback" not in ran.stderr
    if code:
        assert "virtagentctl: " not in ran.stdout, "a complaint on the standard output"
    elif 1 not in closed:
        assert ran.stdout

"""virtagentctl on a terminal, in front of an agent of the test's making."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import FakeAgent, status_record
from harness.terminal import CTL, Terminal, screen


def test_without_rich_a_terminal_gets_lines_of_status_and_the_same_picture(tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('no rich')\n")
    with (
        FakeAgent(tmp_path / "a", lambda method, params: status_record()) as fake,
        Terminal([*CTL, "--agent", fake.url, "status"], {"PYTHONPATH": str(tmp_path)}) as terminal,
    ):
        terminal.read_until("  frozen  /srv/db  ext4")
        assert "\x1b" not in terminal.text
    (tmp_path / "a").unlink()
    with watching(tmp_path, {"PYTHONPATH": str(tmp_path)}) as terminal:
        terminal.read_until("* FROZEN  applications stand still")


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["freeze", "watch"])
def test_ctrl_c_and_signals_end_a_picture(tmp_path: Path, command: str, number: int) -> None:
    over = threading.Event()

    def answer(method: str, params: list[Any]) -> Any:
        if method == "va.fsfreeze" or (params and params[0].get("since")):
            assert over.wait(20)
        return status_record(state="INPROGRESS", code=1, phase="sync", hold_left=-1)

    with FakeAgent(tmp_path / "a", answer) as fake, Terminal([*CTL, "--agent", fake.url, command]) as terminal:
        terminal.read_until("~ SYNCING  ")
        if number:
            terminal.process.send_signal(number)
        else:
            terminal.type(b"\x03")
        ends_well = command == "watch" and not number  # it goes on until Ctrl-C
        assert terminal.wait() == (0 if ends_well else 130)
        over.set()
        words = "interrupted; a freeze may go on in the guest: `virtagentctl thaw` ends it"
        assert (words in terminal.text) != ends_well
        assert "Traceback" not in terminal.text
        assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l"), "the cursor stays hidden"


def test_a_channel_for_one_client_is_frozen_without_a_picture(tmp_path: Path) -> None:
    def answer(method: str, params: list[Any]) -> Any:
        return 1 if method == "va.fsfreeze" else "odd"

    with FakeAgent(tmp_path / "a", answer) as fake, Terminal([*CTL, "--agent", fake.url, "freeze"]) as terminal:
        assert terminal.wait() == 0
        assert "frozen 1 file system" in terminal.text


def watching(tmp_path: Path, env: dict[str, str] | None = None, **options: Any) -> Any:
    @contextlib.contextmanager
    def run() -> Iterator[Terminal]:
        def answer(method: str, params: list[Any]) -> Any:
            if params and params[0].get("since"):
                threading.Event().wait(0.5)
            return status_record(seq=next(numbers))

        numbers = itertools.count(1)
        with (
            FakeAgent(tmp_path / "a", answer) as fake,
            Terminal([*CTL, "--agent", fake.url, "watch"], env, **options) as terminal,
        ):
            yield terminal

    return run()


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_watch_has_the_terminal_for_itself_and_leaves_a_line(tmp_path: Path, key: bytes) -> None:
    with watching(tmp_path) as terminal:
        terminal.read_until("FROZEN  applications stand still", "thaws by itself in 41 s", "1 frozen   /srv/db")
        assert "\x1b[?1049h" in terminal.text
        terminal.type(key)
        assert terminal.wait() == 0
        last = screen(terminal.text).strip().splitlines()[-1]
        assert last.startswith(f"unix:{tmp_path}/a  * FROZEN   applications stand still   thaws by itself in 4")
        assert terminal.text.count("\x1b[?1049l") == 1
        assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")


def test_a_picture_follows_the_size_of_the_terminal(tmp_path: Path) -> None:
    with watching(tmp_path, lines=24, columns=140) as terminal:
        terminal.read_until(f"unix:{tmp_path}/a  freeze 17", "* FROZEN  applications stand still")
        terminal.resize(12, 40)
        terminal.read_until("\n* FROZEN  applications stand still")
        wide = [line for line in screen(terminal.text).splitlines() if len(line.rstrip()) > 40]
        assert not wide


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    for term in ("dumb", ""):
        with watching(tmp_path, {"TERM": term}) as terminal:
            terminal.read_until("FROZEN: hold for 19 s")
            assert "\x1b" not in terminal.text
        (tmp_path / "a").unlink()


def test_no_colour_but_what_is_bold(tmp_path: Path) -> None:
    with watching(tmp_path, {"NO_COLOR": "1", "LANG": "C", "LC_ALL": "C"}) as terminal:
        terminal.read_until("* FROZEN  applications stand still", "1 frozen   /srv/db")
        assert not re.search(r"\x1b\[(?!0m|1m)[0-9;]+m", terminal.text)
        assert terminal.text.isascii()

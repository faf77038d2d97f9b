"""virtagentctl on a terminal, in front of an agent of the test's making."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import FakeAgent, status_record
from harness.terminal import CTL, Terminal


def test_without_rich_a_terminal_gets_lines(tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('no rich')\n")
    with FakeAgent(tmp_path / "a", lambda method, params: status_record()) as fake:
        for command, said in (("status", "  frozen  /srv/db  ext4"), ("watch", "FROZEN: hold for 19 s")):
            argv = [*CTL, "--agent", fake.url, command]
            with Terminal(argv, {"PYTHONPATH": str(tmp_path)}) as terminal:
                terminal.read_until(said)
                assert "\x1b" not in terminal.text


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["freeze", "watch"])
def test_ctrl_c_and_signals_end_a_picture(tmp_path: Path, command: str, number: int) -> None:
    over = threading.Event()

    def answer(method: str, params: list[Any]) -> Any:
        if method == "va.fsfreeze" or (params and params[0].get("since")):
            assert over.wait(20)
        return status_record(state="INPROGRESS", code=1, phase="sync", hold_left=-1)

    with FakeAgent(tmp_path / "a", answer) as fake, Terminal([*CTL, "--agent", fake.url, command]) as terminal:
        terminal.read_until("INPROGRESS: sync for ")
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

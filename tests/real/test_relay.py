"""virtagentctl relay: guests frozen together as records on the standard input say, and thawed when they end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.processes import kill, until
from harness.questions import assert_frozen, assert_well, assert_writable
from harness.rig import Rig

pytestmark = pytest.mark.timeout(120)
CTL = [sys.executable, "-m", "virtagent.host.main", "relay"]


class Coordinator:
    """A coordinator that speaks to one relay."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*CTL, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **record: Any) -> dict[str, Any]:
        self.say(json.dumps(record).encode())
        return self.hear()

    def leave(self) -> tuple[int, str]:
        """End the input; return the exit code and what was said on the standard error."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.ended()

    def ended(self) -> tuple[int, str]:
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        return self.process.wait(30), said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def relay() -> Iterator[Coordinator]:
    coordinator = Coordinator()
    yield coordinator
    coordinator.close()


@pytest.fixture
def guests(rig: Rig) -> list[tuple[Daemon, LoopFs]]:
    those = [rig.fs(kind) for kind in ("ext4", "xfs", "btrfs")]
    return [(rig.daemon([fs]), fs) for fs in those]


def prepared(relay: Coordinator, guests: list[tuple[Daemon, LoopFs]], **options: Any) -> None:
    urls = [daemon.url for daemon, _ in guests]
    assert relay.ask(prepare={"agents": urls, "options": {"hold": 40, **options}}) == {"ready": len(guests)}
    assert {daemon.status()["phase"] for daemon, _ in guests} == {"ready"}
    assert_writable([fs for _, fs in guests])


def all_well(rig: Rig, guests: list[tuple[Daemon, LoopFs]]) -> None:
    for daemon, fs in guests:
        daemon.wait_state("THAWED")
        assert_well(rig, daemon, [fs])


def test_from_prepare_to_thaw(rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]]) -> None:
    prepared(relay, guests)
    at = time.time() + 1
    frozen = relay.ask(freeze={"at": at})["frozen"]
    assert (frozen["count"], frozen["guests"]) == (3, 3)
    assert at <= frozen["first"] + 0.05
    assert frozen["first"] <= frozen["last"] <= time.time()
    assert_frozen([fs for _, fs in guests])
    ran = relay.ask(run={"command": ["sh", "-c", "echo $VIRTAGENT_AGENTS; echo wrong >&2; exit 3"], "timeout": 20})[
        "ran"
    ]
    assert ran["code"] == 3
    assert guests[0][0].url in ran["output"]
    assert "wrong" in ran["output"]
    ended = relay.ask(thaw={})
    assert (sorted(ended["held"]), ended["broken"]) == (sorted(d.url for d, _ in guests), {})
    assert ended["window"] > 0
    all_well(rig, guests)
    prepared(relay, guests)
    assert relay.ask(thaw={}) == {"held": [], "broken": {}, "window": -1}, "nothing was frozen yet"
    assert relay.leave() == (0, "")
    all_well(rig, guests)


@pytest.mark.parametrize("how", ["end of the input", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("when", ["ready", "frozen", "command"])
def test_a_coordinator_that_dies(
    rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]], when: str, how: str
) -> None:
    prepared(relay, guests)
    flag = Path(str(rig.area.fresh("flag")))
    if when != "ready":
        assert "frozen" in relay.ask(freeze={})
    if when == "command":
        relay.say(json.dumps({"run": {"command": ["sh", "-c", f"touch {flag}; exec sleep 100"]}}).encode())
        until_there(flag)
    if how == "end of the input":
        code, said = relay.leave()
        assert code == (0 if when == "ready" else 1)
        assert ("nobody asked for the thaw" in said) == (when != "ready")
    else:
        relay.process.send_signal(getattr(signal, how))
        assert relay.ended()[0] == 130
    all_well(rig, guests)


def until_there(flag: Path) -> None:
    until(flag.exists, 20, f"{flag} is there")


def test_one_that_cannot_be_prepared_calls_all_off(
    rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]]
) -> None:
    missing = f"unix:{rig.area.fresh('nobody')}"
    urls = [daemon.url for daemon, _ in guests]
    answer = relay.ask(prepare={"agents": [*urls, missing]})
    assert list(answer) == ["failed"]
    assert missing in answer["failed"]
    all_well(rig, guests)
    prepared(relay, guests)


def test_one_that_dies_while_it_waits(rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]]) -> None:
    prepared(relay, guests)
    daemon, _ = guests[1]
    (worker,) = [pid for pid, title in daemon.titles().items() if "fsfreeze" in title]
    kill(worker)
    daemon.wait_state("THAWED")
    answer = relay.ask(freeze={})
    assert list(answer["failed"]) == [daemon.url]
    assert "phase ready" in answer["failed"][daemon.url]
    all_well(rig, guests)
    assert relay.leave() == (0, "")


def test_one_that_breaks_is_told(rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]]) -> None:
    prepared(relay, guests)
    assert "frozen" in relay.ask(freeze={})
    daemon, _ = guests[0]
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    kill(keeper)
    daemon.wait_state("THAWED")
    ended = relay.ask(thaw={})
    assert list(ended["broken"]) == [daemon.url]
    assert sorted(ended["held"]) == sorted(other.url for other, _ in guests[1:])
    assert relay.leave()[0] == 5
    all_well(rig, guests)


def test_a_thaw_ends_a_command(rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]]) -> None:
    prepared(relay, guests)
    assert "frozen" in relay.ask(freeze={})
    flag = Path(str(rig.area.fresh("flag")))
    relay.say(json.dumps({"run": {"command": ["sh", "-c", f"touch {flag}; exec sleep 100"]}}).encode())
    until_there(flag)
    assert relay.ask(freeze={}) == {"error": "run is not answered yet; only thaw ends that"}
    relay.say(b'{"thaw": {}}')
    assert relay.hear() == {"error": "run was ended by thaw"}
    assert relay.hear()["broken"] == {}
    all_well(rig, guests)


def test_a_command_that_takes_too_long(rig: Rig, relay: Coordinator, guests: list[tuple[Daemon, LoopFs]]) -> None:
    prepared(relay, guests[:1])
    assert "frozen" in relay.ask(freeze={})
    late = relay.ask(run={"command": ["sleep", "100"], "timeout": 0.2})["ran"]
    assert late["code"] == -signal.SIGTERM
    assert "took longer than 0.2 s" in late["error"]
    much = relay.ask(run={"command": ["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x"]})["ran"]
    assert len(much["output"]) + much["output_left_out"] == 200000
    assert relay.ask(run={"command": ["/no/such"]})["ran"]["error"] == "No such file or directory"
    assert relay.ask(thaw={})["broken"] == {}
    all_well(rig, guests[:1])


BAD = {
    "{": "a line is no JSON",
    "[]": "one member",
    "{}": "one member",
    '{"melt": {}}': "'melt' is none of prepare, freeze, run, thaw",
    '{"thaw": 1}': "thaw is int, expected an object",
    '{"thaw": {"all": 1}}': "unknown member 'all'; known: each",
    '{"freeze": {}}': "no guest is prepared",
    '{"run": {"command": ["true"]}}': "not all guests are frozen",
    '{"run": {"command": "true"}}': "command is the list",
    '{"prepare": {"agents": 5}}': "agents is the list of their URLs",
    '{"prepare": {"agents": []}}': "one at least",
    '{"prepare": {"agents": ["unix:/a", "unix:/a"]}}': "stands twice",
    '{"prepare": {"agents": ["http:x"]}}': "http",
    '{"prepare": {"agents": ["unix:/no/such/*"]}}': "nothing matches unix:/no/such/*",
    '{"prepare": {"agents": ["unix:/a"], "options": {"stict": true}}}': "unknown member 'stict'",
    '{"prepare": {"agents": ["unix:/a"], "options": 5}}': "options is int",
    '{"prepare": {"agents": ["unix:/a"], "within": "long"}}': "within is long, expected a number",
    '{"prepare": {"agents": ["unix:/a"], "options": {"include": [1]}}}': "include",
    "x" * (1 << 21): "a line is over 1048576 bytes",
}


def test_records_that_are_none_cost_nothing(relay: Coordinator) -> None:
    for line, words in BAD.items():
        relay.say(line.encode())
        answer = relay.hear()
        assert list(answer) == ["error"], line[:80]
        assert words in answer["error"], (line[:80], answer)
    assert relay.ask(thaw={}) == {"held": [], "broken": {}, "window": -1}
    assert relay.leave() == (0, "")


@pytest.mark.parametrize("words", [["--json"], ["--agent", "unix:/a"], ["--timeout", "3"]])
def test_options_that_the_records_say(words: list[str]) -> None:
    ended = subprocess.run([*CTL[:-1], *words, "relay"], capture_output=True, text=True, check=False, input="")
    assert ended.returncode == 2
    assert "its records say all" in ended.stderr

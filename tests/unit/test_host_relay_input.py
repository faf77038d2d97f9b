"""What a relay is told is checked before anything is done: what is wrong is named, and no guest pays."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fakes.many_agents import ManyAgents
from virtagent.host import inventory, relay_passing, relay_talk
from virtagent.host.relay import Relay
from virtagent.host.relay_passing import Passing
from virtagent.host.relay_records import Bad, loaded

LINES = {
    b'{"prepare": {"agents": ["unix:/a"], "options": {"hold": NaN}}}': r"stray 'N'",
    b'{"freeze": {"at": Infinity}}': r"stray 'I'",
    b'{"freeze": {"at": -Infinity}}': "stray '-'",
    b'{"freeze": {"at": 1e999}}': "number out of range '1e999'",
    b'{"freeze": {"at": ' + b"9" * 5000 + b"}}": "number out of range '999",
    b"[" * 1_000_000: "it nests too deep",
    b'{"a":' * 150_000: "it nests too deep",
    b'{"thaw": {}, "thaw": {}}': "duplicate key",
    b'{"prepare": {"agents": ["unix:/a"], "options": {"hold": 9, "hold": 99}}}': "duplicate key",
    b'{"run": {"command": ["\\ud800"]}}': r"\\ud800, which is not a valid Unicode character",
    b'{"run": {"command": ["\\uDFFF"]}}': r"\\udfff, which is not a valid Unicode character",
    b'{"\\ud800": {}}': r"\\ud800",
    b'{"thaw": {}\xff}': "invalid UTF-8|expected separator|stray",
    b"": "expecting value",
    b"{": "no JSON",
}


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_that_is_none_is_refused_by_what_is_wrong_with_it(line: bytes) -> None:
    with pytest.raises(Bad, match=LINES[line]) as raised:
        loaded(line)
    assert len(str(raised.value)) < 200


def test_a_path_of_odd_bytes_and_whole_pairs_are_taken() -> None:
    path = "/run/\udcff\udc80.sock"
    assert loaded(json.dumps({"prepare": {"agents": [path, "\U0001f600"]}}).encode()) == {
        "prepare": {"agents": [path, "\U0001f600"]}
    }


OPTIONS: dict[str, tuple[Any, ...]] = {
    "strict": (1, "yes", None, [], {}),
    "partial": (0, "no"),
    "extend": ("no", 1),
    "writers": (5, "some", True, [], {"all": 1}),
    "hold": ("long", -1, True, 1e300, [], {}),
    "sync_limit": ("1", -0.5),
    "freeze_limit": ({}, 1e9),
    "thaw_wait": ("x", None, -1, 1e99, False),
    "include": ([1], 5, {"a": [1]}, [None]),
    "exclude": ([[]],),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values])
def test_an_option_that_is_none_is_refused_before_a_guest_is_asked(tmp_path: Path, name: str, value: Any) -> None:
    """A time-out of the thaw that is no number would be found when all is frozen."""
    with ManyAgents(tmp_path, 1) as guests:

        async def run() -> None:
            with pytest.raises(Bad, match=f"options: .*{name} "):
                await Relay().take({"prepare": {"agents": guests.urls, "options": {name: value}}})

        asyncio.run(run())
        assert not guests.asked


def test_an_instant_that_no_guest_waits_for_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 2) as guests:

        async def run() -> None:
            relay = Relay()
            assert await relay.take({"prepare": {"agents": guests.urls}}) == {"ready": 2}
            with pytest.raises(Bad, match="s ahead, at most 240"):
                await relay.take({"freeze": {"at": 4e9}})
            assert guests.waiting == {0, 1}
            assert "frozen" in await relay.take({"freeze": {}})
            assert (await relay.take({"thaw": {}}))["broken"] == {}

        asyncio.run(run())
        assert not guests.frozen | guests.waiting


def test_a_defect_of_the_relay_thaws_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ManyAgents(tmp_path, 1) as guests:

        async def freezes_and_fails(relay: Relay, *_more: Any) -> None:
            await relay.take({"prepare": {"agents": guests.urls}})
            await relay.take({"freeze": {}})
            assert guests.frozen == {0}
            raise ZeroDivisionError("ours")

        async def run() -> None:
            with pytest.raises(ZeroDivisionError, match="ours"):
                await relay_talk._main()

        monkeypatch.setattr(relay_talk, "_converse", freezes_and_fails)
        monkeypatch.setattr(relay_talk, "_Input", lambda: None)
        monkeypatch.setattr(relay_talk.signals, "on_signal", lambda note: None)
        asyncio.run(run())
        assert not guests.frozen


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"execute": "va.ping", "execute": "va.fsthaw"}', "duplicate key"),
        ('{"execute": "va.fsstatus", "arguments": [{"wait": NaN}]}', "stray 'N'"),
        ("[" * 100_000, "text is no command in JSON"),
        ('{"execute": 7}', "execute is no string"),
        ("[]", "text is no command in JSON"),
        ("\ud800", "text is no command in JSON"),
    ],
)
def test_a_call_that_is_none_is_refused_by_what_is_wrong_with_it(tmp_path: Path, text: str, why: str) -> None:
    said: list[dict[str, Any]] = []
    with ManyAgents(tmp_path, 1) as guests:

        async def run() -> None:
            passing = Passing(said.append)
            passing.take("call", {"id": 1, "agent": guests.urls[0], "text": text})
            await asyncio.wait(passing._tasks)
            passing.close()

        asyncio.run(run())
        assert not guests.asked
    assert why in said[0]["called"]["error"]


def test_an_inventory_is_taken_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fleet"
    monkeypatch.setattr(inventory, "LINES_MAX", 3)
    monkeypatch.setattr(inventory, "SIZE_MAX", 30)
    path.write_text("hv1\nhv2\nhv3\n")
    assert len(inventory.read(str(path))) == 3
    path.write_text("hv1\nhv2\nhv3\nhv4\n")
    with pytest.raises(ValueError, match="has over 3 lines"):
        inventory.read(str(path))
    path.write_text("#" * 31)
    with pytest.raises(ValueError, match="has over 30 characters"):
        inventory.read(str(path))


def test_a_connection_of_a_call_that_is_given_up_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Hangs:
        def __init__(self, url: str) -> None:
            self.url = url

        async def carry_out(self, *_: object) -> None:
            await asyncio.Event().wait()

        def close(self) -> None:
            closed.append(self.url)

    async def run() -> None:
        passing = Passing(said.append)
        passing.take("call", {"id": 1, "agent": "unix:/run/a", "text": '{"execute": "ping"}'})
        (task,) = passing._tasks
        await asyncio.sleep(0)
        passing.close()
        await asyncio.wait([task])

    said: list[Any] = []
    monkeypatch.setattr(relay_passing, "AsyncAgent", Hangs)
    asyncio.run(run())
    assert (closed, said) == (["unix:/run/a"], [])

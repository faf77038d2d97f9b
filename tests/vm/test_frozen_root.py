"""Everything is frozen, `/` too, with writers on it and systemd, journald and rsyslog running."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from harness.processes import until
from harness.vm.guest import FILE_SYSTEMS, Guest
from harness.vm.machine import Transport

TURNS = 20
MINUTE = 60.0
CLOCKS = 0.1  # seconds that the beginning (wall clock, taken earlier) and the duration (monotonic) may differ by


def tagged(port: Transport, tag: str, command: str, arguments: Any = None) -> None:
    message = {"execute": command, "id": tag, **({} if arguments is None else {"arguments": arguments})}
    port.send(json.dumps(message).encode() + b"\n")


def reply(port: Transport, tag: str) -> dict[str, Any]:
    """Return the next reply, which must be that one."""
    found: dict[str, Any] = json.loads(port.line())
    assert found.get("id") == tag, found
    return found


def stands_still(guest: Guest) -> None:
    """Assert that no file system is written to any more: each writer had at most one line under way."""
    before = guest.written()
    select.select([], [], [], 0.5)
    assert guest.written() == before


def ended(record: str) -> float:
    """Return when the call of an audit record ended: a record is made then, and has the time of its beginning."""
    fields = dict(word.partition("=")[::2] for word in record.split() if "=" in word)
    return datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).timestamp() + float(fields.get("ms", 0)) / 1000


def freeze(guest: Guest, port: Transport, **limits: float) -> None:
    assert port.ask("va.fsfreeze", limits) == {"return": FILE_SYSTEMS}
    stands_still(guest)


def test_freeze_and_thaw_of_everything_with_answers_all_the_while(guest: Guest) -> None:
    logged = len(guest.log())
    guest.write_everywhere()
    port = guest.host()
    slowest = 0.0
    longest = 0.0
    for turn in range(TURNS):
        guest.wait_writing()
        began = time.monotonic()
        tagged(port, "freeze", "guest-fsfreeze-freeze")
        frozen, asked = None, 0
        while frozen is None:
            for command in ("guest-ping", "va.fsstatus"):
                tag = f"{turn}.{asked}"
                asked += 1
                sent = time.monotonic()
                tagged(port, tag, command)
                while (found := json.loads(port.line()))["id"] != tag:
                    assert found["id"] == "freeze", found
                    frozen = found
                slowest = max(slowest, time.monotonic() - sent)
                assert "error" not in found
        longest = max(longest, time.monotonic() - began)
        assert frozen == {"return": FILE_SYSTEMS, "id": "freeze"}
        if turn % 5 == 0:
            stands_still(guest)
        assert port.ask("guest-fsfreeze-status") == {"return": "frozen"}
        assert port.ask("va.fsstatus", {})["return"]["hold_left"] > 0
        assert port.ask("guest-fsfreeze-thaw") == {"return": FILE_SYSTEMS}
        assert port.ask("guest-fsfreeze-status") == {"return": "thawed"}
    guest.wait_writing()
    print(f"slowest answer {slowest * 1000:.0f} ms, longest freeze {longest:.2f} s")
    assert slowest < 10
    records = [line for line in guest.log()[logged:] if "audit: " in line]
    ends = [ended(line) for line in records]
    assert all(earlier <= later + CLOCKS for earlier, later in pairwise(ends)), "not in order"
    assert sum('"guest-fsfreeze-freeze"' in line for line in records) >= TURNS
    assert sum('"guest-fsfreeze-thaw"' in line for line in records) >= TURNS
    guest.sh(
        "logger -t virtagent-test after; until grep -q 'virtagent-test: after' /var/log/syslog; do usleep 50000; done"
    )


def test_a_host_that_falls_silent_gets_a_guest_that_comes_back_by_itself(guest: Guest) -> None:
    guest.write_everywhere()
    guest.wait_writing()
    port = guest.host()
    freeze(guest, port, hold_limit=4)
    port.close()
    guest.wait_writing()
    port = guest.host()
    assert port.ask("va.fsstatus") == {"return": 0}
    for _ in range(2):  # it is told again, since a host that retries may have lost the first answer
        error = port.ask("va.fsthaw")["error"]
        assert error["name"] == "FREEZE_BROKEN", error


def _kill(*roles: str) -> Callable[[Guest], None]:
    def kill(guest: Guest) -> None:
        pids = " ".join(str(guest.pid_of(role)) for role in roles)
        guest.sh(f"kill -9 {pids}")

    return kill


@pytest.mark.parametrize("roles", [("supervisor",), ("keeper",), ("supervisor", "keeper")], ids="+".join)
def test_no_death_leaves_the_guest_frozen(guest: Guest, roles: tuple[str, ...]) -> None:
    guest.write_everywhere()
    guest.wait_writing()
    port = guest.host()
    freeze(guest, port, hold_limit=300)
    began = time.monotonic()
    _kill(*roles)(guest)
    guest.wait_writing()
    print(f"{'+'.join(roles)} killed: written to everywhere after {time.monotonic() - began:.2f} s")
    port.close()
    guest.wait_agent()
    until(lambda: guest.status()["state"] == "THAWED", MINUTE, "state THAWED")
    port = guest.host()
    error = port.ask("va.fsthaw")["error"]
    assert error["name"] == "FREEZE_BROKEN", error
    freeze(guest, port)
    assert port.ask("va.fsthaw") == {"return": FILE_SYSTEMS}
    guest.wait_writing()


def test_a_guest_that_is_paused_while_frozen_comes_back(guest: Guest) -> None:
    """The guest's monotonic clock stands while it is paused, so the hold is as much longer by the host's clock."""
    guest.write_everywhere()
    guest.wait_writing()
    port = guest.host()
    freeze(guest, port, hold_limit=6)
    before = port.ask("va.fsstatus", {})["return"]["hold_left"]
    guest.machine.monitor("stop")
    select.select([], [], [], 8)
    guest.machine.monitor("cont")
    after = port.ask("va.fsstatus", {})["return"]
    print(f"hold left {before:.1f} s before 8 s of pause, {after['hold_left']:.1f} s after: {after['state']}")
    guest.wait_writing()
    until(lambda: port.ask("va.fsstatus") == {"return": 0}, MINUTE, "state THAWED")
    assert port.ask("va.fsthaw")["error"]["name"] == "FREEZE_BROKEN"


def test_a_guest_that_is_paused_for_a_moment_thaws_as_asked(guest: Guest) -> None:
    guest.write_everywhere()
    guest.wait_writing()
    port = guest.host()
    freeze(guest, port, hold_limit=300)
    for _ in range(5):
        guest.machine.monitor("stop")
        guest.machine.monitor("cont")
    assert port.ask("va.fsthaw") == {"return": FILE_SYSTEMS}
    guest.wait_writing()

"""The guest is shut down and rebooted through the agent, frozen or not; its disks need no recovery afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.processes import until
from harness.vm.disks import assert_clean, copied, last_line, snapshot
from harness.vm.guest import FILE_SYSTEMS, Guest

REASONS = {"powerdown": "guest-shutdown", "reboot": "guest-reset"}  # of QEMU's event; a halt has none
DOWN = 120.0


@pytest.fixture
def saved(guest: Guest) -> Iterator[Guest]:
    """Go back afterwards to the guest as it was: 0.3 s in the place of a boot."""
    guest.machine.save("before")
    yield guest
    guest.machine.load("before")


def halts(guest: Guest) -> int:
    return guest.machine.console().count("reboot: System halted")


def wait_down(guest: Guest, mode: str, halted: int) -> None:
    """Wait until QEMU or the console says so; `halted` is how often the console had said it before."""
    if mode in REASONS:
        assert guest.machine.event("SHUTDOWN", DOWN) == {"guest": True, "reason": REASONS[mode]}
        return
    until(lambda: halts(guest) > halted, DOWN, "the guest halts")
    guest.machine.monitor("stop")


@pytest.mark.parametrize("frozen", [False, True], ids=["thawed", "frozen"])
@pytest.mark.parametrize("mode", ["powerdown", "halt", "reboot"])
def test_the_guest_goes_down_cleanly(saved: Guest, tmp_path: Path, mode: str, frozen: bool) -> None:
    guest = saved
    guest.write_everywhere(durably=True)
    guest.wait_writing()
    port = guest.host()
    if frozen:
        assert port.ask("va.fsfreeze", {"hold_limit": 600}) == {"return": FILE_SYSTEMS}
    written = guest.written()
    began, halted = time.monotonic(), halts(guest)
    if frozen:
        assert port.ask("va.shutdown", {"mode": mode}) == {"return": "dummy"}
    else:  # has no reply
        port.send(b'{"execute": "guest-shutdown", "arguments": {"mode": "%s"}}\n' % mode.encode())
    wait_down(guest, mode, halted)
    print(f"{mode}, {'frozen' if frozen else 'thawed'}: down after {time.monotonic() - began:.1f} s")
    images, _ = snapshot(guest, tmp_path)
    copied(guest)
    assert_clean(images)
    assert last_line(images["root"], "/var/tmp/written") >= written["root"]
    assert last_line(images["ext4"], "/written") >= written["ext4"]


def test_a_guest_that_was_rebooted_while_frozen_comes_back_thawed(saved: Guest) -> None:
    guest = saved
    port = guest.host()
    assert port.ask("va.fsfreeze", {"hold_limit": 600}) == {"return": FILE_SYSTEMS}
    assert port.ask("guest-get-osinfo")["return"]["id"] == "debian"
    port.send(b'{"execute": "guest-shutdown", "arguments": {"mode": "reboot"}}\n')
    wait_down(guest, "reboot", 0)
    port.close()
    began = time.monotonic()
    guest.machine.restart()
    port = guest.host(timeout=180)
    assert port.ask("va.fsstatus") == {"return": 0}
    print(f"rebooted: answers after {time.monotonic() - began:.1f} s")
    assert port.ask("va.fsthaw") == {"return": 0}, "nothing is told of a freeze of the boot before"
    guest.machine.wait_up()
    guest.mount()
    assert port.ask("va.fsfreeze") == {"return": FILE_SYSTEMS}
    assert port.ask("va.fsthaw") == {"return": FILE_SYSTEMS}

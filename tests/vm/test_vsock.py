"""A vsock channel, inside the guest: with the kernel's loopback the guest is its own host, CID 1."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness.vm.guest import FILE_SYSTEMS, Guest

PORT = 9999
DAEMON = f"/usr/local/sbin/virtagentd --config /dev/null --state-dir /run/vsock --channel vsock:{PORT}"
CTL = f"virtagentctl --agent vsock:1:{PORT}"


@pytest.fixture
def second(guest: Guest, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The guest with a second daemon, on a vsock port."""
    guest.sh("modprobe vsock_loopback && mkdir -p -m 700 /run/vsock")
    more = "--vsock-any" if request.param else ""
    guest.sh(f"systemd-run -q --unit=vsock -p Type=notify {DAEMON} {more}")  # returns when it is ready
    yield guest
    guest.sh("systemctl stop vsock; systemctl reset-failed vsock 2>/dev/null; true")


@pytest.mark.parametrize("second", [True], indirect=True)
def test_freeze_and_thaw_over_vsock(second: Guest) -> None:
    assert "answers after" in second.sh(f"{CTL} ping")
    second.write_everywhere()
    second.wait_writing()
    second.sh(f"{CTL} freeze --hold-limit 60")
    before = second.written()
    status = json.loads(second.sh(f"{CTL} --json status"))
    assert status["state"] == "FROZEN"
    assert sum(mount["state"] == "frozen" for mount in status["mounts"]) == FILE_SYSTEMS
    after = second.written()
    assert all(after[name] - before[name] <= 1 for name in before)
    second.sh(f"{CTL} thaw")
    second.wait_writing()


@pytest.mark.parametrize("second", [False], indirect=True)
def test_only_the_host_may_connect(second: Guest) -> None:
    """Without --vsock-any CID 1 is turned away, and named in the log."""
    assert second.sh(f"{CTL} ping", check=False).code == 3
    assert "CID 1 was turned away" in second.sh("journalctl -u vsock -o cat --no-pager")

"""A guest with Debian's qemu-ga, and scripts/install --as-qemu-ga: ours takes its place, and gives it back."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.vm import parcel
from harness.vm.guest import FILE_SYSTEMS, Guest
from harness.vm.machine import Result, Transport

SCRIPTS = (
    "cd /root/tree && PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "
    "PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheels bash scripts/"
)
OURS = (
    "/opt/virtagent /etc/systemd/system/virtagentd.service /etc/udev/rules.d/60-virtagent.rules /etc/virtagent "
    "/usr/local/sbin/virtagentd /usr/local/sbin/virtagent-qemu-ga /usr/local/bin/virtagentctl"
)
LONG = 500.0


@pytest.fixture
def debian(guest: Guest) -> Iterator[Guest]:
    """Have a guest as Debian's packages leave it, qemu-ga at its port; the guest is as it was afterwards."""
    guest.machine.save("before")
    guest.sh(f"systemctl -q stop virtagentd; rm -rf {OURS} /usr/lib/python3/dist-packages/virtagent.pth")
    guest.sh("systemctl -q unmask qemu-guest-agent; systemctl daemon-reload; udevadm control --reload")
    guest.sh("systemctl start qemu-guest-agent")
    yield guest
    guest.machine.load("before")


def upload(port: Transport, source: Path, target: str) -> None:
    """Write a file in the guest, through the agent."""
    data = source.read_bytes()
    handle = port.ask("guest-file-open", {"path": target, "mode": "w"})["return"]
    for at in range(0, len(data), 1 << 20):
        part = data[at : at + (1 << 20)]
        sent = port.ask("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(part).decode()})
        assert sent["return"]["count"] == len(part)
    port.ask("guest-file-close", {"handle": handle})


def is_stock(guest: Guest) -> bool:
    """Ask who answers at the port."""
    port = guest.host()
    info = port.ask("guest-info")["return"]
    port.close()
    return not any(command["name"].startswith("va.") for command in info["supported_commands"])


def unit(guest: Guest, name: str) -> Result:
    return guest.sh(f"systemctl is-active {name}", check=False)


def test_ours_takes_the_place_of_qemu_ga_and_gives_it_back(debian: Guest, tmp_path: Path) -> None:
    guest = debian
    assert is_stock(guest)
    python = guest.sh("python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'").strip()
    port = guest.host()
    upload(port, parcel.pack(tmp_path, python), "/root/tree.tar")
    port.close()
    guest.sh("tar xf /root/tree.tar -C /root && rm /root/tree.tar")

    refused = guest.sh(f"{SCRIPTS}install --as-qemu-ga --enable", LONG, check=False)
    assert refused.code == 2
    assert "mask it" in refused.err
    assert is_stock(guest)

    guest.sh("systemctl -q mask qemu-guest-agent.service")
    began = time.monotonic()
    guest.sh(f"{SCRIPTS}install --as-qemu-ga --enable", LONG)
    print(f"installed in {time.monotonic() - began:.0f} s")
    assert not is_stock(guest)
    # As if the port were plugged in again: the rule of qemu-ga's package is still there.
    guest.sh("udevadm trigger -c add -s virtio-ports; udevadm settle")
    assert unit(guest, "virtagent-qemu-ga") == "active\n"
    assert unit(guest, "qemu-guest-agent") == "inactive\n"
    assert guest.sh("pgrep -x qemu-ga", check=False) == ""
    assert guest.sh("systemctl is-enabled virtagent-qemu-ga") == "enabled\n"
    port = guest.host()
    assert port.ask("guest-fsfreeze-freeze") == {"return": FILE_SYSTEMS}
    assert port.ask("guest-ping") == {"return": {}}
    assert port.ask("guest-fsfreeze-thaw") == {"return": FILE_SYSTEMS}
    port.close()

    guest.sh(f"{SCRIPTS}uninstall", LONG)
    assert guest.sh(f"ls -d {OURS} 2>/dev/null", check=False) == ""
    guest.sh("systemctl -q unmask qemu-guest-agent.service; systemctl start qemu-guest-agent.service")
    assert unit(guest, "qemu-guest-agent") == "active\n"
    assert is_stock(guest)

"""What the stacks above libvirt ask of a guest agent, command by command, and what they rely on.

libvirt passes each command on behind a guest-sync, whose id is a time stamp (qemuAgentGuestSync, qemu_agent.c).
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.peer import check_harmless
from harness.rig import Rig

HOLD = 0.3
KUBEVIRT_POLLS = (
    "guest-get-osinfo",
    "guest-get-host-name",
    "guest-network-get-interfaces",
    "guest-get-timezone",
    "guest-get-users",
    "guest-get-fsinfo",
    "guest-info",
    "guest-fsfreeze-status",
)
"""pkg/virt-launcher/virtwrap/agent-poller/agent_poller.go."""
KUBEVIRT_NEEDS = (
    "guest-ping",
    "guest-get-time",
    "guest-info",
    "guest-shutdown",
    "guest-network-get-interfaces",
    "guest-get-fsinfo",
    "guest-get-host-name",
    "guest-get-users",
    "guest-get-timezone",
    "guest-get-osinfo",
)
"""RequiredGuestAgentCommands of pkg/virt-handler: without one of them the agent is not supported."""
VDSM = (
    "guest-get-fsinfo",
    "guest-get-host-name",
    "guest-get-osinfo",
    "guest-get-timezone",
    "guest-get-users",
    "guest-network-get-interfaces",
    "guest-get-vcpus",
    "guest-get-disks",
)
"""lib/vdsm/virt/qemuguestagent.py: each if guest-info lists it. guest-get-devices is for Windows."""


class Libvirt:
    """virDomainQemuAgentCommand, virDomainFSFreeze and so on, at the end of the agent's stream."""

    def __init__(self, path: str, area: str) -> None:
        self._stamps = itertools.count(1_700_000_000_000)
        self._area = area
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self._lines = self.sock.makefile("rb")

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Return what was returned, or the text of the error."""
        if not command.startswith("guest-fsfreeze-"):
            check_harmless(command, arguments, self._area)
        self.resynchronise()
        more = "" if arguments is None else f',"arguments":{json.dumps(arguments)}'
        self.sock.sendall(f'{{"execute":"{command}"{more}}}\n'.encode())
        reply = json.loads(self._lines.readline())
        return reply["return"] if "return" in reply else reply["error"]["desc"]

    def resynchronise(self) -> None:
        """Ask for a number, and throw away what comes before it."""
        stamp = next(self._stamps)
        self.sock.sendall(f'{{"execute":"guest-sync", "arguments":{{"id":{stamp}}}}}\n'.encode())
        while json.loads(self._lines.readline()) != {"return": stamp}:
            pass

    def listed(self) -> dict[str, bool]:
        """Return the commands of guest-info, and whether each is enabled."""
        return {command["name"]: command["enabled"] for command in self.ask("guest-info")["supported_commands"]}

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


@pytest.fixture
def guest(rig: Rig) -> tuple[LoopFs, Daemon]:
    fs = rig.fs("ext4")
    return fs, rig.daemon([fs], ["--guest-hold-limit", "30"])


@pytest.fixture
def host(rig: Rig, guest: tuple[LoopFs, Daemon]) -> Iterator[Libvirt]:
    made = Libvirt(str(guest[1].socket), str(rig.area.root))
    yield made
    made.close()


def test_kubevirt_polls_and_finds_the_agent_supported(host: Libvirt) -> None:
    answers = {command: host.ask(command) for command in KUBEVIRT_POLLS}
    assert answers["guest-fsfreeze-status"] == "thawed"
    assert {"id", "kernel-release", "kernel-version", "machine", "name"} <= set(answers["guest-get-osinfo"])
    assert set(answers["guest-get-timezone"]) == {"offset", "zone"}
    assert all({"name", "mountpoint", "type", "disk"} <= set(fs) for fs in answers["guest-get-fsinfo"])
    major, minor, patch = answers["guest-info"]["version"].split(".")
    assert int(major) >= 7, (minor, patch)
    assert host.ask("guest-fsfreeze-freeze") == 1
    listed = host.listed()
    assert set(KUBEVIRT_NEEDS) <= set(listed), "it looks for them while frozen, too"
    assert host.ask("guest-fsfreeze-thaw") == 1


def test_kubevirt_freezes_for_longer_than_a_hold(rig: Rig) -> None:
    """FreezeVMI, UnfreezeVMI of virtwrap/manager.go: the status first, and nothing if it is as wanted already."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], ["--hold-limit", str(HOLD)])
    host = Libvirt(str(daemon.socket), str(rig.area.root))
    try:
        assert host.ask("guest-fsfreeze-status") == "thawed"
        assert host.ask("guest-fsfreeze-freeze") == 1
        left = daemon.status()["hold_left"]
        assert 290 < left <= 300, "unfreezeTimeoutSeconds of cmd/virt-freezer/main.go is 300"
        assert host.ask("guest-fsfreeze-status") == "frozen"
        assert host.ask("guest-fsfreeze-thaw") == 1
        fs.assert_thawed()
    finally:
        host.close()


def test_kubevirt_learns_that_the_hold_ended(rig: Rig) -> None:
    """cmd/virt-freezer/main.go: an unfreeze fails, and its text is looked through for the reason."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], ["--guest-hold-limit", str(HOLD)])
    host = Libvirt(str(daemon.socket), str(rig.area.root))
    try:
        assert host.ask("guest-fsfreeze-freeze") == 1
        daemon.wait_state("THAWED")
        told = host.ask("guest-fsfreeze-thaw")
        assert "fsfreeze is limited" in told
        # It tries again; an answer of 0 to that would make the snapshot good (promise 9).
        assert host.ask("guest-fsfreeze-thaw") == told
        assert host.ask("guest-fsfreeze-freeze") == 1
        assert host.ask("guest-fsfreeze-thaw") == 1
    finally:
        host.close()


def test_nova_quiesces_for_a_snapshot(guest: tuple[LoopFs, Daemon], host: Libvirt) -> None:
    """_set_quiesced of nova/virt/libvirt/driver.py calls fsFreeze and fsThaw; set_admin_password sets a password.

    guest.py: sync_guest_time sets the time after a resume, in nanoseconds.
    """
    fs, _ = guest
    assert host.ask("guest-fsfreeze-freeze") == 1
    fs.assert_frozen()
    password = {"username": "no-such-user", "password": "eA==", "crypted": False}
    assert "disabled" in host.ask("guest-set-user-password", password)
    assert host.ask("guest-fsfreeze-thaw") == 1
    fs.assert_thawed()
    assert "no-such-user" in host.ask("guest-set-user-password", password)
    assert isinstance(host.ask("guest-set-time", {"time": -1}), str), "refused in words, not by silence"


def test_vdsm_asks_what_is_listed(guest: tuple[LoopFs, Daemon], host: Libvirt) -> None:
    """_qga_capability_check, then update_guest_info: what is not listed is never asked; frozen it asks all the same."""
    listed = host.listed()
    assert set(VDSM) <= set(listed)
    assert "guest-get-devices" not in listed
    before = {command: host.ask(command) for command in VDSM}
    assert all(isinstance(answer, list | dict) for answer in before.values()), before
    assert host.ask("guest-fsfreeze-freeze") == 1
    during = {command: host.ask(command) for command in VDSM}
    assert {name: type(answer) for name, answer in during.items()} == {n: type(a) for n, a in before.items()}
    assert host.ask("guest-fsfreeze-thaw") == 1


def test_proxmox_gives_up_on_a_freeze_and_polls_its_status(rig: Rig) -> None:
    """PVE::QemuServer::Agent since 2025: when guest-fsfreeze-freeze has timed out it asks guest-fsfreeze-status.

    PVE::QMPClient writes guest-sync-delimited and the command at once, and takes the line after the sync's.
    """
    slow, fs = rig.stall("ext4"), rig.fs("ext4")
    daemon = rig.daemon([slow.fs, fs])
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(daemon.socket))
    lines = sock.makefile("rb")

    def say(number: int, command: str) -> None:
        sync = f'{{"execute":"guest-sync-delimited","arguments":{{"id":{number}}}}}\n'
        sock.sendall(f'{sync}{{"execute":"{command}","arguments":{{}}}}\n'.encode())
        assert lines.readline() == b'\xff{"return": %d}\n' % number

    try:
        slow.stall()
        say(1, "guest-fsfreeze-freeze")
        daemon.wait_state("INPROGRESS")
        say(2, "guest-fsfreeze-status")
        slow.release()
        assert lines.readline() == b'{"return": "frozen"}\n', "the truth, when it is known; never the freeze's 2"
        say(3, "guest-fsfreeze-thaw")
        assert lines.readline() == b'{"return": 2}\n'
    finally:
        lines.close()
        sock.close()

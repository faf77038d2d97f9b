"""How libvirt, Proxmox and QEMU's own library speak to a guest agent, word by word, and what they rely on.

Read off their sources: libvirt's src/qemu/qemu_agent.c and its log, PVE/QMPClient.pm and PVE/QemuServer/Agent.pm of
Proxmox's qemu-server, qmp_client.py of qemu.qmp.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.rig import Rig


class Wire:
    """A host at its end of the byte stream."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self._lines = self.sock.makefile("rb")

    def says(self, data: bytes) -> None:
        self.sock.sendall(data)

    def hears(self, line: bytes) -> None:
        assert self._lines.readline() == line

    def hears_nothing_more(self) -> None:
        self.says(b'{"execute":"guest-ping","id":"last"}')
        assert json.loads(self._lines.readline()) == {"return": {}, "id": "last"}

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


@pytest.fixture
def guest(rig: Rig) -> tuple[LoopFs, Daemon]:
    fs = rig.fs("ext4")
    return fs, rig.daemon([fs])


@pytest.fixture
def wire(guest: tuple[LoopFs, Daemon]) -> Iterator[Wire]:
    made = Wire(str(guest[1].socket))
    yield made
    made.close()


def test_libvirt_freezes_and_thaws(guest: tuple[LoopFs, Daemon], wire: Wire) -> None:
    """virsh domfsfreeze, domfsthaw (qemuAgentFSFreeze): a sync with a time stamp first, no id, no 0xFF."""
    fs, _ = guest
    wire.says(b'{"execute":"guest-sync", "arguments":{"id":1700000000123}}\n')
    wire.hears(b'{"return": 1700000000123}\n')
    wire.says(b'{"execute":"guest-fsfreeze-freeze"}\n')
    wire.hears(b'{"return": 1}\n')
    fs.assert_frozen()
    wire.says(b'{"execute":"guest-fsfreeze-thaw"}\n')
    wire.hears(b'{"return": 1}\n')
    fs.assert_thawed()
    wire.says(b'{"execute":"guest-fsfreeze-freeze-list","arguments":{"mountpoints":["%b"]}}\n' % str(fs.path).encode())
    wire.hears(b'{"return": 1}\n')
    wire.says(b'{"execute":"guest-fsfreeze-thaw"}\n')
    wire.hears(b'{"return": 1}\n')


def test_libvirt_gives_up_and_resynchronises(guest: tuple[LoopFs, Daemon], wire: Wire) -> None:
    """qemuAgentGuestSync: after a time-out a sync with another number; lines are dropped until that one comes back."""
    fs, daemon = guest
    wire.says(b'{"execute":"guest-file-open","arguments":{"path":"%b/f","mode":"w"}}\n' % str(fs.path).encode())
    wire.hears(b'{"return": 1000}\n')
    [keeper] = daemon.children()
    keeper.suspend()
    wire.says(b'{"execute":"guest-file-flush","arguments":{"handle":1000}}\n')
    wire.says(b'{"execute":"guest-sync", "arguments":{"id":1700000000124}}\n')
    wire.hears(b'{"return": 1700000000124}\n')
    wire.says(b'{"execute":"guest-get-host-name"}\n')
    wire.hears(json.dumps({"return": {"host-name": socket.gethostname()}}).encode() + b"\n")
    keeper.resume()
    wire.says(b'{"execute":"guest-file-close","arguments":{"handle":1000}}\n')
    wire.hears(b'{"return": {}}\n')
    wire.hears_nothing_more()


def test_proxmox_sends_sync_and_command_in_one_go(guest: tuple[LoopFs, Daemon], wire: Wire) -> None:
    """check_queue, mux_input of PVE::QMPClient: it wants 0xFF, the sync's reply, and right after it the command's."""
    sync = b'{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n'
    wire.says(sync % 1 + b'{"execute":"guest-fsfreeze-freeze","arguments":{}}\n')
    wire.hears(b'\xff{"return": 1}\n')
    wire.hears(b'{"return": 1}\n')
    wire.says(sync % 2 + b'{"execute":"guest-fsfreeze-status","arguments":{}}\n')
    wire.hears(b'\xff{"return": 2}\n')
    wire.hears(b'{"return": "frozen"}\n')
    wire.says(sync % 3 + b'{"execute":"guest-fsfreeze-thaw","arguments":{}}\n')
    wire.hears(b'\xff{"return": 3}\n')
    wire.hears(b'{"return": 1}\n')
    wire.says(sync % 4 + b'{"execute":"guest-get-osinfo","arguments":{}}\n')
    wire.hears(b'\xff{"return": 4}\n')
    assert b'"kernel-release"' in wire._lines.readline()
    guest[0].assert_thawed()


def test_a_sentinel_in_the_middle_of_a_message_of_a_host_that_died(wire: Wire) -> None:
    wire.says(b'{"execute":"guest-exec","arguments":{"path":"/bin/tr')
    wire.says(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":9}}\n')
    assert b"JSON parse error" in wire._lines.readline()
    wire.hears(b'\xff{"return": 9}\n')


def test_qemus_own_library_as_a_client(guest: tuple[LoopFs, Daemon]) -> None:
    """qemu.qmp, which matches replies by id and has several requests under way."""
    from qemu.qmp import QMPClient
    from qemu.qmp.error import QMPError

    fs, daemon = guest

    async def talk() -> None:
        client = QMPClient("test")
        client.await_greeting = client.negotiate = False
        await client.connect(str(daemon.socket))
        try:
            assert await client.execute("guest-sync", {"id": 5}) == 5
            info, status, name = await asyncio.gather(
                client.execute("guest-info"), client.execute("va.fsstatus"), client.execute("guest-get-host-name")
            )
            assert {"name": "guest-ping", "enabled": True, "success-response": True} in info["supported_commands"]
            assert status == 0
            assert name == {"host-name": socket.gethostname()}
            with pytest.raises(QMPError, match="has not been found"):
                await client.execute("guest-nope")
            assert await client.execute("guest-fsfreeze-freeze") == 1
            poll = asyncio.create_task(client.execute("va.fsstatus", {"since": await seq(client), "wait": 20}))
            assert await client.execute("guest-fsfreeze-thaw") == 1
            assert (await poll)["state"] != "FROZEN"
        finally:
            await client.disconnect()

    async def seq(client: QMPClient) -> int:
        record = await client.execute("va.fsstatus", {"wait": 0})
        return int(record["seq"])

    asyncio.run(talk())
    fs.assert_thawed()

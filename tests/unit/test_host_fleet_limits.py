"""Groups at the limits of the machine and of what they are given: descriptors, the size of an environment, names."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.many_agents import ManyAgents
from test_host_libvirt_pool import GONE, Connection, Guests, Libvirtd, guests, libvirtd
from test_host_transports import LibvirtError
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Status
from virtagent.host import AsyncAgentGroup, Unreachable, ssh_process
from virtagent.host.group import GroupFreeze
from virtagent.host.holding import Freeze
from virtagent.host.snapshot import environment
from virtagent.host.transports import parse

__all__ = ["guests", "libvirtd"]


def test_a_group_whose_thaw_was_cut_short_is_not_good(tmp_path: Path) -> None:
    asked = threading.Event()
    done: list[GroupFreeze] = []

    def slow(n: int, method: str) -> Any:
        if method != "va.fsthaw" or asked.is_set():
            return None
        asked.set()
        return Fault(Code.IN_PROGRESS, "va.fsthaw is still in progress after 1.0 s; the job goes on")

    async def freeze(urls: list[str]) -> None:
        async with AsyncAgentGroup(urls).frozen() as group:
            done.append(group)
        pytest.fail("it was cancelled")

    async def run(urls: list[str]) -> None:
        task = asyncio.ensure_future(freeze(urls))
        assert await asyncio.to_thread(asked.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with ManyAgents(tmp_path, 1, slow) as those:
        asyncio.run(run(those.urls))
        assert not those.frozen
    assert done[0].broken is not None


def test_a_group_with_no_connection_at_a_time_is_none() -> None:
    """It waited for ever."""
    with pytest.raises(ValueError, match="connects is 0"):
        AsyncAgentGroup("unix:/a", connects=0)


def test_what_no_environment_holds_is_left_out_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed with `Argument list too long`, when all was frozen."""
    monkeypatch.setenv("VIRTAGENT_MOUNTS", "/of/another/snapshot")
    mounts = tuple(f"/srv/{n:090}" for n in range(400))
    freezes = {f"unix:/run/{n}": Freeze(400, n, mounts, 0, 60, Status("FROZEN", 2, 1)) for n in range(4)}
    env = environment(GroupFreeze(freezes, skew=0, skew_by_agents=0))
    assert all(len(f"{name}={value}") < 128 << 10 for name, value in env.items()), "execve(2), MAX_ARG_STRLEN"
    assert "VIRTAGENT_MOUNTS" not in env
    assert env["VIRTAGENT_AGENTS"].splitlines() == list(freezes)
    freezes = {"unix:/run/0": freezes["unix:/run/0"]}
    assert environment(GroupFreeze(freezes, skew=0, skew_by_agents=0))["VIRTAGENT_MOUNTS"].splitlines() == list(mounts)


def no_descriptor(*_: Any) -> Any:
    raise OSError(24, os.strerror(24))


def test_no_descriptor_for_an_ssh_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socketpair", no_descriptor)
    with pytest.raises(Unreachable, match="Too many open files"):
        ssh_process.spawn(parse("ssh:hv1").far)  # type: ignore[arg-type]


class Ssh:
    """A process that has closed its end, and is not reaped yet."""

    pid = 1

    def __init__(self) -> None:
        reads, writes = os.pipe()
        os.write(writes, b"no route to host\n")
        os.close(writes)
        self.stderr = os.fdopen(reads, "rb")
        self.ended = False

    def poll(self) -> int | None:
        return 255 if self.ended else None

    def kill(self) -> None:
        self.ended = True


def test_why_an_ssh_has_ended_is_told_without_a_descriptor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked waited for the whole time."""
    ssh = Ssh()
    ours, theirs = socket.socketpair()
    theirs.close()
    monkeypatch.setattr(ssh_process, "spawn", lambda far: (ours, ssh))
    monkeypatch.setattr(os, "pidfd_open", no_descriptor)

    async def run() -> None:
        far = parse("ssh:hv1").far
        assert far is not None
        remote = ssh_process.Remote(far)
        await remote.start()
        with pytest.raises(Unreachable, match="no route to host"):
            await remote.clock(20)
        await remote.close()

    asyncio.run(run())
    assert ssh.ended


def test_a_libvirtd_that_answers_nothing_is_told_and_not_connected_to_for_ever(
    libvirtd: Libvirtd, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was connected to again and again, as fast as that went, until the time of the call was over."""

    def refuses(_connection: Connection) -> int:
        raise LibvirtError(*GONE)

    monkeypatch.setattr(Connection, "getLibVersion", refuses)
    for name in ("vm1", "vm2"):
        with pytest.raises(Unreachable, match="Connection reset by peer"):
            guests.ask(name, seconds=5).result(5)
    assert sum(libvirtd.opens.values()) <= 2


@pytest.mark.parametrize("url", ["libvirt:\udcff", "libvirt:db1?connect=qemu:///\udc80"])
def test_a_name_that_no_libvirt_takes_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        parse(url)

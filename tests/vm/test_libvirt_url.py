"""`libvirt:` URLs through the real libvirt-python: virtagentctl and the library, virtagentd and a stock qemu-ga."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Unmet
from harness.processes import until
from harness.rig import Rig
from harness.vm.domain import DEVICES, HOLD, NAME, QEMU_GA, VIRTAGENT, Domain
from harness.vm.guest import FILE_SYSTEMS
from test_libvirt import needs_recovery
from virtagent.host import Agent, AgentGroup, FreezeBroken, Unreachable

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "host.md").read_text(encoding="utf-8")
RECIPES = [text for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "libvirt:" in text]
BROKEN, UNREACHABLE = 5, 3


@pytest.fixture(autouse=True)
def bindings() -> None:
    """They are an extra, which `scripts/test --vm` installs."""
    if importlib.util.find_spec("libvirt") is None:
        raise Unmet("needs libvirt-python: install virtagent[libvirt]")


def url(domain: Domain) -> str:
    return f"libvirt:{NAME}?connect={domain.libvirtd.uri}"


def command(domain: Domain, *words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("virtagentctl")), "--agent", url(domain), *words]


def ctl(domain: Domain, *words: str, code: int = 0) -> str:
    """Run virtagentctl; return what it printed, which no error of libvirt's own may stand in."""
    done = subprocess.run(command(domain, *words), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "libvirt:  " not in done.stderr
    assert "QEMU Driver error" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    return done.stdout + done.stderr


def load(domain: Domain, agent: str) -> None:
    domain.serve(agent)
    domain.write_everywhere()
    domain.wait_writing()


def test_virtagentctl_looks_freezes_and_thaws(domain: Domain) -> None:
    load(domain, VIRTAGENT)
    began = time.monotonic()
    assert "answers after" in ctl(domain, "ping")
    print(f"virtagentctl ping: {time.monotonic() - began:.2f} s")
    assert json.loads(ctl(domain, "--json", "status"))["state"] == "THAWED"
    assert "/srv/xfs" in ctl(domain, "plan")
    ctl(domain, "sync")
    ctl(domain, "freeze", "--hold-limit", "60")
    domain.stands_still()
    status = json.loads(ctl(domain, "--json", "status"))
    assert status["state"] == "FROZEN"
    assert sum(mount["state"] == "frozen" for mount in status["mounts"]) == FILE_SYSTEMS
    ctl(domain, "hold", "90")
    assert json.loads(ctl(domain, "--json", "status"))["hold_left"] > 60
    ctl(domain, "thaw")
    domain.wait_writing()


def test_a_broken_freeze_is_told(domain: Domain) -> None:
    load(domain, VIRTAGENT)
    ctl(domain, "freeze", "--hold-limit", "2")
    domain.wait_writing()
    until(lambda: domain.agent_status() == "thawed", HOLD, "thawed by itself")
    for _ in range(2):  # it is told again, since a host that retries may have lost the first answer
        assert "broke" in ctl(domain, "thaw", code=BROKEN)


def test_a_stock_qemu_ga_does_what_it_can(domain: Domain) -> None:
    load(domain, QEMU_GA)
    assert json.loads(ctl(domain, "--json", "status"))["state"] == "THAWED"
    ctl(domain, "freeze")
    domain.stands_still()
    assert json.loads(ctl(domain, "--json", "status"))["state"] == "FROZEN"
    assert "stock qemu-ga" in ctl(domain, "hold", "90", code=1)
    ctl(domain, "thaw")
    domain.wait_writing()


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_recipe(domain: Domain, number: int, tmp_path: Path) -> None:
    """Run it as it stands in docs/host.md, with this libvirtd's URI."""
    load(domain, VIRTAGENT)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("virtagentctl", "virsh"):
        found = Path(sys.executable).with_name(name)
        uri = f"-c '{domain.libvirtd.uri}'" if name == "virsh" else ""
        (programs / name).write_text(f'#!/bin/sh\nexec {found if found.exists() else f"/usr/bin/{name}"} {uri} "$@"\n')
        (programs / name).chmod(0o755)
    recipe = RECIPES[number].replace("libvirt:vm1", f"'{url(domain)}'").replace("vm1", NAME)
    recipe = recipe.replace("before-upgrade", domain.snapshot_name())
    images = domain.files()
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    ran = subprocess.run(["sh", "-ec", recipe], capture_output=True, text=True, timeout=120, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "without a break" in ran.stderr
    domain.wait_writing()
    assert domain.files() != images
    for name in ("root", "ext4"):
        assert not needs_recovery(domain.raw(images[DEVICES[name]])), name


def test_virtagentctl_snapshot_is_killed(domain: Domain) -> None:
    load(domain, VIRTAGENT)
    words = command(domain, "snapshot", "--hold", "4", "--", "sh", "-c", "echo frozen; exec sleep 60")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        domain.stands_still()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
        process.wait()
    subprocess.run(["kill", "-9", *children], check=False)
    process.stdout.close()
    domain.wait_writing()
    until(lambda: domain.agent_status() == "thawed", HOLD, "thawed by itself")
    assert "broke" in ctl(domain, "thaw", code=BROKEN)


def test_the_library_extends_the_hold_and_connects_again(domain: Domain) -> None:
    load(domain, VIRTAGENT)
    with Agent(url(domain)) as agent:
        with agent.frozen(hold=4, extend=True) as freeze:
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 8, 10, "twice the hold")
            domain.stands_still()
        assert freeze.held_seconds is not None
        assert freeze.held_seconds > 8
        domain.wait_writing()
        domain.libvirtd.kill()
        domain.libvirtd.start()
        domain.wait_answer()
        assert agent.ping() == "dummy"
        with pytest.raises(FreezeBroken), agent.frozen(hold=2):
            domain.wait_writing()


def test_a_group_with_another_guest(domain: Domain, rig: Rig) -> None:
    load(domain, VIRTAGENT)
    other = rig.fs("ext4")
    daemon = rig.daemon([other])
    with AgentGroup([url(domain), daemon.url]).frozen(hold=30) as freeze:
        domain.stands_still()
        assert {len(guest.mounts) for guest in freeze.guests.values()} == {1, FILE_SYSTEMS}
    print(f"group of two: skew {freeze.skew * 1000:.0f} ms, window {freeze.window * 1000:.0f} ms")
    domain.wait_writing()


@pytest.mark.parametrize(
    ("change", "words"),
    [((f"libvirt:{NAME}", "libvirt:nobody"), "no domain"), (("libvirt-sock", "no-socket"), "No such file")],
    ids=["domain", "socket"],
)
def test_who_is_not_there(domain: Domain, change: tuple[str, str], words: str) -> None:
    wrong = url(domain).replace(*change)
    done = subprocess.run([*command(domain, "ping")[:2], wrong, "ping"], capture_output=True, text=True, check=False)
    assert done.returncode == UNREACHABLE, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    with pytest.raises(Unreachable, match=words), Agent(wrong) as agent:
        agent.ping()

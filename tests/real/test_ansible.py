"""The Ansible collection: built, installed, and run over a real sshd with real daemons."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import netns, sshd
from harness.daemon import NEWS_LIMIT, Daemon
from harness.filesystems import LoopFs
from harness.fixtures import unmet
from harness.namespace import Area
from harness.netns import NetworkNamespace
from harness.questions import assert_well
from harness.rig import Rig
from harness.sshd import Sshd

pytestmark = pytest.mark.timeout(600)
COLLECTION = Path(__file__).resolve().parents[2] / "packaging" / "ansible" / "virtagent" / "fleet"
CTL = str(Path(sys.executable).with_name("virtagentctl"))
PLAYBOOK = """\
- hosts: guests
  gather_facts: false
  roles:
    - role: virtagent.fleet.guest
- hosts: hypervisors
  gather_facts: false
  roles:
    - role: virtagent.fleet.hypervisor
  tags: [install]
- hosts: hypervisors
  gather_facts: false
  tags: [snapshot]
  tasks:
    - virtagent.fleet.virtagent_snapshot:
        executable: "{{ ctl }}"
        command: "{{ inside }}"
        on_each_host: "echo $VIRTAGENT_AGENTS >> {{ flag }}"
        hold: 60
      register: taken
      ignore_errors: true
    - ansible.builtin.copy:
        content: "{{ taken | to_json }}"
        dest: "{{ kept }}"
        mode: "0600"
      check_mode: false
      delegate_to: localhost
      run_once: true
"""
TWO_NETWORKS = """\
- hosts: guests
  gather_facts: false
  roles:
    - role: virtagent.fleet.guest
  tags: [roles]
- hosts: hypervisors
  gather_facts: false
  roles:
    - role: virtagent.fleet.hypervisor
  tags: [roles]
- hosts: guests
  gather_facts: false
  tags: [plan]
  tasks:
    - virtagent.fleet.virtagent_plan:
        executable: "{{ virtagent_guest_executable }}"
        agent: "{{ virtagent_guest_agent }}"
        must_freeze: "{{ virtagent_guest_must_freeze }}"
- hosts: hypervisors
  gather_facts: false
  tags: [snapshot]
  tasks:
    - virtagent.fleet.virtagent_snapshot:
        executable: "{{ virtagent_hypervisor_executable }}"
        on_each_host: "readlink /proc/self/ns/net >> {{ flag }}"
        hold: 60
"""


@pytest.fixture(scope="module")
def server(area: Area, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Start an sshd in the mount namespace of the tests; skip unless it is asked for: Ansible takes its time."""
    if not os.environ.get("VIRTAGENT_ANSIBLE"):
        pytest.skip("set VIRTAGENT_ANSIBLE=1 to run the Ansible collection; some minutes")
    if shutil.which("ansible-playbook") is None:
        unmet("no ansible-playbook (Debian: ansible-core)")
    if why := sshd.missing():
        unmet(why)
    one = Sshd(tmp_path_factory.mktemp("sshd") / "it")
    yield one
    one.close()


@pytest.fixture(scope="module")
def collections(server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection and install it, as a user does."""
    folder = tmp_path_factory.mktemp("collections")
    env = os.environ | {"HOME": str(folder), "ANSIBLE_LOCAL_TEMP": str(folder / "tmp")}
    build = ["ansible-galaxy", "collection", "build", str(COLLECTION), "--output-path", str(folder)]
    subprocess.run(build, check=True, env=env, capture_output=True)
    (built,) = folder.glob("virtagent-fleet-*.tar.gz")
    install = ["ansible-galaxy", "collection", "install", "--offline", str(built), "-p", str(folder)]
    subprocess.run(install, check=True, env=env, capture_output=True)
    return folder


class Play:
    """One playbook over two hypervisors with two guests."""

    def __init__(self, folder: Path, collections: Path, server: Sshd, guests: list[tuple[Daemon, LoopFs]]) -> None:
        self.folder, self._server = folder, server
        self.kept, self.flag = folder / "kept.json", folder / "flag"
        (one, fs), (two, _) = guests
        reach = f"ansible_ssh_common_args='-F {server.folder}/config' ansible_python_interpreter=/usr/bin/python3"
        inside = ["sh", "-c", f"{CTL} --json --agent {one.url} status; {CTL} --json --agent {two.url} status"]
        names = {"vm1": one.url}
        values: dict[str, Any] = {
            "ctl": CTL,
            "flag": str(self.flag),
            "kept": str(self.kept),
            "inside": inside,
            "virtagent_guest_mask": "",
            "virtagent_guest_service": "",
            "virtagent_guest_config": str(folder / "guest"),
            "virtagent_guest_options": {"hold-limit": 60, "strict": True, "exclude": ["/mnt/a", "/mnt/b"]},
            "virtagent_guest_writers": {"db": ["type postgresql", "user agent"]},
            "virtagent_guest_must_freeze": [str(fs.path)],
            "virtagent_guest_executable": CTL,
            "virtagent_guest_agent": one.url,
            "virtagent_hypervisor_config": str(folder / "hypervisor"),
            "virtagent_hypervisor_agents": names,
            "virtagent_hypervisor_executable": CTL,
        }
        (folder / "vars.json").write_text(json.dumps(values))
        (folder / "hosts").write_text(
            f"[guests]\nguest1 {reach}\n[hypervisors]\n"
            f"hv1 {reach} virtagent_agents='[\"{one.url}\"]'\nhv2 {reach} virtagent_agents='[\"{two.url}\"]'\n"
        )
        (folder / "site.yml").write_text(PLAYBOOK)
        self._env: Mapping[str, str] = (
            os.environ
            | server.env
            | {
                "HOME": str(folder),
                "ANSIBLE_COLLECTIONS_PATHS": str(collections),
                "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
                "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
                "ANSIBLE_SSH_ARGS": "",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
            }
        )

    def through(self, ssh: Path) -> None:
        """Let virtagentctl use this ssh."""
        self._env = {**self._env, "VIRTAGENT_SSH": str(ssh)}

    def run(self, *words: str, **values: Any) -> tuple[str, dict[str, Any]]:
        """Run it; return what it printed, and what the snapshot returned, {} if there was none."""
        self.kept.unlink(missing_ok=True)
        given = ["-e", f"@{self.folder}/vars.json", "-e", json.dumps(values)]
        command = ["ansible-playbook", "-i", str(self.folder / "hosts"), *given, *words, str(self.folder / "site.yml")]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads(self.kept.read_text()) if self.kept.exists() else {}


@pytest.fixture
def guests(server: Sshd, rig: Rig) -> list[tuple[Daemon, LoopFs]]:
    return [(rig.daemon([fs]), fs) for fs in (rig.fs("ext4") for _ in range(2))]


@pytest.fixture
def play(tmp_path: Path, collections: Path, server: Sshd, guests: list[tuple[Daemon, LoopFs]]) -> Play:
    return Play(tmp_path, collections, server, guests)


def test_check_mode_says_that_it_would_change_and_does_not(play: Play, guests: list[tuple[Daemon, LoopFs]]) -> None:
    _, taken = play.run("--check")
    assert (taken["rc"], taken["changed"]) == (0, True), taken
    assert not (play.folder / "guest").exists()
    assert not (play.folder / "hypervisor").exists()
    assert not play.flag.exists()
    for daemon, _ in guests:
        assert daemon.status()["last"] == {}, "nothing was frozen"


def test_a_snapshot_over_two_hypervisors(play: Play, rig: Rig, guests: list[tuple[Daemon, LoopFs]]) -> None:
    _, taken = play.run()
    assert (taken["rc"], taken.get("failed", False)) == (0, False), taken
    assert taken["report"]["good"]
    assert len(taken["report"]["guests"]) == 2
    assert [agent.partition("?")[0] for agent in taken["agents"]] == ["ssh:hv1", "ssh:hv2"]
    assert taken["stderr"].count('"state": "FROZEN"') == 2, taken["stderr"]
    assert sorted(play.flag.read_text().split()) == sorted(daemon.url for daemon, _ in guests)
    conf = (play.folder / "guest" / "virtagentd.conf").read_text()
    assert [line for line in conf.splitlines() if line and line[0] != "#"] == [
        "hold-limit 60",
        "strict",
        "exclude /mnt/a",
        "exclude /mnt/b",
    ]
    assert "type postgresql\nuser agent\n" in (play.folder / "guest" / "writers.d" / "db.conf").read_text()
    assert f"vm1 {guests[0][0].url}\n" in (play.folder / "hypervisor" / "agents.conf").read_text()
    for daemon, fs in guests:
        assert_well(rig, daemon, [fs])


def test_roles_that_were_run_already_change_nothing(play: Play) -> None:
    changed = [re.findall(r" changed=(\d+)", play.run(*words)[0]) for words in (["--skip-tags", "snapshot"],) * 2]
    assert changed[1] == ["0", "0", "0"], changed
    assert changed[0] != changed[1]
    said, _ = play.run("--check", "--skip-tags", "snapshot")
    assert re.findall(r" changed=(\d+)", said) == ["0", "0", "0"], said


def test_a_broken_freeze_fails_the_task(play: Play, rig: Rig, guests: list[tuple[Daemon, LoopFs]]) -> None:
    (one, fs), (two, other) = guests
    _, taken = play.run("--tags", "snapshot", inside=["fsfreeze", "--unfreeze", str(fs.path)])
    assert (taken["rc"], taken["failed"]) == (5, True), taken
    assert "broke" in taken["msg"] or "thawed" in taken["msg"], taken["msg"]
    assert not taken["report"]["good"]
    _, taken = play.run("--tags", "snapshot", inside=["false"])
    assert (taken["rc"], taken["failed"]) == (1, True), taken
    for daemon, one_fs in ((one, fs), (two, other)):
        assert_well(rig, daemon, [one_fs])


def changes(said: str) -> dict[str, int]:
    """Return how many changes each host had, by the last lines of ansible-playbook."""
    return {host: int(count) for host, count in re.findall(r"(?m)^(\w+) +: ok=\d+ +changed=(\d+)", said)}


def test_hosts_in_two_networks(rig: Rig, play: Play, tmp_path: Path) -> None:
    """A real sshd and a daemon in each; roles and plan twice; a snapshot is a deed and always a change."""
    if why := netns.missing():
        unmet(why)
    with contextlib.ExitStack() as ends:
        networks: list[NetworkNamespace] = []
        daemons: list[tuple[Daemon, LoopFs]] = []
        ssh = ['#!/bin/sh\nfor word; do [ "$before" = -- ] && host=$word; before=$word; done\ncase $host in']
        hosts: dict[str, dict[str, Any]] = {"guests": {}, "hypervisors": {}}
        for number in (1, 2):
            network = NetworkNamespace(rig.area, number)
            ends.callback(network.close)
            server = Sshd(tmp_path / f"sshd{number}", network.address, network.enter)
            ends.callback(server.close)
            rig.area.guard(server.process.pid)
            fs = rig.fs("ext4")
            start = rig.area.fresh("start")
            python = f"{sys.executable} -m virtagent.supervisor.main --news-limit {NEWS_LIMIT}"
            start.write_text(f'#!/bin/sh\nexec {" ".join(network.enter)} {python} "$@"\n')
            start.chmod(0o755)
            daemon = rig.daemon([fs], program=str(start))
            assert os.readlink(f"/proc/{daemon.pid}/ns/net") == network.name
            networks.append(network)
            daemons.append((daemon, fs))
            reach = {"ansible_ssh_common_args": f"-F {server.folder}/config"}
            reach["ansible_python_interpreter"] = "/usr/bin/python3"
            hosts["guests"][f"guest{number}"] = reach | {
                "virtagent_guest_agent": daemon.url,
                "virtagent_guest_config": str(tmp_path / f"guest{number}"),
                "virtagent_guest_must_freeze": [str(fs.path)],
            }
            hosts["hypervisors"][f"hv{number}"] = reach | {
                "virtagent_agents": [daemon.url],
                "virtagent_hypervisor_config": str(tmp_path / f"hypervisor{number}"),
                "virtagent_hypervisor_agents": {f"vm{number}": daemon.url},
            }
            ssh.append(f'hv{number}) exec {server.folder}/ssh "$@" ;;')
        script = tmp_path / "ssh"
        script.write_text("\n".join([*ssh, "*) exit 255 ;;", "esac", ""]))
        script.chmod(0o755)
        values = json.loads((tmp_path / "vars.json").read_text())
        for own in ("agent", "config", "must_freeze"):
            del values[f"virtagent_guest_{own}"]
        for own in ("agents", "config"):
            del values[f"virtagent_hypervisor_{own}"]
        (tmp_path / "vars.json").write_text(json.dumps(values))
        (tmp_path / "hosts").unlink()
        (tmp_path / "hosts").write_text(json.dumps({name: {"hosts": members} for name, members in hosts.items()}))
        (tmp_path / "site.yml").write_text(TWO_NETWORKS)
        play.through(script)

        every = {"guest1", "guest2", "hv1", "hv2"}
        said = changes(play.run("--check")[0])
        assert set(said) == every
        assert all(said[host] for host in every - {"hv2"}), said  # the snapshot runs once, on hv1
        assert not any((tmp_path / name).exists() for name in ("guest1", "guest2", "hypervisor1", "flag"))
        assert [daemon.status()["last"] for daemon, _ in daemons] == [{}, {}], "nothing was frozen"
        first = changes(play.run("--tags", "roles,plan")[0])
        assert set(first) == every
        assert all(first.values()), first
        assert changes(play.run("--tags", "roles,plan")[0]) == dict.fromkeys(every, 0)
        assert changes(play.run("--check", "--tags", "roles,plan")[0]) == dict.fromkeys(every, 0)
        for times in (1, 2):
            assert sum(changes(play.run("--tags", "snapshot")[0]).values()) >= 1
            assert sorted(play.flag.read_text().split()) == sorted([network.name for network in networks] * times)
        for daemon, fs in daemons:
            assert_well(rig, daemon, [fs])

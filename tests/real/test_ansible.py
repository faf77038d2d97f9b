"""The Ansible collection: built, installed, and run over a real sshd with real daemons."""

from __future__ import annotations

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
from harness import sshd
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.fixtures import unmet
from harness.namespace import Area
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


@pytest.fixture(scope="module")
def server(area: Area, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Start an sshd in the mount namespace of the tests; skip unless it is asked for: Ansible takes its time."""
    if not os.environ.get("VIRTAGENT_ANSIBLE"):
        pytest.skip("set VIRTAGENT_ANSIBLE=1 to run the Ansible collection; some half a minute")
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

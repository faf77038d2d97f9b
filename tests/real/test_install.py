"""scripts/install and scripts/uninstall below a folder, and the installed programs on a real file system."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import confined, linux
from harness.daemon import Daemon
from harness.namespace import Area
from harness.rig import Rig
from virtagent.supervisor.io.journal import boot_id

pytestmark = pytest.mark.timeout(240)  # an installation asks pip for packages

TREE = Path(__file__).resolve().parents[2]
PLACES = {
    "etc/systemd/system/virtagentd.service",
    "etc/udev/rules.d/60-virtagent.rules",
    "etc/virtagent/virtagentd.conf",
    "usr/local/sbin/virtagentd",
    "usr/local/bin/virtagentctl",
    "usr/local/sbin/virtagent-qemu-ga",
    "usr/local/lib/systemd/catalog/virtagent.catalog",
    "usr/local/share/man/man1/virtagentctl.1",
    "usr/local/share/man/man5/virtagentd.conf.5",
    "usr/local/share/man/man8/virtagentd.8",
    "usr/local/share/man/man8/virtagent-qemu-ga.8",
    "usr/local/share/bash-completion/completions/virtagentctl",
    "usr/local/share/zsh/site-functions/_virtagentctl",
    "usr/local/share/fish/vendor_completions.d/virtagentctl.fish",
    *(f"etc/virtagent/writers.d/{sample.name}" for sample in (TREE / "packaging/writers.d").iterdir()),
}
BASE = Path(os.path.realpath("/usr/bin/python3"))  # a service runs with the system's Python
UNIT = "etc/systemd/system/virtagentd.service"
GA_UNIT = "etc/systemd/system/virtagent-qemu-ga.service"
RULE = "etc/udev/rules.d/60-virtagent.rules"


class Installed:
    """A prefix that scripts/install has been run on."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.home = prefix / "opt/virtagent"
        self.daemon = prefix / "usr/local/sbin/virtagentd"
        self.control = prefix / "usr/local/bin/virtagentctl"
        self.conf = prefix / "etc/virtagent/virtagentd.conf"
        self.state_dir = prefix / "run/virtagent"

    def give_python(self) -> None:
        """Have the Python that the agent runs with below the prefix, as an image has."""
        there = self.prefix / BASE.relative_to("/")
        there.parent.mkdir(parents=True)
        there.symlink_to(BASE)

    def script(
        self, name: str, agent: str = "", *options: str, home: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run scripts/NAME on the prefix; `agent` is where the agent listens that is to be asked."""
        env = {key: value for key, value in os.environ.items() if key != "VIRTAGENT_AGENT"}
        if home is not None:
            env["HOME"] = str(home)
        if agent:
            env["VIRTAGENT_AGENT"] = agent
        command = [str(TREE / "scripts" / name), "--prefix-root", str(self.prefix), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    def ctl(self, daemon: Daemon, *words: str) -> str:
        command = [str(self.control), "--agent", daemon.url, "--json", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Return what lies below the prefix, folders too, with inode, size and change time: what any write changes."""
        found = {}
        for folder, _, names in os.walk(self.prefix):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                stat = os.lstat(path)
                found[os.path.relpath(path, self.prefix)] = (stat.st_ino, stat.st_size, stat.st_ctime_ns)
        return found

    def places(self) -> set[str]:
        return {
            name
            for name in self.files()
            if not (self.prefix / name).is_dir()
            and not name.startswith(("opt/", "run/"))
            and name != str(BASE.relative_to("/"))
        }

    def left(self) -> list[Path]:
        """Return what is below the prefix, but for its Python."""
        python = self.prefix / BASE.relative_to("/")
        return [path for path in self.prefix.rglob("*") if path not in (python, *python.parents)]


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture(scope="module")
def built(area: Area) -> Installed:
    """One installation for the tests that only use it: it takes seconds to make."""
    made = Installed(area.fresh("installed"))
    made.give_python()
    succeeded(made.script("install"))
    return made


@pytest.fixture
def installed(area: Area, built: Installed) -> Installed:
    """An installation of this test, which may change it: a moved copy, as in an image."""
    copy = area.fresh("prefix")
    subprocess.run(["cp", "-a", str(built.prefix), str(copy)], check=True)
    return Installed(copy)


def test_all_is_there_and_nothing_is_written_later(rig: Rig, built: Installed) -> None:
    assert built.places() == PLACES
    fs = rig.fs("ext4")
    before = built.files()
    daemon = rig.daemon([fs], program=str(built.daemon))
    assert any(str(built.home) in line.split()[-1] for line in maps(daemon.pid)), "it runs from elsewhere"
    assert not any(str(TREE) in line for line in maps(daemon.pid))
    built.ctl(daemon, "freeze")
    fs.assert_frozen()
    assert json.loads(built.ctl(daemon, "status"))["state"] == "FROZEN"
    thawed = json.loads(built.ctl(daemon, "thaw"))
    assert (thawed["thawed"], thawed["cancelled"], thawed["last"]["outcome"]) == (1, False, "thawed")
    fs.assert_thawed()
    assert daemon.stop() == 0
    for program in (built.daemon, built.control):
        assert "usage" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert built.files() == before


def test_which_python_an_installation_gets(area: Area, built: Installed) -> None:
    said = succeeded(built.script("install"))
    assert f" on {BASE} was installed already" in said
    bare = Installed(area.fresh("bare"))
    assert f"{BASE} is not below {bare.prefix}" in refused(bare.script("install"))
    assert not bare.home.exists()
    bare.give_python()
    home = area.fresh("home")
    home.mkdir(exist_ok=True)
    private = home / "python3"
    shutil.copy2(BASE, private)
    assert "lies below a home folder" in refused(bare.script("install", "", "--python", str(private), home=home))
    assert "nonsense is none" in refused(bare.script("install", "", "--python", "nonsense"))
    assert not bare.home.exists()


def test_what_man_and_the_shells_find(built: Installed) -> None:
    share = built.prefix / "usr/local/share"
    for page in ("virtagentctl.1", "virtagentd.conf.5", "virtagentd.8", "virtagent-qemu-ga.8"):
        assert (share / f"man/man{page[-1]}" / page).read_text() == (TREE / "docs" / page).read_text()
    for shell, name in (
        ("bash", "bash-completion/completions/virtagentctl"),
        ("zsh", "zsh/site-functions/_virtagentctl"),
        ("fish", "fish/vendor_completions.d/virtagentctl.fish"),
    ):
        printed = subprocess.run([built.control, "completion", shell], capture_output=True, text=True, check=True)
        assert (share / name).read_text() == printed.stdout != ""


def maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def test_plan(rig: Rig, built: Installed) -> None:
    fs = rig.fs("ext4")
    command = [str(built.daemon), "--include", fs.include]
    done = subprocess.run([*command, "--plan"], capture_output=True, text=True, check=True, cwd="/")
    assert f"{fs.path} (ext4, " in done.stdout
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith("virtagentd ")


def test_the_rights_that_the_unit_leaves_are_enough(rig: Rig, installed: Installed) -> None:
    """A mount point and a file that root may not reach by ownership alone, the kernel's log, the titles, the end."""
    program = rig.area.fresh("without-rights")
    may_raise = confined.may_raise()
    python = installed.home / "current/bin/python"
    confined.make(program, (installed.prefix / UNIT).read_text(), python, installed.daemon, may_raise=may_raise)
    fs = rig.fs("ext4")
    secret = fs.path / "secret"
    secret.write_bytes(b"hidden\n")
    secret.chmod(0o600)
    closed = fs.path / "closed"
    closed.mkdir()
    inner = rig.fs("ext4")
    bound = closed / "bound"
    bound.mkdir()
    for path in (secret, closed):
        os.chown(path, 65534, 65534)
    closed.chmod(0o700)
    linux.umount(str(inner.path))
    linux.mount(inner.device, str(bound), "ext4")
    try:
        daemon = rig.daemon([rig.everywhere], program=str(program))
        host = daemon.proxy()
        assert host.va.fsfreeze() == 2
        assert any("keeper" in title for title in daemon.titles().values())
        assert host.va.getfile(str(secret)).data == b"hidden\n"
        assert isinstance(host.va.getdmesg(), str)
        assert host.va.fsthaw() == 2
        assert daemon.stop() == 0
        if may_raise:  # as systemd may, but not everyone in a container
            assert "mlockall" not in daemon.log()
            assert "oom_score_adj" not in daemon.log()
    finally:
        linux.umount(str(bound))
        inner.mount()


def test_again_changes_nothing(built: Installed) -> None:
    before = built.files()
    assert "nothing changed" in succeeded(built.script("install"))
    assert built.files().keys() == before.keys()
    changed = {name for name, facts in built.files().items() if facts != before[name]}
    assert changed <= {"opt/virtagent/conf.sum", "opt/virtagent"}


def test_an_upgrade_replaces_the_tree_and_the_untouched_sample(installed: Installed) -> None:
    current = installed.home / "current"
    tree = current.readlink()
    current.unlink()
    (installed.home / tree).rename(installed.home / "tree-older")
    current.symlink_to("tree-older")
    installed.conf.write_text("# an older sample\n")
    sum_of(installed)
    installed.daemon.unlink()
    assert "is installed below" in succeeded(installed.script("install"))
    assert current.readlink() == tree
    assert sorted(path.name for path in installed.home.iterdir()) == sorted(["conf.sum", "current", str(tree)])
    assert "hold-limit" in installed.conf.read_text()
    assert installed.places() == PLACES
    assert subprocess.run([installed.daemon, "--version"], capture_output=True, check=False).returncode == 0


def sum_of(installed: Installed) -> None:
    done = subprocess.run(["sha256sum", str(installed.conf)], capture_output=True, text=True, check=True)
    (installed.home / "conf.sum").write_text(done.stdout.split()[0] + "\n")


def test_uninstall_leaves_nothing(installed: Installed) -> None:
    succeeded(installed.script("uninstall"))
    assert installed.left() == []
    assert "nothing is installed" in refused(installed.script("uninstall"))


def test_in_the_place_of_qemu_ga(installed: Installed) -> None:
    succeeded(installed.script("install", "", "--as-qemu-ga"))
    assert installed.places() == {GA_UNIT if place == UNIT else place for place in PLACES}
    assert '+="virtagent-qemu-ga.service"' in (installed.prefix / RULE).read_text()
    # An upgrade must not take the host its agent.
    assert "nothing changed" in succeeded(installed.script("install"))
    assert (installed.prefix / GA_UNIT).exists()
    assert "nothing changed" in succeeded(installed.script("install", "", "--as-qemu-ga"))
    succeeded(installed.script("uninstall"))
    assert installed.left() == []


def test_not_beside_a_qemu_ga_that_may_be_started(installed: Installed) -> None:
    unit = installed.prefix / "usr/lib/systemd/system/qemu-guest-agent.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/sbin/qemu-ga\n")
    before = installed.files()
    said = refused(installed.script("install", "", "--as-qemu-ga"))
    assert f"{unit} would be started" in said
    assert f"systemctl --root={installed.prefix} mask qemu-guest-agent.service" in said
    assert installed.files() == before
    succeeded(installed.script("install"))
    mask = installed.prefix / "etc/systemd/system/qemu-guest-agent.service"
    mask.symlink_to("/dev/null")
    succeeded(installed.script("install", "", "--as-qemu-ga"))
    succeeded(installed.script("uninstall"))
    assert installed.places() == {
        "usr/lib/systemd/system/qemu-guest-agent.service",
        str(mask.relative_to(installed.prefix)),
    }


def test_an_agent_without_a_socket_is_noticed(installed: Installed) -> None:
    installed.state_dir.mkdir(parents=True)
    record = {"boot": boot_id(), "plan": {"mounts": [{"mountpoint": "/srv/db"}]}}
    with open(installed.state_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "still runs" in refused(installed.script("uninstall"))
        (installed.state_dir / "journal").write_text(json.dumps(record))
        for script in ("install", "uninstall"):
            said = refused(installed.script(script))
            assert "an agent runs" in said
            assert "/srv/db" in said
    (installed.state_dir / "journal").unlink()
    (installed.state_dir / "handles").write_text("1001\n")
    succeeded(installed.script("uninstall"))
    assert installed.left() == []


def test_uninstall_leaves_what_is_not_its_own(installed: Installed) -> None:
    with open(installed.conf, "a", encoding="utf-8") as conf:
        conf.write("hold-limit 20\n")
    installed.control.unlink()
    installed.control.write_text("#!/bin/sh\n")
    assert str(installed.conf) in succeeded(installed.script("uninstall"))
    assert installed.places() == {"etc/virtagent/virtagentd.conf", "usr/local/bin/virtagentctl"}
    assert str(installed.control) in refused(installed.script("install"))
    assert not installed.home.exists()


def test_refused_while_frozen(rig: Rig, installed: Installed) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], program=str(installed.daemon))
    installed.ctl(daemon, "freeze")
    before = installed.files()
    for script in ("install", "uninstall"):
        assert "FROZEN" in refused(installed.script(script, daemon.url))
    fs.assert_frozen()
    installed.ctl(daemon, "thaw")
    assert installed.files() == before
    succeeded(installed.script("install", daemon.url))
    assert "still runs" in refused(installed.script("uninstall", daemon.url))
    assert daemon.stop() == 0
    succeeded(installed.script("uninstall", daemon.url))


def test_refused_while_a_journal_names_mounts(installed: Installed) -> None:
    installed.state_dir.mkdir(parents=True)
    journal = installed.state_dir / "journal"
    record = {"boot": boot_id(), "plan": {"mounts": [{"mountpoint": "/srv/db"}]}}
    for text, told in ((json.dumps(record), "/srv/db"), ("{", "cannot be read"), ("[]", "cannot be read")):
        journal.write_text(text)
        for script in ("install", "uninstall"):
            assert told in refused(installed.script(script))
    # Nothing stays frozen over a boot, and what is only to be told names no mount.
    for harmless in ({**record, "boot": "another"}, {**record, "plan": {"mounts": []}}):
        journal.write_text(json.dumps(harmless))
        succeeded(installed.script("install"))
    succeeded(installed.script("uninstall"))
    assert installed.left() == []


def test_the_journal_is_looked_for_where_the_configuration_says(installed: Installed) -> None:
    (installed.prefix / "elsewhere").mkdir()
    record = {"boot": boot_id(), "plan": {"mounts": [{"mountpoint": "/srv/db"}]}}
    (installed.prefix / "elsewhere/journal").write_text(json.dumps(record))
    for line in ("state-dir /elsewhere", "  state-dir = /elsewhere"):
        installed.conf.write_text(f"# state-dir /nowhere\n{line}\n")
        assert "/srv/db" in refused(installed.script("uninstall"))

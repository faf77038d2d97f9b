"""The packages as scripts/package builds them. Installed they are in tests/vm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Unmet
from harness.rig import Rig
from virtagent.agent import __version__
from virtagent.supervisor.io import journal

TREE = Path(__file__).resolve().parents[2]
GUEST = ("virtagent", "virtagent-qemu-ga")
PACKAGES = (*GUEST, "virtagent-host")
PYTHON = "/usr/bin/python3"
DEB_TOOLS = ("dpkg-buildpackage", "dh", "dh_python3")
pytestmark = pytest.mark.timeout(180)  # whichever is first builds them


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Unmet(f"needs {', '.join(missing)}")


def run(*command: str | Path, **more: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from harness.fixtures import unmet

    try:
        needs(*DEB_TOOLS)
    except Unmet as reason:
        unmet(reason)
    output = tmp_path_factory.mktemp("deb")
    run(TREE / "scripts/package", "--output", output, "deb")
    return {name: output / f"{name}_{__version__}_all.deb" for name in PACKAGES}


@pytest.fixture(scope="module")
def unpacked(debs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, deb in debs.items():
        found[name] = tmp_path_factory.mktemp(name)
        run("dpkg-deb", "-x", deb, found[name])
        run("dpkg-deb", "-e", deb, found[name] / "DEBIAN")
    return found


def test_lintian_has_nothing_to_say(debs: dict[str, Path]) -> None:
    needs("lintian")
    said = run("lintian", "--fail-on", "error,warning,info", "--suppress-tags",
               "package-supports-alternative-init-but-no-init.d-script", *debs.values())  # fmt: skip
    assert "unused-override" not in said


def test_the_version_of_the_packages_is_that_of_the_tree(debs: dict[str, Path]) -> None:
    for name, deb in debs.items():
        assert run("dpkg-deb", "-f", deb, "Package", "Version") == f"Package: {name}\nVersion: {__version__}\n"


def test_one_is_in_place_of_debians(debs: dict[str, Path]) -> None:
    said = run("dpkg-deb", "-f", debs["virtagent-qemu-ga"], "Provides", "Conflicts", "Replaces")
    fields = dict(line.split(": ") for line in said.splitlines())
    assert fields["Provides"] == fields["Replaces"] == "qemu-guest-agent"
    assert set(fields["Conflicts"].split(", ")) == {"qemu-guest-agent", "virtagent"}


def python_of(folder: Path, module: str, *words: str) -> str:
    """Run a module in `folder` with Debian's Python, which must have what the package depends on."""
    if subprocess.run([PYTHON, "-c", "import h11, msgpack, psutil, setproctitle"], capture_output=True).returncode:
        raise Unmet("needs python3-h11, python3-msgpack, python3-psutil and python3-setproctitle")
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); from virtagent.{module} import main; sys.exit(main())"
    return run(PYTHON, "-I", "-B", "-c", start, *words, cwd="/")


@pytest.mark.parametrize("name", GUEST)
def test_the_code_is_whole_and_starts(unpacked: dict[str, Path], name: str) -> None:
    private = unpacked[name] / "usr/lib/virtagent"
    for part in ("agent", "supervisor"):
        there = {path.relative_to(TREE) for path in (TREE / part).rglob("*.py")}
        packed = private / "virtagent"
        assert {path.relative_to(packed) for path in (packed / part).rglob("*.py")} == there
    assert python_of(private, "supervisor.main", "--version") == f"virtagentd {__version__}\n"


def test_the_host_has_no_more_than_it_needs(unpacked: dict[str, Path]) -> None:
    public = unpacked["virtagent-host"] / "usr/lib/python3/dist-packages"
    assert sorted(p.name for p in (public / "virtagent/agent").iterdir()) == ["__init__.py", "api", "py.typed", "wire"]
    assert __version__ in python_of(public, "host.main", "--version")


def test_rules_and_dashboard_come_with_the_command_that_prints_the_metrics(
    unpacked: dict[str, Path], rpms: dict[str, Path]
) -> None:
    files = run("rpm", "-qpl", rpms["virtagent-host"]).splitlines()
    for path in (TREE / "packaging/monitoring").iterdir():
        there = unpacked["virtagent-host"] / "usr/share/doc/virtagent-host/examples/monitoring" / path.name
        assert there.read_bytes() == path.read_bytes()
        assert any(file.endswith(f"/monitoring/{path.name}") for file in files)


@pytest.mark.parametrize("name", GUEST)
def test_nothing_names_the_folder_of_the_installer(unpacked: dict[str, Path], name: str) -> None:
    top = unpacked[name]
    for path in [*top.glob("lib/systemd/system/*"), *top.glob("etc/**/*"), *top.glob("usr/lib/virtagent/bin/*")]:
        if path.is_dir():
            continue
        text = path.read_text()
        assert "/opt/virtagent" not in text, path
        assert "scripts/" not in text, path
        for word in text.split():
            if word.startswith(("file:///", "/usr/")) and word.rstrip(".").endswith((".md", "virtagentd", "qemu-ga")):
                assert os.path.lexists(f"{top}{word.removeprefix('file://').rstrip('.')}"), word


def test_the_old_names_lead_to_ours(unpacked: dict[str, Path]) -> None:
    top = unpacked["virtagent-qemu-ga"]
    assert os.readlink(top / "lib/systemd/system/qemu-guest-agent.service") == "virtagent-qemu-ga.service"
    assert (top / "lib/systemd/system/virtagent-qemu-ga.service").is_file()
    assert os.path.realpath(top / "usr/sbin/qemu-ga") == f"{top.resolve()}/usr/lib/virtagent/bin/virtagentd"
    assert "qemu-guest-agent" not in (top / "lib/systemd/system/virtagent-qemu-ga.service").read_text()


def test_a_unit_that_udev_starts_is_not_enabled(unpacked: dict[str, Path]) -> None:
    enables = "deb-systemd-helper --quiet was-enabled"
    debian = "deb-systemd-helper debian-installed"  # only if an administrator has enabled it
    scripts = {name: (unpacked[name] / "DEBIAN/postinst").read_text() for name in GUEST}
    assert enables in scripts["virtagent"]
    assert debian not in scripts["virtagent"]
    assert debian in scripts["virtagent-qemu-ga"]
    assert (
        'ENV{SYSTEMD_WANTS}+="virtagent-qemu-ga.service"'
        in next((unpacked["virtagent-qemu-ga"] / "lib/udev/rules.d").iterdir()).read_text()
    )


def test_it_is_started_where_the_port_is_there_already(unpacked: dict[str, Path], tmp_path: Path) -> None:
    """debhelper's part starts no unit that is not enabled, and udev says nothing of a port that was there before."""
    script = (unpacked["virtagent-qemu-ga"] / "DEBIAN/postinst").read_text()
    own = script[script.index("unit=") :]
    for there in ("/run/systemd/system", "/dev/virtio-ports/org.qemu.guest_agent.0", "/usr/sbin/policy-rc.d"):
        assert there in own
        own = own.replace(there, f"{tmp_path}{there}")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\n[ "$1" = start ] && echo "$@"\n')
    systemctl.chmod(0o755)
    policy = tmp_path / "usr/sbin/policy-rc.d"
    policy.parent.mkdir(parents=True)
    (tmp_path / "run/systemd/system").mkdir(parents=True)

    def said() -> str:
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return run("sh", "-ec", own, "postinst", "configure", "", env=path)

    assert said() == "", "no port"
    (tmp_path / "dev/virtio-ports").mkdir(parents=True)
    (tmp_path / "dev/virtio-ports/org.qemu.guest_agent.0").touch()
    assert said() == "start virtagent-qemu-ga.service\n"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    assert said() == "", "in an image that is being built nothing is started"


def test_rpmlint_has_nothing_to_say(rpms: dict[str, Path]) -> None:
    if shutil.which("rpmlint") is None:
        pytest.skip("needs rpmlint")
    packaging = TREE / "packaging/rpm"
    said = run("rpmlint", "-c", packaging / "rpmlint.toml", packaging / "virtagent.spec", *rpms.values())
    assert " 0 errors, 0 warnings" in said, said


# -- what the scripts of the packages ask before anything is changed


@pytest.fixture
def thawed(tmp_path: Path) -> Callable[[], tuple[int, str]]:
    """Return what asks whether all is thawed, with the state folder of a test: its exit code and what it says."""
    program = tmp_path / "thawed"
    text = (TREE / "packaging/debian/thawed").read_text()
    assert text.count("/run/virtagent") == text.count("/etc/virtagent/virtagentd.conf") == 1
    text = text.replace("/etc/virtagent/virtagentd.conf", f"{tmp_path}/conf").replace("/run/virtagent", str(tmp_path))
    program.write_text(text)

    def ask() -> tuple[int, str]:
        done = subprocess.run([PYTHON, "-IB", program], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    return ask


def write(path: Path, boot: str, *mounts: str) -> None:
    plan = {"mounts": [{"mountpoint": mount} for mount in mounts]}
    path.write_text(json.dumps({"version": 1, "boot": boot, "plan": plan}))


def test_what_may_be_frozen_is_named(thawed: Callable[[], tuple[int, str]], tmp_path: Path) -> None:
    assert thawed() == (0, "")
    write(tmp_path / "journal", journal.boot_id(), "/srv/a", "/srv/b\n")
    code, said = thawed()
    assert code == 3
    assert "'/srv/a', '/srv/b\\n'" in said
    write(tmp_path / "journal", journal.boot_id())
    assert thawed() == (0, "")
    write(tmp_path / "journal", "another boot", "/srv/a")
    assert thawed() == (0, "")
    (tmp_path / "journal").write_text("{")
    assert thawed()[0] == 3


@pytest.mark.parametrize("line", ["state-dir {}", "--state-dir = {}", "  state-dir={}  "])
def test_the_journal_is_looked_for_where_it_is(
    thawed: Callable[[], tuple[int, str]], tmp_path: Path, line: str
) -> None:
    (tmp_path / "else").mkdir()
    write(tmp_path / "else/journal", journal.boot_id(), "/srv")
    (tmp_path / "conf").write_text(f"# state-dir /nowhere\nstate-dir /none\n{line.format(tmp_path / 'else')}\n")
    assert thawed()[0] == 3


def test_the_daemon_writes_what_they_read(rig: Rig, thawed: Callable[[], tuple[int, str]], tmp_path: Path) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    (tmp_path / "conf").write_text(f"state-dir {daemon.state_dir}\n")
    assert thawed() == (0, "")
    host = daemon.proxy()
    assert host.va.fsfreeze({}) == 1
    code, said = thawed()
    assert (code, str(fs.path) in said) == (3, True)
    assert host.va.fsthaw() == 1
    assert thawed() == (0, "")


@pytest.mark.parametrize("arguments", [["remove"], ["upgrade", "9"], ["deconfigure"], ["failed-upgrade", "9"]])
def test_nothing_is_removed_or_replaced_while_something_is_frozen(arguments: list[str], tmp_path: Path) -> None:
    script = (TREE / "packaging/debian/guest.prerm").read_text().replace("#DEBHELPER#", "echo went on")
    thawed = tmp_path / "thawed"
    script = script.replace("/usr/lib/virtagent/bin/thawed", str(thawed))

    def end(code: int) -> tuple[int, str]:
        thawed.write_text(f"#!/bin/sh\nexit {code}\n")
        thawed.chmod(0o755)
        done = subprocess.run(["sh", "-c", script, "prerm", *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert end(0) == (0, "went on\n")
    assert end(3) == (1, "")
    assert end(127) == (0, "went on\n"), "a python3 that is broken must not keep a package from being removed"


@pytest.mark.parametrize("name", GUEST)
@pytest.mark.parametrize("why", ["abort-upgrade", "abort-remove", "abort-deconfigure"])
def test_a_refusal_restarts_no_agent_that_holds_a_freeze(name: str, why: str, tmp_path: Path) -> None:
    """dpkg calls the old postinst when prerm has refused; seen in a guest: that restarted the agent, which thawed."""
    script = (TREE / f"packaging/debian/{name}.postinst").read_text().replace("#DEBHELPER#", "echo restarted")
    systemctl = tmp_path / "systemctl"
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for active, said in ((0, ""), (3, "restarted\n")):
        systemctl.write_text(f"#!/bin/sh\nexit {active}\n")
        systemctl.chmod(0o755)
        assert run("sh", "-c", script, "postinst", why, "9", env=path) == said
    assert run("sh", "-c", script, "postinst", "configure", "", env=path).startswith("restarted\n")


# -- for Fedora and its family; built on Debian, so that only files and scripts can be looked at


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if shutil.which("rpmbuild") is None:
        pytest.skip("needs rpmbuild (Debian package rpm)")
    output = tmp_path_factory.mktemp("rpm")
    run(TREE / "scripts/package", "--output", output, "rpm")
    return {name: output / f"{name}-{__version__}-1.noarch.rpm" for name in (*PACKAGES, "virtagent-selinux")}


@pytest.mark.parametrize("name", GUEST)
def test_an_rpm_has_the_files_of_the_deb(rpms: dict[str, Path], unpacked: dict[str, Path], name: str) -> None:
    def code(files: list[str]) -> set[str]:
        return {file for file in files if file.startswith("/usr/lib/virtagent/virtagent/") and file.endswith(".py")}

    files = run("rpm", "-qpl", rpms[name]).splitlines()
    top = unpacked[name]
    assert code(files) == code([f"/{path.relative_to(top)}" for path in top.rglob("*")])
    unit = "virtagentd" if name == "virtagent" else "virtagent-qemu-ga"
    assert f"/usr/lib/systemd/system/{unit}.service" in files
    config = run("rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", rpms[name]).splitlines()
    assert ("/etc/sysconfig/qemu-ga cn" in config) == (name == "virtagent-qemu-ga"), "kept when the other package goes"


@pytest.mark.parametrize(("mounts", "code"), [([], 0), ([{"mountpoint": "/srv"}], 1)])
def test_an_rpm_is_not_replaced_while_something_is_frozen(
    rpms: dict[str, Path], tmp_path: Path, mounts: list[dict[str, str]], code: int
) -> None:
    first = run("rpm", "-qp", "--qf", "%{PREIN}", rpms["virtagent-qemu-ga"])
    (tmp_path / "journal").write_text(json.dumps({"plan": {"mounts": mounts}, "boot": "x"}))
    script = first.replace("/run/virtagent/journal", f"{tmp_path}/journal")
    assert "grep" in script
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code, (script, done.stderr)


def test_the_selinux_module_compiles(tmp_path: Path) -> None:
    makefile = Path("/usr/share/selinux/devel/Makefile")
    if not makefile.exists() or shutil.which("checkmodule") is None:
        pytest.skip("needs checkmodule and the interfaces (Debian packages checkpolicy, selinux-policy-dev)")
    for path in (TREE / "packaging/selinux").glob("virtagent.*"):
        shutil.copy(path, tmp_path)
    run("make", "-f", makefile, "virtagent.pp", cwd=tmp_path)
    assert (tmp_path / "virtagent.pp").stat().st_size > 0

"""virtagentd.pyz: the agent in one file, with nothing installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fakes.packaged import cloud_init, settings_in
from harness import Unmet
from harness.daemon import Daemon
from harness.peer import Talk
from harness.processes import kill, until
from harness.rig import Rig
from virtagent.agent import __version__

TREE = Path(__file__).resolve().parents[2]
PURE = TREE / "packaging/zipapp/pure"
BARE = sys._base_executable  # type: ignore[attr-defined]
OPENS = re.compile(r'^(\d+) +open(?:at2?)?\((?:\S*?<([^>]*)>, )?"([^"]*)"', re.MULTILINE)


def opened(trace: str) -> set[tuple[str, str]]:
    """Return process and path of each attempt to open one; strace -y names the folder of a relative path."""
    return {(pid, os.path.join(folder, path)) for pid, folder, path in OPENS.findall(trace)}


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pyz") / "virtagentd.pyz"
    command = [sys.executable, "-I", TREE / "packaging/zipapp/build.py", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def bare(pyz: Path, folder: Path, *before: str, python: str = BARE) -> str:
    """Return a program that runs the file with a Python that sees no installed package."""
    program = folder / "virtagentd"
    words = " ".join([*before, python, "-I", "-S", "-B", str(pyz)])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_it_is_small_and_the_same_each_time(pyz: Path, tmp_path: Path) -> None:
    assert pyz.stat().st_size < 2 << 20
    again = tmp_path / "again.pyz"
    subprocess.run([sys.executable, "-I", TREE / "packaging/zipapp/build.py", again], check=True)
    assert again.read_bytes() == pyz.read_bytes()


def interpreters() -> list[str]:
    found = [BARE, *(shutil.which(f"python3.{minor}") or "" for minor in range(10, 15))]
    found += map(str, Path.home().glob(".pyenv/versions/3.1[0-4].*/bin/python3"))
    return list(dict.fromkeys(path for path in found if path))


@pytest.mark.parametrize("python", interpreters())
def test_it_runs_with_every_python(pyz: Path, python: str) -> None:
    done = subprocess.run([python, "-I", "-S", pyz, "--version"], capture_output=True, text=True, check=False, cwd="/")
    if "command not found" in done.stderr or "not installed" in done.stderr:
        pytest.skip(done.stderr)  # a shim of pyenv
    assert (done.returncode, done.stdout) == (0, f"virtagentd {__version__}\n"), done.stderr


@pytest.mark.parametrize("python", interpreters())
def test_it_freezes_with_every_python(rig: Rig, pyz: Path, tmp_path: Path, python: str) -> None:
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} does not work")  # a shim of pyenv
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], program=bare(pyz, tmp_path, python=python))
    host = daemon.proxy()
    assert host.va.fsfreeze({}) == 1
    fs.assert_frozen()
    assert host.va.fsthaw() == 1
    fs.assert_thawed()
    talk = Talk(rig.area, str(daemon.socket))
    assert talk.ask("guest-exec", {"path": "/bin/true"})["return"]["pid"]
    assert talk.ask("guest-get-fsinfo")["return"]
    talk.close()


def test_by_the_other_name_it_is_the_other_program(pyz: Path, tmp_path: Path) -> None:
    link = tmp_path / "qemu-ga"
    link.symlink_to(pyz)
    done = subprocess.run([BARE, "-I", "-S", link, "-V"], capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.startswith("QEMU Guest Agent "), done.stderr


@pytest.mark.timeout(180)
def test_it_reads_nothing_from_a_disk_once_it_has_started(rig: Rig, pyz: Path, tmp_path: Path) -> None:
    """Not the file itself either: it may lie on what is frozen, or on a disk that is dead."""
    if shutil.which("strace") is None:
        raise Unmet("needs strace")
    fs = rig.fs("ext4")
    trace = rig.area.fresh("trace")
    program = bare(pyz, tmp_path, "strace", "-D", "-f", "-q", "-y", "-o", str(trace), "-e", "trace=open,openat,openat2")
    daemon = rig.daemon([fs], program=program)
    started = len(trace.read_bytes())
    assert str(pyz).encode() in trace.read_bytes()[:started], "the trace shows what is read"
    assert "msgpack, psutil" in daemon.log() or "psutil, setproctitle, msgpack" in daemon.log(), daemon.log()
    host = daemon.proxy()
    assert host.va.fsfreeze({}) == 1
    talk = Talk(rig.area, str(daemon.socket))
    for command in ("guest-info", "guest-network-get-interfaces", "guest-get-osinfo", "guest-get-disks", "nope"):
        talk.ask(command)
    host.va.fsplan()
    daemon.status()
    assert host.va.fsthaw() == 1
    handle = talk.ask("guest-file-open", {"path": f"{fs.path}/f", "mode": "w"})["return"]
    talk.ask("guest-file-write", {"handle": handle, "buf-b64": "eA=="})
    talk.ask("guest-file-close", {"handle": handle})
    talk.ask("guest-exec", {"path": "/bin/true"})
    talk.ask("guest-get-fsinfo")
    host.va.fsfreeze({})
    keeper = next(child for child in daemon.children() if "keeper" in " ".join(child.cmdline()))
    kill(keeper.pid)
    daemon.wait_state("THAWED")
    talk.close()
    assert not [fd for fd in daemon.fds() if ".pyz" in fd], "the file is not kept open"
    later = trace.read_text(errors="replace")[started:]
    paths = opened(later)
    assert paths, "the trace goes on"
    assert not {path for _, path in paths if ".pyz" in path or path.endswith((".py", ".pyc"))}
    mine = {path for pid, path in paths if pid == str(daemon.pid)}
    assert not {path for path in mine if not path.startswith(("/proc/", "/sys/", "/dev/", str(daemon.state_dir)))}


def test_ps_shows_what_happens(rig: Rig, pyz: Path, tmp_path: Path) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], program=bare(pyz, tmp_path))
    host = daemon.proxy()
    assert host.va.fsfreeze({}) == 1
    titles = [title for title in daemon.titles().values() if "keeper" in title]
    assert len(titles) == 1
    assert re.search(r"virtagentd: keeper \d+ fsfreeze \[1 frozen, \d+ s left\]", titles[0])
    assert host.va.fsthaw() == 1


def test_what_is_written_in_python_says_the_same_as_what_is_compiled() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import psutil; assert psutil.PURE\n"
        "for name, found in psutil.net_if_addrs().items():\n"
        "    for a in found: print(name, int(a.family), a.address, a.netmask)\n"
        "print(*sorted(psutil.disk_io_counters()))\n"
    )
    said = subprocess.run([BARE, "-I", "-S", "-c", code, PURE], capture_output=True, text=True, check=True).stdout
    *addresses, disks = said.splitlines()
    assert sorted(addresses) == sorted(
        f"{name} {int(a.family)} {a.address} {a.netmask}"
        for name, found in psutil.net_if_addrs().items()
        for a in found
    )
    there = {name for name in disks.split() if not name.startswith("loop")}
    assert there == {name for name in psutil.disk_io_counters(perdisk=True) if not name.startswith("loop")}


def test_messages_are_the_same_without_the_compiled_msgpack(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_report.py"]
    done = subprocess.run(
        command, cwd=TREE, env={**os.environ, "MSGPACK_PUREPYTHON": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_what_cloud_init_starts_serves(rig: Rig, pyz: Path, tmp_path: Path) -> None:
    """The command of the unit in docs/install.md, with another file and channel. As a whole it is tried in tests/vm."""
    files, _ = cloud_init()
    (start,) = settings_in(files["/etc/systemd/system/virtagentd.service"])["ExecStart"]
    python, *options, file = start.removesuffix(" --channel virtio").split()
    assert (python, file) == ("/usr/bin/python3", "/usr/local/sbin/virtagentd.pyz")
    program = tmp_path / "start"
    program.write_text(f'#!/bin/sh\nexec {BARE} -S {" ".join(options)} {pyz} "$@"\n')
    program.chmod(0o755)
    daemon: Daemon = rig.daemon([rig.fs("ext4")], program=str(program))
    assert daemon.proxy().va.ping() == "dummy"
    until(lambda: "listens at" in daemon.log(), 5, "the log")


def test_systemd_takes_the_unit_that_cloud_init_writes(pyz: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        raise Unmet("needs systemd-analyze (Debian package systemd)")
    files, _ = cloud_init()
    unit = tmp_path / "virtagentd.service"
    unit.write_text(files["/etc/systemd/system/virtagentd.service"].replace("/usr/local/sbin/virtagentd.pyz", str(pyz)))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "virtagentd.service" not in done.stderr, done.stderr

"""What is installed besides the code: unit, udev rule, sample configuration; and what the scripts refuse."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.fixtures import unmet
from virtagent.supervisor import config, ga_options, qemu_ga

TREE = Path(__file__).resolve().parents[2]
PACKAGING = TREE / "packaging"
UNIT = PACKAGING / "virtagentd.service"
GA_UNIT = PACKAGING / "virtagent-qemu-ga.service"
LIFE = re.findall(
    r"\w+",
    """
    Type NotifyAccess StartLimitIntervalSec IgnoreOnIsolate ExecReload ExecStopPost Restart RestartSec
    RestartPreventExitStatus KillMode TimeoutStopSec WatchdogSec WatchdogSignal RuntimeDirectory RuntimeDirectoryMode
    RuntimeDirectoryPreserve OOMScoreAdjust OOMPolicy LimitMEMLOCK TasksMax WantedBy
    """,
)
# exec_needs_mount_namespace() of systemd 252 to 257.
NAMESPACED = re.findall(
    r"\w+",
    """
    BindPaths BindReadOnlyPaths DynamicUser ExecPaths ExtensionDirectories ExtensionImages InaccessiblePaths
    IPCNamespacePath JoinsNamespaceOf LogNamespace MountAPIVFS MountFlags MountImages NetworkNamespacePath NoExecPaths
    PrivateBPF PrivateDevices PrivateIPC PrivateMounts PrivateNetwork PrivatePIDs PrivateTmp PrivateUsers
    ProcSubset ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules
    ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory RootImage
    TemporaryFileSystem
    """,
)
CLOSES_DEVICES = ("ProtectClock", "DevicePolicy", "DeviceAllow")
EXPOSURE_MOST = 50  # tenths; systemd 252 gives 4.4, nearly all of it for the namespaces that it must not have


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def recovery(after: str) -> list[str]:
    """Return the command with which ExecStopPost thaws."""
    shell, option, script = shlex.split(after)
    assert (shell, option) == ("/bin/sh", "-c")
    return script.partition(" exec ")[2].split()


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        unmet(f"needs {name} (Debian package {package})")
    return path


@pytest.fixture
def runnable(tmp_path: Path) -> Path:
    """The unit with programs that are there: systemd-analyze looks for them."""
    return with_programs(UNIT, tmp_path)


def with_programs(unit: Path, folder: Path) -> Path:
    text = re.sub(r"/opt/virtagent/current/bin/[a-z-]+", "/bin/true", unit.read_text(encoding="utf-8"))
    (folder / unit.name).write_text(text, encoding="utf-8")
    return folder / unit.name


def analyze(*arguments: str) -> None:
    command = [tool("systemd-analyze", "systemd"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # A setting that systemd ignores is only told there; so is what it finds wrong with other units.
    assert "virtagent" not in done.stderr, done.stderr


def test_systemd_takes_the_unit(runnable: Path) -> None:
    analyze("verify", "--man=no", str(runnable))


def test_systemd_takes_the_unit_in_the_place_of_qemu_ga(tmp_path: Path) -> None:
    analyze("verify", "--man=no", str(with_programs(GA_UNIT, tmp_path)))


def test_in_the_place_of_qemu_ga_it_lives_and_ends_the_same() -> None:
    here, there = settings(UNIT), settings(GA_UNIT)
    assert {name: there[name] for name in LIFE} == {name: here[name] for name in LIFE}


def test_in_the_place_of_qemu_ga_programs_are_as_free() -> None:
    more = {"Description", "Documentation", "Conflicts", "After", "ExecStart", "LimitCORE", "LimitNOFILE"}
    assert settings(GA_UNIT).keys() == {*LIFE, *more}
    # A program may raise them again.
    assert settings(GA_UNIT)["LimitCORE"] == ["0:infinity"]
    assert re.fullmatch(r"\d+:524288", *settings(GA_UNIT)["LimitNOFILE"])


def test_one_agent_has_the_port() -> None:
    (conflicts,), (after,) = settings(GA_UNIT)["Conflicts"], settings(GA_UNIT)["After"]
    # Without the order one could start while the other has not ended.
    assert set(conflicts.split()) == set(after.split()) == {UNIT.name, "qemu-guest-agent.service"}


@pytest.mark.parametrize("state_dir", ["", "state-dir /run/elsewhere\n"])
@pytest.mark.parametrize("key_file", ["", "[general]\nstatedir=/dev/shm\n"])
def test_in_the_place_of_qemu_ga_recovery_finds_the_journal(tmp_path: Path, state_dir: str, key_file: str) -> None:
    conf, keys = tmp_path / "virtagentd.conf", tmp_path / "qemu-ga.conf"
    conf.write_text(state_dir)
    keys.write_text(key_file)
    (start,), (after,) = settings(GA_UNIT)["ExecStart"], settings(GA_UNIT)["ExecStopPost"]
    taken, _ = ga_options.load(start.split()[1:], {"QGA_CONF": str(keys)})
    served, _ = qemu_ga.configure(taken, {"VIRTAGENT_CONF": str(conf)})
    program, *options = recovery(after)
    recovered, _ = config.load([*options, "--config", str(conf)])
    assert Path(served.state_dir).resolve() == Path(recovered.state_dir).resolve()
    assert program == settings()["ExecStart"][0]


def test_in_the_place_of_qemu_ga_the_port_is_served(tmp_path: Path) -> None:
    (start,) = settings(GA_UNIT)["ExecStart"]
    taken, _ = ga_options.load(start.split()[1:], {"QGA_CONF": str(tmp_path / "none")})
    (tmp_path / "virtagentd.conf").touch()
    served, _ = qemu_ga.configure(taken, {"VIRTAGENT_CONF": str(tmp_path / "virtagentd.conf")})
    assert served.channel == ("virtio:/dev/virtio-ports/org.qemu.guest_agent.0",)


def test_the_unit_is_as_closed_as_it_was(runnable: Path) -> None:
    analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(runnable))


def test_the_daemon_stays_among_the_guests_mounts() -> None:
    assert not settings().keys() & set(NAMESPACED)


def test_the_channel_to_the_host_can_be_opened() -> None:
    assert not settings().keys() & set(CLOSES_DEVICES)


def test_no_signal_of_systemd_reaches_the_keeper() -> None:
    assert settings()["KillMode"] == ["process"]
    assert settings()["OOMPolicy"] == ["continue"]


def test_the_journal_outlives_the_service() -> None:
    (preserve,) = settings()["RuntimeDirectoryPreserve"]
    assert preserve == "yes"
    assert "/run/" + settings()["RuntimeDirectory"][0] == config.STATE_DIR


def test_a_bad_configuration_does_not_keep_the_guest_frozen() -> None:
    (start,), (after,) = settings()["ExecStart"], settings()["ExecStopPost"]
    assert recovery(after) == [start, "--recover"]


@pytest.mark.parametrize("unit", [UNIT, GA_UNIT])
@pytest.mark.parametrize(
    ("ended", "recovers"),
    [
        ("exited 0", False),
        ("exited 2", True),
        ("exited 1", True),
        ("killed TERM", True),
        ("killed KILL", True),
        ("", True),
    ],
)
def test_only_a_daemon_that_ended_with_0_has_thawed_by_itself(
    unit: Path, ended: str, recovers: bool, tmp_path: Path
) -> None:
    (after,) = settings(unit)["ExecStopPost"]
    program = tmp_path / "virtagentd"
    program.write_text("#!/bin/sh\necho $*\n")
    program.chmod(0o755)
    _, _, script = shlex.split(after)
    code, _, status = ended.partition(" ")
    done = subprocess.run(
        ["/bin/sh", "-c", script.replace(recovery(after)[0], str(program))],
        env={"EXIT_CODE": code, "EXIT_STATUS": status},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert done.stdout == ("--recover\n" if recovers else "")


@pytest.mark.parametrize(
    ("rules", "unit"), [("60-virtagent.rules", UNIT.name), ("60-virtagent-qemu-ga.rules", GA_UNIT.name)]
)
def test_the_udev_rule_starts_the_unit(rules: str, unit: str) -> None:
    (rule,) = [
        line for line in (PACKAGING / rules).read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert re.fullmatch(r'(, )?(\w+(\{\w+\})?(==|\+=)"[^"]+"(, )?)+', rule)
    assert 'ATTR{name}=="org.qemu.guest_agent.0"' in rule
    assert f'ENV{{SYSTEMD_WANTS}}+="{unit}"' in rule
    assert 'TAG+="systemd"' in rule


def test_the_sample_configuration_says_nothing_but_the_defaults() -> None:
    sample = (PACKAGING / "virtagentd.conf").read_text(encoding="utf-8")
    assert config.build({}, config.read_file(sample, "sample")) == config.build({}, {})
    shown = "\n".join(line[1:] for line in sample.splitlines() if re.match(r"#[a-z]", line))
    found = config.read_file(shown, "sample")
    assert len(found) > 5
    taken = config.build({}, found)
    for name in found.keys() - {"channel", "include", "exclude", "allow-rpcs", "block-rpcs"}:
        field = name.replace("-", "_")
        assert getattr(taken, field) == getattr(config.Config(), field), f"{name} is shown, but not as its default"


@pytest.mark.parametrize("script", ["install", "uninstall"])
@pytest.mark.parametrize("wrong", [["--nonsense"], ["--prefix-root"], ["--prefix-root", ""], ["word"]])
def test_a_wrong_option_ends_with_one_sentence(script: str, wrong: list[str]) -> None:
    done = subprocess.run([TREE / "scripts" / script, *wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_only_root_may(script: str, tmp_path: Path) -> None:
    nobody = tmp_path / "id"
    nobody.write_text("#!/bin/sh\necho 65534\n")
    nobody.chmod(0o755)
    command = [str(TREE / "scripts" / script), "--prefix-root", str(tmp_path / "new")]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (2, f"{script}: must be run as root\n")
    assert not (tmp_path / "new").exists()

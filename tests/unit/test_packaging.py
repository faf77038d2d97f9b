"""What is installed besides the code: unit, udev rule, sample configuration; and what the scripts refuse."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

import pytest
from fakes.packaged import GA_UNIT, PACKAGING, UNIT, cloud_init, recovery, settings, settings_in, start_of_the_ga
from virtagent.agent.api.writer_options import parse
from virtagent.agent.api.writers import TYPES
from virtagent.supervisor import config, ga_options, qemu_ga
from virtagent.supervisor.io import journal

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


def test_in_the_place_of_qemu_ga_it_lives_and_ends_the_same() -> None:
    here, there = settings(UNIT), settings(GA_UNIT)
    assert {name: there[name] for name in LIFE} == {name: here[name] for name in LIFE}


@pytest.fixture(autouse=True)
def run_is_a_tmpfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it is one wherever systemd is; not so in some containers where these tests run."""
    monkeypatch.setattr(journal, "in_memory", lambda path: os.path.realpath(path).startswith(("/run", "/dev/shm")))


def test_in_the_place_of_qemu_ga_programs_are_as_free() -> None:
    more = {"Description", "Documentation", "Conflicts", "After", "ExecStart", "EnvironmentFile"}
    more |= {"LimitCORE", "LimitNOFILE"}
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
    (_, start), (after,) = start_of_the_ga(), settings(GA_UNIT)["ExecStopPost"]
    taken, _ = ga_options.load(start[1:], {"QGA_CONF": str(keys)})
    served, _ = qemu_ga.configure(taken, {"VIRTAGENT_CONF": str(conf)})
    program, *options = recovery(after)
    recovered, _ = config.load([*options, "--config", str(conf)])
    assert Path(served.state_dir).resolve() == Path(recovered.state_dir).resolve()
    assert program == settings()["ExecStart"][0]


def test_in_the_place_of_qemu_ga_the_port_is_served(tmp_path: Path) -> None:
    _, start = start_of_the_ga()
    taken, _ = ga_options.load(start[1:], {"QGA_CONF": str(tmp_path / "none")})
    (tmp_path / "virtagentd.conf").touch()
    served, _ = qemu_ga.configure(taken, {"VIRTAGENT_CONF": str(tmp_path / "virtagentd.conf")})
    assert served.channel == ("virtio:/dev/virtio-ports/org.qemu.guest_agent.0",)


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


def test_what_cloud_init_writes_lives_and_ends_as_the_service_does() -> None:
    """One that lost its journal when it died would leave frozen what its keeper held."""
    files, commands = cloud_init()
    [unit] = [settings_in(text) for path, text in files.items() if path.endswith(f"/{UNIT.name}")]
    here = settings()
    own = {"Description", "ExecStart"}
    assert {name: unit[name] for name in unit.keys() - own} == {name: here[name] for name in unit.keys() - own}
    assert {"RuntimeDirectoryPreserve", "StartLimitIntervalSec", "KillMode", "OOMPolicy", "Restart"} <= unit.keys()
    [start] = unit["ExecStart"]
    assert start.startswith("/usr/bin/python3 -I -B /usr/local/sbin/virtagentd.pyz ")
    assert "/usr/local/sbin/virtagentd.pyz" in files
    assert commands[-1] == f"systemctl enable --now {UNIT.name}", "it is there after the next boot, too"


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


# Read off the indexes of the releases (main, and universe of Ubuntu) in November 2026.
RELEASES = {
    "Debian 12": "3.11.2 psutil 5.9.4 msgpack 1.0.3 setproctitle 1.3.1 h11 0.14.0 rich 13.3.1 libvirt 9.0.0",
    "Debian 13": "3.13.5 psutil 7.0.0 msgpack 1.0.3 setproctitle 1.3.6 h11 0.14.0 rich 13.9.4 libvirt 11.3.0",
    "Ubuntu 24.04": "3.12.3 psutil 5.9.8 msgpack 1.0.3 setproctitle 1.3.3 h11 0.14.0 rich 13.7.1 libvirt 10.0.0",
}


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def of_debian(field: str, package: str) -> dict[str, str]:
    """Return the packages that a field of that package names, and the versions that it wants at the least."""
    text = (PACKAGING / "debian/control").read_text().partition(f"Package: {package}\n")[2].partition("\n\n")[0]
    found = re.search(rf"^{field}: ((?:.*\n )*.*)", text, re.MULTILINE)
    assert found, f"{package} has no {field}"
    words = [word.strip() for word in found[1].replace("\n", "").split(",")]
    named = [re.fullmatch(r"([\w-]+)(?: \(>= ([\d.]+)\))?", word) for word in words if not word.startswith("$")]
    return {match[1]: match[2] or "0" for match in named if match}


def wanted(section: str, option: str) -> dict[str, str]:
    """Return what setup.cfg wants, with the least versions, by the names that Debian gives to its packages."""
    config = configparser.ConfigParser()
    config.read(PACKAGING.parent / "setup.cfg")
    pairs = (line.split(">=") for line in config[section][option].split())
    return {f"python3-{name.removesuffix('-python')}": least for name, least in pairs}


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_has_what_the_packages_depend_on(release: str) -> None:
    words = ["python3", *RELEASES[release].split()]
    has = {
        name if name == "python3" else f"python3-{name}": version
        for name, version in zip(*[iter(words)] * 2, strict=True)
    }
    code = wanted("options", "install_requires")
    more = wanted("options.extras_require", "host") | wanted("options.extras_require", "libvirt")
    for package in ("virtagent", "virtagent-qemu-ga"):
        depends = of_debian("Depends", package)
        assert depends.keys() == {"python3", *code}
        for name, least in {**depends, **code}.items():
            assert number(has[name]) >= number(least), name
    assert of_debian("Depends", "virtagent-host").keys() == {"python3", "python3-h11"}
    assert of_debian("Recommends", "virtagent-host").keys() == more.keys()
    for name, least in more.items():
        assert number(has[name]) >= number(least), name
    assert (3, 10) <= number(has["python3"])[:2] <= (3, 14)


def test_there_is_a_sample_of_each_writer_and_all_are_installed() -> None:
    names = {path.name.removesuffix(".conf.sample") for path in (PACKAGING / "writers.d").iterdir()}
    assert names == TYPES.keys() - {"hook", "hook-dir"}
    (listed,) = re.findall(r"for name in ([a-z ]+); do", (PACKAGING / "installed.sh").read_text())
    assert set(listed.split()) == names
    for name in names:
        text = (PACKAGING / "writers.d" / f"{name}.conf.sample").read_text()
        assert parse(name, text, name).type == name

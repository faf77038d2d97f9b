"""The command line and the key file of qemu-ga: what qemu-ga 7.2.22 and 10.0.13 printed for each, recorded with -D."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from virtagent.supervisor import qemu_ga, state_dir, taking_part
from virtagent.supervisor.config import BadConfig, Config, reread
from virtagent.supervisor.ga_options import BadUsage, Settings, load
from virtagent.supervisor.io import journal
from virtagent.supervisor.key_file import BadKeyFile, form, parse, text_of

NONE = {"QGA_CONF": "/nonexistent/qemu-ga.conf"}
DEFAULT = {
    "daemon": "false",
    "method": "virtio-serial",
    "path": "/dev/virtio-ports/org.qemu.guest_agent.0",
    "pidfile": "/var/run/qemu-ga.pid",
    "statedir": "/var/run",
    "verbose": "false",
    "retry-path": "false",
    "block-rpcs": "",
}
ORDER = ["daemon", "method", "path", "logfile", "pidfile", "fsfreeze-hook", "statedir", "verbose", "retry-path",
         "block-rpcs", "allow-rpcs"]  # fmt: skip
ISA = {"method": "isa-serial", "path": "/dev/ttyS0"}
HOOK = {"fsfreeze-hook": "/etc/qemu/fsfreeze-hook"}
ALL = {
    "daemon": "true", "method": "unix-listen", "path": "/tmp/x", "logfile": "/tmp/l", "pidfile": "/tmp/f",
    "statedir": "/tmp", "verbose": "true", "retry-path": "true", "block-rpcs": "guest-exec,guest-ping",
} | HOOK  # fmt: skip

LINES: list[tuple[list[str], dict[str, str]]] = [
    ([], {}),
    (["-v", "-d", "-b", "guest-ping,guest-exec", "-m", "unix-listen", "-p", "/tmp/x",
      "-l", "/tmp/l", "-f", "/tmp/f", "-t", "/tmp", "-r", "-F"], ALL),
    (["--verbose", "--daemonize", "--block-rpcs", "guest-ping,guest-exec", "--method=unix-listen", "--path=/tmp/x",
      "--logfile", "/tmp/l", "--pidfile=/tmp/f", "--statedir", "/tmp", "--retry-path", "--fsfreeze-hook"], ALL),
    (["-F/tmp/hook"], {"fsfreeze-hook": "/tmp/hook"}),
    (["-F", "x"], HOOK),
    (["--fsfreeze-hook", "x"], HOOK),
    (["--f", "x"], HOOK),
    (["--fsfreeze-hook="], {"fsfreeze-hook": ""}),
    (["-b", "guest-exec,"], {"block-rpcs": ",guest-exec"}),
    (["-b", ",guest-exec,,a"], {"block-rpcs": "a,,guest-exec,"}),
    (["-b", ""], {}),
    (["-b=guest"], {"block-rpcs": "=guest"}),
    (["--blacklist", "a", "--block-rpcs=b,c"], {"block-rpcs": "a,c,b"}),
    (["-m", "isa-serial"], ISA),
    (["-m", "a", "-m", "isa-serial"], ISA),
    (["--meth=isa-serial"], ISA),
    (["-m", "vsock-listen", "-p", "3:1"], {"method": "vsock-listen", "path": "3:1"}),
    (["-m", "nonsense", "-p", "x"], {"method": "nonsense", "path": "x"}),
    (["-p", ""], {"path": ""}),
    (["foo", "-v", "bar"], {"verbose": "true"}),
    (["--", "-v"], {}),
    (["-"], {}),
    (["-vd"], {"verbose": "true", "daemon": "true"}),
    (["-vl/x"], {"verbose": "true", "logfile": "/x"}),
    (["-p", "\t a\tb\r", "-l", "  x"], {"path": "\\t\\sa\tb\\r", "logfile": "\\s\\sx"}),
    (["-p", "/a b\tc\\d\ne;f"], {"path": "/a b\tc\\\\d\\ne;f"}),
    (["-b", "é,ü"], {"block-rpcs": "ü,é"}),
]  # fmt: skip
FILES: list[tuple[str, dict[str, str] | None]] = [
    ("", {}),
    ("[general]\nblock-rpcs=a,b\nverbose=true\ndaemon=1 \nretry-path= true\n",
     {"block-rpcs": "b,a", "verbose": "true", "daemon": "true", "retry-path": "true"}),
    ("[general]\nblacklist=a,b\n", {"block-rpcs": "b,a"}),
    ("[general]\nblock-rpcs=a;b;\nblacklist=c\n", {"block-rpcs": "c"}),
    ("[general]\nblock-rpcs=a;b\n", {"block-rpcs": "a;b"}),
    ("  [general]  \n   path  =  /a\n\n#c\n  #d\n[other]\npath=/c\n[general]\nmethod=unix-listen\r\npidfile=/z\r\n",
     {"path": "/a", "method": "unix-listen", "pidfile": "/z"}),
    ("[general]\nnothing=0\npath=/one\npath=/two", {"path": "/two"}),
    ("[general]\npath=\nmethod=\n", {"path": "", "method": ""}),
    ("[general]\npath=/b\0c\npidfile=/x\n", {"path": "/b", "pidfile": "/x"}),
    ("[general]\npath=a\\s\\sb\\r\\n\n", {"path": "a  b\\r\\n"}),
    ("[general]\nfsfreeze-hook=/h\nlogfile=/l\nstatedir=/s\n",
     {"fsfreeze-hook": "/h", "logfile": "/l", "statedir": "/s"}),
    ("[ general ]\npath=/b\n", {}),
    ("[general]\npa th=/b\npid[C]=4\npath[]=x", {}),
    ("[general]\npath=/a \t\n", {"path": "/a \t"}),
    ("[general]\ndaemon=TRUE\n", None),
    ("[general]\ndaemon=\n", None),
    ("[general]\npath[x=/c\n", None),
    ("[general]\npath [de]=x\n", None),
    ("[general]\na[b]c=1\n", None),
    ("[gen]eral]\npath=/b\n", None),
    ("[general]x\npath=/b\n", None),
    ("[]\npath=/b\n", None),
    ("\ufeff[general]\npath=/b\n", None),
    ("[general]\npath=a\\\n", None),
    ("[general]\npath=a\\q\n", None),
    ("[general]\n;comment\n", None),
    ("[general]\npath\n", None),
    ("[general]\n=x\n", None),
    ("x=1\n", None),
]  # fmt: skip


VERSIONS = ("7.2.22", "10.0.13")


def text(changed: dict[str, str], version: str = "7.2.22") -> str:
    values = DEFAULT | ({"allow-rpcs": ""} if version == "10.0.13" else {}) | changed
    return "[general]\n" + "".join(f"{key}={values[key]}\n" for key in ORDER if key in values)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("words", "changed"), LINES)
def test_dump_of_a_command_line(words: list[str], changed: dict[str, str], version: str) -> None:
    settings, asked = load(["-D", *words], NONE)
    assert asked == "dump"
    assert settings.dump(version) == text(changed, version)


@pytest.mark.parametrize(("data", "changed"), FILES)
def test_dump_of_a_key_file(data: str, changed: dict[str, str] | None, tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text(data, encoding="utf-8", newline="")
    for words, environment in ((["-D"], {"QGA_CONF": str(file)}), (["-D", "-c", str(file)], NONE)):
        if changed is None:
            with pytest.raises(BadUsage, match="error loading configuration"):
                load(words, environment)
        else:
            for version in VERSIONS:
                assert load(words, environment)[0].dump(version) == text(changed, version)


def test_the_command_line_wins_and_lists_add_up(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("[general]\nblock-rpcs=guest-exec,guest-ping\npath=/a\nverbose=true\n")
    words = ["-b", "guest-info,guest-sync", "-b", "guest-get-time", "-p", "/b"]
    settings, _ = load(words, {"QGA_CONF": str(file)})
    assert settings.block == ("guest-ping", "guest-exec", "guest-sync", "guest-info", "guest-get-time")
    assert (settings.path, settings.verbose) == ("/b", True)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_bytes(b"[general]\nelse=\xff\n")
    assert load(["-D"], {"QGA_CONF": str(file)})[0].dump("7.2.22") == text({})
    file.write_bytes(b"[general]\npath=\xff\n")
    with pytest.raises(BadUsage, match="not UTF-8"):
        load(["-D"], {"QGA_CONF": str(file)})
    assert load(["-D", "-p", "\udcff"], NONE)[0].path == "\udcff"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-Dx"], "invalid option -- 'x'"),
        (["-?"], "invalid option -- '?'"),
        (["--nonsense"], "unrecognized option '--nonsense'"),
        (["-m"], "option requires an argument -- 'm'"),
        (["--pidfile"], "option '--pidfile' requires an argument"),
        (["--daemonize=1"], "option '--daemonize' doesn't allow an argument"),
        (["--p", "x"], "option '--p' is ambiguous"),
        (["-xV"], "invalid option -- 'x'"),
    ],
)
def test_what_is_no_option(words: list[str], said: str) -> None:
    with pytest.raises(BadUsage) as caught:
        load(words, NONE)
    assert (str(caught.value), caught.value.options) == (said, True)


@pytest.mark.parametrize("words", [["-D", "-m", "nonsense"], ["-m", "unix-listen"], ["-m", "vsock-listen"], ["-m", ""]])
def test_a_method_without_a_path(words: list[str]) -> None:
    with pytest.raises(BadUsage, match="must specify a path for this channel"):
        load(words, NONE)


@pytest.mark.parametrize(
    ("words", "asked"),
    [(["-V", "-x"], "version"), (["-Vx"], "version"), (["-v", "-h"], "help"), (["-D", "-b", "help"], "rpcs"),
     (["-b", "?"], "rpcs"), (["-a", "help"], "rpcs"), (["-D", "-a?", "-x"], "rpcs"), (["--allow-rpcs=?"], "rpcs"),
     (["-a", "help,guest-ping", "-D"], "dump"),
     (["-b", "guest-ping,help", "-D"], "dump"), (["-V", "-h"], "version")],
)  # fmt: skip
def test_what_only_prints(words: list[str], asked: str) -> None:
    assert load(words, NONE)[1] == asked


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="No such file"):
        load(["-c", str(tmp_path / "none")], NONE)
    with pytest.raises(BadUsage, match="Not a regular file"):
        load([], {"QGA_CONF": str(tmp_path)})


@pytest.mark.parametrize(
    ("words", "conf"),
    [
        (["-a", "guest-ping,guest-sync", "-b", "guest-sync,guest-exec"], ""),
        (["-a", "guest-ping,guest-sync"], "block-rpcs=guest-sync,guest-exec"),
        (["-b", "guest-sync,guest-exec"], "allow-rpcs=guest-ping,guest-sync"),
        ([], "blacklist=guest-sync,guest-exec\nallow-rpcs=guest-ping,guest-sync"),
    ],
)
def test_what_is_allowed_and_blocked_is_blocked(words: list[str], conf: str, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text(f"[general]\n{conf}\n")
    settings, _ = load(["-D", *words], {"QGA_CONF": str(tmp_path / "conf")})
    assert settings.dump("7.2.22") == text(
        {"allow-rpcs": "guest-sync,guest-ping", "block-rpcs": "guest-exec,guest-sync"}
    )
    config, _ = qemu_ga.configure(settings, {})
    allowed = [config.allows(name) for name in ("guest-ping", "guest-sync", "guest-exec", "guest-info")]
    assert allowed == [True, False, False, False]


# -- key files


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z-]*", fullmatch=True), st.text(st.characters(exclude_characters="\0\v\f")))
)
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        found = parse(form("general", values).encode())["general"]
        assert {key: text_of(key, raw) for key, raw in found.items()} == values


@given(st.binary())
def test_any_bytes_are_a_key_file_or_none(data: bytes) -> None:
    with contextlib.suppress(BadKeyFile):
        for key, raw in parse(b"[general]\n" + data)["general"].items():
            text_of(key, raw)


# -- what virtagentd makes of it


@pytest.fixture(autouse=True)
def state_on_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "in_memory", lambda path: not path.startswith("/disk"))
    monkeypatch.setattr(state_dir, "BASES", (str(tmp_path / "run"),))
    (tmp_path / "run").mkdir()


def made(words: list[str], conf: str = "", tmp_path: Path | None = None) -> tuple[qemu_ga.Config, list[str]]:
    environment = {}
    if tmp_path:
        (tmp_path / "virtagentd.conf").write_text(conf)
        environment["VIRTAGENT_CONF"] = str(tmp_path / "virtagentd.conf")
    return qemu_ga.configure(load(words, NONE)[0], environment)


@pytest.mark.parametrize(
    ("words", "channel"),
    [
        ([], "virtio:/dev/virtio-ports/org.qemu.guest_agent.0"),
        (["-m", "isa-serial"], "serial:/dev/ttyS0"),
        (["-m", "unix-listen", "-p", "/run/a.sock"], "unix:/run/a.sock"),
        (["-m", "vsock-listen", "-p", "3:1234"], "vsock:1234"),
        (["-m", "vsock-listen", "-p", "-1:1234"], "vsock:1234"),
    ],
)
def test_channels(words: list[str], channel: str) -> None:
    assert made(words)[0].channel == (channel,)


def test_relative_paths_are_below_the_folder_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = made(["-m", "unix-listen", "-p", "a.sock", "-l", "ga.log"])
    assert config.channel == (f"unix:{tmp_path}/a.sock",)
    assert config.log_target == f"file:{tmp_path}/ga.log"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "nonsense", "-p", "x"], "unsupported channel method/type: nonsense"),
        (["-m", "vsock-listen", "-p", "foo"], "error parsing address 'foo'"),
        (["-m", "vsock-listen", "-p", "x:1"], "error parsing address 'x:1'"),
        (["-a", "guest-nothing"], "nothing would be allowed"),
    ],
)
def test_what_cannot_be_served(words: list[str], said: str) -> None:
    with pytest.raises(BadUsage, match=said):
        made(words)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["-F/a/hook"], "/a/hook"),
        (["--fsfreeze-hook=/a/hook"], "/a/hook"),
        (["-F"], taking_part.HOOK),
        (["-F/dev/null"], ""),
        (["--fsfreeze-hook="], ""),
        ([], ""),
    ],
)
def test_hooks(words: list[str], path: str) -> None:
    config = made(words)[0]
    assert config.hook == path
    assert [(writer.name, writer.path) for writer in config.every_writer] == ([("hook", path)] if path else [])


PORT = "--method=virtio-serial --path=/dev/virtio-ports/org.qemu.guest_agent.0"
BLOCKED = "guest-file-open,guest-exec,guest-get-devices"


@pytest.mark.parametrize(
    ("filtering", "variables"),
    [
        ("--blacklist=${BLACKLIST_RPC}", {"BLACKLIST_RPC": BLOCKED}),
        ("--block-rpcs=${BLOCK_RPCS}", {"BLOCK_RPCS": BLOCKED}),
        ("$FILTER_RPC_ARGS", {"FILTER_RPC_ARGS": f"--block-rpcs={BLOCKED}"}),
        ("$FILTER_RPC_ARGS", {"FILTER_RPC_ARGS": f"--allow-rpcs=guest-ping,guest-info --block-rpcs={BLOCKED}"}),
        ("$FILTER_RPC_ARGS", {"FILTER_RPC_ARGS": "--allow-rpcs=guest-ping,guest-get-devices"}),
    ],
)
@pytest.mark.parametrize(
    ("hook", "called"), [("/etc/x/hook", "/etc/x/hook"), ("", taking_part.HOOK), ("/dev/null", "")]
)
def test_the_units_of_rhel(filtering: str, variables: dict[str, str], hook: str, called: str) -> None:
    """ExecStart of qemu-guest-agent.service of RHEL 8, 9 and 9.4, with /etc/sysconfig/qemu-ga."""
    words = [*PORT.split()]
    if filtering.startswith("$"):  # systemd.service(5): $NAME is as many words as it holds, ${NAME} a part of one
        words += variables[filtering[1:]].split()
    else:
        option, _, name = filtering.partition("=")
        words.append(f"{option}={variables[name[2:-1]]}")
    config, _ = made([*words, f"-F{hook}"])
    assert config.channel == ("virtio:/dev/virtio-ports/org.qemu.guest_agent.0",)
    assert config.allows("guest-ping")
    assert not config.allows("guest-file-open")
    assert not config.allows("va.getfile")
    assert config.hook == called


def test_a_bad_port() -> None:
    with pytest.raises(BadConfig, match="vsock:x"):
        made(["-m", "vsock-listen", "-p", "3:x"])


def test_state_and_log(tmp_path: Path) -> None:
    assert made([])[0].state_dir == f"{Path('/var/run').resolve()}/virtagent"
    assert made(["-t", str(tmp_path)])[0].state_dir == f"{tmp_path}/virtagent"
    config, notes = made(["-t", "/disk/ga"])
    assert config.state_dir == f"{tmp_path}/run/virtagent.at/disk/ga/virtagent"
    assert notes == [f"statedir /disk/ga is not on tmpfs: state is kept in {config.state_dir}"]
    assert made(["-t", "/disk/gb"])[0].state_dir != config.state_dir
    assert made(["-v"])[0].log_level == "debug"
    assert made(["-d"])[0].log_target == "syslog"
    assert made(["-d", "-l", "/x"])[0].log_target == "file:/x"
    assert made([])[0].log_target == "stderr"
    assert "pidfile" in made(["-d", "-f", "/disk/pid"])[1][0]


def test_what_is_blocked_is_blocked_by_every_name() -> None:
    config, notes = made(["-b", "guest-fsfreeze-freeze,guest-file-open,guest-nothing,,guest-ping"])
    names = ("guest-fsfreeze-freeze", "va.fsfreeze", "va.getfile", "guest-ping", "va.ping")
    assert [config.allows(name) for name in names] == [False, False, False, False, True]
    assert "block-rpcs: there is no RPC 'guest-nothing'" in notes


def test_what_is_allowed_is_all(tmp_path: Path) -> None:
    config, notes = made(["-a", "guest-ping,guest-nothing"])
    assert config.allows("guest-ping")
    assert not config.allows("va.ping")
    assert notes == ["allow-rpcs: there is no RPC 'guest-nothing'"]


def test_virtagentds_own_file_is_read_and_loses(tmp_path: Path) -> None:
    conf = "include /srv/*\nstate-dir /run/x\nchannel vsock:1\nblock-rpcs va.hello\nlog-level err\n"
    config, _ = made(["-b", "guest-ping", "-v"], conf, tmp_path)
    assert config.include == ("/srv/*",)
    assert config.state_dir == "/run/x"
    assert config.channel == ("virtio:/dev/virtio-ports/org.qemu.guest_agent.0",)
    assert set(config.block_rpcs) == {"guest-ping", "va.hello"}
    assert config.log_level == "debug"
    assert made(["-t", str(tmp_path)], conf, tmp_path)[0].state_dir == f"{tmp_path}/virtagent"
    with pytest.raises(BadConfig, match="line 1"):
        made([], "nonsense\n", tmp_path)
    with pytest.raises(BadConfig, match="No such file"):
        qemu_ga.configure(Settings(method="unix-listen", path="/x"), {"VIRTAGENT_CONF": "/nonexistent"})


@pytest.mark.parametrize(
    ("words", "keys", "conf", "version"),
    [
        ([], "", "", "10.2.0"),
        ([], "", "qga-version 9.2.1\n", "9.2.1"),
        ([], "qga-version=8.0.0", "qga-version 9.2.1\n", "8.0.0"),
        (["--qga-version", "7.2.22"], "qga-version=8.0.0", "qga-version 9.2.1\n", "7.2.22"),
    ],
)
def test_which_qemu_ga_it_is(
    words: list[str],
    keys: str,
    conf: str,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text_ in (("QGA_CONF", f"[general]\n{keys}\n"), ("VIRTAGENT_CONF", conf)):
        (tmp_path / name).write_text(text_)
        monkeypatch.setenv(name, str(tmp_path / name))
    assert qemu_ga.configure(load(words, dict(os.environ))[0], os.environ)[0].qga_version == version
    assert qemu_ga.main([*words, "-V"]) == 0
    assert capsys.readouterr().out == f"QEMU Guest Agent {version}\n"


def test_a_version_has_the_commands_that_it_had(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {}
    for version in ("7.2.22", "9.1.0", "10.2.0"):
        assert qemu_ga.main(["--qga-version", version, "-b", "help"]) == 0
        listed[version] = capsys.readouterr().out.split()
    assert set(listed["9.1.0"]) - set(listed["7.2.22"]) == {"guest-network-get-route"}
    assert set(listed["10.2.0"]) - set(listed["9.1.0"]) == {"guest-get-load"}


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["-V"], 0, "QEMU Guest Agent 10.2.0\n", ""),
        (["-V", "--qga-version", "7.2.22"], 0, "QEMU Guest Agent 7.2.22\n", ""),
        (["--qga-version=7.2", "-V"], 0, "QEMU Guest Agent 7.2\n", ""),
        (["-V", "--qga-version", "new"], 1, "", "virtagent-qemu-ga: qga-version is 'new', expected a version of QEMU"),
        (["-h"], 0, "usage: ", ""),
        (["-b", "help"], 0, "va.ping\n", ""),
        (["-D"], 0, "[general]\n", ""),
        (["-x"], 1, "Unknown option, try", "virtagent-qemu-ga: invalid option -- 'x'\n"),
        (["-m", "unix-listen"], 1, "", "virtagent-qemu-ga: must specify a path for this channel\n"),
    ],
)
def test_what_is_said(
    words: list[str], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QGA_CONF", "/nonexistent/conf")
    monkeypatch.delenv("VIRTAGENT_CONF", raising=False)
    assert qemu_ga.main(words) == code
    said = capsys.readouterr()
    assert said.out.startswith(out)
    assert said.err.startswith(err)
    assert said.err.count("\n") == bool(err)


def test_what_virtagentd_conf_blocks_is_read_again_beside_what_qemu_ga_blocks(tmp_path: Path) -> None:
    config, _ = made(["-b", "guest-ping"], "state-dir /run/x\nblock-rpcs va.hello\n", tmp_path)
    assert set(config.block_rpcs) == {"guest-ping", "va.hello"}
    again, _ = reread(config, "state-dir /run/x\nblock-rpcs va.hello,guest-exec\n", {})
    assert set(again.block_rpcs) == {"guest-ping", "va.hello", "guest-exec"}
    again, _ = reread(again, "state-dir /run/x\n", {})
    assert again.block_rpcs == ("guest-ping",)


def test_a_daemon_whose_pid_file_was_removed_ends_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"

    def served(*_: object, **__: object) -> int:
        assert path.read_text() == f"{os.getpid()}\n"
        path.unlink()
        return 0

    for name in ("fork", "setsid"):
        monkeypatch.setattr(os, name, lambda: 0)
    monkeypatch.setattr(qemu_ga, "serve", served)
    assert qemu_ga.daemonize(Settings(pidfile=str(path)), Config(), []) == 0

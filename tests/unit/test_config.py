"""The options: each good and bad, the file's syntax, the command line over the file, one sentence for each error."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import given
from virtagent.agent.api.errors import Fault
from virtagent.agent.worker.methods import OPTIONS_MAX, read_options
from virtagent.supervisor.config import OPTIONS, BadConfig, Config, build, load, read_file

GOOD: list[tuple[str, str, Any]] = [
    ("channel", "unix:/run/a.sock", ("unix:/run/a.sock",)),
    ("channel", "vsock:4294967294", ("vsock:4294967294",)),
    ("channel", "virtio", ("virtio",)),
    ("channel", "virtio:/dev/vport1p1", ("virtio:/dev/vport1p1",)),
    ("channel", "serial:/dev/ttyS1", ("serial:/dev/ttyS1",)),
    ("include", "/srv/*", ("/srv/*",)),
    ("exclude", "/srv/a b", ("/srv/a b",)),
    ("plan-limit", "2.5", 2.5),
    ("sync-limit", "0", 0.0),
    ("freeze-limit", "12", 12.0),
    ("hold-limit", "600", 600.0),
    ("guest-hold-limit", "600", 600.0),
    ("thaw-limit", "1e1", 10.0),
    ("prepare-limit", "90", 90.0),
    ("quiesce-limit", "1.5", 1.5),
    ("confirm-limit", "1", 1.0),
    ("release-limit", "20", 20.0),
    ("hook", "/etc/a b", "/etc/a b"),
    ("hook", "/dev/null", ""),
    ("hook-dir", "/etc/hooks.d", "/etc/hooks.d"),
    ("hook-when", "prepare", "prepare"),
    ("writers", "try", "try"),
    ("writers-dir", "/nonexistent/d", "/nonexistent/d"),
    ("news-limit", "0", 0.0),
    ("patience", "0.5", 0.5),
    ("busy-wait", "3", 3.0),
    ("sync-requests", "0", 0),
    ("sync-requests", "4", 4),
    ("sync-requests", "128", 128),
    ("exec-limit", "0", 0.0),
    ("exit-grace", "0.1", 0.1),
    ("kill-grace", "3", 3.0),
    ("state-dir", "/run/x", "/run/x"),
    ("allow-rpcs", "va.ping, va.fsfreeze", ("va.ping", "va.fsfreeze")),
    ("block-rpcs", "va.getfile", ("va.getfile",)),
    ("log-level", "debug", "debug"),
    ("log-target", "journal", "journal"),
    ("log-target", "file:/var/log/a b.log", "file:/var/log/a b.log"),
    ("qga-version", "7.2.22", "7.2.22"),
    ("max-workers", "1", 1),
    ("max-clients", "99", 99),
    ("max-header", "1024", 1024),
    ("max-body", "1048576", 1048576),
    ("max-nesting", "8", 8),
    ("message-age", "5", 5.0),
    ("audit-ring", "10", 10),
    ("shutdown-command", "/bin/echo 'a b'", ("/bin/echo", "a b")),
]
_NUMBERS = ["", " ", "x", "-1", "nan", "inf", "-inf", "1e400", "1,5", "1 2", "0x10"]
_COUNTS = ["", "0", "-1", "1.5", "x", "99999999999", "1e3"]
WRITER_LIMITS = ("prepare-limit", "quiesce-limit", "confirm-limit", "release-limit")
BAD: list[tuple[str, str]] = [
    ("hook", "hook"),
    ("hook-dir", "hooks.d"),
    ("hook-when", "freeze"),
    ("writers", "some"),
    ("writers-dir", "d"),
    *[("channel", text) for text in ("", "/run/a", "unix:", "unix:a", "tcp:1", "UNIX:/a", "unix:/" + "x" * 107)],
    *[("channel", f"vsock{rest}") for rest in ("", ":", ":0", ":-1", ":1:2", ":x", ":4294967295", ":\u0664", ": 1")],
    *[("channel", text) for text in ("virtio:", "virtio:vport1p1", "virtio ", "serial", "serial:", "serial:ttyS0")],
    *[("qga-version", text) for text in ("", "10", "10.", "v10.2", "10.2.x", "10.2.0-rc1", "1 0.2", "\u0661.2")],
    ("include", ""),
    ("exclude", "a\0b"),
    *[
        (n, t)
        for n in ("plan-limit", "thaw-limit", "exit-grace", "kill-grace", "message-age", *WRITER_LIMITS)
        for t in [*_NUMBERS, "0"]
    ],
    *[
        (n, t)
        for n in (
            *("sync-limit", "freeze-limit", "news-limit", "patience", "busy-wait"),
            *("hold-limit", "hold-limit-max", "guest-hold-limit"),
        )
        for t in _NUMBERS
    ],
    ("hold-limit", "0"),
    ("hold-limit", "601"),
    ("guest-hold-limit", "0"),
    ("guest-hold-limit", "601"),
    ("state-dir", "run"),
    ("state-dir", ""),
    ("allow-rpcs", "va.nothing"),
    ("allow-rpcs", "va.ping,thaw"),
    ("block-rpcs", "va.ping;va.getfile"),
    ("exec-limit", "-1"),
    *[("sync-requests", text) for text in ("", "1", "3", "129", "-8", "8.0", "x", "\u0668", "99999999999")],
    ("log-level", "INFO"),
    ("log-level", "chatty"),
    ("log-target", "file"),
    ("log-target", "file:"),
    ("log-target", "file:a"),
    ("log-target", "file:/a\0b"),
    *[
        (n, t)
        for n in ("max-workers", "max-clients", "max-header", "max-body", "max-nesting", "audit-ring")
        for t in _COUNTS
    ],
    ("shutdown-command", ""),
    ("shutdown-command", "  "),
]


def sentence(error: BadConfig) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_options(name: str, text: str, value: Any, tmp_path: Path) -> None:
    attribute = name.replace("-", "_")
    assert getattr(build({name: [text]}, {}), attribute) == value
    assert getattr(build({}, {name: [text]}), attribute) == value
    file = tmp_path / "conf"
    file.write_text(f"{name} {text}\n")
    assert getattr(load(["--config", str(file)])[0], attribute) == value
    file.write_text("")
    assert getattr(load(["--config", str(file), f"--{name}", text])[0], attribute) == value


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_options_are_named_in_one_sentence(name: str, text: str) -> None:
    for sources in (({name: [text]}, {}), ({}, {name: [text]})):
        with pytest.raises(BadConfig) as caught:
            build(*sources)
        assert name in sentence(caught.value)


def test_all_options_are_tried_here() -> None:
    assert {name for name, _, _ in GOOD} | {"hold-limit-max"} == set(OPTIONS)
    assert {name for name, _ in BAD} == set(OPTIONS)


def test_a_quote_that_is_never_closed_names_its_option() -> None:
    with pytest.raises(BadConfig, match="shutdown-command"):
        build({"shutdown-command": ["/bin/echo 'a"]}, {})


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_a_list_that_allows_nothing_does_not_allow_everything(text: str) -> None:
    try:
        config = build({"allow-rpcs": [text]}, {})
    except BadConfig:
        return
    assert not config.allows("va.fsfreeze")


@pytest.mark.parametrize("scheme", ["unix", "virtio", "serial"])
def test_a_channel_has_no_nul(scheme: str) -> None:
    with pytest.raises(BadConfig):
        build({}, {"channel": [f"{scheme}:/run/a\0b"]})


def test_channels_add_up_but_none_twice() -> None:
    assert build({"channel": ["virtio", "vsock:1"]}, {}).channel == ("virtio", "vsock:1")
    with pytest.raises(BadConfig, match="vsock:1 is given twice"):
        build({"channel": ["vsock:1", "virtio", "vsock:1"]}, {})


def test_defaults_are_the_designs() -> None:
    config = build({}, {})
    assert (config.plan_limit, config.sync_limit, config.freeze_limit) == (5, 600, 30)
    assert (config.hold_limit, config.thaw_limit) == (60, 10)
    assert (config.max_workers, config.max_clients, config.message_age) == (8, 16, 30)
    assert (config.max_header, config.max_body, config.max_nesting) == (4096, 2 << 20, 64)
    assert config.state_dir == "/run/virtagent"
    assert config.channel == ("unix:/run/virtagent/virtagentd.sock",)
    assert not config.strict
    assert all(config.allows(name) for name in ("va.ping", "va.fsfreeze"))


def test_the_default_channel_follows_the_state_dir() -> None:
    assert build({"state-dir": ["/run/x"]}, {}).channel == ("unix:/run/x/virtagentd.sock",)


def test_a_hold_without_a_limit_needs_a_configuration_that_allows_it() -> None:
    assert build({"hold-limit": ["0"], "hold-limit-max": ["0"]}, {}).hold_limit == 0
    with pytest.raises(BadConfig, match="hold-limit"):
        build({"hold-limit": ["0"]}, {})
    with pytest.raises(BadConfig, match="hold-limit-max"):
        build({"hold-limit-max": ["10"]}, {})


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, 300),
        ({"hold-limit": ["10"]}, 300),
        ({"hold-limit-max": ["100"]}, 100),
        ({"hold-limit-max": ["1000"]}, 300),
        ({"hold-limit-max": ["1000"], "guest-hold-limit": ["900"]}, 900),
        ({"hold-limit-max": ["0"]}, 300),
        ({"hold-limit-max": ["0"], "guest-hold-limit": ["0"]}, 0),
    ],
)
def test_the_hold_of_qemu_gas_freezes_has_a_limit_of_its_own(given: dict[str, list[str]], limit: float) -> None:
    assert build(given, {}).guest_hold_limit == limit
    assert build({}, given).guest_hold_limit == limit


def test_a_larger_hold_than_the_largest_is_refused_whoever_asks() -> None:
    with pytest.raises(BadConfig, match=r"guest-hold-limit is 101, expected over 0 and at most hold-limit-max, 100"):
        build({"hold-limit-max": ["100"]}, {"guest-hold-limit": ["101"]})


def test_a_hold_limit_alone_is_said_not_to_count_for_qemu_gas_freezes() -> None:
    [note] = build({"hold-limit": ["10"], "hold-limit-max": ["20"]}, {}).notes
    assert note.endswith("guest-fsfreeze-freeze and -freeze-list have guest-hold-limit, 20 s")
    assert build({}, {"hold-limit": ["10"]}).notes
    assert not build({"hold-limit": ["10"], "guest-hold-limit": ["10"]}, {}).notes
    assert not build({}, {}).notes


def test_a_relative_path_is_of_the_folder_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf").touch()
    assert load(["--config", "conf"])[0].file == f"{tmp_path}/conf"


def test_blocked_wins_over_allowed() -> None:
    config = Config(allow_rpcs=("va.ping", "va.hello"), block_rpcs=("va.ping",))
    assert [config.allows(n) for n in ("va.ping", "va.hello", "va.getfile")] == [False, True, False]


# -- the file


def test_the_file_has_the_same_options_one_a_line() -> None:
    text = """
    # a comment
    include /srv/a
    include = /srv/b=c
      --exclude   /srv/x y
    sync-limit=7
    strict
    """
    found = read_file(text, "/etc/v")
    assert found == {
        "include": ["/srv/a", "/srv/b=c"],
        "exclude": ["/srv/x y"],
        "sync-limit": ["7"],
        "strict": [""],
    }
    config = build({}, found)
    assert config.strict
    assert config.include == ("/srv/a", "/srv/b=c")


@pytest.mark.parametrize(("text", "strict"), [("yes", True), ("true", True), ("no", False), ("= false", False)])
def test_a_flag_in_the_file(text: str, strict: bool) -> None:
    assert build({}, read_file(f"strict {text}", "f")).strict is strict


@pytest.mark.parametrize("line", ["nothing 5", "plan", "version yes", "config /x", "sync-limit", "sync-limit =",
                                  "strict perhaps", "[section]", "sync_limit 5", "\0"])  # fmt: skip
def test_a_bad_line_is_named_with_its_file_and_number(line: str) -> None:
    with pytest.raises(BadConfig) as caught:
        read_file(f"# first\n{line}\n", "/etc/v.conf")
    assert "/etc/v.conf line 2" in sentence(caught.value)


@pytest.mark.parametrize("line", ["=", "= 5", "=include /x"])
def test_a_line_without_a_name_is_a_bad_line(line: str) -> None:
    with pytest.raises(BadConfig, match="line 1"):
        read_file(line, "f")


@given(st.text())
def test_any_file_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadConfig):
        build({}, read_file(text, "f"))


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("include /file/a\ninclude /file/b\nfreeze-limit 9\nsync-limit 8\n")
    config, _ = load(["--config", str(file), "--include", "/given", "--freeze-limit", "3"])
    assert config.include == ("/given",)
    assert (config.freeze_limit, config.sync_limit) == (3, 8)


def test_the_last_of_two_counts_and_repeatable_ones_add_up(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("")
    config, _ = load(["--config", str(file), "--hold-limit", "5", "--hold-limit=6", "--include", "a", "--include", "b"])
    assert config.hold_limit == 6
    assert config.include == ("a", "b")


@pytest.mark.parametrize(
    "arguments",
    [["--nothing"], ["extra"], ["--include"], ["--inclu", "x"], ["--strict=yes"], ["--config", "/nonexistent/x"],
     ["--config", "/"], ["--hold-limit", "-5"], ["--strict", "--partial"]],
)  # fmt: skip
def test_a_bad_command_line_is_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(BadConfig) as caught:
        load(arguments)
    sentence(caught.value)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_bytes(b"include /srv/\xff\n")
    assert load(["--config", str(file)])[0].include == ("/srv/\udcff",)


def test_switches(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("")
    _, asked = load(["--config", str(file), "--plan"])
    assert asked.plan
    assert not asked.version
    assert load(["--config", str(file), "--strict"])[0].strict
    assert load(["--config", str(file), "--vsock-any"])[0].vsock_any
    assert not load(["--config", str(file)])[0].vsock_any
    file.write_text("vsock-any yes")
    assert load(["--config", str(file)])[0].vsock_any


def test_a_file_that_is_too_long_is_not_read_in_part(tmp_path: Path) -> None:
    """What is blocked may stand at its end."""
    path, folder = tmp_path / "conf", tmp_path / "writers.d"
    args = {"path": str(path), "needed": True, "writers": str(folder)}
    end = "\nblock-rpcs guest-exec\n"
    path.write_text("#" * (OPTIONS_MAX - len(end)) + end)
    assert read_options(cast("Any", None), args)["options"] == path.read_text()
    path.write_text("#" * OPTIONS_MAX + "\nblock-rpcs guest-exec\n")
    with pytest.raises(Fault, match="over 1048576 characters"):
        read_options(cast("Any", None), args)

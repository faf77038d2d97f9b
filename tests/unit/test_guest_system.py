"""Facts on the guest as a system: os-release, utmp, time zone, names."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.worker.commands import system

WORKER: Any = None  # these handlers need none
DEBIAN = """\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
HOME_URL="https://www.debian.org/"
"""


def test_os_release() -> None:
    assert system.os_release(DEBIAN) == {
        "pretty-name": "Debian GNU/Linux 12 (bookworm)",
        "name": "Debian GNU/Linux",
        "version-id": "12",
        "version": "12 (bookworm)",
        "id": "debian",
    }


def test_os_release_with_rubbish() -> None:
    text = (
        "#ID=no\n=x\n\nID\n  VARIANT = 'Server Edition' \nVARIANT_ID=server\r\nID=one\nID=\nX_ID=no\nNAME=\udcff\0=\n"
    )
    found = {"variant": "Server Edition", "variant-id": "server", "id": "", "name": "\udcff\0="}
    assert system.os_release(text) == found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("two words", "two"),
        ("one;two", "one"),
        (r"a\ b\;c\\", "a b;c\\"),
        ('"two words; and more"', "two words; and more"),
        (r'"\"\'\$\`\\ and \\ etc. \n"', "\"'$`\\ and \\ etc. \\n"),
        (r"'\\ $HOME \" \n'", r"\\ $HOME \" \n"),
        ('"closed" rest', "closed"),
        ('"open', "open"),
        ('"open\\', "open"),
        ("'", ""),
        ("\\", ""),
    ],
)
def test_unquote(value: str, expected: str) -> None:
    assert system.unquote(value) == expected


@given(st.text())
def test_what_is_quoted_is_unquoted(text: str) -> None:
    quoted = "".join(f"\\{c}" if c in "$'\"\\`" else c for c in text)
    assert system.unquote(f'"{quoted}"') == text


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("ID=second\n", encoding="utf-8")
    monkeypatch.delenv("QGA_OS_RELEASE", raising=False)
    monkeypatch.setattr(system, "OS_RELEASE", (str(first), str(second)))
    assert system.get_osinfo(WORKER, {})["id"] == "second"
    first.write_text("ID=first\n", encoding="utf-8")
    assert system.get_osinfo(WORKER, {})["id"] == "first"
    monkeypatch.setenv("QGA_OS_RELEASE", str(second))
    assert system.get_osinfo(WORKER, {})["id"] == "second"
    monkeypatch.setenv("QGA_OS_RELEASE", str(tmp_path / "none"))
    assert system.get_osinfo(WORKER, {}).keys() == {"kernel-release", "kernel-version", "machine"}


def record(kind: int, user: bytes, seconds: int, microseconds: int, machine: str) -> bytes:
    time_fields = (7, seconds, microseconds)
    session = struct.pack("@lll" if machine == "aarch64" else "@iii", *time_fields)
    head = struct.pack("@hi32s4s32s256shh", kind, 4711, b"pts/0", b"ts/0", user, b"192.0.2.9", 0, 0)
    return (head + session + bytes(16 + 20)).ljust(400 if machine == "aarch64" else 384, b"\0")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_each_user_once_with_the_earliest_login(machine: str) -> None:
    records = [
        record(2, b"reboot", 1, 0, machine),
        record(7, b"zoe", 1700000500, 250000, machine),
        record(7, b"root", 1700000100, 500000, machine),
        record(8, b"dead", 5, 0, machine),
        record(7, b"zoe", 1700000400, 0, machine),
        record(7, b"zoe", 1700000600, 0, machine),
        record(7, b"n" * 32, 1700000700, 0, machine),
        record(7, b"\xff\0garbage", 1700000800, 0, machine),
        record(7, b"cut off", 1, 0, machine)[:-1],
    ]
    assert system.logins(b"".join(records), machine) == [
        {"user": "zoe", "login-time": 1700000400.0},
        {"user": "root", "login-time": 1700000100.5},
        {"user": "n" * 32, "login-time": 1700000700.0},
        {"user": "\udcff", "login-time": 1700000800.0},
    ]


@given(st.binary(max_size=2000), st.sampled_from(["x86_64", "aarch64"]))
def test_any_bytes_are_a_utmp(records: bytes, machine: str) -> None:
    assert len(system.logins(records, machine)) <= len(records) // 384


def test_without_utmp_nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "UTMP", str(tmp_path / "utmp"))
    assert system.get_users(WORKER, {}) == []
    (tmp_path / "utmp").write_bytes(b"")
    assert system.get_users(WORKER, {}) == []


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC0", {"zone": "UTC", "offset": 0}),
        ("<+0530>-5:30", {"zone": "+0530", "offset": 19800}),
        ("XYZ3:30", {"zone": "XYZ", "offset": -12600}),
    ],
)
def test_time_zone(zone: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        assert system.get_timezone(WORKER, {}) == expected
    time.tzset()


def test_this_machine() -> None:
    assert system.get_host_name(WORKER, {})["host-name"]
    before = time.time_ns()
    assert before <= system.get_time(WORKER, {}) <= time.time_ns()
    load = system.get_load(WORKER, {})
    assert load.keys() == {"load1m", "load5m", "load15m"}
    assert all(isinstance(value, float) for value in load.values())

"""Names for agents and groups on virtagentctl's command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.many_agents import ManyAgents
from virtagent.host import cli, named_agents

FILE = """
# name URL...
vm1  unix:/run/vm1.sock   # the first
vm2  libvirt:vm2
both vm1 vm2
"""


def files(tmp_path: Path, *texts: str) -> list[str]:
    paths = [tmp_path / str(n) for n in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return [str(path) for path in paths]


def test_names_and_groups(tmp_path: Path) -> None:
    one = files(tmp_path, FILE)
    assert named_agents.expand(["vm2"], one) == ["libvirt:vm2"]
    assert named_agents.expand(["both", "vsock:3:9"], one) == ["unix:/run/vm1.sock", "libvirt:vm2", "vsock:3:9"]
    two = files(tmp_path, FILE, "vm1 unix:/mine\nall both vm1\n")
    assert named_agents.expand(["vm1"], two) == ["unix:/mine"]
    assert named_agents.expand(["all"], two) == ["unix:/run/vm1.sock", "libvirt:vm2", "unix:/mine"]


def test_urls_need_no_file(tmp_path: Path) -> None:
    unreadable = tmp_path / "folder"
    unreadable.mkdir()
    assert named_agents.expand(["unix:/a", "tcp:1"], [str(unreadable)]) == ["unix:/a", "tcp:1"]
    with pytest.raises(ValueError, match="folder: Is a directory"):
        named_agents.expand(["vm1"], [str(unreadable)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vm1\n", "line 1: expected a name"),
        ("\nunix:/a unix:/b\n", "line 2: expected a name"),
        ("a unix:/a\na unix:/b\n", "line 2: a stands there for the second time"),
        ("a b\n", "line 1: 'b' is neither an agent's URL nor a name"),
        ("a a\n", "line 1: 'a' is neither"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        named_agents.expand(["x"], files(tmp_path, text))


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with ManyAgents(tmp_path, 2) as guests:
        folder = tmp_path / ".config/virtagent"
        folder.mkdir(parents=True)
        (folder / "agents.conf").write_text(f"a {guests.urls[0]}\nboth a {guests.urls[1]}\n", encoding="utf-8")
        assert cli.main(["--agent", "both", "ping"]) == 0
        out = capsys.readouterr().out
        assert all(url in out for url in guests.urls)
        monkeypatch.setenv("VIRTAGENT_AGENT", "a")
        assert cli.main(["ping"]) == 0
        assert capsys.readouterr().out.startswith(guests.urls[0])
        assert cli.main(["--agent", "c", "ping"]) == 2
        assert "'c' is neither an agent's URL nor a name in" in capsys.readouterr().err
    assert os.path.expanduser(named_agents.USER).startswith(str(tmp_path))

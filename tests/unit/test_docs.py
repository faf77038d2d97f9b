"""The docs are true where a program can tell: made from the tables, complete, and pointing only at what is there."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import sys
from enum import Enum
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api import errors, methods, states
from virtagent.supervisor import config

TREE = Path(__file__).resolve().parents[2]
PAGES = [TREE / "README.md", *sorted((TREE / "docs").rglob("*.md"))]
GENERATED = ("rpc.md", "states.md", "operations.md", "virtagentctl.1")
SOURCES = {
    path.relative_to(TREE).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("agent", "supervisor", "host", "tests")
    for path in (TREE / folder).rglob("*.py")
}
TESTS = "\n".join(text for name, text in SOURCES.items() if name.startswith("tests/"))
MEMBERS = {
    (node.name, member.name if isinstance(member, ast.FunctionDef) else ast.unparse(member.target))
    for name, text in SOURCES.items()
    if not name.startswith("tests/")
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.ClassDef)
    for member in node.body
    if isinstance(member, ast.FunctionDef | ast.AnnAssign)
}


def text_of(name: str) -> str:
    return (TREE / "docs" / name).read_text(encoding="utf-8")


class Generator:
    """scripts/docs, run in this process on the pages below `tree`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tree: Path) -> None:
        self.docs = tree / "docs"
        self._patch = monkeypatch
        self._captured = capsys
        self._script = generator()
        monkeypatch.setattr(self._script, "DOCS", self.docs)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code and what went to the standard error."""
        self._patch.setattr(sys, "argv", ["scripts/docs", *arguments])
        code = self._script.main()
        return code, self._captured.readouterr().err


@functools.cache
def generator() -> Any:
    """Import scripts/docs, which has no suffix."""
    loader = SourceFileLoader("generator_of_docs", str(TREE / "scripts/docs"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generator:
    shutil.copytree(TREE / "docs", tmp_path / "docs")
    return Generator(monkeypatch, capsys, tmp_path)


def test_what_is_generated_is_current(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert Generator(monkeypatch, capsys, TREE).run("--check") == (0, "")


@pytest.mark.parametrize("name", GENERATED)
def test_a_stale_page_is_named_and_made_anew(copied: Generator, name: str) -> None:
    page = copied.docs / name
    good = page.read_text(encoding="utf-8")
    page.write_text(good.replace("| thaw", "| thraw").replace("seconds", "minutes").replace("no such", "some such"))
    assert copied.run("--check") == (1, f"scripts/docs: not what the tables say: docs/{name}; run scripts/docs\n")
    assert copied.run()[0] == 0
    if name != "operations.md":
        assert page.read_text(encoding="utf-8") == good
    assert copied.run("--check")[0] == 0


@pytest.mark.parametrize("name", ["rpc.md", "states.md", "virtagentctl.1"])
def test_a_missing_page_is_made(copied: Generator, name: str) -> None:
    (copied.docs / name).unlink()
    assert copied.run("--check")[0] == 1
    assert copied.run()[0] == 0
    assert (copied.docs / name).read_text(encoding="utf-8") == text_of(name)


def test_operations_without_its_marks_is_refused(copied: Generator) -> None:
    (copied.docs / "operations.md").write_text("# Operations\n")
    said = "scripts/docs: docs/operations.md has no place for the options; mend the words in scripts/docs\n"
    assert copied.run() == (1, said)


def test_every_option_is_named() -> None:
    operations = text_of("operations.md")
    offered = set(re.findall(r"--[a-z-]+", config.parser().format_help()))
    assert offered >= {f"--{name}" for name in config.OPTIONS}
    assert [name for name in sorted(offered) if f"`{name}" not in operations] == []


def test_every_rpc_is_named() -> None:
    page = text_of("rpc.md")
    public = {row.name for row in methods.RPCS.values() if row.public and not row.is_guest}
    assert set(re.findall(r"^### (.+)$", page, re.M)) == public
    assert [row.name for row in methods.RPCS.values() if row.name not in page] == []


def test_every_parameter_is_named() -> None:
    page = text_of("rpc.md")
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##)", page, re.M | re.S))
    for row in methods.RPCS.values():
        names = [f"{p.name}.{f.name}" for p in row.params for f in p.fields] + [p.name for p in row.params]
        if not row.is_guest:  # whose parameters stand in QEMU's own reference
            assert [name for name in names if f"`{name}`" not in sections[row.name]] == []


@pytest.mark.parametrize("page", ["rpc.md", "operations.md"])
def test_every_fault_is_named(page: str) -> None:
    text = text_of(page)
    assert [code.name for code in errors.Code if f"| {int(code)} | {code.name} |" not in text] == []


@pytest.mark.parametrize("kind", [states.FreezeState, states.WorkerState])
def test_every_state_is_named(kind: type[Enum]) -> None:
    assert [state.name for state in kind if f"| {state.name} |" not in text_of("states.md")] == []


@pytest.mark.parametrize("kind", [states.MountState, states.Phase, states.Reason, states.Outcome])
def test_every_value_is_named(kind: type[Enum]) -> None:
    assert [member.value for member in kind if f"| `{member.value}` |" not in text_of("states.md")] == []


@pytest.mark.parametrize("kind", [states.FreezeEvent, states.WorkerEvent])
def test_every_event_is_in_its_matrix(kind: type[Enum]) -> None:
    assert [event.value for event in kind if f"\n| {event.value} |" not in text_of("states.md")] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(TREE).as_posix())


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(TREE), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_no_path_of_a_development_machine(page: Path) -> None:
    assert re.findall(r"/(?:home|root|work|tmp|Users)/\S*", page.read_text(encoding="utf-8")) == []


@each_page
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.findall(
        r"`((?:agent|supervisor|host|tests|scripts|docs)/[\w./-]*[\w/])", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (TREE / name).exists()] == []


@each_page
def test_methods_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`([A-Z]\w*)\.(\w+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if name not in MEMBERS] == []


@each_page
def test_tests_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if f"def {name}(" not in TESTS] == []


def test_every_decision_is_listed() -> None:
    architecture = text_of("architecture.md")
    decisions = sorted((TREE / "docs/adr").glob("*.md"))
    assert decisions
    for page in decisions:
        text = page.read_text(encoding="utf-8")
        heading = text.partition("\n")[0].removeprefix("# ")
        assert heading.startswith(f"{page.name[:4]}: ")
        assert f"- [{heading}](adr/{page.name})" in architecture
        assert all(f"**{part}" in text for part in ("Context.", "Decision.", "What it costs.")), page.name


def test_the_licence_is_the_one_that_the_metadata_names() -> None:
    licence = (TREE / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "license = Apache-2.0" in (TREE / "setup.cfg").read_text(encoding="utf-8")

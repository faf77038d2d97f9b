"""The docs are true where a program can tell: made from the tables, complete, and pointing only at what is there."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api import errors, methods, states, writers
from virtagent.supervisor import config
from virtagent.supervisor.core import audit

TREE = Path(__file__).resolve().parents[2]
PAGES = [*sorted(TREE.glob("*.md")), *sorted((TREE / "docs").rglob("*.md"))]
WHOLE = ("rpc.md", "states.md", "virtagentctl.1", "virtagentd.8", "virtagentd.conf.5", "virtagent-qemu-ga.8")
MARKED = ("configuration.md", "faults.md", "what-is-frozen.md")
SOURCES = {
    path.relative_to(TREE).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("agent", "supervisor", "host", "kube", "tests")
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


@pytest.mark.parametrize("name", [*WHOLE, *MARKED])
def test_a_stale_page_is_named_and_made_anew(copied: Generator, name: str) -> None:
    page = copied.docs / name
    good = page.read_text(encoding="utf-8")
    page.write_text(
        good + "stale\n" if name in WHOLE else re.sub(r"(?m)^\| (option|faultCode|layout) ", "| stale ", good)
    )
    assert copied.run("--check") == (1, f"scripts/docs: not what the tables say: docs/{name}; run scripts/docs\n")
    assert copied.run()[0] == 0
    if name in WHOLE:
        assert page.read_text(encoding="utf-8") == good
    assert copied.run("--check")[0] == 0


@pytest.mark.parametrize("name", WHOLE)
def test_a_missing_page_is_made(copied: Generator, name: str) -> None:
    (copied.docs / name).unlink()
    assert copied.run("--check")[0] == 1
    assert copied.run()[0] == 0
    assert (copied.docs / name).read_text(encoding="utf-8") == text_of(name)


@pytest.mark.parametrize(("name", "part"), [("configuration.md", "options"), ("faults.md", "faults")])
def test_a_page_without_its_marks_is_refused(copied: Generator, name: str, part: str) -> None:
    (copied.docs / name).write_text("# Page\n")
    place = f"docs/{name} has no place for the {part}"
    assert copied.run() == (1, f"scripts/docs: {place}; mend the words in scripts/docs_words.py\n")


@pytest.mark.parametrize(
    ("test", "result", "missing"),
    [
        ("test_that_is_not_there", "frozen", "has no test_that_is_not_there"),
        ("test_selectors_by_device_and_type", "left out as `damaged`", "says nothing of 'damaged'"),
        ("test_selectors_by_device_and_type", "frozen, before what it lies on", "says nothing of"),
    ],
)
def test_a_layout_is_listed_only_with_a_test_that_shows_it(
    copied: Generator, monkeypatch: pytest.MonkeyPatch, test: str, result: str, missing: str
) -> None:
    rows = (("a layout", result, "tests/real/test_layouts.py", test),)
    monkeypatch.setattr(generator().docs_layouts, "ROWS", (("Heading", rows),))
    code, said = copied.run("--check")
    assert code == 1
    assert missing in said


def test_each_case_of_a_host_or_user_names_tests_that_exist() -> None:
    page = text_of("hostile.md")
    assert re.findall(r"^\| (H\d+) \|", page, re.M) == [f"H{number}" for number in range(1, 23)]
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page))
    texts = {file: (TREE / file).read_text(encoding="utf-8") for file, _ in named}
    assert sorted(f"{file}::{test}" for file, test in named if f"def {test}(" not in texts[file]) == []
    assert len(named) >= 22


def test_every_reason_is_in_the_list_of_layouts() -> None:
    page = text_of("what-is-frozen.md")
    planned = {states.Reason.EXCLUDED}  # what the operator himself asked for
    assert [reason.value for reason in {*states.Reason} - planned if f"`{reason.value}`" not in page] == []


def test_every_option_is_named() -> None:
    page = text_of("configuration.md")
    offered = set(re.findall(r"--[a-z-]+", config.parser().format_help()))
    assert offered >= {f"--{name}" for name in config.OPTIONS}
    assert [name for name in sorted(offered) if f"`{name}" not in page] == []


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


@pytest.mark.parametrize("page", ["rpc.md", "faults.md"])
def test_every_fault_is_named(page: str) -> None:
    text = text_of(page)
    assert [code.name for code in errors.Code if f"| {int(code)} | {code.name} |" not in text] == []


@pytest.mark.parametrize("kind", [states.FreezeState, states.WorkerState])
def test_every_state_is_named(kind: type[Enum]) -> None:
    assert [state.name for state in kind if f"| {state.name} |" not in text_of("states.md")] == []


@pytest.mark.parametrize("kind", [states.MountState, states.Phase, states.Reason, states.Outcome])
def test_every_value_is_named(kind: type[Enum]) -> None:
    assert [member.value for member in kind if f"| `{member.value}` |" not in text_of("states.md")] == []


@pytest.mark.parametrize("kind", [states.FreezeEvent, states.WorkerEvent, writers.WriterEvent])
def test_every_event_is_in_its_matrix(kind: type[Enum]) -> None:
    assert [event.value for event in kind if f"\n| {event.value} |" not in text_of("states.md")] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def each_page(rule: Callable[[Path], None]) -> Callable[[], None]:
    """Make one test of a rule for pages: it names each page that breaks it, and how."""

    def test() -> None:
        broken = []
        for page in PAGES:
            try:
                rule(page)
            except AssertionError as error:
                broken.append(f"{page.relative_to(TREE)}: {error}")
        assert not broken, "\n".join(broken)

    test.__doc__ = rule.__doc__
    return test


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


KERNELS = {"percpu_down_write", "rcu_sync_enter", "rcu_sync", "rcu_normal"}
KNOWN = {word for text in SOURCES.values() for word in re.findall(r"\w+", text)} | KERNELS
CODE = {"agent", "supervisor", "host", "tests", "scripts", "docs", "packaging"}


def quoted(page: Path) -> list[str]:
    """Return what stands in backticks on a page, outside of blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ {4,}.*$", "", text, flags=re.M))


@each_page
def test_files_that_are_named_are_there(page: Path) -> None:
    paths = [word.partition(":")[0].split()[0] for word in quoted(page) if re.match(r"[a-z]+/[\w./-]+", word)]
    assert [path for path in paths if path.split("/")[0] in CODE and not (TREE / path).exists()] == []


def test_python_files_that_are_named_without_a_folder_are_there() -> None:
    there = {path.name for path in TREE.glob("*/**/*.py") if ".venv" not in path.parts}
    for page in PAGES:
        names = {word for word in quoted(page) if re.fullmatch(r"\w+\.py", word)}
        assert names - there == set(), page


@each_page
def test_members_that_are_named_are_there(page: Path) -> None:
    """`Class.member`, and `path/file.py: name` or `path/file.py:Class.member`."""
    words = quoted(page)
    assert [
        word for word in words if re.fullmatch(r"[A-Z]\w*\.\w+", word) and tuple(word.split(".")) not in MEMBERS
    ] == []
    placed = [match for word in words if (match := re.fullmatch(r"([\w/]+\.py):\s*([\w.]+)", word))]
    for path, name in (match.groups() for match in placed):
        owner, _, member = name.rpartition(".")
        assert re.search(rf"^\s*(async def|def|class) {member or name}\b|^{name}\b", SOURCES[path], re.M), (path, name)
        assert not owner or (owner, member) in MEMBERS, (path, name)


@each_page
def test_names_that_look_like_code_are_in_the_code(page: Path) -> None:
    looks = re.compile(r"_?[a-z]+(_[a-z]+)+(\(\))?|[A-Z][a-z]+[A-Z]\w+|[A-Z]{2,}(_[A-Z]+)+|_[a-z]\w+")
    named = {word.removesuffix("()") for word in quoted(page) if looks.fullmatch(word)}
    assert named - KNOWN == set()


@each_page
def test_tests_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if f"def {name}(" not in TESTS] == []


def test_every_decision_has_its_form_and_is_in_the_index() -> None:
    index = text_of("adr/README.md")
    decisions = sorted((TREE / "docs/adr").glob("0*.md"))
    assert [page.name[:4] for page in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    for page in decisions:
        first, _, rest = page.read_text(encoding="utf-8").partition("\n")
        heading = first.removeprefix("# ")
        assert heading.startswith(f"{page.name[:4]}: ")
        assert f"[{heading}]({page.name})" in index
        form = r"\n(\d{4}-\d\d-\d\d)\. (Accepted|Superseded by \[(\d{4})\]\(\3-[\w-]+\.md\))\.\n\n\*\*Context\.\*\* "
        status = re.match(form, rest)
        assert status, f"{page.name}: date, status and context, in this order"
        assert f"| {status[1]} | {status[2].lower()} |" in index.replace("Superseded", "superseded")
        parts = re.findall(r"^\*\*([A-Z][\w ]+)\.\*\*", rest, re.M)
        assert [part for part in parts if part != "Alternatives"] == ["Context", "Decision", "What it costs"], page.name
        assert "Alternatives" not in parts or parts.index("Alternatives") == 2, page.name


def test_the_decisions_that_the_code_names_are_there_and_each_is_named() -> None:
    """Beside a line that looks as if it could be simplified: a decision that no line names would be undone one day."""
    pages = {page.name[:4]: page.read_text(encoding="utf-8") for page in (TREE / "docs/adr").glob("0*.md")}
    valid = {number for number, text in pages.items() if ". Accepted." in text}

    def named(*folders: str) -> set[str]:
        texts = [text for name, text in SOURCES.items() if name.startswith(folders)]
        return {number for text in texts for number in re.findall(r"ADR (\d{4})", text)}

    assert named("tests/") <= set(pages)
    assert named("agent/", "supervisor/", "host/", "kube/") == valid


def test_the_drawings_have_every_arrow() -> None:
    tables: tuple[Mapping[Any, tuple[Any, ...]], ...]
    tables = (states.FREEZE_TABLE, states.WORKER_TABLE, writers.WRITER_TABLE)
    drawn = re.findall(r"^```mermaid\n(.*?)^```", text_of("states.md"), re.M | re.S)
    for drawing, table in zip(drawn, tables, strict=True):
        arrows = re.findall(r"^    (\w+) --> (\w+): (.+)$", drawing, re.M)
        shown = {(start, end, event) for start, end, events in arrows for event in events.split(" / ")}
        assert shown == {(s.name, row[0].name, e.value) for (s, e), row in table.items() if row[0] is not s}


SAID = {
    "SECURITY.md": {r"cut to (\d+) characters": audit.PARAMS_MAX},
    "docs/operations.md": {r"cut to (\d+) characters": audit.PARAMS_MAX},
    "README.md": {r"All (\d+) commands": sum(row.is_guest for row in methods.RPCS.values())},
    "docs/install.md": {
        r"After (\d+) s \(a stuck disk\)": 30,
        r"silent for (\d+) s": 30,
        r"every (\d+) s; without": 15,
    },
}
"""Figures in prose that a table has, too."""


def test_figures_in_prose_are_those_of_the_tables() -> None:
    unit = (TREE / "packaging/virtagentd.service").read_text(encoding="utf-8")
    assert "\nTimeoutStopSec=30s\n" in unit
    assert "\nWatchdogSec=30s\n" in unit
    for page, figures in SAID.items():
        for pattern, value in figures.items():
            assert [int(found) for found in re.findall(pattern, (TREE / page).read_text(encoding="utf-8"))] == [value]


def test_what_needs_a_restart_is_named() -> None:
    [said] = re.findall(r"Changes of\s+((?:`[\w-]+`(?:,| and)?\s+)+)need a restart", text_of("configuration.md"))
    assert sorted(re.findall(r"[\w-]+", said.replace(" and", ""))) == sorted(n.replace("_", "-") for n in config.FIXED)


def test_no_option_stands_with_another_default() -> None:
    plain = config.Config()
    names = "|".join(sorted(config.OPTIONS, key=len, reverse=True))
    for page in PAGES:
        for said, name in re.findall(rf"([\d.]+) s \(`({names})`\)", page.read_text(encoding="utf-8")):
            assert float(said) == getattr(plain, name.replace("-", "_")), f"{page.name}: {name}"


def test_the_version_is_the_one_of_the_code() -> None:
    version = re.findall(r'^__version__ = "(.+)"$', SOURCES["agent/__init__.py"], re.M)
    assert (
        re.findall(r"^(\d+\.\d+\.\d+), in development", (TREE / "README.md").read_text(encoding="utf-8"), re.M)
        == version
    )
    assert re.findall(r"^## (\d+\.\d+\.\d+)", (TREE / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[:1] == version


def test_the_readme_has_the_figures_that_were_measured() -> None:
    readme, measured = (TREE / "README.md").read_text(encoding="utf-8"), text_of("performance.md")

    tables = dict(re.findall(r"^### (.*)\n\n(\|(?:.*\n)+?)\n", measured, re.M))

    def median(table: str, row: str, column: int) -> str:
        (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", tables[table], re.M)
        return re.findall(r"\*\*([\d.]+)\*\*", line)[column]

    for where, disk in (("", "500 MiB/s"), (", on a real disk", "a real disk")):
        for row, dirty in (("clean", "nothing to write"), ("150 MB dirty on each", "150 MB dirty on each")):
            found = [
                median(f"Write stall{where}", f"8 ext4, {row}: longest of all writers, ms", at) for at in (1, 0, 3, 4)
            ]
            assert f"| {dirty}, {disk} | {' | '.join(f'{one} ms' for one in found)} |" in readme
    resident, own = "idle: resident, MiB", "idle: proportional, MiB"
    mine, theirs = ([median("Memory", row, at) for row in (resident, own)] for at in (0, 1))
    assert f"{mine[0]} MiB resident when idle, {mine[1]} MiB of it its own" in readme
    assert f"(qemu-ga: {theirs[0]} and {theirs[1]})" in readme
    keeper, ahead = (
        f"frozen, 8 file systems: {who}: proportional, MiB" for who in ("keeper", "stands by for the thaw")
    )
    assert f"a keeper of {median('Memory', keeper, 0)} MiB" in readme
    assert f"of {median('Memory', ahead, 0)} MiB that stands by" in readme
    woken = float(median("Wake-ups while idle", "wake-ups in 60 idle seconds", 0))
    assert f"{woken:g} wake-ups in 60 idle seconds" in readme


def test_what_writes_or_reads_files_is_told_in_security() -> None:
    text = (TREE / "SECURITY.md").read_text(encoding="utf-8")
    families = ("guest-get-", "guest-network-")
    harmless = {"va.fsplan", "guest-file-close", "guest-file-seek", "guest-file-flush"}
    told = [row.name for row in methods.RPCS.values() if row.public and row.disk is not methods.Disk.NONE]
    assert [
        name for name in told if name not in harmless and not name.startswith(families) and f"`{name}`" not in text
    ] == []


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "docs/configuration.md"])
def test_methods_that_a_sample_allows_are_there(page: str) -> None:
    text = (TREE / page).read_text(encoding="utf-8")
    samples = re.findall(r"^    (?:allow|block)-rpcs (.+)$", text, re.M)
    assert samples
    for sample in samples:
        assert config.build({}, {"allow-rpcs": [sample]}).allow_rpcs


def test_what_is_blocked_together_is_told() -> None:
    text = (TREE / "SECURITY.md").read_text(encoding="utf-8")
    names = {name for row in methods.RPCS.values() if row.blocked_with for name in (row.name, *row.blocked_with)}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_secrets_are_those_of_the_table() -> None:
    (told,) = re.findall(
        r"^## Secrets in logs\n(.*?)^## ", (TREE / "SECURITY.md").read_text(encoding="utf-8"), re.M | re.S
    )
    for row in methods.RPCS.values():
        if any(param.secret for param in row.params):
            assert f"`{row.name}`" in told


def test_what_is_installed_has_all_that_it_links_to() -> None:
    script = (TREE / "scripts/install").read_text(encoding="utf-8")
    (patterns,) = re.findall(r'^mapfile -t pages < <\(cd "\$tree" && ls (.+?)\)$', script.replace("\\\n", " "), re.M)
    installed = {path.resolve() for pattern in patterns.split() for path in TREE.glob(pattern)}
    for page in PAGES:
        if page not in installed:
            continue
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        missing = [link for link in links if "://" not in link and (page.parent / link).resolve() not in installed]
        assert missing == [], page.name


def test_the_units_name_pages_that_are_installed() -> None:
    for unit in (TREE / "packaging").glob("*.service"):
        named = re.findall(r"file:///opt/virtagent/current/doc/(\S+)", unit.read_text(encoding="utf-8"))
        assert named
        assert [name for name in named if not (TREE / "docs" / name).exists()] == []


def test_the_licence_is_the_one_that_the_metadata_names() -> None:
    licence = (TREE / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "license = Apache-2.0" in (TREE / "setup.cfg").read_text(encoding="utf-8")

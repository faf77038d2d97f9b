"""The house rules that can be read off the source: imports, packages, sizes, and what no file may do."""

from __future__ import annotations

import ast
import configparser
import functools
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import virtagent.agent
import virtagent.host
import virtagent.kube

TREE = Path(__file__).resolve().parents[2]
ROOT = Path(virtagent.agent.__file__).resolve().parent.parent
PACKAGES = ("agent", "supervisor", "host", "kube")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINES_MAX = 400
# Who may import whom (docs/architecture.md): supervisor -> agent.worker -> agent.wire -> agent.api <- host.
ROOMS = ("agent.api", "agent.wire", "agent.worker", "supervisor.core", "supervisor", "host", "kube")
MAY = {
    "agent.api": set(),
    "agent.wire": {"agent.api"},
    "agent.worker": {"agent.wire", "agent.api"},
    "supervisor.core": {"agent.worker", "agent.wire", "agent.api", "supervisor.config"},
    "supervisor": {"agent", "supervisor.core"},
    "host": {"agent.wire", "agent.api"},
    "kube": set(),
}
EVERYBODY = {"agent.__version__"}


def each(rule: Callable[[Path], None], files: Sequence[Path] = FILES) -> Callable[[], None]:
    """Make one test of a rule for files: it names each file that breaks it, and how."""

    def test() -> None:
        broken = []
        for path in files:
            try:
                rule(path)
            except AssertionError as error:
                broken.append(f"{path.relative_to(ROOT)}: {error}")
        assert not broken, "\n".join(broken)

    assert files
    test.__doc__ = rule.__doc__
    return test


@functools.cache
def tree(path: Path) -> ast.Module:
    """Parse a file, once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Return all that `ast.walk` finds in a file, walked once for all tests."""
    return list(ast.walk(tree(path)))


def module_of(path: Path) -> str:
    """Return the dotted name below virtagent."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the innermost room that the module lies in."""
    return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), module)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Return the dotted names below virtagent that a file imports, those under TYPE_CHECKING and in functions too."""
    own = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("virtagent.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*own[: len(own) - node.level], *(node.module.split(".") if node.module else [])]
            else:
                base = (node.module or "").removeprefix("virtagent.").split(".")
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return frozenset(name for name in found if name.split(".")[0] in PACKAGES)


MODULES = {module_of(path): path for path in FILES}


def arrows(module: str) -> set[str]:
    """Return the modules that a module imports; a package's own file only if nothing below it is meant."""
    named = imported(MODULES[module])
    return {name if name in MODULES else name.rpartition(".")[0] for name in named} - {module}


@each
def test_the_direction_of_imports(path: Path) -> None:
    room = room_of(module_of(path))
    for name in imported(path) - EVERYBODY:
        allowed = {room, *MAY.get(room, {name})}
        assert any(f"{name}.".startswith(f"{good}.") for good in allowed), f"imports {name}"


def test_no_import_goes_round_in_a_circle() -> None:
    left = {module: {to for to in arrows(module) if to in MODULES} for module in MODULES}
    while leaves := {module for module, to in left.items() if not to & left.keys()}:
        for module in leaves:
            del left[module]
    # What is left imports each other, or is imported by nobody and imports a circle: take those away, too.
    while outer := {module for module in left if not any(module in to for to in left.values())}:
        for module in outer:
            del left[module]
    assert sorted(left) == []


@each
def test_between_the_folders_imports_are_relative(path: Path) -> None:
    for node in nodes(path):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not [name for name in names if name.split(".")[0] in ("virtagent", *PACKAGES)]


@each
def test_a_file_fits_in_the_head(path: Path) -> None:
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= LINES_MAX * 1.1, f"{count} lines: it has two jobs"


@each
def test_a_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree(path))


@each
def test_nothing_sleeps(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            assert not (node.attr == "sleep" and isinstance(node.value, ast.Name) and node.value.id == "time")
        if isinstance(node, ast.ImportFrom):
            assert not (node.module == "time" and any(a.name == "sleep" for a in node.names))


@each
def test_nothing_is_swallowed(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except at line {node.lineno}"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            assert not (broad and all(isinstance(s, ast.Pass) for s in node.body)), f"line {node.lineno}"


@each
def test_the_daemon_has_no_asyncio_and_no_network_client(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] in ("host", "kube"):
        return
    names = {
        name.split(".")[0]
        for node in nodes(path)
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert not names & {"asyncio", "http", "ssl", "multiprocessing", "concurrent"}


@each
def test_the_daemon_has_no_class_that_is_compiled_at_its_start(path: Path) -> None:
    """Classes of fields are those of agent/api/structs.py, which alone knows `dataclasses`, and does not import it."""
    if path.relative_to(ROOT).parts[0] in ("host", "kube") or module_of(path) == "agent.api.structs":
        return
    for node in nodes(path):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert "dataclasses" not in names, "take Value, Struct and replace of agent/api/structs.py"


@each
def test_the_supervisor_has_no_threads_and_imports_nothing_after_start(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "supervisor":
        return
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not any(a.name == "threading" for a in node.names)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                assert not isinstance(inner, ast.Import | ast.ImportFrom), f"import in {node.name}"


@functools.partial(each, files=[path for path in FILES if room_of(module_of(path)) == "supervisor.core"])
def test_the_decisions_have_no_clock_and_no_io(path: Path) -> None:
    impure = {"os", "time", "socket", "select", "selectors", "subprocess", "threading", "ctypes", "fcntl", "random"}
    for node in nodes(path):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & impure
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input")


def test_only_kernel_freezes() -> None:
    for path in FILES:
        if path != ROOT / "agent" / "worker" / "kernel.py":
            names = {n.id for n in nodes(path) if isinstance(n, ast.Name)}
            assert not names & {"ctypes", "ioctl"}, path


def test_setup_lists_the_packages_that_are_there() -> None:
    config = configparser.ConfigParser()
    config.read(TREE / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = [p for folder in PACKAGES for p in (TREE / folder).rglob("__init__.py")]
    there = {".".join(("virtagent", *p.parent.relative_to(TREE).parts)) for p in found}
    assert listed == there
    folders = {".".join(("virtagent", *p.parent.relative_to(ROOT).parts)) for p in FILES}
    assert folders == there, "a folder without __init__.py"
    places = dict(line.split(" = ") for line in config["options"]["package_dir"].strip().splitlines())
    assert places == {f"virtagent.{name}": name for name in PACKAGES}
    assert set(config["options.package_data"]) >= {f"virtagent.{name}" for name in PACKAGES}
    for name in PACKAGES:
        assert (ROOT / name / "py.typed").exists()


def test_every_public_name_of_the_host_is_there() -> None:
    """They are imported when they are used, so nothing else tells of one that is not where the table says."""
    assert [name for name in virtagent.host.__all__ if not hasattr(virtagent.host, name)] == []


@pytest.mark.parametrize(
    "start",
    [
        os.fork,
        lambda: subprocess.run(["true"], check=True),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.system("true"),
    ],
    ids=["fork", "Popen", "posix_spawn", "exec", "system"],
)
def test_a_unit_test_that_starts_a_process_fails(start: Callable[[], object]) -> None:
    with pytest.raises(BaseException, match=r"a unit test starts no process; move this test to tests/real"):
        start()


def test_no_two_tests_that_run_together_have_one_name() -> None:
    """pytest imports a test file by its name alone, and refuses all when two have the same."""
    found = Counter(path.name for path in (TREE / "tests").rglob("test_*.py") if "vm" not in path.parts)
    assert [name for name, count in found.items() if count > 1] == []

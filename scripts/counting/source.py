"""What can be counted by reading the source of a tree, whatever its folders are called."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = ("agent", "supervisor", "host")
STATE = "FreezeState"
SHOWN = 10
_BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.match_case, ast.IfExp, ast.comprehension)
_LAYOUT = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Imports = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One file: its dotted name below the tree, its text and its syntax tree."""

    name: str
    path: str
    text: str
    tree: ast.Module

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Yield each function with its name in the form file:Class.method."""
        for scope, node in _functions(self.tree, ()):
            yield f"{self.path}:{'.'.join((*scope, node.name))}", node

    def code_lines(self) -> int:
        """Return the number of lines that hold code: no blank lines, comments and docstrings."""
        prose = {n for node in ast.walk(self.tree) if _is_text(node) for n in range(node.lineno, node.end_lineno + 1)}
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        code = {n for t in tokens if t.type not in _LAYOUT for n in range(t.start[0], t.end[0] + 1)}
        return len(code - prose)


def read(root: Path, folder: str) -> list[Module]:
    """Return the modules below a folder of the tree, in order of their paths."""
    found = []
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        found.append(Module(name, str(path.relative_to(root)), text, ast.parse(text)))
    return found


def count(root: Path) -> dict[str, Any]:
    """Return all figures of the tree by name, ready for JSON."""
    parts = {folder: read(root, folder) for folder in FOLDERS}
    modules = [module for part in parts.values() for module in part]
    functions = [named for module in modules for named in module.functions()]
    tests = [path for path in (root / "tests").rglob("*.py") if path.is_file()]
    state = {module.path: n for module in modules if (n := state_tests(module))}
    return {
        "product lines": {
            folder: {"files": len(part), "all": sum(len(m.text.splitlines()) for m in part), "code": _code(part)}
            for folder, part in parts.items()
        }
        | {"together": {"files": len(modules), "all": sum(len(m.text.splitlines()) for m in modules)}}
        | {"together, code": _code(modules)},
        "import circles": circles(imports(modules)),
        "longest functions": _most(functions, lambda node: (node.end_lineno or 0) - node.lineno + 1),
        "most branched functions": _most(functions, branches),
        "public names of several modules": shared_names(modules),
        "tests of the freeze state outside the table": {"together": sum(state.values())} | state,
        "signatures with `now`": sum("now" in _parameters(node) for _, node in functions),
        "classes that hold the shared list `_out`": holders(modules, "_out"),
        "signatures with `Any`": sum(_is_loose(node) for _, node in functions),
        "test lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tests),
        "test files": len(tests),
    }


def imports(modules: list[Module]) -> Imports:
    """Return which modules each one imports; what stands under TYPE_CHECKING counts like all else."""
    known = {module.name for module in modules}
    packages = {module.name for module in modules if module.path.endswith("__init__.py")}
    arrows: Imports = {}
    for module in modules:
        own = module.name.split(".") + ["__init__"] * (module.name in packages)
        found = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*own[: len(own) - node.level], *(node.module.split(".") if node.module else [])]
                found |= {".".join([*base, alias.name]) for alias in node.names}
        arrows[module.name] = {x if x in known else x.rpartition(".")[0] for x in found} & known - {module.name}
    return arrows


def circles(arrows: Imports) -> list[list[str]]:
    """Return the sets of modules that import each other, the largest first."""
    reach = {name: _reached(name, arrows) for name in arrows}
    found = {frozenset(other for other in reach[name] if name in reach[other]) for name in arrows}
    return sorted((sorted(circle) for circle in found if len(circle) > 1), key=lambda names: (-len(names), names))


def branches(node: ast.AST) -> int:
    """Return in how many places a function can go two ways; each operand of `and` and `or` beyond the first is one."""
    total = 0
    for inner in ast.walk(node):
        total += isinstance(inner, _BRANCHES)
        total += len(inner.values) - 1 if isinstance(inner, ast.BoolOp) else 0
    return total


def shared_names(modules: list[Module]) -> dict[str, list[str]]:
    """Return the public classes and top-level functions whose name is defined in several modules."""
    where = defaultdict(list)
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, (*Function.__args__, ast.ClassDef)) and not node.name.startswith("_"):
                where[node.name].append(module.path)
    return {name: paths for name, paths in sorted(where.items()) if len(paths) > 1}


def state_tests(module: Module) -> int:
    """Return how often a module asks which freeze state it is: comparisons and match cases, groups by name included."""
    groups = {
        target.id
        for node in module.tree.body
        if isinstance(node, ast.Assign) and _names_state(node.value, set()) and not isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    total = 0
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Compare):
            total += any(_names_state(side, groups) for side in (node.left, *node.comparators))
        elif isinstance(node, ast.match_case):
            total += _names_state(node.pattern, groups)
    return total


def holders(modules: list[Module], attribute: str) -> list[str]:
    """Return the classes that keep an attribute of that name."""
    return [
        f"{module.path}:{node.name}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(x, ast.Attribute) and x.attr == attribute and _is_stored(x) for x in ast.walk(node))
    ]


def _is_stored(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _functions(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield scope, child
        named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from _functions(child, (*scope, child.name) if named else scope)  # type: ignore[attr-defined]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _code(modules: list[Module]) -> int:
    return sum(module.code_lines() for module in modules)


def _most(functions: list[tuple[str, Function]], size: Callable[[Function], int]) -> dict[str, int]:
    return dict(Counter({name: size(node) for name, node in functions}).most_common(SHOWN))


def _parameters(node: Function) -> set[str]:
    return {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def _is_loose(node: Function) -> bool:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    notes = [*(a.annotation for a in every if a is not None), node.returns]
    return any(isinstance(x, ast.Name) and x.id == "Any" for note in notes if note for x in ast.walk(note))


def _names_state(node: ast.AST, groups: set[str]) -> bool:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == STATE:
            return True
        if isinstance(inner, ast.Name) and inner.id in groups:
            return True
    return False


def _reached(start: str, arrows: Imports) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in arrows[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen

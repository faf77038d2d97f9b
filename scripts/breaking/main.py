"""Runs the unit tests that concern a breakage, for each breakage of a tree, and tells which are not noticed.

A breakage is made when its module is imported, in a fork of a process that has imported pytest and everything that is
not ours; no file is changed. Tests that compare the source or the docs with something else are not run: they would
notice the change, not the fault. A run that does not end, or that needs too much memory, counts as noticed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.machinery
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from breaking import areas, derive
from breaking.derive import Breakage

HUNG = 120.0  # seconds of one run
MEMORY = 4 << 30
PASSED, NO_TESTS, OURS = 0, 5, 99  # exit codes of pytest; the last one is a defect of this script


def come_to(tree: Path) -> None:
    """Make `virtagent` the tree, as tests/conftest.py does, in a process that has nothing of ours yet."""
    os.chdir(tree)
    sys.modules["virtagent"] = types.ModuleType("virtagent")
    sys.modules["virtagent"].__path__ = [str(tree)]
    sys.path.insert(0, str(tree / "tests"))


def run_tests(tree: Path, broken: Breakage | None, area: str) -> NoReturn:
    """Be the forked process: break one thing and run the tests; the exit code is pytest's."""
    import pytest

    code = OURS
    stderr = os.dup(2)
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        come_to(tree)
        if broken is not None:
            _break_when_imported(tree / broken.path, broken)
        options = ["-q", "-x", "--timeout=30", "-p", "no:randomly", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is imported already
        code = int(pytest.main([*options, *areas.tests_of(tree, area)]))
    except BaseException:  # noqa: BLE001 - it must not return into the code of the process that forked
        os.write(stderr, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _break_when_imported(path: Path, broken: Breakage) -> None:
    loader = importlib.machinery.SourceFileLoader
    usual: Callable[..., Any] = loader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> Any:
        if Path(self.path) != path:
            return usual(self, fullname)
        return compile(broken.apply(path.read_text(encoding="utf-8")), str(path), "exec", dont_inherit=True)

    loader.get_code = get_code  # type: ignore[assignment]


class Runs:
    """The forked test runs that are under way, at most `jobs`."""

    def __init__(self, tree: Path, jobs: int) -> None:
        self._tree, self._jobs = tree, jobs
        self._under_way: dict[int, tuple[int, float, Any]] = {}

    def start(self, broken: Breakage | None, area: str, what: Any) -> None:
        """Fork a run; `what` comes back with its end."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            run_tests(self._tree, broken, area)
        self._under_way[os.pidfd_open(pid)] = (pid, time.monotonic() + HUNG, what)

    def ended(self, *, all_: bool = False) -> Iterator[tuple[Any, int]]:
        """Yield what has ended with its exit code (-1: killed), waiting until there is room, or until all have."""
        while len(self._under_way) >= (1 if all_ else self._jobs):
            nearest = min(until for _, until, _ in self._under_way.values())
            ready, _, _ = select.select(list(self._under_way), [], [], max(0.0, nearest - time.monotonic()))
            late = [fd for fd, (_, until, _) in self._under_way.items() if until <= time.monotonic()]
            for fd in {*ready, *late}:
                pid, _, what = self._under_way.pop(fd)
                if fd not in ready:
                    os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                os.close(fd)
                yield what, os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1


def in_child(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a forked process, by JSON: what it imports must not stay here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(write, "w") as file:
                json.dump(work(), file)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with open(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def copy_of(tree: Path) -> Path:
    """Return a copy of what the tests need, so that nothing is written into the tree."""
    copy = Path(tempfile.mkdtemp(prefix="breakages")) / "tree"
    leave = shutil.ignore_patterns(".*", "__pycache__", "build")
    shutil.copytree(tree, copy, ignore=leave, symlinks=True)
    return copy


def options() -> argparse.Namespace:
    """Return the options of the command line."""
    asked = argparse.ArgumentParser(
        prog="scripts/breakages", description="Break the product; name what no test notices."
    )
    asked.add_argument("tree", nargs="?", type=Path, default=Path(__file__).resolve().parents[2])
    asked.add_argument("--list", action="store_true", help="print the breakages and run nothing")
    asked.add_argument("--jobs", type=int, default=1, help="how many at once; default: 1")
    asked.add_argument(
        "--only", default="", metavar="PATTERN", help="only those whose kind or name the expression finds"
    )
    asked.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th: a sample")
    return asked.parse_args()


def main() -> int:
    """Derive, run and tell; exit code 1 if the tests fail without any breakage."""
    asked = options()
    tree = copy_of(asked.tree.resolve())
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(tree.parent / "hypothesis")
    try:
        return _tell(tree, asked)
    finally:
        shutil.rmtree(tree.parent)


def _tell(tree: Path, asked: argparse.Namespace) -> int:
    def listed() -> list[dict[str, Any]]:
        come_to(tree)
        return [dataclasses.asdict(one) for one in derive.derive(tree)]

    every = [Breakage(**one) for one in in_child(listed)]
    chosen = [one for one in every if re.search(asked.only, f"{one.kind}: {one.name}")][:: asked.every]
    if asked.list:
        print("\n".join(f"{one.kind:<22} {one.name}" for one in chosen))
        print(f"{len(chosen)} breakages")
        return 0
    for name in ("pytest", "hypothesis", "msgpack", "h11", "psutil", "setproctitle", "xmlrpc.client", "rich.live"):
        importlib.import_module(name)
    runs = Runs(tree, asked.jobs)
    for area in sorted({one.area for one in chosen}):
        runs.start(None, area, area)
        for what, code in runs.ended(all_=True):
            if code not in (PASSED, NO_TESTS):
                print(f"the tests of {what} fail without any breakage (pytest: {code})")
                return 1
    noticed: Counter[str] = Counter()
    together: Counter[str] = Counter()
    began = time.monotonic()

    def take(ends: Iterator[tuple[Breakage, int]]) -> None:
        for one, code in ends:
            found = code not in (PASSED, NO_TESTS)
            together[one.kind] += 1
            noticed[one.kind] += found
            print(f"{'noticed' if found else 'NOT noticed':<12} {one.kind:<22} {one.name}", flush=True)

    for one in chosen:
        take(runs.ended())
        runs.start(one, one.area, one)
    take(runs.ended(all_=True))
    print(f"\n{len(chosen)} breakages in {time.monotonic() - began:.0f} s")
    for kind, total in together.items():
        print(f"{noticed[kind]:>5} of {total:>4} noticed  {kind}")
    print(f"{noticed.total():>5} of {together.total():>4} noticed  together")
    return 0


if __name__ == "__main__":
    sys.exit(main())

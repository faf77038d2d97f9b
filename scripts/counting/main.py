"""The options of scripts/count: one table for a tree, the same figures whatever its layout is."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from counting import source  # noqa: E402


def options() -> argparse.Namespace:
    """Return the options of the command line."""
    asked = argparse.ArgumentParser(prog="scripts/count", description="Count how a tree is built and what it costs.")
    asked.add_argument("tree", nargs="?", type=Path, default=HERE.parents[2], help="the tree; default: this one")
    asked.add_argument("--json", action="store_true", help="print JSON")
    asked.add_argument("--seconds", action="store_true", help="run the unit tests, too, and tell how long they took")
    return asked.parse_args()


def python(tree: Path) -> str:
    """Return the interpreter that has what the tree needs: its own, or the one that runs this."""
    own = tree / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def cost(tree: Path) -> dict[str, Any]:
    """Return what a report and a ping cost; raise CalledProcessError if the daemon of this tree could not be driven."""
    command = [python(tree), "-B", str(HERE.parent / "cost.py"), str(tree)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def unit_tests(tree: Path) -> dict[str, Any]:
    """Run the unit tests; return how long they took and what pytest said at its end."""
    command = [python(tree), "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "120"})
    return {"seconds": round(time.monotonic() - began, 1), "said": done.stdout.strip().splitlines()[-1]}


def lines(value: Any, indent: str = "  ") -> list[str]:
    """Return the figures as indented lines."""
    if isinstance(value, list):
        return [f"{indent}{len(one)}: {', '.join(one)}" if isinstance(one, list) else f"{indent}{one}" for one in value]
    found = []
    for name, inner in value.items():
        if isinstance(inner, dict) and not any(isinstance(x, (dict, list)) for x in inner.values()):
            found.append(f"{indent}{name:<34} {', '.join(f'{n} {key}' for key, n in inner.items())}")
        elif isinstance(inner, list):
            found.append(f"{indent}{name:<34} {len(inner)}: {', '.join(inner)}")
        else:
            found.append(f"{indent}{inner:>6}  {name}" if isinstance(inner, int) else f"{indent}{name:<34} {inner}")
    return found


def main() -> int:
    """Print the table."""
    asked = options()
    tree = asked.tree.resolve()
    figures = source.count(tree) | {"calls in the supervisor": cost(tree)}
    if asked.seconds:
        figures["unit tests"] = unit_tests(tree)
    if asked.json:
        print(json.dumps(figures, indent=2))
        return 0
    for name, value in figures.items():
        total = f": {len(value)}" if isinstance(value, list) or name == "public names of several modules" else ""
        print(f"{name}{total}" if isinstance(value, (dict, list)) else f"{name}: {value}")
        if isinstance(value, (dict, list)):
            print("\n".join(lines(value)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

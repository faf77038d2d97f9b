"""Makes virtagentd.pyz: the agent and what it needs of others, in Python, one file for any Python from 3.10 on.

Run by scripts/package with the Python whose h11 and msgpack are taken; what is compiled of them is left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
OTHERS = ("h11", "msgpack")
WHEN = (1980, 1, 1, 0, 0, 0)  # the same sources give the same file
SHEBANG = b"#!/usr/bin/env -S python3 -I\n"
MOST = 2 << 20


def parts() -> Iterator[tuple[str, bytes]]:
    """Yield the name and contents of each file."""
    yield "__main__.py", (HERE / "__main__.py").read_bytes()
    yield "LICENSE", (TREE / "LICENSE").read_bytes()
    yield "virtagent/__init__.py", b""  # zipimport finds no package without it
    for room in ("agent", "supervisor"):
        for path in sorted((TREE / room).rglob("*.py")):
            yield f"virtagent/{path.relative_to(TREE)}", path.read_bytes()
    for path in sorted((HERE / "pure").glob("*.py")):
        yield f"pure/{path.name}", path.read_bytes()
    for name in OTHERS:
        for file in sorted(importlib.metadata.files(name) or ()):
            wanted = file.suffix == ".py" and "tests" not in file.parts
            if wanted or "LICENSE" in file.name or "COPYING" in file.name:
                yield f"pure/{file}", Path(file.locate()).read_bytes()


def build(target: Path) -> int:
    """Write the file; return its size in bytes."""
    with open(target, "wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, data in parts():
                info = zipfile.ZipInfo(name, WHEN)
                info.external_attr = 0o644 << 16
                archive.writestr(info, data, zipfile.ZIP_DEFLATED, 9)
    target.chmod(0o755)
    return target.stat().st_size


def main() -> int:
    """Build the file that the command line names; return 1 if it has grown too large."""
    asked = argparse.ArgumentParser()
    asked.add_argument("target", type=Path)
    size = build(asked.parse_args().target)
    if size > MOST:
        sys.stderr.write(f"virtagentd.pyz has {size} bytes, at most {MOST} were meant\n")
    return int(size > MOST)


if __name__ == "__main__":
    sys.exit(main())

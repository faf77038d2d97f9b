"""Names for agents: files with a line `NAME URL...`, so that `--agent NAME` means one agent or a group of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

SYSTEM = "/etc/virtagent/agents.conf"
USER = "~/.config/virtagent/agents.conf"


def expand(names: Sequence[str], files: Sequence[str] = (SYSTEM, USER)) -> list[str]:
    """Return the URLs; what has no colon and no slash is a name, and stands for what a file says about it.

    A name that stands in both files is what the later one says. Raises ValueError: a name that no file has, or a file
    that cannot be read.
    """
    if all(":" in name or "/" in name for name in names):
        return list(names)
    known = _known(files)
    return [url for name in names for url in _meant(name, known, files)]


def everything(files: Sequence[str] = (SYSTEM,)) -> list[str]:
    """Return the URLs of all names in the files, some perhaps twice. Raises ValueError as `expand` does."""
    return [url for urls in _known(files).values() for url in urls]


def _known(files: Sequence[str]) -> dict[str, Sequence[str]]:
    known: dict[str, Sequence[str]] = {}
    for path in map(os.path.expanduser, files):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                known |= read(file.read(), path, known)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
    return known


def read(text: str, path: str, known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the URLs of each name in the text; `known` are names that it may use. Raises ValueError with the line."""
    found: dict[str, Sequence[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, *members = line.partition("#")[0].split() or [""]
        if not name:
            continue
        if ":" in name or "/" in name or not members:
            raise ValueError(f"{path} line {number}: expected a name and what it stands for, NAME URL...")
        if name in found:
            raise ValueError(f"{path} line {number}: {name} stands there for the second time")
        try:
            found[name] = [url for one in members for url in _meant(one, {**known, **found}, [path])]
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
    return found


def _meant(name: str, known: Mapping[str, Sequence[str]], files: Sequence[str]) -> Iterator[str]:
    if ":" in name or "/" in name:
        yield name
    elif name in known:
        yield from known[name]
    else:
        raise ValueError(f"{name!r} is neither an agent's URL nor a name in {' or '.join(files)}")

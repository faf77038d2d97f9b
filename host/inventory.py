"""The guests of many hosts, from a file: a line is an agent's URL, or a host and which of its agents are meant."""

from __future__ import annotations

from collections.abc import Iterator

from .transports import parse

LINES_MAX = 100_000
SIZE_MAX = 16 << 20  # characters


def read(path: str) -> list[str]:
    """Return the URLs that the file names; raise ValueError with the line that is wrong, or if there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(SIZE_MAX + 1)
            if len(text) > SIZE_MAX:
                raise ValueError(f"the inventory {path} has over {SIZE_MAX} characters")
            urls = list(parsed(text, path))
    except OSError as error:
        raise ValueError(f"the inventory {path} cannot be read ({error.strerror})") from None
    if not urls:
        raise ValueError(f"the inventory {path} names no agents")
    return urls


def parsed(text: str, path: str) -> Iterator[str]:
    """Return the URL of each line: as it is, or ssh:HOST with the agents that follow HOST; `#` begins a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if number > LINES_MAX:
            raise ValueError(f"{path} has over {LINES_MAX} lines; take several snapshots")
        first, *more = line.partition("#")[0].split() or [""]
        if not first:
            continue
        is_url = ":" in first or first.startswith("/")
        if is_url and more:
            raise ValueError(f"{path} line {number}: {more[0]!r} follows a URL; expected URL, or HOST [AGENT...]")
        query = "&".join(f"agents={one}" for one in more)
        url = first if is_url else f"ssh:{first}" + (f"?{query}" if query else "")
        try:
            parse(url)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        yield url

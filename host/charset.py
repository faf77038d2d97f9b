"""Which signs a terminal can show: what the locale says, which Python hides where that is C (PEP 538, PEP 540)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

_LOCALE = ("LC_ALL", "LC_CTYPE", "LANG")  # the first that is set counts (setlocale(3))


def limit(stream: TextIO, env: Mapping[str, str] | None = None) -> None:
    """Let a terminal whose locale is C have ASCII alone; what is not is escaped, and trees are drawn with + and |."""
    env = _begun_with() if env is None else env
    locale = next((env[name] for name in _LOCALE if env.get(name)), "")
    plain = locale.partition(".")[0] in ("", "C", "POSIX") and "." not in locale
    if plain and env.get("PYTHONUTF8") != "1" and stream.isatty() and hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="ascii", errors="backslashreplace")


def _begun_with() -> Mapping[str, str]:
    """Return the environment that this process began with: Python sets LC_CTYPE where the locale is C."""
    try:
        words = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    return dict(os.fsdecode(word).partition("=")[::2] for word in words)

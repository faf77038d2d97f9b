"""The daemon's options about writers: the values of those about hooks, and all writers together with those of files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..agent.api.structs import replace
from ..agent.api.writer_options import ordered, parse, when
from ..agent.api.writers import Step, WriterConfig

HOOKS = ("/etc/qemu/fsfreeze-hook", "/etc/qemu-ga/fsfreeze-hook")
HOOK = next((path for path in HOOKS if os.path.exists(path)), HOOKS[0])
"""What --hook calls if it is given without a path: Debian's program, or RHEL's where only that is."""
CHOICES = ("all", "try", "none")
FOLDER = "/etc/virtagent/writers.d"


def to_hook(name: str, text: str) -> str:
    """Return the absolute path in `text`, "" for none; raise ValueError."""
    if text in ("", os.devnull):
        return ""
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{name} is {text!r:.200}, expected an absolute path")
    return text


def to_when(name: str, text: str) -> str:
    """Return the step in which hooks are called; raise ValueError."""
    try:
        return when(text).value
    except ValueError as error:
        raise ValueError(f"{name} is {text!r:.60}, {error}") from None


def to_choice(name: str, text: str) -> str:
    """Return which writers take part; raise ValueError."""
    if text not in CHOICES:
        raise ValueError(f"{name} is {text!r:.60}, expected one of {', '.join(CHOICES)}")
    return text


def together(
    hooks: Mapping[str, str], hook_when: str, texts: Mapping[str, str], folder: str, limits: Mapping[str, float]
) -> tuple[WriterConfig, ...]:
    """Return all writers, in their order and with their limits.

    `hooks` has the paths of the hooks by type, `texts` the text of each file by the writer's name, `limits` the limits
    of writers that have none of their own. Raises BadWriter.
    """
    found = [WriterConfig(kind, kind, path=path, when=Step(hook_when)) for kind, path in hooks.items() if path]
    found += [parse(name, text, f"{folder}/{name}.conf") for name, text in texts.items()]
    for index, writer in enumerate(found):
        unset: dict[str, Any] = {name: limit for name, limit in limits.items() if getattr(writer, name) < 0}
        found[index] = replace(writer, **unset)
    return ordered(tuple(found))

"""Prints the manual page of virtagentd or virtagent-qemu-ga as roff, made of the tables of their options.

Run by the packages' builds, which install the pages as virtagentd(8) and virtagent-qemu-ga(8).
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
if "virtagent" not in sys.modules:
    sys.modules["virtagent"] = types.ModuleType("virtagent")
    sys.modules["virtagent"].__path__ = [str(TREE)]

from virtagent.supervisor import config, ga_options  # noqa: E402

WHAT = {
    "virtagentd": "guest agent that freezes and thaws file systems",
    "virtagent-qemu-ga": "guest agent in place of qemu-ga",
}
MORE = {
    "virtagentd": (
        "It lets the host freeze the file systems of this guest for a consistent snapshot, and never leaves them "
        "frozen. Options also stand in a file, one a line without the dashes; the command line wins. A bad option ends "
        "the start with exit code 2."
    ),
    "virtagent-qemu-ga": (
        "virtagentd with the command line and the key file of qemu-ga. What else virtagentd offers is read from its "
        "own file. The exit code is 1 where qemu-ga would refuse, 2 where only virtagentd does."
    ),
}
FILES = {
    "virtagentd": (config.CONFIG_FILE,),
    "virtagent-qemu-ga": (ga_options.CONF, config.CONFIG_FILE),
}


def page(program: str) -> Iterator[str]:
    """Yield the lines of the page."""
    yield f'.TH {program.upper()} 8 "" "virtagent" "System Administration"'
    yield ".SH NAME"
    yield plain(f"{program} - {WHAT[program]}")
    yield ".SH SYNOPSIS"
    yield f".B {plain(program)}"
    yield "[OPTION]..."
    yield ".SH DESCRIPTION"
    yield plain(MORE[program])
    yield ".SH OPTIONS"
    for names, text in options(program):
        yield ".TP"
        yield f".B {plain(names)}"
        yield plain(text)
    yield ".SH FILES"
    for path in FILES[program]:
        yield ".TP"
        yield f".I {plain(path)}"
        yield "options"
    yield ".SH SEE ALSO"
    yield "The pages in docs/ of this package's documentation: install.md, configuration.md, operations.md, qga.md."


def options(program: str) -> Iterator[tuple[str, str]]:
    """Yield the names of each option with its argument, and what it does."""
    if program == "virtagentd":
        for action in config.parser()._actions:
            shown = f" {action.metavar}" if action.metavar and action.nargs != 0 else ""
            yield f"{', '.join(action.option_strings)}{shown}", (action.help or "").replace("%%", "%")
        return
    for option in ga_options.OPTIONS:
        letter = f"-{option.letter}, " if len(option.letter) == 1 else ""
        argument = {"no": "", "yes": " ARGUMENT", "may": "[=ARGUMENT]"}[option.argument]
        yield f"{letter}--{option.word}{argument}", option.help or "as the option before"


def plain(words: str) -> str:
    """Escape what roff would not treat as text."""
    words = words.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{words}" if words.startswith((".", "'")) else words


def main() -> int:
    """Print the page that the command line names."""
    asked = argparse.ArgumentParser()
    asked.add_argument("program", choices=sorted(WHAT))
    sys.stdout.write("\n".join(page(asked.parse_args().program)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

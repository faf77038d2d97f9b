"""virtagentctl's manual page, made from the parser: docs/virtagentctl.1, which scripts/docs keeps current."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from .options import DESCRIPTION, EXIT_CODES, PROG, URLS, commands_of, options_of


def page(top: argparse.ArgumentParser) -> str:
    """Return the page as roff."""
    return "\n".join(_page(top)) + "\n"


def _page(top: argparse.ArgumentParser) -> Iterator[str]:
    commands = commands_of(top)
    yield '.\\" Made by scripts/docs from host/options.py. Do not edit.'
    yield f'.TH {PROG.upper()} 1 "" "virtagent" "User Commands"'
    yield ".SH NAME"
    yield plain(f"{PROG} - freeze and thaw a guest's file systems, and take snapshots meanwhile")
    yield ".SH SYNOPSIS"
    yield f".B {PROG}"
    yield plain("[--agent URL]... [--json] [--timeout S] COMMAND [ARGUMENT]...")
    yield ".SH DESCRIPTION"
    yield plain(DESCRIPTION)
    yield plain(
        "On a terminal, and with rich installed, it draws; else it prints plain lines. With --json it prints JSON."
    )
    yield ".SH OPTIONS"
    yield plain("These may stand before and after the command.")
    shared = {action.dest for action in options_of(top)}
    yield from option_lines(options_of(top))
    yield ".SH COMMANDS"
    for name, one in commands.items():
        arguments = " ".join(_argument(action) for action in options_of(one) if not action.option_strings)
        arguments = f"-- {arguments}" if name == "snapshot" else arguments
        yield ".SS " + plain(f"{name} {arguments}".strip())
        yield plain(one.description or "")
        more = [a for a in options_of(one) if a.dest not in shared or (a.dest == "timeout" and name == "snapshot")]
        yield from option_lines(more)
        if one.epilog:
            yield ".PP"
            yield plain(one.epilog)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield ".TP"
        yield f".B {code}"
        yield plain(meaning)
    yield ".SH URLS"
    for form, where in URLS:
        yield ".TP"
        yield f".B {plain(form)}"
        yield plain(where)
    yield ".SH ENVIRONMENT"
    yield ".TP"
    yield ".B VIRTAGENT_AGENT"
    yield plain("The agent's URL, unless --agent names one.")
    yield ".SH SEE ALSO"
    yield plain(
        "/opt/virtagent/current/doc/host.md, or docs/host.md of the sources: recipes, "
        "and the library that does the same."
    )


def option_lines(actions: Sequence[argparse.Action]) -> Iterator[str]:
    """Yield the lines of the options of a parser."""
    for action in actions:
        yield ".TP"
        names = ", ".join(action.option_strings)
        yield ".B " + plain(" ".join(filter(None, [names, _argument(action)])))
        yield plain(action.help or "")


def _argument(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    shown = str(action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest))
    return {"+": f"{shown}...", "*": f"[{shown}]..."}.get(str(action.nargs), shown)


def plain(words: str) -> str:
    """Escape what roff would not treat as text."""
    words = words.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{words}" if words.startswith((".", "'")) else words

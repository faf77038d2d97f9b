"""The daemon's manual pages, from the tables of options: virtagentd(8), virtagent-qemu-ga(8) and virtagentd.conf(5)."""

from __future__ import annotations

from collections.abc import Iterator

from virtagent.host.manual import option_lines, plain
from virtagent.supervisor import config, ga_options

_FILES = (
    (config.CONFIG_FILE, "the configuration, virtagentd.conf(5)"),
    ("/run/virtagent", "the state folder: the journal of a freeze, and the default socket virtagentd.sock"),
)
_SIGNALS = (
    ("SIGTERM, SIGINT", "Thaw, answer who waits, end with 0."),
    ("SIGHUP", "Read the configuration file again; refused while not THAWED."),
    ("SIGUSR1", "Write the status record to the log, as JSON on one line."),
)
_DAEMON = (
    "The guest agent. It runs as root inside a virtual machine; the host asks it to freeze the guest's file "
    "systems and to thaw them. It answers at all times, limits every freeze, and thaws whatever dies. A "
    "supervisor process handles the channels and forks a worker for each long call; ps shows what each is doing."
)
_FILE = (
    f"{config.CONFIG_FILE} has one option a line, `name value` or `name = value`; the value is the rest of the "
    "line, without quotes. A line that begins with # is a comment. An option that is repeatable has a line for "
    "each value. A flag stands alone or with yes, no, true or false. The command line wins, option by option. A "
    "line that is no option ends the start with 2 and a sentence that names file and line."
)
_GA = (
    "Takes the command line and the key file of qemu-ga, and serves the same commands, so that it can be "
    "installed in its place. What qemu-ga has no option for is read from virtagentd.conf(5)."
)
_STATUS = (
    (0, "ended as asked"),
    (1, "cannot serve: a channel, the state folder or another daemon is in the way"),
    (2, "usage: a bad option or value; one sentence says which"),
)


def virtagentd() -> str:
    """Return virtagentd(8) as roff."""
    lines = [
        _made("supervisor/config.py"),
        *_head("virtagentd", 8, "freeze and thaw a guest's file systems for consistent snapshots", "[options]"),
        plain(_DAEMON),
        ".SH OPTIONS",
        plain("The same options, without the dashes, may stand in the configuration file; the command line wins."),
        plain(
            f"These may be repeated: {', '.join(f'--{name}' for name, one in config.OPTIONS.items() if one.repeats)}."
        ),
        *option_lines([action for action in config.parser()._actions if action.option_strings]),
        *_table("SIGNALS", _SIGNALS),
        *_table("EXIT STATUS", _STATUS),
        *_table("FILES", _FILES),
    ]
    return "\n".join([*lines, *_see("virtagentd.conf(5), virtagentctl(1)")]) + "\n"


def virtagentd_conf() -> str:
    """Return virtagentd.conf(5) as roff."""
    lines = [
        _made("supervisor/config.py"),
        *_head("virtagentd.conf", 5, "configuration of virtagentd", ""),
        plain(_FILE),
        ".SH OPTIONS",
    ]
    for name, option in config.OPTIONS.items():
        value = getattr(config.Config(), name.replace("-", "_"))
        known = (
            " ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
        )
        default = f" Default: {known}." if known else ""
        repeats = " May be repeated." if option.repeats else ""
        lines += [
            ".TP",
            f".B {plain(name)} {plain(option.metavar)}",
            plain(f"{_sentence(option.help)}{repeats}{default}"),
        ]
    for name, text in config._FLAGS.items():
        lines += [".TP", f".B {plain(name)}", plain(_sentence(text))]
    lines += [
        ".SH EXAMPLE",
        ".nf",
        plain("include /srv/*"),
        plain("exclude /srv/scratch"),
        plain("hold-limit = 30"),
        ".fi",
    ]
    return "\n".join([*lines, *_see("virtagentd(8)")]) + "\n"


def qemu_ga() -> str:
    """Return virtagent-qemu-ga(8) as roff."""
    lines = [
        _made("supervisor/ga_options.py"),
        *_head("virtagent-qemu-ga", 8, "virtagentd with the command line of qemu-ga", "[options]"),
        plain(_GA),
        ".SH OPTIONS",
    ]
    for option in ga_options.OPTIONS:
        if option.help:
            argument = {"yes": " ARG", "may": "[ARG]", "no": ""}[option.argument]
            both = f"-{option.letter}{argument}, --{option.word}"
            lines += [
                ".TP",
                f".B {plain(both if len(option.letter) == 1 else f'--{option.word}{argument}')}",
                plain(_sentence(option.help)),
            ]
    lines += [*_table("FILES", ((ga_options.CONF, "the key file, unless -c or QGA_CONF names another"), *_FILES))]
    return "\n".join([*lines, *_see("virtagentd(8), virtagentd.conf(5), virtagentctl(1)")]) + "\n"


def _made(source: str) -> str:
    return f'.\\" Made by scripts/docs from {source}. Do not edit.'


def _head(name: str, section: int, summary: str, synopsis: str) -> list[str]:
    kind = "File Formats" if section == 5 else "System Administration"
    head = [f'.TH {name.upper()} {section} "" "virtagent" "{kind}"', ".SH NAME", plain(f"{name} - {summary}")]
    if synopsis:
        head += [".SH SYNOPSIS", f".B {plain(name)}", plain(synopsis)]
    return [*head, ".SH DESCRIPTION"]


def _table(title: str, rows: tuple[tuple[object, str], ...]) -> Iterator[str]:
    yield f".SH {title}"
    for name, meaning in rows:
        yield ".TP"
        yield f".B {plain(str(name))}"
        yield plain(meaning)


def _see(pages: str) -> list[str]:
    return [".SH SEE ALSO", plain(pages)]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

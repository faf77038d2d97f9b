"""The command line and the key file of qemu-ga: reading them, and printing -D."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..agent.api import qemu
from ..agent.api.structs import Value, replace
from .key_file import BadKeyFile, form, parse, text_of, truth_of

CONF = "/etc/qemu/qemu-ga.conf"
STATE = "/var/run"
HOOK = "/etc/qemu/fsfreeze-hook"
METHODS = {"virtio-serial": "virtio", "isa-serial": "serial", "unix-listen": "unix", "vsock-listen": "vsock"}
PATHS = {"virtio-serial": "/dev/virtio-ports/org.qemu.guest_agent.0", "isa-serial": "/dev/ttyS0"}


class BadUsage(Exception):
    """What qemu-ga would refuse; one sentence. `options`: the words cannot be read as options at all."""

    def __init__(self, text: str, *, options: bool = False) -> None:
        super().__init__(text)
        self.options = options


class Option(NamedTuple):
    """One option: its letter, its long name, and whether it takes an argument ("no", "yes", "may").

    One that only we have has its name for a letter, which no command line can give as one.
    """

    letter: str
    word: str
    argument: str
    help: str = ""


OPTIONS = (
    Option("m", "method", "yes", f"one of {', '.join(METHODS)} (default virtio-serial)"),
    Option("p", "path", "yes", "path of the device or socket; CID:PORT for vsock-listen"),
    Option("l", "logfile", "yes", "append the log to this file, through a process of its own (default stderr)"),
    Option("f", "pidfile", "yes", "pid file of a daemon (default /var/run/qemu-ga.pid)"),
    Option("F", "fsfreeze-hook", "may", f"program to call around a freeze (default {HOOK}; /dev/null: none)"),
    Option("t", "statedir", "yes", f"keep state in DIR/virtagent; on a disk: in a tmpfs instead (default {STATE})"),
    Option("v", "verbose", "no", "log more"),
    Option("V", "version", "no", "print the version and end"),
    Option("d", "daemonize", "no", "become a daemon"),
    Option("b", "block-rpcs", "yes", 'commands to refuse, a comma between two; "help" lists all'),
    Option("b", "blacklist", "yes"),
    Option("a", "allow-rpcs", "yes", "the only commands to admit; what is blocked, too, is refused"),
    Option("D", "dump-conf", "no", "print the configuration as a key file and end"),
    Option("c", "config", "yes", f"key file to read first (default QGA_CONF, else {CONF})"),
    Option("r", "retry-path", "no", "has no effect: a port that is not there is always waited for"),
    Option("h", "help", "no", "print this and end"),
    Option("qga-version", "qga-version", "yes", f"be this qemu-ga to hosts and to -V and -D (default {qemu.NEWEST})"),
)


_ENDS = {"V": "version", "h": "help"}
_TEXTS = {"m": "method", "p": "path", "l": "logfile", "f": "pidfile", "t": "statedir", "F": "hook"}
_TEXTS |= {"qga-version": "qga_version"}
_FLAGS = {"d": "daemon", "v": "verbose", "r": "retry"}
_KEYS = {"hook": "fsfreeze-hook", "retry": "retry-path", "qga_version": "qga-version"}


class Settings(Value):
    """The values of qemu-ga's options and key file."""

    daemon: bool = False
    method: str | None = None
    path: str | None = None
    logfile: str | None = None
    pidfile: str = "/var/run/qemu-ga.pid"
    hook: str | None = None
    statedir: str = STATE
    verbose: bool = False
    retry: bool = False
    block: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    qga_version: str = ""

    def dump(self, version: str) -> str:
        """Return the key file that the qemu-ga of this version prints for these settings."""
        values: dict[str, str | bool] = {"daemon": self.daemon}
        some = (("method", self.method), ("path", self.path), ("logfile", self.logfile))
        values |= {key: value for key, value in some if value is not None}
        values["pidfile"] = self.pidfile
        values |= {} if self.hook is None else {"fsfreeze-hook": self.hook}
        values |= {"statedir": self.statedir, "verbose": self.verbose, "retry-path": self.retry}
        values["block-rpcs"] = ",".join(self.block)
        if self.allow or qemu.version(version) >= qemu.BOTH_LISTS:
            values["allow-rpcs"] = ",".join(self.allow)
        return form("general", values)


def scan(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield letter and argument of each option, as getopt_long(3) reads them; other words are ignored.

    Raises BadUsage at the first wrong one.
    """
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = _by_word(name)
            if equals and option.argument == "no":
                raise BadUsage(f"option '--{option.word}' doesn't allow an argument", options=True)
            if option.argument == "may" and not equals:
                value = HOOK
            if option.argument == "yes" and not equals:
                value = _argument(left, f"option '--{option.word}' requires an argument")
            yield option.letter, value
        elif word.startswith("-") and word != "-":
            cluster = word[1:]
            while cluster:
                letter, cluster = cluster[0], cluster[1:]
                option = _by_letter(letter)
                value = ""
                if option.argument != "no":
                    value, cluster = cluster, ""
                if option.argument == "may":
                    value = value or HOOK
                if option.argument == "yes" and not value:
                    value = _argument(left, f"option requires an argument -- '{letter}'")
                yield letter, value


def _by_word(name: str) -> Option:
    exact = [option for option in OPTIONS if option.word == name]
    begun = exact or [option for option in OPTIONS if option.word.startswith(name)]
    if not begun:
        raise BadUsage(f"unrecognized option '--{name}'", options=True)
    if len({option.letter for option in begun}) > 1:
        raise BadUsage(f"option '--{name}' is ambiguous", options=True)
    return begun[0]


def _by_letter(letter: str) -> Option:
    for option in OPTIONS:
        if option.letter == letter:
            return option
    raise BadUsage(f"invalid option -- '{letter}'", options=True)


def _argument(left: list[str], missing: str) -> str:
    if not left:
        raise BadUsage(missing, options=True)
    return left.pop(0)


def items(text: str) -> tuple[str, ...]:
    """Return the items of a list in qemu-ga's order: the last one first."""
    return tuple(text.split(",")[::-1]) if text else ()


def read_conf(settings: Settings, data: bytes) -> Settings:
    """Return the settings with those of a key file; raise BadKeyFile."""
    raw = parse(data).get("general", {})
    changed: dict[str, Any] = {}
    for name in _TEXTS.values():
        key = _KEYS.get(name, name)
        if key in raw:
            changed[name] = text_of(key, raw[key])
    for name in _FLAGS.values():
        key = _KEYS.get(name, name)
        if key in raw:
            changed[name] = truth_of(key, raw[key])
    lists = {key: items(text_of(key, raw[key])) for key in ("block-rpcs", "blacklist", "allow-rpcs") if key in raw}
    changed["block"] = lists.get("blacklist", lists.get("block-rpcs", ()))
    changed["allow"] = lists.get("allow-rpcs", ())
    return replace(settings, **changed)


def load(words: Sequence[str], environment: Mapping[str, str]) -> tuple[Settings, str]:
    """Return the settings, and what to print instead of serving: version, help, rpcs, dump, or "".

    Raises BadUsage.
    """
    given: list[tuple[str, str]] = []
    wrong: BadUsage | None = None
    try:
        given.extend(scan(words))
    except BadUsage as error:
        wrong = error  # an earlier option may end the run first, and the file is read before all
    named = [value for letter, value in given if letter == "c"]
    settings = _read_file(named[-1] if named else environment.get("QGA_CONF") or CONF, needed=bool(named))
    for value in [settings.qga_version, *(value for letter, value in given if letter == "qga-version")]:
        settings = replace(settings, qga_version=_known(value))  # first, since -V is answered where it stands
    asked = ""
    for letter, value in given:
        if letter in _ENDS or (letter in "ab" and value in ("help", "?")):
            return settings, _ENDS.get(letter, "rpcs")
        asked = asked or ("dump" if letter == "D" else "")
        settings = _take(settings, letter, value)
    if wrong is not None:
        raise wrong
    method = "virtio-serial" if settings.method is None else settings.method
    path = PATHS.get(method) if settings.path is None else settings.path
    if path is None:
        raise BadUsage("must specify a path for this channel")
    return replace(settings, method=method, path=path), asked


def _read_file(path: str, *, needed: bool) -> Settings:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadUsage(f"error loading configuration from path: {path}, Not a regular file")
        with open(path, "rb") as file:
            return read_conf(Settings(), file.read())
    except FileNotFoundError as error:
        if needed:
            raise BadUsage(f"error loading configuration from path: {path}, {error.strerror}") from None
        return Settings()
    except OSError as error:
        raise BadUsage(f"error loading configuration from path: {path}, {error.strerror}") from None
    except BadKeyFile as error:
        raise BadUsage(f"error loading configuration from path: {path}, {error}") from None


def _known(version: str) -> str:
    try:
        if version:
            qemu.version(version)
    except ValueError as error:
        raise BadUsage(f"qga-version is {error}") from None
    return version


def _take(settings: Settings, letter: str, value: str) -> Settings:
    if letter == "b":
        return replace(settings, block=settings.block + items(value))
    if letter == "a":
        return replace(settings, allow=settings.allow + items(value))
    changed: dict[str, Any] = {_TEXTS[letter]: value} if letter in _TEXTS else {}
    changed |= {_FLAGS[letter]: True} if letter in _FLAGS else {}
    return replace(settings, **changed)


def usage() -> str:
    """Return the text of --help."""
    lines = [
        "usage: virtagent-qemu-ga [-m METHOD -p PATH] [OPTION]...",
        "",
        "virtagentd with the options of qemu-ga.",
        "",
    ]
    for option in OPTIONS:
        if option.help:
            letter = f"-{option.letter}, " if len(option.letter) == 1 else ""
            lines.append(f"  {f'{letter}--{option.word}':<22} {option.help}")
    lines += ["", "What else virtagentd offers is read from its own file, which VIRTAGENT_CONF may name."]
    return "\n".join(lines) + "\n"

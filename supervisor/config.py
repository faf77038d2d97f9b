"""The daemon's options: one table for the command line, the configuration file and docs/configuration.md."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ..agent.api import qemu
from ..agent.api.methods import RPCS, allows
from ..agent.api.structs import Value, replace
from ..agent.api.writers import BadWriter, Step, WriterConfig
from ..agent.worker.writers import config as writer_files
from . import convert, taking_part

CONFIG_FILE = "/etc/virtagent/virtagentd.conf"
STATE_DIR = "/run/virtagent"


class BadConfig(Exception):
    """An option or value is wrong; one sentence names it."""


class Config(Value):
    """The values of the daemon's options. Times are in seconds, where 0 means no limit; sizes are in bytes."""

    channel: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strict: bool = False
    partial: bool = False
    vsock_any: bool = False
    plan_limit: float = 5
    sync_limit: float = 600
    freeze_limit: float = 30
    hold_limit: float = 60
    hold_limit_max: float = 600
    guest_hold_limit: float = 300
    thaw_limit: float = 10
    prepare_limit: float = 60
    quiesce_limit: float = 10
    confirm_limit: float = 2
    release_limit: float = 10
    hook: str = ""
    hook_dir: str = ""
    hook_when: str = Step.QUIESCE.value
    writers: str = "all"
    writers_dir: str = taking_part.FOLDER
    news_limit: float = 60
    patience: float = 1
    busy_wait: float = 2
    sync_requests: int = 0
    exec_limit: float = 86400
    exit_grace: float = 1
    kill_grace: float = 1
    state_dir: str = STATE_DIR
    allow_rpcs: tuple[str, ...] = ()
    block_rpcs: tuple[str, ...] = ()
    log_level: str = "info"
    qga_version: str = qemu.NEWEST
    max_workers: int = 8
    max_clients: int = 16
    max_header: int = 4096
    max_body: int = 2 << 20
    max_nesting: int = 64
    message_age: float = 30
    audit_ring: int = 4096
    shutdown_command: tuple[str, ...] = ("/sbin/shutdown",)
    log_target: str = "stderr"
    file: str = CONFIG_FILE
    file_needed: bool = False
    every_writer: tuple[WriterConfig, ...] = ()
    notes: tuple[str, ...] = ()
    given: tuple[tuple[str, tuple[str, ...]], ...] = ()
    in_file: frozenset[str] = frozenset()
    """The names of the options that the file has, and the command line has not."""

    @property
    def latches(self) -> str:
        """The folder in memory with the records of what writers have set."""
        return f"{self.state_dir}/writers"

    @property
    def queues(self) -> str:
        """The folder in memory with the record of how long the request queues of disks were before a sync."""
        return f"{self.state_dir}/queues"

    def allows(self, rpc: str) -> bool:
        """Return whether the configuration lets a host call this RPC, by this name."""
        return allows(RPCS[rpc], self.allow_rpcs, self.block_rpcs)


class Option(Value):
    """One option: how to make its value from text (or raise ValueError), and what the help says."""

    convert: Callable[[str, str], Any]
    metavar: str
    help: str
    repeats: bool = False
    bare: str | None = None
    """The text that it has if it is given without a value."""


OPTIONS: Mapping[str, Option] = {
    "channel": Option(
        convert.to_channel,
        "SPEC",
        "serve hosts here: unix:PATH (default unix:STATE-DIR/virtagentd.sock), vsock:PORT, virtio[:PATH], serial:PATH",
        repeats=True,
    ),
    "include": Option(
        convert.to_text,
        "GLOB",
        "freeze only file systems that match: a mount point, type:GLOB or dev:PATH",
        repeats=True,
    ),
    "exclude": Option(convert.to_text, "GLOB", "never freeze file systems that match", repeats=True),
    "plan-limit": Option(convert.to_over_zero, "S", "limit of the plan phase"),
    "sync-limit": Option(convert.to_limit, "S", "limit of the sync phase, and the most that a request may ask for"),
    "freeze-limit": Option(convert.to_limit, "S", "limit of the freeze phase, and the most that a request may ask for"),
    "hold-limit": Option(convert.to_limit, "S", "how long a freeze is held unless the request says otherwise"),
    "hold-limit-max": Option(convert.to_limit, "S", "the longest hold that a request may ask for"),
    "guest-hold-limit": Option(
        convert.to_limit, "S", "how long a freeze by guest-fsfreeze-* is held; as default at most hold-limit-max"
    ),
    "thaw-limit": Option(convert.to_over_zero, "S", "limit of one attempt to thaw"),
    "prepare-limit": Option(convert.to_over_zero, "S", "limit in which writers prepare: connect, check, flush"),
    "quiesce-limit": Option(convert.to_over_zero, "S", "limit in which writers hold their applications' writes"),
    "confirm-limit": Option(convert.to_over_zero, "S", "limit in which writers prove that they held over the freeze"),
    "release-limit": Option(convert.to_over_zero, "S", "limit in which writers let their applications go"),
    "hook": Option(
        taking_part.to_hook,
        "PATH",
        "call this program with freeze before the file systems freeze and with thaw after they are thawed; "
        f"/dev/null for none; without a value {taking_part.HOOKS[0]}, or {taking_part.HOOKS[1]} where only that is",
        bare=taking_part.HOOK,
    ),
    "hook-dir": Option(
        taking_part.to_hook,
        "DIR",
        "call the programs of this folder as --hook does, in the order of their names and back",
    ),
    "hook-when": Option(
        taking_part.to_when, "WHEN", "quiesce: call the hooks after the sync, right before the freeze; prepare: before"
    ),
    "writers": Option(
        taking_part.to_choice, "WHICH", "all: as configured; try: freeze without those that refuse; none: also no hooks"
    ),
    "writers-dir": Option(convert.to_absolute, "DIR", "the files NAME.conf of this folder describe writers"),
    "news-limit": Option(
        convert.to_limit,
        "S",
        "how long after it was first told a broken freeze is told again to every thaw; 0: until the next freeze",
    ),
    "patience": Option(
        convert.to_limit, "S", "how long a file system that is slow to freeze may make others stand still"
    ),
    "busy-wait": Option(convert.to_limit, "S", "how long to try to freeze what someone else has frozen"),
    "sync-requests": Option(
        convert.to_requests,
        "N",
        "while syncing, let at most so many requests queue up at a disk, from 4 to 128; 0: as many as always",
    ),
    "exec-limit": Option(
        convert.to_limit, "S", "how long a program of guest-exec may run; then SIGTERM, 10 s later SIGKILL"
    ),
    "exit-grace": Option(convert.to_over_zero, "S", "how long a worker may live after its report"),
    "kill-grace": Option(convert.to_over_zero, "S", "how long after SIGKILL a worker is called stuck"),
    "state-dir": Option(convert.to_absolute, "DIR", "journal and default socket; must be on tmpfs"),
    "allow-rpcs": Option(convert.to_rpcs, "A,B", "admit only these RPCs"),
    "block-rpcs": Option(convert.to_rpcs, "A,B", "refuse these RPCs"),
    "log-level": Option(convert.to_level, "L", f"one of {', '.join(convert.LEVELS)}"),
    "log-target": Option(convert.to_target, "T", f"{', '.join(convert.TARGETS)} or file:PATH"),
    "qga-version": Option(convert.to_qga_version, "V", "the qemu-ga that hosts are told, with its commands and texts"),
    "max-workers": Option(convert.to_count, "N", "workers at once"),
    "max-clients": Option(convert.to_count, "N", "clients a listening channel"),
    "max-header": Option(convert.to_count, "BYTES", "longest request header"),
    "max-body": Option(convert.to_count, "BYTES", "longest request body"),
    "max-nesting": Option(convert.to_depth, "N", "deepest nesting in a request"),
    "message-age": Option(convert.to_over_zero, "S", "how old half a message may grow"),
    "audit-ring": Option(convert.to_count, "N", "audit records kept while frozen"),
    "shutdown-command": Option(
        convert.to_command, "COMMAND", "program that va.shutdown runs with -H, -P or -r and now"
    ),
}
BESIDE = "block-rpcs, too"
"""Stands in `Config.given` for what qemu-ga's options block."""
_WRITER_LIMITS = ("prepare_limit", "quiesce_limit", "confirm_limit", "release_limit")
FIXED = ("channel", "vsock_any", "state_dir", "log_target", "writers_dir")
"""The options that change only with a restart."""
_FLAGS = {
    "strict": "a file system that cannot be frozen is an error",
    "partial": "a file system that cannot be synced or frozen is left out, the others are frozen",
    "vsock-any": "let every CID connect to vsock channels, not only the host's",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadConfig(message)


def parser() -> argparse.ArgumentParser:
    """Return the parser of virtagentd's command line; it raises BadConfig."""
    made = _Parser(
        prog="virtagentd", description="Guest agent that freezes and thaws file systems.", allow_abbrev=False
    )
    for name, option in OPTIONS.items():
        shown = getattr(Config(), name.replace("-", "_"))
        default = (
            ""
            if option.repeats or shown in ((), "")
            else f" (default {shown if isinstance(shown, str | int | float) else ' '.join(shown)})"
        )
        bare: dict[str, Any] = {} if option.bare is None else {"nargs": "?", "const": option.bare}
        made.add_argument(f"--{name}", metavar=option.metavar, action="append", help=option.help + default, **bare)
    for name, text in _FLAGS.items():
        made.add_argument(f"--{name}", action="store_true", help=text)
    made.add_argument("--config", metavar="FILE", help=f"options, one a line (default {CONFIG_FILE}, if it is there)")
    made.add_argument("--recover", action="store_true", help="thaw what the journal names, then exit")
    made.add_argument("--plan", action="store_true", help="print what a freeze would do, then exit")
    made.add_argument("--version", action="store_true", help="print the version, then exit")
    return made


def read_file(text: str, path: str) -> dict[str, list[str]]:
    """Return the options of a configuration file: a line is `name value` or `name = value`, or a comment after #.

    Raises BadConfig that names file and line.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, _, value = re.sub(r"\s*=\s*|\s+", "\0", stripped, count=1).partition("\0")
        name = name.removeprefix("--")
        if not value and name in OPTIONS and not stripped.endswith("="):
            value = OPTIONS[name].bare or ""
        if name in _FLAGS and value in ("", "yes", "true", "no", "false"):
            found[name] = [value]
        elif name in OPTIONS and value:
            if name in found and not OPTIONS[name].repeats:
                raise BadConfig(f"{path} line {number}: {name} stands there for the second time")
            try:
                OPTIONS[name].convert(name, value)
            except ValueError as error:
                raise BadConfig(f"{path} line {number}: {error}") from None
            found.setdefault(name, []).append(value)
        elif name in OPTIONS or name in _FLAGS:
            raise BadConfig(f"{path} line {number}: {name} has {'no value' if not value else f'value {value!r:.60}'}")
        else:
            raise BadConfig(f"{path} line {number}: there is no option {name!r:.60}")
    return found


def build(
    given: Mapping[str, Sequence[str]],
    from_file: Mapping[str, Sequence[str]],
    file: tuple[str, bool] = (CONFIG_FILE, False),
    writers: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration; options `given` on the command line override the file. Raises BadConfig.

    What is given by the name of BESIDE counts beside what the file blocks, also when that is read again.
    `file` is the path of the file, and whether the file must exist. `writers` has the text of each writer's file; None
    reads them.
    """
    values: dict[str, Any] = {"file": file[0], "file_needed": file[1]}
    values["in_file"] = frozenset(from_file.keys() - given.keys())
    values["given"] = tuple((name, tuple(texts)) for name, texts in given.items())
    for name, option in OPTIONS.items():
        texts = given.get(name) or from_file.get(name)
        if name == "block-rpcs" and BESIDE in given:
            texts = [",".join([*given[BESIDE], *(texts or ())])]
        if not texts:
            continue
        try:
            converted = [option.convert(name, text) for text in texts]
        except ValueError as error:
            raise BadConfig(str(error)) from None
        values[name.replace("-", "_")] = tuple(converted) if option.repeats else converted[-1]
    for name in _FLAGS:
        texts = given.get(name) or from_file.get(name)
        values[name.replace("-", "_")] = texts is not None and texts[-1] not in ("no", "false")
    config = Config(**values)
    most = config.hold_limit_max
    if "guest_hold_limit" not in values:
        values["guest_hold_limit"] = min(config.guest_hold_limit, most or math.inf)
        config = replace(config, guest_hold_limit=values["guest_hold_limit"])
        if "hold_limit" in values:
            kept = f"guest-fsfreeze-freeze and -freeze-list have guest-hold-limit, {config.guest_hold_limit:g} s"
            values["notes"] = (f"hold-limit is for va.fsfreeze: {kept}",)
    for name, limit in (("hold-limit", config.hold_limit), ("guest-hold-limit", config.guest_hold_limit)):
        if most and not 0 < limit <= most:
            raise BadConfig(f"{name} is {limit:g}, expected over 0 and at most hold-limit-max, {most:g}")
    if config.strict and config.partial:
        raise BadConfig("strict and partial contradict each other")
    for spec in config.channel:
        if config.channel.count(spec) > 1:
            raise BadConfig(f"channel {spec} is given twice")
    if not config.channel:
        values["channel"] = (f"unix:{config.state_dir}/virtagentd.sock",)
    whole = Config(**values)
    try:
        found = writer_files.read_folder(whole.writers_dir) if writers is None else writers
        limits = {name: getattr(whole, name) for name in _WRITER_LIMITS}
        hooks = {"hook": whole.hook, "hook-dir": whole.hook_dir}
        every = taking_part.together(hooks, whole.hook_when, found, whole.writers_dir, limits)
        return replace(whole, every_writer=every)
    except BadWriter as error:
        raise BadConfig(str(error)) from None


def reread(config: Config, text: str, writers: Mapping[str, str]) -> tuple[Config, list[str]]:
    """Return the configuration with the files' new texts, and the changed options that need a restart."""
    fresh = build(dict(config.given), read_file(text, config.file), (config.file, config.file_needed), writers)
    unchanged = [name for name in FIXED if getattr(fresh, name) != getattr(config, name)]
    return replace(fresh, **{name: getattr(config, name) for name in FIXED}), unchanged


def load(arguments: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Return the configuration of the command line and the file that it names; raise BadConfig."""
    namespace = parser().parse_args(arguments)
    given = {name: value for name, value in ((n, getattr(namespace, n.replace("-", "_"))) for n in OPTIONS) if value}
    given |= {name: [""] for name in _FLAGS if getattr(namespace, name.replace("-", "_"))}
    if namespace.plan and namespace.recover:
        raise BadConfig("--plan and --recover cannot be asked at once")
    path = namespace.config or CONFIG_FILE
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            from_file = read_file(file.read(), path)
            there = True
    except FileNotFoundError as error:
        if namespace.config:
            raise BadConfig(f"config {path}: {error.strerror}") from None
        from_file, there = {}, False
    except OSError as error:
        raise BadConfig(f"config {path}: {error.strerror}") from None
    return build(given, from_file, (os.path.abspath(path), there)), namespace


assert set(Config.__match_args__) - {"file", "file_needed", "given", "in_file", "notes", "every_writer"} == {
    name.replace("-", "_") for name in (*OPTIONS, *_FLAGS)
}

"""virtagentd: options, wiring, and what is done before the loop begins and may block."""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Sequence

from ..agent import __version__, kernel, sysfs
from ..agent.errors import Fault
from ..agent.mounts import Plan, Rules
from ..agent.text import printable
from . import journal, process
from .channel import Listener
from .config import BadConfig, Config, load
from .core import Core
from .events import JournalFound, Woken
from .log import Log
from .loop import Loop

OOM_SCORE = -900  # killed last, but not never: a leak of ours must not take the guest down (proc(5), oom_score_adj)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run virtagentd; return its exit code: 0 stopped by a signal, 1 it could not start, 2 a bad option or value."""
    try:
        config, asked = load(sys.argv[1:] if arguments is None else arguments)
    except BadConfig as error:
        return _say(str(error), 2)
    if asked.version:
        sys.stdout.write(f"virtagentd {__version__}\n")
        return 0
    if asked.plan:
        return print_plan(config)
    return serve(config, process.System())


def print_plan(config: Config) -> int:
    """Print what a freeze would do; return the exit code."""
    try:
        plan = sysfs.read_plan(Rules(config.include, config.exclude))
    except Fault as fault:
        return _say(str(fault), 1)
    sys.stdout.write(describe(plan))
    return 0


def describe(plan: Plan) -> str:
    """Return the plan as lines: what is frozen, level by level, then what is left out and why."""
    lines = [f"{len(plan.mounts)} file systems would be frozen:"]
    for mount in plan.mounts:
        also = f", also at {', '.join(mount.aliases)}" if mount.aliases else ""
        lines.append(f"  level {mount.level}  {mount.mountpoint} ({mount.fstype}, {mount.device}){also}")
    lines.append(f"{len(plan.left_out)} are left out:")
    lines += [f"  {left.reason:<12}  {left.mountpoint} ({left.fstype}, {left.device})" for left in plan.left_out]
    return "\n".join(map(printable, lines)) + "\n"


def serve(config: Config, processes: process.Processes) -> int:
    """Take the state directory, open the channels, recover from the journal, and serve; return the exit code."""
    sys.dont_write_bytecode = True
    log = Log(2, config.log_level, prefixed="JOURNAL_STREAM" in os.environ)
    os.chdir("/")
    time.localtime()  # reads /etc/localtime, once
    try:
        kept = journal.Journal(config.state_dir)
        found = _found(kept, config, log)
    except journal.BadStateDir as error:
        return _say(str(error), 1)
    _stand_firm(log)
    core = Core(config, __version__, process.monotonic())
    loop = Loop(config, core, kept, log, processes, process.monotonic)
    # What is there now stays: a worker's collector must not touch, and so copy, the pages it shares with us.
    gc.collect()
    gc.freeze()
    loop.feed(found or Woken())
    try:
        # After the recovery has begun: a socket's path may lie on what is still frozen.
        for spec in config.channel:
            loop.listen(Listener.open(spec))
    except OSError as error:
        return _say(f"channel {spec}: {error.strerror}", 1)
    log.add("notice", f"version {__version__} listens at {' '.join(config.channel)}")
    notify("READY=1")
    return loop.run()


def _found(kept: journal.Journal, config: Config, log: Log) -> JournalFound | None:
    try:
        return kept.read()
    except ValueError as error:
        aside = kept.set_aside()
        log.add("err", f"the journal cannot be read ({error}); it is now {aside}; thawing whatever can be frozen")
        try:
            plan = sysfs.read_plan(Rules(config.include, config.exclude))
        except Fault as fault:
            log.add("err", f"no plan to thaw by: {fault}")
            plan = Plan((), ())
        return JournalFound(0, plan, "a freeze was broken: the agent died, and its journal cannot be read")


def _stand_firm(log: Log) -> None:
    """Keep the daemon in memory, and from being the first that the kernel kills; failure is logged, not fatal."""
    try:
        kernel.lock_memory()
    except OSError as error:
        log.add("warning", f"mlockall: {error.strerror}")
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(OOM_SCORE))
    except OSError as error:
        log.add("warning", f"oom_score_adj: {error.strerror}")


def notify(state: str) -> None:
    """Tell the service manager (sd_notify(3): a datagram to NOTIFY_SOCKET); nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"virtagentd: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

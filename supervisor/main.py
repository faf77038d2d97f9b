"""virtagentd: its options, the wiring, and what may block and is therefore done before the loop begins."""

from __future__ import annotations

import gc
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence

import msgpack
import psutil
import setproctitle

from ..agent import __version__
from ..agent.api import forecast
from ..agent.api.bounds import also_at, bounded, not_shown
from ..agent.api.errors import Fault
from ..agent.api.options import Rules
from ..agent.api.records import Estimate, Plan, PlannedWriter
from ..agent.api.states import Reason
from ..agent.api.structs import replace
from ..agent.api.text import printable
from ..agent.worker import handlers, kernel, methods, namespaces, progress, queues, rcu, sysfs
from ..agent.worker.writers import latch
from .channels.char_device import CharDevice
from .channels.listener import Listener
from .config import BadConfig, Config, load
from .core import inline, ledger
from .core.engine import Engine
from .core.estimates import in_force
from .core.events import JournalFound, LatchesFound, QueuesSeen, Stopped, Woken
from .core.options import freeze_options
from .io import journal, process
from .io.log import Log, Sink, Stderr, syslog
from .io.log_writer import LogFile
from .io.loop import Loop
from .io.notify import Notify
from .io.system_journal import SystemJournal, is_stream
from .io.timers import Timers

# What the service manager says only to this process: a program that a host starts must not use it.
PRIVATE_ENV = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM")
OOM_SCORE = -900  # killed late, but not never: a leak here must not take the guest down (proc(5), oom_score_adj)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run virtagentd; return its exit code: 0 if stopped by a signal, 1 if it could not start, 2 for a bad option."""
    for fd in range(3):
        ensure_fd(fd)
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            config, asked = load(given)
        except BadConfig as error:
            if "--recover" not in given:
                raise
            # A guest must not stay frozen because of a mistake in a file.
            _say(f"{error}; recovering without the file", 2)
            config, asked = load([*given, "--config", os.devnull, "--writers-dir", os.devnull])
    except BadConfig as error:
        return _say(str(error), 2)
    if asked.version:
        return put(f"virtagentd {__version__}\n")
    if asked.plan:
        return print_plan(config)
    return serve(config, process.System(), recover_only=asked.recover)


def print_plan(config: Config) -> int:
    """Print what a freeze would do; return the exit code."""
    try:
        plan = sysfs.read_plan(Rules(config.include, config.exclude))
    except Fault as fault:
        return _say(str(fault), 1)
    writers = config.every_writer if config.writers != "none" else ()
    found = methods.with_writers(bounded(plan), writers, required=config.writers == "all")
    options = freeze_options(config, "va.fsplan", None)
    estimate = progress.estimated(Estimate(), plan.mounts, options.hold_limit)
    return put(describe(replace(found, estimate=estimate, options=in_force(config, options))))


def describe(plan: Plan) -> str:
    """Return the plan as lines: what is frozen, level by level, then what is left out and why."""
    lines = [f"file systems that would be frozen: {len(plan.mounts)}"]
    for mount in plan.mounts:
        also = f", also at {also_at(mount)}" if mount.aliases else ""
        where = f", only in the mount namespace of {mount.namespace}" if mount.namespace else ""
        on = " = ".join(filter(None, (mount.source, mount.dm, mount.device)))
        lines.append(f"  level {mount.level}  {mount.mountpoint} ({mount.fstype}, {on}){also}{where}")
    lines.append(f"left out: {sum(plan.left_out_counts.values())}")
    # What an operator may miss is named; for /proc and the like the number is enough.
    named = [left for left in plan.left_out if left.reason != Reason.PSEUDO.value]
    lines += [f"  {left.reason:<12}  {left.mountpoint} ({left.fstype}, {left.device})" for left in named]
    lines += [f"  {reason:<12}  {more} more" for reason, more in not_shown(named, plan.left_out_counts).items()]
    lines += [f"note: {note}" for note in plan.notes]
    if plan.writers:
        lines.append(f"writers: {len(plan.writers)}")
        lines += [f"  {writer.name} ({writer.type}){_about(writer)}" for writer in plan.writers]
    lines += forecast.lines(plan)
    return "\n".join(map(printable, lines)) + "\n"


def _about(writer: PlannedWriter) -> str:
    facts = [
        "" if writer.required else "not required",
        f"after {' '.join(writer.after)}" if writer.after else "",
        ", ".join(writer.paths) or "its paths are not known",
        f"NOT FROZEN: {', '.join(writer.not_frozen)}" if writer.not_frozen else "",
        writer.error,
    ]
    return "".join(f"; {fact}" for fact in facts if fact)


def serve(
    config: Config,
    processes: process.Processes,
    *,
    recover_only: bool = False,
    notes: Sequence[str] = (),
    folder: str | None = "/",
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Lock the state directory, recover from the journal, open the channels, and serve; return the exit code.

    `notes` are for the log; `folder` is where the daemon works, None for where it was started; `ready` is called when
    hosts can come. With `recover_only` no channel is opened, and this returns as soon as nothing may be frozen any
    more.
    """
    sys.dont_write_bytecode = True
    handlers.prove_bound()
    inline.prove_bound()
    try:
        log = Log(_sink(config.log_target, processes), config.log_level)
    except OSError as error:
        return _say(f"log-target {config.log_target}: {error.strerror}", 1)
    for note in notes:
        log.add("warning", note)
    for note in config.notes:
        log.add("notice", note)
    if folder is not None:
        os.chdir(folder)
    time.localtime()  # reads /etc/localtime, now and never again
    try:
        journal_file = journal.Journal(config.state_dir)
        found, handle = _found(journal_file, config, log), journal_file.next_handle()
        last_freeze = journal_file.last_freeze()
    except journal.BadStateDir as error:
        return _say(str(error), 2 if isinstance(error, journal.NotInMemory) else 1)
    harden(log)
    notify = Notify(os.environ)
    setproctitle.getproctitle()  # finds the place of the title by the environment, which must be as it was at the start
    for name in PRIVATE_ENV:
        os.environ.pop(name, None)
    timers = Timers()
    start = config, __version__, process.monotonic(), handle, timers, inline.HANDLERS
    core = Engine(*start, last_freeze=last_freeze, wall=time.time())
    loop = Loop(config, core, timers, journal_file, log, processes, process.monotonic, notify)
    # The present objects stay for ever: a collector in a worker must not touch them, which would copy shared pages.
    gc.collect()
    gc.freeze()
    loop.feed(found or Woken())
    if left := latch.left(config.latches):
        loop.feed(LatchesFound(left))
    if queues.left(config.queues):
        loop.feed(QueuesSeen(left=True))
    if recover_only:
        loop.feed(Stopped("it was asked to recover only"))
        return loop.run()
    try:
        # Only after the recovery has begun, since the path of a socket may lie on what is still frozen.
        for spec in config.channel:
            listens = spec.startswith(("unix:", "vsock:"))
            loop.listen(Listener.open(spec, any_cid=config.vsock_any) if listens else CharDevice(spec))
    except OSError as error:
        _say(f"channel {spec}: {error.strerror}", 1)
        loop.feed(Stopped("a channel could not be opened"))
        loop.run()  # it first thaws whatever was left frozen
        return 1
    log.add("notice", f"version {__version__} listens at {' '.join(config.channel)}")
    if wrong := notify.say("READY=1"):
        log.add("warning", wrong)
    ready()
    return loop.run()


def _sink(target: str, processes: process.Processes) -> Sink:
    if target.startswith("file:"):
        return LogFile(target.partition(":")[2], processes)
    if target == "syslog":
        return syslog()
    streams = is_stream(os.environ, 2)
    stderr = Stderr(2, prefixed=streams)
    if not streams and target != "journal":
        return stderr
    return SystemJournal(beside=None if stderr.waits_while_frozen else stderr)


def _found(journal_file: journal.Journal, config: Config, log: Log) -> JournalFound | None:
    try:
        return journal_file.read()
    except (ValueError, OSError) as error:
        log.add("err", f"the journal cannot be read ({error}); thawing whatever can be frozen")
        try:
            plan = bounded(sysfs.read_plan(Rules(config.include, config.exclude), ask=False))
        except Fault as fault:
            log.add("err", f"no plan to thaw by: {fault}")
            plan = Plan((), ())
        unreported = "a freeze was broken: the agent died, and its journal cannot be read"
        found = JournalFound(0, plan, unreported, expedites=True)
        try:
            log.add("notice", f"the journal is kept as {journal_file.set_aside()}")
            journal_file.write(0, ledger.journal(0, plan, unreported, expedites=True))
        except OSError as refused:
            log.add("err", f"journal: {refused}")
        return found


def python_only() -> list[str]:
    """Return the packages that are here written in Python, for want of the compiled ones."""
    pure = [each.__name__ for each in (psutil, setproctitle) if getattr(each, "PURE", False)]
    return pure + ["msgpack"] * (msgpack.Unpacker.__module__ == "msgpack.fallback")


def harden(log: Log) -> None:
    """Depend as little as possible on what may be frozen, and be killed late; failures are only logged."""
    mounts = {info.device: info.fstype for info in sysfs.read_mountinfo()}
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        about = os.fstat(fd)
        kind = mounts.get(f"{os.major(about.st_dev)}:{os.minor(about.st_dev)}", "an unknown file system")
        if stat.S_ISREG(about.st_mode) and kind not in journal.IN_MEMORY:
            log.add("warning", f"{name} is a file on {kind}, which may be frozen: use a pipe, syslog or the journal")
    try:
        kernel.lock_memory()
    except OSError as error:
        log.add("warning", f"mlockall: {error.strerror}; the daemon may wait for a swap file")
    if why := rcu.why_not():
        log.add("info", f"{why}; a freeze waits for grace periods of the kernel, some 25 ms longer")
    if namespaces.is_own():
        log.add("warning", f"{namespaces.OF_ITS_OWN}: run it without PrivateTmp, ProtectSystem and the like")
    if pure := python_only():
        log.add(
            "info",
            f"written in Python, for want of the compiled ones: {', '.join(pure)}; they are slower",
        )
    if os.geteuid() != 0:
        log.add("warning", "not root: nothing can be frozen")
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(OOM_SCORE))
    except OSError as error:
        log.add("warning", f"oom_score_adj: {error.strerror}; the daemon may be killed early when memory is short")


def ensure_fd(fd: int) -> None:
    """Open /dev/null at the descriptor if it is closed, so that no socket or lock gets that number."""
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)


def put(text: str) -> int:
    """Print what was asked for; return the exit code. Who has closed the standard output does not want it."""
    if sys.stdout is None:
        return 0
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - otherwise the interpreter tries again at its end
        return _say(f"standard output: {error.strerror}", 1)
    return 0


def _say(text: str, code: int) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"virtagentd: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The va.* methods that run in a worker."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..api.bounds import bounded
from ..api.errors import Code, Fault, failed
from ..api.records import Plan
from ..api.structs import replace
from ..api.writers import BadWriter, WriterConfig
from . import freeze, progress, sysfs
from .links import open_asked
from .mount_threads import perform
from .writers import config, preview

if TYPE_CHECKING:
    from .context import Args, Worker

GETFILE_MAX = 16 << 20
OPTIONS_MAX = 1 << 20
DMESG_MAX = 16 << 10
SHUTDOWN_FLAG = {"halt": "-H", "powerdown": "-P", "reboot": "-r"}


def read_options(_worker: Worker, args: Args) -> dict[str, Any]:
    """Return the text of the configuration file `path`, and those of the writers in the folder `writers`, by name.

    The text is "" if the file is missing and not `needed`. Raises Fault FAILED, also if it is longer than 1 MiB.
    """
    try:
        writers = config.read_folder(args["writers"])
    except BadWriter as error:
        raise Fault(Code.FAILED, str(error)) from None
    return {"options": _read_options(args), "writers": writers}


def _read_options(args: Args) -> str:
    try:
        with open(args["path"], encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(OPTIONS_MAX + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not args["needed"]:
            return ""
        raise failed(error, args["path"]) from None
    if len(text) > OPTIONS_MAX:
        raise Fault(Code.FAILED, f"{args['path']} is over {OPTIONS_MAX} characters")
    return text


def getfile(worker: Worker, args: Args) -> bytes:
    """Return the contents of the regular file `path`, at most 16 MiB.

    Raises Fault: PARAMS if the path is not absolute, FAILED if the file is not regular or too long, or cannot be read.
    """
    path = args["path"]
    if not path.startswith("/"):
        raise Fault(Code.PARAMS, f"va.getfile: path {path[:80]!r} is not absolute")
    worker.title(f"reading {path}")
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        fd = open_asked(os.fsencode(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Fault(Code.FAILED, f"va.getfile: {path} is not a regular file")
            # A file of /proc has size 0: only reading it shows how long it is.
            blocks, size = [], 0
            while block := file.read(1 << 20):
                size += len(block)
                if size > GETFILE_MAX:
                    raise Fault(Code.FAILED, f"va.getfile: {path} is over {GETFILE_MAX} bytes (EFBIG)")
                blocks.append(block)
            return b"".join(blocks)
    except OSError as error:
        raise failed(error, f"va.getfile: {path}") from None


def getdmesg(_worker: Worker, _args: Args) -> str:
    """Return the last 16 KiB of the kernel's log, one line for each record, with the time since boot.

    /dev/kmsg gives one record a read, "level,seq,microseconds,flags;text" (Documentation/ABI/testing/dev-kmsg).
    """
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise failed(error, "va.getdmesg: /dev/kmsg") from None
    lines: list[str] = []
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # records were overwritten meanwhile: the next read gives the oldest one that is left
            head, _, text = record.decode(errors="replace").partition(";")
            since_boot = int(head.split(",")[2]) / 1e6
            lines.append(f"[{since_boot:12.6f}] {text.partition(chr(10))[0]}\n")
    except OSError as error:
        raise failed(error, "va.getdmesg: /dev/kmsg") from None
    finally:
        os.close(fd)
    text = "".join(lines)
    return text if len(text) <= DMESG_MAX else text[-DMESG_MAX:].partition("\n")[2]


def shutdown(worker: Worker, args: Args) -> str:
    """Run the shutdown program with -H, -P or -r and `now`; raise Fault FAILED if it cannot be run or refuses."""
    try:
        ended = shut_down(worker, args["command"], args["mode"])
    except OSError as error:
        raise failed(error, f"va.shutdown: {args['command'][0]}") from None
    if ended.returncode != 0:
        said = ended.stderr.strip()[:200]
        raise Fault(Code.FAILED, f"va.shutdown: {' '.join(ended.args)} ended with {ended.returncode}: {said}")
    return "dummy"


def shut_down(worker: Worker, program: Sequence[str], mode: str) -> subprocess.CompletedProcess[str]:
    """Run `program` for "halt", "powerdown" or "reboot"; raise OSError if it cannot be executed.

    The program does not die with the worker: a shutdown kills the agent before the program has finished.
    """
    command = [*program, SHUTDOWN_FLAG[mode], "now"]
    worker.title(f"running {' '.join(command)}")
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, encoding="utf-8", errors="replace"
    )


def fsfreeze(worker: Worker, args: Args) -> int:
    """Freeze what `args["options"]` (options.Options) chooses, hold it, thaw it; return the number of file systems."""
    script = freeze.FreezeScript(args["options"])
    try:
        return perform(worker, script.run())
    finally:
        if script.thawed:  # whatever has failed
            worker.tell_thawed()


def thaw(worker: Worker, args: Args) -> int:
    """Thaw the file systems of `args["mounts"]` (index -> records.Mount); return how many are proved thawed."""
    return perform(worker, freeze.thaw_again(args["mounts"], args["expedited"]))


def fssync(worker: Worker, args: Args) -> int:
    """Sync what `args["options"]` (options.Options) chooses, freezing nothing; return the number of file systems."""
    return perform(worker, freeze.Flush(args["options"]).run())


def fsplan(_worker: Worker, args: Args) -> dict[str, Any]:
    """Return the plan that va.fsfreeze would carry out, what it would take, and the options that count.

    `args["writers"]` are the daemon's (writers.WriterConfig), `args["estimate"]` is what the last freezes foretell.
    """
    options = args["options"]
    plan = bounded(sysfs.read_plan(options.rules))
    estimate = progress.estimated(args["estimate"], plan.mounts, options.hold_limit)
    plan = replace(plan, estimate=estimate, options=args["in_force"])
    if not options.waits:
        return plan.dump()
    return with_writers(plan, args["writers"], required=options.writers == "all").dump()


def with_writers(plan: Plan, writers: Sequence[WriterConfig], *, required: bool = True) -> Plan:
    """Return the plan with what is to be said of the writers; `required`: those that are may be."""
    planned = preview.preview(writers, {mount.device for mount in plan.mounts}, required=required)
    return replace(plan, writers=planned)

"""RPCs on the guest as a machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import Code, Fault, failed

if TYPE_CHECKING:
    from ..worker import Worker

DMESG_MAX = 16 << 10
SHUTDOWN_FLAG = {"halt": "-H", "powerdown": "-P", "reboot": "-r"}


def getdmesg(_worker: Worker, _args: dict[str, Any]) -> str:
    """Return the last 16 KiB of the kernel's log, a line a record, with the time since boot.

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
                continue  # records were overwritten while we read: the next read gives the oldest that is left
            head, _, text = record.decode(errors="replace").partition(";")
            since_boot = int(head.split(",")[2]) / 1e6
            lines.append(f"[{since_boot:12.6f}] {text.partition(chr(10))[0]}\n")
    except OSError as error:
        raise failed(error, "va.getdmesg: /dev/kmsg") from None
    finally:
        os.close(fd)
    text = "".join(lines)
    return text if len(text) <= DMESG_MAX else text[-DMESG_MAX:].partition("\n")[2]


def shutdown(worker: Worker, args: dict[str, Any]) -> str:
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

    It does not die with the worker: shutting down kills the agent before the program is done.
    """
    command = [*program, SHUTDOWN_FLAG[mode], "now"]
    worker.title(f"running {' '.join(command)}")
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, encoding="utf-8", errors="replace"
    )

"""Facts about processors and memory, in qemu-ga's form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...api.errors import Code, Fault
from .reading import is_number, numbered, read, read_needed, refused

if TYPE_CHECKING:
    from ..context import Args, Worker

STAT = "/proc/stat"
CPUS = "/sys/devices/system/cpu"
MEMORY = "/sys/devices/system/memory/"
_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestnice")
_TIMES_NEEDED = 4


def get_cpustats(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return for each processor how many milliseconds it spent on what."""
    return list(cpustats(read_needed(STAT), os.sysconf("SC_CLK_TCK")))


def cpustats(text: str, ticks: int) -> Iterator[dict[str, Any]]:
    """Yield the GuestCpuStats of each processor in the text of /proc/stat, whose unit is 1/`ticks` s."""
    for line in text.split("\n"):
        name, *times = line.split() or [""]
        number = name.removeprefix("cpu")
        if not name.startswith("cpu") or not all(map(is_number, (number, *times))):
            continue
        if len(times) >= _TIMES_NEEDED:
            spent = {what: int(t) * 1000 // ticks for what, t in zip(_TIMES, times, strict=False)}
            yield {"type": "linux", "cpu": int(number), **spent}


def get_vcpus(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return the processors in the order of their numbers; one without an `online` file cannot be taken offline.

    Raises Fault FAILED if sysfs cannot be read.
    """
    try:
        numbers = numbered(os.listdir(CPUS), "cpu")
    except OSError as error:
        raise refused(error, f"failed to list entries: {CPUS}") from None
    found = []
    for number in numbers:
        switch = f"{CPUS}/cpu{number}/online"
        state = _state(switch)
        if state not in (None, "0", "1"):
            raise Fault(Code.FAILED, f'unexpected contents of "{switch}": {state!r:.20}')
        found.append({"logical-id": number, "online": state != "0", "can-offline": state is not None})
    return found


def get_memory_blocks(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return the switchable blocks of memory in the order of their numbers; [] if the kernel has no such blocks.

    Raises Fault FAILED if sysfs cannot be read.
    """
    try:
        numbers = numbered(os.listdir(MEMORY), "memory")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refused(error, f'Can\'t open directory"{MEMORY}"') from None
    if not numbers:
        raise Fault(Code.FAILED, "guest reported zero memory blocks!")
    found = []
    for number in numbers:
        state = _state(f"{MEMORY}memory{number}/state")
        removable = None if state is None else _state(f"{MEMORY}memory{number}/removable")
        found.append(
            {
                "phys-index": number,
                "online": state is None or state == "online",
                "can-offline": removable not in (None, "0"),
            }
        )
    return found


def get_memory_block_info(_worker: Worker, _args: Args) -> dict[str, int]:
    """Return the size of a block of memory in bytes; raise Fault FAILED if the kernel has no such blocks."""
    try:
        os.stat(MEMORY)
    except OSError as error:
        raise refused(error, f'open("{MEMORY}")') from None
    try:
        text = read(f"{MEMORY}block_size_bytes")
    except OSError as error:
        raise refused(error, 'open sysfs file "block_size_bytes"') from None
    try:
        return {"size": int(text, 16)}
    except ValueError:
        raise Fault(Code.FAILED, f'unexpected contents of "{MEMORY}block_size_bytes": {text!r:.40}') from None


def _state(path: str) -> str | None:
    """Return the text of a file of sysfs, None if it is missing; raise Fault FAILED if it cannot be read."""
    try:
        return read(path).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(error, f'open("{path}")') from None

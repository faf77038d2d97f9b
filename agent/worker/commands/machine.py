"""guest-set-time, guest-set-vcpus, guest-set-memory-blocks, guest-fstrim, guest-shutdown, guest-suspend-*."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...api.errors import Code, Fault
from .. import kernel, methods, programs, sysfs
from ..mountinfo import MountInfo, Server, server_of, superblocks
from ..open_fs import FileSystemOpener

if TYPE_CHECKING:
    from ..context import Args, Worker

HWCLOCK = "/sbin/hwclock"
_SCARCE = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TIME_MAX = 3155760000 * 10**9  # 2070: from then on a real-time clock with two digits means 19xx

# Each mode of suspend in systemctl, as its unit, in pm-utils (test, program), and in /sys/power/state.
_SUSPEND = {
    "disk": ("hibernate", "systemd-hibernate", "--hibernate", "pm-hibernate", "disk"),
    "ram": ("suspend", "systemd-suspend", "--suspend", "pm-suspend", "mem"),
    "hybrid": ("hybrid-sleep", "systemd-hybrid-sleep", "--suspend-hybrid", "pm-suspend-hybrid", ""),
}


def set_time(
    worker: Worker,
    args: Args,
    *,
    hwclock: str = HWCLOCK,
    set_clock: Callable[[int, int], object] = time.clock_settime_ns,
) -> dict[str, Any]:
    """Set the clock to `time` (ns since 1970) and then the real-time clock; without `time` the clock from the latter.

    Raises Fault: PARAMS for a year before 1970 or after 2069, FAILED if hwclock(8) is missing (then nothing is set) or
    the system refuses.
    """
    now = args["time"]
    if not os.access(hwclock, os.X_OK):
        raise Fault(Code.FAILED, f"this feature or command is not currently supported: there is no {hwclock}")
    if now is not None:
        if now >= _TIME_MAX:
            raise Fault(Code.PARAMS, "Invalid time")
        if now < 0:
            raise Fault(Code.PARAMS, "Failed to set time to guest: Invalid argument")
        try:
            set_clock(time.CLOCK_REALTIME, now)
        except OSError as error:
            raise Fault(Code.FAILED, f"Failed to set time to guest: {error.strerror}") from None
    worker.title(f"running {hwclock}")
    code, said = programs.run([hwclock, "-s" if now is None else "-w"])
    if code:
        doing = "set system time to hardware clock" if now is None else "set hardware clock to system time"
        raise _child_failed(doing, code, said)
    return {}


def set_vcpus(_worker: Worker, args: Args, *, root: str = "/sys/devices/system/cpu") -> int:
    """Bring processors on- or offline in the order of `vcpus`; return how many were done before one failed.

    Raises Fault FAILED if the first could not be done.
    """
    done = 0
    for vcpu in args["vcpus"]:
        try:
            _set_vcpu(root, vcpu["logical-id"], vcpu["online"])
        except Fault:
            if not done:
                raise
            break
        done += 1
    return done


def _set_vcpu(root: str, number: int, online: bool) -> None:
    folder = f"{root}/cpu{number}/"
    path, said = f"{folder}online", f"{folder}/online"  # in the text with two slashes, as in qemu-ga
    doing = "open"
    try:
        os.stat(folder)
    except OSError as error:
        raise Fault(Code.FAILED, f'{doing}("{folder}"): {error.strerror}') from None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if not online:
            raise Fault(Code.FAILED, f"logical processor #{number} can't be offlined") from None
        return  # it cannot be offline
    except OSError as error:
        raise Fault(Code.FAILED, f'{doing}("{said}"): {error.strerror}') from None
    try:
        doing = "pread"
        state = os.pread(fd, 1, 0)
        if not state:
            raise Fault(Code.FAILED, f'pread("{said}"): unexpected EOF')
        if online != (state != b"0"):
            doing = "pwrite"
            os.pwrite(fd, b"1" if online else b"0", 0)
    except OSError as error:
        raise Fault(Code.FAILED, f'{doing}("{said}"): {error.strerror}') from None
    finally:
        os.close(fd)


def set_memory_blocks(_worker: Worker, args: Args, *, root: str = "/sys/devices/system/memory") -> list[dict[str, Any]]:
    """Bring all blocks of memory in `mem-blks` on- or offline; return for each how it went.

    `response` is success (also if there was nothing to do), not-found, operation-not-supported or operation-failed;
    the last three have the errno as `error-code`.
    """
    results = []
    for block in args["mem-blks"]:
        response, number = _set_memory_block(root, block["phys-index"], block["online"])
        result = {"phys-index": block["phys-index"], "response": response}
        results.append(result | {"error-code": number} if number else result)
    return results


def _set_memory_block(root: str, index: int, online: bool) -> tuple[str, int]:
    for folder, response in ((root, "operation-not-supported"), (f"{root}/memory{index}", "not-found")):
        try:
            os.stat(folder)
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            return (response, errno.ENOENT) if missing else ("operation-failed", error.errno or errno.EIO)
    path = f"{root}/memory{index}/state"
    try:
        with open(path, "rb", buffering=0) as file:
            is_online = file.read(6) == b"online"
    except FileNotFoundError:  # this kernel cannot take memory offline
        return ("success", 0) if online else ("operation-not-supported", errno.ENOENT)
    except OSError as error:
        return "operation-failed", error.errno or errno.EIO
    if online == is_online:
        return "success", 0
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(b"online" if online else b"offline")
    except OSError as error:
        return "operation-failed", error.errno or errno.EIO
    return "success", 0


def fstrim(
    worker: Worker, args: Args, *, read_mounts: Callable[[], Sequence[MountInfo]] = sysfs.read_mountinfo
) -> dict[str, Any]:
    """Discard the unused blocks of each file system on a block device, in turn, the last mounted first.

    Extents below `minimum` bytes are left out. Returns {paths}: for each file system its path, and either trimmed and
    minimum (bytes), or error.
    """
    try:
        found = superblocks(read_mounts())
    except OSError as error:
        raise Fault(Code.FAILED, f"failed to open mtab file: '/proc/self/mountinfo': {error.strerror}") from None
    opener = FileSystemOpener()
    paths = []
    for info, points, *_ in reversed(found):
        anonymous = info.device.startswith("0:") and info.fstype != "btrfs"
        if anonymous or server_of(info.fstype) is Server.NETWORK:
            continue
        worker.title(f"trimming {points[0]}")
        paths.append({"path": points[0]} | _trim(info, opener, args["minimum"] or 0))
    return {"paths": paths}


def _trim(info: MountInfo, opener: FileSystemOpener, minimum: int) -> dict[str, Any]:
    if server_of(info.fstype) is not Server.KERNEL:  # never opened: its server may be gone
        return {"error": "trim not supported"}
    try:
        fd = opener.open(info.device).fd
    except OSError as error:
        return {"error": f"failed to open: {error.strerror}"}
    try:
        trimmed, gone_by = kernel.trim(fd, minimum)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return {"error": "trim not supported"}
        return {"error": f"failed to trim: {error.strerror}"}
    finally:
        os.close(fd)
    return {"trimmed": trimmed, "minimum": gone_by}


def shutdown(worker: Worker, args: Args) -> dict[str, Any]:
    """As va.shutdown, `mode` by default "powerdown", in qemu-ga's words."""
    mode = "powerdown" if args["mode"] is None else args["mode"]
    try:
        ended = methods.shut_down(worker, args["command"], mode)
    except OSError as error:
        said = f"failed to exec '{args['command'][0]}': {error.strerror}"
        raise _child_failed("shutdown", 1, said) from None
    if ended.returncode:
        raise _child_failed("shutdown", ended.returncode, ended.stderr.strip()[: programs.SAID_MAX])
    return {}


def suspend_disk(worker: Worker, _args: Args) -> dict[str, Any]:
    """Hibernate; raise Fault FAILED if the guest cannot, or did not."""
    return suspend(worker, "disk")


def suspend_ram(worker: Worker, _args: Args) -> dict[str, Any]:
    """Suspend to memory; raise Fault FAILED if the guest cannot, or did not."""
    return suspend(worker, "ram")


def suspend_hybrid(worker: Worker, _args: Args) -> dict[str, Any]:
    """Suspend to memory with a copy on the disk; raise Fault FAILED if the guest cannot, or did not."""
    return suspend(worker, "hybrid")


def suspend(worker: Worker, mode: str, *, state: str = "/sys/power/state") -> dict[str, Any]:
    """Suspend by the first of these that can and does: systemctl, pm-utils, the kernel.

    Raises Fault FAILED that says that nothing supports the mode, or why the last that supports it failed.
    """
    verb, unit, pm_option, pm_program, word = _SUSPEND[mode]
    worker.title(f"suspending to {mode}")
    why = ""
    # The status of a unit is 4 if it does not exist (LSB), and 3 if it does not run.
    if _code(["systemctl", "status", unit]) in (1, 2, 3):
        why = _refusal(["systemctl", verb], f"systemctl {verb}")
        if not why:
            return {}
    if _code(["pm-is-supported", pm_option]) == 0:
        why = _refusal([pm_program], pm_program)
        if not why:
            return {}
    if word and _has_word(state, word):
        try:
            with open(state, "wb", buffering=0) as file:
                file.write(word.encode())
        except OSError as error:
            raise Fault(Code.FAILED, f"suspend: cannot write to '{state}': {error.strerror}") from None
        return {}
    raise Fault(Code.FAILED, why or "the requested suspend mode is not supported by the guest")


def _code(command: list[str]) -> int:
    """Return the exit code of a program that says what is supported, -1 if it is not there.

    Raises Fault FAILED if the system has no process to give.
    """
    try:
        return programs.run(command)[0]
    except OSError as error:
        if error.errno in _SCARCE:
            raise Fault(Code.FAILED, f"failed to create child process, error '{error.strerror}'") from None
        return -1


def _refusal(command: list[str], name: str) -> str:
    """Run a program that suspends; return why it did not, "" if it did."""
    try:
        code, said = programs.run(command)
    except FileNotFoundError:
        return f"the helper program '{name}' was not found"
    except OSError as error:
        return f"failed to create child process, error '{error.strerror}'"
    if not code:
        return ""
    return f"the helper program '{name}' returned an unexpected exit status code ({code})" + (
        f": {said}" if said else ""
    )


def _has_word(path: str, word: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return word in file.read().split()
    except FileNotFoundError:
        return False  # this kernel cannot suspend
    except OSError as error:
        raise Fault(Code.FAILED, f"suspend: cannot read '{path}': {error.strerror}") from None


def _child_failed(doing: str, code: int, said: str) -> Fault:
    if code < 0:
        return Fault(Code.FAILED, f"child process has terminated abnormally: {said or f'signal {-code}'}")
    return Fault(Code.FAILED, f"child process has failed to {doing}: {said or f'exit status {code}'}")

"""Each system call of a guest-* command answers each errno of its manual page: that command says so, or does without.

Files and programs have tests of their own (test_guest_files.py, tests/real); here are all other commands that a worker
runs. A first run lists the calls; then each of them fails once, in each way. What a command may do without is listed.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import pwd
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from fakes.devices import PCI, Devices
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.methods import RPCS
from virtagent.agent.api.rpc import Runs
from virtagent.agent.worker import kernel, programs
from virtagent.agent.worker.commands import accounts, cpus, disk_addresses, disks, machine, network, system
from virtagent.agent.worker.handlers import HANDLERS
from virtagent.agent.worker.mountinfo import MountInfo
from virtagent.agent.worker.process import fault_of

_PATH = (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOMEM, errno.ENOTDIR)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_WRITE = (errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EBUSY)
_CHANGE = (*_PATH, errno.EDQUOT, errno.EEXIST, errno.EINVAL, errno.EMLINK, errno.ENOSPC, errno.EPERM, errno.EROFS)
_START = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.EACCES, errno.ENOEXEC)
_OPEN = (*_PATH, *_NO_ROOM, errno.EBUSY, errno.EIO, errno.EISDIR, errno.ENODEV, errno.ENXIO, errno.EPERM, errno.EROFS)
_READ = (errno.EBADF, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ENODEV, errno.ENXIO, errno.ENOMEM)
ERRNOS: dict[str, tuple[int, ...]] = {
    "access": _PATH,
    "clock_settime": (errno.EACCES, errno.EINVAL, errno.EPERM),
    "close": (errno.EBADF, errno.EDQUOT, errno.EIO, errno.ENOSPC),
    "fchmod": (errno.EBADF, errno.EIO, errno.EPERM, errno.EROFS),
    "fstat": (errno.EBADF, errno.ENOMEM, errno.EOVERFLOW),
    "fstatfs": (errno.EBADF, errno.EIO, errno.ENOMEM, errno.ENOSYS),
    "fsync": (errno.EBADF, errno.EDQUOT, errno.EINVAL, errno.EIO, errno.ENOSPC, errno.EROFS),
    "getgrouplist": (errno.ENOMEM, errno.EIO),
    "getloadavg": (errno.ENOENT,),
    "if_nameindex": (errno.ENOBUFS, *_NO_ROOM),
    "ioctl": (errno.EBADF, errno.EINVAL, errno.EIO, errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM),
    "listdir": (*_PATH, *_NO_ROOM),
    "lstat": _PATH,
    "mkdir": _CHANGE,
    "net_if_addrs": (errno.ENOBUFS, *_NO_ROOM),
    "open": _OPEN,
    "openat2": (*_OPEN, errno.ENOSYS, errno.E2BIG, errno.EINVAL),
    "pread": _READ,
    "prctl": (errno.EINVAL, errno.EPERM),
    "pwrite": _WRITE,
    "read": _READ,
    "readlink": (*_PATH, errno.EINVAL, errno.EIO),
    "rename": _CHANGE,
    "run": _START,
    "setegid": (errno.EINVAL, errno.EPERM),
    "seteuid": (errno.EINVAL, errno.EPERM),
    "setgroups": (errno.EINVAL, errno.ENOMEM, errno.EPERM),
    "stat": _PATH,
    "statvfs": (*_PATH, errno.EIO, errno.ENOSYS, errno.EOVERFLOW),
    "uname": (errno.EFAULT,),
    "unlink": (errno.EACCES, errno.EBUSY, errno.EIO, errno.ENOENT, errno.EROFS),
    "urandom": (errno.ENOSYS,),
    "write": _WRITE,
}
"""The errnos of the manual pages; the call behind a function of the library has the name of that."""


class Calls:
    """Counts the system calls of a command, and has one of them fail."""

    def __init__(self, fails: int = -1, number: int = 0) -> None:
        self.made: list[str] = []
        self.fails, self.number = fails, number

    def fail_here(self, name: str, path: object = None) -> bool:
        """Count a call; return whether it is to fail."""
        self.made.append(name)
        return len(self.made) - 1 == self.fails

    def error(self, path: object = None) -> OSError:
        named = (path,) if isinstance(path, (str, bytes)) else ()
        return OSError(self.number, os.strerror(self.number), *named)

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if not self.fail_here(name):
                return real(*args, **more)
            if name == "access":
                return False
            if name == "close":
                real(*args)  # Linux closes it whatever it answers
            if name == "getloadavg":
                raise OSError("Load averages are unobtainable")
            raise self.error(args[0] if args else None)

        return call

    def open(self, file: Any, *args: Any, **more: Any) -> Any:
        if self.fail_here("fstat" if isinstance(file, int) else "open"):
            raise self.error(file)
        return OpenFile(self, _open(file, *args, **more))


class OpenFile:
    """A file whose calls are counted, and may fail."""

    def __init__(self, calls: Calls, file: Any) -> None:
        self._calls, self._file = calls, file

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._calls.fail_here("close"):
            raise self._calls.error()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._file, name)
        return self._calls.wrap(name, real) if name in ("read", "write") else real


_open = builtins.open
_REAL = {
    "os": (os, "close fchmod fstat fsync listdir lstat mkdir open pread pwrite readlink rename stat statvfs unlink"),
    "machine": (os, "access getloadavg uname"),
}


class Rights:
    """The rights of this process as a command sets them; the real ones stay."""

    def __init__(self) -> None:
        self.uid = self.before = os.geteuid()

    def seteuid(self, uid: int) -> None:
        self.uid = uid

    def nothing(self, *_: object) -> None:
        pass


class Guest:
    """A machine that the commands act on, in a folder."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.patch = patch
        self.rights = Rights()
        devices = Devices(root)
        devices.drive(f"{PCI}:03.0", "virtio-pci")
        disk = f"{PCI}:03.0/virtio2/host6/target6:0:0/6:0:0:4/block/sda"
        devices.add(disk, "8:0", ID_SERIAL="data")
        devices.add(f"{disk}/sda1", "8:1")
        patch.setattr(disks, "TREE", disk_addresses.Tree(str(devices.sysfs), str(devices.udev)))
        self.stats = self.write("diskstats", "7 0 loop0 1 2 3 4 5 6 7 8 9 10 11\n")
        patch.setattr(disks, "DISKSTATS", self.stats)
        patch.setattr(disks, "read_mountinfo", lambda: [MountInfo(2, 1, "8:0", "/", "/", "ext4", "none", "rw")])
        patch.setattr(cpus, "STAT", self.write("stat", "cpu0 1 2 3 4\n"))
        patch.setattr(cpus, "CPUS", str(root / "cpu"))
        patch.setattr(cpus, "MEMORY", f"{root}/memory/")
        self.power = str(root / "power")
        patch.setattr(system, "UTMP", self.write("utmp", ""))
        patch.setattr(system, "OS_RELEASE", (self.write("os-release", "ID=debian\n"),))
        patch.setattr(network, "NET", str(root / "net"))
        for name in ("dev", "route", "ipv6_route"):
            self.write(f"net/{name}", "\n")
        self.keys = root / "home/.ssh/authorized_keys"
        self.fill()

    def fill(self) -> None:
        """Write what a command may have changed."""
        self.write("cpu/cpu0/online", "1\n")
        self.write("cpu/cpu1/online", "0\n")
        self.write("memory/block_size_bytes", "8000000\n")
        self.write("memory/memory3/state", "online\n")
        self.write("memory/memory3/removable", "1\n")
        self.write("power", "freeze mem disk\n")
        self.write("home/.ssh/authorized_keys", "ssh-rsa a\nssh-rsa b\n")

    def write(self, name: str, text: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def user(self, name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", os.getuid() + 1, os.getgid(), "", str(self.root / "home"), "/bin/sh"))

    def open(self, _device: str) -> Any:
        return _Opened(os.open(self.stats, os.O_RDONLY))

    def count(self, calls: Calls) -> None:
        """Have all calls go through `calls`."""
        patch = self.patch
        for module, names in _REAL.values():
            for name in names.split():
                patch.setattr(module, name, calls.wrap(name, getattr(module, name)))
        patch.setattr(builtins, "open", calls.open)
        patch.setattr(os, "urandom", calls.wrap("urandom", lambda size: b"7" * size))
        patch.setattr(os, "seteuid", calls.wrap("seteuid", self.rights.seteuid))
        for name in ("setegid", "setgroups"):
            patch.setattr(os, name, calls.wrap(name, self.rights.nothing))
        patch.setattr(os, "getgrouplist", calls.wrap("getgrouplist", lambda *_: []))
        patch.setattr(kernel, "die_with_parent", calls.wrap("prctl", self.rights.nothing))
        patch.setattr(kernel, "is_procfs", calls.wrap("fstatfs", lambda _: False))
        patch.setattr(
            kernel, "openat2", calls.wrap("openat2", lambda path, flags, mode, *_: _os_open(path, flags, mode))
        )
        patch.setattr(kernel, "trim", calls.wrap("ioctl", lambda *_: (1, 1)))
        patch.setattr(programs, "run", calls.wrap("run", lambda *_: (0, "")))
        ended = subprocess.CompletedProcess([], 0, "", "")
        patch.setattr(subprocess, "run", calls.wrap("run", lambda *_, **__: ended))
        patch.setattr(psutil, "net_if_addrs", calls.wrap("net_if_addrs", lambda: {"lo": []}))
        patch.setattr(socket, "if_nameindex", calls.wrap("if_nameindex", lambda: [(1, "lo")]))
        patch.setattr(machine, "FileSystemOpener", lambda: self)


class _Opened(NamedTuple):
    fd: int


_os_open = os.open


class _Worker:
    def title(self, doing: str) -> None:
        assert doing


WORKER: Any = _Worker()
Command = Callable[[Guest, Calls], Any]
ANN = {"username": "ann"}
MOUNTS = [MountInfo(2, 1, f"8:{n}", "/", f"/srv/{n}", "ext4", f"/dev/sd{n}", "rw") for n in range(2)]
KEYS = {**ANN, "keys": ["ssh-rsa c"], "reset": False}
PASSWORD = {**ANN, "password": b64encode(b"secret").decode(), "crypted": False}


def plain(name: str) -> Command:
    """Return the command without arguments."""
    return lambda _guest, _calls: HANDLERS[RPCS[name].handler](WORKER, {})


def suspends(mode: str, systemd: bool) -> Command:
    def suspend(guest: Guest, calls: Calls) -> Any:
        guest.patch.setattr(programs, "run", calls.wrap("run", lambda command, *_: (3 if systemd else 4, "")))
        return machine.suspend(WORKER, mode, state=guest.power)

    return suspend


def settle(guest: Guest, calls: Calls) -> Any:
    clock = calls.wrap("clock_settime", lambda *_: None)
    return machine.set_time(WORKER, {"time": time.time_ns()}, hwclock="/bin/true", set_clock=clock)


VCPUS = [{"logical-id": 0, "online": False}]
BLOCKS = [{"phys-index": 3, "online": False}]
COMMANDS: dict[str, Command] = {
    **{
        name: plain(name)
        for name in (
            *("guest-get-cpustats", "guest-get-memory-block-info", "guest-get-memory-blocks", "guest-get-vcpus"),
            *("guest-get-disks", "guest-get-diskstats", "guest-get-fsinfo", "guest-get-host-name", "guest-get-load"),
            *("guest-get-osinfo", "guest-get-time", "guest-get-timezone", "guest-get-users"),
            *("guest-network-get-interfaces", "guest-network-get-route"),
        )
    },
    "guest-set-user-password": lambda *_: accounts.set_user_password(WORKER, PASSWORD, program="true"),
    "guest-ssh-get-authorized-keys": lambda g, _: accounts.ssh_get_authorized_keys(WORKER, ANN, lookup=g.user),
    "guest-ssh-add-authorized-keys": lambda g, _: accounts.ssh_add_authorized_keys(WORKER, KEYS, lookup=g.user),
    "guest-ssh-remove-authorized-keys": lambda g, _: accounts.ssh_remove_authorized_keys(
        WORKER, {**ANN, "keys": ["ssh-rsa a"]}, lookup=g.user
    ),
    "guest-set-time": settle,
    "guest-set-vcpus": lambda g, _: machine.set_vcpus(WORKER, {"vcpus": VCPUS}, root=str(g.root / "cpu")),
    "guest-set-memory-blocks": lambda g, _: machine.set_memory_blocks(
        WORKER, {"mem-blks": BLOCKS}, root=str(g.root / "memory")
    ),
    "guest-fstrim": lambda *_: machine.fstrim(WORKER, {"minimum": 0}, read_mounts=lambda: MOUNTS),
    "guest-shutdown": lambda *_: machine.shutdown(WORKER, {"command": ["/sbin/shutdown"], "mode": None}),
    "guest-suspend-disk": suspends("disk", systemd=False),
    "guest-suspend-ram": suspends("ram", systemd=False),
    "guest-suspend-hybrid": suspends("hybrid", systemd=True),
}
ELSEWHERE = {"guest-exec", "guest-file-open"}


def played(guest: Guest, command: Command, calls: Calls) -> Any:
    """Return what the command answers; a Fault as its worker reports it."""
    with pytest.MonkeyPatch.context() as patch:
        guest.patch = patch
        guest.count(calls)
        try:
            return command(guest, calls)
        except Fault as fault:
            return fault
        except Exception as error:  # noqa: BLE001 - as the worker does
            return fault_of("guest-x", error)


def test_every_command_of_a_worker_is_walked() -> None:
    ours = {row.name for row in RPCS.values() if row.is_guest and row.runs is Runs.WORKER}
    freezes = {name for name in ours if RPCS[name].handler == "methods.fsfreeze"}
    assert ours - freezes - ELSEWHERE == set(COMMANDS)


SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the guest has not got now: no fact may be left out for that."""
LACKS: dict[str, str] = {
    "guest-get-disks": "open read close listdir stat lstat readlink",  # a disk may vanish, and not all is known of each
    "guest-get-fsinfo": "open read close listdir stat lstat readlink statvfs",
    "guest-get-memory-blocks": "open listdir",  # ENOENT: the kernel has none, or cannot take it offline
    "guest-get-osinfo": "open read close",
    "guest-get-users": "open read close",
    "guest-get-vcpus": "open",
    "guest-network-get-interfaces": "open read close",
    "guest-network-get-route": "open read close",
    "guest-fstrim": "ioctl",  # ENOTTY, EOPNOTSUPP: it cannot discard
    "guest-set-memory-blocks": "open stat",
    "guest-set-time": "access",
    "guest-set-user-password": "access",
    "guest-set-vcpus": "open",
    "guest-ssh-add-authorized-keys": "openat2",  # no file: no keys; and an older kernel has no openat2
    "guest-ssh-get-authorized-keys": "openat2",
    "guest-ssh-remove-authorized-keys": "openat2",
    "guest-suspend-disk": "run open",  # the next way is tried
    "guest-suspend-ram": "run open",
    "guest-suspend-hybrid": "run",
}
"""Calls that a command may do without: it answers what it knows, or says what that means."""
_BY_PATH = ("lstat", "stat", "readlink", "statvfs", "access")
PYTHON = ("Errno", "Error:", "None", "Traceback", ".py", " object at ")


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of listdir itself
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


def told(value: Any, call: str, number: int) -> bool:
    """Return whether an answer says what was refused."""
    if call == "getloadavg":  # getloadavg(3) sets no errno
        return isinstance(value, Fault) and "load average" in value.text
    if call == "run" and number == errno.EAGAIN and "no more threads or processes" in str(value):
        return True
    return os.strerror(number) in str(value) or f"'error-code': {number}" in str(value)


def complaint(name: str, call: str, number: int, value: Any) -> str:
    """Return what is wrong with the answer of a command that was refused this call, "" if nothing is."""
    if isinstance(value, Fault):
        if value.code is Code.INTERNAL or any(word in value.text for word in PYTHON):
            return "a defect, or Python"
        if not value.text.partition(":")[0].strip():
            return "it names nothing"
    if told(value, call, number):
        return ""
    if call not in LACKS.get(name, "").split():
        return "it does not say so"
    scarce = number in SCARCE or (call == "run" and number == errno.EAGAIN)
    return "left out for want of something else" if scarce and call not in _BY_PATH else ""


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_call_of_a_command_may_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    guest = Guest(tmp_path, monkeypatch)
    good = Calls()
    assert not isinstance(played(guest, COMMANDS[name], good), Fault) or "hybrid" in name
    before = descriptors()
    wrong = []
    for at, call in enumerate(good.made):
        for number in ERRNOS[call]:
            guest.fill()
            value = played(guest, COMMANDS[name], Calls(at, number))
            why = complaint(name, call, number, value)
            if left := descriptors() - before:
                why = f"left open: {left}"
                for fd, _ in left:
                    os.close(int(fd))
            if [file for file in os.listdir(guest.keys.parent) if file != guest.keys.name]:
                why = "half of a file is left"
            if guest.rights.uid != guest.rights.before and (call, at) != ("seteuid", _last(good.made, "seteuid")):
                why = "the rights are still the user's"
            guest.rights.uid = guest.rights.before
            if why:
                wrong.append(f"{at} {call} {errno.errorcode[number]}: {why}: {value}"[:200])
    assert not wrong


def _last(calls: list[str], name: str) -> int:
    return max(at for at, call in enumerate(calls) if call == name)

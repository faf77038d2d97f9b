"""What the guest's own /proc and /sys say about a freeze, and hooks and databases that no writer knows.

It only reads, and opens nothing on a disk but folders of hooks.

It is asked when the agent's socket belongs to an agent on this machine: the kernel says which process listens there
(SO_PEERCRED, unix(7)). QEMU's own end of a channel is also a unix socket, on the host.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ..agent.api.text import brief, listed
from .doctor import Check, fail, info, ok, warn
from .transports import Endpoint

_SUPERVISOR = re.compile(r"virtag\S*: supervisor")
_QEMU_GA = "qemu-ga"
_WAITS_FOR_THAW = ("percpu_rwsem_wait", "sb_start_write", "__sb_start_write", "percpu_down_read")
"""Where a writer to a frozen file system sleeps (/proc/PID/wchan, proc(5)); seen on Linux 5.10 to 6.18."""
_DESCRIPTORS_EACH, _DESCRIPTORS_SPARE = 1, 64
_CONNECT_SECONDS = 1.0
_PATH_MAX = 4096
_HOOKS: tuple[tuple[set[str], tuple[str, ...], str], ...] = (
    (
        {"hook", "hook-dir"},
        ("etc/qemu/fsfreeze-hook.d", "etc/qemu-ga/fsfreeze-hook.d"),
        "see --hook, or `type hook` in writers.d",
    ),
    ({"vmware"}, ("etc/vmware-tools/backupScripts.d",), "`type vmware` in writers.d"),
)
"""By the types of writers that call them: where hooks lie that other agents call, below the root, and what to do."""
_NO_HOOKS = (".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample")
_SERVERS: Mapping[str, set[str]] = {
    "mariadbd": {"mariadb"},
    "mongod": {"mongodb"},
    "mysqld": {"mariadb", "mysql"},
    "postgres": {"postgresql"},
    "redis-server": {"redis"},
    "valkey-server": {"redis"},
}
"""The names of the servers' processes (comm), and the types of writers that hold them."""
_OF_ANY = {"hook", "hook-dir", "live", "pair", "sql", "vmware"}


def agent_of(endpoint: Endpoint, proc: Path = Path("/proc")) -> int:
    """Return the process id of the agent that listens at a unix socket of this machine, 0 if that is none."""
    if endpoint.family != socket.AF_UNIX or endpoint.hello:
        return 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(endpoint.address)
            pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:
        return 0
    return pid if _SUPERVISOR.match(_read(proc / str(pid) / "cmdline")) else 0


def examine(
    agent: int, writers: Collection[str], proc: Path = Path("/proc"), sys: Path = Path("/sys"), root: Path = Path("/")
) -> Iterator[Check]:
    """Check the machine that the agent with this process id runs on; `writers` are the types of those that it has."""
    yield from _of_the_agent(agent, proc)
    yield from _of_rivals(proc)
    yield from _of_waiting_writers(proc)
    yield from _of_the_kernel(sys)
    yield from _of_hooks(writers, root)
    yield from _of_servers(writers, proc)


def _of_the_agent(agent: int, proc: Path) -> Iterator[Check]:
    status = dict(line.split(":\t", 1) for line in _read(proc / str(agent) / "status").splitlines() if ":\t" in line)
    if not status:
        return
    effective = status.get("Uid", "").split()[1:2]
    if effective == ["0"]:
        yield ok("the agent runs as root")
    else:
        yield fail("the agent does not run as root", "FIFREEZE needs CAP_SYS_ADMIN: run it as root")
    locked = status.get("VmLck", "0 kB").split()[0]
    if locked == "0":
        yield warn("the agent's memory is not locked: swapped out, it may wait for a frozen disk", "see LimitMEMLOCK")
    if _link(proc / str(agent) / "ns/mnt") != _link(proc / "1/ns/mnt"):
        yield warn(
            "the agent is in a mount namespace of its own: it sees the mounts of that, not those of the guest",
            "no PrivateTmp, ProtectSystem or ProtectHome in its unit",
        )
    allowed = re.search(r"^Max open files\s+(\d+)", _read(proc / str(agent) / "limits"), re.MULTILINE)
    mounted = _read(proc / str(agent) / "mountinfo").count("\n")
    if allowed and int(allowed[1]) < mounted * _DESCRIPTORS_EACH + _DESCRIPTORS_SPARE:
        yield warn(f"{allowed[1]} open files are allowed, and {mounted} mounts are there", "raise LimitNOFILE")
    on_disk = _files_on_disks(agent, proc)
    if on_disk:
        yield warn(f"the agent writes to {listed(on_disk)} on a disk: lines of a freeze come after the thaw")
    swaps = [
        line.split()[0] for line in _read(proc / "swaps").splitlines()[1:] if "\tfile\t" in line or " file " in line
    ]
    if swaps:
        yield info(f"swap in {listed(map(brief, swaps))}: no evidence of writes to that file system while it is frozen")


def _files_on_disks(agent: int, proc: Path) -> list[str]:
    """Return the regular files that the agent or a child of it appends to, and that are not in memory."""
    in_memory = {
        fields[2]
        for line in _read(proc / str(agent) / "mountinfo").splitlines()
        if (fields := line.split()) and fields[fields.index("-") + 1] in ("tmpfs", "ramfs", "devtmpfs")
    }
    children = _read(proc / str(agent) / "task" / str(agent) / "children").split()
    found = set()
    for pid in (str(agent), *children):
        for fd in _entries(proc / pid / "fd"):
            with contextlib.suppress(OSError):
                flags = re.search(r"^flags:\s+(\d+)", _read(proc / pid / "fdinfo" / fd.name), re.MULTILINE)
                if flags is None or not int(flags[1], 8) & os.O_APPEND:
                    continue
                seen = fd.stat()
                device = f"{os.major(seen.st_dev)}:{os.minor(seen.st_dev)}"
                if stat.S_ISREG(seen.st_mode) and device not in in_memory:
                    found.add(brief(_link(fd)))
    return sorted(found)


def _of_rivals(proc: Path) -> Iterator[Check]:
    rivals = [pid for pid in _processes(proc) if _read(proc / pid / "comm").strip() == _QEMU_GA]
    if rivals:
        yield fail(
            f"qemu-ga runs (pid {listed(rivals)}): both want org.qemu.guest_agent.0",
            "systemctl disable --now qemu-guest-agent",
        )


def _of_waiting_writers(proc: Path) -> Iterator[Check]:
    waiting: dict[str, list[str]] = {}
    for pid in _processes(proc):
        tasks = _entries(proc / pid / "task")
        blocked = [task for task in tasks if _read(task / "wchan").strip() in _WAITS_FOR_THAW]
        if blocked:
            where = next(filter(None, (_waits_for(task) for task in blocked)), "")
            waiting.setdefault(where, []).append(f"{_read(proc / pid / 'comm').strip()} {pid}")
    for where, those in sorted(waiting.items()):
        yield fail(
            f"{brief(where) or 'a file system'} is frozen already, by someone else or by a dead agent; "
            f"{len(those)} of its writers wait ({brief(listed(those))})",
            f"`fsfreeze -u {brief(where) or 'MOUNTPOINT'}` if nobody needs it",
        )
    if not waiting:
        yield ok("no process waits to write to a frozen file system")


def _waits_for(task: Path) -> str:
    """Return the mount point of what a thread in a system call waits to write to, "" if that cannot be told.

    Its first arguments are a descriptor, or the address of a path (/proc/PID/syscall, proc(5)).
    """
    mounts = [line.split() for line in _read(task / "mountinfo").splitlines()]
    for argument in re.findall(r"0x[0-9a-f]+", _read(task / "syscall"))[:2]:
        number = int(argument, 16)
        found = re.search(r"^mnt_id:\s+(\d+)", _read(task / "fdinfo" / str(number)), re.MULTILINE)
        if found:
            return next((fields[4] for fields in mounts if fields[0] == found[1]), "")
        path = _text_at(task / "mem", number)
        if path.startswith("/"):
            points = (fields[4] for fields in mounts if f"{path}/".startswith(fields[4].rstrip("/") + "/"))
            return max(points, key=len, default="")
    return ""


def _text_at(memory: Path, address: int) -> str:
    try:
        with open(memory, "rb", buffering=0) as file:
            file.seek(address)
            return os.fsdecode(file.read(_PATH_MAX).partition(b"\0")[0])
    except (OSError, ValueError, OverflowError):
        return ""


def _of_the_kernel(sys: Path) -> Iterator[Check]:
    if _read(sys / "kernel/rcu_expedited").strip() not in ("0", "1", "2"):
        yield info("the kernel has no rcu_expedited: each freeze waits for normal grace periods, some 20 ms more")
    if _read(sys / "fs/selinux/enforce").strip() == "1":
        yield info("SELinux is enforcing: look for denials of virtagent in the audit log if a freeze fails")


def _of_hooks(writers: Collection[str], root: Path) -> Iterator[Check]:
    for types, folders, to_do in _HOOKS:
        paths = [path for folder in folders for path in _entries(root / folder) if _is_hook(path)]
        if paths and not types & set(writers):
            found = listed(brief(str(path)) for path in sorted(paths))
            yield warn(f"hooks that no writer calls: {found}", to_do)


def _is_hook(path: Path) -> bool:
    return (
        not path.name.startswith(".") and path.suffix not in _NO_HOOKS and path.is_file() and os.access(path, os.X_OK)
    )


def _of_servers(writers: Collection[str], proc: Path) -> Iterator[Check]:
    running = {_read(proc / pid / "comm").strip() for pid in _processes(proc)}
    if _OF_ANY & set(writers):
        return  # nobody knows which application they hold
    for program, types in sorted(_SERVERS.items()):
        if program in running and not types & set(writers):
            yield info(f"{program} runs, and no writer holds it: is a freeze alone enough? (databases.md)")


def _processes(proc: Path) -> list[str]:
    return sorted((one.name for one in _entries(proc) if one.name.isdigit()), key=int)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

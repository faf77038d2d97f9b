"""A program that confines itself as a service unit says, and then is another: as far as it can be had without systemd.

What it has not: KeyringMode, RestrictRealtime, LockPersonality, RestrictSUIDSGID, IPAddressDeny. Of RestrictNamespaces
it has what concerns unshare(2).
"""

from __future__ import annotations

import ctypes
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import Unmet

# 38: PR_SET_NO_NEW_PRIVS; 65: PR_SET_MDWE (Linux 6.3, else EINVAL). The errors are those of systemd's filters.
_SCRIPT = """#!{python} -I
import ctypes, os, resource, sys

if {may_raise}:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-900")
libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")

class Compared(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

def error(number):
    return 0x00050000 | number

def done(result):
    if result:
        sys.exit(f"confining failed: {{result}}")

seccomp.seccomp_init.restype = ctypes.c_void_p
rules = ctypes.c_void_p(seccomp.seccomp_init(error(1)))
def rule(action, name, *compared):
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        array = (Compared * len(compared))(*compared)
        done(seccomp.seccomp_rule_add_array(rules, action, number, len(compared), array))

for name in {calls}:
    rule(0x7FFF0000, name)
rule(0x7FFF0000, "unshare", Compared(0, 7, {other_namespaces}, 0))
for family in range(64):
    rule(0x7FFF0000 if family in {families} else error(97), "socket", Compared(0, 4, family, 0))
if libc.prctl(65, 1, 0, 0, 0) and ctypes.get_errno() != 22:
    sys.exit("prctl failed")
done(libc.prctl(38, 1, 0, 0, 0))
done(seccomp.seccomp_load(rules))
os.execvp("setpriv", ["setpriv", "--bounding-set={bounding}", "--inh-caps=-all", "{program}", *sys.argv[1:]])
"""

# linux/sched.h
_NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
    "time": 0x00000080,
}


def may_raise() -> bool:
    """Return whether this process may raise its limits, as systemd may, but not everyone in a container."""
    return bool(own_capabilities() >> 24 & 1)  # CAP_SYS_RESOURCE


def own_capabilities() -> int:
    """Return the effective capabilities of this process, a bit each."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    return int(line.split()[1], 16)


def words(unit: str, name: str) -> list[str]:
    """Return the words of all the unit's lines NAME=."""
    lines = [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{name}=")]
    return [word for line in lines for word in line.split()]


def make(path: Path, unit: str, python: Path, program: Path, *, may_raise: bool) -> None:
    """Make `path` the program; raise Unmet without what it needs. `may_raise`: whether limits can be had as well."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise Unmet("needs libseccomp.so.2 (Debian package libseccomp2)") from None
    if shutil.which("systemd-analyze") is None:
        raise Unmet("needs systemd-analyze (Debian package systemd)")
    capabilities = [word.lower().replace("cap_", "+") for word in words(unit, "CapabilityBoundingSet")]
    text = _SCRIPT.format(
        python=python,
        program=program,
        may_raise=may_raise,
        calls=sorted(system_calls(unit) - {"socket", "unshare"}),
        other_namespaces=_other_namespaces(words(unit, "RestrictNamespaces")),
        families=[int(getattr(socket, word)) for word in words(unit, "RestrictAddressFamilies")],
        bounding=",".join(("-all", *capabilities)),
    )
    path.write_text(text)
    path.chmod(0o755)


def _other_namespaces(allowed: Sequence[str]) -> int:
    """Return the flags of unshare(2) that RestrictNamespaces forbids: all but those of the kinds that it names."""
    forbidden = 0
    for kind, flag in _NAMESPACES.items():
        forbidden |= 0 if kind in allowed else flag
    return forbidden


def system_calls(unit: str) -> set[str]:
    """Return the names of the system calls that the unit leaves."""
    left: set[str] = set()
    for line in words(unit, "SystemCallFilter"):
        name = line.removeprefix("~")
        found = set(calls_in(name)) if name.startswith("@") else {name}
        left = left - found if line.startswith("~") else left | found
    return left


def calls_in(group: str) -> Iterator[str]:
    """Yield the system calls of a group of systemd, of the groups in it, too."""
    command = ["systemd-analyze", "syscall-filter", group]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in said.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            yield from calls_in(name)
        elif name and not name.startswith("#"):
            yield name

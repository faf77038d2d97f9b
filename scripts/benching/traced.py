"""What strace sees of a daemon and its workers while a host does something, counted by kind of system call."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

import psutil
from harness import Unmet
from harness.daemon import Daemon
from harness.processes import until

SETTLE = 0.05
_CALL = re.compile(r"^(\d+) +(\d+\.\d+) (\w+)\((.*)")
_REQUEST = re.compile(r"\b(FI\w+)\b")
_BY_PROCESS = re.compile(r'"[^"]*/\d+/ns/mnt"')
"""What is asked of each process of the machine, however many it has."""

_ALIKE = (
    ("clone", "clone3 fork vfork"),
    ("epoll_wait", "epoll_pwait epoll_pwait2"),
    ("memory", "brk madvise mmap mprotect mremap munmap"),
    ("openat", "open openat2"),
    ("poll", "ppoll"),
    ("read", "pread64"),
    ("readlink", "readlinkat"),
    ("recvfrom", "recvmsg"),
    ("rename", "renameat renameat2"),
    ("select", "pselect6"),
    ("sendto", "sendmsg"),
    ("stat", "fstat lstat newfstatat statx"),
    ("unlink", "unlinkat"),
    ("write", "pwrite64 writev"),
)
_NAMES = {name: common for common, names in _ALIKE for name in names.split()}
"""What one C library calls otherwise than another."""

Counts = dict[str, int]


def trace(daemon: Daemon, times: int, do: Callable[[], object]) -> tuple[Counts, Counts]:
    """Do it again and again; return the system calls of one time by the supervisor, and by its workers.

    Of each kind the least that was needed: how often a thread waits for another is up to the scheduler.
    """
    log = daemon.folder / "strace"
    strace = subprocess.Popen(
        ["strace", "-f", "-ttt", "-q", "-s", "0", "-o", str(log), "-p", str(daemon.pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    daemon.area.guard(strace.pid)
    spans = []
    try:
        until(lambda: _is_traced(daemon.pid) or strace.poll() is not None, 10, "strace to be attached")
        if strace.poll() is not None:
            raise Unmet(f"strace: {strace.communicate()[1].decode().strip()}")
        _rest(daemon)
        for _ in range(times):
            begun = time.time()
            do()
            _rest(daemon)
            spans.append((begun, time.time()))
    finally:
        if strace.poll() is None:
            strace.send_signal(signal.SIGINT)
            strace.communicate(timeout=20)
    return _least(log.read_text(encoding="utf-8", errors="replace"), daemon.pid, spans)


def _is_traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return any(line.startswith("TracerPid:") and int(line.split()[1]) for line in status)


def _rest(daemon: Daemon) -> None:
    """Wait until its workers are reaped, and what follows from that is done."""
    until(lambda: not psutil.Process(daemon.pid).children(), 20, "the workers to be reaped")
    time.sleep(SETTLE)


def _least(log: str, supervisor: int, spans: list[tuple[float, float]]) -> tuple[Counts, Counts]:
    found: list[tuple[Counter[str], Counter[str]]] = [(Counter(), Counter()) for _ in spans]
    for line in log.splitlines():
        call = _CALL.match(line)
        if call is None:
            continue  # the end of a call that another one interrupted, a signal, an exit
        if _BY_PROCESS.search(call[4]):
            continue
        at, name = float(call[2]), call[3]
        if name == "ioctl":
            request = _REQUEST.search(call[4])
            name = f"ioctl {request[1]}" if request else name
        name = _NAMES.get(name, name)
        for number, (begun, ended) in enumerate(spans):
            if begun <= at <= ended:
                found[number][int(call[1]) != supervisor][name] += 1
    return least_of([ours for ours, _ in found]), least_of([workers for _, workers in found])


def least_of(all_: list[Counter[str]]) -> Counts:
    """Return of each kind the least."""
    kinds = sorted({kind for one in all_ for kind in one})
    return {kind: least for kind in kinds if (least := min(one[kind] for one in all_))}

"""The guard: counts that may not grow, compared with what scripts/bench-counts.json keeps. Never seconds.

What the scheduler, the C library and the interpreter decide (waits for one another, memory) has some room; all else
must not grow at all. `--update` keeps what is found now.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harness.daemon import Daemon
from harness.hosts import request
from harness.namespace import Area
from harness.peer import Talk
from harness.processes import TESTS
from harness.rig import Rig, closed
from virtagent.host import Agent

from .figures import progress, say
from .life import switches
from .scaling import SIZE
from .traced import Counts, least_of, trace

KEPT = Path(__file__).resolve().parents[1] / "bench-counts.json"
MOUNTS, TIMES, ASKED, IDLE, AGAIN = 8, 6, 5, 5, 2
LOOSE = frozenset(
    [
        "epoll_wait",
        "getdents64",
        "getpid",
        "gettid",
        "ioctl",
        "lseek",
        "memory",
        "poll",
        "prctl",
        "prlimit64",
        "read",
        "rseq",
        "rt_sigaction",
        "rt_sigprocmask",
        "select",
        "set_robust_list",
        "stat",
    ]
)
"""System calls that the scheduler, the C library or the interpreter's version have a say in."""
WILD = frozenset({"futex", "sched_yield"})
"""Those that depend on how many cores fight for one lock."""
_LEFT_OUT = re.compile(rb"<value><struct>(?:(?!</?struct>).)*left-out(?:(?!</?struct>).)*</struct></value>", re.DOTALL)
_NUMBER = re.compile(rb"-?\d+(\.\d+)?(e-?\d+)?")

Kept = dict[str, Counts]


def collect(area: Area) -> Kept:
    """Count; a rig of its own holds the file systems."""
    rig = Rig(area)
    try:
        filesystems = [rig.fs("ext4", SIZE) for _ in range(MOUNTS)]
        found = {"modules at start": _modules(), "texts compiled at start": _compiled()}
        daemon = _daemon(rig)
        found |= system_calls(daemon, [str(fs) for fs in filesystems])
        found["bytes of an answer, each number as 0"] = _bytes(daemon)
        found["idle"] = _idle(daemon)
        daemon.stop()
        found[f"reports of a freeze and thaw of {MOUNTS}"] = _reports(rig)
    finally:
        closed(rig)
    return found


def _daemon(rig: Rig, **env: str) -> Daemon:
    path = os.pathsep.join(map(str, (TESTS, Path(__file__).parents[1])))
    return rig.daemon([rig.everywhere], module="benching.listening", env={"PYTHONPATH": path, **env})


def _modules() -> Counts:
    """Return the modules that the daemon imports and the bare interpreter does not, with 1 each."""
    script = (
        "import sys; had = set(sys.modules); import virtagent.supervisor.main; "
        "print(*(set(sys.modules) - had), sep='\\n')"
    )
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    public = {name if name.startswith("virtagent.") else name.split(".")[0] for name in listed.split()}
    return {name: 1 for name in sorted(public) if not name.startswith(("_", "sre_"))}


def _compiled() -> Counts:
    """Return how often each module of ours has a text compiled when it is imported: for a dataclass, a NamedTuple."""
    script = """
import sys

def note(event, _details):
    if event == "compile":
        frame = sys._getframe(1)
        while frame and not frame.f_globals.get("__name__", "").startswith("virtagent."):
            # What an import statement compiles is a module that had no compiled file yet.
            frame = None if "importlib" in frame.f_code.co_filename else frame.f_back
        if frame:
            print(frame.f_globals["__name__"])

sys.addaudithook(note)
import virtagent.supervisor.main
"""
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return dict(Counter(listed.split()))


def system_calls(daemon: Daemon, paths: list[str]) -> Kept:
    """Return those of pings, of a status, and of a freeze and thaw, by kind."""
    talk = Talk(daemon.area, str(daemon.socket), 60)
    agent = Agent(daemon.url)

    def freeze_and_thaw() -> None:
        assert talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": paths}) == {"return": len(paths)}
        assert talk.ask("guest-fsfreeze-thaw") == {"return": len(paths)}

    found: Kept = {}
    for what, times, do in (
        ("ping, JSON", TIMES, lambda: talk.ask("guest-ping")),
        ("ping, XML-RPC", TIMES, agent.ping),
        ("status", TIMES, agent.status),
        (f"freeze and thaw of {MOUNTS}", ASKED, freeze_and_thaw),
    ):
        progress(what)
        do()
        supervisor, workers = trace(daemon, times, do)
        found[f"system calls of a {what}: supervisor"] = supervisor
        if workers:
            found[f"system calls of a {what}: worker"] = workers
    talk.close()
    agent.close()
    return found


def _bytes(daemon: Daemon) -> Counts:
    agent = Agent(daemon.url)
    found = {"ping": _length(daemon, "va.ping"), "status": _length(daemon, "va.fsstatus", {"since": 0, "wait": 0})}
    agent.freeze()
    found[f"status, {MOUNTS} frozen"] = _length(daemon, "va.fsstatus", {"since": 0, "wait": 0})
    agent.thaw()
    agent.close()
    return found


def _length(daemon: Daemon, method: str, *params: object) -> int:
    sock = daemon.raw()
    sock.sendall(request(method, *params))
    answer = b""
    while b"</methodResponse>" not in answer:
        answer += sock.recv(1 << 16)
    sock.close()
    # What is mounted besides, and where, is this machine's.
    answer = _LEFT_OUT.sub(b"", answer.replace(str(daemon.area.root).encode(), b""))
    return len(_NUMBER.sub(b"0", answer))


def _idle(daemon: Daemon) -> Counts:
    progress(f"idle for {IDLE} s")
    time.sleep(0.5)  # until the hanging up has been seen
    before = switches(daemon.pid)
    time.sleep(IDLE)
    return {
        f"wake-ups in {IDLE} s": switches(daemon.pid) - before,
        "threads": len(list(Path(f"/proc/{daemon.pid}/task").iterdir())),
        "descriptors": len(daemon.fds()),
    }


def _reports(rig: Rig) -> Counts:
    progress("reports")
    listed = rig.area.fresh("reports")
    daemon = _daemon(rig, BENCH_REPORTS=str(listed))
    found = []
    with Agent(daemon.url) as agent:
        for _ in range(ASKED):
            listed.write_text("")
            agent.freeze()
            agent.thaw()
            found.append(Counter(listed.read_text(encoding="utf-8").splitlines()))
    daemon.stop()
    return least_of(found)


def room(section: str, name: str, count: int) -> int:
    """Return how much more than `count` is still no growth."""
    if not section.startswith("system calls"):
        return 0
    if name in ("close", "openat"):
        # Python 3.12 reads a file more than 3.11; and sysfs has what others mount meanwhile.
        return 1 + count // 20
    return count + 20 if name in WILD else count // 4 + 3 if name in LOOSE else 0


def check(area: Area) -> int:
    """Count, print what grew beyond what is kept, and return the exit code.

    Where something grew it is counted again: a busy machine makes a sync slow, which brings about another.
    """
    kept: Kept = json.loads(KEPT.read_text(encoding="utf-8"))
    found = collect(area)
    for _ in range(AGAIN):
        if not any(_grown(kept, found)):
            break
        again = collect(area)
        found = {
            section: {name: min(count, again.get(section, {}).get(name, 0)) for name, count in counts.items()}
            for section, counts in found.items()
        }
    if grown := list(_grown(kept, found)):
        say("\n".join(["| what grew | | kept | now |", "|---|---|---|---|", *grown]))
        say("scripts/bench: it costs more than it did; if that must be: scripts/bench --update")
        return 1
    less = sum(
        count < kept.get(section, {}).get(name, 0) - room(section, name, count)
        for section, counts in found.items()
        for name, count in counts.items()
    )
    say(f"scripts/bench: no count grew; smaller: {less}" + (" (scripts/bench --update keeps that)" if less else ""))
    return 0


def _grown(kept: Kept, found: Kept) -> Iterator[str]:
    for section in sorted(found):
        for name, count in found[section].items():
            was = kept.get(section, {}).get(name, 0)
            if count > was + room(section, name, was):
                yield f"| {section} | {name} | {was} | {count} |"


def update(found: Kept) -> int:
    """Keep what was found."""
    KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    say(f"scripts/bench: {sum(map(len, found.values()))} counts kept")
    return 0

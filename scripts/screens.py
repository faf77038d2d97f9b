"""The work of scripts/screens, which starts it in a mount namespace of its own: nothing of the machine is frozen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
DISKS = {"web": "vdb", "mail": "vdc", "db": "vdd"}
SLOW, DIRTY = "db", 256  # whose disk is slow, and MiB that are written to it
FOLDER = "/mnt"  # of this mount namespace, and in memory
WAIT = 60.0  # seconds for a screen to come
HEAD = """\
# Screens

<!-- Made by scripts/screens, which runs all this in tmux. Do not edit. -->

Three file systems, one of them on a slow disk. The devices are loop devices here; in a guest they are its disks. What
the same things looked like when newcomers first tried them: [before and after](before-and-after.md).
"""


WITH_US = ("setpriv", "--pdeathsig", "TERM")  # what is started so ends with this process, also if that is killed


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for what sends no event. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        threading.Event().wait(0.05)


class Agent:
    """The agent of this guest."""

    def __init__(self, log: str) -> None:
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = (*WITH_US, str(BIN / "virtagentd"), "--include", "/srv/*")
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(command, stderr=log)
        ping = ("virtagentctl", "ping")
        until(lambda: subprocess.run(ping, capture_output=True, check=False).returncode == 0, "virtagentd is silent")

    def end(self) -> None:
        """End it; it thaws first."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def kill(self) -> None:
        """Kill its processes, and so leave the guest frozen."""
        assert self._process is not None
        known = json.loads(run("virtagentctl", "--json", "status"))["workers"]
        pids = [self._process.pid, *(worker["pid"] for worker in known)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that none sees another one die
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()


class Terminal:
    """A terminal of tmux with a shell in it."""

    def __init__(self, folder: str, columns: int, lines: int) -> None:
        self._ended = 0  # commands: each has a mark of its own, since an old screen may still be there
        self._tmux = ("tmux", "-S", f"{folder}/tmux", "-f", "/dev/null")
        self._server = subprocess.Popen((*WITH_US, *self._tmux, "-D"), stderr=subprocess.DEVNULL)
        shell = "env PS1='# ' bash --norc --noprofile"
        begin = (*self._tmux, "new-session", "-d", "-x", str(columns), "-y", str(lines), shell)
        until(lambda: subprocess.run(begin, capture_output=True, check=False).returncode == 0, "tmux does not start")
        self.read_until("#")

    def type(self, *keys: str) -> None:
        run(*self._tmux, "send-keys", *keys)

    def shown(self) -> str:
        return run(*self._tmux, "capture-pane", "-p").rstrip() + "\n"

    def read_until(self, *words: str) -> str:
        """Return the screen as soon as it shows all of these words."""
        deadline = time.monotonic() + WAIT
        while not all(word in "\n" + (found := self.shown()) for word in words):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the screen does not show {words}:\n{found}")
            threading.Event().wait(0.05)
        return found

    def wait_prompt(self) -> None:
        """Wait until the shell reads again: what is typed before that is lost."""
        until(lambda: self.shown().endswith("#\n"), "the shell does not prompt")

    def ended(self, command: str) -> str:
        """Run a command; return the screen when it has ended, its exit code in the last line."""
        self.wait_prompt()
        self._ended += 1
        # In quotes the mark is not what it prints: the command line itself stands on the screen, too.
        self.type(f"clear; {command}; echo exit code $? .''{self._ended}.", "Enter")
        marked = f" .{self._ended}.\n"
        return self.read_until("\nexit code ", marked).removesuffix("#\n").replace(marked, "\n")

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


class SlowDisk:
    """The file system `path`, on which an image lies, lets data through only now and then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._hinder)

    def __enter__(self) -> SlowDisk:
        run("fsfreeze", "-f", self._path)
        self._thread.start()
        return self

    def __exit__(self, *_about: object) -> None:
        self._ends.set()
        self._thread.join()

    def _hinder(self) -> None:
        while not self._ends.wait(0.3):
            run("fsfreeze", "-u", self._path)
            if not self._ends.wait(0.01):
                run("fsfreeze", "-f", self._path)
        subprocess.run(("fsfreeze", "-u", self._path), check=False, capture_output=True)


@contextlib.contextmanager
def guest(folder: str) -> Iterator[Agent]:
    """Mount what looks like a guest's disks, and run the agent for these only."""
    agent = Agent(f"{folder}/log")
    mounted: list[str] = []

    def mount(*words: str) -> None:
        run("mount", *words)
        mounted.append(words[-1])

    def disk(image: str, point: str, size: str) -> None:
        run("truncate", "-s", size, image)
        run("mkfs.ext4", "-q", image)
        os.makedirs(point, exist_ok=True)
        mount("-o", "loop", image, point)

    try:
        for point in (folder, "/srv", "/run/virtagent"):
            os.makedirs(point, exist_ok=True)
            mount("-t", "tmpfs", "-o", "mode=700", "virtagent-screens", point)
        disk(f"{folder}/slow.img", f"{folder}/slow", "900M")
        for name in DISKS:
            where = f"{folder}/slow" if name == SLOW else folder
            disk(f"{where}/{name}.img", f"/srv/{name}", "600M" if name == SLOW else "64M")
        agent.start()
        for name in DISKS:
            Path(f"/srv/{name}/data").write_bytes(os.urandom(1 << 20) * (DIRTY if name == SLOW else 1))
        yield agent
    finally:
        agent.end()
        for point in reversed(mounted):
            subprocess.run(("umount", "-l", point), check=False, capture_output=True)


def screens(terminal: Terminal, folder: str) -> Iterator[tuple[str, str]]:
    """Yield what each screen shows, and the screen."""
    terminal.type("clear; virtagentctl snapshot --hold 60 -- sleep 3", "Enter")
    with SlowDisk(f"{folder}/slow"):
        yield (
            "While the disks are synced, applications run",
            terminal.read_until("SYNCING", " left ", "about ", "/srv/db"),
        )
    done = terminal.read_until("good: ")
    yield "It is frozen, COMMAND runs, it is thawed", done
    terminal.type("clear; virtagentctl freeze --hold 40; virtagentctl watch", "Enter")
    yield "`virtagentctl watch` while it is frozen", terminal.read_until("* FROZEN", "thaws by itself in")
    terminal.type("q", "")
    terminal.wait_prompt()
    terminal.type("clear; virtagentctl thaw", "Enter")
    yield "`virtagentctl thaw`, and what became of the freeze", terminal.read_until("thawing")


def stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    os.environ.pop("VIRTAGENT_AGENT", None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with (
        guest(FOLDER) as agent,
        contextlib.closing(Terminal(FOLDER, 80, 24)) as terminal,
    ):
        parts = [f"## {title}\n\n```text\n{shown}```\n" for title, shown in screens(terminal, FOLDER)]
        Path(sys.argv[1]).write_text("\n".join([HEAD, *parts]), encoding="utf-8")
        if sys.argv[2:]:
            import screens_cases

            Path(sys.argv[2]).write_text(screens_cases.page(terminal, agent, f"{FOLDER}/slow"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"scripts/screens: {error} {getattr(error, 'stderr', '') or ''}")

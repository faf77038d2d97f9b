"""The work of scripts/screens, which starts it in a mount namespace of its own: nothing of the machine is frozen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
DISKS = {"web": "vdb", "mail": "vdc", "db": "vdd"}
SLOW, DIRTY = "db", 256  # whose disk is slow, and MiB that are written to it
WAIT = 60.0  # seconds for a screen to come
HEAD = """\
# Screens

<!-- Made by scripts/screens, which runs all this in tmux. Do not edit. -->

Three file systems, one of them on a slow disk. The devices are loop devices here; in a guest they are its disks.
"""


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Terminal:
    """A terminal of tmux with a shell in it."""

    def __init__(self, folder: str, columns: int, lines: int) -> None:
        self._tmux = ("tmux", "-S", f"{folder}/tmux", "-f", "/dev/null")
        shell = "env PS1='# ' bash --norc --noprofile"
        run(*self._tmux, "new-session", "-d", "-x", str(columns), "-y", str(lines), shell)
        self.read_until("#")

    def type(self, *keys: str) -> None:
        run(*self._tmux, "send-keys", *keys)

    def shown(self) -> str:
        return run(*self._tmux, "capture-pane", "-p").rstrip() + "\n"

    def read_until(self, *words: str) -> str:
        """Return the screen as soon as it shows all of these words."""
        deadline = time.monotonic() + WAIT
        while not all(word in (found := self.shown()) for word in words):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the screen does not show {words}:\n{found}")
            threading.Event().wait(0.05)
        return found

    def close(self) -> None:
        run(*self._tmux, "kill-server")


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
def guest(folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """Mount what looks like a guest's disks, and run the agent for these only."""
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
        command = [str(BIN / "virtagentd"), "--include", "/srv/*"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as agent:
            try:
                yield agent
            finally:
                agent.terminate()
    finally:
        for point in reversed(mounted):
            subprocess.run(("umount", "-l", point), check=False, capture_output=True)


def screens(folder: str) -> Iterator[tuple[str, str]]:
    """Yield what each screen shows, and the screen."""
    terminal = Terminal(folder, 80, 24)
    try:
        deadline = time.monotonic() + WAIT
        while subprocess.run(("virtagentctl", "ping"), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError("virtagentd does not answer")
        for name in DISKS:
            Path(f"/srv/{name}/data").write_bytes(os.urandom(1 << 20) * (DIRTY if name == SLOW else 1))
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
        terminal.type("clear; virtagentctl thaw", "Enter")
        yield "`virtagentctl thaw`, and what became of the freeze", terminal.read_until("thawing")
    finally:
        terminal.close()


def main() -> int:
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    os.environ.pop("VIRTAGENT_AGENT", None)
    with tempfile.TemporaryDirectory() as folder, guest(folder):
        parts = [f"## {title}\n\n```text\n{shown}```\n" for title, shown in screens(folder)]
    Path(sys.argv[1]).write_text("\n".join([HEAD, *parts]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"scripts/screens: {error} {getattr(error, 'stderr', '') or ''}")

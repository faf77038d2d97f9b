"""The show of scripts/demo --vm, which starts it: a guest with a slow disk, and who asks it from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from demo import BIN, heading, run, stop, tell, type_in
from harness import HarnessError, Unmet
from harness.processes import until
from harness.vm.guest import PLACES, Guest

RATE = 2_000_000  # bytes a second
DIRTY = 20  # MiB
TIMEOUT = 3
HOLD = 3
SYNC_LIMIT = 3


def show(guest: Guest) -> None:
    heading(
        "A Debian guest in QEMU, without KVM. Its disks have ext4 (/ and /srv/ext4), xfs and btrfs; each is written to"
    )
    tell(f"{guest.booted:.0f} s to systemd, {guest.answered:.0f} s to the agent's first answer")
    guest.write_everywhere()
    guest.wait_writing()
    host = f"unix:{guest.machine.run}/agent"
    os.environ["VIRTAGENT_AGENT"] = host
    tell("The host's end of the guest's virtio port org.qemu.guest_agent.0 is a socket:")
    tell(f"$ export VIRTAGENT_AGENT={host}")
    run("virtagentctl", "ping")
    run("virtagentctl", "plan")

    other = guest.plug_in()
    heading("A second port is plugged in, for somebody who looks while the first one works")
    run("virtagentctl", "--agent", other, "ping")

    heading(
        f"The disk of /srv/ext4 takes {RATE // 1_000_000} MB/s from now on, and {DIRTY} MiB are waiting for it. Freeze"
    )
    slow(guest)
    tell(f"The host gives up after {TIMEOUT} s; the freeze goes on, and whoever asks is answered")
    with watching(other, "FROZEN"):
        run("virtagentctl", "--timeout", str(TIMEOUT), "freeze", "--hold-limit", "30", expect=(1, 4))
        run("virtagentctl", "ping")
        in_the_guest(guest, "/bin/ps axo pid,ppid,stat,args | grep '[v]irtagentd:'")
        moving = moved(guest)
        tell(f"lines written in the guest in 1 s, while it syncs: {said(moving)}")

    heading("Frozen, all of it, / and /var/log too. What an operator in the guest sees, and that nothing is written")
    in_the_guest(guest, "/bin/ps axo pid,ppid,stat,args | grep '[v]irtagentd:'")
    tell(f"lines written in the guest in 1 s: {said(moved(guest))}")
    heading("The host's snapshot takes longer than it thought: it extends the hold, then thaws")
    run("virtagentctl", "hold", "60")
    run("virtagentctl", "thaw")
    guest.wait_writing()
    tell("every file system is written to again")
    run("virtagentctl", "status")

    heading(
        f"The same disk, and a host that allows {SYNC_LIMIT} s for the sync: nothing is frozen, no writer stood still"
    )
    slow(guest, "more")
    run("virtagentctl", "freeze", "--sync-limit", str(SYNC_LIMIT), expect=(1,))
    tell("the disk is fast again")
    guest.throttle("ext4", 0)
    until(lambda: guest.status()["state"] == "THAWED", 60, "the state THAWED")
    guest.wait_writing()

    heading(f"A host that forgets to thaw, with a hold limit of {HOLD} s")
    run("virtagentctl", "freeze", "--hold-limit", str(HOLD))
    tell("... nobody thaws ...")
    guest.wait_writing()
    tell("every file system is written to again: the guest has thawed by itself")
    run("virtagentctl", "thaw", expect=(5,))


def slow(guest: Guest, name: str = "dirty") -> None:
    guest.throttle("ext4", RATE)
    guest.dirty("ext4", DIRTY, name)


def moved(guest: Guest) -> dict[str, int]:
    """Return how many lines each writer in the guest writes in a second."""
    before = guest.written()
    threading.Event().wait(1)
    after = guest.written()
    return {PLACES[name]: after[name] - before[name] for name in PLACES}


def said(moving: dict[str, int]) -> str:
    return ", ".join(f"{place} {count}" for place, count in moving.items())


def in_the_guest(guest: Guest, command: str) -> None:
    type_in("ps", "axo", "pid,ppid,stat,args")
    for line in guest.sh(command).splitlines():
        tell(f"guest| {line}")


@contextlib.contextmanager
def watching(url: str, state: str) -> Iterator[None]:
    """Show meanwhile what the agent tells of itself, line by line as it comes, until it is in the state."""
    command = ["virtagentctl", "--agent", url, "watch", "--until", state, "--timeout", "120"]
    type_in(*command)
    with subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            tell(f"| {watch.stdout.readline().rstrip()}")
            reader = threading.Thread(target=_follow, args=(watch,), daemon=True)
            reader.start()
            yield
            reader.join()
        except BaseException:
            watch.kill()
            raise
    if watch.returncode:
        raise HarnessError(f"virtagentctl watch ended with {watch.returncode}")


def _follow(watch: subprocess.Popen[str]) -> None:
    assert watch.stdout is not None
    for line in watch.stdout:
        tell(f"| {line.rstrip()}")


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="va-") as folder:
        heading("The guest is made of Debian's packages (the first time, some 2 minutes), and booted")
        guest = Guest(Path(folder))
        try:
            show(guest)
        finally:
            guest.close()
            heading("The plug is pulled, and all that is left is the image in the cache")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Unmet as reason:
        print(f"scripts/demo: {reason}", file=sys.stderr)
        sys.exit(2)
    except (HarnessError, AssertionError, TimeoutError) as error:
        sys.exit(f"scripts/demo: {error}")

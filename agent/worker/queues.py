"""A shorter request queue of the disks while they are synced, and what they had before (ADR 0042).

A writer that waits for its journal waits behind what is in the disk's queue, and a sync fills that. How many requests
it takes is in /sys/block/DISK/queue/nr_requests (Documentation/ABI/stable/sysfs-block), for all programs, until
somebody writes another number. A write waits until the disk has done all that it was given (blk_mq_freeze_queue in
block/blk-mq.c), and a read waits for such a write: each disk has a thread of its own for both.

What a disk had is on record in memory, locked, before it is changed (writers/latch.py): so whoever is left puts it
back.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from ..api.errors import Code, Fault, failed, no_more
from ..api.text import listed, printable
from .writers.latch import Latch, locked

if TYPE_CHECKING:
    from .context import Args, Worker

BLOCK = "/sys/class/block"
NAME, BAD = "nr_requests", "nr_requests.bad"
SHORTENS = 0.25  # seconds after which the sync begins all the same
PUTS_BACK = 1.0  # seconds after which the freeze goes on all the same
ENDS = 0.25  # seconds after which a worker that gives up ends all the same: it is to say why before it is killed
UNDOES = 5.0  # seconds that a worker has that puts back for another one
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class Queues:
    """The request queues of some disks, by a record that this process has locked; `say` gets what went wrong."""

    def __init__(self, latch: Latch, say: Callable[[str], None]) -> None:
        """Take over what is on record; raise ValueError if that is no record."""
        self._latch = latch
        self._say = say
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._short: set[str] = set()
        self._over = self._unlocked = False
        self._record = _checked(latch.record or {})
        self.put: list[str] = []
        """What was put back."""
        self.stays = False
        """Whether the record is still there, though nothing is to be put back."""

    def shorten(self, disks: Iterable[str], number: int, seconds: float) -> None:
        """Shorten the queues of these disks, where they are longer; wait for that for so many seconds at most."""
        asked = set[str]().union(*map(disks_of, disks))
        left = self._record.keys() - asked  # by an earlier worker that died: not to be waited for
        self._start(self._lengthen, left)
        self._start(lambda disk: self._be_short(disk, number), asked)
        self._wait(seconds, but=left)

    def put_back(self, seconds: float, *, alone: bool = False) -> list[str]:
        """Put back what is shortened, and return the disks of which that is not done after so many seconds.

        `alone`: no thread of this object has shortened them.
        """
        with self._changed:
            self._over = True
            self._busy |= self._short
            if not alone:
                self._changed.notify_all()
        if alone:
            self._start(self._lengthen, list(self._record))
        self._wait(seconds)
        with self._changed:
            self._let_go()
            late = {disk: self._record[disk][0] for disk in self._busy & self._record.keys()}
            left = sorted(self._record)
        for disk, was in late.items():
            self._say(f"{_path(disk)}: {was} was not put back within {seconds:g} s")
        return left

    def _start(self, run: Callable[[str], None], disks: Iterable[str]) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the main thread
        try:
            for disk in disks:
                with self._changed:
                    self._busy.add(disk)
                try:
                    _thread.start_new_thread(run, (disk,))
                except RuntimeError as error:
                    with self._changed:
                        self._busy.discard(disk)
                    self._say(f"{_path(disk)}: {no_more(error) or error}")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _wait(self, seconds: float, but: Collection[str] = ()) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._busy <= set(but), seconds)

    # -- in the thread of a disk

    def _be_short(self, disk: str, number: int) -> None:
        short = False
        try:
            short = self._shorten(disk, number)
        except OSError as error:
            self._say(f"{_path(disk)} stays as it is: {error.strerror}")
        if short:
            with self._changed:
                self._short.add(disk)
                if not self._over:
                    self._rest(disk)
                self._changed.wait_for(lambda: self._over)
        if disk in self._record:
            self._lengthen(disk)
        with self._changed:
            self._rest(disk)

    def _shorten(self, disk: str, number: int) -> bool:
        has = _read(disk)
        with self._changed:
            was = self._was(disk, has)
            if self._over or has <= number or was <= number:
                return False
            before = dict(self._record)
            self._record[disk] = (was, number)
            try:
                self._latch.write(self._record)
            except OSError:
                self._record = before
                raise
        _write(disk, number)
        return True

    def _was(self, disk: str, has: int) -> int:
        was, short = self._record.get(disk, (has, has))
        return was if has == short else has

    def _lengthen(self, disk: str) -> None:
        was, short = self._record[disk]
        try:
            has = _read(disk)
            if has == short:
                _write(disk, was)
                self.put.append(f"{disk} {was}")
            elif has != was:
                self._say(f"{_path(disk)} stays as it is: someone else has set it to {has}")
        except OSError as error:
            if error.errno not in _GONE:
                self._say(f"{_path(disk)}: {was} could not be put back: {error.strerror}")
                with self._changed:
                    self._rest(disk)
                return
        with self._changed:
            self._forget(disk)
            self._rest(disk)

    def _rest(self, disk: str) -> None:
        self._busy.discard(disk)
        self._changed.notify_all()

    def _forget(self, disk: str) -> None:
        del self._record[disk]
        try:
            if self._record:
                self._latch.write(self._record)
            else:
                self._latch.clear()
            self.stays = False
        except OSError as error:
            self.stays = True
            self._say(f"the record of request queues: {error.strerror}")
        self._let_go()

    def _let_go(self) -> None:
        if self._over and not self._record and not self._unlocked:
            self._unlocked = True
            self._latch.unlock()


def shortened(folder: str, disks: Iterable[str], number: int) -> Queues | None:
    """Shorten the queues of these disks, and return them to be put back; None if that cannot be, which is told."""
    try:
        queues = _opened(Latch(folder, NAME, wait=False), _tell)
    except BlockingIOError:
        _tell("the request queues stay as they are: another worker has shortened them, or is putting them back")
        return None
    except (OSError, ValueError) as error:
        _tell(f"the request queues stay as they are, since they cannot be put on record: {error}")
        return None
    queues.shorten(disks, number, SHORTENS)
    return queues


def put_back(worker: Worker, args: Args) -> str:
    """Put back what is on record in `args["folder"]`; return what was done, "" for nothing.

    Raises Fault: BUSY if a worker that lives has the record, FAILED.
    """
    worker.title("putting request queues back")
    said: list[str] = []
    try:
        queues = _opened(locked(worker.supervisor, args["folder"], NAME, wait=False), said.append)
    except BlockingIOError:
        raise Fault(Code.BUSY, "a worker that lives has the record of request queues") from None
    except OSError as error:
        raise failed(error, "the record of request queues") from None
    except ValueError as error:
        os.rename(os.path.join(args["folder"], NAME), os.path.join(args["folder"], BAD))
        raise Fault(Code.FAILED, f"{error}; it is kept as {BAD}, and nothing was put back") from None
    if left := queues.put_back(UNDOES, alone=True):
        raise Fault(Code.FAILED, f"the request queues of {listed(left)} are still short: {'; '.join(said)}")
    if queues.stays:
        raise Fault(Code.FAILED, "; ".join([*queues.put, *said]))
    done = [f"nr_requests was put back: {', '.join(sorted(queues.put))}"] if queues.put else []
    return "; ".join([*done, *said])


def left(folder: str) -> bool:
    """Return whether request queues are on record there."""
    return os.path.exists(os.path.join(folder, NAME))


def disks_of(name: str) -> set[str]:
    """Return the names in sysfs of the disks at which the requests for a device queue up.

    That is the disk of a partition, and what the device-mapper or md has made the device of, which have no queue. What
    the file of a loop device lies on has one more, which other programs wait in: it stays as it is.
    """
    found = os.path.realpath(os.path.join(BLOCK, name.replace("/", "!")))
    if os.path.exists(os.path.join(found, "partition")):
        found = os.path.dirname(found)
    try:
        below = os.listdir(os.path.join(found, "slaves"))
    except OSError:
        below = []
    return set[str]().union(*map(disks_of, below)) if below else {os.path.basename(found)}


def _opened(latch: Latch, say: Callable[[str], None]) -> Queues:
    try:
        return Queues(latch, say)
    except ValueError:
        latch.unlock()
        raise


def _checked(record: dict[str, Any]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for disk, numbers in record.items():
        match numbers:
            case [int(was), int(short)] if "/" not in disk:
                found[disk] = was, short
            case _:
                raise ValueError(f"{disk!r:.40}: {numbers!r:.40} is no record of a request queue")
    return found


def _path(disk: str) -> str:
    return f"{BLOCK}/{disk}/queue/nr_requests"


def _read(disk: str) -> int:
    with open(_path(disk), encoding="ascii") as file:
        text = file.read().strip()
    if not text.isdecimal():
        raise OSError(errno.EIO, f"{text!r:.20} is no number")
    return int(text)


def _write(disk: str, number: int) -> None:
    fd = os.open(_path(disk), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % number)
    finally:
        os.close(fd)


def _tell(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")

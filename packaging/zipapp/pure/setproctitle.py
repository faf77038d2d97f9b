"""What the agent uses of setproctitle, in Python: for machines where the compiled package is not installed."""

import ctypes
import mmap
import os

PURE = True
_ROOM = 4096
_PR_SET_NAME, _PR_SET_MM = 15, 35
_PR_SET_MM_ARG_START, _PR_SET_MM_ARG_END = 8, 9  # linux/prctl.h; they need CAP_SYS_RESOURCE
_libc = ctypes.CDLL(None, use_errno=True)
_place = None  # address and size of where the title goes


def getproctitle():
    """Return the title as ps shows it."""
    with open("/proc/self/cmdline", "rb") as file:
        return file.read().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")


def setproctitle(title):
    """Show `title` in ps, or as much of it as fits where the command line was."""
    global _place
    if _place is None:
        _place = _new_place() or _old_place()
    address, size = _place
    if size > 1:
        text = title.encode("utf-8", "replace")[: size - 1]
        ctypes.memmove(address, text + bytes(size - len(text)), size)


def setthreadtitle(title):
    """Name this thread, in at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(title.encode("utf-8", "replace")[:15]), 0, 0, 0)


def _new_place():
    """Have the kernel look for the command line in memory of our own; return None if it refuses."""
    memory = mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start, size = _old_place()
    if not size:
        return None
    # The end may not lie before the start, not even between the two calls.
    ends = (_PR_SET_MM_ARG_START, address), (_PR_SET_MM_ARG_END, address + _ROOM)
    with open("/proc/self/cmdline", "rb") as file:
        ctypes.memmove(address, file.read(_ROOM - 1), min(size, _ROOM - 1))
    for what, where in ends if address < start else reversed(ends):
        if _libc.prctl(_PR_SET_MM, what, ctypes.c_ulong(where), 0, 0):
            return None
    _new_place.keeps = memory
    return address, _ROOM


def _old_place():
    """Return address and size of the command line (proc(5), stat fields 48 and 49); 0, 0 if it cannot be seen."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return (start, end - start) if 0 < start < end else (0, 0)


assert os.sep == "/"  # Linux only

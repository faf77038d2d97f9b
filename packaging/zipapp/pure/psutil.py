"""What the agent uses of psutil, in Python: for machines where the compiled package is not installed."""

import contextlib
import ctypes
import socket
import struct
from collections import namedtuple

PURE = True
AF_LINK = socket.AF_PACKET
STATUS_RUNNING = "running"
STATUS_SLEEPING = "sleeping"
STATUS_DISK_SLEEP = "disk-sleep"
STATUS_STOPPED = "stopped"
STATUS_TRACING_STOP = "tracing-stop"
STATUS_ZOMBIE = "zombie"
STATUS_DEAD = "dead"
STATUS_IDLE = "idle"

_SECTOR = 512  # in /proc/diskstats, whatever the disk has
_DiskIo = namedtuple("_DiskIo", "read_count write_count read_bytes write_bytes")
_Address = namedtuple("_Address", "family address netmask")


def disk_io_counters(perdisk=True, nowrap=False):
    """Return what each disk and partition has read and written, by name (Linux, admin-guide/iostats)."""
    found = {}
    with open("/proc/diskstats", encoding="ascii", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) >= 14:
                reads, read, writes, written = (int(fields[i]) for i in (3, 5, 7, 9))
                found[fields[2]] = _DiskIo(reads, writes, read * _SECTOR, written * _SECTOR)
    return found


class _IfAddrs(ctypes.Structure):
    """struct ifaddrs (getifaddrs(3))."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("addr", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("other", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]
_libc = ctypes.CDLL(None, use_errno=True)


def net_if_addrs():
    """Return the addresses of each interface by its name: family, address, netmask. Raises OSError."""
    first = ctypes.POINTER(_IfAddrs)()
    if _libc.getifaddrs(ctypes.byref(first)):
        number = ctypes.get_errno()
        raise OSError(number, "getifaddrs")
    found = {}
    try:
        one = first
        while one:
            here = one.contents
            family = _family(here.addr)
            address = _text(here.addr, family)
            if address is not None:
                name = here.name.decode("utf-8", "surrogateescape")
                mask = None if family == AF_LINK else _text(here.netmask, family)
                found.setdefault(name, []).append(_Address(family, address, mask))
            one = here.next
    finally:
        _libc.freeifaddrs(first)
    return found


def _family(pointer):
    return struct.unpack("=H", ctypes.string_at(pointer, 2))[0] if pointer else 0


def _text(pointer, family):
    """Return the address in struct sockaddr_in, sockaddr_in6 or sockaddr_ll as text, None for others."""
    if not pointer:
        return None
    if family == socket.AF_INET:
        return socket.inet_ntop(family, ctypes.string_at(pointer, 8)[4:])
    if family == socket.AF_INET6:
        raw = ctypes.string_at(pointer, 28)
        scope = struct.unpack("=I", raw[24:28])[0]
        name = ""
        if scope:
            with contextlib.suppress(OSError):
                name = "%" + socket.if_indextoname(scope)
        return socket.inet_ntop(family, raw[8:24]) + name
    if family == AF_LINK:
        raw = ctypes.string_at(pointer, 12)
        octets = ctypes.string_at(pointer + 12, raw[11])
        return ":".join(f"{octet:02x}" for octet in octets) if octets else None
    return None

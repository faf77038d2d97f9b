"""Facts about the network namespace that the agent runs in, in qemu-ga's form."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil

from .reading import is_number, read_if_any, refused

if TYPE_CHECKING:
    from ..context import Args, Worker

NET = "/proc/net"
_IP = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_NO_ADDRESS = "00:00:00:00:00:00"  # of a tunnel
# /proc/net/dev has eight counters received, then eight sent.
_COUNTERS = {"bytes": 0, "packets": 1, "errs": 2, "dropped": 3}
_PER_WAY = 8


def network_get_interfaces(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return all interfaces with their hardware and IP addresses and counters; raise Fault FAILED."""
    try:
        addresses = psutil.net_if_addrs()
        order = [name for _, name in socket.if_nameindex()]
    except OSError as error:
        raise refused(error, "getifaddrs failed") from None
    return interfaces(order, addresses, read_if_any(f"{NET}/dev"))


def interfaces(order: list[str], addresses: dict[str, list[Any]], dev: str) -> list[dict[str, Any]]:
    """Return the GuestNetworkInterface of each interface: first those in `order`, then labels of addresses.

    `addresses` is what psutil returns, `dev` the text of /proc/net/dev.
    """
    counters = dict(statistics(dev))
    found = []
    for name in dict.fromkeys((*order, *addresses)):
        # A label (eth0:1) is not an interface of its own: the hardware is that of the interface it is put on.
        both = (*addresses.get(name, ()), *addresses.get(name.partition(":")[0], ()))
        hardware = next((a.address for a in both if a.family == psutil.AF_LINK), _NO_ADDRESS)
        info: dict[str, Any] = {"name": name, "hardware-address": hardware}
        ips = [
            {
                "ip-address": a.address.partition("%")[0],
                "ip-address-type": _IP[a.family],
                "prefix": prefix(a.family, a.netmask),
            }
            for a in addresses.get(name, ())
            if a.family in _IP
        ]
        if ips:
            info["ip-addresses"] = ips
        if name in counters:
            info["statistics"] = counters[name]
        found.append(info)
    return found


def prefix(family: int, netmask: str | None) -> int:
    """Return how many bits of an address belong to the network; 0 if there is no mask."""
    return int.from_bytes(socket.inet_pton(family, netmask), "big").bit_count() if netmask else 0


def statistics(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield name and GuestNetworkInterfaceStat of each line of /proc/net/dev."""
    for line in text.split("\n"):
        name, colon, rest = line.partition(":")
        values = [int(value) for value in rest.split() if is_number(value)]
        if colon and len(values) >= 2 * _PER_WAY:
            ways = {"rx": 0, "tx": _PER_WAY}
            yield name.strip(), {f"{w}-{c}": values[at + i] for w, at in ways.items() for c, i in _COUNTERS.items()}


def network_get_route(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return the routes of IPv4, then those of IPv6 if the kernel has IPv6."""
    return [*routes4(read_if_any(f"{NET}/route")), *routes6(read_if_any(f"{NET}/ipv6_route"))]


def routes4(text: str) -> Iterator[dict[str, Any]]:
    """Yield the GuestNetworkRoute of each line of /proc/net/route; the heading and malformed lines are left out."""
    for line in text.split("\n"):
        try:
            iface, destination, gateway, flags, refcnt, use, metric, mask, mtu, window, irtt = line.split()
            yield {
                "iface": iface,
                "destination": _ipv4(destination),
                "metric": int(metric),
                "gateway": _ipv4(gateway),
                "mask": _ipv4(mask),
                "irtt": int(irtt),
                "flags": int(flags, 16),
                "refcnt": int(refcnt),
                "use": int(use),
                "window": int(window),
                "mtu": int(mtu),
                "version": 4,
            }
        except (ValueError, OverflowError):
            continue


def routes6(text: str) -> Iterator[dict[str, Any]]:
    """Yield the GuestNetworkRoute of each line of /proc/net/ipv6_route; malformed lines are left out."""
    for line in text.split("\n"):
        try:
            destination, length, source, source_length, nexthop, metric, refcnt, use, flags, iface = line.split()
            yield {
                "iface": iface,
                "destination": _ipv6(destination),
                "metric": int(metric, 16),
                "flags": int(flags, 16),
                "refcnt": int(refcnt, 16),
                "use": int(use, 16),
                "desprefixlen": str(int(length, 16)),
                "source": _ipv6(source),
                "srcprefixlen": str(int(source_length, 16)),
                "nexthop": _ipv6(nexthop),
                "version": 6,
            }
        except ValueError:
            continue


def _ipv4(text: str) -> str:
    # The kernel prints the four bytes as one number in the byte order of the machine.
    return socket.inet_ntop(socket.AF_INET, int(text, 16).to_bytes(4, sys.byteorder))


def _ipv6(text: str) -> str:
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text))

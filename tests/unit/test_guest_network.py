"""Facts on the network: what psutil gives and recorded texts of /proc/net."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Fault
from virtagent.agent.worker.commands import network

WORKER: Any = None  # these handlers need none
DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0        0
  eth0: 18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
  tun0:1 2 3 4
  bad0: 1 2 3 x 5 6 7 8 9 10 11 12 13 14 15 16
"""
ROUTE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
eth0	000200C0	00000000	0001	1	2	-1	00FFFFFF	1400	6	7
eth0	000200C0	00000000	0001	1	2	3	00FFFFFF	1400	6
eth0	1FFFFFFFF	00000000	0001	1	2	3	00FFFFFF	1400	6	7
eth0	-0000001	00000000	0001	1	2	3	00FFFFFF	1400	6	7
*	0000000x	00000000	0001	1	2	3	00FFFFFF	1400	6	7
"""
ROUTE6 = f"""\
fd000000000000000000000000000000 40 {"0" * 32} 00 {"0" * 32} 00000100 00000001 00000000 00000001     eth0
{"0" * 32} 00 fd0{"0" * 28}9 80 fd0{"0" * 28}1 00000400 00000002 0000000a 00000003     eth0
{"0" * 31}1 80 {"0" * 32} 00 {"0" * 32} 00000000 00000002 00000000 80200001       lo
{"0" * 32} 00 {"0" * 32} 00 {"0" * 32} ffffffff 00000001 00000000 00200200       lo
{"0" * 30} 00 {"0" * 32} 00 {"0" * 32} ffffffff 00000001 00000000 00200200       lo
{"0" * 32} 00 {"0" * 32} 00 {"0" * 32} ffffffff 00000001 xxxxxxxx 00200200       lo
{"0" * 32} 00 {"0" * 32}
"""


def snic(family: int, address: str, netmask: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=address, netmask=netmask)


ADDRESSES = {
    "eth0:1": [snic(socket.AF_INET, "192.0.2.9", "255.255.255.255")],
    "eth0": [
        snic(socket.AF_INET, "192.0.2.2", "255.255.254.0"),
        snic(socket.AF_INET6, "fd00::2", "ffff:ffff:ffff:ffff::"),
        snic(socket.AF_INET6, "fe80::fc:ff:fe00:1%eth0", "ffff:ffff:ffff:ffff::"),
        snic(socket.AF_PACKET, "02:fc:00:00:00:01"),
    ],
    "lo": [snic(socket.AF_INET, "127.0.0.1", "255.0.0.0"), snic(socket.AF_PACKET, "00:00:00:00:00:00")],
    "tun0": [snic(socket.AF_INET, "10.0.0.1", None)],
}


def ip(address: str, prefix: int) -> dict[str, Any]:
    return {"ip-address": address, "ip-address-type": "ipv6" if ":" in address else "ipv4", "prefix": prefix}


def test_interfaces_in_the_order_of_their_numbers() -> None:
    found = network.interfaces(["lo", "dummy0", "eth0", "tun0"], ADDRESSES, DEV)
    assert [i["name"] for i in found] == ["lo", "dummy0", "eth0", "tun0", "eth0:1"]
    lo, dummy, eth, tun, label = found
    assert lo["ip-addresses"] == [ip("127.0.0.1", 8)]
    assert lo["statistics"]["rx-bytes"] == 3193
    assert dummy == {"name": "dummy0", "hardware-address": "00:00:00:00:00:00"}
    assert eth == {
        "name": "eth0",
        "hardware-address": "02:fc:00:00:00:01",
        "ip-addresses": [ip("192.0.2.2", 23), ip("fd00::2", 64), ip("fe80::fc:ff:fe00:1", 64)],
        "statistics": {
            "rx-bytes": 2**64 - 1,
            "rx-packets": 2,
            "rx-errs": 3,
            "rx-dropped": 4,
            "tx-bytes": 9,
            "tx-packets": 10,
            "tx-errs": 11,
            "tx-dropped": 12,
        },
    }
    assert tun == {
        "name": "tun0",
        "hardware-address": "00:00:00:00:00:00",
        "ip-addresses": [ip("10.0.0.1", 0)],
    }
    assert label == {
        "name": "eth0:1",
        "hardware-address": "02:fc:00:00:00:01",
        "ip-addresses": [ip("192.0.2.9", 32)],
    }


def test_lines_that_are_no_counters_are_left_out() -> None:
    assert [name for name, _ in network.statistics(DEV)] == ["lo", "eth0"]


@given(st.text(alphabet="eth0:1-9 \n\tabcdef%"))
def test_nothing_in_a_text_stops_the_parsers(text: str) -> None:
    found = [*network.routes4(text), *network.routes6(text), *network.statistics(text)]
    assert len(found) <= 3 * len(text.split("\n"))


def test_what_the_kernel_refuses_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("psutil.net_if_addrs", refuse)
    with pytest.raises(Fault, match=r"^getifaddrs failed: Too many open files"):
        network.network_get_interfaces(WORKER, {})


@pytest.mark.skipif(sys.byteorder == "big", reason="recorded on a little-endian machine")
def test_routes_of_ipv4() -> None:
    base = {"iface": "eth0", "version": 4}
    assert list(network.routes4(ROUTE)) == [
        base
        | {"destination": "0.0.0.0", "gateway": "192.0.2.1", "mask": "0.0.0.0", "metric": 100, "flags": 3}
        | {"refcnt": 0, "use": 0, "mtu": 0, "window": 0, "irtt": 0},
        base
        | {"destination": "192.0.2.0", "gateway": "0.0.0.0", "mask": "255.255.255.0", "metric": -1, "flags": 1}
        | {"refcnt": 1, "use": 2, "mtu": 1400, "window": 6, "irtt": 7},
    ]


def test_routes_of_ipv6() -> None:
    base = {"destination": "::", "desprefixlen": "0", "source": "::", "srcprefixlen": "0", "nexthop": "::"}
    base |= {"use": 0, "version": 6}
    assert list(network.routes6(ROUTE6)) == [
        base | {"iface": "eth0", "destination": "fd00::", "desprefixlen": "64", "metric": 256, "refcnt": 1, "flags": 1},
        base
        | {"iface": "eth0", "source": "fd00::9", "srcprefixlen": "128", "nexthop": "fd00::1"}
        | {"metric": 1024, "refcnt": 2, "use": 10, "flags": 3},
        base
        | {"iface": "lo", "destination": "::1", "desprefixlen": "128", "metric": 0, "refcnt": 2, "flags": 0x80200001},
        base | {"iface": "lo", "metric": 0xFFFFFFFF, "refcnt": 1, "flags": 0x200200},
    ]


def test_a_kernel_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "NET", str(tmp_path))
    (tmp_path / "route").write_text(ROUTE, encoding="utf-8")
    assert {r["version"] for r in network.network_get_route(WORKER, {})} == {4}
    (tmp_path / "route").unlink()
    assert network.network_get_route(WORKER, {}) == []


def test_this_machine() -> None:
    found = {i["name"]: i for i in network.network_get_interfaces(WORKER, {})}
    assert {name for _, name in socket.if_nameindex()} <= found.keys()
    assert all(r["iface"] for r in network.network_get_route(WORKER, {}))

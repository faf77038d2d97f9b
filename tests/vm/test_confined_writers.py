"""Writers under the unit as it is shipped, and with the drop-in of docs/writers.md, under a real systemd.

The agent is started again many times: tried only when VIRTAGENT_VM_RELEASED is set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.vm.guest import FILE_SYSTEMS, Guest
from harness.vm.image import TREE

pytestmark = pytest.mark.skipif(
    "VIRTAGENT_VM_RELEASED" not in os.environ, reason="takes minutes: VIRTAGENT_VM_RELEASED=1 scripts/test --vm"
)
CONF = "/etc/virtagent/virtagentd.conf"
FOLDER = "/etc/virtagent/writers.d"
DROP_IN = "/etc/systemd/system/virtagentd.service.d/writers.conf"
# It notes whom it runs as, in memory, where no frozen disk holds it up.
HOOK = "#!/bin/sh\necho $1 $(id -un) >>/run/ram/called\n"
# What answers as the command-line client of a database does; nothing is executed while frozen.
CLIENT = """#!/bin/sh
while read -r line; do
    line=${line#select \\'}
    case $line in *"';") echo "${line%%\\'*}" ;; esac
done
"""
WRITERS = {
    "hook": "type hook\npath /etc/virtagent/hook\n",
    "pair": "type pair\nfreeze /etc/virtagent/hook hold\nthaw /etc/virtagent/hook go-on\nuser nobody\nafter hook\n",
    "sql": "type sql\nclient /etc/virtagent/client\nuser nobody\nquiesce lock\npaths /srv/ext4 /var/lib\n",
}
REDIS = "type redis\n"
# A server at 127.0.0.1:6379, the default of the type: as much of one as the writer asks.
SERVER = """
import re, socket
said = {"INFO server": "redis_version:7.2.4", "INFO persistence": "loading:0", "INFO replication": "master_replid:a"}
listener = socket.create_server(("127.0.0.1", 6379))
print("listens", flush=True)
while True:
    end, _ = listener.accept()
    while heard := end.recv(4096):
        asked = " ".join(re.findall(r"\\$\\d+\\r\\n(.*?)\\r\\n", heard.decode()))
        text = said.get(asked, "")
        other = b"*2\\r\\n$3\\r\\ndir\\r\\n$9\\r\\n/srv/ext4\\r\\n" if "CONFIG" in asked else b"+OK\\r\\n"
        end.sendall(b"$%d\\r\\n%s\\r\\n" % (len(text), text.encode()) if text else other)
    end.close()
"""


def drop_in() -> str:
    """Return the drop-in of the docs, without what it says of programs that need still more."""
    text = (TREE / "docs/writers.md").read_text(encoding="utf-8")
    lines = text.partition("## Under a confined service")[2].split("\n    ")
    found = [line.partition("\n")[0] for line in lines[1:]]
    assert found[0] == "[Service]"
    return "".join(f"{line}\n" for line in found if re.match(r"\[Service]|RestrictAddress|IPAddress", line))


@pytest.fixture
def site(guest: Guest) -> Iterator[Guest]:
    """The guest, with these writers; afterwards without."""
    guest.sh(f"cp {CONF} /run/ram/conf; mkdir -p -m 755 {FOLDER}")
    put(guest, "/etc/virtagent/hook", HOOK, "755")
    put(guest, "/etc/virtagent/client", CLIENT, "755")
    for name, text in WRITERS.items():
        put(guest, f"{FOLDER}/{name}.conf", text)
    guest.sh("chmod 666 $(touch /run/ram/called; echo /run/ram/called); chmod 755 /run/ram /etc/virtagent")
    guest.sh("systemctl restart virtagentd")
    guest.wait_agent()
    yield guest
    guest.sh(f"rm -rf {FOLDER} {DROP_IN} /run/ram/called; cp /run/ram/conf {CONF}; systemctl daemon-reload")
    guest.sh("[ ! -e /run/ram/server ] || kill $(cat /run/ram/server); systemctl restart virtagentd")
    guest.wait_agent()


def put(guest: Guest, path: str, text: str, mode: str = "644") -> None:
    guest.sh(f"cat >{path} <<'E-N-D'\n{text}E-N-D\nchmod {mode} {path}")


def called(guest: Guest) -> list[str]:
    lines = str(guest.sh("cat /run/ram/called; : >/run/ram/called")).splitlines()
    return [line.replace(" ", ":") for line in lines]


def test_hooks_and_a_client_of_another_user_under_the_unit_as_shipped(site: Guest) -> None:
    port = site.host()
    for _ in range(2):
        assert port.ask("va.fsfreeze", {}) == {"return": FILE_SYSTEMS}
        record = port.ask("va.fsstatus", {})["return"]
        states = {writer["name"]: (writer["state"], writer["error"]) for writer in record["writers"]}
        assert states == dict.fromkeys(WRITERS, ("confirmed", ""))
        assert called(site) == ["freeze:root", "hold:nobody"]
        assert port.ask("va.fsthaw") == {"return": FILE_SYSTEMS}
        assert called(site) == ["go-on:nobody", "thaw:root"]
        assert port.ask("va.fsstatus", {})["return"]["last"]["consistency"] == "application"
    main = site.sh("systemctl show -p MainPID --value virtagentd")
    assert port.ask("va.fsfreeze", {}) == {"return": FILE_SYSTEMS}
    site.sh(f"kill -9 {main.strip()}")
    site.sh("until [ $(wc -l </run/ram/called) = 4 ]; do usleep 100000; done")
    site.sh(f"until [ $(systemctl show -p MainPID --value virtagentd) -gt {main.strip()} ]; do usleep 100000; done")
    site.wait_agent()
    calls = called(site)
    assert calls[:2] == ["freeze:root", "hold:nobody"]
    assert sorted(calls[2:]) == ["go-on:nobody", "thaw:root"], "once each, in no order: nobody is there to give one"


def test_a_server_behind_tcp_needs_the_drop_in_of_the_docs(site: Guest, tmp_path: Path) -> None:
    put(site, "/run/ram/server.py", SERVER)
    site.sh("setsid python3 -B /run/ram/server.py >/run/ram/said 2>&1 </dev/null & echo $! >/run/ram/server")
    site.sh("until grep -q listens /run/ram/said; do usleep 100000; done")
    put(site, f"{FOLDER}/redis.conf", REDIS)
    site.sh("systemctl restart virtagentd")
    site.wait_agent()
    port = site.host()
    error = port.ask("va.fsfreeze", {})["error"]
    assert error["name"] == "VETOED"
    assert "redis refused the freeze: 127.0.0.1:6379: Address family not supported by protocol" in error["desc"]
    site.sh("mkdir -p $(dirname {DROP_IN})".replace("{DROP_IN}", DROP_IN))
    put(site, DROP_IN, drop_in())
    site.sh("systemctl daemon-reload; systemctl restart virtagentd")
    site.wait_agent()
    assert port.ask("va.fsfreeze", {}) == {"return": FILE_SYSTEMS}
    assert port.ask("va.fsthaw") == {"return": FILE_SYSTEMS}
    assert port.ask("va.fsstatus", {})["return"]["last"]["consistency"] == "application"

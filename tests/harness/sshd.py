"""A real sshd, on loopback unless told otherwise, with port, keys and configuration of its own, and an ssh for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import HarnessError
from .processes import until

PRIVSEP = Path("/run/sshd")  # where sshd wants an empty folder
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
TRIES = 5


def missing() -> str:
    """Return why there can be no sshd here, "" if there can."""
    if os.geteuid():
        return "an sshd needs root"
    absent = [name for name in ("sshd", "ssh", "ssh-keygen") if shutil.which(name, path=PATH) is None]
    return f"no {' and '.join(absent)} (Debian: openssh-server, openssh-client)" if absent else ""


class Sshd:
    """An sshd in which every host name is this machine. `env` is what virtagentctl needs to use it.

    The relay is started through `relay`, a shell script of one line that finds the host's name in VA_HOST.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1", enter: Sequence[str] = ()) -> None:
        """Start it on this address; `enter` is a command that enters the network namespace that has it."""
        self._address, self._enter = address, enter
        folder.mkdir(mode=0o700)
        PRIVSEP.mkdir(mode=0o755, exist_ok=True)
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        self.folder = folder
        self.log = folder / "log"
        self.relay = folder / "relay"
        self.relay.write_text(f"#!/bin/sh\nexec {sys.executable} -m virtagent.host.main relay\n")
        self.relay.chmod(0o755)
        for _ in range(TRIES):
            if self._started():
                break
        else:
            raise HarnessError(f"no sshd could be started: {self.log.read_text()[-400:]}")
        known = (folder / "host.pub").read_text().split()
        (folder / "known").write_text(f"va {known[0]} {known[1]}\n")
        (folder / "config").write_text(
            f"Host *\n HostName {address}\n Port {self.port}\n User root\n IdentityFile {folder}/user\n"
            " IdentitiesOnly yes\n"
            f" UserKnownHostsFile {folder}/known\n GlobalKnownHostsFile /dev/null\n HostKeyAlias va\n LogLevel ERROR\n"
            " ControlMaster no\n ControlPath none\n"
        )
        (folder / "ssh").write_text(
            f'#!/bin/sh\nfor word; do [ "$before" = -- ] && host=$word; before=$word; done\n'
            f'exec ssh -F {folder}/config -o SetEnv="VA_HOST=$host" "$@"\n'
        )
        (folder / "ssh").chmod(0o755)

    def _started(self) -> bool:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress {self._address}\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/user.pub\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nAcceptEnv VA_HOST\nMaxStartups 200\nUseDNS no\n"
            "PermitUserEnvironment no\n"
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._enter, shutil.which("sshd", path=PATH) or "", "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until(
            lambda: b"Server listening" in self.log.read_bytes() or self.process.poll() is not None, 30, "sshd listens"
        )
        return self.process.poll() is None

    @property
    def env(self) -> Mapping[str, str]:
        """What virtagentctl needs in its environment to reach every host through this."""
        return {"VIRTAGENT_SSH": str(self.folder / "ssh"), "VIRTAGENT_RELAY": f"sh {self.relay}"}

    def close(self) -> None:
        """End it. Its connections end with their clients."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

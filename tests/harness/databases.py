"""Real database servers on a test's own file system and socket, and what they have acknowledged."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from . import Unmet
from .processes import until

START_SECONDS = 30.0


def program(name: str, package: str) -> str:
    """Return the path of a program; raise Unmet if it is not installed."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if found is None and versions:
        return str(versions[-1])
    if found is None:
        raise Unmet(f"needs {name} (Debian package {package})")
    return found


class Server:
    """One server: its files below `folder`, its socket in `run`."""

    name = ""
    ended_by = signal.SIGKILL

    def __init__(self, folder: Path, run: Path, options: Sequence[str] = ()) -> None:
        self.folder, self.run, self.options = folder, run, list(options)
        self.process: subprocess.Popen[bytes] | None = None
        run.mkdir(exist_ok=True)
        run.chmod(0o777)

    def command(self) -> list[str]:
        raise NotImplementedError

    def make(self) -> None:
        """Make an empty database."""

    def ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        log = open(self.run / "log", "ab")  # noqa: SIM115 - the server's
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        until(self._is_ready, START_SECONDS, f"{self.name} is ready: {(self.run / 'log').read_text()[-2000:]}")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.run / "log").read_text()[-3000:]
        return self.ready()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(self.ended_by)
            self.process.wait(20)
            self.process = None

    def insert(self, stop: threading.Event, acknowledged: list[int]) -> None:
        """Insert numbers, one a commit, until `stop`; note each that the server acknowledged."""
        raise NotImplementedError

    def found(self) -> set[int]:
        """Return the numbers that are there."""
        raise NotImplementedError

    def _ask(self, command: list[str], text: str) -> str:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return done.stdout


class Client:
    """A command-line client on pipes that answers each line with one line."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def after(acknowledged: Sequence[int]) -> int:
    """Return a number after which none is there yet: the last one may be, though it was not acknowledged."""
    return acknowledged[-1] + 10 if acknowledged else 0


def insert_by_client(
    client: Client, statement: Callable[[int], str], stop: threading.Event, acknowledged: list[int]
) -> None:
    try:
        number = after(acknowledged)
        while not stop.is_set():
            number += 1
            if client.ask(statement(number)) != str(number):
                return
            acknowledged.append(number)
    finally:
        client.close()


class MariaDb(Server):
    name = "mariadbd"

    def command(self) -> list[str]:
        files = [f"--datadir={self.folder}/data", f"--socket={self.run}/s", f"--pid-file={self.run}/pid"]
        # Only the socket, no grant tables: the test is about its files.
        return [program("mariadbd", "mariadb-server"), "--no-defaults", *files, "--user=root", "--skip-networking",
                "--skip-grant-tables", "--innodb-buffer-pool-size=32M", *self.options]  # fmt: skip

    def make(self) -> None:
        install = program("mariadb-install-db", "mariadb-server")
        made = [install, "--no-defaults", f"--datadir={self.folder}/data", "--user=root", "--skip-test-db"]
        subprocess.run(made, check=True, capture_output=True, timeout=120)

    def ready(self) -> bool:
        done = subprocess.run([*self.client, "-e", "select 1"], capture_output=True, check=False, timeout=20)
        return done.returncode == 0

    @property
    def client(self) -> list[str]:
        return [program("mariadb", "mariadb-client"), "--no-defaults", f"--socket={self.run}/s", "-ABNn"]

    def ask(self, text: str) -> str:
        return self._ask(self.client, text)

    def insert(self, stop: threading.Event, acknowledged: list[int]) -> None:
        insert_by_client(
            Client([*self.client, "t"]), lambda n: f"insert into n values ({n}); select {n};", stop, acknowledged
        )

    def found(self) -> set[int]:
        return {int(line) for line in self.ask("select n from t.n;").split()}


class MySql(MariaDb):
    name = "mysqld"

    @property
    def client(self) -> list[str]:
        return [not_mariadb("mysql"), "--no-defaults", f"--socket={self.run}/s", "-ABNn"]

    def command(self) -> list[str]:
        files = [f"--datadir={self.folder}/data", f"--socket={self.run}/s", f"--pid-file={self.run}/pid"]
        return [not_mariadb("mysqld"), "--no-defaults", *files, "--user=root", "--skip-networking", "--mysqlx=OFF",
                "--innodb-buffer-pool-size=32M", *self.options]  # fmt: skip

    def make(self) -> None:
        options = ["--no-defaults", f"--datadir={self.folder}/data", "--user=root"]
        made = [not_mariadb("mysqld"), *options, "--initialize-insecure"]
        subprocess.run(made, check=True, capture_output=True, timeout=180)


def not_mariadb(name: str) -> str:
    """Return the path of a program of MySQL's; raise Unmet if there is none: MariaDB's have the same names."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False) if found else None
    if found is None or said is None or "MariaDB" in said.stdout:
        raise Unmet(f"needs {name} of MySQL, which Debian 12 and 13 do not have")
    return found


class PostgreSql(Server):
    name = "postgres"
    ended_by = signal.SIGQUIT  # at once, but not before its children

    def command(self) -> list[str]:
        settings = ["-c", f"unix_socket_directories={self.run}", "-c", "listen_addresses=", "-c", "shared_buffers=16MB"]
        server = [program("postgres", "postgresql"), "-D", f"{self.folder}/data", *settings, *self.options]
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *server]

    def make(self) -> None:
        shutil.chown(self.folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        made = [program("initdb", "postgresql"), "-D", f"{self.folder}/data", "-A", "trust", "-N"]
        subprocess.run([*as_user, *made], check=True, capture_output=True, timeout=120, cwd="/")

    @property
    def client(self) -> list[str]:
        return [program("psql", "postgresql-client"), "-AtqX", "-h", str(self.run), "-U", "postgres", "-d", "postgres"]

    def ready(self) -> bool:
        done = subprocess.run([*self.client, "-c", "select 1"], capture_output=True, check=False, timeout=20)
        return done.returncode == 0

    def ask(self, text: str) -> str:
        return self._ask([*self.client, "-v", "ON_ERROR_STOP=1"], text)

    def insert(self, stop: threading.Event, acknowledged: list[int]) -> None:
        insert_by_client(Client(self.client), lambda n: f"insert into n values ({n}) returning n;", stop, acknowledged)

    def found(self) -> set[int]:
        return {int(line) for line in self.ask("select n from n;").split()}


class Redis(Server):
    name = "redis-server"

    def command(self) -> list[str]:
        kept = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        where = ["--port", "0", "--unixsocket", f"{self.run}/s", "--dir", str(self.folder), *kept]
        return [program("redis-server", "redis-server"), *where, *self.options]

    def ready(self) -> bool:
        try:
            return self.ask("PING") == "+PONG"
        except OSError:
            return False

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(60)
            sock.connect(f"{self.run}/s")
        except OSError:
            sock.close()
            raise
        return sock

    def ask(self, line: str) -> str:
        with self._connect() as sock, sock.makefile("rwb") as file:
            file.write(line.encode() + b"\r\n")
            file.flush()
            return file.readline().decode().strip()

    def insert(self, stop: threading.Event, acknowledged: list[int]) -> None:
        with self._connect() as sock, sock.makefile("rwb") as file:
            number = after(acknowledged)
            while not stop.is_set():
                number += 1
                file.write(b"SET n%d %d\r\n" % (number, number))
                file.flush()
                if file.readline() != b"+OK\r\n":
                    return
                acknowledged.append(number)

    def found(self) -> set[int]:
        with self._connect() as sock, sock.makefile("rwb") as file:
            file.write(b"KEYS n*\r\n")
            file.flush()
            count = int(file.readline()[1:])
            keys = []
            for _ in range(count):
                file.readline()
                keys.append(int(file.readline()[1:]))
            return set(keys)

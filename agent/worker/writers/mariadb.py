"""MariaDB from 10.4 on: BACKUP STAGE BLOCK_COMMIT lets everything but commits go on.

With innodb_flush_log_at_trx_commit other than 1, commits that were acknowledged wait in the server's memory, and no
lock writes them. So it is set to 1 before, and put back: that is a latch. A confirm statement must not write, the file
systems are frozen: so the session is kept out of the server's logs.
"""

from __future__ import annotations

import math
import os
from typing import Any

from ...api.writers import WriterConfig
from .client import Client
from .latch import Latch
from .step import Refused, Waits, left, wait

Info = dict[str, Any]
FLUSH = "innodb_flush_log_at_trx_commit"
MARGIN = 60  # seconds that the server keeps a silent session longer than it may be needed
_LONGEST = 31536000  # seconds: the largest wait_timeout
_LOGS = "select @@global.general_log, @@global.slow_query_log, @@global.log_output"
_AUDIT = (
    "select plugin_name from information_schema.plugins"
    " where plugin_type = 'AUDIT' and plugin_status = 'ACTIVE' and plugin_name like '%audit%'"
)


class MariaDb:
    """One session, and the variable that it has set."""

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._at_most = at_most
        self._client: Client | None = None
        self._session = ""

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor that becomes readable if the session ends."""
        return (self._client.fd,) if self._client is not None else ()

    def prepare(self, until: float) -> Info:
        """Connect and check, and begin the backup stages. Raises Refused, Interrupted."""
        client = self._client = connect("mariadb", self._config, self._waits)
        version, flush, directory, logs, undo, home, binlog = client.row(
            f"select version(), @@global.{FLUSH}, @@datadir, @@innodb_log_group_home_dir, @@innodb_undo_directory,"
            " ifnull(@@innodb_data_home_dir, ''), ifnull(@@log_bin_basename, '')",
            until,
            7,
        )
        if "mariadb" not in version.lower():
            raise Refused(f"it is MySQL {version}: its type is mysql")
        if numbers(version) < (10, 4):
            raise Refused(f"it is {version}, and BACKUP STAGE needs MariaDB 10.4")
        (self._session,) = client.row("select connection_id()", until, 1)
        keep_silent(client, until)
        client.ask(f"set session lock_wait_timeout = {left(until)}", until)
        set_flush(client, self._latch, self._config, "mariadb", flush, until)
        client.ask("backup stage start", until)
        return {"paths": places(directory, logs, undo, home, os.path.dirname(binlog)), "version": version}

    def quiesce(self, until: float) -> Info:
        """Block commits, and note the position in the binary log. Raises Refused, Interrupted."""
        client = self._client
        assert client is not None
        client.ask(f"set session lock_wait_timeout = {left(until)}", until)
        let_go_if_silent(client, self._at_most, until)
        client.ask("backup stage block_commit", until)
        (gtid,) = client.row("select @@gtid_current_pos", until, 1)
        master = client.rows("show master status", until)
        return {"gtid": gtid, **({"binlog": f"{master[0][0]}:{master[0][1]}"} if master else {})}

    def confirm(self, until: float) -> Info:
        """Show that it is the session that has blocked commits. Raises Refused, Interrupted."""
        assert self._client is not None
        if self._client.rows("select connection_id()", until) != [[self._session]]:
            raise Refused("its session was lost, and with it the lock")
        return {}

    def lost(self) -> str:
        """Return that the session has ended, in the client's words."""
        assert self._client is not None
        return self._client.last_words()

    def release(self, until: float, verdict: str) -> str:
        """Let commits go on, and put back what was set."""
        wrong = ""
        if self._client is not None:
            self._client.waits = wait
            try:
                self._client.ask("backup stage end", until)
            except Refused as error:
                wrong = str(error)  # closed all the same: the server lets go
            self._client.close()
            self._client = None
        put_back(self._latch, until, verdict)
        return wrong


def connect(program: str, config: WriterConfig, waits: Waits) -> Client:
    """Return a session of the client `program`, which is MariaDB's or MySQL's; raise Refused."""
    # With a new session in the place of a lost one nobody would hear that the lock is gone. Options of the
    # administrator's come first: --defaults-file and its like must.
    where = [f"--socket={config.socket}"] if config.socket else []
    command = [config.client or program, *config.client_options, "-ABNn", "--skip-reconnect", *where]
    return Client(command, config.user, "select '{}'", waits)


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; raise Refused if there are none."""
    first = version.split("-")[0].split(".")[:2]
    if len(first) < 2 or not all(map(str.isdecimal, first)):
        raise Refused(f"its version is {version!r:.60}")
    return int(first[0]), int(first[1])


def places(directory: str, *others: str) -> list[str]:
    """Return the folders of a server, each once: those that are not absolute lie in the first."""
    return list(dict.fromkeys([directory, *(os.path.join(directory, other) for other in others if other)]))


def keep_silent(client: Client, until: float) -> None:
    """Keep the session out of the server's logs, which may lie on what is frozen; raise Refused if that cannot be."""
    general, slow, output = client.row(_LOGS, until, 3)
    if general == "1" and output != "NONE":
        client.ask("set session sql_log_off = 1", until)
    if slow == "1" and output != "NONE":
        client.ask("set session long_query_time = 31536000", until)
    if found := client.rows(_AUDIT, until):
        name = found[0][0].lower()
        settings = dict(row for row in client.rows(f"show global variables like '{name}\\_%'", until) if len(row) == 2)
        if settings.get(f"{name}_logging", "ON") == "ON" and settings.get(f"{name}_output_type", "file") == "file":
            raise Refused(f"its audit plugin {found[0][0]} would write each statement to a file while that is frozen")


def let_go_if_silent(client: Client, at_most: float, until: float) -> None:
    """Have the server end the session by itself, should this process be stopped; 0: it may be held for ever."""
    longest = min(math.ceil(at_most) + MARGIN, _LONGEST) if at_most else _LONGEST
    client.ask(f"set session wait_timeout = {longest}", until)


def set_flush(client: Client, latch: Latch, config: WriterConfig, kind: str, flush: str, until: float) -> None:
    """Have each commit be written to the disk from now on; what it was is on record before that. Raises Refused."""
    if flush != "1":
        about = {name: getattr(config, name) for name in ("user", "client", "socket")}
        options = list(config.client_options)
        latch.write({"type": kind, "flush": int(flush), **about, "client_options": options})
        client.ask(f"set global {FLUSH} = 1", until)


def put_back(latch: Latch, until: float, _verdict: str) -> str:
    """Put back the variable that the record names; nothing is on record afterwards. Raises Refused."""
    record = latch.record
    if record is None:
        return ""
    config = WriterConfig(
        latch.name,
        record["type"],
        user=record["user"],
        client=record["client"],
        socket=record["socket"],
        client_options=tuple(record["client_options"]),
    )
    client = connect(record["type"], config, wait)
    try:
        client.ask(f"set global {FLUSH} = {int(record['flush'])}", until)
    finally:
        client.close()
    latch.clear()
    return ""

"""PostgreSQL and MariaDB: their statements for prepare, quiesce, confirm and release, over their own clients.

A confirm statement must not write: the file systems are frozen.
"""

from __future__ import annotations

from typing import Any

from ...api.writers import WriterConfig
from .client import Client, Refused, left
from .hook_program import Waits, wait
from .latch import Latch

Info = dict[str, Any]
_FLUSH = "innodb_flush_log_at_trx_commit"


class PostgreSql:
    """PostgreSQL: a checkpoint before the sync, so that recovery is short, and the position in its log.

    No statement stops commits, and none need be: an image of all its file systems is consistent. So what this session
    holds is nothing; it shows that the server was there all the time.
    """

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, _at_most: float = 0.0) -> None:
        self._config = config
        self._waits = waits
        self._client: Client | None = None
        del latch  # a session is let go by the server

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor that becomes readable if the session ends."""
        return (self._client.fd,) if self._client is not None else ()

    def prepare(self, until: float) -> Info:
        """Connect and check; have what is dirty written. Raises Refused, Interrupted."""
        config = self._config
        command = [config.client or "psql", "-AtqX", "-v", "ON_ERROR_STOP=1", "-F", "\t", "-d", "postgres"]
        command += ["-h", config.socket] if config.socket else []
        self._client = Client(command, config.user or "postgres", "select '{}'")
        ((directory, version),) = self._rows("select current_setting('data_directory'), version()", until)
        if self._rows("select pg_is_in_recovery()", until) == [["t"]]:
            raise Refused("it is a standby: ask its primary")
        self._rows("checkpoint", until)
        paths = [directory]
        spaces = "select pg_tablespace_location(oid) from pg_tablespace where pg_tablespace_location(oid) <> ''"
        paths += [row[0] for row in self._rows(spaces, until)]
        return {"paths": paths, "version": version.split(" on ")[0]}

    def quiesce(self, until: float) -> Info:
        """Note the position in the log up to which all is written. Raises Refused, Interrupted."""
        asked = "select pg_current_wal_flush_lsn(), timeline_id from pg_control_checkpoint()"
        ((lsn, timeline),) = self._rows(asked, until)
        return {"lsn": lsn, "timeline": timeline}

    def confirm(self, until: float) -> Info:
        """Show that the session is there. Raises Refused, Interrupted."""
        self._rows("select 1", until)
        return {}

    def release(self, until: float) -> str:
        """End the session, and tell if it has ended before."""
        wrong = ""
        if self._client is not None:
            try:
                self._client.ask("select 1", wait, until)
            except Refused as error:
                wrong = str(error)
            self._client.close()
        return wrong

    def _rows(self, statement: str, until: float) -> list[list[str]]:
        assert self._client is not None
        return [row.split("\t") for row in self._client.ask(statement, self._waits, until)]


class MariaDb:
    """MariaDB from 10.4 on: BACKUP STAGE BLOCK_COMMIT lets everything but commits go on.

    With innodb_flush_log_at_trx_commit other than 1, commits that were acknowledged wait in the server's memory, and no
    lock writes them. So it is set to 1 before, and put back: that is a latch.
    """

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, _at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._client: Client | None = None
        self._session = ""

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor that becomes readable if the session ends."""
        return (self._client.fd,) if self._client is not None else ()

    def prepare(self, until: float) -> Info:
        """Connect and check, and begin the backup stages. Raises Refused, Interrupted."""
        self._client = _mariadb(self._config)
        ((version, flush, directory, logs),) = self._rows(
            f"select version(), @@global.{_FLUSH}, @@datadir, @@innodb_log_group_home_dir", until
        )
        numbers = version.split("-")[0].split(".")
        if "mariadb" not in version.lower() or [int(number) for number in numbers[:2]] < [10, 4]:
            raise Refused(f"it is {version}, and BACKUP STAGE needs MariaDB 10.4")
        ((self._session,),) = self._rows("select connection_id()", until)
        self._rows(f"set session lock_wait_timeout = {left(until)}", until)
        if flush != "1":
            about = {"user": self._config.user, "client": self._config.client, "socket": self._config.socket}
            self._latch.write({"type": "mariadb", "flush": int(flush), **about})
            self._rows(f"set global {_FLUSH} = 1", until)
        self._rows("backup stage start", until)
        log_paths = [logs if logs.startswith("/") else directory]
        return {"paths": list(dict.fromkeys([directory, *log_paths])), "version": version}

    def quiesce(self, until: float) -> Info:
        """Block commits, and note the position in the binary log. Raises Refused, Interrupted."""
        self._rows(f"set session lock_wait_timeout = {left(until)}", until)
        self._rows("backup stage block_commit", until)
        ((gtid,),) = self._rows("select @@gtid_current_pos", until)
        master = self._rows("show master status", until)
        return {"gtid": gtid, **({"binlog": f"{master[0][0]}:{master[0][1]}"} if master else {})}

    def confirm(self, until: float) -> Info:
        """Show that it is the session that has blocked commits. Raises Refused, Interrupted."""
        if self._rows("select connection_id()", until) != [[self._session]]:
            raise Refused("its session was lost, and with it the lock")
        return {}

    def release(self, until: float) -> str:
        """Let commits go on, and put back what was set."""
        wrong = ""
        if self._client is not None:
            try:
                self._client.ask("backup stage end", wait, until)
            except Refused as error:
                wrong = str(error)  # closed all the same: the server lets go
            self._client.close()
            self._client = None
        if self._latch.record is not None:
            put_back(self._latch, until)
        return wrong

    def _rows(self, statement: str, until: float) -> list[list[str]]:
        assert self._client is not None
        return [row.split("\t") for row in self._client.ask(statement, self._waits, until)]


def put_back(latch: Latch, until: float) -> str:
    """Put back the variable that the record names; nothing is on record afterwards. Raises Refused."""
    record = latch.record or {}
    config = WriterConfig(latch.name, "mariadb", user=record["user"], client=record["client"], socket=record["socket"])
    client = _mariadb(config)
    try:
        client.ask(f"set global {_FLUSH} = {int(record['flush'])}", wait, until)
    finally:
        client.close()
    latch.clear()
    return ""


def _mariadb(config: WriterConfig) -> Client:
    # With a new session in the place of a lost one nobody would hear that the lock is gone.
    command = [config.client or "mariadb", "-ABNn", "--skip-reconnect"]
    return Client([*command, *([f"--socket={config.socket}"] if config.socket else [])], config.user, "select '{}'")

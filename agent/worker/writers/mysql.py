"""MySQL from 8.0 on: LOCK INSTANCE FOR BACKUP, so that no file comes or goes; InnoDB needs nothing more.

Only if there are tables without a log (MyISAM and its like) all writes are stopped, by FLUSH TABLES WITH READ LOCK.
That waits for every statement that is under way and stops all that come after it meanwhile: so a long one refuses the
freeze before it is asked for. innodb_flush_log_at_trx_commit is set and put back as for MariaDB.
"""

from __future__ import annotations

import time
from typing import Any

from .mysql_family import FLUSH, connect, keep_open, keep_silent, let_go_if_silent, numbers, places, put_back, set_flush
from .session import ClientSession
from .step import Refused, left, whole

Info = dict[str, Any]
_UNLOGGED = (
    "select count(*) from information_schema.tables"
    " where engine not in ('InnoDB', 'ndbcluster', 'MEMORY', 'BLACKHOLE', 'FEDERATED', 'PERFORMANCE_SCHEMA')"
    " and table_schema not in ('mysql', 'information_schema', 'performance_schema', 'sys')"
)
_POSITION = (
    "select local->>'$.gtid_executed', local->>'$.binary_log_file', local->>'$.binary_log_position',"
    " storage_engines->>'$.InnoDB.LSN' from performance_schema.log_status"
)
_LOCK = ("flush tables with read lock",)
_LONGEST = (
    "select id, time from information_schema.processlist where command in ('Query', 'Execute')"
    " and id <> connection_id() order by time desc limit 1"
)


class MySql(ClientSession):
    """One session, and the variable that it has set."""

    _session = ""
    _stops_all = False

    def prepare(self, until: float) -> Info:
        """Connect and check. Raises Refused, Interrupted."""
        client = self._open(connect(self._config, self._waits))
        (version,) = client.row("select version()", until, 1)
        if "mariadb" in version.lower():
            raise Refused(f"it is {version}: its type is mariadb")
        if numbers(version) < (8, 0):
            raise Refused(f"it is MySQL {version}, and LOCK INSTANCE FOR BACKUP needs 8.0")
        self._session, flush = client.row(f"select connection_id(), @@global.{FLUSH}", until, 2)
        keep_open(client, until)
        keep_silent(client, until)
        (unlogged,) = client.row(_UNLOGGED, until, 1)
        self._stops_all = unlogged != "0"
        set_flush(client, self._latch, self._config, flush, until)
        return {
            "paths": places(client, until),
            "version": version,
            "unlogged_tables": unlogged,
        }

    def quiesce(self, until: float) -> Info:
        """Hold, write the log, and note the position in it and in the binary log. Raises Refused, Interrupted."""
        client = self._client
        before = (f"set session lock_wait_timeout = {left(until)}", let_go_if_silent(self._at_most))
        client.ask(";\n".join((*before, "lock instance for backup")), until)
        if self._stops_all:
            session, seconds = client.row_or_none(_LONGEST, until, 2) or ("", "-1")
            if whole(seconds, "the longest statement") >= until - time.monotonic():
                raise Refused(f"it would wait for the statement of session {session}, which runs for {seconds} s")
        # In one go: from the lock on sessions stand still.
        steps = (*_LOCK * self._stops_all, "flush no_write_to_binlog engine logs", _POSITION)
        gtid, file, position, lsn = client.row(";\n".join(steps), until, 4)
        info = {"gtid": gtid.replace("\\n", ""), "lsn": lsn}
        return info | ({"binlog": f"{file}:{position}"} if file not in ("", "NULL") else {})

    def confirm(self, until: float) -> Info:
        """Show that it is the session that has the locks. Raises Refused, Interrupted."""
        if self._client.rows("select connection_id()", until) != [[self._session]]:
            raise Refused("its session was lost, and with it the locks")
        return {}

    def release(self, until: float, verdict: str) -> str:
        """Let go, and put back what was set."""
        wrong = self._end(until, "unlock tables", "unlock instance")
        put_back(self._latch, until, verdict)
        return wrong

"""MariaDB from 10.4 on: BACKUP STAGE BLOCK_COMMIT lets everything but commits go on.

With innodb_flush_log_at_trx_commit other than 1, commits that were acknowledged wait in the server's memory, and no
lock writes them. So it is set to 1 before, and put back: that is a latch. A confirm statement must not write, the file
systems are frozen: so the session is kept out of the server's logs.
"""

from __future__ import annotations

from typing import Any

from .mysql_family import FLUSH, connect, keep_open, keep_silent, let_go_if_silent, numbers, places, put_back, set_flush
from .session import ClientSession
from .step import Refused, left

Info = dict[str, Any]


class MariaDb(ClientSession):
    """One session, and the variable that it has set."""

    _session = ""

    def prepare(self, until: float) -> Info:
        """Connect and check, and begin the backup stages. Raises Refused, Interrupted."""
        client = self._open(connect(self._config, self._waits))
        version, flush = client.row(f"select version(), @@global.{FLUSH}", until, 2)
        if "mariadb" not in version.lower():
            raise Refused(f"it is MySQL {version}: its type is mysql")
        if numbers(version) < (10, 4):
            raise Refused(f"it is {version}, and BACKUP STAGE needs MariaDB 10.4")
        (self._session,) = client.row("select connection_id()", until, 1)
        keep_open(client, until)
        keep_silent(client, until)
        client.ask(f"set session lock_wait_timeout = {left(until)}", until)
        set_flush(client, self._latch, self._config, flush, until)
        client.ask("backup stage start", until)
        return {"paths": places(client, until), "version": version}

    def quiesce(self, until: float) -> Info:
        """Block commits, and note the position in the binary log. Raises Refused, Interrupted."""
        client = self._client
        # In one go: from the lock on sessions stand still, and each answer that is waited for takes four turns of
        # processes.
        steps = (
            f"set session lock_wait_timeout = {left(until)}",
            let_go_if_silent(self._at_most),
            "backup stage block_commit",
            "select @@gtid_current_pos",
            "show master status",
        )
        found = client.rows(";\n".join(steps), until)
        if not found:
            raise Refused("its position in the binary log was answered with no row")
        (gtid, *_), *master = found
        return {"gtid": gtid, **({"binlog": ":".join(master[0][:2])} if master else {})}

    def confirm(self, until: float) -> Info:
        """Show that it is the session that has blocked commits. Raises Refused, Interrupted."""
        if self._client.rows("select connection_id()", until) != [[self._session]]:
            raise Refused("its session was lost, and with it the lock")
        return {}

    def release(self, until: float, verdict: str) -> str:
        """Let commits go on, and put back what was set."""
        wrong = self._end(until, "backup stage end")
        put_back(self._latch, until, verdict)
        return wrong

"""PostgreSQL: a checkpoint before the sync, so that recovery is short, and the position in its log.

No statement stops commits, and none need be: an image of all its file systems is consistent. So what this session holds
is nothing; it shows that the server was there all the time. A confirm statement must not write: the file systems are
frozen.
"""

from __future__ import annotations

from typing import Any

from ...api.writers import WriterConfig
from .client import LOOK_GRACE, Client
from .session import ClientSession
from .step import Refused, Waits, wait, whole

Info = dict[str, Any]
# A statement that is logged would wait for the log's file system (a superuser may change these for a session).
_SILENT = "set log_statement = none; set log_min_duration_statement = -1; set log_duration = off"
# The server may end a session that is idle, and a sync takes its time; from PostgreSQL 14 on.
_STAYS = "select set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'"
GOOD = "good"
_START = "select pg_backup_start('virtagent', fast => true)"
# In hexadecimal digits: both are of many lines.
_STOP = (
    "select encode(convert_to(labelfile, 'UTF8'), 'hex'), encode(convert_to(spcmapfile, 'UTF8'), 'hex')"
    " from pg_backup_stop(wait_for_archive => false)"
)
_SPACES = "select pg_tablespace_location(oid) from pg_tablespace where pg_tablespace_location(oid) <> ''"


class PostgreSql(ClientSession):
    """One session."""

    _standby = False

    def prepare(self, until: float) -> Info:
        """Connect and check; have what is dirty written. Raises Refused, Interrupted."""
        client = self._open(_connect(self._config, self._waits))
        version, superuser = client.row("select version(), current_setting('is_superuser')", until, 2)
        self._standby = client.rows("select pg_is_in_recovery()", until) == [["t"]]
        client.ask(_STAYS, until)
        if superuser == "on":
            client.ask(_SILENT, until)
        if self._config.backup_mode:
            (number,) = client.row("select current_setting('server_version_num')", until, 1)
            if whole(number, "its version") < 150000:
                raise Refused(f"it is {version.split(' on ')[0]}, and backup-mode needs PostgreSQL 15")
        client.ask(_START if self._config.backup_mode else "checkpoint", until)
        return {"paths": _paths(client, until), "version": version.split(" on ")[0]}

    def quiesce(self, until: float) -> Info:
        """Note the position in the log up to which all is written. Raises Refused, Interrupted."""
        position = "pg_last_wal_replay_lsn" if self._standby else "pg_current_wal_flush_lsn"
        lsn, timeline = self._client.row(f"select {position}(), timeline_id from pg_control_checkpoint()", until, 2)
        return {"lsn": lsn, "timeline": timeline, **({"standby": "yes"} if self._standby else {})}

    def confirm(self, until: float) -> Info:
        """Show that the session is there. Raises Refused, Interrupted."""
        self._client.ask("select 1", until)
        return {}

    def release(self, until: float, verdict: str) -> str:
        """End the session, and tell if it has ended before; a backup that is not stopped is given up with it."""
        wrong = ""
        if self._config.backup_mode and verdict == GOOD and self._opened is not None and not self._opened.refused:
            try:
                self.told = self._stopped(until)
            except Refused as error:
                wrong = f"there is no backup label: {error}"
        return self._end(until, "select 1") or wrong

    def _stopped(self, until: float) -> Info:
        """End the backup mode; return the files that a restore of the image may want. Raises Refused."""
        self._client.waits = wait
        found = self._client.row(_STOP, until, 2)
        try:
            label, spaces = (bytes.fromhex(digits).decode() for digits in found)
        except ValueError:
            raise Refused(f"it answers {found!r:.100}") from None
        return {"backup_label": label, **({"tablespace_map": spaces} if spaces else {})}


def look(config: WriterConfig, until: float) -> list[str]:
    """Return where a server has its data; raise Refused."""
    client = _connect(config, wait)
    try:
        return _paths(client, until)
    finally:
        client.close(LOOK_GRACE)


def _connect(config: WriterConfig, waits: Waits) -> Client:
    command = [config.client or "psql", "-AtqX", "-v", "ON_ERROR_STOP=1", "-F", "\t", "-d", "postgres", "-w"]
    command += ["-h", config.socket] if config.socket else []
    return Client([*command, *config.client_options], config.user or "postgres", "select '{}'", waits)


def _paths(client: Client, until: float) -> list[str]:
    (directory,) = client.row("select current_setting('data_directory')", until, 1)
    return [directory, f"{directory}/pg_wal", *(row[0] for row in client.rows(_SPACES, until))]

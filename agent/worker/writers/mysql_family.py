"""What MariaDB and MySQL have in common: the client, logs to keep out of, a variable to set and to put back."""

from __future__ import annotations

import math
import os

from ...api.writers import WriterConfig
from .client import LOOK_GRACE, Client
from .latch import Latch
from .step import Refused, Waits, wait, whole

FLUSH = "innodb_flush_log_at_trx_commit"
MARGIN = 60  # seconds that the server keeps a silent session longer than it may be needed
_LONGEST = 31536000  # seconds: the largest wait_timeout
_LOGS = "select @@global.general_log, @@global.slow_query_log, @@global.log_output"
_PLACES = (
    "select @@datadir, @@innodb_log_group_home_dir, @@innodb_undo_directory, ifnull(@@innodb_data_home_dir, ''),"
    " ifnull(@@log_bin_basename, '')"
)
_AUDIT = (
    "select plugin_name from information_schema.plugins"
    " where plugin_type = 'AUDIT' and plugin_status = 'ACTIVE' and plugin_name like '%audit%'"
)


def connect(config: WriterConfig, waits: Waits) -> Client:
    """Return a session; raise Refused. The clients are called like the types."""
    # With a new session in the place of a lost one nobody would hear that the lock is gone. Options of the
    # administrator's come first: --defaults-file and its like must.
    where = [f"--socket={config.socket}"] if config.socket else []
    command = [config.client or config.type, *config.client_options, "-ABNn", "--skip-reconnect", *where]
    return Client(command, config.user, "select '{}'", waits)


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; raise Refused if there are none."""
    first = version.split("-")[0].split(".")[:2]
    if len(first) < 2:
        raise Refused(f"its version is {version[:60]!r}")
    return whole(first[0], "its version"), whole(first[1], "its version")


def look(config: WriterConfig, until: float) -> list[str]:
    """Return where a server has its data; raise Refused."""
    client = connect(config, wait)
    try:
        return places(client, until)
    finally:
        client.close(LOOK_GRACE)


def places(client: Client, until: float) -> list[str]:
    """Return the folders of a server, each once: those that are not absolute lie in the first. Raises Refused."""
    directory, *others, binlog = client.row(_PLACES, until, 5)
    others.append(os.path.dirname(binlog))
    return list(dict.fromkeys(os.path.normpath(os.path.join(directory, other)) for other in ("", *others)))


def keep_open(client: Client, until: float) -> None:
    """Have the server not end the session while nothing is asked: a sync may take longer than its wait_timeout."""
    client.ask(f"set session wait_timeout = {_LONGEST}", until)


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


def let_go_if_silent(at_most: float) -> str:
    """Return what has the server end the session by itself, should this process be stopped; 0: held for ever."""
    longest = min(math.ceil(at_most) + MARGIN, _LONGEST) if at_most else _LONGEST
    return f"set session wait_timeout = {longest}"


def set_flush(client: Client, latch: Latch, config: WriterConfig, flush: str, until: float) -> None:
    """Have each commit be written to the disk from now on; what it was is on record before that. Raises Refused."""
    if flush != "1":
        about = {name: getattr(config, name) for name in ("user", "client", "socket")}
        options = list(config.client_options)
        latch.write({"type": config.type, "flush": whole(flush, FLUSH), **about, "client_options": options})
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
    client = connect(config, wait)
    try:
        client.ask(f"set global {FLUSH} = {int(record['flush'])}", until)
    finally:
        client.close()
    latch.clear()
    return ""

"""The client of a database as a process, without a database: it is cat, which answers what it is asked."""

from __future__ import annotations

import time

from virtagent.agent.worker.writers.client import Client
from virtagent.agent.worker.writers.step import wait


def test_a_statement_that_is_not_utf_8_is_said_as_it_stands_in_the_file() -> None:
    client = Client(["/bin/cat"], "", "{}", wait, end="")
    latin = b"update orders set note = 'gr\xfc\xdfe'"
    said = client.ask(latin.decode("utf-8", "surrogateescape"), time.monotonic() + 60)
    assert said == [latin.decode(errors="replace")]
    client.close()

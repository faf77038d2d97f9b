"""virtagent.kube where the machine or what it is given has an end: threads, tokens, names, years."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from virtagent.kube import api, shapes
from virtagent.kube.api import BadReply, KubeError, NoAnswer, Server, request, together


def threads_to_be_had(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let so many threads be started, as a pod's limit of processes does."""
    start, left = threading.Thread.start, [count]

    def limited(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.parametrize("count", [1, 5, 10 * api.SIMULTANEOUSLY])
def test_few_threads_do_all(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A thread was started for each guest, and where that failed nobody was thawed."""
    threads_to_be_had(monkeypatch, count)
    found = together({str(n): lambda n=n: n for n in range(1000)}, 60)  # type: ignore[misc]
    assert found == {str(n): n for n in range(1000)}


def test_no_thread_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thaw is tried again."""
    threads_to_be_had(monkeypatch, 0)
    (found,) = together({"a": lambda: 1}, 60).values()
    assert isinstance(found, NoAnswer)
    assert "thread" in str(found)


@pytest.mark.parametrize(
    ("url", "token"), [("http://127.0.0.1:1", "two\nlines"), ("https://" + "a" * 70 + ".example.org", "s3cret")]
)
def test_what_cannot_be_sent_is_an_error_in_one_sentence(tmp_path: Path, url: str, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(KubeError) as raised:
        request(Server(url, tmp_path / "token"), "GET", "/x")
    assert token not in str(raised.value)


@pytest.mark.parametrize("url", ["https://h:99999", "https://h:x", "https://[::1"])
def test_a_server_with_a_port_that_is_none_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="is no API server"):
        Server(url)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_that_no_report_can_say_is_none(at: str) -> None:
    with pytest.raises(BadReply, match="creationTime"):
        shapes.snapshot({"metadata": {"name": "a", "uid": "u"}, "status": {"creationTime": at}})

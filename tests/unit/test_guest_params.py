"""Arguments of qemu-ga's commands: what is taken, and the words for what is not."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.counting import calls
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.methods import RPCS, arguments


@pytest.mark.parametrize(
    ("command", "given", "wanted"),
    [
        ("sync", {"id": -(2**63)}, {"id": -(2**63)}),
        ("file-open", {"path": "/x"}, {"path": "/x", "mode": None}),
        ("file-seek", {"handle": 1, "offset": 0, "whence": 2}, {"handle": 1, "offset": 0, "whence": 2}),
        ("file-seek", {"handle": 1, "offset": 0, "whence": "end"}, {"handle": 1, "offset": 0, "whence": "end"}),
        ("set-vcpus", {"vcpus": []}, {"vcpus": []}),
        (
            "set-vcpus",
            {"vcpus": [{"online": False, "logical-id": 3}]},
            {"vcpus": [{"logical-id": 3, "online": False, "can-offline": None}]},
        ),
        (
            "set-vcpus",
            {"vcpus": [{"online": True, "can-offline": True, "logical-id": 3}]},
            {"vcpus": [{"logical-id": 3, "online": True, "can-offline": True}]},
        ),
        (
            "set-memory-blocks",
            {"mem-blks": [{"phys-index": 3, "online": True, "can-offline": False}]},
            {"mem-blks": [{"phys-index": 3, "online": True, "can-offline": False}]},
        ),
        ("fstrim", {}, {"minimum": None}),
    ],
)
def test_what_is_taken(command: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert arguments(RPCS[f"guest-{command}"], given) == wanted


@pytest.mark.parametrize("capture", [True, False, "none", "stdout", "stderr", "separated", "merged"])
def test_captures(capture: bool | str) -> None:
    assert arguments(RPCS["guest-exec"], {"path": "/x", "capture-output": capture})["capture-output"] == capture


@pytest.mark.parametrize(
    ("command", "given", "text"),
    [
        ("sync", {}, "Parameter 'id' is missing"),
        ("sync", {"foo": 2}, "Parameter 'id' is missing"),
        ("sync", {"id": 1, "foo": 2}, "Parameter 'foo' is unexpected"),
        ("ping", {"x": 1}, "Parameter 'x' is unexpected"),
        ("sync", {"id": 2**64 - 1}, "Invalid parameter type for 'id', expected: integer"),
        ("sync", {"id": True}, "Invalid parameter type for 'id', expected: integer"),
        ("sync", {"id": 100.0}, "Invalid parameter type for 'id', expected: integer"),
        ("file-open", {"path": 1}, "Invalid parameter type for 'path', expected: string"),
        ("file-open", {"path": "a\0b"}, "Parameter 'path' has a NUL"),
        (
            "file-seek",
            {"handle": 1, "offset": 0, "whence": []},
            "Invalid parameter type for 'whence', expected: GuestFileWhence",
        ),
        (
            "file-seek",
            {"handle": 1, "offset": 0, "whence": "foo"},
            "Parameter 'whence' does not accept value 'foo'",
        ),
        ("file-open", {"path": "/x", "mode": "rw"}, "invalid file open mode 'rw'"),
        ("file-open", {"path": "/x", "mode": "rw", "foo": 1}, "Parameter 'foo' is unexpected"),
        ("shutdown", {"mode": "off"}, "mode is invalid (valid values are: halt|powerdown|reboot"),
        ("shutdown", {"mode": ""}, "mode is invalid (valid values are: halt|powerdown|reboot"),
        ("shutdown", {"mode": 1}, "Invalid parameter type for 'mode', expected: string"),
        ("exec", {"path": "/x", "input-data": "a b"}, "Base64 data contains invalid characters"),
        ("exec", {"path": "/x", "input-data": "?", "arg": 1}, "Invalid parameter type for 'arg', expected: array"),
        ("exec", {"path": "/x", "arg": "x"}, "Invalid parameter type for 'arg', expected: array"),
        ("exec", {"path": "/x", "arg": ["a", 1]}, "Invalid parameter type for 'arg[1]', expected: string"),
        ("exec", {"path": "/x", "capture-output": "all"}, "Parameter 'capture-output' does not accept value 'all'"),
        ("set-vcpus", {"vcpus": [1]}, "Invalid parameter type for 'vcpus[0]', expected: object"),
        ("set-vcpus", {"vcpus": [{"logical-id": 1}]}, "Parameter 'vcpus[0].online' is missing"),
        (
            "set-vcpus",
            {"vcpus": [{"logical-id": 1, "online": True, "can-offline": 1}]},
            "Invalid parameter type for 'vcpus[0].can-offline', expected: boolean",
        ),
        (
            "set-vcpus",
            {"vcpus": [{"logical-id": "a"}]},
            "Invalid parameter type for 'vcpus[0].logical-id', expected: integer",
        ),
        (
            "set-vcpus",
            {"vcpus": [{"logical-id": 1, "online": True, "z": 1}]},
            "Parameter 'vcpus[0].z' is unexpected",
        ),
        ("set-user-password", {"username": "x"}, "Parameter 'password' is missing"),
    ],
)
def test_what_is_refused_in_qemu_gas_words(command: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(Fault) as caught:
        arguments(RPCS[f"guest-{command}"], given)
    assert (caught.value.code, caught.value.text) == (Code.PARAMS, text)


def test_arguments_have_names() -> None:
    with pytest.raises(Fault, match="by name"):
        arguments(RPCS["guest-sync"], [1])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("a\0", "Parameter 'arg[70000]' has a NUL"),
        (True, "Invalid parameter type for 'arg[70000]', expected: string"),
        (["a"], "Invalid parameter type for 'arg[70000]', expected: string"),
    ],
)
def test_many_texts_are_checked_at_one_go_and_a_wrong_one_is_named(wrong: Any, text: str) -> None:
    texts: list[Any] = ["a", "\u20ac", ""] * 30_000

    def checked() -> None:
        assert arguments(RPCS["guest-exec"], {"path": "/x", "arg": texts})["arg"] == texts

    assert calls(checked) < 1000
    texts[70_000] = wrong
    with pytest.raises(Fault) as raised:
        arguments(RPCS["guest-exec"], {"path": "/x", "arg": texts})
    assert raised.value.text == text

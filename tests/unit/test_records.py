"""The records: dumped by one side they are loaded by the other, older or newer, and what is none is refused.

The plan's own rules are checked in test_mounts.py; its order of members on the wire by scripts/docs.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, status_record
from virtagent.agent.api.records import Misshapen, Status, dump, load


def test_status_record_round_trip() -> None:
    for record in (status_record(), status_record(last=LAST, seq=float(2**40), state="ERROR", error="no")):
        assert json.loads(json.dumps(dump(load(Status, record, "record")))) == record


def test_absent_members_do_not_apply_and_new_ones_are_ignored() -> None:
    status = load(Status, {"state": "THAWED", "code": 0, "seq": 1, "moon": [1]}, "record")
    assert (status.mounts, status.last, status.hold_left, status.progress.eta, status.error) == ((), None, -1, -1, "")


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"state": 2}, r"record\.state is of type int, expected str"),
        ({"seq": 1.5}, r"record\.seq is of type float"),
        ({"seq": True}, r"record\.seq is of type bool"),
        ({"seq": float("inf")}, r"record\.seq"),
        ({"hold_left": True}, r"record\.hold_left is of type bool, expected float"),
        ({"mounts": {}}, r"record\.mounts"),
        ({"mounts": [1]}, r"record\.mounts\[0\] is of type int, expected a struct"),
        ({"mounts": [MOUNT, {}]}, r"record\.mounts\[1\] has no mountpoint"),
        ({"mounts": [MOUNT | {"aliases": "/a"}]}, r"record\.mounts\[0\]\.aliases"),
        ({"mounts": [MOUNT | {"aliases": [1]}]}, r"record\.mounts\[0\]\.aliases\[0\]"),
        ({"last": []}, r"record\.last"),
        ({"last": {"outcome": "thawed"}}, r"record\.last has no freeze_id"),
        ({"last": LAST | {"held_continuously": 1}}, r"record\.last\.held_continuously"),
        ({"progress": ""}, r"record\.progress"),
        ({"error": b"x"}, r"record\.error"),
    ],
)
def test_a_record_of_another_shape(changed: dict[str, Any], where: str) -> None:
    with pytest.raises(Misshapen, match=where):
        load(Status, status_record(**changed), "record")

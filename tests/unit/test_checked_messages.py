"""What is let through to Celery, and how often a refusal is told."""
from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tasks.broker import NotOurs, Told, check_message

TICKET: dict[str, Any] = {
    "body": base64.b64encode(b'[["w"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]').decode(),
    "content-encoding": "utf-8", "content-type": "application/json",
    "headers": {"task": "tasks.run_item", "id": "x", "eta": None, "expires": None, "group": None, "retries": 0, "timelimit": [None, None]},
    "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "gpu.w"}, "body_encoding": "base64"},
}  # fmt: skip


def with_body(content: Any) -> dict[str, Any]:
    return {**TICKET, "body": base64.b64encode(json.dumps(content).encode()).decode()}


def test_a_ticket_an_order_to_a_host_and_a_control_message_are_let_through() -> None:
    check_message(TICKET, "gpu.w")
    check_message({**TICKET, "headers": {**TICKET["headers"], "task": "tasks.host_order"}}, "host.pc2")
    check_message({**with_body({"method": "ping"}), "headers": {}}, "w@pc2.celery.pidbox")


@pytest.mark.parametrize("header", [{"eta": "2030"}, {"expires": 1}, {"timelimit": [1, 1]}, {"retries": "x"}, {"group": "g"}])
def test_a_task_for_later_or_with_a_limit_is_not(header: dict[str, Any]) -> None:
    with pytest.raises(NotOurs, match="task for now"):
        check_message({**TICKET, "headers": {**TICKET["headers"], **header}}, "gpu.w")


@pytest.mark.parametrize("content", [[["other"], {}, {}], [["w"], {"more": 1}, {}], [["w", 1], {}, {}], [[], {}, {}]])
def test_a_ticket_with_arguments_of_its_own_is_not(content: Any) -> None:
    with pytest.raises(NotOurs, match="for another worker"):
        check_message(with_body(content), "gpu.w")


def test_a_reason_is_told_once_a_minute_and_others_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    told = Told(lambda: now[0])
    for at in (0.0, 1.0, 59.0, 60.0):
        now[0] = at
        told.tell("gpu.w", "one")
    told.tell("gpu.w", "another")
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == ["one", "one", "another"]

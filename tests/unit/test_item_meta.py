"""The lazy task meta: one fetch, when the result is asked for, and the short record for everybody else."""
from __future__ import annotations

import json

import pytest

from distributed_comfy.messages import item_id, parse_item_id
from tasks.backend import ItemMeta

RECORD = {"task_id": "0123456789ab-4", "status": "SUCCESS", "result": {"job": "0123456789ab", "index": 4}, "children": []}


def test_only_the_result_is_fetched_and_only_once() -> None:
    calls: list[int] = []
    meta = ItemMeta(RECORD, lambda: calls.append(1) or "pixels")  # type: ignore[func-returns-value]
    assert (meta["status"], meta.get("children"), meta.get("traceback", "none")) == ("SUCCESS", [], "none")
    assert calls == []
    assert meta["result"] == "pixels" and meta.get("result") == "pixels"
    assert calls == [1]


def test_copies_and_json_hold_the_short_record_and_fetch_nothing() -> None:
    def fetch() -> None:
        pytest.fail("nobody asked for the result")

    meta = ItemMeta(RECORD, fetch)
    assert dict(meta) == RECORD and json.loads(json.dumps(meta)) == RECORD and set(meta) == set(RECORD)


def test_a_fetch_that_fails_is_tried_again() -> None:
    answers = iter([ValueError("gone"), "pixels"])

    def fetch() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    meta = ItemMeta(RECORD, fetch)
    with pytest.raises(ValueError, match="gone"):
        meta["result"]
    assert meta["result"] == "pixels"


def test_an_item_id_is_told_from_other_task_ids() -> None:
    assert parse_item_id(item_id("0123456789ab", 40)) == ("0123456789ab", 40)
    others = ["0123456789ab", "0123456789ab-", "0123456789ab--1", "0123456789AB-1", "c0ffee00-0000-4000-8000-000000000001", "x"]
    assert [parse_item_id(text) for text in others] == [None] * len(others)

"""What a command says at the end of a job."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_comfy.cli.delivered import show_delivery
from distributed_comfy.cli.output import Output
from distributed_comfy.messages import ItemResult
from distributed_comfy.orchestrator.delivery import Delivery

BLOCKED: tuple[tuple[str, ...], ...] = (("collect",), (), ("collect", "size~1"))
RESULTS = {index: ItemResult(worker="one", blocked=blocked) for index, blocked in enumerate(BLOCKED)}


def test_items_without_images_are_reported_by_collector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_delivery(Output(), Delivery("0123456789ab", tmp_path, results=RESULTS)) == 0
    said = capsys.readouterr().err
    assert "nothing reached collect in items 0, 2" in said and "nothing reached size~1 in item 2" in said


def test_json_names_what_was_blocked_item_by_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_delivery(Output(as_json=True), Delivery("0123456789ab", tmp_path, results=RESULTS))
    items = json.loads(capsys.readouterr().out)["items"]
    assert [item["blocked"] for item in items] == [["collect"], [], ["collect", "size~1"]]

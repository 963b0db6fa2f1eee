"""What a command says at the end of a job."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_comfy.cli.delivered import show_delivery
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import JobCancelled
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


@pytest.mark.parametrize(("early", "said"), [(2, "the 2 files of finished items stay"), (1, "the file that is here stays"), (0, "")])
def test_files_that_stand_for_those_of_a_last_stage_are_told_before_it_saves_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], early: int, said: str
) -> None:
    error = JobCancelled(job_id="0123456789ab", reason="Ctrl-C")
    assert show_delivery(Output(), Delivery("0123456789ab", tmp_path, results=RESULTS, error=error, waiting=True, early=early)) == 130
    told = capsys.readouterr().err
    assert "the same command goes on with them" in told and said in told and ("saves its own beside" in told) is bool(early)

"""What a record says of its version, and what is said where that is another."""
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from distributed_comfy.errors import MessageVersionUnknown
from distributed_comfy.messages import JOB_VERSION, MESSAGE_VERSION, ItemResult, JobRecord, dump, load
from tests.tile_jobs import tile_job


def test_records_come_back_as_they_were() -> None:
    job, result = tile_job(), ItemResult(worker="w1")
    assert (load(JobRecord, dump(job)), load(ItemResult, dump(result))) == (job, result)
    assert (job.version, result.version) == (JOB_VERSION, MESSAGE_VERSION)


def job_of_version_1() -> str:
    """The node of the regions was one of several then."""
    plain: dict[str, Any] = json.loads(dump(tile_job()))
    return json.dumps({**plain, "version": 1, "tiles": {**plain["tiles"], "regions": ["up~regions"]}})


@pytest.mark.parametrize(("text", "version"), [
    (job_of_version_1(), 1), (dump(replace(tile_job(), version=1)), 1), (dump(replace(tile_job(), version=99)), 99), ("[]", "?"),
])  # fmt: skip
def test_a_record_of_another_version_is_refused_with_both_numbers(text: str, version: Any) -> None:
    with pytest.raises(MessageVersionUnknown) as caught:
        load(JobRecord, text)
    assert f"a JobRecord of version {version} cannot be read here (known: [{JOB_VERSION}])" in str(caught.value)


def test_a_job_of_another_version_says_nothing_about_results() -> None:
    with pytest.raises(MessageVersionUnknown, match=rf"an? ItemResult of version {JOB_VERSION} .*known: .{MESSAGE_VERSION}"):
        load(ItemResult, dump(ItemResult(version=JOB_VERSION)))

"""Items that a job goes on without: what the collector makes of them."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.feed import plan_feed
from distributed_comfy.collector.gaps import missing_items, stand_ins
from distributed_comfy.collector.memory_table import MemoryJobTable
from distributed_comfy.collector.save import FileMetadata, ResultSaver
from distributed_comfy.errors import JobFailed, NodeFailed, NothingToVary, PromptMalformed
from distributed_comfy.messages import JobRecord
from distributed_comfy.planning.plan import PlanOptions, plan_job
from distributed_comfy.state.records import ItemState
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, EDGE, capture, fill, image, image_result, job_record, open_spool
from tests.prompts import capability, parsed, txt2img, without

ERROR = NodeFailed(node_id="3", class_type="Sampler", exception_type="ValueError", exception_message="no", traceback="").to_wire()


def tolerant(items: int, on_missing: Literal["error", "drop", "repeat"] = "drop", **options: Any) -> JobRecord:
    record = job_record(items, **options)
    return replace(record, collectors=tuple(replace(plan, on_missing=on_missing) for plan in record.collectors))


def pixel(array: Any) -> float:
    return float(np.asarray(array).flat[0])


# -- planning -----------------------------------------------------------------------------------------------------------
def test_the_collectors_input_counts_and_the_option_wins() -> None:
    def asked(option: Any = None, **collector: Any) -> list[str]:
        job = plan_job(parsed(txt2img(**collector)), PlanOptions(items=2, on_missing=option), [capability()])
        return [plan.on_missing for plan in job.collectors]

    assert asked() == ["error"] and asked(on_missing="repeat") == ["repeat"]
    assert asked("drop", on_missing="repeat") == ["drop"] and asked("error", on_missing="drop") == ["error"]
    with pytest.raises(PromptMalformed, match="on_missing of collector collect is 'skip', not one of error, drop, repeat"):
        asked(on_missing="skip")
    alone = txt2img()
    alone["save"]["inputs"]["images"] = ["decode", 0]
    with pytest.raises(NothingToVary, match="--on-missing was given, but the prompt has no DistributedCollector"):
        plan_job(parsed(without(alone, "collect")), PlanOptions(on_missing="drop"), [capability()])


def test_a_job_can_do_without_items_only_if_all_of_its_collectors_can() -> None:
    record = tolerant(3)
    assert (record.spare, job_record(3).spare, tolerant(3, edges=(EDGE,)).spare) == ("all", "", "others")
    assert replace(record, collectors=(*record.collectors, job_record(3).collectors[0])).spare == ""
    assert replace(record, collectors=()).spare == ""


# -- which items --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("here", "expected"), [
    ([0, 1, 2, 3], {}), ([0, 2, 3], {1: 0}), ([0], {1: 0, 2: 0, 3: 0}), ([2], {0: 2, 1: 2, 3: 2}), ([1, 3], {0: 1, 2: 1}), ([], {}),
    ([0, 3, 4], {1: 0, 2: 0}),
])  # fmt: skip
def test_the_last_good_item_stands_in(here: list[int], expected: dict[int, int]) -> None:
    assert stand_ins(here, 4) == expected


def test_nothing_is_missing_from_a_job_that_fails_with_it() -> None:
    def missing(record: JobRecord, *failed: int) -> set[int]:
        return missing_items(record, {index: ItemState("failed" if index in failed else "done") for index in range(record.items)})

    assert missing(tolerant(3), 1) == {1} and missing(tolerant(3), 0, 2) == {0, 2}
    assert missing(job_record(3), 1) == missing(tolerant(3), 0, 1, 2) == missing(tolerant(3, edges=(EDGE,)), 0, 1) == set()
    assert missing(tolerant(2, last_stage=True), 2) == set(), "the last stage"


# -- what is made of them -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("on_missing", "expected"), [("drop", [0, 3]), ("repeat", [0, 0, 0, 3])])
def test_the_last_stage_gets_what_is_there(tmp_path: Path, on_missing: Any, expected: list[int]) -> None:
    store = MemoryBlobStore()
    with open_spool(tmp_path / "spool") as spool:
        for index in (0, 3):
            spool.add(index, f"c{index}", image_result(store, f"c{index}", image(index)), store)
        plan = plan_feed(tolerant(4, on_missing, last_stage=True), spool, store)
        assert len(plan.feed[COLLECTOR]["images"]) == len(expected)
        assert [pixel(spool.array(source.index, source.ref)) for source in plan.sources] == [pixel(image(index)) for index in expected]
        assert len({value.blob for value in plan.feed[COLLECTOR]["images"]}) == len(expected), "each has a blob of its own"  # type: ignore[union-attr]


def test_files_of_a_stand_in_come_in_the_place_of_the_missing_ones(tmp_path: Path) -> None:
    store = MemoryBlobStore()
    with open_spool(tmp_path / "spool") as spool:
        with ResultSaver(spool, [(COLLECTOR, "images"), ("other", "images")], tmp_path / "out", metadata=FileMetadata({})) as saver:
            for index in (0, 2):
                captures = [capture(store, f"c{index}", node_id, "images", image(index)) for node_id in (COLLECTOR, "other")]
                spool.add(index, f"c{index}", replace(image_result(store, f"x{index}"), captures=tuple(captures)), store)
                saver.add(index)
            saver.stand_in(1, 0, [COLLECTOR])
        assert [(value.index, value.node_id) for value in saver.saved] == [
            (0, COLLECTOR), (0, "other"), (0, COLLECTOR), (2, COLLECTOR), (2, "other"),
        ]  # fmt: skip
        assert len({value.path for value in saver.saved}) == 5


def collect(tmp_path: Path, record: JobRecord, table: MemoryJobTable, store: MemoryBlobStore) -> Collector:
    with open_spool(tmp_path / "spool") as spool:
        collector = Collector(record, table, store, spool, CollectorOptions(look_interval_s=0.05))
        collector.run()
        assert spool.items() == [0, 2]
    return collector


def played(table: MemoryJobTable, store: MemoryBlobStore, *done: int) -> None:
    for index in done:
        table.claim(index, f"c{index}")
        table.complete(index, f"c{index}", image_result(store, f"c{index}", image(index)))


def test_a_collector_ends_with_the_rest_and_says_what_is_missing(tmp_path: Path) -> None:
    store, table = MemoryBlobStore(), MemoryJobTable(3, spare=True)
    played(table, store, 0)
    table.fail(1, "c1", ERROR)
    played(table, store, 2)
    missing = collect(tmp_path, tolerant(3), table, store).missing
    assert list(missing) == [1] and isinstance(missing[1], NodeFailed)


def test_a_job_that_fails_with_its_items_is_not_taken_for_one_with_gaps(tmp_path: Path) -> None:
    store, table = MemoryBlobStore(), MemoryJobTable(2, spare=True)
    for index in range(2):
        table.fail(index, f"c{index}", ERROR)
    with pytest.raises(JobFailed):
        collect(tmp_path, tolerant(2), table, store)


def test_filled_spools_have_no_gaps(tmp_path: Path) -> None:
    store = MemoryBlobStore()
    with open_spool(tmp_path / "spool") as spool:
        fill(spool, store, 3)
        plan = plan_feed(tolerant(3, "repeat", last_stage=True), spool, store)
        assert len(plan.sources) == 3

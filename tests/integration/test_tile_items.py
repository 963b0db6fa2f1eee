"""Real workers run tiles: items that came to a job after they had read it, fed from blobs that stay until the owner takes them away."""
from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np
import pytest

from distributed_comfy.messages import ItemResult, ItemSpec, JobRecord, Patch, Prompt, Requirement, TensorRef, content_hash, dump
from distributed_comfy.planning.requirements import signature
from distributed_comfy.state.jobs import Submission
from distributed_comfy.transport.feed_names import Feed
from distributed_comfy.transport.values import load_value, store_value, value_blobs
from tests.cluster_rig import Rig
from tests.command_line import until
from tests.prompts import node, out

MAKE: Prompt = {
    "make": node("RuleImage", seed=1, width=16, height=16, batch_size=1, channels=3),
    "sink": node("DistributedSink", claim_id="", images=out("make")),
}
TILE: Prompt = {
    "crop": node("DistributedSource", claim_id="", slots="images"),
    "work": node("RuleSlow", images=out("crop"), milliseconds=0),
    "sink": node("DistributedSink", claim_id="", images=out("work")),
}
CROPS = [np.full((1, 8, 8, 3), number, np.float32) for number in (1, 2, 3)]


def growing_job(job_id: str) -> Submission:
    prompts = {content_hash(prompt): prompt for prompt in (MAKE, TILE)}
    needs = Requirement("builtin", tuple(sorted({each["class_type"] for prompt in prompts.values() for each in prompt.values()})))
    record = JobRecord(job_id, "test", 5, 1, tuple(prompts), content_hash(MAKE), requirement=needs, grows=True)
    return Submission(record, [ItemSpec(0, "generate", content_hash(MAKE), ("sink",))], prompts, signature(needs))


def tile(index: int) -> ItemSpec:
    return ItemSpec(index, "tile", content_hash(TILE), ("sink",), (Patch("work", "milliseconds", index),))


class Owner:
    """What a collector does for a job with tiles, step by step."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.table, self.blobs = rig, rig.cluster.jobs, rig.cluster.blobs
        self.job_id = secrets.token_hex(6)
        self.table.submit(growing_job(self.job_id), "owner")

    def wait(self, *indexes: int) -> None:
        """Until these items are done."""
        until(lambda: self.table.own(self.job_id, "owner") and all(self._states()[index] == "done" for index in indexes))

    def _states(self) -> list[str]:
        return [item.state for item in self.table.item_states(self.job_id).values()]

    def offer(self, index: int) -> list[str]:
        """Store a tile's crop and unblock it; the crop's blobs."""
        crop = store_value(self.blobs, f"{self.job_id}:crop:{index}", CROPS[index - 1], job_id=self.job_id, limit_bytes=2**20)
        feed: Feed = {"crop": {"images": (crop,)}}
        assert self.table.unblock(self.job_id, [(index, dump(feed))])
        return value_blobs(crop)

    def result(self, index: int) -> tuple[str, ItemResult]:
        found = self.table.result(self.job_id, index)
        assert found is not None
        return found

    def pixels(self, index: int) -> np.ndarray:
        (capture,) = self.result(index)[1].captures
        return np.asarray(load_value(self.blobs, capture.value, as_torch=False))


@pytest.fixture
def one_worker(builtin_rig: Rig) -> Iterator[Rig]:
    """The other one claims nothing, so that the tiles meet a worker that knows the job already."""
    builtin_rig.wait_idle()
    builtin_rig.cluster.jobs.drain("two")
    yield builtin_rig
    builtin_rig.cluster.jobs.drain("two", drained=False)


def test_tiles_run_on_a_worker_that_had_read_their_job_before_and_one_that_is_reopened_is_fed_again(one_worker: Rig) -> None:
    owner = Owner(one_worker)
    owner.wait(0)
    assert owner.table.extend(owner.job_id, [tile(1), tile(2), tile(3)], final=True)
    crops = [blob for index in (2, 1, 3) for blob in owner.offer(index)]
    owner.wait(1, 2, 3)
    assert all(np.array_equal(owner.pixels(index), crop) for index, crop in enumerate(CROPS, 1))
    assert owner.table.job_state(owner.job_id).state == "done"
    assert all(owner.blobs.exists(crops))

    claim, result = owner.result(2)
    assert isinstance(result.captures[0].value, TensorRef)
    owner.blobs.unlink([result.captures[0].value.blob])
    assert owner.table.reopen(owner.job_id, 2, claim)
    owner.offer(2)  # what it reads may be gone by now, so it waits for its owner
    owner.wait(2)
    assert owner.result(2)[0] != claim and np.array_equal(owner.pixels(2), CROPS[1])
    owner.blobs.drop_job(owner.job_id)
    owner.table.settle(owner.job_id)

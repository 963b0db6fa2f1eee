"""Whatever order results come in, whatever happens to events, blobs and workers: the same batch, bit for bit."""
from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_comfy import messages
from distributed_comfy.collector.assemble import joined_images
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.feed import Feeder, plan_feed
from distributed_comfy.collector.memory_table import MemoryJobTable
from distributed_comfy.collector.spool import references
from distributed_comfy.messages import ItemResult, TensorRef
from distributed_comfy.state.records import JobEvent
from distributed_comfy.transport.feed_names import Feed, bind_feed
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, JOB_ID, FeedReader, audio, capture, image, image_result, job_record, open_spool

OPTIONS = CollectorOptions(look_interval_s=0.03)
MOST_ITEMS = 5
SLOTS = (COLLECTOR, "images"), (COLLECTOR, "audio")


class UnreliableTable(MemoryJobTable):
    """Loses, doubles, delays and shuffles events as it is told."""

    def __init__(self, items: int, fates: Sequence[str]) -> None:
        super().__init__(items)
        self._fates = list(fates)
        self._late: list[JobEvent] = []

    def announce(self, events: Any) -> None:
        for event in events:
            fate = self._fates.pop() if self._fates else "kept"
            if fate == "late":
                self._late.append(event)
            super().announce({"lost": [], "late": [], "doubled": [event, event]}.get(fate, [event]))
            if fate == "kept" and self._late:
                super().announce([self._late.pop()])


@dataclass(frozen=True)
class Step:
    """One thing that happens to an item before it is done in the end."""

    index: int
    kind: str


STEPS = st.lists(
    st.builds(Step, st.integers(0, MOST_ITEMS - 1), st.sampled_from(["good", "gone", "damaged", "dead worker", "false event"])), max_size=8
)
FATES = st.lists(st.sampled_from(["lost", "doubled", "late", "kept"]), max_size=30)


def spoil(store: MemoryBlobStore, result: ItemResult, kind: str) -> None:
    """Lose or damage the first blob of a result."""
    ref = next(references(result))
    assert isinstance(ref, TensorRef)
    if kind == "gone":
        store.unlink([ref.blob])
        return
    frame = bytearray(store.get(ref.blob))
    frame[-1] ^= 0x40
    store.put(ref.blob.rpartition("#")[0], [bytes(frame)])


def play(table: MemoryJobTable, store: MemoryBlobStore, step: Step, claim_id: str) -> None:
    """One step, as far as the item's state allows it."""
    if step.kind == "false event":
        table.announce([JobEvent("done", step.index, claim_id)])
    elif table.claim(step.index, claim_id):
        if step.kind == "dead worker":
            table.lose_worker(step.index)
            return
        result = image_result(store, claim_id, image(step.index), image(step.index + 50, (2, 8, 6, 3)))
        if step.kind != "good":
            spoil(store, result, step.kind)
        table.complete(step.index, claim_id, result)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(items=st.integers(1, MOST_ITEMS), order=st.permutations(range(MOST_ITEMS)), steps=STEPS, fates=FATES)
def test_any_history_gives_the_same_batch(items: int, order: list[int], steps: list[Step], fates: list[str]) -> None:
    store, table = MemoryBlobStore(chunk_bytes=300), UnreliableTable(items, fates)
    table._max_attempts = 1000
    arrived: list[int] = []
    with tempfile.TemporaryDirectory() as folder, open_spool(Path(folder) / "spool") as spool:
        options = CollectorOptions(on_item=lambda index, result: arrived.append(index), look_interval_s=OPTIONS.look_interval_s)
        collector = threading.Thread(target=Collector(job_record(items), table, store, spool, options).run, daemon=True)
        collector.start()
        for number, step in enumerate(steps):
            if step.index < items:
                play(table, store, step, f"step{number}")
        final = 0
        while collector.is_alive():  # workers go on until the collector is content
            final += 1
            for index in order:
                if index < items:
                    play(table, store, Step(index, "good"), f"final{final}-{index}")
            collector.join(timeout=0.005)
            assert final < 4000, "the collector does not end"
        batches = [batch for index in range(items) for batch in (image(index), image(index + 50, (2, 8, 6, 3)))]
        assert joined_images(spool, COLLECTOR).tobytes() == np.concatenate(batches).tobytes()
        assert sorted(arrived) == list(range(items))
        assert all(table.item_states(JOB_ID)[index].claim_id == spool.claim_id(index) for index in range(items))
        assert all(table.fetched(index) for index in range(items))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    images=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    samples=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    window_bytes=st.integers(0, 3000),
    order=st.permutations(SLOTS),
    deaths=st.lists(st.integers(0, 4), max_size=2),
)
def test_any_window_order_and_number_of_deaths_feeds_the_same_values(
    images: list[int], samples: list[int], window_bytes: int, order: list[tuple[str, str]], deaths: list[int]
) -> None:
    store = MemoryBlobStore(chunk_bytes=300)
    with tempfile.TemporaryDirectory() as folder, open_spool(Path(folder) / "spool") as spool:
        for index in range(max(len(images), len(samples))):
            claim = f"c{index}"
            captures = list(image_result(store, claim, image(index, (images[index], 4, 4, 3))).captures) if index < len(images) else []
            if index < len(samples):
                captures.append(capture(store, claim, COLLECTOR, "audio", audio(index, samples[index])))
            spool.add(index, claim, ItemResult(captures=tuple(captures)), store)
        store.drop_job(JOB_ID)
        job = job_record(len(spool.items()), last_stage=True, slots=("images", "audio"))
        plan = plan_feed(job, spool, store)
        feeder = Feeder(plan, spool, store, window_bytes=window_bytes)
        for number, taken in enumerate(deaths):
            die_after(feeder, store, plan.json, f"dead{number}", taken)
        feeding = threading.Thread(target=feeder.run, args=("alive", threading.Event()), daemon=True)
        feeding.start()
        read = FeedReader(store, bind_feed(messages.load(Feed, plan.json), "alive"), order).finish()
        feeding.join(timeout=20)
        assert not feeding.is_alive()
        expected = [image(index, (count, 4, 4, 3)) for index, count in enumerate(images) if count or not any(images)]
        assert [found.tobytes() for found in read[SLOTS[0]]] == [batch.tobytes() for batch in expected]
        tracks = [audio(index, count)["waveform"] for index, count in enumerate(samples)]
        assert [found["waveform"].tobytes() for found in read[SLOTS[1]]] == [track.tobytes() for track in tracks]
        assert list(store._blobs) == []


def die_after(feeder: Feeder, store: MemoryBlobStore, feed_json: str, claim_id: str, taken: int) -> None:
    """A worker takes some values and disappears."""
    feed = bind_feed(messages.load(Feed, feed_json), claim_id)
    stop = threading.Event()
    feeding = threading.Thread(target=feeder.run, args=(claim_id, stop), daemon=True)
    feeding.start()
    some: Feed = {COLLECTOR: {"images": feed[COLLECTOR]["images"][:taken]}}
    FeedReader(store, some).finish()
    stop.set()
    feeding.join(timeout=20)
    assert not feeding.is_alive()

"""Items of workers in a ComfyUI with the pack: what lies there meanwhile, and that it goes."""
from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distributed_comfy.comfyui import visit_files
from distributed_comfy.comfyui import visits as visits_module
from distributed_comfy.comfyui.visits import MOST_VISITS, OpenVisit, VisitContext, Visits
from distributed_comfy.engine.attach.following import prompt_id_of
from distributed_comfy.engine.attach.pack_words import FRAME_ROOM_BYTES, Visit
from distributed_comfy.errors import BlobMissing, FrameTooLarge, NodeOutsideJob
from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.messages import MappingValue, TensorRef, Value
from distributed_comfy.pack_token import attach_key, kept_token
from distributed_comfy.transport.frames import decode_torch
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import store_value

CLAIM = "c1"
LIMIT = 2**20


class Queue:
    """As much of ComfyUI's queue as visits touch."""

    def __init__(self) -> None:
        self.queued: list[str] = []
        self.running: list[str] = []
        self.history: dict[str, Any] = {}
        self.mutex = threading.RLock()

    def delete_queue_item(self, is_it: Callable[[Any], bool]) -> None:
        self.queued = [prompt for prompt in self.queued if not is_it((0, prompt))]

    def get_current_queue_volatile(self) -> tuple[list[Any], list[Any]]:
        return [(0, prompt) for prompt in self.running], []

    def get_history(self, prompt_id: str) -> dict[str, Any]:
        return {prompt_id: self.history[prompt_id]} if prompt_id in self.history else {}

    def delete_history_item(self, prompt_id: str) -> None:
        self.history.pop(prompt_id, None)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def host(tmp_path: Path, queue: Queue) -> Any:
    folders = {kind: tmp_path / kind for kind in ("input", "output", "temp")}
    for folder in folders.values():
        folder.mkdir()
    management = SimpleNamespace(throw_exception_if_processing_interrupted=lambda: None)

    def interrupt() -> None:
        taken: list[bool] = []
        asks = threading.Thread(target=lambda: taken.append(queue.mutex.acquire(blocking=False)))
        asks.start()
        asks.join()
        assert taken == [False], "or ComfyUI could begin another prompt meanwhile, which would be interrupted"
        queue.running.clear()

    nodes = SimpleNamespace(interrupt_processing=interrupt)
    return SimpleNamespace(folders=folders, model_management=management, nodes=nodes, server=SimpleNamespace(prompt_queue=queue))


@pytest.fixture
def visits(host: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visits]:
    monkeypatch.setattr(visits_module, "_SWEEP_S", 0.02)
    monkeypatch.setattr(visit_files, "IDLE_S", 0.3)
    visits = Visits(host, LIMIT, lease_s=60.0)
    yield visits
    until(lambda: visits._sweeper is None)  # it has nothing left to do


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def opened(visits: Visits, wants: Callable[[], None] = lambda: None, **changes: Any) -> OpenVisit:
    visit = visits.open(Visit(**{"claim_id": CLAIM, "job_id": "j", "worker": "w", "kind": "last", **changes}), wants)
    assert visit is not None
    return visit


def feed_of(store: MemoryBlobStore, *tensors: torch.Tensor) -> dict[str, dict[str, tuple[Value, ...]]]:
    values = tuple(
        store_value(store, f"f{number}", tensor, job_id="", limit_bytes=LIMIT) for number, tensor in enumerate(tensors)
    )
    return {"9": {"images": values}}


def test_a_source_gets_what_it_asks_for_and_a_few_blobs_lie_here_at_the_most(visits: Visits) -> None:
    store, tensors = MemoryBlobStore(), [torch.rand(2, 4, 4, 4) * 9 - 4 for _ in range(12)]
    visit = opened(visits, feed=feed_of(store, *tensors))
    got: list[Any] = []
    source = threading.Thread(target=lambda: got.extend(visit.nodes.supply("9", "images")), daemon=True)
    source.start()
    most = 0
    while source.is_alive():
        wanted = visit.blobs.wanted()
        most = max(most, len(wanted) + len(visit.blobs._here))
        for blob in wanted[:1]:
            assert visit.blobs.room_for(blob) == 2 * 4 * 4 * 4 * 4 + FRAME_ROOM_BYTES
            visit.blobs.arrive(blob, bytearray(store.get(blob)))
    assert torch.equal(got[0], torch.cat(tensors)) and most <= 3
    assert visit.blobs.wanted() == [] and not visit.blobs._here
    visits.end(CLAIM)


def test_nothing_is_taken_that_nobody_waits_for(visits: Visits) -> None:
    store = MemoryBlobStore()
    visit = opened(visits, feed=feed_of(store, torch.zeros(1, 2, 2, 3)))
    (blob,) = [value.blob for value in visit.visit.feed["9"]["images"]]  # type: ignore[union-attr]
    assert visit.blobs.room_for(blob) == 0
    visit.blobs.arrive(blob, bytearray(3))
    assert visit.blobs.exists([blob]) == [False] and visit.blobs.room_for(blob) > 0
    visits.end(CLAIM)
    assert visit.blobs.room_for(blob) == 0


def test_captures_are_given_as_frames_of_their_own_type_as_often_as_they_are_asked_for(visits: Visits) -> None:
    visit = opened(visits)
    pixels, latent = torch.rand(1, 2, 2, 4) - 3, {"samples": torch.rand(1, 4, 2, 2, dtype=torch.bfloat16), "batch_index": [7]}
    visit.nodes.capture("9", "images", [pixels, None])
    visit.nodes.capture("9", "latents", [latent])
    visit.nodes.capture("8", "value", [])
    result = visit.result()
    assert visit.result() is result and result.reached == ("8", "9") and result.failure is None
    assert [(one.slot, one.list_index) for one in result.captures] == [("images", 0), ("latents", 0)]
    pieces = visit.blobs.given(result.captures[0].value.blob)  # type: ignore[union-attr]
    assert pieces is not None and torch.equal(decode_torch(b"".join(pieces), limit_bytes=LIMIT), pixels)
    samples = result.captures[1].value.entries["samples"]  # type: ignore[union-attr]
    assert samples.dtype == "bfloat16"
    with pytest.raises(NodeOutsideJob):
        visit.nodes  # noqa: B018 - the prompt has ended
    visits.end(CLAIM)
    assert visit.blobs.given(result.captures[0].value.blob) is None  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [object(), torch.zeros(LIMIT)])
def test_what_cannot_travel_is_told_as_an_error_and_nothing_is_kept(visits: Visits, value: Any) -> None:
    visit = opened(visits)
    visit.nodes.capture("9", "images", [torch.zeros(1, 2, 2, 3), value])
    result = visit.result()
    assert result.captures == () and result.failure is not None
    assert result.failure["code"] in ("value_not_sendable", "frame_too_large")
    visits.end(CLAIM)


def test_frames_are_encoded_as_the_job_says(visits: Visits) -> None:
    visit = opened(visits, frames=FramePlan("fp16"))
    visit.nodes.capture("9", "images", [torch.rand(1, 32, 32, 3)])
    value: Any = visit.result().captures[0].value
    assert value.stored_bytes < value.size_bytes
    visits.end(CLAIM)


def test_a_silent_worker_loses_its_visit_with_prompt_history_and_files_and_nothing_else(
    visits: Visits, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "_lease_s", 0.2)
    prompt_id = prompt_id_of(CLAIM)
    queue.queued, queue.running = ["theirs"], [prompt_id]
    shown = {"s": {"inputs": {"distributed_comfy_claim": CLAIM}}, "t": {"inputs": {}}}
    files = {node: {"images": [{"filename": f"{node}.png", "subfolder": "", "type": "temp"}]} for node in shown}
    files["s"]["images"].append({"filename": "../output/theirs.png", "subfolder": "", "type": "temp"})
    queue.history = {"theirs": {}, prompt_id: {"outputs": files, "prompt": [0, prompt_id, shown]}}
    names = ("output/distributed-comfy/c1/a.png", "output/distributed-comfy/c2/b.png", "output/theirs.png", "temp/s.png", "temp/t.png",
             "input/distributed-comfy/w/x.png", "input/theirs.png")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    visit = opened(visits)
    assert visits.kept_files("w") == ["x.png"]
    with visit.heard():
        time.sleep(0.5)
        assert visits.of_claim(CLAIM) is visit, "it is being answered"
    until(lambda: visits.of_claim(CLAIM) is None)
    until(lambda: prompt_id not in queue.history and not (tmp_path / "input" / "distributed-comfy").exists())
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"output/distributed-comfy/c2/b.png", "output/theirs.png", "temp/t.png", "input/theirs.png"}
    assert queue.running == [] and queue.queued == ["theirs"] and "theirs" in queue.history


def test_a_source_that_waits_is_let_go_when_its_visit_ends(visits: Visits) -> None:
    visit = opened(visits, feed=feed_of(MemoryBlobStore(), torch.zeros(1, 2, 2, 3)))
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            visit.nodes.supply("9", "images")
        except (BlobMissing, NodeOutsideJob) as error:
            raised.append(error)

    source = threading.Thread(target=wait, daemon=True)
    source.start()
    until(visit.blobs.wanted)
    visits.end(CLAIM)
    source.join(5)
    assert raised and not source.is_alive()


def test_nodes_of_other_prompts_get_what_they_got_before(visits: Visits) -> None:
    visit = opened(visits)
    asked: list[str] = []
    before: Any = SimpleNamespace(supply=lambda *place: asked.append(str(place)) or [], capture=lambda *_: None)
    running = ["other"]
    context = VisitContext(visits, lambda: (running[0], ""), before)
    assert context.supply("9", "images") == [] and asked == ["('9', 'images')"]
    running[0] = visit.prompt_id
    assert context.supply("9", "value") == [] and len(asked) == 1
    with pytest.raises(NodeOutsideJob):
        VisitContext(visits, lambda: ("other", ""), None).capture("9", "images", [])
    visits.end(CLAIM)


def test_there_are_not_more_visits_than_workers_can_need(visits: Visits) -> None:
    for number in range(MOST_VISITS):
        opened(visits, claim_id=f"c{number}")
    assert visits.open(Visit("more", "j", "w", "whole"), lambda: None) is None
    opened(visits, claim_id="c0")  # the answer was lost
    for number in range(MOST_VISITS):
        visits.end(f"c{number}")


def test_the_key_does_not_hold_the_token_and_a_file_that_others_could_read_gives_none(tmp_path: Path) -> None:
    token, file = "t" * 43, tmp_path / "token"
    file.write_text(token)
    file.chmod(0o600)
    assert kept_token(file) == token and token not in attach_key(token) and attach_key(token) != attach_key("u" * 43)
    file.chmod(0o644)
    assert kept_token(file) == ""
    assert kept_token(tmp_path / "none") == ""


def test_a_visit_is_not_fed_with_larger_tensors_than_this_comfyui_takes(visits: Visits) -> None:
    for large in (TensorRef("b", "uint8", (LIMIT + 1,), LIMIT + 1), TensorRef("b", "uint8", (9,), 9, stored_bytes=LIMIT + 1),
                  TensorRef("b", "uint8", (LIMIT + 1,), LIMIT + 1, stored_bytes=9)):  # fmt: skip
        with pytest.raises(FrameTooLarge):
            opened(visits, feed={"9": {"latents": (MappingValue({"samples": large}),)}})
    assert visits.of_claim(CLAIM) is None
    opened(visits, feed={"9": {"images": (TensorRef("b", "uint8", (LIMIT,), LIMIT),)}})
    visits.end(CLAIM)


def test_a_visit_that_is_opened_anew_is_closed_also_where_there_are_too_many(visits: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = opened(visits), opened(visits, claim_id="c2")
    monkeypatch.setattr(visits_module, "MOST_VISITS", 1)
    again = opened(visits)
    assert first.ended and visits.of_claim(CLAIM) is again
    for claim_id in (CLAIM, "c2"):
        visits.end(claim_id)


def test_a_fault_of_comfyui_is_told_once_and_silent_workers_are_ended_all_the_same(
    visits: Visits, queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, delete = [True], queue.delete_queue_item

    def delete_queue_item(is_it: Callable[[Any], bool]) -> None:
        if broken[0]:
            raise AttributeError("a node pack has changed the queue")
        delete(is_it)

    monkeypatch.setattr(queue, "delete_queue_item", delete_queue_item)
    monkeypatch.setattr(visits, "_lease_s", 0.1)
    for claim_id in ("c1", "c2"):
        opened(visits, claim_id=claim_id)
    until(lambda: visits.of_claim("c1") is None and visits.of_claim("c2") is None)
    opened(visits, claim_id="c3")
    until(lambda: visits.of_claim("c3") is None)
    assert visits._sweeper is not None and visits._sweeper.is_alive()
    assert caplog.text.count("cannot be removed; that is tried again") == 1
    queue.queued = [prompt_id_of("c2"), "theirs"]
    broken[0] = False
    until(lambda: queue.queued == ["theirs"] and not visits._leaving)


def test_what_one_item_left_and_cannot_be_removed_does_not_keep_others_waiting(
    visits: Visits, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, delete = [prompt_id_of("c1")], queue.delete_history_item

    def delete_history_item(prompt_id: str) -> None:
        if prompt_id in held:
            raise PermissionError("open elsewhere")
        delete(prompt_id)

    monkeypatch.setattr(queue, "delete_history_item", delete_history_item)
    queue.running = [prompt_id_of("c2")]
    for claim_id in ("c1", "c2"):
        opened(visits, claim_id=claim_id)
        visits.end(claim_id)
    until(lambda: not queue.running and list(visits._leaving) == ["c1"])
    held.clear()
    until(lambda: not visits._leaving)


def test_while_files_are_removed_visits_are_found_and_opened_and_the_worker_is_told_what_is_left(
    visits: Visits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "input" / "distributed-comfy" / "w"
    folder.mkdir(parents=True)
    (folder / "x.png").touch()
    removing, go_on, told = threading.Event(), threading.Event(), list[list[str]]()
    remove = shutil.rmtree

    def slowly(path: Path) -> None:
        removing.set()
        assert go_on.wait(10)
        remove(path)

    monkeypatch.setattr(visit_files.shutil, "rmtree", slowly)
    opened(visits)
    visits.end(CLAIM)
    assert removing.wait(10)
    try:
        began = time.monotonic()
        visit = opened(visits, claim_id="c2")
        assert visits.of_claim("c2") is visit and time.monotonic() - began < 5
        asking = threading.Thread(target=lambda: told.append(visits.kept_files("w")), daemon=True)
        asking.start()
        asking.join(0.2)
        assert told == [], "it waits: x.png is about to go"
    finally:
        go_on.set()
    asking.join(10)
    assert told == [[]]
    visits.end("c2")

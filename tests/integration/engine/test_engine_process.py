"""An engine process at work: items, progress, interrupts, shipping, logs."""
from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from distributed_comfy.engine.host import Ended
from distributed_comfy.engine.pipe import PIPE_LIMIT_BYTES
from distributed_comfy.engine.protocol import Described, Failed, Finished, Preview, Progress, Shipping, Started
from distributed_comfy.errors import (
    EngineGaveUp,
    EngineStartFailed,
    FileUnreadable,
    FrameTooLarge,
    ItemInterrupted,
    NodeFailed,
    PipeMessageTooLarge,
    ValidationRefused,
    WorkerLacks,
)
from distributed_comfy.messages import FileRef, InputFile, Prompt, TensorRef
from distributed_comfy.transport.files import InputCache, fetch_file
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.values import load_value, store_value, value_blobs
from tests.integration.engine.conftest import Recorded
from tests.prompts import node, out

EngineMaker = Callable[..., Recorded]


def picture(*, seed: int = 1, steps: int = 4, side: int = 64) -> Prompt:
    return {
        "1": node("SeededGenerator", seed=seed, steps=steps, width=side, height=side, batch_size=1, style="auto"),
        "9": node("DistributedSink", images=out("1")),
    }


def probe(class_type: str, text: str) -> Prompt:
    return {"1": node(class_type, text=text), "9": node("DistributedSink", value=out("1"))}


def torch_loaded(recorded: Recorded) -> bool:
    return "libtorch" in Path(f"/proc/{recorded.process.pid}/maps").read_text()


def executions(recorded: Recorded) -> list[str]:
    assert recorded.options.execution_log is not None
    return recorded.options.execution_log.read_text().splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_torch_is_loaded_for_the_first_item_or_before_it_where_that_comes_at_once(engine: EngineMaker) -> None:
    waits = engine()
    waits.process.free()
    waits.process.describe()
    waits.wait(Described)
    time.sleep(3 * waits.options.beat_interval_s)
    assert waits.process.alive and not torch_loaded(waits)
    (threads,) = waits.result(waits.run(probe("ArgumentsSeen", "threads"))).result.captures
    assert torch_loaded(waits) and load_value(waits.blobs, threads.value, as_torch=True) == "1"
    assert torch_loaded(engine(preload=True))


def test_an_item_comes_back_with_its_tensor_and_its_files(recorded: Recorded, blobs: RedisBlobStore, tmp_path: Path) -> None:
    prompt = picture(seed=2**64 - 1)
    prompt["3"] = node("SaveImage", images=out("1"), filename_prefix="sub/x")
    claim_id = recorded.run(prompt, "9", "3", index=5)
    result = recorded.result(claim_id).result
    (capture,) = result.captures
    image = load_value(blobs, capture.value, as_torch=True)
    assert tuple(image.shape) == (1, 64, 64, 3)
    (file,) = result.files
    with Image.open(fetch_file(blobs, file, tmp_path / "fetched")) as saved:
        assert torch.equal(torch.frombuffer(bytearray(saved.tobytes()), dtype=torch.uint8).view(64, 64, 3), (image[0] * 255).byte())
    assert (file.name, file.node_id, file.media_type) == ("sub/x_00001_.png", "3", "image/png")
    assert isinstance(capture.value, TensorRef)
    assert all(part in capture.value.blob for part in ("job1", ":5:", claim_id))
    assert (result.worker, result.engine) == ("w1", "builtin")
    assert result.device_class.startswith("cpu|torch ")
    assert result.outputs == {"3": {"images": [{"filename": "x_00001_.png", "subfolder": "sub", "type": "output"}]}}
    assert 0 < result.seconds < 30
    assert not list((recorded.options.folder / "outgoing").iterdir())  # shipped files do not pile up


def test_the_order_of_events_is_that_of_what_happens(recorded: Recorded) -> None:
    claim_id = recorded.run(picture(steps=12, side=256))
    recorded.result(claim_id)
    kinds = recorded.of(claim_id)
    assert (kinds[0], kinds[-2:]) == ("Started", ["Shipping", "Finished"])
    steps = [event for event in recorded.events if isinstance(event, Progress)]
    assert [event.value for event in steps] == sorted({event.value for event in steps})
    assert (steps[-1].value, steps[-1].maximum, steps[-1].node_id) == (12, 12, "1")
    assert recorded.wait(Preview).image.startswith(b"\xff\xd8")


def test_each_execution_is_one_line_in_the_log_of_executions(recorded: Recorded) -> None:
    claims = [recorded.run(picture(), index=index) for index in range(2)]
    for claim_id in claims:
        recorded.result(claim_id)
    assert executions(recorded)[-2:] == [f"job1 {index} {claim_id} {recorded.process.pid}" for index, claim_id in enumerate(claims)]


def test_an_interrupt_ends_a_running_item_within_a_step(recorded: Recorded) -> None:
    claim_id = recorded.run(picture(steps=10_000, side=256))
    recorded.wait(Progress)
    began = time.monotonic()
    recorded.process.interrupt(claim_id)
    end = recorded.end(claim_id)
    assert time.monotonic() - began < 2
    assert isinstance(end, Failed)
    assert isinstance(end.error, ItemInterrupted)
    assert end.error.item_id == "job1-0"
    recorded.result(recorded.run(picture()))  # the next item is not touched by it


def test_three_runs_queue_up_and_an_interrupt_takes_the_waiting_one_out_at_once(recorded: Recorded) -> None:
    long, waiting, last = recorded.run(picture(steps=10_000, side=256)), recorded.run(picture(seed=2)), recorded.run(picture(seed=3))
    recorded.wait(Progress)
    recorded.process.interrupt(waiting)
    assert isinstance(recorded.end(waiting), Failed)
    assert recorded.of(waiting) == ["Failed"]
    assert "Failed" not in recorded.of(long)  # it still runs
    recorded.process.interrupt(long)
    recorded.result(last)
    assert isinstance(recorded.end(long), Failed)


def test_a_claim_that_is_sent_twice_is_executed_once(recorded: Recorded) -> None:
    recorded.run(picture(steps=200, side=128), claim_id="same")
    recorded.run(picture(steps=200, side=128), claim_id="same")
    recorded.result("same")
    recorded.result(recorded.run(picture()))
    assert [line.split()[2] for line in executions(recorded)].count("same") == 1


def test_the_next_item_runs_while_the_last_one_ships(recorded: Recorded) -> None:
    big = recorded.run(probe("TakesLong", "16"))  # 200 MB
    small = recorded.run(picture(seed=4))
    recorded.result(big)
    recorded.result(small)
    began_next = next(i for i, event in enumerate(recorded.events) if isinstance(event, Started) and event.claim_id == small)
    shipped = next(i for i, event in enumerate(recorded.events) if isinstance(event, Finished) and event.claim_id == big)
    assert began_next < shipped


def test_an_interrupt_while_shipping_leaves_no_blob(recorded: Recorded, blob_keys: Callable[[], list[bytes]]) -> None:
    prompt = {"1": node("TakesLong", text="3")}
    prompt.update({f"9{number}": node("DistributedSink", value=out("1")) for number in range(6)})
    claim_id = recorded.run(prompt, *(f"9{number}" for number in range(6)))
    recorded.wait(Shipping)
    while not blob_keys():
        assert "Finished" not in recorded.of(claim_id)
    recorded.process.interrupt(claim_id)
    end = recorded.end(claim_id)
    assert isinstance(end, Failed)
    assert isinstance(end.error, ItemInterrupted)
    assert blob_keys() == []


def test_a_shipment_that_fails_leaves_no_blob_and_the_engine_goes_on(engine: EngineMaker, blob_keys: Callable[[], list[bytes]]) -> None:
    recorded = engine(blob_limit_bytes=100_000)
    prompt = picture(side=64)
    prompt["2"] = node("ImageScale", image=out("1"), upscale_method="area", width=256, height=256, crop="disabled")
    prompt["8"] = node("DistributedSink", images=out("2"))
    end = recorded.end(recorded.run(prompt, "9", "8"))
    assert isinstance(end, Failed)
    assert isinstance(end.error, FrameTooLarge)
    assert blob_keys() == []
    recorded.result(recorded.run(picture()))
    assert len(blob_keys()) == 1


def test_whatever_nodes_print_goes_to_the_log_and_not_into_the_pipe(recorded: Recorded) -> None:
    recorded.result(recorded.run(probe("Prints", "Grüße from a node")))
    recorded.result(recorded.run(picture()))
    assert recorded.log().count("Grüße from a node") == 4
    assert "from a child" in recorded.log()
    assert "hello" in recorded.log()


@pytest.mark.parametrize(
    ("question", "answer"),
    [("argv", "[]"), ("own_folder", "False"), ("devices", "-1"), ("threads", "1"), ("thread", "MainThread")],
)
def test_nodes_find_the_process_as_they_may_expect(recorded: Recorded, question: str, answer: str) -> None:
    (capture,) = recorded.result(recorded.run(probe("ArgumentsSeen", question))).result.captures
    assert capture.value.literal == answer


def test_refusals_and_failures_keep_their_class_and_facts(recorded: Recorded) -> None:
    cases: list[tuple[Prompt, type[Exception]]] = [
        ({**picture(), "1": node("KSamplerAdvanced")}, WorkerLacks),
        (picture(steps=0), ValidationRefused),
        (probe("Sleeps", "not a number"), NodeFailed),
    ]
    for prompt, kind in cases:
        end = recorded.end(recorded.run(prompt))
        assert isinstance(end, Failed)
        assert isinstance(end.error, kind)
    assert end.error.exception_type == "ValueError"
    assert any("float(text)" in line for line in end.error.traceback)


def test_a_file_that_a_node_only_names_is_an_error(recorded: Recorded) -> None:
    end = recorded.end(recorded.run({"1": node("WritesNothing", text="ghost.png")}, "1"))
    assert isinstance(end, Failed)
    assert isinstance(end.error, FileUnreadable)


def test_input_files_reach_the_loader(recorded: Recorded, blobs: RedisBlobStore, tmp_path: Path) -> None:
    source = tmp_path / "cat.png"
    Image.new("RGB", (3, 2), (255, 0, 51)).save(source)
    content = source.read_bytes()
    ref = FileRef("cats/cat.png", "image/png", hashlib.sha256(content).hexdigest(), len(content), blobs.put("in", [content]), "input")
    InputCache(recorded.options.cache_folder).fetch(blobs, ref)
    prompt = {"1": node("LoadImage", image="cats/cat.png"), "9": node("DistributedSink", images=out("1"))}
    (capture,) = recorded.result(recorded.run(prompt, input_files=(InputFile("1", "image", ref),))).result.captures
    image = load_value(blobs, capture.value, as_torch=True)
    assert torch.allclose(image[0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_the_last_stage_takes_blobs_that_come_late(engine: EngineMaker, blobs: RedisBlobStore) -> None:
    recorded = engine(stall_timeout_s=0.5, preload=True, beat_interval_s=0.05)  # waiting for the master is no stall
    batches = [torch.full((1, 8, 8, 3), float(number)) for number in range(3)]

    def stored(store: Any, number: int) -> Any:
        return store_value(store, f"job1:in:{number}", batches[number], job_id="job1", limit_bytes=2**20)

    values = tuple(stored(MemoryBlobStore(chunk_bytes=2**20), number) for number in range(3))
    prompt = {"5": node("DistributedSource", slots="images"), "9": node("DistributedSink", images=out("5"))}
    claim_id = recorded.run(prompt, kind="last", feed={"5": {"images": values}})
    for number in range(3):
        time.sleep(0.4)
        assert "Finished" not in recorded.of(claim_id)
        stored(blobs, number)
    (capture,) = recorded.result(claim_id).result.captures
    assert load_value(blobs, capture.value, as_torch=True)[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert not any(blobs.exists([blob for value in values for blob in value_blobs(value)]))


def test_describe_is_answered_while_an_item_runs(recorded: Recorded) -> None:
    claim_id = recorded.run(picture(steps=10_000, side=256))
    recorded.wait(Progress)
    recorded.process.describe()
    assert "SeededGenerator" in recorded.wait(Described).capability.node_classes
    assert recorded.of(claim_id)[-1] == "Progress"
    recorded.process.interrupt(claim_id)
    recorded.end(claim_id)


def test_close_ends_what_runs_and_leaves_nothing_behind(engine: EngineMaker) -> None:
    recorded = engine()
    claim_id = recorded.run(picture(steps=10_000, side=256))
    recorded.wait(Progress)
    pid = recorded.process.pid
    assert pid is not None
    recorded.process.close()
    assert isinstance(recorded.end(claim_id), Failed)
    assert not recorded.process.alive
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_interpreter_without_our_packages_says_what_to_install(engine: EngineMaker, tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "python"
    bare.parent.mkdir()
    # -S leaves site-packages out, and the folders we append are cut off: what a foreign interpreter of another version sees.
    bare.write_text(f'#!/bin/sh\nboot="$1"; log="$2"\nexec {sys.executable} -I -S "$boot" "$log"\n')
    bare.chmod(0o755)
    recorded = engine(start=False, python=str(bare))
    with pytest.raises(EngineStartFailed, match=r"cannot import msgpack .*; run: \S+ -m pip install msgpack") as caught:
        recorded.process.start(timeout_s=30)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "shown"),
    [("one\\ntwo", "one\ntwo"), ("usage: main.py [-h]\\nmain.py: error: unknown --x", "main.py: error: unknown --x")],
    ids=["a tail", "a complaint of arguments"],
)
def test_an_engine_that_ends_while_it_starts_is_told_with_its_last_lines_and_its_log(
    engine: EngineMaker, tmp_path: Path, said: str, shown: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nprintf '{said}\\n' >&2\nexit 5\n")
    program.chmod(0o755)
    recorded = engine(start=False, python=str(program))
    with pytest.raises(EngineGaveUp) as caught:
        recorded.process.start(timeout_s=30)
    log_file = recorded.process.options.log_file
    start = "the engine did not start: it ended with exit status 5, after these lines"
    assert str(caught.value) == f"{start} (the whole log is {log_file}):\n{shown}"
    assert "two" in log_file.read_text() or "usage" in log_file.read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": "/nowhere/python"}, "cannot be started"),
        ({"device": "cuda:0"}, "cannot use cuda:0"),
        ({"node_provider": "no_such_module:provide"}, "no_such_module"),
        ({"blob_url": "redis://127.0.0.1:1/0"}, "cannot reach Redis"),
    ],
    ids=["interpreter", "device", "module", "redis"],
)
def test_a_start_that_fails_says_why(engine: EngineMaker, changes: dict[str, Any], words: str) -> None:
    if changes.get("device") and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    recorded = engine(start=False, **changes)
    with pytest.raises(Exception, match=words) as caught:
        recorded.process.start(timeout_s=60)
    assert caught.type.__name__ in ("EngineStartFailed", "RedisUnreachable")
    assert not recorded.process.alive
    assert recorded.events == []


def test_a_prompt_that_no_message_can_hold_is_refused_and_leaves_no_claim_behind(recorded: Recorded) -> None:
    with pytest.raises(PipeMessageTooLarge):
        recorded.run(picture(), original_prompt={"1": node("Note", text="x" * (PIPE_LIMIT_BYTES + 1))})
    recorded.process.kill()
    ended = recorded.wait(Ended)
    assert [event for event in recorded.events if isinstance(event, Failed)] == [], ended

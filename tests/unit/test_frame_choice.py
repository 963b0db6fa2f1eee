"""Where planning finds that 8 bits will do, which encoding each place gets from it, and what happens without an optional package."""
from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from distributed_comfy.errors import FrameEncodingMissing, FrameMalformed
from distributed_comfy.frame_plan import FRAME_OPTIONS, FramePlan
from distributed_comfy.messages import ItemResult, Prompt, TensorRef, dump, load
from distributed_comfy.planning.plan import PlanOptions, plan_job
from distributed_comfy.transport import encodings
from distributed_comfy.transport.frames import decode_tensor, encode_tensor
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.travel import canvas_encoding, capture_encoding, check_here, loses_bits, step_encoding
from distributed_comfy.transport.values import load_value, store_value
from tasks.run_item import _how
from tests.prompts import capability, node, out, parsed, txt2img, without
from tests.upscale_prompts import batch, photo


def eight_bit(prompt: Prompt) -> tuple[str, ...]:
    return plan_job(parsed(prompt), PlanOptions(items=2), [capability()]).eight_bit


def behind(**nodes: Any) -> Prompt:
    return {**without(txt2img(), "save"), **nodes}


# -- planning
@pytest.mark.parametrize(
    "nodes",
    [
        {},
        {"save": node("SaveImage", images=out("collect"))},
        {"show": node("PreviewImage", images=out("collect"))},
        {"save": node("SaveImage", images=out("collect")), "show": node("PreviewImage", images=out("collect"))},
        {"flip": node("ImageInvert", image=out("collect"))},  # leads to no output, so nobody sees it
    ],
)
def test_sinks_of_8_bits_need_no_more(nodes: dict[str, Any]) -> None:
    assert eight_bit(behind(**nodes)) == ("collect",)


@pytest.mark.parametrize(
    "nodes",
    [
        {"flip": node("ImageInvert", image=out("collect")), "save": node("SaveImage", images=out("flip"))},
        {"save": node("SaveImage", images=out("collect")), "flip": node("ImageInvert", image=out("collect")),
         "show": node("PreviewImage", images=out("flip"))},
        {"save": node("ImageBatchDivider", images=out("collect"), divide_by=2)},
        {"encode": node("VAEEncode", pixels=out("collect"), vae=out("ckpt", 2)), "save": node("SaveLatent", samples=out("encode"))},
        {"save": node("SaveTheImageMyWay", images=out("collect")), "known": node("SaveImage", images=out("save"))},
        {"size": node("GetImageSize", image=out("collect")), "save": node("SaveImage", images=out("collect"), filename_prefix=out("size"))},
    ],
)  # fmt: skip
def test_one_consumer_that_takes_more_makes_all_exact(nodes: dict[str, Any]) -> None:
    assert eight_bit(behind(**nodes)) == ()


def test_a_collector_of_audio_alone_has_no_images() -> None:
    prompt = behind()
    prompt["sound"] = node("VAEDecodeAudio", samples=out("sample"), vae=out("ckpt", 2))
    prompt["collect"]["inputs"] = {"audio": out("sound")}
    assert eight_bit(prompt) == ()


def test_each_of_several_collectors_is_judged_by_its_own_consumers() -> None:
    prompt = behind(
        other=node("DistributedCollector", images=out("decode")),
        save=node("SaveImage", images=out("collect")),
        flip=node("ImageInvert", image=out("other")),
        show=node("PreviewImage", images=out("flip")),
    )
    assert eight_bit(prompt) == ("collect",)


def test_an_upscale_is_judged_by_what_follows_it_and_so_is_a_collector_that_it_passes_through() -> None:
    assert plan_job(parsed(photo()), PlanOptions(), []).eight_bit == ("up",)
    passing = photo()
    passing["late"] = node("DistributedCollector", images=out("up"))
    passing["save"]["inputs"]["images"] = out("late")
    assert plan_job(parsed(passing), PlanOptions(), []).eight_bit == ("up",)
    passing["flip"] = node("ImageInvert", image=out("late"))
    passing["save"]["inputs"]["images"] = out("flip")
    assert plan_job(parsed(passing), PlanOptions(), []).eight_bit == ()


def test_a_collector_that_feeds_an_upscale_is_exact() -> None:
    assert plan_job(parsed(batch()), PlanOptions(), []).eight_bit == ("up",)


def test_a_comfyui_that_runs_the_prompt_is_given_floats_whatever_follows() -> None:
    """What follows is pruned away there, and its cache keeps the images for whatever a later prompt does with them."""
    exact = node("SaveTheImageMyWay", images=out("collect"))
    for prompt in (behind(save=node("SaveImage", images=out("collect"))), behind(save=exact), photo()):
        assert plan_job(parsed(prompt), PlanOptions(items=None, outer_outputs=("save",)), [capability()]).eight_bit == ()


# -- places
PLANS = {option: FramePlan(option, eight_bit=("9", "up"), pictures=("9", "10")) for option in FRAME_OPTIONS}


@pytest.mark.parametrize(
    ("option", "sunk", "others", "elsewhere", "canvas"),
    [
        ("exact", "plain", "plain", "plain", "plain"),
        ("auto", "uint8", "plain", "plain", "uint8"),
        ("zstd", "zstd", "zstd", "zstd", "plain"),
        ("fp16", "float16", "float16", "float16", "plain"),
        ("lossy", "jpeg", "jpeg", "float16", "uint8"),
    ],
)
def test_each_place_gets_its_encoding(option: Any, sunk: str, others: str, elsewhere: str, canvas: str) -> None:
    plan = PLANS[option]
    assert (capture_encoding(plan, "9", "images"), capture_encoding(plan, "10", "images")) == (sunk, others)
    for node_id, slot in (("9", "masks"), ("9", "latents"), ("9", "audio"), ("8~0", "value"), ("up", "images")):
        assert capture_encoding(plan, node_id, slot) == elsewhere
    assert step_encoding(plan) == elsewhere
    assert canvas_encoding(plan, "up") == canvas
    assert loses_bits(plan) == (option not in ("exact", "zstd"))


def test_auto_without_such_a_place_loses_nothing() -> None:
    assert not loses_bits(FramePlan("auto", (), ("9",)))
    assert canvas_encoding(FramePlan("auto", (), ()), "up") == "plain"


# -- values and records
def test_a_record_tells_what_lies_in_the_store_and_survives_the_wire() -> None:
    store, image = MemoryBlobStore(), np.full((1, 32, 32, 3), 0.5, np.float32)
    ref = store_value(store, "v", image, job_id="j", limit_bytes=2**30, encoding="uint8")
    assert isinstance(ref, TensorRef)
    assert ref.size_bytes == image.nbytes and ref.payload_bytes == ref.stored_bytes and ref.payload_bytes < 400
    assert load(TensorRef, dump(ref)) == ref
    assert load_value(store, ref, as_torch=False).shape == image.shape
    plain = store_value(store, "w", image, job_id="j", limit_bytes=2**30)
    assert isinstance(plain, TensorRef) and (plain.stored_bytes, plain.payload_bytes) == (None, image.nbytes)


def test_a_record_of_a_version_that_knew_no_encodings_is_read() -> None:
    assert load(TensorRef, '{"blob":"b#1","dtype":"float32","shape":[1],"size_bytes":4}').payload_bytes == 4
    assert load(ItemResult, "{}").size_bytes == 0


def test_every_tensor_of_a_mapping_is_encoded() -> None:
    store = MemoryBlobStore()
    latent = {"samples": np.ones((1, 4, 8, 8), np.float32), "noise_mask": np.zeros((1, 64, 64), np.float32), "batch_index": [0]}
    value = store_value(store, "v", latent, job_id="j", limit_bytes=2**30, encoding="float16")
    assert [ref.stored_bytes is not None for ref in value.entries.values() if isinstance(ref, TensorRef)] == [True, True]  # type: ignore[union-attr]
    back = load_value(store, value, as_torch=False)
    assert np.array_equal(back["samples"], latent["samples"]) and back["batch_index"] == [0]


def test_a_limit_is_one_on_the_decoded_tensor() -> None:
    store = MemoryBlobStore()
    ref = store_value(store, "v", np.zeros((1, 64, 64, 3), np.float32), job_id="j", limit_bytes=2**20, encoding="uint8")
    assert isinstance(ref, TensorRef)
    lying = TensorRef(ref.blob, "float32", (1, 8, 8, 3), 768, ref.stored_bytes)
    with pytest.raises(Exception, match="tensor of 49152 bytes is over the limit"):
        load_value(store, lying, as_torch=False)


# -- without the optional package
@pytest.fixture
def no_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)


def test_a_worker_without_zstandard_sends_plain_frames_and_says_so_once(no_zstandard: None, caplog: pytest.LogCaptureFixture) -> None:
    encodings._tell_once.cache_clear()
    ones = np.ones(1000, np.float32)
    for _ in range(3):
        encode_tensor(ones, limit_bytes=2**20, encoding="zstd")
    assert caplog.text.count("tensors travel as they are") == 1 and "pip install zstandard" in caplog.text
    assert b"".join(encode_tensor(ones, limit_bytes=2**20, encoding="zstd")) == b"".join(encode_tensor(ones, limit_bytes=2**20))


def test_a_reader_without_zstandard_names_it_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = b"".join(encode_tensor(np.ones(1000, np.float32), limit_bytes=2**20, encoding="zstd"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(FrameEncodingMissing, match="pip install zstandard") as caught:
        decode_tensor(frame, limit_bytes=2**20)
    assert not isinstance(caught.value, FrameMalformed) and not caught.value.retryable


def test_only_zstd_asks_for_the_package(no_zstandard: None) -> None:
    for option, plan in PLANS.items():
        if option == "zstd":
            with pytest.raises(FrameEncodingMissing):
                check_here(plan)
        else:
            check_here(plan)


def test_an_item_that_a_worker_cannot_read_goes_to_another() -> None:
    runtime: Any = None
    assert _how(runtime, FrameEncodingMissing(encoding="zstd", package="zstandard", reason="not there"), "a-1") == "lacks"

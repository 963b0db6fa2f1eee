"""How a run can end badly: refused, failed, out of memory, interrupted; and that the engine is whole afterwards."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.comfy_process import EngineClient
from tests.prompts import node, out

NOISE = node("TinyNoise", size=8, batch_size=1, seed=3)
SINK = node("DistributedSink", images=out("noise"))
GOOD = {"noise": NOISE, "sink": SINK}


def error_of(answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    assert "error" in answer, answer
    return answer["error"]["code"], answer["error"]["fields"]


def raising(kind: str) -> dict[str, Any]:
    return {"noise": NOISE, "bad": node("ProbeRaise", images=out("noise"), kind=kind), "sink": node("DistributedSink", images=out("bad"))}


def test_an_unknown_node_class_is_something_the_worker_lacks(either: EngineClient) -> None:
    code, fields = error_of(either.run({**GOOD, "x": node("NodeOfAnotherPack"), "y": node("AlsoMissing")}, "sink"))
    assert code == "worker_lacks"
    assert fields == {"worker": "pc1-cpu", "lacks": "node class AlsoMissing, node class NodeOfAnotherPack"}


def test_a_missing_model_file_is_something_the_worker_lacks(either: EngineClient) -> None:
    code, fields = error_of(either.run({"vae": node("VAELoader", vae_name="x/big.safetensors"), **_decode("vae")}, "sink"))
    assert code == "worker_lacks"
    assert fields["lacks"] == "VAELoader.vae_name 'x/big.safetensors' (node vae)"


def _decode(vae: str) -> dict[str, Any]:
    return {
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "decode": node("VAEDecode", samples=out("latent"), vae=out(vae)), "sink": node("DistributedSink", images=out("decode")),
    }  # fmt: skip


def test_a_model_file_added_to_a_running_engine_is_found(engine: EngineClient, base_directory: Path) -> None:
    prompt = {"vae": node("VAELoader", vae_name="late/new.safetensors"), **_decode("vae")}
    assert error_of(engine.run(prompt, "sink"))[0] == "worker_lacks"
    folder = base_directory / "models" / "vae"
    (folder / "late").mkdir()
    (folder / "late" / "new.safetensors").write_bytes((folder / "tiny_taesd16.safetensors").read_bytes())
    assert engine.run(prompt, "sink")["blocked"] == []
    capability = engine.describe()
    assert "late/new.safetensors" in capability.choice_lists[capability.choices["VAELoader"]["vae_name"]]


def test_a_path_with_the_other_systems_separator_is_understood(engine: EngineClient, base_directory: Path) -> None:
    folder = base_directory / "models" / "vae" / "sub"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes((folder.parent / "tiny_taesd16.safetensors").read_bytes())
    answer = engine.run({"vae": node("VAELoader", vae_name="sub\\a.safetensors"), **_decode("vae")}, "sink")
    assert answer["blocked"] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise": node("TinyNoise", size=0, batch_size=1, seed=3)}, "node noise (TinyNoise): Value 0 smaller than min of 1: size"),
        ({"noise": node("TinyNoise", size=8, batch_size=1)}, "node noise (TinyNoise): Required input is missing: seed"),
        ({"noise": node("TinyNoise", size="eight", batch_size=1, seed=3)}, "Failed to convert an input value to a INT value"),
        ({"sink": node("DistributedSink", images=out("nowhere"))}, "nowhere"),
        ({"noise": node("ImageInvert", image=out("text")), "text": node("TinyConditioning", text="a")}, "mismatch"),
        ({"noise": node("ProbeSelfValidated", loose="bad", strict="a", seed=1)}, "bad is bad"),
        ({"noise": node("ProbeSelfValidated", loose="a", strict="z", seed=1001)}, "bigger than max"),
    ],
)  # fmt: skip
def test_what_is_wrong_everywhere_is_refused_with_comfyuis_words(either: EngineClient, changes: dict[str, Any], said: str) -> None:
    code, fields = error_of(either.run({**GOOD, **changes}, "sink"))
    assert code == "validation_refused"
    assert said in fields["details"]
    assert all(entry["errors"] for entry in fields["node_errors"].values())


def test_a_prompt_is_refused_whole_when_one_of_its_targets_is_invalid(either: EngineClient) -> None:
    prompt = {**GOOD, "bad": node("TinyNoise", size=-1, batch_size=1, seed=3), "sink2": node("DistributedSink", images=out("bad"))}
    answer = either.run(prompt, "sink", "sink2")
    assert error_of(answer)[0] == "validation_refused"
    assert answer["started"] == [] or either.options.engine == "attach", "a running ComfyUI begins with what is valid at once"
    assert error_of(answer)[1]["node_errors"]["bad"]["dependent_outputs"] == ["sink2"]
    assert "captures" in either.run(prompt, "sink"), "an invalid node that is not wanted does not matter"


def test_a_target_that_is_no_output_node_is_refused(either: EngineClient) -> None:
    code, fields = error_of(either.run(GOOD, "sink", "noise"))
    assert (code, fields["details"]) == ("validation_refused", "node noise (TinyNoise) is no output node")


def test_a_seed_above_the_nodes_limit_is_refused(either: EngineClient) -> None:
    noise = node("TinyNoise", size=8, batch_size=1, seed=2**31 + 1)
    assert error_of(either.run({**GOOD, "noise": noise}, "sink"))[0] == "validation_refused"


def test_a_nodes_exception_is_reported_whole(either: EngineClient) -> None:
    code, fields = error_of(either.run(raising("ValueError"), "sink"))
    assert code == "node_failed"
    assert {name: fields[name] for name in ("node_id", "class_type", "exception_type", "exception_message")} == {
        "node_id": "bad", "class_type": "ProbeRaise", "exception_type": "ValueError", "exception_message": "no such thing",
    }  # fmt: skip
    assert "probe_nodes.py" in fields["traceback"] and 'raise ValueError("the sampler' in fields["traceback"]
    assert "captures" in either.run(GOOD, "sink"), "the failure does not stick"


def test_files_of_a_run_that_fails_later_are_deleted(engine: EngineClient) -> None:
    # ComfyUI runs output nodes as soon as they can, so this one is done before the other node raises.
    prompt = {**raising("ValueError"), "save": node("SaveImage", images=out("noise"), filename_prefix="half")}
    answer = engine.run(prompt, "save", "sink")
    assert error_of(answer)[0] == "node_failed" and "save" in answer["started"]
    assert not list((engine.options.folder / "output").glob("half*"))


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "MemoryError", "allocator"])
def test_memory_exhaustion_is_told_apart_and_memory_is_freed(either: EngineClient, kind: str) -> None:
    code, fields = error_of(either.run(raising(kind), "sink"))
    assert code == "out_of_memory"
    assert (fields["device"], fields["node_id"]) == ("cpu", "bad") and fields["exception_message"] is not None
    assert "noise" in either.run(GOOD, "sink")["started"], "node outputs were freed too"


def test_an_exception_that_only_talks_of_memory_is_the_nodes_own(either: EngineClient) -> None:
    assert error_of(either.run(raising("text"), "sink"))[0] == "node_failed"


def test_a_node_that_stops_the_prompt_by_itself_has_failed(engine: EngineClient) -> None:
    code, fields = error_of(engine.run(raising("interrupt"), "sink"))
    assert code == "node_failed" and fields["exception_type"] == "InterruptProcessingException" and fields["node_id"] == "bad"


def steps(salt: int, *, stubborn: bool = False) -> dict[str, Any]:
    return {
        "noise": NOISE, "slow": node("ProbeSteps", images=out("noise"), steps=200, stubborn=stubborn, salt=salt),
        "sink": node("DistributedSink", images=out("slow")),
    }  # fmt: skip


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_stops_a_run_at_its_next_step_even_if_a_node_swallows_it(either: EngineClient, stubborn: bool) -> None:
    answer = either.run(steps(1, stubborn=stubborn), "sink", interrupt_at=5)
    assert error_of(answer) == ("item_interrupted", {"item_id": "0123456789ab-3"})
    assert max(value for node_id, value, _ in answer["progress"] if node_id == "slow") < 40
    assert "captures" in either.run(GOOD, "sink"), "the next run is not hit"


def test_an_interrupt_that_comes_before_its_run_is_remembered_and_hits_no_other(either: EngineClient) -> None:
    either.send("interrupt", claim_id="later")
    assert "captures" in either.run(GOOD, "sink")
    answer = either.run(GOOD, "sink", claim_id="later")
    assert error_of(answer)[0] == "item_interrupted" and answer["started"] == []
    assert "captures" in either.run(GOOD, "sink", claim_id="later"), "forgotten once it was obeyed"


def test_an_interrupt_for_another_claim_changes_nothing(either: EngineClient) -> None:
    either.send("interrupt", claim_id="some-old-claim")
    assert "captures" in either.run(steps(2), "sink")


def test_a_source_that_gets_no_data_fails_with_that_error(engine: EngineClient) -> None:
    from distributed_comfy.messages import TensorRef

    prompt = {"collect": node("DistributedSource", slots="images"), "save": node("SaveImage", images=out("collect"), filename_prefix="x")}
    feed = {"collect": {"images": (TensorRef("gone#1", "float32", (1, 8, 8, 3), 768),)}}
    assert error_of(engine.run(prompt, "save", kind="last", feed=feed))[0] == "blob_missing"


def test_a_sink_that_comfyui_serves_from_its_cache_is_an_error_and_no_empty_result(engine: EngineClient) -> None:
    assert "captures" in engine.run(GOOD, "sink", claim_id="once")
    code, fields = error_of(engine.run(GOOD, "sink", claim_id="once"))
    assert (code, fields) == ("sink_did_not_run", {"node_id": "sink"})


def test_free_unloads_the_models(engine: EngineClient) -> None:
    prompt = {"vae": node("VAELoader", vae_name="tiny_taesd16.safetensors"), **_decode("vae")}
    engine.run(prompt, "sink")
    assert engine.send("free") == {"loaded": 0}
    assert engine.run(prompt, "sink")["loads"] == 1


def test_free_makes_a_running_comfyui_forget_its_outputs(attached: EngineClient) -> None:
    attached.run(GOOD, "sink")
    assert "noise" not in attached.run(GOOD, "sink")["started"]
    attached.send("free")
    time.sleep(1)  # ComfyUI does it by and by
    assert "noise" in attached.run(GOOD, "sink")["started"]


@pytest.mark.parametrize("empty", [node("ProbeList", sizes=""), node("ProbeLazy", images=out("noise"), on=False)])
def test_a_running_comfyui_cannot_tell_that_nothing_came_so_another_worker_must(attached: EngineClient, empty: dict[str, Any]) -> None:
    answer = attached.run({"noise": NOISE, "empty": empty, "sink": node("DistributedSink", images=out("empty"))}, "sink")
    assert error_of(answer) == ("worker_lacks", {"worker": "pc1-cpu", "lacks": "a way of telling that nothing came to node sink"})


def test_an_input_file_over_the_limit_of_a_running_comfyui_is_something_the_worker_lacks(attached: EngineClient) -> None:
    from distributed_comfy.messages import FileRef, InputFile
    from distributed_comfy.transport.files import InputCache

    file = FileRef("large.png", "image/png", "ab" * 32, 101 * 2**20, "", "input")
    cached = InputCache(attached.options.cache_folder).path_of(file)
    cached.parent.mkdir(parents=True, exist_ok=True)
    with cached.open("wb") as sparse:
        sparse.truncate(file.size_bytes)
    prompt = {"load": node("LoadImage", image="large.png"), "sink": node("DistributedSink", images=out("load"))}
    code, fields = error_of(attached.run(prompt, "sink", input_files=(InputFile("load", "image", file),)))
    assert code == "worker_lacks" and "--max-upload-size" in fields["lacks"]


def test_a_model_folder_that_vanishes_makes_no_prompt_invalid(engine: EngineClient) -> None:
    folder = engine.options.folder / "output" / "vae"  # ComfyUI looks for models there too
    folder.mkdir()
    prompt = {"vae": node("VAELoader", vae_name="tiny_taesd16.safetensors"), **_decode("vae")}
    engine.describe()
    folder.rmdir()
    assert "captures" in engine.run(prompt, "sink")

"""What a run gives: captures, files, ui results, metadata; and what stays cached between runs."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from tests.comfyui.comfy_process import PROJECT, EngineClient
from tests.prompts import node, out

SAVED = {
    "noise": node("TinyNoise", size=16, batch_size=2, seed=7),
    "save": node("SaveImage", images=out("noise"), filename_prefix="sub/pic"),
    "show": node("PreviewImage", images=out("noise")),
}


def txt2img(seed: int, **changes: Any) -> dict[str, Any]:
    """The shipped example as an item's prompt, 64 x 64."""
    prompt = json.loads((PROJECT / "examples" / "txt2img_tiny.json").read_text())
    del prompt["6"], prompt["10"]
    prompt["5"]["inputs"] |= {"width": 64, "height": 64}
    prompt["7"]["inputs"] |= {"seed": seed, "steps": 2, **changes}
    prompt["9"] = node("DistributedSink", images=out("8"))
    return prompt


def test_an_item_of_the_shipped_example_gives_the_collectors_images(either: EngineClient) -> None:
    answer = either.run(txt2img(1), "9")
    assert list(answer["arrays"]) == [("9", "images", 0)]
    images = answer["arrays"]["9", "images", 0]
    assert images.shape == (2, 64, 64, 3) and images.dtype == numpy.float32
    assert images.std() > 0.01
    assert answer["blocked"] == [] and answer["files"] == []


def test_the_next_item_loads_no_model_and_samples_again(either: EngineClient) -> None:
    first = either.run(txt2img(11), "9")
    second = either.run(txt2img(12), "9")
    assert second["loads"] == 0
    assert second["started"] == ["7", "8", "9"]
    assert not numpy.array_equal(first["arrays"]["9", "images", 0], second["arrays"]["9", "images", 0])


def test_a_fresh_engine_loads_each_model_once(start_engine: Any) -> None:
    own = start_engine()
    assert [own.run(txt2img(seed), "9")["loads"] for seed in (1, 2)] == [2, 0]
    own.close()


def test_the_same_item_twice_is_captured_twice_and_sampled_once(either: EngineClient) -> None:
    first, second = either.run(txt2img(21), "9"), either.run(txt2img(21), "9")
    assert second["started"] == ["9"]
    numpy.testing.assert_array_equal(first["arrays"]["9", "images", 0], second["arrays"]["9", "images", 0])


def test_the_same_prompt_twice_gives_complete_files_both_times(either: EngineClient) -> None:
    runs = [either.run(SAVED, "save", "show") for _ in range(2)]
    for run in runs:
        assert [(node_id, folder, name) for node_id, folder, name, _ in run["files"] if node_id == "save"] == [
            ("save", "output", "sub/pic_00001_.png"), ("save", "output", "sub/pic_00002_.png"),
        ]  # fmt: skip
        assert [folder for node_id, folder, _, _ in run["files"] if node_id == "show"] == ["temp", "temp"]
        assert [entry["filename"] for entry in run["outputs"]["save"]["images"]] == ["pic_00001_.png", "pic_00002_.png"]
    assert runs[1]["started"] == ["save", "show"], "upstream comes from the cache"
    contents = [[Path(path).read_bytes() for _, _, _, path in sorted(run["files"], key=lambda file: file[:3])] for run in runs]
    assert contents[0][:2] == contents[1][:2]
    assert len({path for run in runs for *_, path in run["files"]}) == 8, "no run touches the files of another"


def test_only_the_targets_run(either: EngineClient) -> None:
    answer = either.run({**SAVED, "noise": node("TinyNoise", size=16, batch_size=1, seed=5)}, "show")
    assert answer["started"] == ["noise", "show"]
    assert list(answer["outputs"]) == ["show"]


def test_every_kind_of_file_that_a_node_names_is_found_once_and_none_outside(either: EngineClient) -> None:
    prompt = {"noise": SAVED["noise"], "w": node("ProbeWriter", images=out("noise"), odd=either.options.engine == "comfyui")}
    for answer in (either.run(prompt, "w"), either.run(prompt, "w")):
        assert sorted((folder, name) for _, folder, name, _ in answer["files"]) == [
            ("output", "clip.mp4"), ("output", "deep/er/sound.flac"), ("output", "fixed.glb"), ("temp", "shown.txt"),
        ]  # fmt: skip
        assert {Path(path).read_bytes() for *_, path in answer["files"]} == {b"mmm", b"fff", b"ggg", b"ttt"}
        assert answer["outputs"]["w"]["gifs"][0]["format"] == "video/h264-mp4"


def test_saved_images_carry_the_users_prompt_and_workflow_and_not_the_cut_one(either: EngineClient) -> None:
    original = {**SAVED, "6": node("DistributedSeed", seed=7), "noise": node("TinyNoise", size=16, batch_size=2, seed=out("6"))}
    answer = either.run(SAVED, "save", original_prompt=original, extra_pnginfo={"workflow": {"nodes": [1, 2]}})
    for *_, path in answer["files"]:
        with Image.open(path) as picture:
            assert json.loads(picture.info["prompt"]) == original
            assert json.loads(picture.info["workflow"]) == {"nodes": [1, 2]}


def test_a_new_style_output_node_runs_each_time_with_the_users_prompt(engine: EngineClient) -> None:
    prompt = {"noise": SAVED["noise"], "v3": node("ProbeV3", images=out("noise"), mode="a", seed=1)}
    original = {**prompt, "note": node("DistributedSeed", seed=1)}
    for _ in range(2):
        answer = engine.run(prompt, "v3", original_prompt=original)
        assert [name for *_, name, _ in answer["files"]] == ["v3_00001_.png", "v3_00002_.png"]
        with Image.open(answer["files"][0][-1]) as picture:
            assert json.loads(picture.info["prompt"]) == original


def test_no_stray_argument_reaches_an_output_node_that_takes_any(engine: EngineClient) -> None:
    prompt = {"noise": SAVED["noise"], "any": node("ProbeAnyInput", images=out("noise"))}
    answers = [engine.run(prompt, "any") for _ in range(2)]
    for answer in answers:
        assert answer["outputs"]["any"]["inputs"] == ["images"]
        assert answer["outputs"]["any"]["prompt"] == [prompt], "no marks of ComfyUI or of ours in it"
        assert answer["started"][0] == "any"


def test_an_output_node_in_an_expansion_writes_its_files_each_time(engine: EngineClient) -> None:
    prompt = {
        "noise": SAVED["noise"], "grow": node("ProbeExpand", images=out("noise")), "sink": node("DistributedSink", images=out("grow")),
    }  # fmt: skip
    for _ in range(3):
        answer = engine.run(prompt, "sink")
        assert [name for *_, name, _ in answer["files"]] == ["expanded_00001_.png", "expanded_00002_.png"]
        assert answer["arrays"]["sink", "images", 0].shape == (2, 16, 16, 3)
    assert "noise" not in answer["started"]


def test_a_collector_that_a_node_created_passes_its_images_through(engine: EngineClient) -> None:
    prompt = {
        "noise": SAVED["noise"], "grow": node("ProbeCollectorExpand", images=out("noise")),
        "sink": node("DistributedSink", images=out("grow")),
    }  # fmt: skip
    answer = engine.run(prompt, "sink")
    assert answer["arrays"]["sink", "images", 0].shape == (2, 16, 16, 3)
    assert "passes its input through" in engine.log()


def test_a_list_of_images_is_captured_element_by_element_with_values_outside_0_to_1(either: EngineClient) -> None:
    answer = either.run({"list": node("ProbeList", sizes="8,16,8"), "sink": node("DistributedSink", images=out("list"))}, "sink")
    assert {key: array.shape for key, array in answer["arrays"].items()} == {
        ("sink", "images", 0): (1, 8, 8, 3), ("sink", "images", 1): (1, 16, 16, 3), ("sink", "images", 2): (1, 8, 8, 3),
    }  # fmt: skip
    kept = 2.5 if either.options.engine == "comfyui" else 1  # a running ComfyUI hands over pictures of 8 bits
    assert all((array == kept).all() for array in answer["arrays"].values())


def test_an_edge_that_crosses_the_cut_is_captured_whatever_its_type(either: EngineClient) -> None:
    prompt = {
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "size": node("GetImageSize", image=out("noise")), "noise": SAVED["noise"],
        "latent~0": node("DistributedSink", value=out("latent")), "size~1": node("DistributedSink", value=out("size", 1)),
    }  # fmt: skip
    answer = either.run(prompt, "latent~0", "size~1")
    assert answer["arrays"]["latent~0", "value", 0].shape == (1, 16, 8, 8)
    assert answer["arrays"]["size~1", "value", 0] == 16


def test_a_blocked_sink_is_reported_blocked_and_not_lost(either: EngineClient) -> None:
    for message in ("", "not today"):
        prompt = {
            "noise": SAVED["noise"], "block": node("ProbeBlock", images=out("noise"), block=True, message=message),
            "sink": node("DistributedSink", images=out("block")), "other": node("DistributedSink", images=out("noise")),
        }  # fmt: skip
        for _ in range(2):
            answer = either.run(prompt, "sink", "other")
            assert answer["blocked"] == ["sink"]
            assert list(answer["arrays"]) == [("other", "images", 0)]


def test_a_sink_behind_a_lazily_skipped_node_is_reported_blocked(engine: EngineClient) -> None:
    for on, blocked in ((False, ["sink"]), (True, [])):
        prompt = {
            "noise": node("TinyNoise", size=16, batch_size=1, seed=33), "lazy": node("ProbeLazy", images=out("noise"), on=on),
            "sink": node("DistributedSink", images=out("lazy")),
        }  # fmt: skip
        answer = engine.run(prompt, "sink")
        assert answer["blocked"] == blocked
        assert ("noise" in answer["started"]) == on


def test_an_empty_list_is_reported_blocked(engine: EngineClient) -> None:
    answer = engine.run({"list": node("ProbeList", sizes=""), "sink": node("DistributedSink", images=out("list"))}, "sink")
    assert answer["blocked"] == ["sink"] and not answer["arrays"]


def test_a_last_stage_works_on_what_it_is_fed_and_saves_nothing_of_an_empty_feed(either: EngineClient) -> None:
    prompt = {
        "9": node("DistributedSource", slots="images"), "inv": node("ImageInvert", image=out("9")),
        "save": node("SaveImage", images=out("inv"), filename_prefix="last"),
    }  # fmt: skip
    empty = either.run(prompt, "save", kind="last", feed={"9": {"images": ()}})
    assert empty["files"] == [] and empty["outputs"] == {} and "error" not in empty


def test_items_and_last_stages_leave_each_others_models_loaded(engine: EngineClient) -> None:
    vae = (engine.options.comfyui_base_directory or Path()) / "models" / "vae"
    (vae / "second.safetensors").write_bytes((vae / "tiny_taesd16.safetensors").read_bytes())
    last = {
        "9": node("DistributedSource", slots="images"), "v2": node("VAELoader", vae_name="second.safetensors"),
        "enc": node("VAEEncode", pixels=out("noise"), vae=out("v2")), "noise": node("TinyNoise", size=64, batch_size=1, seed=4),
        "lat": node("DistributedSink", value=out("enc")), "save": node("SaveImage", images=out("9"), filename_prefix="x"),
    }  # fmt: skip
    original = {**txt2img(1), **last}
    loads = []
    for seed in range(40, 43):
        loads.append(engine.run(txt2img(seed), "9", original_prompt=original)["loads"])
        answer = engine.run(last, "save", "lat", kind="last", feed={"9": {"images": ()}}, original_prompt=original)
        loads.append(answer["loads"])
        assert set(answer["outputs"]) <= set(last)
    assert loads[1] == 1 and loads[2:] == [0, 0, 0, 0]
    engine.run(txt2img(43), "9", original_prompt=txt2img(43))
    assert engine.run(last, "lat", kind="last", original_prompt=original)["loads"] == 1, "another workflow's last stage is not kept"


def test_progress_comes_step_by_step(either: EngineClient) -> None:
    answer = either.run(txt2img(31, steps=3), "9")
    steps = [entry for entry in answer["progress"] if entry[0] == "7"][1:]
    assert steps[0] == ["7", 1, 3] and steps[-1] == ["7", 3, 3] and steps == sorted(steps), "newer versions leave quick steps out"
    assert ["9", 1, 1] in answer["progress"]


def test_previews_come_as_jpeg_where_comfyui_makes_them(start_engine: Any) -> None:
    own = start_engine("--preview-method", "latent2rgb")
    answer = own.run(txt2img(31), "9")
    assert {(node_id, start) for node_id, _, start in answer["previews"]} == {("7", "ffd8")}
    assert "--preview-method" not in own.describe().device_class, "it does not change results"
    own.close()


def test_input_files_are_loaded_by_content(either: EngineClient, tmp_path: Path) -> None:
    from distributed_comfy.messages import FileRef, InputFile
    from distributed_comfy.transport.files import InputCache, sha256_of

    prompt = {"load": node("LoadImage", image="my cat.png"), "sink": node("DistributedSink", images=out("load"))}
    for colour in (0, 255, 0):
        picture = tmp_path / "my cat.png"
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(picture)
        file = FileRef("my cat.png", "image/png", sha256_of(picture), picture.stat().st_size, "", "input")
        cached = InputCache(either.options.cache_folder).path_of(file)
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(picture.read_bytes())
        answer = either.run(prompt, "sink", input_files=(InputFile("load", "image", file),))
        assert (answer["arrays"]["sink", "images", 0][..., 0] == colour / 255).all()

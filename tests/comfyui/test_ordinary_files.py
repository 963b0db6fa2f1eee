"""Files of every kind that ordinary prompts load and make, with a busy master and one worker."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image

from distributed_comfy.messages import Prompt
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.ordinary_rig import Crowd, pixels, saved, stock
from tests.prompts import node, out


@pytest.fixture(scope="module")
def crowd(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """A master and one worker."""
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path_factory.mktemp("files"))
    try:
        yield crowd.start("one")
    finally:
        crowd.close()


def names(paths: list[Path], base: Path) -> list[str]:
    """Below the base directory."""
    return [path.relative_to(base).as_posix() for path in paths]


def test_video_animations_and_latents_come_home_as_pictures_do(crowd: Crowd) -> None:
    prompt: Prompt = {
        "1": node("EmptyImage", width=64, height=64, batch_size=4, color=255),
        "3": node("CreateVideo", images=out("1"), fps=8.0),
        "4": node("SaveVideo", video=out("3"), filename_prefix="video/clip", format="auto", codec="auto"),
        "6": node("SaveAnimatedWEBP", images=out("1"), filename_prefix="moving", fps=6.0, lossless=True, quality=80, method="default"),
        "7": node("SaveLatent", samples=out("8"), filename_prefix="latents/x"),
        "8": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    }
    with crowd.busy_master():
        ids = [crowd.server.queue(prompt) for _ in range(2)]
        entries = [crowd.server.wait(prompt_id) for prompt_id in ids]
    assert [crowd.done_by(prompt_id) for prompt_id in ids] == ["one", "one"]
    for number, entry in enumerate(entries, 1):
        found = saved(entry, crowd.server.base)
        assert names(found, crowd.server.base) == [
            f"output/video/clip_{number:05}_.mp4", f"output/moving_{number:05}_.webp", f"output/latents/x_{number:05}_.latent",
        ]  # fmt: skip
        assert all(path.stat().st_size > 20 for path in found)
    assert entries[0]["outputs"]["4"]["animated"] == [True]
    status, _ = crowd.server.ask("GET", "/view?filename=clip_00002_.mp4&subfolder=video&type=output")
    assert status == 200


def test_files_that_a_prompt_loads_travel_from_whichever_folder_it_names(crowd: Crowd) -> None:
    for number, folder in enumerate(("input", "output", "temp")):
        place = crowd.server.base / folder / "sub"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numpy.full((8, 8, 3), 40 * (number + 1), numpy.uint8)).save(place / "mine.png")
    values = {"input": "sub/mine.png", "output": "sub/mine.png [output]", "temp": "sub/mine.png [temp]"}
    with crowd.busy_master():
        for number, (folder, value) in enumerate(values.items()):
            prompt = {"1": node("LoadImage", image=value), "2": node("SaveImage", images=out("1"), filename_prefix=f"from-{folder}")}
            prompt_id = crowd.server.queue(prompt)
            [path] = saved(crowd.server.wait(prompt_id), crowd.server.base)
            assert crowd.done_by(prompt_id) == "one"
            assert (pixels(path) == 40 * (number + 1)).all()
            assert json.loads(Image.open(path).text["prompt"])["1"]["inputs"]["image"] == value  # type: ignore[attr-defined]


def test_only_the_outputs_that_were_asked_for_run(crowd: Crowd) -> None:
    prompt = stock(1, prefix="wanted")
    prompt["20"] = node("SaveImage", images=out("8"), filename_prefix="unwanted")
    with crowd.busy_master():
        prompt_id = crowd.server.queue(prompt, partial_execution_targets=["10"])
        entry = crowd.server.wait(prompt_id)
    assert crowd.done_by(prompt_id) == "one"
    assert list(entry["outputs"]) == ["10"] and entry["prompt"][4] == ["10"]
    assert not list(crowd.output.glob("unwanted*"))


def test_sound_and_whatever_else_a_node_names_comes_home(crowd: Crowd) -> None:
    prompt = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0), "2": node("ProbeWriter", images=out("1"), odd=False)}
    with crowd.busy_master():
        prompt_id = crowd.server.queue(prompt)
        entry = crowd.server.wait(prompt_id)
    assert crowd.done_by(prompt_id) == "one"
    found = {path.relative_to(crowd.server.base).as_posix() for path in saved(entry, crowd.server.base) if path.is_file()}
    assert {"output/clip.mp4", "output/deep/er/sound.flac", "output/fixed.glb", "temp/shown.txt"} <= found
    assert not (crowd.server.base / "secret.txt").exists()


def test_master_and_worker_save_under_one_name_at_once_and_no_file_is_lost(crowd: Crowd) -> None:
    def big(seed: int) -> Prompt:
        prompt = stock(seed, prefix="crowded")
        prompt["5"]["inputs"]["batch_size"] = 4
        prompt["30"] = node("ImageScale", image=out("8"), upscale_method="nearest-exact", width=512, height=512, crop="disabled")
        prompt["10"]["inputs"]["images"] = out("30")  # four files take the master a while
        return prompt

    entries = [crowd.server.wait(prompt_id) for prompt_id in [crowd.server.queue(big(seed)) for seed in range(12)]]
    found = [path for entry in entries for path in saved(entry, crowd.server.base)]
    assert sorted(path.name for path in found) == [f"crowded_{number:05}_.png" for number in range(1, 49)]
    of_seed = {json.loads(Image.open(path).text["prompt"])["7"]["inputs"]["seed"] for path in found}  # type: ignore[attr-defined]
    assert of_seed == set(range(12))
    for seed, entry in enumerate(entries):
        for path in saved(entry, crowd.server.base):
            assert json.loads(Image.open(path).text["prompt"])["7"]["inputs"]["seed"] == seed  # type: ignore[attr-defined]


def test_prompts_keep_their_order_and_an_idle_master_takes_its_share(crowd: Crowd) -> None:
    with crowd.busy_master(), crowd.server.listen() as listener:
        ids = [crowd.server.queue(stock(number, pause=10), client_id=listener.client_id) for number in range(3)]
        first = crowd.server.queue(stock(9), client_id=listener.client_id, front=True)
        for prompt_id in [*ids, first]:
            listener.wait_end(prompt_id)
    started = [event["data"]["prompt_id"] for event in listener.of("execution_start")]
    assert started.index(first) <= 1 and [prompt_id for prompt_id in started if prompt_id != first] == ids
    alone = crowd.server.queue(stock(10))
    crowd.server.wait(alone)
    assert crowd.done_by(alone) == "", "an idle master runs it itself"


def test_a_prompt_whose_class_no_worker_has_stays(crowd: Crowd) -> None:
    prompt = stock(5)
    prompt["20"] = node("MasterOnly", images=out("8"))
    with crowd.busy_master():
        prompt_id = crowd.server.queue(prompt)
        other = crowd.server.queue(stock(6))
        crowd.server.wait(other)
        assert crowd.done_by(other) == "one" and crowd.server.history(prompt_id) is None, "it waits for the master"
    assert crowd.server.wait(prompt_id)["status"]["status_str"] == "success"

"""The example workflows in the real editor: out of the template browser, with the tiny model, by the Run button, on two workers.

Their pictures are those of a plain ComfyUI.
"""
from __future__ import annotations

import io
import json
import struct
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.comfyui.templates import SHOWN_AS, example_names
from tests.cluster_rig import Rig
from tests.comfyui.browser import ComfyPage, comfy_page
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.tiles_by_hand import Floats, Rules, redraw
from tests.command_line import PROJECT, CommandLine
from tests.prompts import node, out, without

MODEL = "tiny_checkpoint.safetensors"
WORKERS = ("pc1-cpu", "pc1-cpu-2")
PARALLEL, TILED, ORCHESTRATED = "parallel_txt2img", "tiled_upscale", "orchestrator_only"
Pixels = NDArray[numpy.uint8]


@pytest.fixture(scope="module")
def running(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI that shows previews, with the pack and two workers on the CPU, as a user adds them."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("examples")))
    clone = server.base / "custom_nodes" / "a-clone"  # its prompts in `examples` are no workflows
    (clone / "distributed_comfy" / "comfyui").mkdir(parents=True)
    (clone / "distributed_comfy" / "comfyui" / "door.py").touch()
    (clone / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (clone / "examples").mkdir()
    (clone / "examples" / "prompt.json").write_text("{}")
    try:
        server.start("--preview-method", "latent2rgb", DC_HOST="pc1")
        server.wait_ready()
        server.until(lambda: server.status()["host"]["agent"] == "here")
        for name in WORKERS:
            added = server.line.run("workers", "add", name, "--device", "cpu", DC_HOST="pc1")
            assert added.status == 0, added.err
        server.until(lambda: live(server) == set(WORKERS))
        yield server
    finally:
        server.close()


def live(server: ComfyServer) -> set[str]:
    """Workers that take items."""
    return {worker["name"] for worker in server.get("/distributed_comfy/workers")["cluster"] if worker["state"] == "idle"}


@pytest.fixture(scope="module")
def page(running: ComfyServer) -> Iterator[ComfyPage]:
    """Its editor."""
    with comfy_page(running, running.line.folder) as page:
        page.close_dialogs()
        yield page


def option(server: ComfyServer, page: ComfyPage, name: str, value: bool) -> None:
    """Switch one in the settings dialog."""
    page.page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [f"DistributedComfy.{name}", value])
    server.until(lambda: page.page.wait_for_timeout(50) or server.status()["options"][name] is value)


def shown_pixels(page: ComfyPage, number: int) -> list[Pixels]:
    """The pictures that a node of the page shows."""
    found = []
    for _, _, source in page.pictures(number):
        with urllib.request.urlopen(source, timeout=30) as response:
            found.append(numpy.asarray(Image.open(io.BytesIO(response.read()))))
    return found


def as_saved(image: Floats) -> Pixels:
    """[H, W, C] as SaveImage writes it."""
    return numpy.clip(255.0 * image, 0, 255).astype(numpy.uint8)


def by_plain(plain: PlainComfyUI, prompt: dict[str, Any], seed: int) -> Pixels:
    """Item 0 of a prompt with this seed, without any node of ours."""
    stock = without(prompt, "5", "8", "9", "11")
    stock["6"]["inputs"]["seed"] = seed
    stock["1"]["inputs"]["ckpt_name"] = MODEL
    return as_saved(plain.images(stock, "7")[0])


# -- what is offered -------------------------------------------------------------------------------------------------------
def test_the_template_browser_offers_the_examples_with_a_picture_each_and_nothing_of_a_clone(
    running: ComfyServer, page: ComfyPage
) -> None:
    assert running.get("/workflow_templates") == running.get("/api/workflow_templates") == {SHOWN_AS: example_names()}
    page.browse_templates(SHOWN_AS)
    for name in example_names():
        card = page.page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first.element_handle()
        page.page.wait_for_function("image => image.complete && image.naturalWidth >= 200", arg=picture)
    page.close_dialogs()


@pytest.mark.parametrize("name", [PARALLEL, TILED, ORCHESTRATED])
def test_an_example_is_laid_out_without_overlaps_and_of_stock_nodes_and_ours(page: ComfyPage, name: str) -> None:
    page.open_template(SHOWN_AS, name)
    saved = page.saved()
    kinds = {one["type"] for one in saved["nodes"]}
    assert any(kind.startswith(("Distributed", "UltimateSDUpscaleDistributed")) for kind in kinds) and "MarkdownNote" in kinds
    least = page.page.evaluate("() => window.app.graph.nodes.map((node) => [node.id, ...node.computeSize()])")
    sizes = {number: (width, height) for number, width, height in least}
    title = 30
    boxes = []
    for one in saved["nodes"]:
        (left, top), (width, height) = one["pos"], one["size"]
        assert width >= sizes[one["id"]][0] and height >= sizes[one["id"]][1], f"{one['type']} is cut off"
        boxes.append((one["type"], left, top - title, left + width, top + height))
    for number, (first, *one) in enumerate(boxes):
        for second, *other in boxes[number + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, f"{first} and {second} overlap"
    frames = [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in saved["groups"])]
    for kind, *box in boxes:
        inside = [all((box[0] >= x, box[1] >= y, box[2] <= right, box[3] <= bottom)) for x, y, right, bottom in frames]
        assert sum(inside) == (kind != "MarkdownNote"), f"{kind} is in {sum(inside)} groups"


def test_the_examples_are_in_the_wheel_as_they_are_in_the_repository() -> None:
    folder = PROJECT / "distributed_comfy" / "comfyui" / "example_workflows"
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in example_names() for kind in ("json", "jpg")}
    assert example_names() == sorted([PARALLEL, TILED, ORCHESTRATED])
    assert all(path.stat().st_size < 100_000 for path in folder.iterdir())


# -- what they make --------------------------------------------------------------------------------------------------------
def test_parallel_txt2img_shows_who_does_what_and_the_pictures_of_a_plain_comfyui(
    running: ComfyServer, page: ComfyPage, plain: PlainComfyUI
) -> None:
    page.open_template(SHOWN_AS, PARALLEL)
    page.set(1, ckpt_name=MODEL)
    page.set(4, width=64, height=64)
    page.set(5, seed=4000)
    page.set(6, steps=20)
    page.set(8, items=6)
    prompt = page.prompt()
    before = len(page.faults)
    page.listen()
    page.press_run()
    page.wait_end()
    assert page.faults[before:] == []
    texts = [event["text"] for event in page.heard("progress_text") if event["nodeId"] == "8"]
    assert texts[-1].startswith("6 of 6 items") and any("/20" in text and "pc1-cpu" in text for text in texts), texts
    bars = [event for event in page.heard("progress") if event["node"] == "8"]
    assert bars[-1]["value"] == 6 and {bar["max"] for bar in bars} == {6}
    pictures = shown_pixels(page, 9)
    assert len(pictures) == 6
    for index in (0, 3, 5):
        assert numpy.array_equal(pictures[index], by_plain(plain, prompt, 4000 + index)), f"picture {index}"


def test_previews_of_workers_appear_at_the_collector_while_they_sample(running: ComfyServer, page: ComfyPage) -> None:
    option(running, page, "participate", False)
    try:
        page.open_template(SHOWN_AS, PARALLEL)
        page.set(1, ckpt_name=MODEL)
        page.set(4, width=128, height=64)
        page.set(6, steps=100)
        page.set(8, items=2)
        page.listen()
        page.press_run()
        page.wait_end()
    finally:
        option(running, page, "participate", True)
    previews = page.heard("b_preview_with_metadata")
    assert previews and {(preview["node"], preview["shown"]) for preview in previews} == {("8", "8")}


@pytest.mark.parametrize("knows", [True, False], ids=["a page that knows whose they are", "an older client"])
def test_a_script_on_the_websocket_gets_the_workers_previews(running: ComfyServer, page: ComfyPage, knows: bool) -> None:
    option(running, page, "participate", False)
    try:
        page.open_template(SHOWN_AS, PARALLEL)
        page.set(1, ckpt_name=MODEL)
        page.set(4, width=128, height=64)
        page.set(5, seed=uuid.uuid4().int % 2**40)
        page.set(6, steps=100)
        page.set(8, items=2)
        with running.listen() as listener:
            listener.send({"type": "feature_flags", "data": {"supports_preview_metadata": knows}})
            prompt_id = running.queue(page.prompt(), client_id=listener.client_id)
            listener.wait_end(prompt_id)
    finally:
        option(running, page, "participate", True)
    kind = 4 if knows else 1
    found = [message for message in listener.binary if struct.unpack(">I", message[:4])[0] == kind]
    assert found, [message[:4] for message in listener.binary]
    length = struct.unpack(">I", found[0][4:8])[0] if knows else 0
    if knows:
        about = json.loads(found[0][8 : 8 + length])
        assert (about["node_id"], about["prompt_id"]) == ("8", prompt_id)
    with Image.open(io.BytesIO(found[0][8 + length :])) as picture:
        assert picture.size == (512, 256), "as large as ComfyUI's own"
        assert numpy.asarray(picture).std() > 5, "a picture of the latents, which are noise"


def test_tiled_upscale_redraws_the_tiles_as_comfyuis_own_nodes_do(running: ComfyServer, page: ComfyPage, plain: PlainComfyUI) -> None:
    for folder in (running.base / "input", plain.input):
        picture = numpy.random.default_rng(5).integers(0, 256, (72, 96, 3), numpy.uint8)
        Image.fromarray(picture).resize((120, 100)).save(folder / "example.png")
    page.open_template(SHOWN_AS, TILED)
    page.set(1, ckpt_name=MODEL)
    page.set(6, seed=7, steps=4, tile_width=64, tile_height=64, padding=16, mask_blur=8, mode="linear")
    prompt = page.prompt()
    page.listen()
    page.press_run()
    page.wait_end()
    texts = [event["text"] for event in page.heard("progress_text") if event["nodeId"] == "6"]
    assert texts[-1] == "16 of 16 tiles", texts
    pictures = shown_pixels(page, 7)
    before = plain.images(without(prompt, "6", "7"), "5")
    assert before.shape == (1, 200, 240, 3)
    by_hand = redraw(before, Rules(tile=64, padding=16, feather=8), lambda crop: one_tile(plain, prompt, crop))
    assert len(pictures) == 1 and numpy.array_equal(pictures[0], as_saved(by_hand[0]))


def one_tile(plain: PlainComfyUI, prompt: dict[str, Any], crop: Floats) -> Floats:
    """A tile by ComfyUI's own nodes."""
    file = f"{uuid.uuid4().hex}.npy"
    numpy.save(plain.input / file, crop)
    values = prompt["6"]["inputs"]
    kept = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "model", "positive", "negative")
    sampling = {name: values[name] for name in kept}
    return plain.images(
        {
            **without(prompt, "4", "5", "6", "7"),
            "crop": node("ProbeArray", name=file),
            "encoded": node("VAEEncode", pixels=out("crop"), vae=values["vae"]),
            "sampled": node("KSampler", latent_image=out("encoded"), **sampling),
            "decoded": node("VAEDecode", samples=out("sampled"), vae=values["vae"]),
        },
        "decoded",
    )


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    """A ComfyUI without any model."""
    with open_master(comfy, packed_python, base_directory, tmp_path_factory.mktemp("orchestrator"), comfyui_rig, models=False) as found:
        yield found


def test_orchestrator_only_runs_a_model_that_this_comfyui_does_not_have(page: ComfyPage, master: Master, plain: PlainComfyUI) -> None:
    server = master.server
    page.open(server.url)
    page.close_dialogs()
    option(server, page, "participate", False)
    page.open_template(SHOWN_AS, ORCHESTRATED)
    assert MODEL not in page.node(1, "node.widgets[0].options.values ?? []")
    page.set(11, text=MODEL)
    page.set(4, width=64, height=64)
    page.set(5, seed=500)
    page.set(6, steps=4)
    page.set(8, items=3)
    prompt = page.prompt()
    page.listen()
    page.press_run()
    page.wait_end()
    pictures = shown_pixels(page, 9)
    assert len(pictures) == 3 and set(master.workers_of(master.last_job())) <= {"one", "two"}
    assert "Requested to load" not in server.log()
    for index, picture in enumerate(pictures):
        assert numpy.array_equal(picture, by_plain(plain, prompt, 500 + index)), f"picture {index}"

"""What goes with an image, cut to a tile by us, against the same cut by hand and loaded through ComfyUI's own nodes: the same bits."""
from __future__ import annotations

from typing import Any

import numpy
import pytest

from distributed_comfy.engine.builtin.sampling_nodes import KSampler, VAEDecode, VAEDecodeTiled, VAEEncode
from distributed_comfy.messages import Prompt
from distributed_comfy.workflow.region import Region, TileTask, tasks_text
from tests.comfyui.comfy_process import EngineClient
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.prompts import node, out

WIDTH, HEIGHT = 256, 192
INNER = {
    "canvas_width": WIDTH, "canvas_height": HEIGHT, "left": 64, "top": 32, "width": 128, "height": 96, "process_width": 128,
    "process_height": 96,
}  # fmt: skip
CORNER = {**INNER, "left": 140, "top": 100, "width": 116, "height": 92, "process_width": 120}
"""Off the grid of latents, and padded to it."""

BASE: Prompt = {
    "model": node("UNETLoader", unet_name="tiny_mmdit.safetensors", weight_dtype="default"),
    "vae": node("VAELoader", vae_name="tiny_taesd16.safetensors"),
    "good": node("TinyConditioning", text="a fox in the snow"),
    "bad": node("TinyConditioning", text="blurry"),
    "other": node("TinyConditioning", text="a lake"),
    "noise": node("TinyNoise", size=WIDTH, batch_size=1, seed=1),
    "canvas": node("ImageCrop", image=out("noise"), width=WIDTH, height=HEIGHT, x=0, y=0),
    "net": node("ControlNetLoader", control_net_name="tiny_control.safetensors"),
}


def hand_crop(image: str, region: dict[str, int], scale: float = 1) -> Prompt:
    """Nodes that cut an image as a person would: ``<image>-cut``."""
    left, top, width, height, process_width, process_height = (
        int(region[name] * scale) for name in ("left", "top", "width", "height", "process_width", "process_height")
    )
    return {
        f"{image}-box": node("ImageCrop", image=out(image), width=width, height=height, x=left, y=top),
        f"{image}-cut": node("TileEdgePad", images=out(f"{image}-box"), width=process_width, height=process_height),
    }


def placed(region: dict[str, int], **frames: int) -> Prompt:
    """The node that tells the others where their tile lies."""
    tasks = tasks_text([TileTask(Region(**region, **frames))])
    return {"u~regions": node("DistributedTileRegions", tiles=tasks, seed=0, denoise=1.0)}


REGION = out("u~regions")


def sampled(positive: list[Any], negative: list[Any], region: dict[str, int], model: str = "model") -> Prompt:
    """The nodes of a tile behind its conditioning; ``u~decode`` gives the images."""
    return {
        **hand_crop("canvas", region),
        "u~encode": node("VAEEncode", pixels=out("canvas-cut"), vae=out("vae")),
        "u~sample": node(
            "KSampler", model=out(model), seed=5, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple", positive=positive,
            negative=negative, latent_image=out("u~encode"), denoise=0.6,
        ),
        "u~decode": node("VAEDecode", samples=out("u~sample"), vae=out("vae")),
    }  # fmt: skip


def tile(prompt: Prompt, positive: list[Any], negative: list[Any], region: dict[str, int]) -> Prompt:
    """A tile as planning writes it."""
    return {
        **prompt,
        **placed(region),
        "u~model": node("DistributedTileModel", model=out("model"), region=REGION),
        "u~positive": node("DistributedTileConditioning", conditioning=positive, region=REGION),
        "u~negative": node("DistributedTileConditioning", conditioning=negative, region=REGION),
        **sampled(out("u~positive"), out("u~negative"), region, "u~model"),
        "u": node("DistributedSink", images=out("u~decode")),
    }


def controlled(hint: str, before: tuple[list[Any], list[Any]] = (out("good"), out("bad")), strength: float = 1.0) -> dict[str, Any]:
    return node(
        "ControlNetApplyAdvanced", positive=before[0], negative=before[1], control_net=out("net"), image=out(hint), strength=strength,
        start_percent=0.0, end_percent=1.0, vae=out("vae"),
    )  # fmt: skip


def tile_images(engine: EngineClient, prompt: Prompt) -> Any:
    answer = engine.run(prompt, "u")
    assert "error" not in answer, answer.get("error")
    return answer["arrays"]["u", "images", 0]


def assert_same(engine: EngineClient, plain: PlainComfyUI, ours: Prompt, theirs: Prompt, *, unlike: Prompt) -> None:
    """The tile is bit for bit what plain ComfyUI makes of ``theirs``, and not what it makes without what is cut."""
    expected = plain.images(theirs, "u~decode")
    result = tile_images(engine, ours)
    assert result.shape == expected.shape and result.tobytes() == expected.tobytes()
    assert numpy.abs(expected - plain.images(unlike, "u~decode")).max() > 1e-4, "it makes a difference"


# -- control ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("region", [INNER, CORNER])
def test_a_control_hint_of_the_canvas_size(engine: EngineClient, plain: PlainComfyUI, region: dict[str, int]) -> None:
    hint = {**BASE, "hint": node("TinyNoise", size=WIDTH, batch_size=1, seed=2), "wide": node("ImageCrop", image=out("hint"),
            width=WIDTH, height=HEIGHT, x=0, y=0)}  # fmt: skip
    ours = tile({**hint, "control": controlled("wide")}, out("control"), out("control", 1), region)
    cut = {**hint, **hand_crop("wide", region), "control": controlled("wide-cut")}
    theirs = {**cut, **sampled(out("control"), out("control", 1), region)}
    assert_same(engine, plain, ours, theirs, unlike={**BASE, **sampled(out("good"), out("bad"), region)})


def test_a_chain_of_hints_of_half_and_double_size(engine: EngineClient, plain: PlainComfyUI) -> None:
    hints = {
        **BASE,
        "small": node("ImageScale", image=out("canvas"), upscale_method="area", width=WIDTH // 2, height=HEIGHT // 2, crop="disabled"),
        "large": node("ImageScale", image=out("canvas"), upscale_method="bicubic", width=WIDTH * 2, height=HEIGHT * 2, crop="disabled"),
    }

    def chain(first: str, second: str) -> Prompt:
        return {"one": controlled(first), "two": controlled(second, (out("one"), out("one", 1)), 0.5)}

    ours = tile({**hints, **chain("small", "large")}, out("two"), out("two", 1), INNER)
    theirs = {
        **hints, **hand_crop("small", INNER, 0.5), **hand_crop("large", INNER, 2), **chain("small-cut", "large-cut"),
        **sampled(out("two"), out("two", 1), INNER),
    }  # fmt: skip
    assert_same(engine, plain, ours, theirs, unlike={**theirs, **sampled(out("one"), out("one", 1), INNER)})


def test_a_hint_of_an_uneven_scale_and_another_aspect(engine: EngineClient, plain: PlainComfyUI) -> None:
    hint = {**BASE, "hint": node("TinyNoise", size=100, batch_size=1, seed=3)}
    ours = tile({**hint, "control": controlled("hint")}, out("control"), out("control", 1), CORNER)
    whole = {"whole": node("ImageScale", image=out("hint"), upscale_method="nearest-exact", width=WIDTH, height=HEIGHT, crop="center")}
    theirs = {
        **hint, **whole, **hand_crop("whole", CORNER), "control": controlled("whole-cut"),
        **sampled(out("control"), out("control", 1), CORNER),
    }  # fmt: skip
    assert_same(engine, plain, ours, theirs, unlike={**BASE, **sampled(out("good"), out("bad"), CORNER)})


def test_the_cached_control_still_shows_the_whole_to_others(engine: EngineClient, plain: PlainComfyUI) -> None:
    prompt = {**BASE, "control": controlled("canvas")}
    whole = {**INNER, "left": 0, "top": 0, "width": WIDTH, "height": HEIGHT, "process_width": WIDTH, "process_height": HEIGHT}
    tile_images(engine, tile(prompt, out("control"), out("control", 1), INNER))
    untouched = {**prompt, **sampled(out("control"), out("control", 1), whole), "u": node("DistributedSink", images=out("u~decode"))}
    expected = plain.images({**prompt, **sampled(out("control"), out("control", 1), whole)}, "u~decode")
    assert tile_images(engine, untouched).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("net", "region"), [("TileAdapter", INNER), ("TileAdapter", CORNER)])
def test_a_t2i_adapter_gives_the_tile_what_a_hint_cut_by_hand_gives(
    engine: EngineClient, plain: PlainComfyUI, net: str, region: dict[str, int]
) -> None:
    base = {**BASE, "net": node(net)}
    sizes = {"width": region["process_width"], "height": region["process_height"]}
    cut = {**base, **hand_crop("canvas", region), "control": controlled("canvas-cut")}
    expected = plain.images({**cut, "given": node("TileControlOutput", conditioning=out("control"), **sizes)}, "given")
    ours = {
        **base, "control": controlled("canvas"), **placed(region),
        "u~positive": node("DistributedTileConditioning", conditioning=out("control"), region=REGION),
        "given": node("TileControlOutput", conditioning=out("u~positive"), **sizes), "u": node("DistributedSink", images=out("given")),
    }  # fmt: skip
    assert tile_images(engine, ours).tobytes() == expected.tobytes()


def test_a_control_lora_stays_one_and_keeps_its_chain(engine: EngineClient, plain: PlainComfyUI) -> None:
    prompt = {
        **BASE, "lora": node("TileControlLora"), "one": controlled("canvas"),
        "two": {**controlled("canvas", (out("one"), out("one", 1))), "inputs": {
            **controlled("canvas", (out("one"), out("one", 1)))["inputs"], "control_net": out("lora"),
        }},
        **placed(INNER), "u~positive": node("DistributedTileConditioning", conditioning=out("two"), region=REGION),
        "hint": node("TileControlHint", conditioning=out("u~positive")), "u": node("DistributedSink", images=out("hint")),
    }  # fmt: skip
    answer = engine.run(prompt, "u", "hint")
    assert answer["outputs"]["hint"]["names"] == ["ControlLora", "ControlNetSD35"]
    expected = plain.images({**BASE, **hand_crop("canvas", INNER)}, "canvas-cut")
    assert answer["arrays"]["u", "images", 0].tobytes() == expected.tobytes()


# -- areas and masks ----------------------------------------------------------------------------------------------------
def regional(area: dict[str, Any]) -> Prompt:
    """A prompt for all and one for an area."""
    return {"area": area, "both": node("ConditioningCombine", conditioning_1=out("good"), conditioning_2=out("area"))}


def test_an_area_that_sticks_into_the_tile(engine: EngineClient, plain: PlainComfyUI) -> None:
    def area(width: int, height: int, x: int, y: int) -> Prompt:
        box = {"width": width, "height": height, "x": x, "y": y}
        return {**BASE, **regional(node("ConditioningSetArea", conditioning=out("other"), strength=2.0, **box))}

    ours = tile(area(128, 192, 0, 0), out("both"), out("bad"), INNER)
    theirs = {**area(64, 96, 0, 0), **sampled(out("both"), out("bad"), INNER)}
    assert_same(engine, plain, ours, theirs, unlike={**BASE, **sampled(out("good"), out("bad"), INNER)})


def test_an_area_in_parts_of_the_canvas(engine: EngineClient, plain: PlainComfyUI) -> None:
    kind = "ConditioningSetAreaPercentage"
    part = node(kind, conditioning=out("other"), width=0.5, height=1.0, x=0.5, y=0.0, strength=2.0)
    ours = tile({**BASE, **regional(part)}, out("both"), out("bad"), INNER)
    by_hand = node(kind, conditioning=out("other"), width=0.5, height=1.0, x=0.5, y=0.0, strength=2.0)  # 128 to 192 of 64 to 192
    theirs = {**BASE, **regional(by_hand), **sampled(out("both"), out("bad"), INNER)}
    assert_same(engine, plain, ours, theirs, unlike={**BASE, **sampled(out("good"), out("bad"), INNER)})


def test_an_area_of_another_tile_costs_and_changes_nothing(engine: EngineClient, plain: PlainComfyUI) -> None:
    far = node("ConditioningSetArea", conditioning=out("other"), width=64, height=64, x=192, y=128, strength=2.0)
    ours = tile({**BASE, **regional(far)}, out("both"), out("bad"), INNER)
    theirs = {**BASE, **sampled(out("good"), out("bad"), INNER)}
    assert_same(engine, plain, ours, theirs, unlike={**BASE, **sampled(out("other"), out("bad"), INNER)})


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
@pytest.mark.parametrize("region", [INNER, {**CORNER, "width": 112, "process_width": 112, "height": 88, "process_height": 88}])
def test_a_mask(engine: EngineClient, plain: PlainComfyUI, bounds: str, region: dict[str, int]) -> None:
    masks = {
        **BASE, "spot": node("SolidMask", value=1.0, width=100, height=90),
        "black": node("SolidMask", value=0.0, width=WIDTH, height=HEIGHT),
        "mask": node("MaskComposite", destination=out("black"), source=out("spot"), x=110, y=70, operation="add"),
    }  # fmt: skip
    box = {"x": region["left"], "y": region["top"], "width": region["width"], "height": region["height"]}

    def masked(mask: str) -> Prompt:
        return regional(node("ConditioningSetMask", conditioning=out("other"), mask=out(mask), strength=3.0, set_cond_area=bounds))

    ours = tile({**masks, **masked("mask")}, out("both"), out("bad"), region)
    cut = {**masks, "cut": node("CropMask", mask=out("mask"), **box)}
    theirs = {**cut, **masked("cut"), **sampled(out("both"), out("bad"), region)}
    assert_same(engine, plain, ours, theirs, unlike={**BASE, **sampled(out("good"), out("bad"), region)})


# -- latents and patches ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fact", ["reference_latents", "concat_latent_image", "concat_mask"])
def test_latents_and_masks_for_the_model(engine: EngineClient, plain: PlainComfyUI, fact: str) -> None:
    given = {
        **BASE, "latent": node("VAEEncode", pixels=out("canvas"), vae=out("vae")),
        "mask": node("ImageToMask", image=out("canvas"), channel="red"),
        "inpaint": node(
            "InpaintModelConditioning", positive=out("good"), negative=out("bad"), vae=out("vae"), pixels=out("canvas"), mask=out("mask"),
            noise_mask=False,
        ),
        "all": node("ReferenceLatent", conditioning=out("inpaint"), latent=out("latent")),
    }  # fmt: skip
    whole = plain.images({**given, "fact": node("TileFact", conditioning=out("all"), fact=fact)}, "fact")
    ours = tile_images(engine, {
        **given, **placed(INNER), "u~positive": node("DistributedTileConditioning", conditioning=out("all"), region=REGION),
        "fact": node("TileFact", conditioning=out("u~positive"), fact=fact), "u": node("DistributedSink", images=out("fact")),
    })  # fmt: skip
    scale = 1 if fact == "concat_mask" else 8
    box = whole[..., 32 // scale : 128 // scale, 64 // scale : 192 // scale]
    assert ours.shape == box.shape and ours.tobytes() == numpy.ascontiguousarray(box).tobytes()


def test_the_image_and_mask_in_a_patch_of_the_model(engine: EngineClient, plain: PlainComfyUI) -> None:
    base = {**BASE, "mask": node("ImageToMask", image=out("canvas"), channel="red")}
    box = {"x": INNER["left"], "y": INNER["top"], "width": INNER["width"], "height": INNER["height"]}
    cut = {
        **base, **hand_crop("canvas", INNER), "mask-cut": node("CropMask", mask=out("mask"), **box),
        "patched": node("TileModelPatch", model=out("model"), vae=out("vae"), image=out("canvas-cut"), mask=out("mask-cut")),
    }  # fmt: skip
    expected = plain.images({**cut, "see": node("TilePatchImage", model=out("patched"), other=out("patched"))}, "see")
    answer = engine.run({
        **base, "patched": node("TileModelPatch", model=out("model"), vae=out("vae"), image=out("canvas"), mask=out("mask")),
        **placed(INNER), "u~model": node("DistributedTileModel", model=out("patched"), region=REGION),
        "see": node("TilePatchImage", model=out("u~model"), other=out("patched")), "u": node("DistributedSink", images=out("see")),
    }, "u", "see")  # fmt: skip
    assert answer["arrays"]["u", "images", 0].tobytes() == expected.tobytes()
    assert answer["outputs"]["see"] == {"shared": [True, True, False], "other": [1, HEIGHT, WIDTH, 3]}


# -- noise --------------------------------------------------------------------------------------------------------------
def noise(size: int, *, first: int = 0, frames: int = 5, placed_by: str = "") -> Prompt:
    """``noise`` gives what a sampler would draw for some of five frames; ``placed_by`` tells the latent which these are."""
    box = {"canvas_width": size, "canvas_height": size, "left": 0, "top": 0, "width": size, "height": size, "process_width": size,
           "process_height": size}  # fmt: skip
    part = {"canvas_frames": 5, "first_frame": first, "frames": frames} if frames < 5 else {}
    latents = {"": "part", "comfyui": "theirs", "us": "ours"}
    return {
        "all": node("EmptyLatentImage", width=size, height=size, batch_size=5),
        "part": node("EmptyLatentImage", width=size, height=size, batch_size=frames),
        "theirs": node("LatentFromBatch", samples=out("all"), batch_index=first, length=frames),
        **placed(box, **part),
        "ours": node("DistributedTileLatent", latent=out("part"), region=REGION),
        "noise": node("TileNoise", latent=out(latents[placed_by]), seed=7),
        "u": node("DistributedSink", images=out("noise")),
    }


@pytest.mark.parametrize(("first", "frames"), [(0, 2), (2, 3), (4, 1)])
def test_frames_of_a_clip_get_the_noise_that_they_have_in_the_whole_clip(
    engine: EngineClient, plain: PlainComfyUI, first: int, frames: int
) -> None:
    ours = tile_images(engine, noise(64, first=first, frames=frames, placed_by="us"))
    assert ours.shape == (frames, 4, 8, 8)
    assert ours.tobytes() == plain.images(needed(noise(64)), "noise")[first : first + frames].tobytes()
    assert ours.tobytes() == plain.images(needed(noise(64, first=first, frames=frames, placed_by="comfyui")), "noise").tobytes()


def needed(prompt: Prompt) -> Prompt:
    """Without our nodes."""
    return {node_id: one for node_id, one in prompt.items() if not one["class_type"].startswith("Distributed")}


def test_where_a_frame_is_no_whole_number_of_torchs_blocks_all_groups_still_agree(engine: EngineClient, plain: PlainComfyUI) -> None:
    """4 x 5 x 5 numbers: a batch drawn at once differs from frames one by one, so an item with all frames tells their places, too."""
    whole = tile_images(engine, noise(40, placed_by="us"))
    parts = [tile_images(engine, noise(40, first=first, frames=frames, placed_by="us")) for first, frames in ((0, 2), (2, 3))]
    assert numpy.concatenate(parts).tobytes() == whole.tobytes()
    at_once = plain.images(needed(noise(40)), "noise")
    assert at_once.shape == whole.shape and at_once.tobytes() != whole.tobytes(), "else there were no need for it"


# -- what a tile costs --------------------------------------------------------------------------------------------------
def test_the_second_tile_loads_nothing_and_runs_only_its_own_nodes(engine: EngineClient) -> None:
    prompt = {**BASE, "control": controlled("canvas")}
    engine.send("free")
    first = engine.run(tile(prompt, out("control"), out("control", 1), INNER), "u")
    assert first["loads"] == 3 and {"model", "vae", "net", "good", "bad", "control"} <= set(first["started"])
    second = engine.run(tile(prompt, out("control"), out("control", 1), CORNER), "u")
    own = {"u", "u~regions", "u~model", "u~positive", "u~negative", "u~encode", "u~sample", "u~decode", "canvas-box", "canvas-cut"}
    assert (second["loads"], set(second["started"])) == (0, own)


@pytest.mark.parametrize("stand_in", [VAEEncode, KSampler, VAEDecode, VAEDecodeTiled])
def test_the_built_in_engine_declares_the_same_inputs(plain: PlainComfyUI, stand_in: Any) -> None:
    theirs = plain.object_info()[stand_in.__name__]
    ours = stand_in.INPUT_TYPES()["required"]
    assert list(ours) == list(theirs["input"]["required"])
    for name, (kind, *options) in ours.items():
        their_kind, *their_options = theirs["input"]["required"][name]
        limits, their_limits = (
            {key: value for each in given for key, value in each.items() if key in ("default", "min", "max", "step")}
            for given in (options, their_options)
        )
        assert limits == their_limits
        assert set(kind) <= set(their_kind) if isinstance(kind, list) else kind == their_kind
    assert list(stand_in.RETURN_TYPES) == theirs["output"]


def test_the_upscale_node_offers_comfyuis_samplers(engine: EngineClient, plain: PlainComfyUI) -> None:
    stock = plain.object_info()["KSampler"]["input"]["required"]
    capability = engine.describe()
    for name in ("sampler_name", "scheduler"):
        offered = capability.choice_lists[capability.choices["UltimateSDUpscaleDistributed"][name]]
        assert list(offered) == stock[name][0]

"""UI files of the shape of ComfyUI-Distributed's five example workflows: their node sets, links and orders of widget values, by hand."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.comfyui.saved_workflows import OLD_COLLECTOR, Link, Workflow, saved_node, workflow

CONTROL = "control_after_generate"
"""A widget's value that is saved and never sent."""


@dataclass
class Example:
    """A file, and what is to become of it."""

    nodes: list[Workflow] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    values: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Node -> widget -> stored value, in the order of the file."""
    missing: set[int] = field(default_factory=set)
    """Nodes of a pack that is not installed."""

    def add(
        self, kind: str, values: Mapping[str, Any] | None = None, inputs: str = "", outputs: str = "", *, widget: str = "", mode: int = 0,
        stored: Any = None,
    ) -> int:  # fmt: skip
        """A node; its id.

        Args:
            values: widget -> value, in the order in which they are stored.
            inputs: ``name:TYPE name:TYPE``; ``outputs`` likewise.
            widget: the input of this name is a widget that was made one.
            mode: 4: bypassed.
            stored: ``widgets_values`` where they are no list.
        """
        number = len(self.nodes) + 1
        slots = [[slot.replace(":", " ") for slot in given.split()] for given in (inputs, outputs)]
        saved = stored if stored is not None else list((values or {}).values())
        node = saved_node(number, kind, values=saved, inputs=slots[0], outputs=slots[1], mode=mode)
        for slot in node["inputs"]:
            if slot["name"] == widget:
                slot["widget"] = {"name": widget}
        self.nodes.append(node)
        self.values[number] = dict(values or {})
        return number

    def link(self, source: int, slot: int, target: int, name: str) -> None:
        """From an output to the input of a name."""
        inputs = self.nodes[target - 1]["inputs"]
        place = next(place for place, found in enumerate(inputs) if found["name"] == name)
        self.links.append((source, slot, target, place))

    def file(self) -> Workflow:
        """As it is saved."""
        return workflow(self.nodes, self.links)


def _chain(example: Example, source: int, targets: Iterable[tuple[int, str]], slot: int = 0) -> None:
    for target, name in targets:
        example.link(source, slot, target, name)


def _texts(example: Example, source: int, slot: int) -> tuple[int, int]:
    """The two prompts behind a CLIP."""
    found = [example.add("CLIPTextEncode", {"text": text}, "clip:CLIP", "CONDITIONING:CONDITIONING") for text in ("a fox", "blurry, low")]
    _chain(example, source, [(one, "clip") for one in found], slot)
    return found[0], found[1]


def _videos(example: Example, collector: int, parts: int) -> None:
    """A divider, and a video of each part."""
    outputs = " ".join(f"batch_{part}:IMAGE" for part in range(1, 11))
    divider = example.add("ImageBatchDivider", {"divide_by": parts}, "images:IMAGE", outputs)
    example.link(collector, 0, divider, "images")
    for part in range(parts):
        made = example.add("CreateVideo", {"fps": 16.0}, "images:IMAGE audio:AUDIO", "VIDEO:VIDEO")
        saved = example.add(
            "SaveVideo", {"filename_prefix": f"video/part{part}", "format": "mp4", "codec": "h264"}, "video:VIDEO"
        )  # fmt: skip
        example.link(divider, part, made, "images")
        example.link(made, 0, saved, "video")


def _collector(example: Example, decode: int) -> int:
    collector = len(example.nodes) + 1
    example.nodes.append(saved_node(collector, "DistributedCollector", **OLD_COLLECTOR))
    example.values[collector] = {}
    example.link(decode, 0, collector, "images")
    return collector


def txt2img() -> Example:
    """A seed in front of the sampler, a collector behind the decoder."""
    made = Example()
    model = made.add("CheckpointLoaderSimple", {"ckpt_name": "sd/v1.safetensors"}, "", "MODEL:MODEL CLIP:CLIP VAE:VAE")
    good, bad = _texts(made, model, 1)
    empty = made.add("EmptyLatentImage", {"width": 640, "height": 448, "batch_size": 3}, "", "LATENT:LATENT")
    seed = made.add("DistributedSeed", {"seed": 987654321, CONTROL: "randomize"}, "", "seed:INT")
    sampler = made.add(
        "KSampler",
        {"seed": 5, CONTROL: "randomize", "steps": 23, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 0.9},
        "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT seed:INT", "LATENT:LATENT", widget="seed",
    )  # fmt: skip
    _chain(made, model, [(sampler, "model")])
    for source, name in ((good, "positive"), (bad, "negative"), (empty, "latent_image"), (seed, "seed")):
        made.link(source, 0, sampler, name)
    decode = made.add("VAEDecode", None, "samples:LATENT vae:VAE", "IMAGE:IMAGE")
    made.link(sampler, 0, decode, "samples")
    made.link(model, 2, decode, "vae")
    shown = made.add("PreviewImage", None, "images:IMAGE")
    made.link(_collector(made, decode), 0, shown, "images")
    return made


def _upscale(made: Example, **changes: Any) -> int:
    values = {
        "seed": 2**50 + 1, CONTROL: "fixed", "steps": 20, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.3,
        "tile_width": 768, "tile_height": 640, "padding": 48, "mask_blur": 16, "force_uniform_tiles": False, "tiled_decode": True,
    }  # fmt: skip
    inputs = "upscaled_image:IMAGE model:MODEL positive:CONDITIONING negative:CONDITIONING vae:VAE"
    return made.add("UltimateSDUpscaleDistributed", {**values, **changes}, inputs, "IMAGE:IMAGE")


def upscale() -> Example:
    """A ControlNet chain in front of the upscale; the upscaling by a model is bypassed."""
    made = Example()
    picture = made.add("LoadImage", {"image": "fox.png", "upload": "image"}, "", "IMAGE:IMAGE MASK:MASK")
    upscaler = made.add("UpscaleModelLoader", {"model_name": "4x.pth"}, "", "UPSCALE_MODEL:UPSCALE_MODEL")
    bypassed = made.add("ImageUpscaleWithModel", None, "upscale_model:UPSCALE_MODEL image:IMAGE", "IMAGE:IMAGE", mode=4)
    control = made.add("ControlNetLoader", {"control_net_name": "tile.safetensors"}, "", "CONTROL_NET:CONTROL_NET")
    model = made.add("CheckpointLoaderSimple", {"ckpt_name": "xl.safetensors"}, "", "MODEL:MODEL CLIP:CLIP VAE:VAE")
    good, bad = _texts(made, model, 1)
    apply = made.add(
        "ControlNetApplyAdvanced", {"strength": 0.65, "start_percent": 0.1, "end_percent": 0.8},
        "positive:CONDITIONING negative:CONDITIONING control_net:CONTROL_NET image:IMAGE vae:VAE",
        "positive:CONDITIONING negative:CONDITIONING",
    )  # fmt: skip
    tiles = _upscale(made)
    shown = made.add("PreviewImage", None, "images:IMAGE")
    for source, slot, target, name in (
        (picture, 0, bypassed, "image"), (upscaler, 0, bypassed, "upscale_model"), (good, 0, apply, "positive"),
        (bad, 0, apply, "negative"), (control, 0, apply, "control_net"), (picture, 0, apply, "image"),
        (bypassed, 0, tiles, "upscaled_image"), (model, 0, tiles, "model"),
        (apply, 0, tiles, "positive"), (apply, 1, tiles, "negative"), (model, 2, tiles, "vae"), (tiles, 0, shown, "images"),
    ):  # fmt: skip
        made.link(source, slot, target, name)
    return made


def upscale_video() -> Example:
    """Frames of a video; the nodes that load and write it are of a pack that not everybody has."""
    made = Example()
    load = made.add("VHS_LoadVideo", None, "", "IMAGE:IMAGE frame_count:INT audio:AUDIO", stored={"video": "clip.mp4", "force_rate": 0})
    model = made.add("UNETLoader", {"unet_name": "wan.safetensors", "weight_dtype": "fp8_e4m3fn"}, "", "MODEL:MODEL")
    clip = made.add("CLIPLoader", {"clip_name": "umt5.safetensors", "type": "wan", "device": "default"}, "", "CLIP:CLIP")
    vae = made.add("VAELoader", {"vae_name": "wan_vae.safetensors"}, "", "VAE:VAE")
    good, bad = _texts(made, clip, 0)
    tiles = _upscale(made, steps=5, cfg=1.0, denoise=0.35, tile_width=1024, tile_height=1024)
    write = made.add("VHS_VideoCombine", None, "images:IMAGE audio:AUDIO", "Filenames:VHS_FILENAMES", stored={"frame_rate": 16})
    made.missing |= {load, write}
    for source, slot, target, name in (
        (load, 0, tiles, "upscaled_image"), (model, 0, tiles, "model"), (good, 0, tiles, "positive"), (bad, 0, tiles, "negative"),
        (vae, 0, tiles, "vae"), (tiles, 0, write, "images"), (load, 2, write, "audio"),
    ):  # fmt: skip
        made.link(source, slot, target, name)
    return made


def wan() -> Example:
    """A seed for the noise of a sampler in parts, and three videos."""
    made = Example()
    model = made.add("UNETLoader", {"unet_name": "wan.safetensors", "weight_dtype": "default"}, "", "MODEL:MODEL")
    clip = made.add("CLIPLoader", {"clip_name": "umt5.safetensors", "type": "wan", "device": "default"}, "", "CLIP:CLIP")
    vae = made.add("VAELoader", {"vae_name": "wan_vae.safetensors"}, "", "VAE:VAE")
    good, bad = _texts(made, clip, 0)
    empty = made.add("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 33, "batch_size": 1}, "", "LATENT:LATENT")
    seed = made.add("DistributedSeed", {"seed": 1125899906842624, CONTROL: "fixed"}, "", "seed:INT")
    noise = made.add("RandomNoise", {"noise_seed": 1, CONTROL: "randomize"}, "noise_seed:INT", "NOISE:NOISE", widget="noise_seed")
    chosen = made.add("KSamplerSelect", {"sampler_name": "uni_pc"}, "", "SAMPLER:SAMPLER")
    sigmas = made.add("BasicScheduler", {"scheduler": "simple", "steps": 30, "denoise": 1.0}, "model:MODEL", "SIGMAS:SIGMAS")
    guider = made.add("CFGGuider", {"cfg": 6.0}, "model:MODEL positive:CONDITIONING negative:CONDITIONING", "GUIDER:GUIDER")
    inputs = "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT"
    sampler = made.add("SamplerCustomAdvanced", None, inputs, "output:LATENT denoised_output:LATENT")
    decode = made.add("VAEDecode", None, "samples:LATENT vae:VAE", "IMAGE:IMAGE")
    for source, target, name in (
        (seed, noise, "noise_seed"), (model, sigmas, "model"), (model, guider, "model"), (good, guider, "positive"),
        (bad, guider, "negative"), (noise, sampler, "noise"), (guider, sampler, "guider"), (chosen, sampler, "sampler"),
        (sigmas, sampler, "sigmas"), (empty, sampler, "latent_image"), (sampler, decode, "samples"), (vae, decode, "vae"),
    ):  # fmt: skip
        made.link(source, 0, target, name)
    _videos(made, _collector(made, decode), 3)
    return made


def wan_2_2() -> Example:
    """Two samplers, one after the other, with the same seed, and four videos."""
    made = Example()
    models = [
        made.add("UNETLoader", {"unet_name": f"{noise}_noise.safetensors", "weight_dtype": "default"}, "", "MODEL:MODEL")
        for noise in ("high", "low")
    ]
    clip = made.add("CLIPLoader", {"clip_name": "umt5.safetensors", "type": "wan", "device": "default"}, "", "CLIP:CLIP")
    vae = made.add("VAELoader", {"vae_name": "wan_vae.safetensors"}, "", "VAE:VAE")
    good, bad = _texts(made, clip, 0)
    latent = made.add("EmptyHunyuanLatentVideo", {"width": 640, "height": 640, "length": 81, "batch_size": 1}, "", "LATENT:LATENT")
    seed = made.add("DistributedSeed", {"seed": 42, CONTROL: "increment"}, "", "seed:INT")
    for number, model in enumerate(models):
        sampler = made.add(
            "KSamplerAdvanced",
            {"add_noise": "disable" if number else "enable", "noise_seed": 7, CONTROL: "randomize", "steps": 20, "cfg": 3.5,
             "sampler_name": "euler", "scheduler": "simple", "start_at_step": 10 * number, "end_at_step": 10 + 9990 * number,
             "return_with_leftover_noise": "disable" if number else "enable"},
            "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT noise_seed:INT", "LATENT:LATENT",
            widget="noise_seed",
        )  # fmt: skip
        for source, name in ((model, "model"), (good, "positive"), (bad, "negative"), (latent, "latent_image"), (seed, "noise_seed")):
            made.link(source, 0, sampler, name)
        latent = sampler
    decode = made.add("VAEDecode", None, "samples:LATENT vae:VAE", "IMAGE:IMAGE")
    made.link(latent, 0, decode, "samples")
    made.link(vae, 0, decode, "vae")
    _videos(made, _collector(made, decode), 4)
    return made


EXAMPLES = {"txt2img": txt2img, "upscale": upscale, "upscale-video": upscale_video, "wan": wan, "wan-2.2_14b_t2v": wan_2_2}

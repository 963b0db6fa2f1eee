"""Node classes that show what became of a seed, the same file for both engines.

A ComfyUI worker finds it copied into custom_nodes, a built-in one is given `node_classes` as its node provider.  Each call appends a line
to the file that RULE_LOG names, so a test can count executions of nodes.
"""
from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path

try:
    import folder_paths

    OUTPUT = Path(folder_paths.get_output_directory())
except ImportError:  # the built-in engine: a process that runs in its worker's own folder
    OUTPUT = Path("output").absolute()

SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})
SIDE = ("INT", {"default": 16, "min": 1, "max": 4096})
COUNT = ("INT", {"default": 1, "min": 0, "max": 64})
TEXT = ("STRING", {"default": ""})


def note(kind, what):
    """One line for the test to read."""
    if os.environ.get("RULE_LOG"):
        with open(os.environ["RULE_LOG"], "a", encoding="utf-8") as log:
            log.write(f"{kind} {what}\n")


def picture(seed, size, position=0):
    """[B, H, W, C]: the seed's eight bytes along the first row of channel 0, the place in the list and batch in channel 1."""
    import torch

    batch_size, height, width, channels = size
    images = torch.full((batch_size, height, width, channels), -0.5)
    images[:, 0, :8, 0] = torch.tensor(list(int(seed).to_bytes(8, "little")), dtype=torch.float32)
    if channels > 1:
        images[:, 0, :, 1] = position + torch.arange(batch_size)[:, None] / 64
    return images


class Rule:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "run", ("IMAGE",)


class RuleImage(Rule):
    """Pictures of a seed; with ``grow`` those of odd seeds are wider."""

    @classmethod
    def INPUT_TYPES(cls):
        sizes = {"width": SIDE, "height": SIDE, "batch_size": COUNT, "channels": COUNT}
        return {"required": {"seed": SEED, **sizes}, "optional": {"grow": ("INT", {"default": 0, "min": 0, "max": 64})}}

    def run(self, seed, width, height, batch_size, channels, grow=0):
        note("RuleImage", seed)
        return (picture(seed, (batch_size, height, width + grow * (seed % 2), channels)),)


class RuleList(Rule):
    """A list of as many batches as asked for; none for a seed that ``skip`` divides."""

    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": SEED, "length": COUNT, "batch_size": COUNT, "skip": COUNT}}

    def run(self, seed, length, batch_size, skip):
        note("RuleList", seed)
        empty = skip and seed % skip == 0
        return ([] if empty else [picture(seed, (batch_size, 8, 16, 3), position) for position in range(length)],)


class RuleSplit(Rule):
    """A value of each kind, all from one seed; the last one cannot leave its process."""

    RETURN_TYPES = ("IMAGE", "MASK", "LATENT", "AUDIO", "INT", "FLOAT", "STRING", "BOOLEAN", "RULE_MODEL")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": SEED}}

    def run(self, seed):
        import torch

        note("RuleSplit", seed)
        audio = {"waveform": torch.full((1, 2, 3), float(seed % 97)), "sample_rate": 44100}
        latent = {"samples": torch.full((1, 4, 2, 2), seed % 97 + 0.5), "batch_index": [3]}
        whole = picture(seed, (1, 8, 16, 3))
        return (whole, whole[..., 0], latent, audio, seed, seed / 3, f"seed {seed} \u2713", seed % 2 == 1, {"seed": seed})


class RuleMask(Rule):
    """The first channel of images."""

    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        return (images[..., 0],)


class RuleModel(Rule):
    """A constant that cannot leave its process, as a loader gives it."""

    RETURN_TYPES = ("RULE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": TEXT}}

    def run(self, name):
        note("RuleModel", name)
        return ({"seed": name},)


class RuleTap(Rule):
    """An output node that also hands its images on."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        note("RuleTap", len(images))
        return {"ui": {}, "result": (images,)}


class RuleFail(Rule):
    """Raises for one seed."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "seed": SEED, "bad_seed": SEED}}

    def run(self, images, seed, bad_seed):
        if seed == bad_seed:
            raise ValueError(f"seed {seed} brings no luck")
        return (images,)


class RuleGate(Rule):
    """Passes a model on, unless there is a file of this name."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "closed": TEXT}}

    def run(self, model, closed):
        if os.path.exists(closed):
            raise ValueError("the gate is closed")
        return (model,)


class RuleBroken(Rule):
    """Images whose last one has a pixel that is no number."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        images = images.clone()
        images[-1, 1, 2, 0] = float("nan")
        return (images,)


class NarrowVae:
    """A VAE that loses the last eight columns."""

    def __init__(self, vae):
        self.encode, self._vae = vae.encode, vae

    def decode(self, samples):
        return self._vae.decode(samples)[:, :, :-8]


class RuleNarrowVae(Rule):
    """A VAE whose images are narrower than what it was given."""

    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def run(self, vae):
        return (NarrowVae(vae),)


class RuleSlow(Rule):
    """Takes its time."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "milliseconds": ("INT", {"default": 0, "min": 0, "max": 60_000})}}

    def run(self, images, milliseconds):
        note("RuleSlow", milliseconds)
        time.sleep(milliseconds / 1000)
        return (images,)


class RuleStep(Rule):
    """One step of an item: takes its time, and notes afterwards that a device was busy with it; never taken from a cache."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "milliseconds": ("INT", {"default": 0, "min": 0, "max": 60_000})}}

    def run(self, images, milliseconds):
        time.sleep(milliseconds / 1000)
        note("RuleStep", milliseconds)
        return (images,)

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


class RuleBegin(Rule):
    """Notes that an item begins, before anything that takes its seed from here; never taken from a cache."""

    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": SEED}}

    def run(self, seed):
        note("RuleBegin", seed)
        return (seed,)

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


class RuleMishap(Rule):
    """Does what a file in ``folder`` that is called like the seed says, and takes the file away, unless it says that it stays.

    ``memory at one`` stays, and happens on the worker ``one`` alone.  On a worker whose RULE_MISHAP names something, it does that for
    every seed.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "seed": SEED, "folder": TEXT}}

    def run(self, images, seed, folder):
        if os.environ.get("RULE_MISHAP"):
            MISHAPS[os.environ["RULE_MISHAP"]]()
        order = Path(folder, str(seed))
        if folder and order.is_file():
            kind, _, how = order.read_text("utf-8").partition(" ")
            if not how:
                order.unlink()
            if not how.startswith("at ") or how == f"at {os.environ['DC_WORKER_NAME']}":
                MISHAPS[kind]()
        return (images,)


def run_out_of_memory():
    """As torch does it when it allocates."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def hang():
    """No step, no sign of life, for longer than any test waits."""
    time.sleep(600)


def break_off():
    """A fault in native code."""
    ctypes.string_at(0)


MISHAPS = {"memory": run_out_of_memory, "hang": hang, "segfault": break_off}


class MasterLacksMemory(Rule):
    """Needs more memory than a ComfyUI has that is told so by the variable of this name."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        if os.environ.get("MASTER_LACKS_MEMORY"):
            raise MemoryError("no room for another picture")
        return (images,)


class RuleForeign(Rule):
    """Is not there in a ComfyUI that is told so."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        return (images,)


class RuleRecord(Rule):
    """Writes all it is given into a JSON file; of images, the seeds that they show."""

    RETURN_TYPES, OUTPUT_NODE = (), True

    @classmethod
    def INPUT_TYPES(cls):
        def linked(kind):
            return (kind, {"forceInput": True})

        values = {
            "images": ("IMAGE",), "mask": ("MASK",), "latent": ("LATENT",), "audio": ("AUDIO",), "number": linked("INT"),
            "real": linked("FLOAT"), "text": linked("STRING"), "flag": linked("BOOLEAN"), "model": ("RULE_MODEL",),
        }  # fmt: skip
        return {"required": {"label": TEXT}, "optional": values}

    def run(self, label, **values):
        note("RuleRecord", label)
        name = f"{label}.json"
        OUTPUT.mkdir(exist_ok=True)
        OUTPUT.joinpath(name).write_text(json.dumps({key: plain(value) for key, value in values.items()}), encoding="utf-8")
        return {"ui": {"records": [{"filename": name, "subfolder": "", "type": "output"}]}}


def plain(value):
    """A value as JSON: tensors as nested lists, numbers as they are."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return value


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        RuleImage, RuleList, RuleSplit, RuleMask, RuleModel, RuleTap, RuleFail, RuleGate, RuleBroken, RuleNarrowVae, RuleSlow, RuleRecord,
        RuleStep, RuleBegin, RuleMishap, MasterLacksMemory, RuleForeign,
    )
}  # fmt: skip
if os.environ.get("MASTER_LACKS_CLASS"):
    del NODE_CLASS_MAPPINGS["RuleForeign"]


def loader(models):
    """A node whose list shows these models, as a loader of ComfyUI shows the files of a folder."""

    class RuleLoader(Rule):
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"ckpt_name": (models,), "images": ("IMAGE",)}}

        def run(self, ckpt_name, images):
            return (images,)

    return RuleLoader


def node_classes(context, *, nothing=()):
    """The cluster's own classes and these, for the built-in engine."""
    from distributed_comfy.nodes import registry

    if os.environ.get("RULE_DEVICE_CLASS"):  # plays a device that is none of the other workers'
        from distributed_comfy.engine.builtin import engine

        engine.BUILTIN_VERSION += f" {os.environ['RULE_DEVICE_CLASS']}"
    models = os.environ.get("RULE_MODELS", "").split()
    return {**registry.node_classes(context, nothing=nothing), **NODE_CLASS_MAPPINGS, **({"RuleLoader": loader(models)} if models else {})}

"""A node pack whose nodes do what the engine must cope with; it is copied into custom_nodes, nothing here imports it."""
from __future__ import annotations

import json
import os
import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder


class Node:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "run", ("IMAGE",)


class OutputNode(Node):
    RETURN_TYPES, OUTPUT_NODE = (), True


class ProbeBlock(Node):
    """Blocks its images, silently or with a message."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "block": ("BOOLEAN", {"default": True}), "message": ("STRING", {"default": ""})}}

    def run(self, images, block, message):
        return (ExecutionBlocker(message or None) if block else images,)


class ProbeLazy(Node):
    """Asks for its images only if switched on."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE", {"lazy": True}), "on": ("BOOLEAN", {"default": True})}}

    def check_lazy_status(self, images, on):
        return ["images"] if on and images is None else []

    def run(self, images, on):
        return (images,)


class ProbeRaise(Node):
    """Raises what it is told to."""

    @classmethod
    def INPUT_TYPES(cls):
        kinds = ["ValueError", "OutOfMemoryError", "MemoryError", "allocator", "interrupt", "text"]
        return {"required": {"images": ("IMAGE",), "kind": (kinds,)}}

    def run(self, images, kind):
        if kind == "OutOfMemoryError":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        if kind == "MemoryError":
            raise MemoryError
        if kind == "allocator":
            torch.empty(2**50)
        if kind == "interrupt":
            raise comfy.model_management.InterruptProcessingException
        raise ValueError("the sampler ran out of memory of better days" if kind == "text" else "no such thing")


class ProbeSteps(Node):
    """Takes its time, with a progress bar; a stubborn one carries on when it is interrupted."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE",), "steps": ("INT", {"default": 50, "min": 1, "max": 10_000}),
                "stubborn": ("BOOLEAN", {"default": False}), "salt": ("INT", {"default": 0, "min": 0, "max": 2**50}),
            }
        }  # fmt: skip

    def run(self, images, steps, stubborn, salt):
        bar = comfy.utils.ProgressBar(steps)
        swallowed = 0
        for _ in range(steps):
            time.sleep(0.02)
            try:
                bar.update(1)
            except comfy.model_management.InterruptProcessingException:
                swallowed += 1
                if not stubborn or swallowed > 2:
                    raise
        return (images,)


class ProbeTicks(Node):
    """Steps of 20 ms, each noted with process and time in the file that RULE_LOG names."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "steps": ("INT", {"default": 50, "min": 1, "max": 10_000})}}

    def run(self, images, steps):
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            time.sleep(0.02)
            with open(os.environ["RULE_LOG"], "a", encoding="utf-8") as log:
                log.write(f"ProbeTicks {os.getpid()} {time.monotonic()}\n")
            bar.update(1)
        return (images,)


class ProbeModelFile(Node):
    """Passes images on where the models folder of this ComfyUI has a file of this name."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "name": ("STRING", {})}}

    def run(self, images, name):
        Path(folder_paths.models_dir, name).read_bytes()
        return (images,)


class ProbeExpand(Node):
    """Expands into a graph that inverts the images and saves them."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        graph = GraphBuilder()
        inverted = graph.node("ImageInvert", image=images)
        graph.node("SaveImage", images=inverted.out(0), filename_prefix="expanded")
        return {"result": (inverted.out(0),), "expand": graph.finalize()}


class ProbeCollectorExpand(Node):
    """Expands into a collector."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        graph = GraphBuilder()
        return {"result": (graph.node("DistributedCollector", images=images, load_balance=False).out(0),), "expand": graph.finalize()}


class ProbeWriter(OutputNode):
    """Writes files of several kinds and names them under several keys; ``odd`` adds what is no JSON, of which ComfyUI's server dies."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "odd": ("BOOLEAN", {"default": True})}}

    def run(self, images, odd):
        output, temp = Path(folder_paths.get_output_directory()), Path(folder_paths.get_temp_directory())
        (output / "deep" / "er").mkdir(parents=True, exist_ok=True)
        sound = output / "deep" / "er" / "sound.flac"
        for path, content in ((output / "clip.mp4", b"m"), (sound, b"f"), (temp / "shown.txt", b"t"), (output / "fixed.glb", b"g")):
            path.write_bytes(content * 3)
        (output.parent / "secret.txt").write_text("not yours")
        return {
            "ui": {
                "gifs": [{"filename": "clip.mp4", "subfolder": "", "type": "output", "format": "video/h264-mp4"}],
                "audio": [{"filename": "sound.flac", "subfolder": os.path.join("deep", "er"), "type": "output"}],
                "text": ["not a file", {"filename": "shown.txt", "subfolder": "", "type": "temp"}],
                "3d": [
                    {"filename": "fixed.glb", "subfolder": "", "type": "output"},
                    {"filename": "fixed.glb", "subfolder": "", "type": "output"},
                    {"filename": "secret.txt", "subfolder": "..", "type": "output"},
                    {"filename": "gone.glb", "subfolder": "", "type": "output"},
                ],
                "shown_inputs": [{"filename": "x.png", "subfolder": "", "type": "input"}],
                "odd": [object] if odd else [],
            }
        }  # fmt: skip


class ProbeArray(Node):
    """Images from a file of float32 numbers in the input folder, bit for bit."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}}

    def run(self, name):
        return (torch.from_numpy(numpy.load(Path(folder_paths.get_input_directory()) / name)),)


class ProbeArrayOut(OutputNode):
    """Images into a file of float32 numbers, bit for bit, that a worker sends home."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "name": ("STRING", {})}}

    def run(self, images, name):
        numpy.save(Path(folder_paths.get_output_directory()) / name, images.cpu().numpy())
        return {"ui": {"arrays": [{"filename": name, "subfolder": "", "type": "output"}]}}


class AnyInputs(dict):
    """Claims to hold every input, as several packs do."""

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        return super().__getitem__(key) if key in self.keys() else ("*",)


class ProbeAnyInput(OutputNode):
    """An output node that takes every input; tells which ones came, and its whole PROMPT."""

    @classmethod
    def INPUT_TYPES(cls):
        hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        return {"required": {"images": ("IMAGE",)}, "optional": AnyInputs(), "hidden": hidden}

    def run(self, prompt=None, extra_pnginfo=None, **inputs):
        return {"ui": {"inputs": sorted(inputs), "prompt": [prompt], "pnginfo": [extra_pnginfo]}}


class ProbeList(Node):
    """A list of images: one each of the sizes in ``sizes``."""

    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sizes": ("STRING", {"default": "8,16"})}}

    def run(self, sizes):
        return ([torch.full((1, int(size), int(size), 3), 2.5) for size in sizes.split(",") if size],)


class ProbeListing(Node):
    """Lists the input folder without marking the input as an upload."""

    @classmethod
    def INPUT_TYPES(cls):
        files = sorted(name for name in os.listdir(folder_paths.get_input_directory()) if name.endswith(".png"))
        return {"required": {"file": (files,), "vae": (folder_paths.get_filename_list("vae"),)}}

    def run(self, file, vae):
        return (torch.zeros(1, 8, 8, 3),)


class ProbeSelfValidated(Node):
    """Checks one of its two lists by itself."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"loose": (["a"],), "strict": (["a", "b"],), "seed": ("INT", {"default": 0, "min": 0, "max": 1000})}}

    @classmethod
    def VALIDATE_INPUTS(cls, loose):
        return True if loose != "bad" else "bad is bad"

    def run(self, loose, strict, seed):
        return (torch.zeros(1, 8, 8, 3),)


class ProbeRemote(Node):
    """A list that only the browser knows."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("COMBO", {"remote": {"route": "/names"}, "options": []})}}

    def run(self, name):
        return (torch.zeros(1, 8, 8, 3),)


class ProbeBroken(Node):
    """Cannot tell its inputs."""

    @classmethod
    def INPUT_TYPES(cls):
        raise OSError("the model server does not answer")

    def run(self):
        return ()


class ProbeV3(io.ComfyNode):
    """A new-style output node: saves its images and reports its list."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ProbeV3",
            category="testing",
            inputs=[io.Image.Input("images"), io.Combo.Input("mode", options=["a", "b"]), io.Int.Input("seed", default=0, min=0, max=77)],
            outputs=[io.Image.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, mode, seed):
        saved = ui.ImageSaveHelper.get_save_images_ui(images, "v3", cls=cls)
        return io.NodeOutput(images, ui=saved)


class ForeignSink(OutputNode):
    """Another pack's idea of our internal class."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        raise RuntimeError(json.dumps("the wrong sink"))


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        ProbeBlock, ProbeLazy, ProbeRaise, ProbeSteps, ProbeTicks, ProbeExpand, ProbeCollectorExpand, ProbeWriter, ProbeArray,
        ProbeArrayOut, ProbeAnyInput, ProbeModelFile, ProbeList, ProbeListing, ProbeSelfValidated, ProbeRemote, ProbeBroken, ProbeV3,
    )
} | {"DistributedSink": ForeignSink}  # fmt: skip

"""A node pack for ComfyUI that makes the tiny model of tiny_model.py usable; it is copied into custom_nodes, nothing here imports it."""
from __future__ import annotations

import os

import folder_paths
import numpy
import torch

CONTEXT, POOLED = 4096, 2048


class TinyConditioning:
    """A fixed random conditioning of SD3's width; `text` only picks the random seed."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "emit", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        return {"required": {"text": ("STRING", {"default": "a"})}}

    def emit(self, text):
        """16 tokens and a pooled vector."""
        generator = torch.Generator().manual_seed(sum(text.encode()))
        tokens = torch.randn(1, 16, CONTEXT, generator=generator) * 0.5
        return ([[tokens, {"pooled_output": torch.randn(1, POOLED, generator=generator) * 0.5}]],)


class TinyDump:
    """Saves an IMAGE as float32 .npy, unrounded."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "save", (), True

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "dump"})}}

    def save(self, images, filename_prefix):
        """Write ``<prefix>.npy`` into the output folder; with no prefix only swallow the images."""
        name = filename_prefix + ".npy"
        if filename_prefix:
            numpy.save(os.path.join(folder_paths.get_output_directory(), name), images.cpu().numpy())
        return {"ui": {"text": [name]}}


class TinyNoise:
    """Emits a random IMAGE."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "emit", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        number = ("INT", {"default": 1, "min": 1, "max": 2**31})
        return {"required": {"size": number, "batch_size": number, "seed": number}}

    def emit(self, size, batch_size, seed):
        """[batch_size, size, size, 3] in [0, 1)."""
        return (torch.rand(batch_size, size, size, 3, generator=torch.Generator().manual_seed(seed)),)


class TinyFail:
    """Passes an IMAGE on; raises where the variable TINY_FAIL is set."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "check", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",)}}

    def check(self, images):
        """The images, or a RuntimeError."""
        if os.environ.get("TINY_FAIL"):
            raise RuntimeError("out of memory (made up)")
        return (images,)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (TinyConditioning, TinyDump, TinyNoise, TinyFail)}

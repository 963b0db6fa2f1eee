"""A node pack that is not the same on every host, as packs are; it is copied into custom_nodes, nothing here imports it.

A host is told by the name of its worker; a master has none.
"""
from __future__ import annotations

import os
import time

import comfy.model_management
import torch

HOST = os.environ.get("DC_WORKER_NAME", "")
IMAGES = {"images": ("IMAGE",)}


class Uneven:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": IMAGES}

    def run(self, images, **_more):
        return (images,)


class UnevenOne(Uneven):
    """Is there on worker one."""


class UnevenTwo(Uneven):
    """Is there on worker two."""


class UnevenNewerOne(Uneven):
    """A version of worker one wants an input that no other has."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, **({"strength": ("FLOAT", {"min": 0.0})} if HOST == "one" else {})}}


class UnevenNewerWorkers(Uneven):
    """All workers have a version that wants an input that the master's does not."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, **({"strength": ("FLOAT", {"min": 0.0})} if HOST else {})}}


class UnevenFails(Uneven):
    """Raises on worker one."""

    def run(self, images):
        if HOST == "one":
            raise RuntimeError("no kernel image is available for execution on the device")
        return (images,)


class UnevenFailsHere(Uneven):
    """Raises on the master."""

    def run(self, images):
        if not HOST:
            raise RuntimeError("no kernel image is available for execution on the master")
        return (images,)


class UnevenModel(Uneven):
    """Has a model that is there on every host, as others are not."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, "model": (["everywhere.safetensors"],)}}


class UnevenMemory(Uneven):
    """Has room for a picture on worker one, for two on worker two, for three on the master."""

    def run(self, images):
        if len(images) > {"one": 1, "two": 2}.get(HOST, 3):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        return (images,)


class UnevenDeaf(Uneven):
    """Takes its time on the master, and heeds no interrupt meanwhile; it may set ComfyUI's flag itself, as packs do."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, "seconds": ("FLOAT", {"max": 60.0}), "interrupts": ("BOOLEAN", {"default": False})}}

    def run(self, images, seconds, interrupts):
        if not HOST:
            time.sleep(seconds / 2)
            if interrupts:
                comfy.model_management.interrupt_current_processing()
            time.sleep(seconds / 2)
        return (images,)


EVERYWHERE = (UnevenNewerOne, UnevenNewerWorkers, UnevenFails, UnevenFailsHere, UnevenModel, UnevenMemory, UnevenDeaf)
NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in EVERYWHERE}
NODE_CLASS_MAPPINGS.update({cls.__name__: cls for name, cls in (("one", UnevenOne), ("two", UnevenTwo)) if name == HOST})

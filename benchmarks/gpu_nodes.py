"""A node pack for ComfyUI, copied into custom_nodes: what gpu.py's prompts need beside ComfyUI's own nodes, and a trace of what happens.

Both our worker's engine and plain ComfyUI load it, so both are watched in the same way.  The trace is a file of JSON lines,
``<base directory>/trace/<process id>``: ``{"at": time.time(), "event": NAME, ...}``, one write of some microseconds per event:

    open       this process: kind (ours or plain), ComfyUI's arguments, allocator
    read       a model file is read from disk: seconds
    to_device  weights are moved to the device: bytes, seconds
    prompt     begin; end: allocated and reserved bytes of torch, peak since the last end, models loaded, graphs compiled
    sample     begin and end of a sampler node
    step       the model is called (with cfg once per step, both conditionings in one batch): what calls it, before any kernel of the step
    encode     begin and end of a VAE encode
    decode     begin and end of a VAE decode; the end is after the pixels are in main memory
    save       begin and end of SaveImage
    digest     the bits of a batch that arrived at GpuDigest: label, sums
    swallowed  an image has arrived at GpuSwallow
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.utils
import execution
import nodes
import torch

TRACE = Path(__file__).resolve().parent.parent / "trace"
CUDA = torch.cuda.is_available()


class GpuConditioning:
    """A fixed random conditioning as wide as a model wants it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "benchmark", "emit", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        number = ("INT", {"default": 1, "min": 1, "max": 2**20})
        return {"required": {"seed": number, "tokens": number, "width": number, "pooled": number}}

    def emit(self, seed, tokens, width, pooled):
        """[1, tokens, width] and [1, pooled], normally distributed."""
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens, width, generator=generator) * 0.5
        return ([[context, {"pooled_output": torch.randn(1, pooled, generator=generator) * 0.5}]],)


class GpuSwallow:
    """Takes an IMAGE and does nothing with it: the end of a prompt whose time is not that of PNG files."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "benchmark", "take", (), True

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",)}}

    def take(self, images):
        """Note its shape."""
        record("swallowed", shape=list(images.shape))
        return {"ui": {"shape": [list(images.shape)]}}


class GpuDigest:
    """Takes an IMAGE and notes the SHA-256 of each picture's bits."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "benchmark", "take", (), True

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",), "label": ("STRING", {"default": ""})}}

    def take(self, images, label):
        """Record the sums, in the order of the batch."""
        sums = [hashlib.sha256(image.contiguous().cpu().numpy().tobytes()).hexdigest() for image in images]
        record("digest", label=label, sums=sums)
        return {"ui": {"sums": sums}}


class GpuHog:
    """Passes an IMAGE on after asking for more memory than the device has; the error is torch's own."""

    CATEGORY, FUNCTION, RETURN_TYPES = "benchmark", "fill", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",)}}

    def fill(self, images):
        """Take one GiB after the other, on the CPU one that no machine has."""
        if not CUDA:
            torch.empty(2**62, dtype=torch.uint8)
        taken = []
        while CUDA:
            taken.append(torch.empty(2**30, dtype=torch.uint8, device="cuda"))
        return (images,)


# -- the trace ----------------------------------------------------------------------------------------------------------
def open_trace():
    """The file of this process."""
    TRACE.mkdir(exist_ok=True)
    return os.open(TRACE / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


TRACE_FILE = open_trace()


def record(event, **facts):
    """One line."""
    os.write(TRACE_FILE, (json.dumps({"at": time.time(), "event": event, **facts}) + "\n").encode())


def watch(owner, name, event):
    """Record begin and end of each call of a function."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def watched(*args, **kwargs):
        record(event, phase="begin")
        try:
            return function(*args, **kwargs)
        finally:
            record(event, phase="end")

    setattr(owner, name, watched)


def clock(owner, name, event):
    """Record how long each call of a function took."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def clocked(*args, **kwargs):
        began = time.monotonic()
        result = function(*args, **kwargs)
        record(event, seconds=time.monotonic() - began)
        return result

    setattr(owner, name, clocked)


def watch_moves():
    """Record each time that weights move to the device; ComfyUI calls this for models that are there already too."""
    model_load = comfy.model_management.LoadedModel.model_load

    @functools.wraps(model_load)
    def watched(self, *args, **kwargs):
        before, began = self.model.loaded_size(), time.monotonic()
        result = model_load(self, *args, **kwargs)
        moved = self.model.loaded_size() - before
        if moved:
            record("to_device", bytes=moved, seconds=time.monotonic() - began)
        return result

    comfy.model_management.LoadedModel.model_load = watched


def watch_steps():
    """Record each call of a diffusion model."""
    apply_model = comfy.model_base.BaseModel.apply_model

    @functools.wraps(apply_model)
    def counted(self, x, *args, **kwargs):
        record("step", batch=x.shape[0])
        return apply_model(self, x, *args, **kwargs)

    comfy.model_base.BaseModel.apply_model = counted


def watch_prompts():
    """Record begin and end of each prompt, and what it leaves on the device."""
    execute = execution.PromptExecutor.execute

    @functools.wraps(execute)
    def watched(*args, **kwargs):
        record("prompt", phase="begin")
        try:
            return execute(*args, **kwargs)
        finally:
            record("prompt", phase="end", models=len(comfy.model_management.current_loaded_models), compiled=compiled(), **memory())

    execution.PromptExecutor.execute = watched


def compiled():
    """Graphs that torch has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def memory():
    """Bytes that torch holds on the device."""
    if not CUDA:
        return {"allocated": 0, "reserved": 0, "peak": 0}
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved(), "peak": peak}


def install():
    """Watch everything."""
    kind = "ours" if "distributed_comfy" in sys.modules else "plain"
    backend = torch.cuda.get_allocator_backend() if CUDA else "cpu"
    record("open", kind=kind, arguments=sys.argv[1:], allocator=backend, torch=torch.__version__, threads=torch.get_num_threads())
    clock(comfy.utils, "load_torch_file", "read")
    watch_moves()
    watch(nodes, "common_ksampler", "sample")
    watch(comfy.sd.VAE, "encode", "encode")
    watch(comfy.sd.VAE, "decode", "decode")
    watch(nodes.SaveImage, "save_images", "save")
    watch_steps()
    watch_prompts()


install()
NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (GpuConditioning, GpuSwallow, GpuDigest, GpuHog)}

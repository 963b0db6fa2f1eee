"""The arguments of ComfyUI that a page offers beside the field for them, each with a word about what it does."""
from __future__ import annotations

from typing import Any

_VRAM = ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu")
_PRECISION = ("--force-fp32", "--force-fp16")
_ATTENTION = ("--use-split-cross-attention", "--use-quad-cross-attention", "--use-pytorch-cross-attention", "--use-sage-attention")
_CACHE = ("--cache-classic", "--cache-lru", "--cache-none")
_PREVIEWS = ("--preview-method",)
_ARGUMENTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("--lowvram", "", "Keeps only what is needed on the GPU: for models that barely fit, slower.", _VRAM),
    ("--novram", "", "The same, where even that runs out of memory; slowest.", _VRAM),
    ("--highvram", "", "Keeps models on the GPU after use: for a GPU with much memory, faster.", _VRAM),
    ("--gpu-only", "", "Keeps everything on the GPU, text encoders too.", _VRAM),
    ("--reserve-vram", "2", "Leaves so many GB of the GPU to other programs.", ()),
    ("--cpu", "", "Computes on the CPU.", _VRAM),
    ("--force-fp16", "", "Computes in half precision wherever that is possible.", _PRECISION),
    ("--force-fp32", "", "Computes in single precision: for GPUs that give black images otherwise; needs more memory.", _PRECISION),
    ("--fp16-vae", "", "Runs the VAE in half precision; some give black images with it.", ("--fp32-vae", "--bf16-vae")),
    ("--fp32-vae", "", "Runs the VAE in single precision: against black images.", ("--fp16-vae", "--bf16-vae")),
    ("--use-pytorch-cross-attention", "", "Uses PyTorch's own attention.", _ATTENTION),
    ("--use-split-cross-attention", "", "Splits attention: less memory, slower.", _ATTENTION),
    ("--use-sage-attention", "", "Uses SageAttention, where that is installed there.", _ATTENTION),
    ("--cache-lru", "20", "Keeps the results of so many nodes, for prompts that take turns.", _CACHE),
    ("--cache-none", "", "Keeps no results: least memory, each item runs whole.", _CACHE),
    ("--disable-smart-memory", "", "Moves models to RAM as soon as they are not used.", ()),
    ("--preview-method", "auto", "Shows the image while it is sampled; costs a little time.", _PREVIEWS),
    ("--fast", "", "Optimisations that may change images a little.", ()),
)
_OF_A_GPU = frozenset({*_VRAM, "--reserve-vram", "--force-fp16", "--fp16-vae", "--use-sage-attention", "--disable-smart-memory", "--fast"})


def extra_arguments() -> list[dict[str, Any]]:
    """As ``ExtraArgument`` of openapi.json each."""
    return [
        {
            "argument": argument, "value": value, "words": words, "excludes": [other for other in excludes if other != argument],
            "gpu": argument in _OF_A_GPU,
        }
        for argument, value, words, excludes in _ARGUMENTS
    ]

"""Node classes for measuring; they live in the engine process, which finds this module by its name.

Each tells in its ui result when it ran, as ``time.time()``: the clock that this host's Redis and its processes share.
"""
from __future__ import annotations

import functools
import time
from typing import Any

from distributed_comfy.nodes.context import NodeContext
from distributed_comfy.nodes.registry import node_classes as cluster_node_classes

SLOWER = 4.3
"""How much longer a sleep takes on a slow worker."""

PATTERN_PERIOD = 9973
"""Prime, so that rows of a picture differ."""


class BenchItem:
    """Sleeps, and gives a picture of 8 x 8 pixels."""

    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "benchmark"
    FACTOR = 1.0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI wants it."""
        return {
            "required": {
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "seconds": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 3600.0}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Always: an item that the engine's cache answers would measure nothing."""
        return float("nan")

    def run(self, seed: int, seconds: float) -> dict[str, Any]:
        """[1, 8, 8, 3]."""
        import torch

        began = time.time()
        if seconds:
            time.sleep(seconds * self.FACTOR)
        return {"ui": {"began": [began], "ended": [time.time()]}, "result": (torch.zeros(1, 8, 8, 3),)}


class SlowBenchItem(BenchItem):
    """The same on a worker that is `SLOWER`."""

    FACTOR = SLOWER


class BenchImage(BenchItem):
    """A picture whose every bit follows from its seed."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI wants it."""
        side = {"default": 1024, "min": 8, "max": 65536}
        return {"required": {"seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}), "width": ("INT", side), "height": ("INT", side)}}

    def run(self, seed: int, width: int, height: int) -> dict[str, Any]:  # type: ignore[override]
        """[1, height, width, 3] float32, see `pattern`."""
        import torch

        began = time.time()
        image = torch.from_numpy(pattern(seed, width, height))
        return {"ui": {"began": [began], "ended": [time.time()]}, "result": (image,)}


class BenchPhoto(BenchImage):
    """A picture that is about as hard to compress as a photograph."""

    def run(self, seed: int, width: int, height: int) -> dict[str, Any]:  # type: ignore[override]
        """[1, height, width, 3] float32, see `photo`."""
        import torch

        image = torch.from_numpy(photo(seed, width, height))
        began = time.time()
        return {"ui": {"began": [began], "ended": [time.time()]}, "result": (image,)}


class BenchCheck(BenchItem):
    """Whether a picture is the one that `BenchImage` makes of this seed, to the bit."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI wants it."""
        return {"required": {"image": ("IMAGE",), "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})}}

    def run(self, image: Any, seed: int) -> dict[str, Any]:  # type: ignore[override]
        """Tells in its ui result."""
        import numpy as np

        return {"ui": {"same": [bool(np.array_equal(image.numpy(), pattern(seed, image.shape[2], image.shape[1])))]}}


def pattern(seed: int, width: int, height: int) -> Any:
    """[1, height, width, 3] float32 numpy array; no two seeds below 2^20 give the same."""
    import numpy as np

    return _ramp(width, height) + np.float32(seed % 2**20)


@functools.lru_cache(maxsize=4)
def photo(seed: int, width: int, height: int) -> Any:
    """[1, height, width, 3] float32 numpy array of noise whose strength falls with its frequency as that of photographs does.

    Its last bits are as those of a decoded latent: without any order.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    strength = 1 / np.maximum(np.hypot(down, across), 1 / max(width, height)) ** 1.4
    planes = []
    for _ in range(4):
        phases = np.exp(2j * np.pi * random.random(strength.shape))
        plane = np.fft.irfft2(strength * phases, (height, width))
        planes.append(plane / plane.std())
    grey, *colours = planes
    picture = 0.5 + 0.2 * grey[..., None] + 0.04 * np.stack(colours, axis=-1)
    return np.clip(picture, 0, 1).astype(np.float32)[None]


@functools.cache
def _ramp(width: int, height: int) -> Any:
    import numpy as np

    return (np.arange(height * width * 3, dtype=np.float32) % PATTERN_PERIOD / PATTERN_PERIOD).reshape(1, height, width, 3)


def node_classes(context: NodeContext) -> dict[str, type]:
    """The cluster's own classes and those for measuring."""
    own = {"BenchItem": BenchItem, "BenchImage": BenchImage, "BenchPhoto": BenchPhoto, "BenchCheck": BenchCheck}
    return {**cluster_node_classes(context), **own}


def slow_node_classes(context: NodeContext) -> dict[str, type]:
    """The same for a slow worker."""
    return {**node_classes(context), "BenchItem": SlowBenchItem}

"""EmptyImage, ImageScale, ImageBatch and ImageInvert with ComfyUI's inputs and results.

Images are [B, H, W, C] float32, normally in [0, 1].
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from distributed_comfy.engine.builtin.workbench import WorkbenchNode

if TYPE_CHECKING:
    import torch

SIDE_LIMIT_PX = 16384
"""ComfyUI's own limit."""

SCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
CROPS = ["disabled", "center"]


class EmptyImage(WorkbenchNode):
    """Images of one colour."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        side = {"default": 512, "min": 1, "max": SIDE_LIMIT_PX, "step": 1}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    def make(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[torch.Tensor]:
        """``batch_size`` images of ``color`` (0xRRGGBB)."""
        import torch

        channels = torch.tensor([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)])
        return (channels.expand(batch_size, height, width, 3).clone(),)


class ImageScale(WorkbenchNode):
    """Images in another size."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        side = {"default": 512, "min": 0, "max": SIDE_LIMIT_PX, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (SCALE_METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (CROPS,),
            }
        }

    def scale(self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[torch.Tensor]:
        """The images in ``width`` x ``height``; a side of 0 follows from the other, both 0 changes nothing."""
        if not width and not height:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (resized(image, (width, height), method=upscale_method, centred=crop == "center"),)


class ImageBatch(WorkbenchNode):
    """Two batches in one."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "join"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def join(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor]:
        """Both, the second in the size of the first."""
        import torch

        if image1.shape[1:] != image2.shape[1:]:
            image2 = resized(image2, (image1.shape[2], image1.shape[1]), method="bilinear", centred=True)
        return (torch.cat((image1, image2), dim=0),)


class ImageInvert(WorkbenchNode):
    """Images in complementary colours."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """1 minus each value."""
        return (1.0 - image,)


def resized(images: torch.Tensor, size: tuple[int, int], *, method: str, centred: bool) -> torch.Tensor:
    """Images in another size, to the bit as ComfyUI scales them.

    Args:
        images: [B, H, W, C].
        size: (width, height).
        method: one of `SCALE_METHODS`.
        centred: cut to the new aspect round the centre first; otherwise the image is stretched.
    """
    import torch

    width, height = size
    planes = images.movedim(-1, 1)
    if centred:
        planes = _cut_to_aspect(planes, width / height)
    if method == "lanczos":
        return torch.stack([_lanczos(plane.movedim(0, -1), size) for plane in planes]).to(images.device, images.dtype)
    return torch.nn.functional.interpolate(planes, size=(height, width), mode=method).movedim(1, -1)


def _cut_to_aspect(planes: torch.Tensor, aspect: float) -> torch.Tensor:
    height, width = planes.shape[-2:]
    left = top = 0
    if width / height > aspect:
        left = round((width - width * (aspect / (width / height))) / 2)
    elif width / height < aspect:
        top = round((height - height * ((width / height) / aspect)) / 2)
    return planes[..., top : height - top, left : width - left]


def _lanczos(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pillow's filter, which works on bytes: [h, w, C] float32 in 256 levels."""
    import torch

    picture = Image.fromarray(to_bytes(image)).resize(size, resample=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture).astype(np.float32) / 255.0)


def to_bytes(image: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W, C] in [0, 1] as bytes, cut off and not rounded, as ComfyUI saves images."""
    levels: np.ndarray[Any, np.dtype[np.uint8]] = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
    return levels

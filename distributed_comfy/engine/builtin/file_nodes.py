"""LoadImage, SaveImage and PreviewImage with ComfyUI's inputs, file names, metadata and ui results."""
from __future__ import annotations

import json
import os
import random
import re
import string
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from distributed_comfy.engine.builtin.image_nodes import to_bytes
from distributed_comfy.engine.builtin.workbench import WorkbenchNode

if TYPE_CHECKING:
    import torch

IMAGE_ENDINGS = tuple(sorted(Image.registered_extensions()))
_ANNOTATION = re.compile(r"^(?P<name>.*?)\s*\[(?P<folder>input|output|temp)\]$", re.DOTALL)


class LoadImage(WorkbenchNode):
    """An image file, and its transparency as a mask."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        files = [path.name for path in cls.bench.folders.input.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]
        return {"required": {"image": (sorted(files), {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> str | bool:
        """True, or why the file cannot be loaded."""
        path = cls.path_of(image)
        return True if path is not None and os.path.isfile(path) else f"Invalid image file: {image}"

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        """Changes with the file: size and time are enough, because placed files are named by content."""
        path = cls.path_of(image)
        status = path.stat() if path is not None and os.path.exists(path) else None
        return f"{image}:{status.st_size}:{status.st_mtime_ns}" if status else image

    @classmethod
    def path_of(cls, name: str) -> Path | None:
        """The file that ``name`` stands for, ``[output]`` or ``[temp]`` behind it names the folder; None outside of it."""
        match = _ANNOTATION.match(name)
        folders = {"input": cls.bench.folders.input, "output": cls.bench.folders.output, "temp": cls.bench.folders.temp}
        folder = folders[match["folder"] if match else "input"].resolve()
        try:
            path = (folder / (match["name"] if match else name)).resolve()
        except (OSError, ValueError):  # too long, a NUL in it, or no text
            return None
        return path if path.is_relative_to(folder) else None

    def load(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        """All frames of one size as [B, H, W, 3], and 1 - alpha as [B, H, W] ([1, 64, 64] zeros without alpha)."""
        import torch

        path = self.path_of(image)
        if path is None:
            raise FileNotFoundError(f"{image} is outside the input folder")
        with Image.open(path) as file:
            several = file.format != "MPO"
            frames = [ImageOps.exif_transpose(frame) for frame in ImageSequence.Iterator(file)]
        frames = [frame for frame in frames if frame.size == frames[0].size]
        pairs = [_image_and_mask(frame) for frame in frames[: len(frames) if several else 1]]
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def _image_and_mask(frame: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    alpha: Image.Image | None = None
    if "A" in frame.getbands():
        alpha = frame.getchannel("A")
    elif frame.mode == "P" and "transparency" in frame.info:
        alpha = frame.convert("RGBA").getchannel("A")
    mask = torch.zeros((64, 64)) if alpha is None else 1.0 - _levels(alpha)
    if frame.mode == "I":  # 16 bits are brought to 8 before Pillow would cut them off
        frame = frame.point(lambda level: level * (1 / 255))
    return _levels(frame.convert("RGB"))[None], mask[None]


def _levels(picture: Image.Image) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(picture).astype(np.float32) / 255.0)


class SaveImage(WorkbenchNode):
    """Writes images to the output folder as PNG, with the prompt in their metadata."""

    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "save"
    CATEGORY = "image"
    OUTPUT_NODE = True
    folder_type = "output"
    compress_level = 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self, images: torch.Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The ui result: one ``{"filename", "subfolder", "type"}`` for each image."""
        folder = self.bench.folders.output if self.folder_type == "output" else self.bench.folders.temp
        name, subfolder, counter = next_name(folder, filename_prefix, (images.shape[2], images.shape[1]))
        written = []
        for number, image in enumerate(images):
            file = f"{name.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
            picture = Image.fromarray(to_bytes(image))
            picture.save(folder / subfolder / file, pnginfo=_metadata(prompt, extra_pnginfo), compress_level=self.compress_level)
            written.append({"filename": file, "subfolder": subfolder, "type": self.folder_type})
        return {"ui": {"images": written}}


class PreviewImage(SaveImage):
    """Writes images to the temp folder."""

    folder_type = "temp"
    compress_level = 1

    def __init__(self) -> None:
        self._prefix = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",)}, "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}

    def save(
        self, images: torch.Tensor, filename_prefix: str = "", prompt: Any = None, extra_pnginfo: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """See `SaveImage.save`; the prefix is one of this node."""
        return super().save(images, filename_prefix or self._prefix, prompt, extra_pnginfo)


def next_name(folder: Path, prefix: str, size: tuple[int, int]) -> tuple[str, str, int]:
    """Where the next file with a prefix goes, as ComfyUI counts.

    Args:
        folder: output or temp folder.
        prefix: may name a subfolder, and hold ``%width%``, ``%height%``, ``%year%``, ``%month%``, ``%day%``, ``%hour%``, ``%minute%``,
            ``%second%``.
        size: (width, height) in pixels.
    Returns:
        (name without number, subfolder, first free number); the subfolder exists.
    Raises:
        ValueError: the prefix leads out of the folder.
    """
    path = os.path.normpath(_filled(prefix, size))
    subfolder, name = os.path.dirname(path), os.path.basename(path)
    target = (folder / subfolder).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(f"the prefix {prefix!r} leads out of the {folder.name} folder")
    target.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(os.path.normcase(name)) + r"_(\d+)(?:_|$)")
    numbers = [int(match[1]) for entry in target.iterdir() if (match := pattern.match(os.path.normcase(entry.name)))]
    return name, subfolder, max(numbers, default=0) + 1


def _filled(prefix: str, size: tuple[int, int]) -> str:
    now = time.localtime()
    values = {"width": str(size[0]), "height": str(size[1]), "year": str(now.tm_year)}
    parts = {"month": now.tm_mon, "day": now.tm_mday, "hour": now.tm_hour, "minute": now.tm_min, "second": now.tm_sec}
    values.update({name: f"{value:02}" for name, value in parts.items()})
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def _metadata(prompt: Any, extra_pnginfo: dict[str, Any] | None) -> PngInfo:
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", json.dumps(prompt))
    for key, value in (extra_pnginfo or {}).items():
        info.add_text(key, json.dumps(value))
    return info

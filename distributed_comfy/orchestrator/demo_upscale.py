"""The last part of the demo: the middle of a picture at four times its size, redrawn in tiles by all workers."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from distributed_comfy.collector.naming import writing
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.run import Reporter, RunOptions, run_on
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt
from distributed_comfy.transport.pictures import read_picture
from tasks.cluster import Cluster

SCALE = 4
BEFORE_AFTER = "upscale-before-after.png"
PREFIX = "upscaled"
TILE = 224
_GAP = 8


@dataclass(frozen=True)
class DemoUpscale:
    """What came of it."""

    delivery: Delivery
    source: Path
    """The picture whose middle was enlarged."""
    tiles: dict[str, int]
    """Worker -> how many tiles it redrew."""

    @property
    def path(self) -> Path:
        """The upscaled picture."""
        return self.delivery.files[0].path


def run_upscale(cluster: Cluster, source: Path, workers: Sequence[str], run: RunOptions, reporter: Reporter) -> DemoUpscale:
    """Upscale the middle of a picture, a quarter of it; the file, and `BEFORE_AFTER`, lie in ``run.out``.

    The delivery tells whether it worked; without its file there is no picture of the difference.
    """
    asked = SubmitOptions(engine=run.submit.engine, user=run.submit.user)
    part = cluster.settings.cache_folder / "middle.png"
    picture = read_picture(source)
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        picture.crop(_middle(picture)).save(part)
        given = read_prompt(_prompt(part, picture.size), asked)
    delivery = run_on(cluster, given, replace(run, submit=asked), reporter)
    items = [result for index, result in delivery.results.items() if delivery.kind(index) == "tile"]
    made = {name: sum(len(item.captures) for item in items if item.worker == name) for name in workers}
    result = DemoUpscale(delivery, source, made)
    if delivery.error is None:
        save_before_after(part, result.path, run.out / BEFORE_AFTER)
    return result


def save_before_after(before: Path, after: Path, target: Path) -> None:
    """The enlarged picture beside the redrawn one.

    Raises:
        OutputUnwritable: the folder is full or may not be written.
    """
    small, redrawn = read_picture(before), read_picture(after)
    parts = [one.convert("RGB") for one in (small.resize(redrawn.size, Image.Resampling.BILINEAR), redrawn)]
    sheet = Image.new("RGB", (2 * parts[0].width + _GAP, parts[0].height), "white")
    for number, part in enumerate(parts):
        sheet.paste(part, (number * (part.width + _GAP), 0))
    with writing(target):
        sheet.save(target)


def _middle(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    width, height = picture.size
    return width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2


def _prompt(part: Path, size: tuple[int, int]) -> Prompt:
    """For the middle of a picture of this size."""
    width, height = (SCALE * (side // 2) for side in size)
    scaled = {"image": ["1", 0], "upscale_method": "bilinear", "width": width, "height": height, "crop": "disabled"}
    model = {"model": ["3", 0], "positive": ["3", 1], "negative": ["3", 1], "vae": ["3", 2]}
    sampler = {"seed": 3, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.4}
    tiles = {"tile_width": TILE, "tile_height": TILE, "padding": 24, "mask_blur": 16, "force_uniform_tiles": True, "tiled_decode": False}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": str(part.resolve())}},
        "2": {"class_type": "ImageScale", "inputs": scaled},
        "3": {"class_type": "SeededModel", "inputs": {"edges": 0.6, "strokes": 0.6}},
        "4": {"class_type": "UltimateSDUpscaleDistributed", "inputs": {"upscaled_image": ["2", 0], **model, **sampler, **tiles}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": PREFIX}},
    }

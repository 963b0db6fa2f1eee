"""The file in which a person watches an upscale fill: ``--preview FILE``."""
from __future__ import annotations

import logging
import os
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.collector.naming import writing
from distributed_comfy.errors import OutputUnwritable, SettingInvalid

log = logging.getLogger(__name__)

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}

preview_option = click.option(
    "--preview", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Picture (.jpg, .png, .webp) of an upscale as its tiles arrive, written anew each second.",
)  # fmt: skip


class CanvasPreview:
    """Writes each small picture over the one before, in one step, so that whoever opens the file sees a whole one.

    Args:
        path: of the file; its folder is made with the first picture.
    Raises:
        SettingInvalid: the name has no ending of a picture, or of one that this Pillow cannot write.
    """

    def __init__(self, path: Path) -> None:
        Image.init()
        endings = [ending for ending, format_name in _FORMATS.items() if format_name in Image.SAVE]
        if path.suffix.lower() not in endings:
            raise SettingInvalid(name="--preview", reason=f"{path} must end with one of {', '.join(endings)}")
        self.path, self._format = path, _FORMATS[path.suffix.lower()]
        self._complained = False

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Write a picture, [h, w, 3]; a disk that does not take it is told once and costs the job nothing."""
        unfinished = self.path.with_name(f".{self.path.name}.part")
        try:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(unfinished, self._format)
                os.replace(unfinished, self.path)
        except OutputUnwritable as error:
            if not self._complained:
                log.warning("no preview: %s", error)
            self._complained = True

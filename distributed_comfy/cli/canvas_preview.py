"""The file in which a person watches an upscale fill: ``run --preview FILE``."""
from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.collector.naming import writing
from distributed_comfy.errors import OutputUnwritable, SettingInvalid

log = logging.getLogger(__name__)

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


class CanvasPreview:
    """Writes each small picture over the one before, in one step, so that whoever opens the file sees a whole one.

    Args:
        path: of the file; its folder is made with the first picture.
    Raises:
        SettingInvalid: the name has no ending of a picture.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _FORMATS:
            raise SettingInvalid(name="--preview", reason=f"{path} must end with one of {', '.join(_FORMATS)}")
        self._path, self._format = path, _FORMATS[path.suffix.lower()]
        self._complained = False

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Write a picture, [h, w, 3]; a disk that does not take it is told once and costs the job nothing."""
        unfinished = self._path.with_name(f".{self._path.name}.part")
        try:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(unfinished, self._format)
                os.replace(unfinished, self._path)
        except OutputUnwritable as error:
            if not self._complained:
                log.warning("no preview: %s", error)
            self._complained = True

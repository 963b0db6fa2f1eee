"""``run --preview``: the picture of an upscale in a file."""
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distributed_comfy.cli.canvas_preview import CanvasPreview
from distributed_comfy.errors import SettingInvalid


def grey(level: int) -> np.ndarray:
    return np.full((6, 8, 3), level, np.uint8)


@pytest.mark.parametrize("name", ["canvas.png", "canvas.JPG", "canvas.webp"])
def test_each_picture_takes_the_place_of_the_one_before(tmp_path: Path, name: str) -> None:
    preview = CanvasPreview(tmp_path / "new folder" / name)
    for level in (10, 200):
        preview.show(grey(level))
        with Image.open(tmp_path / "new folder" / name) as shown:
            assert shown.size == (8, 6) and np.abs(np.asarray(shown.convert("RGB"), int) - level).max() <= 2
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == [name]


def test_a_name_that_is_no_picture_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match=r"--preview: .*canvas[.]txt must end with one of [.]jpg"):
        CanvasPreview(tmp_path / "canvas.txt")


def test_a_kind_of_picture_that_this_pillow_cannot_write_is_refused_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(SettingInvalid, match=r"canvas[.]webp must end with one of [.]jpg, [.]jpeg, [.]png$"):
        CanvasPreview(tmp_path / "canvas.webp")


def test_a_place_where_nothing_can_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    preview = CanvasPreview(tmp_path / "file" / "canvas.png")
    with caplog.at_level(logging.WARNING):
        preview.show(grey(1))
        preview.show(grey(2))
    assert len(caplog.records) == 1 and "no preview" in caplog.text and "canvas.png" in caplog.text

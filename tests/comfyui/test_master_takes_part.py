"""A real ComfyUI with the pack that takes part in its own jobs: on its own, beside workers, and when these die."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.prompts import node


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(comfy, packed_python, base_directory, folder, comfyui_rig, DC_HOST="here") as found:
        yield found


def expected(plain: PlainComfyUI, items: int, seed: int, tail: Any = None, end: str = "8") -> numpy.ndarray[Any, Any]:
    return numpy.concatenate([plain.images(plain_item(tail, end, seed=seed + index), end) for index in range(items)])


def with_items(prompt: dict[str, Any], items: int) -> dict[str, Any]:
    return {**prompt, "9": node("DistributedCollector", **{**prompt["9"]["inputs"], "items": items})}


def test_two_workers_and_the_master_make_the_batch_together(master: Master, plain: PlainComfyUI) -> None:
    ours = master.images(with_items(distributed(seed=300, steps=6), 9))
    assert set(master.workers_of(master.last_job())) == {"one", "two", "here-master"}
    theirs = numpy.concatenate([plain.images(plain_item(seed=300 + index, steps=6), "8") for index in range(9)])
    assert ours.tobytes() == theirs.tobytes()

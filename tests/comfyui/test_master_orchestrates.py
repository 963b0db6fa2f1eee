"""A real ComfyUI with the pack that only orchestrates, driven as a script does that knows nothing of us."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.tiny_prompts import distributed, plain_item


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(comfy, packed_python, base_directory, folder, comfyui_rig, options={"participate": False}) as found:
        yield found


def test_the_batch_is_what_plain_comfyui_makes_of_each_seed(master: Master, plain: PlainComfyUI) -> None:
    ours = master.images(distributed(seed=100))
    theirs = numpy.concatenate([plain.images(plain_item(seed=100 + index), "8") for index in range(2)])
    assert ours.dtype == numpy.float32
    assert ours.tobytes() == theirs.tobytes()
    assert set(master.workers_of(master.last_job())) <= {"one", "two"}

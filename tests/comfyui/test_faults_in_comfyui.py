"""Each core fault on a job of real ComfyUI: nothing is lost, nothing counts twice, the same bytes; rows of docs/reliability.md, too."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.comfy_process import Comfy
from tests.comfyui.comfyui_faults import ComfyUIField
from tests.smoke.field import COMFYUI
from tests.smoke.measured import ROWS
from tests.smoke.scenario import IN_COMFYUI

pytestmark = [pytest.mark.redis, pytest.mark.slow]


@pytest.fixture(scope="module")
def field(comfy: Comfy, base_directory: Path, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIField]:
    """Two workers that have loaded the tiny model."""
    environment = {
        "COMFYUI_PATH": str(comfy.root), "DC_COMFYUI_PYTHON": comfy.python, "DC_COMFYUI_BASE_DIRECTORY": str(base_directory),
    }  # fmt: skip
    field = ComfyUIField(tmp_path_factory.mktemp("faults"), redis_server.program, COMFYUI, engine="comfyui", environment=environment)
    try:
        field.start("one", "two")
        yield field
    finally:
        field.close()


@pytest.mark.parametrize("name", IN_COMFYUI)
def test_a_fault_in_comfyui_loses_nothing(field: ComfyUIField, name: str) -> None:
    scenario = IN_COMFYUI[name]
    with field.measuring(scenario.name, scenario.fault, scenario.costs, ROWS) as endings:
        endings.append(scenario.play(field))
    assert not ROWS[-1].faults, f"{ROWS[-1]}\n{field.rig.logs()}"

"""How prompts come to a master: in a ComfyUI that is quicker than the pack, twice with one id, and without a server that answers."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import pictures
from tests.comfyui.master_rig import Master, open_master

SLOW_ANSWERS = """
import asyncio
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@web.middleware
async def answers_late(request, handler):
    answer = await handler(request)
    if "slow_answer" in request.query:
        await asyncio.sleep(1.0)
    return answer


PromptServer.instance.app.middlewares.append(answers_late)
"""
"""A pack that is loaded after ours: what it does comes before ours learns of ComfyUI's answer."""


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(
        comfy, packed_python, base_directory, folder, comfyui_rig, models=False, options={"participate": False},
        packs={"zz_late.py": SLOW_ANSWERS}, MASTER_LACKS_CLASS="1",
    ) as found:  # fmt: skip
        yield found


def test_a_prompt_that_comfyui_begins_before_it_has_answered_is_distributed_all_the_same(master: Master) -> None:
    before = master.ran_here()
    _, answer = master.server.post("/prompt?slow_answer", {"prompt": pictures("late", items=3, seed=30)})
    master.server.wait(answer["prompt_id"])
    assert master.recorded("late") == [30, 31, 32]
    assert master.ran_here() == [*before, "RuleRecord"]

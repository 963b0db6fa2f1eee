"""Ordinary prompts over a master and two workers: a script that knows nothing of us sees what plain ComfyUI would show it."""
from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui.comfy_process import Comfy
from tests.comfyui.ordinary_rig import WORKERS, Crowd, pixels, saved, stock, texts
from tests.comfyui.server_rig import ComfyServer
from tests.command_line import CommandLine

log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def crowd(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """A master and two workers."""
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path_factory.mktemp("crowd"))
    try:
        yield crowd.start(*WORKERS)
    finally:
        crowd.close()


@pytest.fixture(scope="module")
def alone(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A plain ComfyUI."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("alone")), door=False)
    try:
        yield server.start()
    finally:
        server.close()


def test_twenty_prompts_use_the_master_and_both_workers_and_every_file_is_there(crowd: Crowd, alone: ComfyServer) -> None:
    prompts = [stock(1000 + number, prefix="twenty", pause=40) for number in range(20)]
    workflow = {"extra_data": {"extra_pnginfo": {"workflow": {"nodes": [], "note": "of the user"}}}}

    def file_of(server: ComfyServer, prompt_id: str) -> Path:
        [path] = saved(server.history(prompt_id) or {}, server.base)
        return path

    def run(server: ComfyServer) -> tuple[list[str], float]:
        began = time.monotonic()
        ids = [server.queue(prompt, **workflow) for prompt in prompts]
        for prompt_id in ids:
            assert server.wait(prompt_id)["status"]["status_str"] == "success"
        return ids, time.monotonic() - began

    (mine, mine_s), (theirs, theirs_s) = run(crowd.server), run(alone)
    log.info("20 prompts: alone %.1f s, with two workers %.1f s", theirs_s, mine_s)
    ran = Counter(crowd.done_by(prompt_id) for prompt_id in mine)
    assert set(ran) == {"", *WORKERS}, ran
    names = sorted(path.name for path in crowd.output.glob("twenty*"))
    assert names == [f"twenty_{number:05}_.png" for number in range(1, 21)]
    for my_id, their_id in zip(mine, theirs, strict=True):
        my_file, their_file = file_of(crowd.server, my_id), file_of(alone, their_id)
        assert pixels(my_file).tobytes() == pixels(their_file).tobytes()
        assert texts(my_file) == texts(their_file)

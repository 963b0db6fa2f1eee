"""Jobs of which a real ComfyUI makes every item itself: as many as a user likes, each in the same time, and none leaves anything behind."""
from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.cluster_fixtures import open_rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.test_master_bad_days import slow
from tests.prompts import node, out

COUNTED_PICTURE = '''
"""A picture that shows its seed; notes when it was made, and how many made before are still in memory."""
import json
import os
import time
import weakref

import torch

ALIVE = weakref.WeakSet()


class CountedPicture:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0, "min": 0, "max": 2**40})}}

    def make(self, seed):
        with open(os.environ["COUNTED_PICTURES"], "a") as file:
            file.write(json.dumps({"at": time.monotonic(), "alive": len(ALIVE)}) + "\\n")
        picture = torch.full((1, 8, 8, 3), float(seed % 251) / 255)
        ALIVE.add(picture)
        return (picture,)


NODE_CLASS_MAPPINGS = {"CountedPicture": CountedPicture}
'''
ITEMS = 1200
"""More than Python nests calls."""


def counted(items: int, name: str, seed: int = 0) -> dict[str, Any]:
    return {
        "seed": node("DistributedSeed", seed=seed),
        "image": node("CountedPicture", seed=out("seed")),
        "turned": node("ImageInvert", image=out("image")),
        "back": node("ImageInvert", image=out("turned")),
        "9": node("DistributedCollector", images=out("back"), items=items),
        "show": node("TinyDump", images=out("9"), filename_prefix=name),
    }


def dumped(master: Master, name: str) -> Any:
    return numpy.load(master.server.base / "output" / f"{name}.npy")


@pytest.mark.timeout(600)
def test_more_items_than_calls_nest_are_made_here_each_as_fast_as_the_first(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path: Path
) -> None:
    notes = tmp_path / "pictures"
    (tmp_path / "master").mkdir()
    with open_rig("builtin", cluster_servers, tmp_path / "workers", prefix="many-items:", names=()) as rig, open_master(
        comfy, packed_python, base_directory, tmp_path / "master", rig, models=False, packs={"counted.py": COUNTED_PICTURE},
        DC_HOST="here", COUNTED_PICTURES=str(notes),
    ) as master:  # fmt: skip
        (master.server.base / "output").mkdir(exist_ok=True)
        entry = master.server.wait(master.server.queue(counted(ITEMS, "many")), 500.0)
        assert entry["status"]["status_str"] == "success", entry["status"]
        seeds = [round(float(value) * 255) for value in dumped(master, "many")[:, 0, 0, 0]]
        assert seeds == [index % 251 for index in range(ITEMS)]
        assert master.workers_of(master.last_job()) == ["here-master"] * ITEMS
        assert master.server.wait(master.server.queue(counted(3, "next", seed=7)))["status"]["status_str"] == "success"
        assert len(dumped(master, "next")) == 3
    made = [json.loads(line) for line in notes.read_text().splitlines()]
    times = [later["at"] - one["at"] for one, later in pairwise(made[:ITEMS])]
    first, last = statistics.median(times[1:101]), statistics.median(times[-100:])
    assert last < 2.5 * first, f"{first:.3f} s an item at first, {last:.3f} s at last"
    assert max(one["alive"] for one in made) <= 4, "what an item made is let go when its turn is over"


def test_a_comfyui_that_takes_no_added_nodes_leaves_all_to_workers_and_says_what_to_do_without_one(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path: Path
) -> None:
    (tmp_path / "master").mkdir()
    with open_rig("builtin", cluster_servers, tmp_path / "workers", prefix="no-cache:", names=()) as rig, open_master(
        comfy, packed_python, base_directory, tmp_path / "master", rig, "--cache-none", models=False, DC_HOST="here"
    ) as master:
        entry = master.server.wait(master.server.queue(slow("nobody", 3, milliseconds=1)))
        kind, facts = entry["status"]["messages"][-1]
        assert kind == "execution_error" and facts["node_id"] == "9"
        assert "--cache-none" in facts["exception_message"] and "start this ComfyUI without that option" in facts["exception_message"]
        rig.start("one")
        master.server.execute(slow("one worker", 6, milliseconds=50))
        assert master.recorded("one worker") == list(range(100, 106))
        assert master.workers_of(master.last_job()) == ["one"] * 6


def test_items_are_made_here_with_a_cache_of_a_size_too(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path: Path
) -> None:
    (tmp_path / "master").mkdir()
    with open_rig("builtin", cluster_servers, tmp_path / "workers", prefix="small-cache:", names=()) as rig, open_master(
        comfy, packed_python, base_directory, tmp_path / "master", rig, "--cache-lru", "5", models=False, DC_HOST="here"
    ) as master:
        for label in ("first", "second"):
            master.server.execute(slow(label, 12, milliseconds=1))
            assert master.recorded(label) == list(range(100, 112))

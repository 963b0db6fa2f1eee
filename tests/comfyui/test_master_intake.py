"""How prompts come to a master: in a ComfyUI that is quicker than the pack, twice with one id, and without a server that answers."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import pictures, plain_work
from tests.comfyui.master_rig import Master, open_master

SLOW_ANSWERS = """
import time
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
queue = PromptServer.instance.prompt_queue
put = queue.put


def put_and_rest(item):
    put(item)
    if item[3].get("slow_answer"):
        time.sleep(1.0)


queue.put = put_and_rest
"""
"""With this pack ComfyUI has begun a prompt, and may be through with it, before anybody learns of its answer."""


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(
        comfy, packed_python, base_directory, folder, comfyui_rig, models=False, options={"participate": False},
        packs={"slow_answers.py": SLOW_ANSWERS}, MASTER_LACKS_CLASS="1",
    ) as found:  # fmt: skip
        yield found


def test_a_prompt_that_comfyui_begins_before_it_has_answered_is_distributed_all_the_same(master: Master) -> None:
    before = master.ran_here()
    master.server.execute(pictures("late", items=3, seed=30), extra_data={"slow_answer": True})
    assert master.recorded("late") == [30, 31, 32]
    assert master.ran_here() == [*before, "RuleRecord"]


def test_prompts_of_one_id_have_each_a_job_of_its_own(master: Master) -> None:
    busy = master.server.queue(plain_work("busy", steps=300, salt=3))
    before = list(master.jobs())
    for label, seed in (("first", 400), ("second", 500), ("deleted", 600)):
        assert master.server.queue(pictures(label, items=3, seed=seed), prompt_id="chosen") == "chosen"
    ours = master.server.until(lambda: len(new := [job for job in master.jobs() if job not in before]) == 3 and new, 20.0)
    assert master.server.history(busy) is None
    queued = [entry[2]["show"]["inputs"]["label"] for entry in sorted(master.server.get("/queue")["queue_pending"])]
    assert queued == ["first", "second", "deleted"]
    master.server.until(lambda: [master.state(job) for job in ours] == ["done"] * 3, 30.0)
    master.server.until(lambda: not master.server.get("/queue")["queue_pending"] and not master.server.get("/queue")["queue_running"], 60.0)
    assert master.recorded("first") == [400, 401, 402]
    assert master.recorded("second") == [500, 501, 502]
    assert master.recorded("deleted") == [600, 601, 602]


def test_of_prompts_of_one_id_the_deleted_one_ends_its_job_and_no_other(master: Master) -> None:
    busy = master.server.queue(plain_work("busy again", steps=300, salt=4))
    labels, jobs = ("one", "other"), []
    for number, label in enumerate(labels):
        before = list(master.jobs())
        master.server.queue(pictures(label, items=2, seed=700 + 10 * number, steps=400), prompt_id="twice")
        jobs.append(master.job_of(before))
    master.server.post("/queue", {"delete": ["twice"]})
    left = {entry[2]["show"]["inputs"]["label"] for entry in master.server.get("/queue")["queue_pending"]}
    assert len(left) == 1
    gone = labels.index(({*labels} - left).pop())
    master.server.until(lambda: master.state(jobs[gone]) == "cancelled", 3.0)
    assert master.state(jobs[1 - gone]) != "cancelled"
    master.server.wait(busy)
    assert master.server.wait("twice")["status"]["status_str"] == "success"
    kept = left.pop()
    assert master.recorded(kept) == [700 + 10 * labels.index(kept), 701 + 10 * labels.index(kept)]

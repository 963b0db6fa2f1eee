"""What a ComfyUI with the pack gives to workers and takes from them: no file of its user but those of its folders, no bit less than
a node made, no picture that would end a prompt, and as many items as a number node says.

DC_FRAMES is ``auto`` here, as a user with a slow line has it.
"""
from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from distributed_comfy.state.keys import Keys
from tests.cluster_fixtures import open_rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import Prompt
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.test_master_bad_days import slow
from tests.hostile.test_hostile_pictures import HOSTILE
from tests.prompts import node, out, without

SECRET = "of the master's user alone"


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("guards")
    (folder / "master").mkdir()
    with open_rig("builtin", cluster_servers, folder / "workers", prefix="guards:") as rig, open_master(
        comfy, packed_python, base_directory, folder / "master", rig, options={"participate": False}, DC_FRAMES="auto"
    ) as found:
        base = found.server.base
        for name in ("input", "output", "temp", "photos"):
            (base / name).mkdir(exist_ok=True)
        (base / "secret.txt").write_text(SECRET)
        (base / "input" / "mine").symlink_to(base / "photos")
        yield found


def loading(label: str, name: str) -> Prompt:
    """Two items, each of a picture of its own and of one that is loaded."""
    prompt = slow(label, 2, milliseconds=1)
    prompt["load"] = node("LoadImage", image=name)
    prompt["join"] = node("ImageBatch", image1=out("work"), image2=out("load"))
    prompt["9"]["inputs"]["images"] = out("join")
    return prompt


# -- files ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../secret.txt", "{base}/secret.txt", "../secret.txt [output]", "mine/../secret.txt"])
def test_a_posted_prompt_sends_no_file_from_outside_of_comfyuis_folders(master: Master, name: str) -> None:
    base = master.server.base
    entry = master.server.wait(master.server.queue(loading("escapes", name.format(base=base))))
    kind, facts = entry["status"]["messages"][-1]
    assert kind == "execution_error" and facts["node_id"] == "9" and "outside of" in facts["exception_message"], facts
    at_workers = subprocess.run(["grep", "-rl", SECRET, master.rig.folder], capture_output=True, text=True, check=False).stdout
    assert not at_workers


def test_files_of_its_folders_and_behind_its_users_own_links_are_sent(master: Master) -> None:
    base = master.server.base
    Image.fromarray(numpy.full((16, 16, 3), 200, numpy.uint8)).save(base / "photos" / "mine.png")
    Image.fromarray(numpy.full((16, 16, 3), 200, numpy.uint8)).save(base / "output" / "made.png")
    for name in ("mine/mine.png", "made.png [output]", str(base / "input" / "mine" / "mine.png")):
        images = master.images(loading("stays", name))
        assert images.shape == (4, 16, 16, 3) and (images[1::2] == numpy.float32(200 / 255)).all(), name


# -- bits ----------------------------------------------------------------------------------------------------------------
def test_nodes_behind_a_collector_are_given_floats_whatever_frames_say(master: Master) -> None:
    prompt = slow("floats", 3, seed=500, milliseconds=1)
    master.server.execute(prompt)
    assert master.recorded("floats") == [500, 501, 502]


def test_what_was_collected_for_a_file_of_8_bits_is_given_whole_to_a_node_that_comes_later(master: Master) -> None:
    prompt = slow("later", 3, seed=600, milliseconds=1)
    save = {**without(prompt, "show"), "save": node("SaveImage", images=out("9"), filename_prefix="f")}
    master.server.execute(save)
    with master.server.listen() as listener:
        prompt_id = master.server.queue({**save, "show": prompt["show"]}, client_id=listener.client_id)
        listener.wait_end(prompt_id)
    assert "9" in listener.of("execution_cached", prompt_id=prompt_id)[0]["data"]["nodes"]
    assert master.recorded("later") == [600, 601, 602]


# -- pictures ------------------------------------------------------------------------------------------------------------
def test_a_preview_that_is_none_costs_the_prompt_nothing(master: Master) -> None:
    prompt_id = master.server.queue(slow("previews", 3, seed=700, milliseconds=1500))
    job = master.server.until(lambda: [job for job, state in master.jobs().items() if state.state == "running"])[-1]
    cluster = master.rig.cluster
    channel = Keys(cluster.settings.key_prefix)("progress", job)

    def publish_all() -> bool:
        for content in HOSTILE.values():
            step = {"index": 0, "worker": "one", "node": "work", "preview": base64.b64encode(content).decode()}
            cluster.client.publish(channel, json.dumps(step))
            time.sleep(0.05)  # a newer preview takes the place of one that was not shown yet
        return master.server.history(prompt_id) is not None

    master.server.until(publish_all)
    entry = master.server.wait(prompt_id)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    assert master.recorded("previews") == [700, 701, 702]


# -- inputs --------------------------------------------------------------------------------------------------------------
def test_items_from_a_number_node_are_followed(master: Master) -> None:
    prompt = slow("linked", 2, seed=800, milliseconds=1)
    prompt["9"]["inputs"]["items"] = out("number")
    master.server.execute({**prompt, "number": node("PrimitiveInt", value=5)})
    assert master.recorded("linked") == [800, 801, 802, 803, 804]


def test_the_node_says_that_a_number_which_only_the_run_tells_is_ignored(master: Master) -> None:
    prompt = slow("ignored", 2, seed=900, milliseconds=1)
    prompt["9"]["inputs"]["items"] = out("size")
    prompt |= {"other": node("EmptyImage", width=5, height=8, batch_size=1, color=0), "size": node("GetImageSize", image=out("other"))}
    with master.server.listen() as listener:
        listener.wait_end(master.server.queue(prompt, client_id=listener.client_id))
    assert len(master.recorded("ignored")) == 2, "one for each worker"
    assert "not known before the run" in listener.texts("9")[-1]

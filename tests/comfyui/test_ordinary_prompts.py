"""Ordinary prompts over a master and two workers: a script that knows nothing of us sees what plain ComfyUI would show it."""
from __future__ import annotations

import io
import json
import logging
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distributed_comfy.messages import Prompt
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.ordinary_rig import WORKERS, Crowd, blocker, pixels, saved, stock, texts
from tests.comfyui.server_rig import ComfyServer, Listener
from tests.command_line import CommandLine
from tests.prompts import node, out

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


# -- history and messages as plain ComfyUI's ----------------------------------------------------------------------------
def plain_text(value: Any, *, prompt_id: str, base: Path) -> Any:
    """A value without what differs from run to run: times, ids, the numbers of files and where this ComfyUI lies."""
    text = json.dumps(value).replace(prompt_id, "ID").replace(str(base), "BASE")
    text = re.sub(r'"timestamp": \d+', '"timestamp": 0', text)
    text = re.sub(r"_temp_[a-z]{5}_", "_temp_xxxxx_", text)
    return json.loads(re.sub(r"_\d{5}_", "_00000_", text))


def messages_of(listener: Listener, prompt_id: str, base: Path) -> list[tuple[str, Any]]:
    """What a client heard of one prompt, in order; of steps in a row only the last, for both sides leave some out."""
    found: list[tuple[str, Any]] = []
    for event in listener.events:
        if event["data"].get("prompt_id") != prompt_id:
            continue
        kind, facts = event["type"], plain_text(event["data"], prompt_id=prompt_id, base=base)
        if kind in ("progress", "progress_state"):
            found = [message for position, message in enumerate(found) if message[0] != kind or position < _last_other(found)]
        found.append((kind, facts))
    return found


def _last_other(found: list[tuple[str, Any]]) -> int:
    """Where the steps begin with which a list ends."""
    return max((position for position, (kind, _) in enumerate(found) if not kind.startswith("progress")), default=0)


@dataclass
class Run:
    """One prompt on one server, heard from start to end."""

    entry: dict[str, Any]
    heard: list[tuple[str, Any]]
    previews: list[bytes]
    prompt_id: str


def run_heard(server: ComfyServer, prompt: Prompt, **more: Any) -> Run:
    with server.listen() as listener:
        prompt_id = server.queue(prompt, client_id=listener.client_id, **more)
        listener.wait_end(prompt_id)
        entry = server.wait(prompt_id)
        return Run(entry, messages_of(listener, prompt_id, server.base), list(listener.binary), prompt_id)


def run_on_worker(crowd: Crowd, prompt: Prompt, **more: Any) -> Run:
    with crowd.busy_master():
        return run_heard(crowd.server, prompt, **more)


def history_of(run: Run, server: ComfyServer) -> Any:
    """A history entry without what differs from run to run."""
    entry = plain_text(run.entry, prompt_id=run.prompt_id, base=server.base)
    entry["prompt"][0] = 0
    entry["prompt"][4].sort()
    entry["prompt"][3].pop("client_id")
    return entry


def sorted_lists(value: Any) -> Any:
    """With lists that ComfyUI makes of sets in one order."""
    if isinstance(value, dict):
        unordered = ("nodes", "executed", "current_outputs")
        return {
            name: sorted(one) if name in unordered and isinstance(one, list) else sorted_lists(one) for name, one in value.items()
        }  # fmt: skip
    return [sorted_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


def with_many_outputs(seed: int) -> Prompt:
    """Pictures to output and temp, a text, and a node that expands into another that saves."""
    prompt = stock(seed, prefix="sub/many")
    prompt["5"]["inputs"]["batch_size"] = 2
    prompt["20"] = node("PreviewImage", images=out("8"))
    prompt["21"] = node("PreviewAny", source=out("8"))
    prompt["22"] = node("ProbeExpand", images=out("8"))
    prompt["23"] = node("SaveImage", images=out("22"), filename_prefix="sub/many")
    return prompt


@pytest.mark.parametrize("make", [stock, with_many_outputs], ids=["stock", "many"])
def test_history_and_messages_are_those_of_plain_comfyui(crowd: Crowd, alone: ComfyServer, make: Callable[[int], Prompt]) -> None:
    for server in (crowd.server, alone):  # models and texts are in all caches afterwards
        for prompt_id in [server.queue(make(50 + number)) for number in range(6)]:
            server.wait(prompt_id)
    extra = {"extra_data": {"extra_pnginfo": {"workflow": {"id": "x"}}}}
    there, here = run_on_worker(crowd, make(77), **extra), run_heard(alone, make(77), **extra)
    assert crowd.done_by(there.prompt_id)
    assert sorted_lists(history_of(there, crowd.server)) == sorted_lists(history_of(here, alone))
    if make is stock:
        assert sorted_lists(there.heard) == sorted_lists(here.heard)
    else:  # files are announced when they are here, at the end
        names = [[kind for kind, _ in run.heard if not kind.startswith("progress")] for run in (there, here)]
        assert Counter(names[0]) == Counter(names[1])
        assert names[0][:2] == ["execution_start", "execution_cached"] and names[0][-2:] == ["execution_success", "executing"]
        executed = [[facts for kind, facts in run.heard if kind == "executed"] for run in (there, here)]
        assert sorted(executed[0], key=str) == sorted(executed[1], key=str)
    for mine, theirs in zip(saved(there.entry, crowd.server.base), saved(here.entry, alone.base), strict=True):
        assert pixels(mine).tobytes() == pixels(theirs).tobytes()
        assert {**texts(mine), "prompt": ""} == {**texts(theirs), "prompt": ""}
        assert json.loads(texts(mine)["prompt"]) == json.loads(texts(theirs)["prompt"])


def test_an_error_is_that_of_plain_comfyui_word_for_word(crowd: Crowd, alone: ComfyServer) -> None:
    prompt = stock(88)
    prompt["bad"] = node("ProbeRaise", images=out("8"), kind="ValueError")
    prompt["10"]["inputs"]["images"] = out("bad")
    there, here = run_on_worker(crowd, prompt), run_heard(alone, prompt)
    assert "failed on a worker" in crowd.server.log()
    failed = [dict(run.entry["status"]["messages"])["execution_error"] for run in (there, here)]
    mine, theirs = (
        sorted_lists(plain_text(facts, prompt_id=run.prompt_id, base=base))
        for facts, run, base in zip(failed, (there, here), (crowd.models, alone.base), strict=True)
    )
    assert mine["node_id"] == "bad" and mine["traceback"][-1].startswith('  File "BASE/custom_nodes/probe_nodes.py"')
    assert mine == theirs
    assert there.entry["status"]["status_str"] == "error" and there.entry["status"]["completed"] is False
    assert [kind for kind, _ in there.heard if not kind.startswith("progress")] == [
        kind for kind, _ in here.heard if not kind.startswith("progress")
    ]


def backs(crowd: Crowd, prompt_id: str) -> int:
    """How often a prompt came back because a file was missing on a worker."""
    return len(re.findall(f"prompt {prompt_id} is back in the queue: .*FileNotFoundError", crowd.server.log()))


def test_what_fails_for_a_file_that_only_the_workers_lack_is_made_here_and_what_nobody_has_fails_with_the_error_of_here(
    crowd: Crowd,
) -> None:
    (crowd.server.base / "models" / "of_a_pack.bin").write_bytes(b"weights")
    ids = []
    with crowd.busy_master():
        for seed, name in ((91, "of_a_pack.bin"), (92, "of_nobody.bin")):
            prompt = stock(seed)
            prompt["file"] = node("ProbeModelFile", images=out("8"), name=name)
            prompt["10"]["inputs"]["images"] = out("file")
            ids.append(crowd.server.queue(prompt))
        crowd.server.until(lambda: all(backs(crowd, prompt_id) for prompt_id in ids))
    here, nowhere = (crowd.server.wait(prompt_id) for prompt_id in ids)
    assert here["status"]["status_str"] == "success" and here["outputs"]["10"]["images"]
    kind, facts = nowhere["status"]["messages"][-1]
    assert kind == "execution_error" and facts["exception_type"] == "FileNotFoundError" and facts["node_id"] == "file"
    assert str(crowd.server.base) in facts["exception_message"]
    assert [backs(crowd, prompt_id) for prompt_id in ids] == [1, 1]


def test_an_interrupt_ends_the_prompt_that_is_meant_and_no_other(crowd: Crowd) -> None:
    with crowd.busy_master() as blocking, crowd.server.listen() as listener:
        prompt_id = crowd.server.queue(stock(99, pause=5000), client_id=listener.client_id)
        listener.wait("progress", lambda event: event["data"]["prompt_id"] == prompt_id and event["data"]["node"] == "slow")
        assert set(crowd.running()) == {blocking, prompt_id}
        began = time.monotonic()
        crowd.server.post("/interrupt", {"prompt_id": prompt_id})
        entry = crowd.server.wait(prompt_id)
        took_s = time.monotonic() - began
        listener.wait_end(prompt_id)
        assert took_s < 2
        kind, facts = entry["status"]["messages"][-1]
        assert (kind, facts["node_id"], facts["node_type"]) == ("execution_interrupted", "slow", "ProbeSteps")
        assert facts["executed"] and entry["status"]["status_str"] == "error" and entry["outputs"] == {}
        assert listener.of("execution_interrupted", prompt_id=prompt_id)
        assert crowd.running() == [blocking], "the master goes on"
    assert crowd.server.execute(stock(100))


def test_an_interrupt_without_a_name_ends_all_that_runs(crowd: Crowd) -> None:
    with crowd.busy_master() as blocking:
        prompt_id = crowd.server.queue(stock(101, pause=5000))
        crowd.server.until(lambda: prompt_id in crowd.running())
        crowd.server.post("/api/interrupt", {})
        for ended in (blocking, prompt_id):
            assert crowd.server.wait(ended)["status"]["messages"][-1][0] == "execution_interrupted"


def ends_by_interrupt(crowd: Crowd, prompt_id: str) -> bool:
    """Whether it was interrupted, and not only ended."""
    return bool(crowd.server.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted")


def test_a_list_of_prompts_to_cancel_ends_these_wherever_they_are_and_no_other(crowd: Crowd) -> None:
    with crowd.busy_master() as blocking:
        first, second = (crowd.server.queue(stock(seed, pause=5000)) for seed in (111, 112))
        crowd.server.until(lambda: {first, second} <= set(crowd.running()))
        waiting, kept = (crowd.server.queue(stock(seed)) for seed in (113, 114))
        assert crowd.server.post("/api/jobs/cancel", {"job_ids": [first, {"id": waiting}]})[0] == 400
        assert set(crowd.running()) == {blocking, first, second}, "nothing is ended where a part of the list is refused"
        assert crowd.server.post("/api/jobs/cancel", {"job_ids": [first, waiting, "unknown"]}) == (200, {"cancelled": True})
        assert ends_by_interrupt(crowd, first)
        assert crowd.server.wait(kept)["status"]["status_str"] == "success", "the worker is free for the next one"
        assert set(crowd.running()) == {blocking, second} and crowd.server.history(waiting) is None
        assert crowd.server.post("/api/jobs/cancel", {"job_ids": [second]}) == (200, {"cancelled": True})
        assert ends_by_interrupt(crowd, second) and crowd.running() == [blocking], "the master goes on"
        assert crowd.server.post(f"/api/jobs/{kept}/cancel") == (200, {"cancelled": False})
        assert crowd.server.post("/api/jobs/cancel", {"job_ids": [blocking]}) == (200, {"cancelled": True})
        assert ends_by_interrupt(crowd, blocking)


def test_two_prompts_of_one_id_are_judged_and_run_each_for_itself(crowd: Crowd) -> None:
    only_here = stock(121, prefix="same")
    only_here["20"] = node("MasterOnly", images=out("8"))
    with crowd.busy_master(), crowd.server.listen() as listener:
        for prompt in (only_here, stock(122, prefix="same", pause=200), stock(123, prefix="same", pause=200)):
            crowd.server.queue(prompt, prompt_id="twice", client_id=listener.client_id)
        crowd.server.until(lambda: crowd.running().count("twice") == 2)
        assert list(crowd.ordinary()["running"]) == ["twice", "twice"]
        crowd.server.until(lambda: len(listener.of("execution_success", prompt_id="twice")) == 2)
        assert crowd.server.get("/prompt")["exec_info"]["queue_remaining"] == 2, "the other one waits for the master"
    crowd.wait_idle()
    found = sorted(crowd.output.glob("same*"), key=lambda path: path.name)
    assert {json.loads(texts(path)["prompt"])["7"]["inputs"]["seed"] for path in found} == {121, 122, 123}


def test_an_interrupt_by_an_id_that_two_prompts_have_ends_both_wherever_they_run(crowd: Crowd) -> None:
    blocking = blocker()
    crowd.server.queue(blocking, prompt_id="twins")
    crowd.server.until(lambda: crowd.running() == ["twins"])
    other = crowd.server.queue(stock(131, pause=5000))
    crowd.server.queue(stock(132, pause=5000), prompt_id="twins")
    crowd.server.until(lambda: sorted(crowd.running()) == sorted(["twins", "twins", other]))
    crowd.server.post("/interrupt", {"prompt_id": "twins"})
    crowd.server.until(lambda: crowd.running() == [other], 10)
    crowd.server.post("/interrupt", {"prompt_id": other})
    assert ends_by_interrupt(crowd, other)


def test_a_prompt_that_is_deleted_while_it_waits_never_runs_and_clear_leaves_what_runs(crowd: Crowd) -> None:
    with crowd.busy_master():
        running = [crowd.server.queue(stock(200 + number, pause=100)) for number in range(2)]
        crowd.server.until(lambda: set(running) <= set(crowd.running()))
        waiting = [crowd.server.queue(stock(300 + number)) for number in range(3)]
        crowd.server.post("/queue", {"delete": [waiting[0]]})
        assert crowd.server.get("/prompt")["exec_info"]["queue_remaining"] == 5
        crowd.server.post("/queue", {"clear": True})
        for prompt_id in running:
            assert crowd.server.wait(prompt_id)["status"]["status_str"] == "success"
    crowd.wait_idle()
    assert [crowd.server.history(prompt_id) for prompt_id in waiting] == [None] * 3


def test_previews_come_in_the_form_that_the_page_knows(crowd: Crowd) -> None:
    run = run_on_worker(crowd, stock(400, steps=400))
    assert run.previews, "no preview within a run of seconds"
    assert {preview[:8] for preview in run.previews} == {struct.pack(">II", 1, 1)}, "PREVIEW_IMAGE, JPEG"
    with Image.open(io.BytesIO(run.previews[0][8:])) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512), "as large as ComfyUI shows them"


def test_a_page_that_knows_whose_previews_are_is_told(crowd: Crowd) -> None:
    with crowd.busy_master(), crowd.server.listen() as listener:
        listener.send({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        prompt_id = crowd.server.queue(stock(401, steps=400), client_id=listener.client_id)
        listener.wait_end(prompt_id)
    assert listener.binary
    kind, length = struct.unpack(">II", listener.binary[0][:8])
    about = json.loads(listener.binary[0][8 : 8 + length])
    assert (kind, about["prompt_id"], about["node_id"], about["image_type"]) == (4, prompt_id, "7", "image/jpeg")

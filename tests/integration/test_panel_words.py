"""What the panel says when work goes wrong: no memory, a killed engine, models, node packs and versions that are not everywhere."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.command_line import PROJECT, pictures, until
from tests.panel_rig import PanelRig, panel_rig
from tests.prompts import node, out

pytestmark = [
    pytest.mark.redis, pytest.mark.timeout(240), pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]  # fmt: skip

PLAIN, RICH, POOR = "pc1-plain", "pc1-rich", "pc1-poor"


@contextmanager
def worker(rig: PanelRig, name: str, module: str = "tests.worker_process", **environment: str) -> Iterator[None]:
    """One that somebody has started by hand; until it takes items."""
    with (rig.folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *(["worker", "--end-with-stdin"] if module == "distributed_comfy" else [])],
            stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=PROJECT, env={**rig.line.environment, "DC_WORKER_NAME": name, **environment},
        )  # fmt: skip
    try:
        rig.page.wait_worker(name, lambda found: found["state"] == "idle", 120)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelRig]:
    """A worker with the node classes of this project alone."""
    with panel_rig(tmp_path_factory.mktemp("words")) as rig, worker(rig, PLAIN, "distributed_comfy"):
        yield rig


@pytest.fixture(scope="module")
def differing(rig: PanelRig) -> Iterator[None]:
    """Two with another node pack; one of them has another version, and lacks a model."""
    models = "sdxl.safetensors flux.safetensors"
    with worker(rig, RICH, RULE_MODELS=models), worker(rig, POOR, RULE_MODELS=models.split()[0], RULE_DEVICE_CLASS="older"):
        yield


def submit(rig: PanelRig, prompt: Any, *options: str) -> str:
    """A job whose collector goes on by itself; its id."""
    done = rig.line.run("run", rig.line.write("prompt.json", prompt), "--detach", "--json", *options)
    assert done.status == 0, done.err
    return str(done.json["job"])


def with_model(name: str) -> Any:
    """Pictures for which a worker needs this model, and the node class that loads it."""
    prompt = pictures()
    prompt["load"] = node("RuleLoader", ckpt_name=name, images=out("make"))
    prompt["collect"]["inputs"]["images"] = out("load")
    return prompt


def test_memory_that_is_not_enough_is_said_of_job_and_worker_with_ways_to_need_less(rig: PanelRig) -> None:
    job = submit(rig, pictures(width=4096, height=4096, batch_size=4096, steps=1), "--items", "1")  # 768 GiB
    until(lambda: rig.page.get(f"/jobs/{job}")["job"]["state"] == "failed", 120)
    found = rig.page.get(f"/jobs/{job}")
    for message, remedy in (
        (found["job"]["reason"], found["job"]["remedy"]),
        (found["error"]["message"], found["error"]["remedy"]),
        ((last := rig.page.state()["workers"][PLAIN]["last_error"])["message"], last["remedy"]),
    ):
        assert "cpu ran out of memory in node make" in message and "allocate" in message
        assert remedy.startswith("ask for a smaller batch_size") and "--lowvram" in remedy and remedy.endswith("more memory")


def test_an_engine_that_is_killed_says_that_its_computer_may_lack_memory(rig: PanelRig) -> None:
    job = submit(rig, pictures(width=256, height=256, steps=3000), "--items", "1")
    found = rig.page.wait_worker(PLAIN, lambda worker: worker["items"])
    for engine in psutil.Process(found["pid"]).children():
        engine.kill()  # as the kernel does it, where memory is short
    last = until(lambda: (error := rig.page.state()["workers"][PLAIN]["last_error"])["code"] == "engine_died" and error)
    assert "ended with signal 9 (SIGKILL)" in last["message"]
    assert last["remedy"].startswith("look into its log") and "out of memory" in last["remedy"] and "fewer workers" in last["remedy"]
    item = until(lambda: (item := rig.page.get(f"/jobs/{job}")["items"][0])["attempts"] and item)
    assert item["worker"] in ("", PLAIN)
    rig.page.post(f"/jobs/{job}/orders", {"order": "cancel"})
    rig.page.wait_worker(PLAIN, lambda worker: worker["state"] == "idle", 90)


def test_models_node_packs_and_versions_that_differ_are_named_with_who_lacks_what(rig: PanelRig, differing: None) -> None:
    report = rig.page.post("/doctor", {}, timeout_s=120)
    found = {each["check"]: each for each in report["findings"] if each["check"].startswith("workers:")}
    versions, packs, models = (found[f"workers: {what}"] for what in ("versions", "node packs", "models"))
    assert versions["level"] == packs["level"] == models["level"] == "warn"
    assert f"older on {POOR}" in versions["found"] and "the same version" in versions["remedy"]
    assert packs["found"].startswith(f"{PLAIN}: without") and "RuleBegin" in packs["found"]
    assert packs["remedy"] == "install the same node packs there; until then such prompts run elsewhere"
    assert models["found"] == f"{POOR}: without models that others have (flux.safetensors)"
    assert models["remedy"] == "copy them there, into the same folders; until then prompts with them run elsewhere"


def test_a_job_that_nobody_can_run_any_more_says_who_lacks_what_and_goes_on_when_it_comes_back(rig: PanelRig, differing: None) -> None:
    model = "late.safetensors"
    with worker(rig, "pc1-late", RULE_MODELS=model):
        rig.page.post("/workers/pc1-late/orders", {"order": "drain"})
        rig.page.wait_worker("pc1-late", lambda worker: worker["state"] == "drained")
        job = submit(rig, with_model(model), "--items", "2")
    with rig.page.events() as events:
        told = events.wait(lambda state: (found := state["jobs"][job])["reason"] and found)
        assert told["state"] == "pending" and told["reason"].startswith("no live worker can run it: ")
        assert f"{RICH} lacks model '{model}' for RuleLoader.ckpt_name" in told["reason"]
        assert f"{PLAIN} lacks node class RuleLoader" in told["reason"]
        assert "install" in told["remedy"] and "goes on by itself" in told["remedy"]
        detail = rig.page.get(f"/jobs/{job}")["job"]
        assert (detail["reason"], detail["remedy"]) == (told["reason"], told["remedy"])
        with worker(rig, "pc1-again", RULE_MODELS=model):
            done = events.wait(lambda state: (found := state["jobs"][job])["state"] == "done" and found, 90)
        assert (done["reason"], done["remedy"]) == ("", "")


def test_nothing_of_it_is_a_fault_of_the_panel(rig: PanelRig) -> None:
    assert "Traceback" not in rig.said() and "please report" not in rig.said()

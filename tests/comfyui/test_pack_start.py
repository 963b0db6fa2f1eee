"""ComfyUI with the pack, as it starts: classes, cluster, agent and workers; and what is left of them when it ends."""
from __future__ import annotations

import json
import re
import shutil
import signal
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import gone
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import PROJECT
from tests.conftest import RedisServer, free_port, running_redis

GONE_S = 100.0
"""An embedded Redis whose ComfyUI was killed waits 60 s for it to come back."""


def written(server: ComfyServer, name: str, content: Any) -> Path:
    """A file of the user's own configuration."""
    path = server.line.folder / "home" / ".config" / "distributed-comfy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def phase(server: ComfyServer, number: int = 0) -> str:
    """What a worker of this host does."""
    workers = server.status()["host"]["workers"]
    return str(workers[number]["phase"]) if len(workers) > number else "none"


def test_a_worker_is_started_on_demand_from_a_second_terminal_and_a_killed_comfyui_leaves_no_process(server: ComfyServer) -> None:
    server.start("--preview-method", "none")
    status = server.wait_ready()
    assert status["servers"].startswith("embedded Redis at redis://:***@127.0.0.1")
    server.until(lambda: server.status()["host"]["agent"] == "here")
    assert server.status()["host"]["workers"] == [] and status["options"]["auto_launch"] is False
    assert [offer["device"] for offer in server.status()["host"]["offers"]] == ["cpu"]
    told = "this host has no worker yet; `distributed-comfy workers add --device cpu` gives it one"
    server.until(lambda: f"[distributed-comfy] {told}" in server.log())
    dated = (server.line.folder / "cache" / "comfyui.log").read_text()
    assert re.search(rf"^\d{{4}}-\d\d-\d\d [\d:,]+ INFO +{server.running.pid} {re.escape(told)}$", dated, re.MULTILINE)
    assert "`distributed-comfy workers add --device cpu`" in server.line.run("workers", "list").out
    assert {"DistributedSeed", "DistributedCollector", "UltimateSDUpscaleDistributed"} <= server.get("/object_info").keys()

    added = server.line.run("workers", "add", "--device", "cpu")
    assert added.status == 0, added.err
    server.until(lambda: phase(server) == "running")
    worker = server.status()["host"]["workers"][0]
    assert worker["arguments"] == ["--base-directory", str(server.base), "--disable-api-nodes", "--preview-method", "none"]
    folder = Path(worker["log_folder"])
    assert f"starting ComfyUI in {server.comfy.root.resolve()}" in (folder / "engine.log").read_text()
    assert "[distributed-comfy]" not in (folder / "engine.log").read_text()  # the worker's ComfyUI is no master

    done = server.line.run("run", server.line.write("tiny.json", distributed()), "--items", "2", "--out", server.line.folder / "out")
    assert done.status == 0, done.err
    assert len(list((server.line.folder / "out").glob("*.png"))) == 4  # two to an item

    server.kill()
    server.until(lambda: not server.line.left_running(), GONE_S)


def test_workers_start_with_comfyui_where_that_is_wanted_and_end_with_it_in_good_order(server: ComfyServer) -> None:
    written(server, "comfyui.json", {"auto_launch": True})
    written(server, "workers.json", {"workers": {"pc1-cpu": {"device": "cpu"}, "pc1-off": {"device": "cpu", "enabled": False}}})
    server.start(DC_HOST="pc1")
    server.until(lambda: phase(server) == "running")
    assert phase(server, 1) == "disabled"
    begun = time.monotonic()
    assert server.stop(signal.SIGINT) == 0
    assert time.monotonic() - begun < 20
    assert server.line.left_running() == []
    assert "Traceback" not in server.log().rpartition("Stopped server")[2]


def test_the_agent_of_an_up_that_was_there_first_is_used_until_it_ends(server: ComfyServer) -> None:
    up = server.line.start("up", "--engine", "builtin")
    server.until(lambda: server.line.run("hosts", "list", "--json").json)
    server.start()
    server.wait_ready()
    host = server.until(lambda: (found := server.status()["host"])["agent"] == "elsewhere" and found["workers"] and found)
    assert f"pid {up.pid}" in host["reason"]
    assert host["workers"][0]["device"] == "cpu" and "arguments" not in host["workers"][0]
    assert f"[distributed-comfy] {host['reason']}; this ComfyUI uses that one" in server.log()
    assert server.line.interrupt(up).status == 0
    server.until(lambda: server.status()["host"]["agent"] == "here", 60.0)
    assert phase(server) == "stopped"  # what `up` wrote down, and nobody asked for
    name = server.status()["host"]["workers"][0]["name"]
    server.until(lambda: f"`distributed-comfy workers start {name}` starts one" in server.log())


def test_without_its_redis_comfyui_works_alone_and_joins_when_that_comes(server: ComfyServer, redis_server: RedisServer) -> None:
    port = free_port()
    server.start(DC_REDIS_URL=f"redis://127.0.0.1:{port}/0")
    status = server.until(lambda: (found := server.status())["session"] == "failed" and found)
    assert f"127.0.0.1:{port}" in status["reason"] and "DC_REDIS_URL" in status["reason"]
    entry = server.execute({"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
                            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "alone"}}})  # fmt: skip
    assert entry["outputs"]["2"]["images"]
    with running_redis(redis_server.program, server.line.folder / "redis", port=port):
        assert server.wait_ready()["servers"] == f"redis://127.0.0.1:{port}/0"
        server.stop()


@pytest.mark.comfyui_long
def test_an_embedded_redis_that_was_killed_is_started_again(server: ComfyServer) -> None:
    server.start()
    before = server.wait_ready()["servers"]
    keeper = next(process for process in server.line.processes() if "distributed_comfy.state.keeper" in " ".join(process.cmdline()))
    for process in [*keeper.children(recursive=True), keeper]:
        process.kill()
    server.until(lambda: (found := server.status())["session"] == "ready" and found["servers"] != before)
    server.until(lambda: server.status()["host"]["agent"] == "here")


@pytest.mark.comfyui_long
def test_a_restart_within_the_process_leaves_no_worker_of_before(server: ComfyServer) -> None:
    (server.base / "custom_nodes" / "reboot.py").write_text(
        "import os, sys, threading\nfrom server import PromptServer\nNODE_CLASS_MAPPINGS = {}\n"
        "@PromptServer.instance.routes.get('/reboot')\nasync def reboot(request):\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv])  # as ComfyUI-Manager does\n"
    )
    written(server, "comfyui.json", {"auto_launch": True})
    written(server, "workers.json", {"workers": {"pc1-cpu": {"device": "cpu"}}})
    server.start(DC_HOST="pc1", DC_ENGINE="builtin")
    server.until(lambda: phase(server) == "running")
    before = server.status()["host"]["workers"][0]["pid"]
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        server.get("/reboot")
    server.until(lambda: gone(before))
    server.wait_until_it_answers()
    server.until(lambda: phase(server) == "running")
    assert server.status()["host"]["workers"][0]["pid"] != before
    assert server.stop() == 0
    server.until(lambda: not server.line.left_running(), 10.0)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_of_two_packs_with_the_same_classes_the_one_loaded_first_has_them(server: ComfyServer, first: str) -> None:
    later = server.line.folder / "later" / "custom_nodes"  # ComfyUI loads the packs of further folders after those of its own
    later.mkdir(parents=True)
    own = server.base / "custom_nodes"
    theirs = (later if first == "ours" else own) / "ComfyUI-Distributed"
    theirs.mkdir()
    (theirs / "__init__.py").write_text(
        "class Theirs:\n    INPUT_TYPES = classmethod(lambda s: {'required': {}})\n    RETURN_TYPES = ()\n    FUNCTION = 'run'\n"
        "    CATEGORY = 'theirs'\nNODE_CLASS_MAPPINGS = {'DistributedCollector': Theirs, 'DistributedSeed': Theirs}\n"
    )
    if first == "theirs":
        shutil.move(own / "distributed-comfy", later)
    config = server.line.folder / "extra.yaml"
    config.write_text(f"more:\n  custom_nodes: {later}\n")
    server.start("--extra-model-paths-config", str(config))
    category = server.get("/object_info/DistributedCollector")["DistributedCollector"]["category"]
    lines = [line for line in server.log().splitlines() if "ComfyUI-Distributed" in line and line.startswith("[distributed-comfy]")]
    if first == "ours":
        assert category != "theirs" and server.status()["session"] in ("starting", "ready")
        assert len(lines) == 1 and "also has DistributedCollector, DistributedSeed" in lines[0]
    else:
        assert category == "theirs" and server.ask("GET", "/distributed_comfy/status")[0] == 404
        assert len(lines) == 1 and "was loaded first and has DistributedCollector, DistributedSeed: distributed-comfy stays out" in lines[0]
        assert server.line.left_running() == [line for line in server.line.left_running() if "main.py" in line]


def test_the_repository_beside_the_door_is_loaded_once_and_a_foreign_package_keeps_it_out(server: ComfyServer) -> None:
    clone = server.base / "custom_nodes" / "Distributed-Comfy"
    clone.mkdir()
    shutil.copyfile(PROJECT / "__init__.py", clone / "__init__.py")
    shutil.copytree(PROJECT / "distributed_comfy", clone / "distributed_comfy")
    server.start()
    server.wait_ready()
    lines = [line for line in server.log().splitlines() if line.startswith("[distributed-comfy]")]
    about = [line for line in lines if str(clone) in line]
    assert len(about) == 1 and f"both bring distributed-comfy, and one is enough: remove {clone} (version" in about[0], lines
    assert sum("connected within" in line for line in lines) == 1
    server.stop()

    foreign = server.line.folder / "foreign"
    foreign.mkdir()
    (foreign / "tasks.py").write_text("")
    server.log_file.unlink()
    server.start(PYTHONPATH=str(foreign))
    lines = [line for line in server.log().splitlines() if line.startswith("[distributed-comfy]")]
    assert lines and all(f"package 'tasks' comes from {foreign / 'tasks.py'}" in line for line in lines)
    assert "DistributedCollector" not in server.get("/object_info")
    server.stop()

    shutil.rmtree(clone)
    removed = server.line.run("comfyui", "uninstall", server.base)
    assert removed.status == 0 and not (server.base / "custom_nodes" / "distributed-comfy").exists()

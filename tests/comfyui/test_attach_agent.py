"""A ComfyUI that runs already as one of the workers that an agent keeps: added by a command, seen, stopped, killed and brought back."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess, gone
from tests.cluster_fixtures import THREADS
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.plain_comfyui import PlainComfyUI, plain_comfyui
from tests.comfyui.test_attach_cluster import ask, foreign_prompt
from tests.command_line import CommandLine, until
from tests.prompts import node, out

NAME = "pc1-attach"
SEEDED = {
    "seed": node("DistributedSeed", seed=5),
    "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=out("seed")),
    "collect": node("DistributedCollector", images=out("picture"), load_balance=False),
    "save": node("SaveImage", images=out("collect"), filename_prefix="x"),
}


@pytest.fixture
def line(tmp_path: Path, redis_url: str, blob_url: str) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, DC_REDIS_URL=redis_url, DC_BLOB_URL=blob_url, DC_THREADS=str(THREADS))
    yield line
    assert until(lambda: not line.left_running())


@pytest.fixture
def agent(line: CommandLine, redis_url: str, blob_url: str) -> Iterator[AgentProcess]:
    """With a worker of the built-in engine; another one by command."""
    agent = AgentProcess(line, redis_url, blob_url)
    agent.write(workers={"pc1-cpu": {"device": "cpu", "cores": "auto"}})
    process = agent.start()
    agent.wait("pc1-cpu", "running")
    yield agent
    agent.end(process)
    agent.close()


def add(line: CommandLine, agent: AgentProcess, url: str) -> None:
    """The command of docs/attach.md."""
    done = line.run("workers", "add", "--engine", "attach", "--comfyui-url", url)
    assert done.status == 0 and f"worker {NAME} on pc1: added, starting" in done.out, done.err
    agent.wait(NAME, "running")


def test_an_added_comfyui_is_listed_with_its_models_takes_no_cores_and_shares_a_job(
    line: CommandLine, agent: AgentProcess, plain: PlainComfyUI
) -> None:
    before = agent.wait("pc1-cpu", "running").cores
    add(line, agent, plain.url.replace("://", "://me:geheim@"))
    kept = agent.wait(NAME, "running")
    assert (kept.device, kept.cores) == ("attach", "") and agent.wait("pc1-cpu", "running").cores == before
    listed = {(each["folder"], each["name"]): each["workers"] for each in line.run("models", "list", "--json").json}
    assert listed["vae", "tiny_taesd16.safetensors"] == [NAME]
    assert ("custom_nodes", "tiny_nodes.py") not in listed
    needed = {"1": node("VAELoader", vae_name="none.safetensors"), "2": node("PreviewAny", source=out("1"))}
    missing = line.run("models", "missing", line.write("needed.json", needed), "--json")
    (model,) = missing.json["models"]
    assert (model["folder"], model["lacked_by"], model["near"]) == ("vae", [NAME], "tiny_taesd16.safetensors")
    done = line.run("run", line.write("seeded.json", SEEDED), "--items", "40", timeout_s=120)
    assert done.status == 0 and "40 files" in done.err + done.out, done.err
    states = {each["name"]: each for each in line.run("workers", "list", "--json").json}
    assert all(states[name]["status"]["items_done"] for name in (NAME, "pc1-cpu"))
    everything = agent.said() + line.run("hosts", "config", "--json").out + line.run("workers", "show", NAME, "--json").out
    assert "geheim" not in everything + line.run("workers", "logs", NAME).out
    assert line.run("workers", "clear-memory", NAME).status == 0


def test_a_comfyui_that_dies_and_comes_back_is_used_again_without_a_restart_of_its_worker(
    line: CommandLine, agent: AgentProcess, comfy: Comfy, base_directory: Path, tmp_path: Path
) -> None:
    with plain_comfyui(comfy.root, comfy.python, base_directory, tmp_path / "first", threads=THREADS) as first:
        add(line, agent, first.url)
        os.kill(first.pid, signal.SIGKILL)
    pid = agent.wait(NAME, "running").pid
    until(lambda: "waits for its ComfyUI" in line.run("workers", "logs", NAME).out, 60)
    assert line.run("run", line.write("seeded.json", SEEDED), "--items", "2", timeout_s=60).status == 0, "the other worker goes on"
    port = int(first.url.rpartition(":")[2])
    with plain_comfyui(comfy.root, comfy.python, base_directory, tmp_path / "second", threads=THREADS, port=port):
        done = line.run("run", line.write("seeded.json", SEEDED), "--items", "2", "--engine", "attach", "--wait", "60", timeout_s=120)
        assert done.status == 0, done.err
    assert agent.wait(NAME, "running", lambda worker: worker.pid == pid).restarts == 0


def test_nothing_of_a_worker_that_was_stopped_or_killed_stays_in_the_queue_of_a_busy_comfyui(
    line: CommandLine, agent: AgentProcess, plain: PlainComfyUI
) -> None:
    add(line, agent, plain.url)
    foreign = [foreign_prompt(plain, 20.0) for _ in range(3)]

    def ours() -> list[str]:
        queue = ask(plain, "/queue")
        return [entry[1] for entry in queue["queue_pending"] + queue["queue_running"] if entry[1] not in foreign]

    running = line.start("run", line.write("seeded.json", SEEDED), "--items", "1", "--engine", "attach")
    try:
        (waiting,) = until(ours)
        assert line.run("workers", "stop", NAME, "--now", "--wait", "30").status == 0
        assert ours() == []
        assert line.run("workers", "start", NAME, "--wait", "60").status == 0
        (again,) = until(ours)
        assert again != waiting
        pid = agent.wait(NAME, "running").pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
        agent.wait(NAME, "running", lambda worker: worker.pid != pid)
        until(lambda: again not in ours() and len(ours()) == 1, 60)  # its successor ends the one, and has the item itself
    finally:
        line.interrupt(running)
        for prompt_id in foreign:
            ask(plain, "/queue", {"delete": [prompt_id]})
        ask(plain, "/interrupt", {})
    until(lambda: ours() == [])

"""Bad input to the command line: one clear line with a remedy, the right exit status, and nothing queued."""
from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_rig import Rig
from tests.command_line import PROJECT, CommandLine, pictures
from tests.conftest import RedisServer
from tests.prompts import node, out, without

pytestmark = pytest.mark.redis


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> Iterator[CommandLine]:
    """A command line on the rig; no bad input may leave a job."""
    cluster = builtin_rig.cluster
    before = set(cluster.jobs.jobs())
    yield CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)
    assert set(cluster.jobs.jobs()) == before, "something was queued"


@pytest.fixture
def nobody(redis_url: str, blob_url: str, tmp_path: Path) -> CommandLine:
    """A command line on servers without any worker."""
    return CommandLine(tmp_path, DC_REDIS_URL=redis_url, DC_BLOB_URL=blob_url)


def refused(line: CommandLine, prompt: Any, *options: str, status: int = 2) -> str:
    """The one line that a prompt is refused with."""
    done = line.run("run", line.write("graph.json", prompt), *options)
    assert (done.status, done.out) == (status, ""), done.err
    lines = [text for text in done.err.splitlines() if not text.startswith("connected to ")]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert not (line.folder / "output").exists(), "nothing is made for a run that is refused"
    return lines[0]


# -- the prompt ---------------------------------------------------------------------------------------------------------
def test_a_workflow_of_the_editor_says_how_to_export_a_prompt(line: CommandLine) -> None:
    said = refused(line, {"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4})
    assert "graph.json is a workflow saved for ComfyUI's editor, not a prompt" in said and "Export (API)" in said


def test_what_is_not_json_is_named_with_the_place(line: CommandLine) -> None:
    assert "not JSON" in refused(line, '{"1": {"class_type": ') and "graph.json" in refused(line, "no json at all")


def test_a_missing_file_is_named(line: CommandLine) -> None:
    done = line.run("run", "nowhere.json")
    assert done.status == 2 and "cannot read the prompt nowhere.json: No such file or directory" in done.err


def test_json_that_is_no_graph_is_explained(line: CommandLine) -> None:
    assert "node 1 has no class_type" in refused(line, {"1": {"inputs": {}}})
    prompt = pictures()
    prompt["make"]["inputs"]["seed"] = out("gone")
    assert "input seed of node make is linked to node gone, which does not exist" in refused(line, prompt)


def test_an_unknown_node_class_is_named_with_the_workers_that_lack_it(line: CommandLine) -> None:
    prompt = pictures()
    prompt["extra"] = node("SuperUpscaler9000", image=out("make"))
    prompt["collect"]["inputs"]["images"] = out("extra")
    said = refused(line, prompt, status=3)
    assert "one lacks node class SuperUpscaler9000" in said and "two lacks node class SuperUpscaler9000" in said
    assert "--wait SECONDS" in said


@pytest.mark.comfyui
@pytest.mark.timeout(300)
def test_a_missing_model_is_named_with_the_workers_that_lack_it(comfyui_rig: Rig, tmp_path: Path) -> None:
    cluster = comfyui_rig.cluster
    line = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)
    prompt = json.loads((PROJECT / "examples" / "txt2img_tiny.json").read_text())
    said = refused(line, prompt, "--set", "2.vae_name=none.safetensors", status=3)
    for worker in ("one", "two"):
        assert f"{worker} lacks model 'none.safetensors' for VAELoader.vae_name" in said


def test_a_value_that_no_worker_offers_is_named(line: CommandLine) -> None:
    said = refused(line, pictures(style="cubism"), status=3)
    assert "one lacks value 'cubism' for SeededGenerator.style" in said


def test_a_prompt_without_an_output_says_what_to_add(line: CommandLine) -> None:
    said = refused(line, without(pictures(), "collect"))
    assert "no output node; add SaveImage, PreviewImage or DistributedCollector" in said


def test_a_cycle_is_shown(line: CommandLine) -> None:
    prompt = pictures()
    prompt["a"] = node("ImageInvert", image=out("b"))
    prompt["b"] = node("ImageInvert", image=out("a"))
    prompt["collect"]["inputs"]["images"] = out("b")
    said = refused(line, prompt)
    assert "the prompt has a cycle through nodes" in said and "a" in said and "b" in said


def test_nested_collectors_are_named(line: CommandLine) -> None:
    prompt = pictures()
    prompt["invert"] = node("ImageInvert", image=out("collect"))
    prompt["outer"] = node("DistributedCollector", images=out("invert"), load_balance=False)
    assert "collector collect feeds collector outer; collect once, or set pass_through" in refused(line, prompt)


def test_a_picture_that_is_not_there_is_named_with_node_and_folders(line: CommandLine) -> None:
    prompt = {"load": node("LoadImage", image="cat.png"), "save": node("SaveImage", images=out("load"), filename_prefix="x")}
    said = refused(line, prompt)
    assert "node load loads 'cat.png', which is not in" in said and str(line.folder) in said


# -- options ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("items", ["0", "-1", "10001"])
def test_a_number_of_items_out_of_range_is_refused(line: CommandLine, items: str) -> None:
    assert f"items must be from 1 to 10000, not {items}" in refused(line, pictures(), "--items", items)


@pytest.mark.parametrize(("seed", "items"), [("-1", "1"), ("18446744073709551616", "1"), ("18446744073709551615", "2")])
def test_a_seed_out_of_range_is_refused(line: CommandLine, seed: str, items: str) -> None:
    said = refused(line, pictures(), "--seed", seed, "--items", items)
    assert f"seed {seed} with {items} items ends outside 0..18446744073709551615; choose a smaller seed" in said


def test_options_that_the_prompt_cannot_take_are_refused(line: CommandLine) -> None:
    plain = {"make": node("EmptyImage", width=8, height=8, batch_size=1, color=0), "save": node("PreviewImage", images=out("make"))}
    assert "--items was given, but the prompt has no DistributedSeed" in refused(line, plain, "--items", "3")
    assert "--seed was given, but the prompt has no DistributedSeed" in refused(line, plain, "--seed", "3")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("make.stepz=3", "--set make.stepz: node make has no input 'stepz' in this file; it has"),
        ("nobody.steps=3", "no node has the id, class or title 'nobody'"),
        ("steps=3", "write it as NODE.INPUT=VALUE, for example 3.steps=20"),
    ],
)
def test_a_change_to_nothing_is_refused(line: CommandLine, assignment: str, words: str) -> None:
    assert words in refused(line, pictures(), "--set", assignment)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(line: CommandLine) -> None:
    file = line.write("taken", "a file, not a folder")
    said = refused(line, pictures(), "--items", "1", "--out", str(file / "made"))
    assert f"cannot write to {file}/made" in said and "choose another folder with --out" in said


def test_a_wrong_option_shows_how_it_is_meant(line: CommandLine) -> None:
    done = line.run("run", line.write("graph.json", pictures()), "--engine", "a1111")
    assert done.status == 2 and "--engine" in done.err and "'comfyui', 'builtin'" in done.err


# -- the cluster --------------------------------------------------------------------------------------------------------
def test_without_a_worker_the_remedy_is_named(nobody: CommandLine) -> None:
    said = refused(nobody, pictures(), status=3)
    assert "no worker is running; start one with `distributed-comfy worker`, or one on each GPU of this host with " in said
    assert "or add --workers 2 to let this command start its own" in said


def test_waiting_for_a_worker_has_an_end(nobody: CommandLine) -> None:
    assert "no worker is running" in refused(nobody, pictures(), "--wait", "0.5", status=3)


@pytest.mark.parametrize("name", ["DC_REDIS_URL", "DC_BLOB_URL"])
def test_a_redis_that_cannot_be_reached_is_named_with_its_setting(nobody: CommandLine, name: str) -> None:
    done = nobody.run("run", nobody.write("graph.json", pictures()), **{name: "redis://:geheim@127.0.0.1:1/0"})
    assert done.status == 3
    assert "cannot reach Redis at redis://:***@127.0.0.1:1/0: " in done.err and f"is it running, and is {name} right?" in done.err
    assert "geheim" not in done.err


def test_a_wrong_password_is_said_without_saying_it(redis_server: RedisServer, tmp_path: Path) -> None:
    with _password_server(redis_server.program, tmp_path) as url:
        line = CommandLine(tmp_path, DC_REDIS_URL=url)
        done = line.run("jobs", "list")
    assert done.status == 3, done.err
    assert "refuses the user or password" in done.err and "check DC_REDIS_URL" in done.err
    assert "wrong-one" not in done.err and "Traceback" not in done.err


class _password_server:
    """A server with a password, and a URL with another one."""

    def __init__(self, program: str, folder: Path) -> None:
        self._socket = folder / "s"
        place = ("--port", "0", "--unixsocket", str(self._socket), "--dir", str(folder), "--save", "")
        command = [program, *place, "--requirepass", "right-one"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def __enter__(self) -> str:
        while not self._socket.exists():
            assert self._process.poll() is None
        return f"unix://:wrong-one@{self._socket}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DC_LEASE_TTL_S", "soon", "must be a number above 0, not 'soon'"),
        ("DC_SLOTS", "99", "must be a whole number from 1 to 16, not '99'"),
        ("DC_REDIS_URL", "http://here", "must start with redis://"),
        ("DC_ENGINE", "a1111", "must be comfyui, builtin or attach, not 'a1111'"),
        ("COMFYUI_PATH", "/nowhere/at/all", "is not ComfyUI's folder"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(line: CommandLine, name: str, value: str, words: str) -> None:
    done = line.run("run", line.write("graph.json", pictures()), **{name: value})
    assert done.status == 2
    assert done.err.startswith(f"error: {name}: ") and words in done.err and "Traceback" not in done.err


def test_a_worker_with_a_wrong_setting_does_not_start(nobody: CommandLine) -> None:
    for options, environment, words in (
        (["--name", "GPU 1"], {}, "error: --name: a name has only a-z"),
        (["--device", "gpu"], {}, "error: --device: must be cpu, mps or like cuda:0 or cuda:0,1, not 'gpu'"),
        ([], {"DC_DEVICE": "gpu"}, "error: DC_DEVICE: must be cpu"),
        (["--engine", "comfyui", "--comfyui", "/nowhere/at/all"], {}, "error: --comfyui: /nowhere/at/all is not ComfyUI's folder"),
        (["--engine", "comfyui"], {}, "COMFYUI_PATH: not set, and there is no ComfyUI in ~/comfy/ComfyUI"),
        ([], {"DC_COMFYUI_ARGS": "--one 'two", "DC_ENGINE": "builtin"}, "DC_COMFYUI_ARGS: No closing quotation"),
        (["list"], {}, "'list' is no option of ComfyUI; did you mean `distributed-comfy workers list`?"),
    ):
        done = nobody.run("worker", *options, **environment)
        assert done.status == 2 and words in done.err and "Traceback" not in done.err, done.err


def test_a_misspelt_command_is_told_the_nearest_one(nobody: CommandLine) -> None:
    for typed, meant in (("inivte", "invite"), ("wrokers", "workers"), ("Run", "run")):
        done = nobody.run(typed)
        assert done.status == 2 and f"No such command '{typed}'. Did you mean '{meant}'?" in done.err, done.err
    assert "Did you mean" not in nobody.run("frobnicate").err


def test_errors_come_as_json_too(line: CommandLine) -> None:
    done = line.run("run", line.write("graph.json", pictures()), "--items", "0", "--json")
    error = done.json["error"]
    assert (error["code"], error["exit_code"], error["fields"]) == ("items_out_of_range", 2, {"items": 0, "limit": 10000})
    assert done.err == f"error: {error['message']}\n"


def test_a_traceback_is_shown_to_who_asks_for_it(line: CommandLine) -> None:
    path = line.write("graph.json", pictures())
    assert "Traceback" not in line.run("run", path, "--items", "0").err
    assert "Traceback" in line.run("run", path, "--items", "0", DC_LOG_LEVEL="DEBUG").err


def test_the_original_of_a_prompt_is_not_touched(line: CommandLine) -> None:
    path = line.write("graph.json", pictures())
    before = json.loads(path.read_text())
    refused(line, before, "--set", "make.steps=9", "--items", "0")
    assert json.loads(path.read_text()) == before

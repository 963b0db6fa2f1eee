"""How workers are shown: a list that fits 100 columns, and everything about one."""
from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from distributed_comfy.cli.output import Output
from distributed_comfy.cli.worker_names import unknown_worker
from distributed_comfy.cli.worker_views import how_far, list_workers, show_worker, shown_state, worker_json
from distributed_comfy.state.records import WorkerFacts, WorkerState
from distributed_comfy.state.status import DeviceUse, HostUse, LastError, LoadedModel, RunningItem, WorkerStatus

NOW = 1_000_000
ITEM = "3f9a12bc77d0-4"
GPU = "NVIDIA GeForce RTX 4090"
CLASS = f"{GPU}, driver 550, torch 2.6, ComfyUI 0.3.64"


def worker(name: str = "pc1-cuda0", state: str = "busy", **facts: object) -> WorkerState:
    told = WorkerFacts(**{"name": name, "host": "pc1", "device": "cuda:0", "engine": "comfyui", "engine_version": "0.3.64 (abcdef0123)",
                          "device_class": CLASS, "pid": 7, "package_version": "1.0", **facts})  # type: ignore[arg-type]  # fmt: skip
    return WorkerState(told, state, (ITEM,) if state == "busy" else (), "c" * 32, engine_s=84.0)  # type: ignore[arg-type]


def status(name: str = "pc1-cuda0", **changes: object) -> WorkerStatus:
    running = RunningItem(ITEM, "tile", 2, NOW - 5000, "u~sample", "KSampler", 13, 20)
    told = WorkerStatus(
        name=name, host="pc1", device="cuda:0", state="busy", since_ms=NOW - 12_000, items=(running,), items_done=1234, items_failed=2,
        use=DeviceUse(GPU, 98, 7 * 2**30, 24 * 2**30), host_use=HostUse(2**27, 3 * 2**30, 12 * 2**30, 64 * 2**30),
        engine="comfyui", engine_version="0.3.64 (abcdef0123)", node_classes=370, model_files=42, model_files_hash="12ab34cd" * 4,
        capability="c" * 32, pid=7, engine_pid=9, started_ms=NOW - 7_000_000, started_by="agent",
    )  # fmt: skip
    return replace(told, **changes)  # type: ignore[arg-type]


@pytest.fixture
def output() -> Output:
    made = Output()
    made.results = Console(file=io.StringIO(), width=100, highlight=False, markup=False, emoji=False)
    return made


def text(output: Output) -> str:
    assert isinstance(output.results.file, io.StringIO)
    return output.results.file.getvalue()


def test_the_list_fits_a_hundred_columns_and_breaks_no_word(output: Output) -> None:
    workers = [worker(), worker("render-box-cuda1", "idle"), worker("pc2-cuda0", "down")]
    down = status("pc2-cuda0", state="down", items=(), reason="the engine ended with signal 9 (SIGKILL); it starts again")
    list_workers(output, workers, {"pc1-cuda0": status(), "pc2-cuda0": down}, NOW)
    lines = text(output).splitlines()
    assert max(map(len, lines)) <= 100, lines
    assert all(word in text(output) for word in (ITEM, "KSampler 13/20", "7.0/24.0", "98%", "comfyui", "cuda:0 RTX 4090", "1234"))
    assert "render-box-cuda1" in text(output), "a worker without a status is listed"
    assert "pc2-cuda0 is down for 12 s: the engine ended with signal 9 (SIGKILL); it starts again" in text(output)


def test_a_wide_list_has_one_line_for_each_worker(output: Output) -> None:
    output.results.width = 200
    list_workers(output, [worker(), worker("b", "idle")], {"pc1-cuda0": status()}, NOW)
    assert len(text(output).splitlines()) == 4 and f"{ITEM}  KSampler 13/20" in text(output) and "comfyui 0.3.64" in text(output)


def test_columns_about_which_nobody_has_anything_to_say_are_left_out(output: Output) -> None:
    list_workers(output, [worker(state="idle", device="cpu")], {}, NOW)
    assert not any(word in text(output) for word in ("VRAM", "LOAD", "TAGS"))


@pytest.mark.parametrize(
    ("of_table", "told", "shown"),
    [
        ("busy", "draining", "draining"), ("busy", "idle", "busy"), ("down", "ending", "ending"), ("drained", "idle", "drained"),
        ("idle", "drained", "idle"), ("lost", "busy", "lost"), ("ticketed", "idle", "ticketed"),
    ],
)  # fmt: skip
def test_the_table_has_the_newer_word_unless_the_worker_knows_more(of_table: str, told: str, shown: str) -> None:
    assert shown_state(worker(state=of_table), status(state=told)) == shown
    assert shown_state(worker(state=of_table), None) == of_table


def test_everything_about_a_worker_is_shown(output: Output) -> None:
    error = LastError("node_failed", "the node said no", NOW - 40_000, "3f9a12bc77d0-3")
    models = (LoadedModel("SDXL", 5 * 2**30, 5 * 2**30), LoadedModel("AutoencoderKL", 2**28, 0))
    output.results.width = 300
    show_worker(output, worker(packs={"rule_nodes.py": "", "Impact": "8.1"}, tags=("big",)), status(last_error=error, models=models), NOW)
    for part in (
        "worker pc1-cuda0: busy for 12 s", f"{ITEM} (tile, attempt 2, node u~sample) for 5 s: KSampler 13/20",
        "1234 items, 2 failed attempts, 84 s of engine time", "node_failed, 40 s ago, item 3f9a12bc77d0-3: the node said no",
        f"cuda:0: {GPU}, 98 % busy, 7.0 of 24.0 GiB used", "worker 0.1 GiB, engine 3.0 GiB; host 12.0 of 64.0 GiB used",
        "SDXL 5.00 GiB, AutoencoderKL 0.25 GiB (0.00 GiB on the device)", "370 node classes (cccccccc), 42 model files (12ab34cd)",
        "pid 7, engine 9 on pc1; started 116 min ago by agent", "Impact 8.1, rule_nodes.py", CLASS, "big", "distributed-comfy 1.0",
        "distributed-comfy workers logs pc1-cuda0",
    ):  # fmt: skip
        assert part in text(output), part


def test_a_worker_of_an_older_version_is_shown_by_what_the_table_knows(output: Output) -> None:
    show_worker(output, worker(), None, NOW)
    assert "none; it has just stopped telling one, or is of an older version" in text(output) and ITEM in text(output)
    assert worker_json(worker(), None)["status"] is None


def test_a_worker_that_starts_is_shown_by_what_it_tells(output: Output) -> None:
    show_worker(output, None, status(state="starting", items=(), reason="the engine starts"), NOW)
    assert "worker pc1-cuda0: starting for 12 s" in text(output) and "the engine starts" in text(output)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (RunningItem(ITEM, "whole"), ""),
        (RunningItem(ITEM, "whole", node_id="3", node_class="VAEDecode", value=0, maximum=1), "VAEDecode"),
        (RunningItem(ITEM, "whole", node_id="3.0.1", value=2, maximum=9), "node 3.0.1 2/9"),
        (RunningItem(ITEM, "whole", node_id="3", node_class="SaveImage", shipping=True), "ships its result"),
        (RunningItem(ITEM, "whole", node_id="3", node_class="SaveImage", shipping=True, waits="it is full"), "its result waits"),
    ],
)
def test_how_far_an_item_is_is_said_as_far_as_it_is_known(item: RunningItem, words: str) -> None:
    assert how_far(item) == words


def test_why_a_result_waits_is_said_in_the_list_and_of_the_one_worker(output: Output) -> None:
    waits = status(items=(RunningItem(ITEM, "whole", shipping=True, waits="the blob Redis at pc0:6380 is full"),))
    list_workers(output, [worker()], {"pc1-cuda0": waits}, NOW)
    assert f"pc1-cuda0 keeps the result of item {ITEM}: the blob Redis at pc0:6380 is full" in text(output)
    show_worker(output, worker(), waits, NOW)
    assert "  waits      the blob Redis at pc0:6380 is full\n" in text(output)


def test_an_unknown_name_comes_with_those_that_there_are() -> None:
    words = str(unknown_worker("pc1-cuda1", ["pc2-cpu", "pc1-cuda0"]))
    assert words.startswith("no worker 'pc1-cuda1' (there are pc1-cuda0, pc2-cpu; did you mean pc1-cuda0?); `distributed-comfy ")
    assert "(there is none)" in str(unknown_worker("x", []))
    many = str(unknown_worker("x", [f"w{number:02}" for number in range(30)]))
    assert "w00, w01" in many and "and 18 more)" in many

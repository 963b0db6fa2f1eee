"""Parts of the node pack that need no ComfyUI: options, what workers take over, which devices are free, who keeps the classes."""
from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import write_reference

import tasks
from distributed_comfy.agent.configuration import WorkerConfiguration
from distributed_comfy.agent.launching import Launcher, Plan, Surroundings
from distributed_comfy.agent.placement import Placement
from distributed_comfy.comfyui import devices as devices_module
from distributed_comfy.comfyui.clash import keep_classes, must_yield
from distributed_comfy.comfyui.context import PackContext
from distributed_comfy.comfyui.devices import own_devices
from distributed_comfy.comfyui.logs import MARK, join_log
from distributed_comfy.comfyui.options import Options, OptionsFile
from distributed_comfy.comfyui.surroundings import for_workers, hides_devices, read_surroundings
from distributed_comfy.engine.devices import Gpu, visible_gpus
from distributed_comfy.errors import NodeOutsideJob, OptionWrong
from distributed_comfy.nodes.registry import node_classes
from distributed_comfy.orchestrator.arguments import split_arguments
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import Settings, environment_at_start
from distributed_comfy.state.records import HostDevice

GPUS = [Gpu(number, f"GPU-{number}", "card", 2**30, f"0000:8{number}:00.0") for number in range(3)]


# -- options -------------------------------------------------------------------------------------------------------------
def test_options_are_kept_in_a_file_and_have_defaults_without_one(tmp_path: Path) -> None:
    file = OptionsFile(tmp_path / "new" / "comfyui.json")
    assert file.current == Options() and file.current.ordinary is None and not file.path.exists()
    file.change("participate", False)
    file.change("ordinary", True)
    assert (file.current.participate, file.current.ordinary) == (False, True)
    assert OptionsFile(file.path).current == file.current
    assert [path.name for path in file.path.parent.iterdir()] == ["comfyui.json"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("participat", True, "did you mean participate"), ("debug", "yes", "cannot be 'yes'"), ("debug", None, "cannot be None")],
)
def test_a_wrong_change_is_refused_and_changes_nothing(tmp_path: Path, name: str, value: Any, words: str) -> None:
    file = OptionsFile(tmp_path / "comfyui.json")
    with pytest.raises(OptionWrong, match=words):
        file.change(name, value)
    assert file.current == Options() and not file.path.exists()


def test_what_another_process_has_written_holds_and_is_not_overwritten(tmp_path: Path) -> None:
    file, other = OptionsFile(tmp_path / "comfyui.json"), OptionsFile(tmp_path / "comfyui.json")
    file.change("debug", True)
    other.change("participate", False)  # as `distributed-comfy config import` does while ComfyUI runs
    assert file.current == Options(debug=True, participate=False)
    other.change("auto_launch", True)
    assert file.change("debug", False) == Options(participate=False, auto_launch=True)
    file.path.unlink()
    assert other.current == Options()


@pytest.mark.parametrize("text", ["{", "[]", '{"debug": 1}', '{"unknown": true}'])
def test_a_damaged_file_is_told_and_not_used(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "comfyui.json"
    path.write_text(text)
    assert OptionsFile(path).current == Options()
    assert str(path) in caplog.text and "mend the file or remove it" in caplog.text


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionWrong, match="cannot be written"):
        OptionsFile(tmp_path / "file" / "comfyui.json").change("debug", True)


# -- what workers take over ----------------------------------------------------------------------------------------------
def arguments(**given: Any) -> Any:
    """ComfyUI's parsed arguments."""
    names = ("cuda_device", "default_device", "oneapi_device_selector", "base_directory", "user_directory", "extra_model_paths_config")
    return types.SimpleNamespace(**{**dict.fromkeys(names), **given})


def test_workers_get_what_is_no_affair_of_the_server_alone() -> None:
    given = (
        "--listen 0.0.0.0 --port=9000 --cpu-vae --cuda-device 1 --fast fp16_accumulation cublas_ops --output-directory out --lowvram "
        "--auto-launch --preview-method auto --base-dir x --cpu --whitelist-custom-nodes a b"
    )
    kept = "--cpu-vae --fast fp16_accumulation cublas_ops --lowvram --preview-method auto --whitelist-custom-nodes a b"
    assert for_workers(given.split()) == kept.split()


def test_paths_reach_workers_as_absolute_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(base_directory="base", extra_model_paths_config=[["a.yaml", "b.yaml"], ["/c.yaml"]])
    argv = "--base-directory base --extra-model-paths-config a.yaml b.yaml --highvram --extra-model-paths-config=/c.yaml"
    base, a, b = (str(tmp_path / name) for name in ("base", "a.yaml", "b.yaml"))
    option = "--extra-model-paths-config"
    assert read_surroundings(given, argv.split()).arguments == ("--base-directory", base, option, a, b, option, "/c.yaml", "--highvram")


def test_a_worker_has_comfyuis_arguments_before_its_own_and_none_with_another_tree(tmp_path: Path) -> None:
    surroundings = Surroundings({"PATH": "/bin"}, ("--base-directory", "/my base"))
    servers = Servers("redis://a", "redis://b", embedded=False)
    launcher = Launcher(Settings(comfyui_args="--fast"), servers, tmp_path, tmp_path, surroundings)
    variables = launcher.environment(Plan(WorkerConfiguration(comfyui_args=("--lowvram",)), Placement(), False))
    assert split_arguments(variables["DC_COMFYUI_ARGS"]) == ("--base-directory", "/my base", "--lowvram")
    assert variables["PATH"] == "/bin" and "HOME" not in variables
    assert launcher.arguments(WorkerConfiguration()) == ("--base-directory", "/my base", "--fast")
    assert launcher.arguments(WorkerConfiguration(comfyui_path="/other")) == ()
    assert launcher.arguments(WorkerConfiguration(engine="attach")) == ()


def test_a_worker_on_the_cpu_is_not_told_how_to_use_a_gpus_memory(tmp_path: Path) -> None:
    servers, surroundings = Servers("redis://a", "redis://b", embedded=False), Surroundings({}, ("--highvram", "--fast"))
    launcher = Launcher(Settings(), servers, tmp_path, tmp_path, surroundings)
    assert launcher.arguments(WorkerConfiguration(device="cpu")) == ("--fast",)
    assert launcher.arguments(WorkerConfiguration(device="cuda:1")) == ("--highvram", "--fast")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process started with")
def test_variables_that_comfyui_changed_reach_workers_as_they_were() -> None:
    script = (
        "import os, sys, types; os.environ['CUDA_VISIBLE_DEVICES'] = '1'; os.environ['ADDED'] = 'x'\n"
        "from distributed_comfy.comfyui.surroundings import read_surroundings as read\n"
        "args = types.SimpleNamespace(cuda_device=1)\n"
        "print(read(args, []).environment.get('CUDA_VISIBLE_DEVICES'), read(args, []).environment['ADDED'])"
    )
    for before, after in (("2,1", "2,1 x"), ("1", "None x"), (None, "None x")):
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment |= {"CUDA_VISIBLE_DEVICES": before} if before else {}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60)
        assert done.stdout.strip() == after, before


def test_without_a_system_that_tells_changed_variables_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGED_HERE", "x")
    assert "CHANGED_HERE" not in environment_at_start(["CHANGED_HERE"])


# -- devices -------------------------------------------------------------------------------------------------------------
def comfyui_on(kind: str, number: int | None = None, **given: Any) -> Any:
    """A ComfyUI that computes on a device."""
    device = types.SimpleNamespace(type=kind, index=number)
    return types.SimpleNamespace(args=arguments(**given), model_management=types.SimpleNamespace(get_torch_device=lambda: device))


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What torch tells of the GPUs of this process: number -> id."""
    told: dict[int, str] = {}
    monkeypatch.setattr(devices_module, "_unique_id", lambda number: told.get(number, ""))
    return told


def test_a_gpu_of_comfyui_is_known_by_its_id_in_whatever_order_cuda_counts(ids: dict[int, str]) -> None:
    ids.update({0: "GPU-2", 1: "GPU-0"})
    everything = visible_gpus(GPUS, None)
    assert own_devices(comfyui_on("cuda", 0), everything, GPUS, {}) == {"cuda:2"}
    assert own_devices(comfyui_on("cuda", 1), everything, GPUS, {}) == {"cuda:0"}
    assert own_devices(comfyui_on("cuda", 0), visible_gpus(GPUS, "2,1"), GPUS, {}) == {"cuda:0"}
    assert own_devices(comfyui_on("cuda", 0), visible_gpus(GPUS, "1"), GPUS, {}) == frozenset()


@pytest.mark.parametrize(
    ("given", "visible", "name"),
    [
        ({}, None, "cuda:1"),
        ({"cuda_device": 2}, None, "cuda:2"),
        ({"cuda_device": 2}, "3,2", "cuda:1"),
        ({"default_device": 1}, None, "cuda:1"),
    ],
)
def test_without_ids_numbers_tell(ids: dict[int, str], given: dict[str, int], visible: str | None, name: str) -> None:
    environment = {"HIP_VISIBLE_DEVICES": visible} if visible else {}
    devices = tuple(HostDevice(f"cuda:{number}") for number in range(3))
    assert own_devices(comfyui_on("cuda", 1 if not given else 0, **given), devices, [], environment) == {name}


def test_other_kinds_of_devices_have_their_names() -> None:
    assert own_devices(comfyui_on("cpu"), (HostDevice("cpu"),), [], {}) == {"cpu"}
    assert own_devices(comfyui_on("mps", 0), (HostDevice("mps"),), [], {}) == {"mps"}
    assert own_devices(comfyui_on("xpu", 1), (HostDevice("xpu:0"), HostDevice("xpu:1")), [], {}) == {"xpu:1"}


def test_only_some_arguments_hide_devices_from_comfyui() -> None:
    assert hides_devices(arguments(cuda_device=0)) and not hides_devices(arguments(default_device=1))


# -- clashes -------------------------------------------------------------------------------------------------------------
class Theirs:
    """A class of another pack."""

    RELATIVE_PYTHON_MODULE = "custom_nodes.Other"


def comfyui_with(*names: str) -> Any:
    """A ComfyUI in which another pack has classes of these names."""
    on_startup: list[Any] = []
    server = types.SimpleNamespace(app=types.SimpleNamespace(on_startup=on_startup))
    return types.SimpleNamespace(server=server, nodes=types.SimpleNamespace(NODE_CLASS_MAPPINGS=dict.fromkeys(names, Theirs)))


def test_a_pack_with_our_collector_keeps_ours_out(caplog: pytest.LogCaptureFixture) -> None:
    assert must_yield(comfyui_with("DistributedCollector", "ImageBatchDivider"), node_classes(PackContext()))
    assert len(caplog.records) == 1 and "Other was loaded first and has DistributedCollector, ImageBatchDivider" in caplog.text


def test_one_with_a_lesser_class_keeps_that(caplog: pytest.LogCaptureFixture) -> None:
    classes = node_classes(PackContext())
    assert not must_yield(comfyui_with("ImageBatchDivider", "DistributedSink"), classes)
    assert "ImageBatchDivider" not in classes and "DistributedSink" in classes and len(caplog.records) == 1


def test_alone_there_is_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    assert not must_yield(comfyui_with("Other"), node_classes(PackContext())) and not caplog.records


def test_classes_that_a_later_pack_replaced_are_put_back(caplog: pytest.LogCaptureFixture) -> None:
    host, classes = comfyui_with(), node_classes(PackContext())
    keep_classes(host, classes)
    host.nodes.NODE_CLASS_MAPPINGS.update(classes, DistributedSeed=Theirs)
    asyncio.run(host.server.app.on_startup[0](None))
    assert classes == host.nodes.NODE_CLASS_MAPPINGS
    assert len(caplog.records) == 1 and "Other also has DistributedSeed" in caplog.text


# -- the rest ------------------------------------------------------------------------------------------------------------
def test_internal_nodes_outside_a_job_are_refused() -> None:
    with pytest.raises(NodeOutsideJob, match="node 7 is internal"):
        PackContext().supply("7", "images")


def test_our_lines_in_comfyuis_log_are_marked_and_hold_no_password_and_a_file_has_their_times(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    ours = [logging.getLogger(name) for name in ("distributed_comfy", "tasks", "tiler")]
    chatty = [logging.getLogger(name) for name in ("celery", "kombu", "amqp")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in (*ours, *chatty)]
    try:
        for _ in range(2):
            join_log(Settings(cache_dir=tmp_path))
        with caplog.at_level(logging.INFO):
            logging.getLogger("distributed_comfy.comfyui.x").info("at %s", "redis://:secret@host/0")
            assert [record.getMessage() for record in caplog.records] == [f"{MARK}at redis://:***@host/0"]
            caplog.clear()
            logging.getLogger("tasks").info("of another pack, which calls its logger so")
            ours = logging.getLogger("tasks.x")
            ours.handle(ours.makeRecord(ours.name, logging.INFO, str(Path(tasks.__file__).with_name("x.py")), 1, "ours", (), None))
        assert [record.getMessage() for record in caplog.records] == ["of another pack, which calls its logger so", f"{MARK}ours"]
        times = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO +\d+ ")
        dated = (tmp_path / "comfyui.log").read_text().splitlines()
        assert [times.sub("", line) for line in dated] == ["at redis://:***@host/0", "ours"]
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers


def test_the_page_has_the_options_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    assert page == write_reference.comfyui_page(page), "run `make docs`"

"""gpu_config.json of ComfyUI-Distributed: what becomes of it, what is dropped and why, and that nothing is overwritten unasked."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.agent.workers_file import WorkersFile
from distributed_comfy.comfyui.compat import usual_device
from distributed_comfy.comfyui.compat_config import arguments_of, device_of, fields_of, option_change
from distributed_comfy.comfyui.gpu_config import Imported, Replaced, parse_gpu_config, read_gpu_config, replaced, write_imported
from distributed_comfy.comfyui.options import OptionsFile
from distributed_comfy.errors import ImportRefused, OptionWrong
from distributed_comfy.state.records import HostDevice
from tests.command_line import CommandLine

CONFIG: dict[str, Any] = {
    "master": {"host": "192.168.1.2", "port": 8188, "cuda_device": 0, "extra_args": "--highvram"},
    "workers": [
        {"id": "1", "name": "Worker 1", "host": None, "port": 8189, "cuda_device": 1, "enabled": True, "type": "local",
         "extra_args": "--listen --port 9000 --lowvram --preview-method auto"},
        {"id": "2", "name": "Worker 1", "port": 8190, "cuda_device": "2", "enabled": False, "extra_args": ""},
        {"id": "3", "name": "Big PC", "host": "192.168.1.50", "port": 8188, "cuda_device": 0, "enabled": True, "type": "remote"},
        {"id": "4", "name": "pod", "host": "abc-8188.proxy.example.net", "port": 443, "type": "cloud"},
        {"id": "5", "name": "", "cuda_device": None},
        {"id": "6", "name": "odd", "cuda_device": -1},
        "nonsense",
    ],
    "settings": {"debug": True, "auto_launch_workers": True, "stop_workers_on_master_exit": False, "master_delegate_only": True,
                 "worker_timeout_seconds": 60, "has_auto_populated_workers": True, "chunk_size": 8},
    "tunnel": {"enabled": True}, "managed_processes": {"1": {"pid": 5}}, "surprise": 1,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a user who has used everything."""
    path = tmp_path / "gpu_config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def test_local_workers_and_options_are_taken_over(file: Path) -> None:
    imported = read_gpu_config(file, "pc1")
    assert imported.workers == {
        "worker-1": {"device": "cuda:1", "enabled": True, "comfyui_args": ["--lowvram", "--preview-method", "auto"], "old_id": "1"},
        "worker-1-2": {"device": "cuda:2", "enabled": False, "comfyui_args": [], "old_id": "2"},
        "pc1-cuda0": {"device": "cuda:0", "enabled": True, "comfyui_args": [], "old_id": "5"},
    }
    assert imported.options == {"debug": True, "auto_launch": True, "stop_workers": False, "participate": False}
    assert imported.configuration("x").workers["worker-1"].comfyui_args == ("--lowvram", "--preview-method", "auto")


def test_an_id_is_one_workers_own_and_may_be_a_number_or_lack(tmp_path: Path) -> None:
    path = tmp_path / "gpu_config.json"
    workers = [{"id": 1, "cuda_device": 1}, {"id": "1", "cuda_device": 2}, {"cuda_device": 3}, {"id": True, "cuda_device": 4}]
    path.write_text(json.dumps({"workers": workers}))
    imported = read_gpu_config(path, "pc1")
    assert [fields.get("old_id") for fields in imported.workers.values()] == ["1", None, None, None]
    why = "pc1-cuda1 has '1' already; scripts that call it get that one"
    assert {each.place: each.why for each in imported.dropped} == {"workers[1] '1' id": why}


def test_whatever_is_dropped_is_told_with_its_reason(file: Path) -> None:
    dropped = {each.place: each.why for each in read_gpu_config(file, "pc1").dropped}
    assert "distributed-comfy invite --name big-pc" in dropped["workers[2] 'Big PC'"]
    assert "distributed-comfy invite --name pod" in dropped["workers[3] 'pod'"]
    assert "--listen --port 9000" in dropped["workers[0] 'Worker 1' extra_args"]
    assert "listens on no port" in dropped["workers[0] 'Worker 1' port"]
    assert "cuda:0" in dropped["workers[4] '5' cuda_device"] and "must be the number of a GPU" in dropped["workers[5] 'odd'"]
    assert dropped["workers[6]"] == "no object" and dropped["surprise"] == "not known"
    assert "DC_LEASE_TTL_S" in dropped["settings.worker_timeout_seconds"] and "not used here" in dropped["settings.chunk_size"]
    assert "settings.has_auto_populated_workers" in dropped and "invite --tunnel" in dropped["tunnel"] and "managed_processes" in dropped
    assert {"master.extra_args", "master.cuda_device", "master.host", "master.port"} <= dropped.keys()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"workerz": []}', "[" * 100_000, "\x00"], ids=["empty", "cut", "list", "nothing", "other", "deep", "nul"]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu_config.json"
    path.write_text(text)
    with pytest.raises(ImportRefused, match=str(path)):
        read_gpu_config(path, "pc1")
    with pytest.raises(ImportRefused, match="No such file"):
        read_gpu_config(tmp_path / "none.json", "pc1")
    path.write_text(" " * (2**20 + 1))
    with pytest.raises(ImportRefused, match=r"no gpu_config\.json"):
        read_gpu_config(path, "pc1")


@pytest.mark.parametrize("odd", [{"workers": 5}, {"workers": None, "settings": []}, {"workers": [[]], "master": "x"},
                                 {"settings": {"debug": "yes"}}, {"workers": [{"extra_args": ["--x"]}, {"extra_args": "'"}]}])  # fmt: skip
def test_parts_of_another_kind_are_dropped_and_the_rest_is_read(tmp_path: Path, odd: dict[str, Any]) -> None:
    path = tmp_path / "gpu_config.json"
    path.write_text(json.dumps(odd))
    imported = read_gpu_config(path, "pc1")
    assert imported.workers == {} and imported.options == {}


def test_nothing_is_overwritten_unless_that_is_asked_for(tmp_path: Path, file: Path) -> None:
    workers, options = WorkersFile(tmp_path / "workers.json"), OptionsFile(tmp_path / "comfyui.json")
    imported = read_gpu_config(file, "pc1")
    written = write_imported(imported, workers, options, force=False, source="x")
    assert written.workers == workers.path and written.kept is None
    assert set(workers.read().workers) == set(imported.workers) and options.current.participate is False
    text = workers.path.read_text()
    with pytest.raises(ImportRefused, match=r"with worker-1, worker-1-2, pc1-cuda0\); --force replaces it"):
        write_imported(Imported({"other": {"device": "cpu"}}), workers, options, force=False, source="x")
    assert workers.path.read_text() == text
    with pytest.raises(ImportRefused, match="about participate; --force"):
        write_imported(Imported(options={"participate": True}), workers, options, force=False, source="x")
    replaced = write_imported(Imported({"other": {"device": "cpu"}}, {"participate": True}), workers, options, force=True, source="x")
    assert set(workers.read().workers) == {"other"} and options.current.participate is True
    assert replaced.kept is not None and replaced.kept.read_text() == text


def test_what_becomes_of_the_workers_of_before_is_known_and_what_is_said_of_the_host_goes_on(tmp_path: Path, file: Path) -> None:
    workers, options = WorkersFile(tmp_path / "workers.json"), OptionsFile(tmp_path / "comfyui.json")
    imported = read_gpu_config(file, "pc1")
    assert replaced(imported, workers, "x") == Replaced()
    before = {"pc1-cuda0": {"device": "cuda:3"}, "mine": {"device": "cpu"}, "worker-1-2": imported.workers["worker-1-2"]}
    workers.path.write_text(json.dumps({"remote_configuration": True, "workers": before}))
    assert replaced(imported, workers, "x") == Replaced({"pc1-cuda0": "cuda:3"}, {"mine": "cpu"})
    assert replaced(Imported(options={"debug": True}), workers, "x") == Replaced()
    write_imported(imported, workers, options, force=True, source="x")
    assert workers.read().remote_configuration is True
    workers.path.write_text("{")
    assert replaced(imported, workers, "x") == Replaced(), "a file that nobody can use has no workers to lose"
    assert write_imported(imported, workers, options, force=True, source="x").kept is not None


def test_the_command_says_what_it_does(tmp_path: Path, file: Path) -> None:
    line = CommandLine(tmp_path)
    config = tmp_path / "home" / ".config" / "distributed-comfy"
    tried = line.run("config", "import", file, "--dry-run")
    assert tried.status == 0 and "nothing was written" in tried.out and "dropped workers[2] 'Big PC'" in tried.out, tried.err
    assert not config.exists()
    done = line.run("config", "import", file, "--json").json
    names = set(json.loads((config / "workers.json").read_text())["workers"])
    assert names == set(done["workers"]) and {"worker-1", "worker-1-2"} < names and len(names) == 3
    assert json.loads((config / "comfyui.json").read_text())["auto_launch"] is True
    again = line.run("config", "import", file)
    assert again.status == 2 and "--force" in again.err
    assert line.run("config", "import", file, "--force").status == 0 and (config / "workers.json.before-import").exists()
    (config / "workers.json").write_text(json.dumps({"workers": {"mine": {"device": "cpu"}, "worker-1": {"device": "cuda:7"}}}))
    refused = line.run("config", "import", file, "--dry-run")
    assert refused.status == 2 and "--force replaces it" in refused.err and "it would be" not in refused.out
    assert "--force" in line.run("config", "import", file, "--dry-run", "--json").json["refused"]
    trial = line.run("config", "import", file, "--dry-run", "--force")
    tried = trial.out
    assert trial.status == 0 and tried.endswith("nothing was written; without --dry-run, and with --force, it would be\n")
    assert "would be removed: worker mine (cpu)" in tried and "would be replaced: worker worker-1 (cuda:7)" in tried
    done = line.run("config", "import", file, "--force").out
    assert "1 -> worker-1: cuda:1, --lowvram --preview-method auto\n2 -> worker-1-2: cuda:2, disabled\n" in done
    assert "removed: worker mine (cpu)" in done and "replaced: worker worker-1 (cuda:7)" in done
    assert done.endswith("start ComfyUI (or `distributed-comfy up`), so that it is used\n")


def test_a_worker_on_a_gpu_that_this_host_lacks_is_told(tmp_path: Path, file: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: card'\necho 'GPU 1: card'\n")
    tool.chmod(0o755)
    line = CommandLine(tmp_path)
    told = line.run("config", "import", file, "--dry-run", PATH=f"{tools}{os.pathsep}{os.environ['PATH']}").err
    assert "note: worker worker-1-2 cannot start on this host: cuda:2 is not here" in told
    assert "worker worker-1 cannot" not in told


@pytest.mark.parametrize(("names", "device"), [((), "cuda:0"), (("cuda:0", "cuda:1"), "cuda:0"), (("cpu",), "cpu"), (("mps",), "mps")])
def test_a_worker_for_which_no_device_is_named_gets_one_that_is_there(names: tuple[str, ...], device: str) -> None:
    assert usual_device(map(HostDevice, names)) == device


# -- single values -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("models", "told"),
    [((), False), (("A",), False), (("A", "A", "A"), False), (("NVIDIA A", "NVIDIA B", "NVIDIA A"), True)],
    ids=["unknown", "one", "alike", "mixed"],
)
def test_numbers_of_gpus_are_told_to_be_doubtful_where_cuda_and_the_driver_may_count_differently(
    models: tuple[str, ...], told: bool
) -> None:
    imported = parse_gpu_config(json.dumps(CONFIG), "pc1", models=models)
    found = {each.place: each.why for each in imported.dropped if "fastest first" in each.why}
    assert list(found) == (["worker-1 order of GPUs", "worker-1-2 order of GPUs", "pc1-cuda0 order of GPUs"] if told else [])
    if told:
        assert "0 = NVIDIA A, 1 = NVIDIA B, 2 = NVIDIA A" in found["worker-1 order of GPUs"]
        assert "it is cuda:1 here" in found["worker-1 order of GPUs"]
        assert "workers edit worker-1 --device" in found["worker-1 order of GPUs"]
    assert imported.workers["worker-1"]["device"] == "cuda:1"


@pytest.mark.parametrize("number", [-1, True, "x", "1e3", "٣", 4096, [], "0; rm"])
def test_what_is_no_number_of_a_gpu_is_refused(number: Any) -> None:
    with pytest.raises(OptionWrong, match="number of a GPU"):
        device_of(number)


def test_arguments_of_the_server_do_not_reach_a_worker() -> None:
    assert arguments_of("--port 1 --lowvram --listen=0.0.0.0 --cuda-device 3") == (
        ["--lowvram"], ["--port", "1", "--listen=0.0.0.0", "--cuda-device", "3"]
    )  # fmt: skip


def test_a_worker_elsewhere_is_no_affair_of_this_hosts_configuration() -> None:
    for worker in ({"host": "10.0.0.2"}, {"type": "cloud"}, {"host": "", "type": "remote"}):
        with pytest.raises(OptionWrong, match="invite"):
            fields_of(worker, socket_names=("pc1", ""))
    assert fields_of({"host": "pc1", "enabled": False}, socket_names=("pc1", "")) == ({}, False)


def test_null_takes_a_value_away_and_what_is_not_named_stays() -> None:
    assert fields_of({"cuda_device": None, "extra_args": None, "enabled": None, "host": None, "port": None}, socket_names=()) == (
        {"device": "cuda:0", "comfyui_args": []}, True
    )  # fmt: skip
    assert fields_of({}, socket_names=()) == ({}, None)
    with pytest.raises(OptionWrong, match="true or false"):
        fields_of({"enabled": 1}, socket_names=())


def test_the_setting_about_delegation_says_the_opposite() -> None:
    assert option_change("master_delegate_only", True) == ("participate", False)
    assert option_change("debug", True) == ("debug", True)

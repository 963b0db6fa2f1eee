"""The file of a host's workers: what may stand in it, what is said of anything else, and how it is written."""
from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.agent.configuration import (
    HIDDEN,
    HostConfiguration,
    WorkerConfiguration,
    parse_configuration,
    parse_worker,
    plain_configuration,
    relative_to,
    shown_configuration,
)
from distributed_comfy.agent.own_comfyui import check_comfyui
from distributed_comfy.agent.up import populate, take_back
from distributed_comfy.agent.workers_file import WorkersFile
from distributed_comfy.errors import SettingInvalid, WorkersFileWrong
from distributed_comfy.settings import Settings
from distributed_comfy.state.records import HostDevice

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")
ALL = {
    "version": 1, "debug": True, "auto_launch": False, "stop_with_owner": False, "remote_configuration": True,
    "workers": {"pc1-both": {
        "device": ["cuda:0", "cuda:1"], "enabled": False, "engine": "comfyui", "comfyui_url": "http://me:secret@pc9/x",
        "comfyui_path": "/srv/ComfyUI", "comfyui_python": "python3", "comfyui_args": ["--cache-lru", "20"],
        "environment": {"HF_TOKEN": "secret", "DC_SLOTS": "2"}, "tags": ["big", "fast"],
        "threads": 3, "cores": [0, 1, 5], "old_id": "1",
    }},
}  # fmt: skip


def test_every_field_can_be_written_down_and_comes_back() -> None:
    assert set(ALL) == set(HostConfiguration.model_fields)
    assert set(ALL["workers"]["pc1-both"]) == set(WorkerConfiguration.model_fields)  # type: ignore[index]
    found = parse_configuration(ALL, "here")
    assert plain_configuration(found) == ALL
    assert found.workers["pc1-both"].device == "cuda:0,1"


def test_what_is_left_out_has_its_default() -> None:
    found = parse_configuration({"workers": {"a": {}}}, "here")
    assert (found.debug, found.auto_launch, found.stop_with_owner, found.remote_configuration) == (False, True, True, None)
    assert found.workers["a"] == WorkerConfiguration()


def test_variables_are_shown_without_what_they_hold() -> None:
    shown = json.dumps(shown_configuration(parse_configuration(ALL, "here")))
    assert "secret" not in shown and "HF_TOKEN" in shown and HIDDEN in shown


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"debg": True}, "debg is not a field; did you mean debug?"),
        ({"xyz": 1}, "xyz is not a field; there are auto_launch, debug, remote_configuration, stop_with_owner, version, workers"),
        ({"debug": "yes"}, "debug must be true or false (it is 'yes')"),
        ({"version": 2}, "version must be 1 (it is 2)"),
        ({"workers": []}, "workers must be an object (it is [])"),
        ({"workers": {"a": 3}}, "workers.a must be an object (it is 3)"),
        ({"workers": {"PC 1": {}}}, "workers cannot have 'PC 1': a name has only a-z, 0-9, - and _ ('pc-1' would do)"),
        ({"workers": {"a": {"devise": "cpu"}}}, "workers.a.devise is not a field; did you mean device?"),
        ({"workers": {"a": {"device": "gpu0"}}}, "workers.a.device must be cpu, mps or like cuda:0 or cuda:0,1"),
        ({"workers": {"a": {"device": ["cuda:0", "cpu"]}}}, "workers.a.device must be one device, or several GPUs of one kind"),
        ({"workers": {"a": {"device": []}}}, 'workers.a.device must be cpu, mps, or like cuda:0, or a list like ["cuda:0", "cuda:1"]'),
        ({"workers": {"a": {"engine": "x"}}}, "workers.a.engine must be \"comfyui\", \"builtin\" or \"attach\" (it is 'x')"),
        ({"workers": {"a": {"threads": "2"}}}, "workers.a.threads must be a whole number (it is '2')"),
        ({"workers": {"a": {"threads": -1}}}, "workers.a.threads must be a whole number from 0 to 1024 (it is -1)"),
        ({"workers": {"a": {"cores": "all"}}}, 'workers.a.cores must be "auto" or a list of CPU numbers like [0, 1, 2, 3]'),
        ({"workers": {"a": {"cores": [True]}}}, 'workers.a.cores must be "auto" or a list of CPU numbers like [0, 1, 2, 3]'),
        ({"workers": {"a": {"comfyui_args": "--lowvram"}}}, "workers.a.comfyui_args must be a list of texts"),
        ({"workers": {"a": {"tags": ["a b"]}}}, "workers.a.tags must be words without spaces and commas"),
        ({"workers": {"a": {"environment": {"A": 1}}}}, "workers.a.environment.A must be text (it is 1)"),
        ({"workers": {"a": {"environment": {"A B": ""}}}}, "cannot have 'A B': a variable has letters, digits and _ only"),
        ({"workers": {"a": {"environment": {"DC_DEVICE": "cpu"}}}}, "cannot have 'DC_DEVICE': use device"),
        ({"workers": {"a": {"environment": {"CUDA_VISIBLE_DEVICES": "1"}}}}, "cannot have 'CUDA_VISIBLE_DEVICES': use device"),
        ({"workers": {"a": {"environment": {"DC_REDIS_URL": "x"}}}}, "all workers of an agent share it, so set it where `up` runs"),
        ({"workers": {"a": {"environment": {"DC_SLOTZ": "2"}}}}, "cannot have 'DC_SLOTZ': it is no setting; did you mean DC_SLOTS?"),
    ],
)  # fmt: skip
def test_a_wrong_place_is_named_with_what_belongs_there(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkersFileWrong, match="^/some/file: .*" + re.escape(said) + "$"):
        parse_configuration(wrong, "/some/file")


def test_a_single_worker_is_checked_the_same_way() -> None:
    assert parse_worker({"device": "cuda:1"}, "a", "workers add").device == "cuda:1"
    with pytest.raises(WorkersFileWrong, match=r"workers add: workers\.a\.device must be"):
        parse_worker({"device": 1}, "a", "workers add")


def test_paths_are_meant_from_the_files_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/you")
    worker = WorkerConfiguration(comfyui_path="~/ComfyUI", comfyui_python="venv/bin/python")
    found = relative_to(worker, Path("/etc/dc"))
    assert (found.comfyui_path, found.comfyui_python) == ("/home/you/ComfyUI", "/etc/dc/venv/bin/python")
    named = WorkerConfiguration(comfyui_python="python3.12")
    assert relative_to(named, Path("/etc/dc")) == named, "a name without a folder is looked for in PATH"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"comfyui_path": "/nope/ComfyUI"}, "comfyui_path"), ({"comfyui_path": "trees/none"}, "comfyui_path"),
        ({"comfyui_python": "/nope/python"}, "comfyui_python"), ({"comfyui_path": "tree", "comfyui_python": "nope"}, "comfyui_python"),
        ({"comfyui_path": "tree", "comfyui_python": sys.executable}, ""), ({"comfyui_path": None, "comfyui_python": ""}, ""),
        ({"device": "cpu"}, ""), ({"comfyui_path": 3}, ""),
    ],
)  # fmt: skip
def test_an_agent_looks_whether_a_named_comfyui_is_on_its_host(tmp_path: Path, fields: dict[str, Any], place: str) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("main.py", "nodes.py"):
        (tmp_path / "tree" / name).touch()
    wrong: list[str] = []
    try:
        check_comfyui("w", fields, Settings(host="pc9"), tmp_path)
    except WorkersFileWrong as error:
        wrong.append(str(error.fields["place"]))
        assert "cannot be this on host pc9: " in str(error)
    assert wrong == ([f"workers.w.{place}"] if place else [])


def test_a_host_without_a_configuration_gets_a_worker_for_each_device() -> None:
    gpus = (HostDevice("cuda:0"), HostDevice("cuda:1"))
    found = populate("pc1", gpus, "comfyui")
    assert {name: worker.device for name, worker in found.workers.items()} == {"pc1-cuda0": "cuda:0", "pc1-cuda1": "cuda:1"}
    assert list(populate("pc1", (HostDevice("cpu"),), "builtin").workers) == ["pc1-cpu"]


def test_a_host_with_several_gpus_gets_one_worker_for_the_comfyui_that_runs_there() -> None:
    found = populate("pc1", (HostDevice("cuda:0"), HostDevice("cuda:1")), "attach")
    assert {name: worker.device for name, worker in found.workers.items()} == {"pc1-attach": "cpu"}


def test_what_was_written_by_joining_is_taken_back_unless_somebody_has_changed_it_since(tmp_path: Path) -> None:
    file = WorkersFile(tmp_path / "workers.json")
    assert not take_back(file.path, written=True, before=None), "there is no file"
    for says, before, done, then in ((True, None, True, None), (True, False, True, False), (False, None, False, False)):
        file.write(HostConfiguration(debug=True, remote_configuration=says))
        assert take_back(file.path, written=True, before=before) is done
        assert file.read() == HostConfiguration(debug=True, remote_configuration=then)


# -- on disk -------------------------------------------------------------------------------------------------------------
def test_a_file_is_written_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    file = WorkersFile(tmp_path / "new" / "workers.json")
    assert not file.exists()
    file.write(parse_configuration(ALL, "here"))
    assert file.read() == parse_configuration(ALL, "here")
    assert [path.name for path in file.path.parent.iterdir()] == ["workers.json"]
    if os.name == "posix":
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "workers.json").symlink_to(tmp_path / "real" / "workers.json")
    file = WorkersFile(tmp_path / "workers.json")
    file.write(HostConfiguration(debug=True))
    assert file.path.is_symlink() and json.loads((tmp_path / "real" / "workers.json").read_text())["debug"]


def test_a_change_that_would_be_wrong_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = WorkersFile(tmp_path / "workers.json")
    file.write(HostConfiguration(workers={"a": WorkerConfiguration()}))
    before = file.path.read_bytes()

    def refuse(configuration: HostConfiguration) -> None:
        raise WorkersFileWrong(source="here", place="workers.a", reason="is not for this host")

    with pytest.raises(WorkersFileWrong, match=r"workers\.a\.threads"):
        file.change(lambda plain: plain["workers"]["a"].update(threads=-1), "workers edit", lambda _: None)
    with pytest.raises(WorkersFileWrong, match="not for this host"):
        file.change(lambda plain: plain["workers"]["a"].update(threads=2), "workers edit", refuse)
    assert file.path.read_bytes() == before
    changed = file.change(lambda plain: plain["workers"]["a"].update(threads=2), "workers edit", lambda _: None)
    assert changed.workers["a"].threads == 2 and file.read() == changed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"workers": {"a": {},}}', "line 1, column 2"),
        ("[]", 'must be a JSON object like {"workers": '),
        ('{"debug": true, "debug": false}', "debug: stands more than once in"),
        ('{"workers": {"a": {"device": "C:\\x"}}}', "write \\\\ (or /) where a path has a backslash"),
        ("// comment\n{}", "make it JSON, as in docs/agent.md"),
    ],
)
def test_what_is_no_json_is_named_by_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    file = WorkersFile(tmp_path / "workers.json")
    file.path.write_text(text)
    with pytest.raises(SettingInvalid, match=re.escape(said)):
        file.read()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(SettingInvalid, match="DC_WORKERS_FILE: cannot write"):
        WorkersFile(tmp_path / "taken" / "workers.json").write(HostConfiguration())


def test_the_file_lies_beside_the_settings_or_where_it_is_said_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if os.name == "posix":
        assert Settings().workers_path.name == "workers.json" and "distributed-comfy" in str(Settings().workers_path)
    assert Settings(workers_file=tmp_path / "mine.json").workers_path == tmp_path / "mine.json"


# -- the page ------------------------------------------------------------------------------------------------------------
def test_the_page_lists_every_field_with_its_default_and_what_the_code_says_of_it() -> None:
    from write_reference import field_rows

    for model in (HostConfiguration, WorkerConfiguration):
        for row in field_rows(model):
            assert row in PAGE, "run `make docs`"


def test_the_example_on_the_page_is_valid() -> None:
    example = re.search(r"\n((?:    .*\n)+)", PAGE[PAGE.index("## workers.json") :])
    assert example is not None
    found = parse_configuration(json.loads(example[1]), "docs/agent.md")
    assert len(found.workers) == 2

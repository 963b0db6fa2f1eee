"""What a worker with a real ComfyUI tells: version, node packs, loaded models, model files by folder, and what a prompt lacks."""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.state.status import WorkerStatus
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy, EngineClient
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import CommandLine, until

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
PACK = "NODE_CLASS_MAPPINGS = {}\n"


@pytest.fixture(scope="module")
def packed_rig(comfy: Comfy, base_directory: Path, cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One worker whose private base directory holds the tiny model and two node packs, one of them a git checkout."""
    from tests.cluster_fixtures import THREADS

    base = tmp_path_factory.mktemp("packed-base")
    shutil.copytree(base_directory, base, dirs_exist_ok=True)
    for name in ("checked-out", "released"):
        (base / "custom_nodes" / name).mkdir()
        (base / "custom_nodes" / name / "__init__.py").write_text(PACK)
    git = base / "custom_nodes" / "checked-out" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(COMMIT + "\n")
    (base / "custom_nodes" / "released" / "pyproject.toml").write_text('[project]\nname = "released"\nversion = "2.1.0"\n')
    rig = _rig(cluster_servers, tmp_path_factory.mktemp("packed-rig"), comfy, base, THREADS)
    try:
        rig.start("packed")
        yield rig
    finally:
        rig.close()
        rig.cluster.close()


def _rig(servers: Any, folder: Path, comfy: Comfy, base: Path, threads: int) -> Rig:
    from distributed_comfy.settings import read_settings
    from tasks.cluster import open_cluster

    settings = read_settings(key_prefix="packed-rig:", cache_dir=folder / "cache")
    environment = {
        "COMFYUI_PATH": str(comfy.root), "DC_COMFYUI_PYTHON": comfy.python, "DC_COMFYUI_BASE_DIRECTORY": str(base),
        "DC_THREADS": str(threads),
    }  # fmt: skip
    return Rig("comfyui", open_cluster(settings, servers.state_url, servers.blob_url), folder, environment)


@pytest.fixture
def line(packed_rig: Rig, tmp_path: Path) -> CommandLine:
    cluster = packed_rig.cluster
    return CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX="packed-rig:")


def told(rig: Rig) -> WorkerStatus:
    """Its status once the engine is ready, of which the table may know a moment earlier."""
    found: WorkerStatus = until(lambda: (status := rig.cluster.statuses.read(["packed"]).get("packed")) and status.capability and status)
    return found


def test_version_and_packs_are_told(packed_rig: Rig, comfy: Comfy, line: CommandLine) -> None:
    status, state = told(packed_rig), packed_rig.state("packed")
    assert state is not None
    version = (comfy.root / "comfyui_version.py").read_text().split('"')[1]
    assert status.engine_version.startswith(version) and status.engine == "comfyui"
    assert status.commit == (status.engine_version.partition("(")[2].rstrip(")")), "both from the checkout, if it is one"
    packs = state.facts.packs
    assert packs["checked-out"] == COMMIT[:10] and packs["released"] == "2.1.0" and packs["rule_nodes"] == ""
    assert status.packs == len(packs) and not {"comfy_extras", "custom_nodes", "nodes_upscale_model"} & set(packs)
    shown = line.run("workers", "show", "packed").out
    assert f"checked-out {COMMIT[:10]}" in shown and "released 2.1.0" in shown


def test_model_files_are_counted_and_listed_by_folder(packed_rig: Rig, line: CommandLine) -> None:
    status = told(packed_rig)
    listed = line.run("models", "list", "--json").json
    assert len(listed) == status.model_files > 0 and status.model_files_hash
    assert {"folder": "diffusion_models", "name": "tiny_mmdit.safetensors", "workers": ["packed"]} in listed
    only = line.run("models", "list", "--folder", "vae", "--json").json
    assert only and {entry["folder"] for entry in only} == {"vae"}
    assert "there are files in" in line.run("models", "list", "--folder", "upscale_models").out


def test_loaded_models_are_told_after_a_run_and_gone_after_an_order_to_free_them(packed_rig: Rig) -> None:
    packed_rig.run(distributed(seed=1), items=1)
    status: WorkerStatus = until(lambda: (found := told(packed_rig)).models and found)
    assert all(model.name and 0 <= model.loaded_bytes <= model.size_bytes and model.size_bytes > 0 for model in status.models)
    assert packed_rig.cluster.workers.free("packed")
    until(lambda: not told(packed_rig).models)


def test_a_checkpoint_that_is_nowhere_is_named_with_its_folder_and_who_lacks_it(packed_rig: Rig, line: CommandLine) -> None:
    prompt = distributed()
    prompt["load"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "photo\\best.safetensors"}}
    prompt["encode"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["9", 0], "vae": ["load", 2]}}
    prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["encode", 0], "filename_prefix": "x"}}
    done = line.run("models", "missing", line.write("graph.json", prompt))
    assert done.status == 1, done
    row = next(text.split() for text in done.out.splitlines() if text.startswith("checkpoints"))
    assert row == ["checkpoints", "photo/best.safetensors", "packed"]
    assert "put it into models/checkpoints of ComfyUI on" in done.out and "workers look" in done.out
    misspelt = distributed()
    misspelt["2"]["inputs"]["vae_name"] = "sub/" + misspelt["2"]["inputs"]["vae_name"].upper()
    found = line.run("models", "missing", line.write("other.json", misspelt), "--json").json
    lacking = [model for model in found["models"] if model["lacked_by"]]
    assert [(model["folder"], model["lacked_by"], model["near"]) for model in lacking] == [
        ("vae", ["packed"], distributed()["2"]["inputs"]["vae_name"])
    ]
    done = line.run("models", "missing", line.write("whole.json", distributed()))
    assert done.status == 0 and "every worker has everything (packed)" in done.out, done


def test_inputs_know_the_folder_that_they_show(engine: EngineClient) -> None:
    capability = engine.describe()
    assert capability.model_inputs["UNETLoader"] == {"unet_name": "diffusion_models"}, "and not its other list"
    assert capability.model_inputs["LoraLoader"] == {"lora_name": "loras"} or not capability.model_lists.get("loras")
    assert capability.model_inputs["CheckpointLoaderSimple"] == {"ckpt_name": "checkpoints"}, "although it is empty"
    files = {folder: capability.choice_lists[index] for folder, index in capability.model_lists.items()}
    assert files["diffusion_models"] == ("tiny_mmdit.safetensors",) and "custom_nodes" not in files


def test_the_log_of_a_real_engine_is_readable(packed_rig: Rig) -> None:
    packed_rig.run(distributed(seed=7), items=1)
    texts = [text.text for text in packed_rig.cluster.logs.last("packed", 5000) if text.source == "engine"]
    assert any("Requested to load" in text or "loaded" in text for text in texts), texts
    assert not any("\x1b" in text or "\r" in text or text.startswith("{") for text in texts)
    assert sum("%|" in text for text in texts) <= 12, json.dumps(texts)

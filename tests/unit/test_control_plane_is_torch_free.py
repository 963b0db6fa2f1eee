"""The control plane imports neither torch nor ComfyUI: it starts fast and runs on a machine that has none of them."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE_SIDE = ("distributed_comfy.engine.builtin", "distributed_comfy.engine.comfyui", "distributed_comfy.engine.process")
"""What runs in the engine's own process; all other modules are the control plane."""
STARTERS = ("distributed_comfy.cli.up", "distributed_comfy.cli.worker", "distributed_comfy.agent.up", "tasks.consumer")
IMPORT_EACH = """
import importlib, json, sys
loaded_by = {}
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
    for heavy in ("torch", "comfy", "nodes", "execution"):
        if heavy in sys.modules:
            loaded_by.setdefault(heavy, module)
print(json.dumps(loaded_by))
"""


def control_plane() -> list[str]:
    """Dotted names of all modules but the engine side."""
    paths = [path for folder in ("distributed_comfy", "tasks", "tiler") for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths} | {"worker_entry"}
    return sorted(name for name in names if not name.startswith(ENGINE_SIDE) and not name.endswith("__main__"))


def loaded_by(modules: list[str]) -> dict[str, str]:
    """Heavy module -> the first of ``modules`` whose import brought it into a fresh interpreter."""
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_importing_the_whole_control_plane_loads_no_torch() -> None:
    assert loaded_by(control_plane()) == {}


def test_the_control_plane_has_its_doors() -> None:
    doors = {"distributed_comfy.cli.main", "distributed_comfy.agent.up", "distributed_comfy.orchestrator", "tasks.dispatch", "worker_entry"}
    assert doors <= set(control_plane())


def test_workers_and_agents_load_no_http_library_and_no_server_of_ours() -> None:
    """They start at once; only the forwarder of a relay, a process of its own, needs one."""
    command = [sys.executable, "-c", f"import sys, {', '.join(STARTERS)}; print(*sorted(sys.modules))"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT).stdout.split())
    assert not loaded & {"aiohttp", "distributed_comfy.serve", "distributed_comfy.access.certificates"}


def test_a_torch_that_is_imported_would_be_seen() -> None:
    assert loaded_by(["distributed_comfy.errors", "torch"]) == {"torch": "torch"}

"""Fixtures of the tests that use a whole cluster; `tests/conftest.py` loads this as a plugin, so that all folders share one of each.

The cluster's code is imported when a fixture is used, so that tests of other things neither load nor depend on it.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from tests.cluster_rig import Rig
    from tests.comfyui.comfy_process import Comfy

THREADS = 1
"""Of every engine on the CPU: another number may change the last bit of a result, and more than the machine has cores is very slow."""


@pytest.fixture(scope="session")
def comfy(require_service: Callable[[str, str], NoReturn]) -> Comfy:
    """The tree of COMFYUI_PATH, else ``~/comfy/ComfyUI``, with DC_COMFYUI_PYTHON, else the tree's own venv."""
    from tests.comfyui.comfy_process import Comfy

    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    own = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python = os.environ.get("DC_COMFYUI_PYTHON") or str(own)
    if not (root / "main.py").is_file():
        require_service(f"a ComfyUI tree in {root}", "set COMFYUI_PATH")
    if not Path(python).is_file():
        require_service(f"ComfyUI's interpreter {python}", "set DC_COMFYUI_PYTHON")
    return Comfy(root, python)


@pytest.fixture(scope="session")
def base_directory(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, custom nodes and an input folder, apart from those of the tree."""
    from tests.comfyui.comfy_process import make_base_directory

    return make_base_directory(comfy, tmp_path_factory.mktemp("base"))


@contextmanager
def open_rig(
    engine: str, servers: Any, folder: Path, *, prefix: str = "", names: Sequence[str] = ("one", "two"), **environment: str
) -> Iterator[Rig]:
    """Workers on these servers, which know nothing of those with another prefix."""
    from distributed_comfy.settings import read_settings
    from tasks.cluster import open_cluster
    from tests.cluster_rig import Rig

    folder.mkdir(exist_ok=True)
    settings = read_settings(key_prefix=prefix or f"{engine}-rig:", cache_dir=folder / "cache")
    cluster = open_cluster(settings, servers.state_url, servers.blob_url)
    rig = Rig(engine, cluster, folder, {"DC_THREADS": str(THREADS), **environment})
    try:
        rig.start(*names)
        yield rig
    finally:
        rig.close()
        cluster.close()


@pytest.fixture(scope="session")
def builtin_rig(cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two workers with the built-in engine."""
    with open_rig("builtin", cluster_servers, tmp_path_factory.mktemp("builtin-rig")) as rig:
        yield rig


@pytest.fixture(scope="session")
def comfyui_rig(comfy: Comfy, base_directory: Path, cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two workers with real ComfyUI on the CPU, with the tiny model."""
    environment = {
        "COMFYUI_PATH": str(comfy.root), "DC_COMFYUI_PYTHON": comfy.python, "DC_COMFYUI_BASE_DIRECTORY": str(base_directory),
    }  # fmt: skip
    with open_rig("comfyui", cluster_servers, tmp_path_factory.mktemp("comfyui-rig"), **environment) as rig:
        yield rig


@pytest.fixture(scope="session", params=["builtin", pytest.param("comfyui", marks=[pytest.mark.comfyui, pytest.mark.timeout(300)])])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Each test once with each engine."""
    found: Rig = request.getfixturevalue(f"{request.param}_rig")
    return found

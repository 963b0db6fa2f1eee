"""A real ComfyUI tree, a base directory with the tiny model and the probe nodes, engines, and a plain ComfyUI to compare with."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distributed_comfy.engine.options import EngineOptions
from tests.comfyui.comfy_process import Comfy, EngineClient, make_base_directory
from tests.comfyui.plain_comfyui import PlainComfyUI, plain_comfyui


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a tree."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def comfy(require_service: Callable[[str, str], NoReturn]) -> Comfy:
    """The tree of COMFYUI_PATH, else ``~/comfy/ComfyUI``, with DC_COMFYUI_PYTHON, else the tree's own venv."""
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
    return make_base_directory(comfy, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def start_engine(comfy: Comfy, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EngineClient]]:
    """``start_engine(*comfyui_args, **options)``: an engine of a test's own."""
    started: list[EngineClient] = []

    def start(*arguments: str, **changes: Any) -> EngineClient:
        folder = tmp_path_factory.mktemp("engine")
        facts: dict[str, Any] = {
            "engine": "comfyui", "worker": "pc1-cpu", "python": comfy.python, "folder": folder / "work", "log_file": folder / "log",
            "blob_url": "", "cache_folder": folder / "cache", "comfyui_path": comfy.root, "comfyui_base_directory": base_directory,
            "comfyui_args": arguments,
        }  # fmt: skip
        started.append(EngineClient(EngineOptions(**{**facts, **changes})))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


@pytest.fixture(scope="session")
def engine(start_engine: Callable[..., EngineClient]) -> EngineClient:
    """The engine that most tests share; its caches hold what earlier tests left."""
    return start_engine()


@pytest.fixture(scope="session")
def plain(comfy: Comfy, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainComfyUI]:
    """ComfyUI's own server over the same base directory."""
    with plain_comfyui(comfy.root, comfy.python, base_directory, tmp_path_factory.mktemp("plain")) as server:
        yield server

"""Engines in a process of their own, and a plain ComfyUI to compare with; tree and base directory come from `tests.cluster_fixtures`."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.engine.options import EngineOptions
from tests.cluster_fixtures import THREADS
from tests.comfyui.comfy_process import Comfy, EngineClient
from tests.comfyui.plain_comfyui import PlainComfyUI, plain_comfyui
from tests.comfyui.server_rig import ComfyServer, pack_python
from tests.command_line import CommandLine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a tree."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def start_engine(comfy: Comfy, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EngineClient]]:
    """``start_engine(*comfyui_args, **options)``: an engine of a test's own."""
    started: list[EngineClient] = []

    def start(*arguments: str, **changes: Any) -> EngineClient:
        folder = tmp_path_factory.mktemp("engine")
        facts: dict[str, Any] = {
            "engine": "comfyui", "worker": "pc1-cpu", "python": comfy.python, "folder": folder / "work", "log_file": folder / "log",
            "blob_url": "", "cache_folder": folder / "cache", "comfyui_path": comfy.root, "comfyui_base_directory": base_directory,
            "comfyui_args": arguments, "threads": THREADS,
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
def attached(start_engine: Callable[..., EngineClient], plain: PlainComfyUI) -> EngineClient:
    """An engine of this interpreter that drives the plain ComfyUI."""
    return start_engine(engine="attach", python=sys.executable, comfyui_url=plain.url)


@pytest.fixture(scope="session", params=["comfyui", "attach"])
def either(request: pytest.FixtureRequest) -> EngineClient:
    """Each test once with an engine that has a tree of its own, and once with one that drives a running ComfyUI."""
    found: EngineClient = request.getfixturevalue({"comfyui": "engine", "attach": "attached"}[request.param])
    return found


@pytest.fixture(scope="session")
def plain(comfy: Comfy, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainComfyUI]:
    """ComfyUI's own server over the same base directory."""
    with plain_comfyui(comfy.root, comfy.python, base_directory, tmp_path_factory.mktemp("plain"), threads=THREADS) as server:
        yield server


@pytest.fixture(scope="session")
def packed_python(comfy: Comfy) -> str:
    """ComfyUI's interpreter with this project installed."""
    return pack_python(comfy)


@pytest.fixture
def server(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path: Path) -> Iterator[ComfyServer]:
    """A ComfyUI with our pack that is not started yet."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path))
    yield server
    server.close()

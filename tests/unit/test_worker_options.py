"""What a worker hands to its engine."""
from __future__ import annotations

from pathlib import Path

import pytest

from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker import engine_options
from distributed_comfy.pack_token import token_path
from distributed_comfy.settings import read_settings


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://127.0.0.1:8188", True),
        ("http://localhost:8000", True),
        ("http://me:secret@[::1]:8188", True),
        ("http://192.168.1.7:8188", False),
        ("http://127.0.0.1.example:8188", False),
        ("http://localhost@pod.example:8188", False),
        ("https://pod.example/proxy/8188", False),
    ],
)
def test_the_token_of_this_user_is_for_a_comfyui_on_loopback_alone(url: str, own: bool, tmp_path: Path) -> None:
    settings = read_settings(engine="attach", comfyui_url=url, workers_file=tmp_path / "workers.json", cache_dir=tmp_path)
    options = engine_options(settings, Servers("redis://127.0.0.1:1", "redis://127.0.0.1:2", embedded=False))
    assert options.comfyui_token_file == (token_path(settings) if own else None)


def test_a_token_that_was_given_goes_to_any_address(tmp_path: Path) -> None:
    settings = read_settings(engine="attach", comfyui_url="https://pod.example", comfyui_token="t" * 43, cache_dir=tmp_path)
    options = engine_options(settings, Servers("redis://127.0.0.1:1", "redis://127.0.0.1:2", embedded=False))
    assert options.comfyui_token == "t" * 43

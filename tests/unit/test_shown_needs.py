"""What `models missing` says of what it found."""
from __future__ import annotations

import pytest

from distributed_comfy.cli.models import show_needs
from distributed_comfy.cli.output import Output
from distributed_comfy.messages import Capability, Requirement
from distributed_comfy.planning.model_files import find_needs

NEED = Requirement("", ("CLIPTextEncode", "Loader"), (("Loader", "ckpt_name", "x.safetensors"),))


def worker(engine: str, *classes: str, files: tuple[str, ...] = ("x.safetensors",)) -> Capability:
    has = {"Loader": {"ckpt_name": 0}} if "Loader" in classes else {}
    lists = {"choice_lists": (files,), "choices": has, "model_lists": {"checkpoints": 0}} if engine == "comfyui" else {}
    return Capability(engine=engine, engine_version="1", node_classes=classes, **lists)  # type: ignore[arg-type]


def shown(capsys: pytest.CaptureFixture[str], **live: Capability) -> str:
    show_needs(Output(), find_needs(NEED, live), live, dict.fromkeys(live, "pc1"))
    return capsys.readouterr().out


def test_a_worker_of_the_builtin_engine_is_not_told_to_install_a_pack(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, a=worker("builtin"), b=worker("comfyui", "CLIPTextEncode", "Loader"))
    assert "node class CLIPTextEncode is not on a: a needs engine comfyui for it" in said and "install" not in said


def test_a_worker_with_comfyui_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, a=worker("builtin", "Loader"), b=worker("comfyui", "Loader"))
    assert "not on all: a needs engine comfyui for it" in said and "; install its node pack on b and restart the worker" in said


def test_the_table_names_who_cannot_load_a_model_that_nobody_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, a=worker("comfyui", "CLIPTextEncode"), b=worker("comfyui", "CLIPTextEncode", "Loader"))
    assert "no Loader on a" in said and "nobody" not in said
    said = shown(capsys, b=worker("comfyui", "CLIPTextEncode", "Loader"))
    assert "nobody" in said and "every worker has everything" in said

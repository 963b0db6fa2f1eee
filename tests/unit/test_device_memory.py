"""What an engine says about its device's memory; the driver itself is asked in the GPU tests only."""
from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distributed_comfy.engine.device_memory import device_identity, device_memory
from distributed_comfy.engine.host import EngineProcess, _Child
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Beat, Ready
from distributed_comfy.messages import Capability
from distributed_comfy.state.records import DeviceMemory


def torch_with(monkeypatch: pytest.MonkeyPatch, initialized: bool, answer: tuple[int, int] | RuntimeError) -> list[int]:
    """A torch whose CUDA is in this state; the devices that were asked about."""
    asked: list[int] = []

    def mem_get_info(device: int) -> tuple[int, int]:
        asked.append(device)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    cuda = SimpleNamespace(is_initialized=lambda: initialized, mem_get_info=mem_get_info)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return asked


def test_the_first_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = torch_with(monkeypatch, True, (3, 8))
    assert device_memory() == DeviceMemory(3, 8) and asked == [0]


def test_asking_does_not_begin_the_use_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = torch_with(monkeypatch, False, (3, 8))
    assert device_memory() is None and asked == []


def test_a_device_in_an_error_state_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_with(monkeypatch, True, RuntimeError("CUDA error: device-side assert triggered"))
    assert device_memory() is None


def test_an_engine_without_torch_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert device_memory() is None


def test_a_torch_that_another_thread_imports_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for half in (SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace())):
        monkeypatch.setitem(sys.modules, "torch", half)
        assert device_memory() is None and device_identity() == ("", "")


def test_a_consumer_knows_what_the_engine_said_last_and_nothing_of_one_that_is_gone(tmp_path: Path) -> None:
    options = EngineOptions("builtin", "w", "python3", tmp_path, tmp_path / "log", "redis://x")
    process = EngineProcess(options, lambda event: None)
    child = process._child = _Child(options, lambda event: None)
    child._hear(Beat(0.0, 3, 8))
    assert process.memory is None, "it is not ready"
    child._hear(Ready(Capability("builtin", "1", ())))
    assert process.memory == DeviceMemory(3, 8)
    child._hear(Beat(0.0))
    assert process.memory is None
    child._hear(Beat(0.0, 2, 8))
    child.gone.set()
    assert process.memory is None

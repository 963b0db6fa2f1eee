"""What the driver's tool and torch say about devices, as they were seen to say it."""
from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from distributed_comfy.engine.devices import find_devices, parse_gpus, parse_torch_answer, visible_gpus
from distributed_comfy.settings import Settings
from distributed_comfy.state.records import HostDevice

FOUR = """\
0, GPU-5a0b4e39-0b6c-3f3f-9d58-8a52a1a4c001, NVIDIA H100 80GB HBM3, 81559, 00000000:04:00.0
1, GPU-77c1d0aa-2f16-7b0e-11b4-1c07d7a9c002, NVIDIA H100 80GB HBM3, 81559, 00000000:23:00.0
2, GPU-9e0f6a1b-8d53-41f7-c7d2-3d6b8f15c003, NVIDIA H100 80GB HBM3, 81559, 00000000:84:00.0
3, GPU-c2b8e6d4-6a35-9c20-ae19-5b90cafec004, NVIDIA H100 80GB HBM3, 81559, 00000000:A3:00.0
"""


def test_each_row_is_a_gpu_and_its_place_is_written_as_linux_does() -> None:
    found = visible_gpus(parse_gpus(FOUR), None)
    assert [device.name for device in found] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert found[3] == HostDevice("cuda:3", "NVIDIA H100 80GB HBM3", 81_559 * 2**20, "0000:a3:00.0")


def test_a_process_that_may_use_some_gpus_counts_those() -> None:
    by_number = visible_gpus(parse_gpus(FOUR), "2, 0")
    assert [(device.name, device.bus_id) for device in by_number] == [("cuda:0", "0000:84:00.0"), ("cuda:1", "0000:04:00.0")]
    assert [device.bus_id for device in visible_gpus(parse_gpus(FOUR), "GPU-c2b8,GPU-5a0b")] == ["0000:a3:00.0", "0000:04:00.0"]
    assert visible_gpus(parse_gpus(FOUR), "-1") == (), "as for a process on the CPU"
    assert len(visible_gpus(parse_gpus(FOUR), "1,9,2")) == 1, "CUDA stops at the first one that is not there"


def test_each_part_of_a_gpu_that_is_named_is_a_device_of_its_own() -> None:
    parts = visible_gpus(parse_gpus(FOUR), "MIG-1f0c7a52-5b7e-5a2c-9d3e-0c1d2e3f4a5b,MIG-GPU-5a0b4e39/7/0")
    assert parts == (HostDevice("cuda:0", "MIG instance"), HostDevice("cuda:1", "MIG instance"))
    assert visible_gpus([], "MIG-1f0c7a52") == (), "no driver answers"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ("No devices were found\n", []),
        ("Warning: persistence mode is off\n0, GPU-1, NVIDIA GB10, [N/A], 0000000F:01:00.0\n", [("NVIDIA GB10", 0, "000f:01:00.0")]),
        ("0, GPU-1, NVIDIA GeForce RTX 4090, 24564, not a bus\n", [("NVIDIA GeForce RTX 4090", 24_564 * 2**20, "")]),
    ],
)
def test_what_is_no_row_is_left_out(text: str, found: list[tuple[str, int, str]]) -> None:
    assert [(gpu.model, gpu.memory_bytes, gpu.bus_id) for gpu in parse_gpus(text)] == found


def test_torch_names_its_devices_after_whatever_it_prints() -> None:
    rocm = 'UserWarning: experimental\n\nDEVICES [["cuda:0", "AMD Radeon RX 7900 XTX", 25753026560]]\n'
    assert parse_torch_answer(rocm) == (HostDevice("cuda:0", "AMD Radeon RX 7900 XTX", 25_753_026_560),)
    assert parse_torch_answer('DEVICES [["xpu:0", "Intel(R) Arc(TM) A770 Graphics", 16225243136]]')[0].name == "xpu:0"
    for nothing in ("", "DEVICES []", "DEVICES nonsense", "DEVICES [[1]]"):
        assert parse_torch_answer(nothing) == ()


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def comfyui(tmp_path: Path) -> Settings:
    tree = tmp_path / "ComfyUI"
    tree.mkdir()
    for name in ("main.py", "nodes.py"):
        (tree / name).touch()
    return Settings(comfyui_path=tree, comfyui_python=sys.executable)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="scripts of sh; a Mac is not asked")
def test_the_drivers_tool_is_asked_first(comfyui: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nvidia-smi", f"case \"$*\" in *--query-gpu=index,uuid,name,memory.total,pci.bus_id*) cat <<'E'\n{FOUR}E\n;; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert len(find_devices(comfyui, "comfyui", {})) == 4
    assert [device.bus_id for device in find_devices(comfyui, "comfyui", {"CUDA_VISIBLE_DEVICES": "1"})] == ["0000:23:00.0"]
    assert [device.name for device in find_devices(comfyui, "builtin", {})] == ["cpu"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="scripts of sh; a Mac is not asked")
def test_without_a_driver_the_engines_own_torch_is_asked(comfyui: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nvidia-smi", "echo 'no driver' >&2; exit 9")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [device.name for device in find_devices(comfyui, "comfyui", {})] == ["cpu"], "this interpreter's torch, which has no GPU"
    program(tmp_path / "python", 'echo \'DEVICES [["xpu:0", "Arc", 1024]]\'')
    with_xpu = comfyui.model_copy(update={"comfyui_python": str(tmp_path / "python")})
    assert find_devices(with_xpu, "comfyui", {}) == (HostDevice("xpu:0", "Arc", 1024),)

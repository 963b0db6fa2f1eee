"""Node classes with which the tests provoke what real nodes do to an engine process."""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from distributed_comfy.nodes.registry import node_classes

if TYPE_CHECKING:
    import torch


class Probe:
    """Base: one text input, one image out."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"default": ""})}}

    def run(self, text: str) -> tuple[torch.Tensor]:
        import torch

        self.act(text)
        return (torch.zeros(1, 2, 2, 3),)

    def act(self, text: str) -> None:
        """What the probe does."""


class Prints(Probe):
    """Writes to everything that used to be the pipe, by Python, by C and by a program of its own; reads it too."""

    def act(self, text: str) -> None:
        print(text)  # noqa: T201 - that is what it is for
        print(text, file=sys.stderr)  # noqa: T201
        os.write(1, b"\x00\x00\x00\x05hello")
        ctypes.CDLL(None).puts(text.encode())
        ctypes.CDLL(None).fflush(None)
        subprocess.run([sys.executable, "-c", f"print({text!r} + ' from a child')"], check=True)
        assert sys.stdin.read() == ""
        assert os.read(0, 10) == b""


class Sleeps(Probe):
    """Shows no sign of life for some seconds; Python's other threads run."""

    def act(self, text: str) -> None:
        time.sleep(float(text))


class TakesLongToFree(Probe):
    """Leaves an output in the engine's cache whose end takes some seconds, as on a device that does not answer."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE", "CLINGING")

    def run(self, text: str) -> Any:
        return (*super().run(text), Clinging(float(text)))


class Clinging:
    """Ends when it has slept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __del__(self) -> None:
        time.sleep(self._seconds)


class HoldsTheGil(Probe):
    """Sleeps in C without releasing the interpreter, so that no thread of the process runs; says so in a file, where one is named."""

    def act(self, text: str) -> None:
        seconds, _, file = text.partition(" ")
        if file:
            Path(file).touch()
        ctypes.PyDLL(None).usleep(int(float(seconds) * 1_000_000))


class LeavesAChild(Probe):
    """Forks a process that keeps every descriptor, as some packs do; its pid goes to a file."""

    def act(self, text: str) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        Path(text).write_text(str(pid))


class Crashes(Probe):
    """Ends the process as a fault in native code would."""

    def act(self, text: str) -> None:
        ctypes.string_at(0)


class ArgumentsSeen(Probe):
    """Gives what the process looks like from inside."""

    RETURN_TYPES = ("STRING",)

    def run(self, text: str) -> Any:
        import torch

        here = os.path.join("distributed_comfy", "engine")
        facts = {
            "argv": str(sys.argv[1:]),
            "own_folder": str(any(path.rstrip("/").endswith(here) for path in sys.path)),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"),
            "threads": str(torch.get_num_threads()),
            "thread": __import__("threading").current_thread().name,
        }
        return (facts[text],)


class TakesLong(Probe):
    """A tensor that takes a while to ship."""

    def run(self, text: str) -> tuple[torch.Tensor]:
        import torch

        return (torch.rand(int(text), 1024, 1024, 3),)


class WritesNothing(Probe):
    """Names a file that it did not write."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    def run(self, text: str) -> Any:
        return {"ui": {"images": [{"filename": text, "subfolder": "", "type": "output"}]}}


def provide(context: Any) -> dict[str, type]:
    """The cluster's classes and the probes."""
    probes: tuple[type, ...] = (
        Prints, Sleeps, TakesLongToFree, HoldsTheGil, LeavesAChild, Crashes, ArgumentsSeen, TakesLong, WritesNothing,
    )  # fmt: skip
    return {**node_classes(context), **{probe.__name__: probe for probe in probes}}

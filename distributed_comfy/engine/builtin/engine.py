"""The built-in engine: API-format prompts over a few torch and Pillow nodes, without ComfyUI."""
from __future__ import annotations

import functools
import importlib.util
import runpy
from pathlib import Path
from typing import Any

from distributed_comfy.engine.base import RunOutcome, Sink
from distributed_comfy.engine.builtin.declarations import describe_classes
from distributed_comfy.engine.builtin.executor import Executor
from distributed_comfy.engine.builtin.file_nodes import LoadImage, PreviewImage, SaveImage
from distributed_comfy.engine.builtin.generator import SeededGenerator
from distributed_comfy.engine.builtin.image_nodes import EmptyImage, ImageBatch, ImageInvert, ImageScale
from distributed_comfy.engine.builtin.sampling_nodes import KSampler, SeededModel, VAEDecode, VAEDecodeTiled, VAEEncode
from distributed_comfy.engine.builtin.validation import check_prompt
from distributed_comfy.engine.builtin.workbench import Workbench, WorkbenchNode
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.engine.device_memory import device_memory
from distributed_comfy.engine.folders import WorkFolders, set_aside, written_files
from distributed_comfy.engine.options import EngineOptions, NodeProvider
from distributed_comfy.errors import EngineStartFailed, SinkDidNotRun
from distributed_comfy.lasting_imports import lasting_imports
from distributed_comfy.messages import Capability, Prompt, RunRequest
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.workflow.classes import SINK_CLASS

BUILTIN_VERSION = "0.1.0"
"""Raised when the same inputs give other bits: results are compared within one version only."""

NODE_CLASSES: tuple[type[WorkbenchNode], ...] = (
    EmptyImage,
    ImageBatch,
    ImageInvert,
    ImageScale,
    KSampler,
    LoadImage,
    PreviewImage,
    SaveImage,
    SeededGenerator,
    SeededModel,
    VAEDecode,
    VAEDecodeTiled,
    VAEEncode,
)


class BuiltinEngine:
    """An `engine.base.Engine` over `NODE_CLASSES`.

    Torch takes longer to load than all else, so on the CPU that waits for the first item, unless the options ask for it at once.
    The prompt of a request comes with input files and claim in place (`engine.inputs.place_inputs`), the worker's folders exist.
    """

    name = "builtin"

    def __init__(self, options: EngineOptions, context: GraphContext, provide_nodes: NodeProvider) -> None:
        """See `engine.options.EngineFactory`."""
        self._options = options
        self._context = context
        self._folders = WorkFolders(options.folder)
        if options.preload or options.device != "cpu":
            load_torch()
        self._bench = Workbench(self._folders, torch_device(options.device))
        self._classes = {**_bound(self._bench), **provide_nodes(context)}
        self._executor = Executor(self._classes, self._bench, context.alive)

    def describe(self) -> Capability:
        """See `engine.base.Engine.describe`."""
        capability = Capability(
            engine=self.name,
            engine_version=BUILTIN_VERSION,
            node_classes=(),
            device=self._options.device,
            device_class=f"{device_name(self._bench.device)}|torch {torch_version()}|builtin {BUILTIN_VERSION}",
            tags=self._options.tags,
        )
        return describe_classes(self._classes, capability)

    def run(self, request: RunRequest, sink: Sink) -> RunOutcome:
        """See `engine.base.Engine.run`; files of the outcome lie in ``outgoing/<claim id>``."""
        self._bench.begin(request, sink)
        self._context.begin(request, check=self._bench.check)
        try:
            self._bench.check()
            load_torch()
            self._folders.empty()
            # Validation converts literals in place, and the request is not ours.
            prompt = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in request.prompt.items()}
            order = check_prompt(prompt, request.targets, self._classes, worker=self._options.worker)
            outputs = self._executor.run(prompt, order, request)
            return self._outcome(request, prompt, outputs)
        finally:
            self._context.finish()
            self._bench.end()

    def interrupt(self, claim_id: str) -> None:
        """See `engine.base.Engine.interrupt`."""
        self._bench.interrupt(claim_id)

    def memory(self) -> DeviceMemory | None:
        """See `engine.base.Engine.memory`."""
        return device_memory()

    def free(self) -> None:
        """See `engine.base.Engine.free`."""
        self._executor.clear()

    def close(self) -> None:
        """See `engine.base.Engine.close`."""
        self._executor.clear()

    def _outcome(self, request: RunRequest, prompt: Prompt, outputs: dict[str, Any]) -> RunOutcome:
        captures = self._context.finish()
        sinks = [target for target in request.targets if prompt[target]["class_type"] == SINK_CLASS]
        for node_id in sinks:
            if node_id not in self._context.reached:
                raise SinkDidNotRun(node_id=node_id)
        filled = {capture.node_id for capture in captures}
        files = set_aside(written_files(outputs, self._folders), self._folders.outgoing / request.claim_id)
        return RunOutcome(captures, files, outputs, tuple(node_id for node_id in sinks if node_id not in filled))


@functools.cache
def load_torch() -> None:
    """Import torch, the way this engine computes with it; called again it does nothing more."""
    with lasting_imports():
        import torch

    # Sums of large tensors are split among threads, so their last bits would depend on the number; on busy cores it is faster, too.
    torch.set_num_threads(1)


def torch_version() -> str:
    """``torch.__version__`` without the import of torch: the file that torch itself reads it from."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        import torch

        return str(torch.__version__)
    return str(runpy.run_path(str(file))["__version__"])


def torch_device(device: str) -> str:
    """The torch device of a worker's device; with ``cuda:1`` only that GPU is visible here, as the first one.

    Raises:
        EngineStartFailed: torch cannot use it.
    """
    if device == "cpu":
        return "cpu"
    import torch

    kind = device.split(":")[0]
    backend = getattr(torch, kind, None) or getattr(torch.backends, kind, None)
    if backend is None or not backend.is_available():
        remedy = "start the worker with --device cpu or install another torch"
        raise EngineStartFailed(reason=f"torch {torch.__version__} cannot use {device}; {remedy}")
    return kind


def device_name(device: str) -> str:
    """The device as a part of the device class."""
    if device != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_name(0))


def _bound(bench: Workbench) -> dict[str, type]:
    """The node classes of one engine, with its workbench."""
    return {cls.__name__: type(cls.__name__, (cls,), {"bench": bench, "__doc__": cls.__doc__}) for cls in NODE_CLASSES}

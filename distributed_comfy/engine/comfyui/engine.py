"""The engine that runs prompts in a real ComfyUI tree."""
from __future__ import annotations

import copy
import importlib
import logging
import time
from dataclasses import replace
from typing import Any, NoReturn

from distributed_comfy.engine.base import CapturedValue, RunOutcome, Sink
from distributed_comfy.engine.comfyui.capability import CapabilityReader
from distributed_comfy.engine.comfyui.crops import ComfyTileCropper
from distributed_comfy.engine.comfyui.device import device_class
from distributed_comfy.engine.comfyui.echo import history_of, with_words
from distributed_comfy.engine.comfyui.failures import FailureWatch
from distributed_comfy.engine.comfyui.launch import tree_commit
from distributed_comfy.engine.comfyui.listener import CLIENT_ID, ClientListener
from distributed_comfy.engine.comfyui.loaded import loaded_models, pack_versions
from distributed_comfy.engine.comfyui.outputs import discard_files, plain_outputs, shown_nodes, take_files, writing_expanders
from distributed_comfy.engine.comfyui.scope import RunScope, install_scope
from distributed_comfy.engine.comfyui.tree import open_tree
from distributed_comfy.engine.comfyui.validation import check_prompt
from distributed_comfy.engine.comfyui.warm import WarmNodes
from distributed_comfy.engine.device_memory import device_memory
from distributed_comfy.engine.endings import INTERRUPTED, SUCCESS, cached_nodes, ending
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.engine.interrupts import InterruptLatch
from distributed_comfy.engine.options import EngineOptions, NodeProvider
from distributed_comfy.errors import ItemInterrupted, OutOfMemory, SinkDidNotRun
from distributed_comfy.messages import Capability, Prompt, RunRequest, item_id
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.state.status import EngineReport
from distributed_comfy.workflow.classes import SINK_CLASS

log = logging.getLogger(__name__)

COLLECT_INTERVAL_S = 10.0
"""How often garbage is collected after a run, as ComfyUI itself does."""


class ComfyUIEngine:
    """Runs one prompt at a time; models and node outputs stay loaded between runs.

    Flow of a run: ComfyUI's validation -> its executor -> captures from the context, files set aside, ui dicts as in the history.
    The prompt comes with input files and claim in place (`engine.inputs.place_inputs`).
    """

    name = "comfyui"

    def __init__(self, options: EngineOptions, context: Any, provide_nodes: NodeProvider) -> None:
        """Start ComfyUI; see `engine.options.EngineFactory` for arguments and errors."""
        self._options = options
        self._context = context
        self._folders = WorkFolders(options.folder)
        self._tree = open_tree(options)
        self._scope = RunScope()
        install_scope(self._tree.execution, self._tree.nodes.NODE_CLASS_MAPPINGS, self._scope)
        self._listener = ClientListener()
        self._listener.attach(self._tree.server)
        self._failures = FailureWatch(self._tree.model_management)
        self._failures.attach(self._tree.executor)
        self._latch = InterruptLatch(self._tree.nodes.interrupt_processing)
        self._register(provide_nodes(context, nothing=[self._tree.blocker()], cropper=ComfyTileCropper(), sampling=self._tree.sampling()))
        self._device_class = self._describe_device()
        self._capabilities = CapabilityReader(self._tree, self._folders.input)
        self._warm = WarmNodes(self._tree.nodes.NODE_CLASS_MAPPINGS)
        self._told = EngineReport(commit=tree_commit(self._tree.root), packs=pack_versions(self._tree.nodes))
        self._collect_due = 0.0
        self._tree.settle()

    def _register(self, classes: dict[str, type]) -> None:
        """Add the cluster's classes; they win over a pack's classes of the same name, whose context would be another one."""
        mappings = self._tree.nodes.NODE_CLASS_MAPPINGS
        taken = sorted(name for name in classes if name in mappings)
        if taken:
            log.info("node packs of this ComfyUI also define %s; the worker uses its own", ", ".join(taken))
        mappings.update(classes)

    def _describe_device(self) -> str:
        torch = importlib.import_module("torch")
        if self._options.threads > 0:
            torch.set_num_threads(self._options.threads)
        return device_class(self._options, self._tree.version, torch)

    def describe(self) -> Capability:
        """See `Engine.describe`."""
        return Capability(
            engine=self.name,
            engine_version=self._tree.version,
            device=self._options.device,
            device_class=self._device_class,
            tags=self._options.tags,
            **self._capabilities.read(),
        )

    def report(self) -> EngineReport:
        """See `Reporting.report`."""
        return replace(self._told, models=loaded_models(self._tree.model_management))

    def run(self, request: RunRequest, sink: Sink) -> RunOutcome:
        """See `Engine.run`."""
        self._scope.begin(request.claim_id, request.targets, request.original_prompt)
        self._listener.begin(sink, echoes=request.echoes)
        self._failures.begin()
        if request.echoes:
            self._folders.empty_output()
        try:
            self._require_wanted(request, self._latch.begin(request.claim_id))
            prompt = copy.deepcopy(request.prompt)  # ComfyUI converts values and leaves marks in it
            check_prompt(self._tree, prompt, request.targets, self._options.worker)
            prompt = self._warm.beside(request, prompt)
            captures = self._execute(prompt, request)
            self._warm.note(request, prompt, shown_nodes(self._tree.executor.history_result))
            return self._outcome(request, captures)
        finally:
            self._latch.end()
            self._listener.end()
            self._scope.end()
            self._collect()

    def _require_wanted(self, request: RunRequest, wanted: bool) -> None:
        if not wanted:
            raise ItemInterrupted(item_id=item_id(request.job_id, request.index))

    def _execute(self, prompt: Prompt, request: RunRequest) -> list[CapturedValue]:
        """Run to the end; what the sinks took, or the error."""
        executor, server = self._tree.executor, self._tree.server
        extra_data: dict[str, Any] = {"client_id": CLIENT_ID}
        if request.extra_pnginfo:
            extra_data["extra_pnginfo"] = request.extra_pnginfo
        server.last_prompt_id = request.claim_id
        executor.history_result = {}
        self._context.begin(request, check=self._tree.model_management.throw_exception_if_processing_interrupted)
        succeeded = False
        try:
            executor.execute(prompt, request.claim_id, extra_data, list(request.targets))
            succeeded = ending(executor.status_messages)[0] == SUCCESS
        finally:
            captures: list[CapturedValue] = self._context.finish()
            if not succeeded:
                captures.clear()  # they may hold device memory
                discard_files(executor.history_result, self._folders)
        if not succeeded:
            self._raise_failure(request)
        return captures

    def _raise_failure(self, request: RunRequest) -> NoReturn:
        event, facts = ending(self._tree.executor.status_messages)
        self._require_wanted(request, not (event == INTERRUPTED and self._latch.requested))
        if self._context.failure is not None:
            raise self._context.failure
        error = self._failures.failure(event, facts, self._options.device)
        if isinstance(error, OutOfMemory):
            self.free()
        raise with_words(error, event, facts) if request.echoes else error

    def _outcome(self, request: RunRequest, captures: list[CapturedValue]) -> RunOutcome:
        history = self._tree.executor.history_result
        blocked = self._blocked(request, {capture.node_id for capture in captures if capture.value is not None})
        self._scope.writing_expanders |= {request.prompt[node]["class_type"] for node in writing_expanders(history)}
        outputs = plain_outputs(history, cached_nodes(self._tree.executor.status_messages), self._folders)
        return RunOutcome(
            captures=[capture for capture in captures if capture.value is not None],
            files=take_files(outputs, self._folders, request.claim_id, unnamed=request.echoes),
            outputs=outputs,
            blocked=blocked,
            history=history_of(self._tree.executor) if request.echoes else None,
        )

    def _blocked(self, request: RunRequest, filled: set[str]) -> tuple[str, ...]:
        """Sinks that got nothing: not called because a blocked value reached them, or called with what a lazy node left out.

        Raises:
            SinkDidNotRun: ComfyUI never came to a sink.
        """
        sinks = [node for node in request.targets if request.prompt[node]["class_type"] == SINK_CLASS]
        for node in sinks:
            if node not in self._context.reached and node not in self._listener.started:
                raise SinkDidNotRun(node_id=node)
        return tuple(node for node in sinks if node not in filled)

    def _collect(self) -> None:
        """Garbage, as often as ComfyUI itself would."""
        if time.monotonic() >= self._collect_due:
            self._tree.collect()
            self._collect_due = time.monotonic() + COLLECT_INTERVAL_S

    def interrupt(self, claim_id: str) -> None:
        """See `Engine.interrupt`."""
        self._latch.request(claim_id)

    def memory(self) -> DeviceMemory | None:
        """See `Engine.memory`."""
        return device_memory()

    def free(self) -> None:
        """See `Engine.free`."""
        self._tree.unload()

    def close(self) -> None:
        """See `Engine.close`."""
        self._tree.close()

"""The engine that drives a running ComfyUI, whoever started it and whatever else it does."""
from __future__ import annotations

import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distributed_comfy.engine.attach.capability import NodeListing, describe, first_device
from distributed_comfy.engine.attach.captures import read_capture
from distributed_comfy.engine.attach.following import History, Prompts, Waiter, prompt_id_of
from distributed_comfy.engine.attach.listener import EventListener
from distributed_comfy.engine.attach.outcome import failure, fetch_files, own_outputs, without_value
from distributed_comfy.engine.attach.pack import Feed, PackDoor, Visiting, failure_of
from distributed_comfy.engine.attach.pack_words import CLIENT_PREFIX, PackFacts, Visit
from distributed_comfy.engine.attach.server import TOO_LARGE, ComfyServer
from distributed_comfy.engine.attach.shelf import InputShelf
from distributed_comfy.engine.attach.supplies import SlotFeed, Supplier, Supply
from distributed_comfy.engine.attach.translation import Translation, placed_in, translate
from distributed_comfy.engine.base import CapturedValue, RunOutcome, Sink
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.engine.endings import INTERRUPTED, SUCCESS, cached_nodes, ending
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.engine.interrupts import InterruptLatch
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.refusals import require_classes
from distributed_comfy.errors import (
    ComfyUIDropped,
    ComfyUIUnreachable,
    EngineStartFailed,
    ItemInterrupted,
    OutOfMemory,
    SinkDidNotRun,
    WorkerLacks,
)
from distributed_comfy.messages import Capability, RunRequest, item_id
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.workflow.classes import OWN_CLASSES, SINK_CLASS

log = logging.getLogger(__name__)

EXIT_COMFYUI_GONE = 69
"""Exit status (sysexits' EX_UNAVAILABLE): the last line of the log says where ComfyUI was."""

MEMORY_INTERVAL_S = 5.0
QUEUE_NODE = "queue"
"""Stands for a node in the progress of an item that waits behind other prompts."""

FREE_S = 0.5
"""ComfyUI frees memory when it next looks at its queue, and takes a prompt that waits there first."""

_RETRY_S = 0.5

T = TypeVar("T")


class AttachEngine:
    """Runs one prompt at a time in a ComfyUI that runs elsewhere.

    Flow of a run: input files and feed into ComfyUI's input folder -> our nodes replaced by stock ones -> its queue -> its history ->
    files, of which captures are made.  Where ComfyUI has the node pack of this project, our nodes stay, and feed and captures go through
    the pack, bit for bit (`pack`).  The prompt comes with input files and claim in place (`engine.inputs.place_inputs`).
    """

    name = "attach"

    def __init__(self, options: EngineOptions, context: GraphContext) -> None:
        """Wait for ComfyUI, as long as the options say.

        Raises:
            ComfyUIUnreachable: it does not answer.
        """
        self._options = options
        self._context = context
        self._folders = WorkFolders(options.folder)
        self._work = options.folder / "attached"
        self._work.mkdir(parents=True, exist_ok=True)
        self._server = ComfyServer(options.comfyui_url, options.comfyui_headers, f"{CLIENT_PREFIX}{options.worker}")
        self._prompts = Prompts(self._server, options.worker)
        self._shelf = InputShelf(self._server.upload, options.worker, self._work / "shelf.json", self._work / "empty")
        self._memory: DeviceMemory | None = None
        self._door = PackDoor(self._server, options.comfyui_token, options.comfyui_token_file)
        self._pack: PackFacts | None = None
        self._capability = self._wait_for_comfyui()
        self._prompts.clear_leftovers()
        self._listener = EventListener(self._server, _end_without_comfyui)
        self._latch = InterruptLatch(self._listener.news.set)
        self._closed = threading.Event()
        threading.Thread(target=self._watch_memory, name="comfyui-memory", daemon=True).start()

    def _wait_for_comfyui(self) -> Capability:
        give_up = time.monotonic() + self._options.comfyui_wait_s
        while True:
            try:
                return self._look()
            except ComfyUIUnreachable:
                if time.monotonic() >= give_up:
                    raise
            time.sleep(_RETRY_S)

    def describe(self) -> Capability:
        """See `engine.base.Engine.describe`; while ComfyUI does not answer, what was known: whether it is gone is decided elsewhere."""
        try:
            self._capability = self._look()
        except (ComfyUIUnreachable, EngineStartFailed) as error:
            log.warning("%s; its node classes stay as they were", error)
        return self._capability

    def _look(self) -> Capability:
        stats = self._server.ask("/system_stats")
        self._listing = NodeListing(self._server.ask("/object_info"), self._server.model_files())
        self._memory = _memory(stats)
        self._pack = self._door.look(self._listing)
        return describe(self._listing, stats, self._options.tags, self._pack)

    def memory(self) -> DeviceMemory | None:
        """See `engine.base.Engine.memory`."""
        return self._memory

    def run(self, request: RunRequest, sink: Sink) -> RunOutcome:
        """See `engine.base.Engine.run`."""
        self._context.begin(request, check=lambda: self._require_wanted(request))
        try:
            self._listener.begin(sink, prompt_id_of(request.claim_id))
            self._latch.begin(request.claim_id)
            self._require_wanted(request)
            with self._visit(request) as visit:
                translation = self._translated(request, visit)
                if not translation.targets:  # nothing was fed, so nothing runs
                    return RunOutcome(blocked=_sinks(request))
                history = self._executed(request, translation, _Followed(sink, visit))
                return self._outcome(request, translation, history, visit)
        finally:
            self._listener.end()
            self._latch.end()
            self._context.finish()
            shutil.rmtree(self._work / "run", ignore_errors=True)

    def interrupt(self, claim_id: str) -> None:
        """See `engine.base.Engine.interrupt`."""
        self._latch.request(claim_id)

    def free(self) -> None:
        """See `engine.base.Engine.free`."""
        try:
            self._server.order("/free", {"unload_models": True, "free_memory": True})
        except ComfyUIUnreachable as error:
            log.warning("memory could not be freed: %s", error)

    def close(self) -> None:
        """See `engine.base.Engine.close`; ComfyUI itself goes on."""
        self._closed.set()
        self._listener.close()
        self._server.close()

    def _visit(self, request: RunRequest) -> AbstractContextManager[Visiting | None]:
        """The visit of an item, where ComfyUI has our pack.

        Raises:
            ComfyUIDropped, WorkerLacks: the pack does not let it in.
        """
        if self._pack is None:
            return nullcontext()
        visit = Visit(
            claim_id=request.claim_id, job_id=request.job_id, worker=self._options.worker, kind=request.kind, feed=request.feed,
            frames=request.frames, limit_bytes=self._options.blob_limit_bytes,
        )  # fmt: skip
        feed = Feed(self._context.hand_on, self._options.feed_timeout_s)
        visiting = Visiting(self._door, visit, feed, self._listener.news.set)
        try:
            visiting.open()
        except ComfyUIDropped:  # ComfyUI may have been started anew, with another pack or without one
            self._insist(self._look)
            raise
        return visiting

    # -- before ---------------------------------------------------------------------------------------------------------
    def _translated(self, request: RunRequest, visit: Visiting | None) -> Translation:
        """What is queued; node classes are looked at again where one is unknown, for ComfyUI may have been started anew."""
        foreign = {node["class_type"] for node in request.prompt.values()} - OWN_CLASSES
        if not foreign <= self._listing.info.keys():
            self._insist(self._look)
        require_classes(self._listing.info.keys() | OWN_CLASSES, request.prompt, self._options.worker)
        if visit is not None:
            self._shelf.note_there(visit.kept)
        (self._work / "run").mkdir(parents=True, exist_ok=True)
        names = {path.name: self._put(path) for path in self._placed(request)}
        supplier = Supplier(self._work / "run", self._put, self._options.worker)
        needed = set(names.values())

        def supply(node_id: str, slot: str) -> Supply:
            refs, values = self._context.fed(node_id, slot)
            made = supplier.supply(SlotFeed(f"{node_id}~{slot}", slot, refs, values))
            needed.update(str(value) for node in made.nodes.values() for value in node["inputs"].values())
            return made

        translation = translate(placed_in(request, names), self._listing, supply if visit is None else None, self._options.worker)
        require_classes(self._listing.info, translation.prompt, self._options.worker)
        self._insist(lambda: self._shelf.tidy(needed))
        return translation

    def _placed(self, request: RunRequest) -> list[Path]:
        values = {str(request.prompt[entry.node_id]["inputs"][entry.input]) for entry in request.input_files}
        return [self._folders.input / value for value in sorted(values)]

    def _put(self, content: Path) -> str:
        self._context.alive()
        try:
            return self._insist(lambda: self._shelf.put(content))
        except ComfyUIUnreachable as error:
            if error.fields.get("status") != TOO_LARGE:
                raise
            lacks = f"room for an input file of {content.stat().st_size} bytes (its ComfyUI's --max-upload-size)"
            raise WorkerLacks(worker=self._options.worker, lacks=lacks) from error

    # -- run ------------------------------------------------------------------------------------------------------------
    def _executed(self, request: RunRequest, translation: Translation, followed: _Followed) -> History:
        """Run to the end; the history of a prompt that ended well, or the error."""
        visit = followed.visit
        prompt_id = prompt_id_of(request.claim_id)
        self._listener.rename(translation.origin)
        self._require_wanted(request)
        self._prompts.queue(translation, prompt_id, request.extra_pnginfo)
        history = self._prompts.follow(prompt_id, self._waiter(followed))
        if visit is None or visit.problem is not None:  # else the pack does so, when it has looked which files are left
            self._prompts.forget(prompt_id)
        if visit is not None:
            visit.require_well()
        if history is None:
            raise ItemInterrupted(item_id=item_id(request.job_id, request.index))
        event, facts = ending(history["status"]["messages"])
        if event == SUCCESS and not self._latch.requested:
            return history
        if event in (INTERRUPTED, SUCCESS):
            self._require_wanted(request)
        nowhere = without_value(facts, translation.origin)
        if nowhere:
            raise WorkerLacks(worker=self._options.worker, lacks=f"a way of telling that nothing came to node {nowhere}")
        ours = failure_of(visit.result()) if visit is not None else None
        if ours is not None:
            raise ours
        error = failure(event, facts, translation.origin, self._capability.device, self._server.shown)
        if isinstance(error, OutOfMemory):
            self.free()
            time.sleep(FREE_S)
        raise error

    def _waiter(self, followed: _Followed) -> Waiter:
        def stop_requested() -> bool:
            return self._latch.requested or (followed.visit is not None and followed.visit.problem is not None)

        def wait_for_news(seconds: float) -> None:
            self._listener.news.wait(seconds)
            self._listener.news.clear()
            if stop_requested():  # it is set again and again then
                time.sleep(min(seconds, 0.1))

        def queued(before: int) -> None:
            followed.sink.progress(QUEUE_NODE, 0, before)  # a sign of life: whoever runs now may take longer than a stall

        return Waiter(stop_requested, wait_for_news, queued)

    def _require_wanted(self, request: RunRequest) -> None:
        if self._latch.requested:
            raise ItemInterrupted(item_id=item_id(request.job_id, request.index))

    # -- after ----------------------------------------------------------------------------------------------------------
    def _outcome(self, request: RunRequest, translation: Translation, history: History, visit: Visiting | None) -> RunOutcome:
        cached = cached_nodes(history["status"]["messages"])
        outputs: dict[str, Any] = history.get("outputs", {})
        captures = [] if visit is None else self._brought(request, visit, cached)
        for plan in translation.captures:
            if plan.tellers[0] in cached:
                raise SinkDidNotRun(node_id=plan.sink)
            captures += read_capture(plan, outputs, self._fetch(self._work / "run"), self._options.worker)
        shown = own_outputs(outputs, translation.origin, request.claim_id)
        fetch = self._fetch(self._folders.outgoing / request.claim_id)
        files = fetch_files(outputs, translation.origin, request, fetch)
        filled = {capture.node_id for capture in captures}
        return RunOutcome(captures, files, shown, tuple(node for node in _sinks(request) if node not in filled))

    def _brought(self, request: RunRequest, visit: Visiting, cached: Collection[str]) -> list[CapturedValue]:
        """What the sinks took, from the pack.

        Raises:
            SinkDidNotRun: ComfyUI took one from its cache.
        """
        result = self._insist(visit.result)
        failed = failure_of(result)
        if failed is not None:
            raise failed
        for node_id in _sinks(request):
            if node_id in cached and node_id not in result.reached:
                raise SinkDidNotRun(node_id=node_id)
        captures = []
        for capture in result.captures:
            self._context.alive()
            captures.append(self._insist(lambda capture=capture: visit.captured(capture)))  # type: ignore[misc]
        return captures

    def _fetch(self, folder: Path) -> Callable[[Mapping[str, Any]], Path]:
        numbers = itertools.count()

        def fetch(entry: Mapping[str, Any]) -> Path:
            target = folder / str(next(numbers)) / Path(str(entry["filename"])).name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._context.alive()
            if not self._insist(lambda: self._server.download(entry, target)):
                raise WorkerLacks(worker=self._options.worker, lacks=f"the file {entry['filename']} that ComfyUI wrote")
            return target

        return fetch

    def _insist(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer: the prompt may be done, and this must not be lost to a cut; ends with the process."""
        while True:
            try:
                return ask()
            except ComfyUIUnreachable as error:
                if not error.lost:
                    raise
                log.warning("%s; asking again", error)
            time.sleep(_RETRY_S)

    def _watch_memory(self) -> None:
        while not self._closed.wait(MEMORY_INTERVAL_S):
            try:
                self._memory = _memory(self._server.ask("/system_stats"))
            except ComfyUIUnreachable as error:
                log.debug("%s", error)


@dataclass(frozen=True)
class _Followed:
    """Whoever is told how a prompt goes on."""

    sink: Sink
    visit: Visiting | None


def _sinks(request: RunRequest) -> tuple[str, ...]:
    return tuple(node for node in request.targets if request.prompt[node]["class_type"] == SINK_CLASS)


def _memory(stats: Mapping[str, Any]) -> DeviceMemory | None:
    device = first_device(stats)
    if device.get("type") == "cpu" or not device.get("vram_total"):
        return None
    return DeviceMemory(int(device.get("vram_free", 0)), int(device["vram_total"]))


def _end_without_comfyui(error: ComfyUIUnreachable) -> None:
    """The consumer gives back what runs, and starts another engine process, which waits for ComfyUI."""
    log.error("%s", error)
    logging.shutdown()
    os._exit(EXIT_COMFYUI_GONE)

"""One prompt of this ComfyUI's queue on a worker: queued as a job of one item, watched, and brought home; or given back."""
from __future__ import annotations

import builtins
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import redis

from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest
from distributed_comfy.comfyui.ordinary_rules import ENGINE
from distributed_comfy.comfyui.placed_files import JOURNAL, FilePlacer, MadeFile, with_places
from distributed_comfy.comfyui.prompt_events import PromptEvents, SendSync
from distributed_comfy.comfyui.queue_consumer import TakenPrompt
from distributed_comfy.comfyui.titles import title_of
from distributed_comfy.errors import (
    ClusterUnavailable,
    DistributedComfyError,
    EngineDied,
    EngineStalled,
    JobCancelled,
    JobFailed,
    NodeFailed,
    RunInterrupted,
    from_wire,
)
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.orchestrator.progress import ProgressListener, Said, Step
from distributed_comfy.orchestrator.submit import GivenPrompt, QueuedJob, SubmitOptions, submit_prompt
from distributed_comfy.workflow.parse import parse_prompt
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

UNCLAIMED_S = 10.0
"""A prompt that no worker has taken (again) by then goes back: whoever is free first, this ComfyUI included, then takes it."""
LOST_S = 10.0
"""The same where the server of the table has not answered for so long."""
SPOOL_PREFIX = "ordinary-"

_WATCH_S = 0.2
_LOOK_S = 1.0
_CATCH_UP_S = 2.0
_ITS_OWN = (NodeFailed, EngineDied, EngineStalled)
"""Errors that the prompt would have here, too, except `_is_of_its_host`; with any other it is tried here."""
_OF_A_HOST = frozenset(
    kind.__name__ for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, (OSError, ImportError))
) | {"torch.AcceleratorError", "safetensors_rust.SafetensorError"}  # fmt: skip
"""Exceptions, as ComfyUI names them, of a file, a package, a network or a driver, which differ from host to host."""


@dataclass(frozen=True)
class Ending:
    """How a prompt ended on the cluster."""

    kind: Literal["done", "failed", "interrupted", "back"]
    reason: str = ""
    """Why it is back, in words."""
    here: bool = False
    """True where it is back and no worker should try again."""


@dataclass(frozen=True)
class Surroundings:
    """What every prompt is run with."""

    placer: FilePlacer
    send_sync: SendSync
    knows_metadata: Callable[[str | None], bool]
    """client id -> whether its page knows previews that say whose they are."""
    folders: Mapping[str, Path]
    """ComfyUI's ``input``, ``output`` and ``temp``."""
    preview_side_px: int
    """See `ComfyHost.preview_side_px`."""
    user_folder: Path | None = None
    """See `ComfyHost.user_folder`."""


class OrdinaryRun:
    """One prompt; `run` is called once.

    Args:
        cluster: open connections.
        taken: the prompt.
        around: see `Surroundings`.
    """

    def __init__(self, cluster: Cluster, taken: TakenPrompt, around: Surroundings) -> None:
        self.taken = taken
        self.job_id = secrets.token_hex(6)
        self.claimed = threading.Event()
        """Set when a worker has it."""
        self.events = PromptEvents(around.send_sync, taken.prompt_id, taken.client_id, taken.prompt)
        self.history: dict[str, Any] = {"outputs": {}, "meta": {}}
        """What ComfyUI's executor would hand to the history."""
        self._cluster, self._around = cluster, around
        self._over = threading.Event()
        self._stopped = threading.Event()
        self._unwanted = False
        """Its user has interrupted it."""
        self._reason = ""
        """Why it is to go back."""
        self._closing = ExitStack()

    def interrupt(self) -> None:
        """The user wants it to end, wherever; from any thread."""
        self._unwanted = True
        self._stopped.set()

    def give_up(self, reason: str) -> None:
        """It is to go back; from any thread."""
        self._reason = self._reason or reason
        self._stopped.set()

    def settled(self, ending: Ending) -> Ending:
        """What comes of an ending: a prompt that its user has interrupted meanwhile does not go back."""
        return self._interrupted("as its user asked") if ending.kind == "back" and self._unwanted else ending

    def run(self) -> Ending:
        """Run the prompt to its end on the cluster; its files are placed and its messages told when this returns.  Then call `close`."""
        self.events.start()
        try:
            return self._run()
        except (RunInterrupted, CancelledError):
            return self._asked()
        except JobCancelled as error:
            return self._asked() if self._stopped.is_set() else self._interrupted(str(error))
        except JobFailed as error:
            return self._failed(from_wire(error.error))
        except (DistributedComfyError, redis.RedisError) as error:
            return self._back(Ending("back", str(error), here=not isinstance(error, (ClusterUnavailable, redis.RedisError))))
        finally:
            self._over.set()

    def close(self) -> None:
        """Let go of what `run` has opened; takes long where the servers do not answer, so nobody should wait for it."""
        self._closing.close()

    def forget(self, cluster: Cluster) -> None:
        """Nothing of the job stays on the servers, and no worker goes on with it.

        Args:
            cluster: as it is now; an embedded Redis that was started again has another address, and its jobs from the disk.
        Raises:
            DistributedComfyError, redis.RedisError: a server cannot be told; to be tried again.
        """
        jobs = cluster.jobs
        try:
            if not jobs.job_state(self.job_id).ended:
                jobs.cancel(self.job_id, "its ComfyUI needs it no more")
        except DistributedComfyError as error:
            if isinstance(error, ClusterUnavailable):
                raise
            log.debug("job %s: %s", self.job_id, error)  # it never entered the table, or ended just now
            return
        jobs.settle(self.job_id)
        cluster.blobs.drop_job(self.job_id)

    # -- the way there
    def _run(self) -> Ending:
        closing = self._closing
        listener = closing.enter_context(ProgressListener(self._cluster, self.job_id, self._on_step, self._on_said))
        listener.catch_up(_CATCH_UP_S)  # so that it hears the first word
        job = self._submit()
        closing.enter_context(Ownership(self._cluster, self.job_id, job.owner))
        spool = Spool(self._spool_folder(), SpoolManifest(self.job_id))
        closing.callback(spool.remove)
        self._collect(job, spool)
        listener.catch_up(_CATCH_UP_S)
        return self._deliver(spool)

    def _submit(self) -> QueuedJob:
        taken = self.taken
        extra = {"extra_pnginfo": taken.extra_data.get("extra_pnginfo")}
        parsed = parse_prompt({"prompt": taken.prompt, "extra_data": extra})
        options = SubmitOptions(engine=ENGINE, outputs=taken.targets, folders=self._around.folders, echoes=True, job_id=self.job_id)
        title = title_of(taken.prompt, taken.targets, extra["extra_pnginfo"], time.time(), user_folder=self._around.user_folder)
        job = submit_prompt(self._cluster, GivenPrompt(parsed, Path.cwd(), title), options, self._stopped)
        log.info("prompt %s runs on the cluster as job %s", taken.prompt_id, self.job_id)
        return job

    def _spool_folder(self) -> Path:
        """On the disk where most files are to be, so that they need not be copied."""
        return self._around.folders["output"] / SPOOL_FOLDER / f"{SPOOL_PREFIX}{self.job_id}"

    def _collect(self, job: QueuedJob, spool: Spool) -> None:
        away_s = self._cluster.settings.blob_away_s
        options = CollectorOptions(ensure_inputs=lambda: job.inputs.ensure(job.record.input_files), blob_away_s=away_s)
        collector = Collector(job.record, self._cluster.jobs, self._cluster.blobs, spool, options)
        watch = threading.Thread(target=self._watch, args=(collector,), name=f"prompt-{self.job_id}", daemon=True)
        watch.start()
        collector.run()

    def _watch(self, collector: Collector) -> None:
        """End the collecting where somebody wants that, or where nothing comes of it."""
        quiet_since = heard_at = time.monotonic()
        look_at = 0.0
        while not self._over.wait(_WATCH_S):
            now = time.monotonic()
            if now >= look_at or not self.claimed.is_set():
                look_at = now + _LOOK_S
                try:
                    state = self._cluster.jobs.job_state(self.job_id)
                    heard_at = now
                    if state.ended or state.counts["running"]:
                        quiet_since = now
                        self.claimed.set()
                except (DistributedComfyError, redis.RedisError) as error:
                    log.debug("prompt %s: %s", self.taken.prompt_id, error)
                    quiet_since = now
            if now - heard_at > LOST_S:
                self.give_up(f"the server of the table has not answered for {LOST_S:.0f} s")
            elif now - quiet_since > UNCLAIMED_S:
                self.give_up(f"no worker has taken it within {UNCLAIMED_S:.0f} s")
            if self._stopped.is_set():
                collector.stop()
                self._cancel_quietly()
                return

    def _cancel_quietly(self) -> None:
        """At once, because its user waits for the worker to stop; `forget` makes sure of it."""
        try:
            self._cluster.jobs.cancel(self.job_id, "its ComfyUI needs it no more")
        except (DistributedComfyError, redis.RedisError) as error:
            log.debug("job %s is not cancelled yet: %s", self.job_id, error)

    # -- the end
    def _deliver(self, spool: Spool) -> Ending:
        result = spool.result(0)
        placer = self._around.placer
        placed = placer.place([MadeFile(ref, spool.path(0, ref.blob)) for ref in result.files], spool.folder / JOURNAL)
        outputs = {node_id: with_places(ui, placed, placer.folder_of) for node_id, ui in result.outputs.items()}
        self.history = self.events.succeed(result, outputs)
        log.info("prompt %s: done by %s in %.2f s, %d file(s)", self.taken.prompt_id, result.worker, result.seconds, len(placed))
        return Ending("done")

    def _failed(self, error: DistributedComfyError) -> Ending:
        if not isinstance(error, _ITS_OWN) or _is_of_its_host(error):
            return self._back(Ending("back", str(error), here=True))
        log.warning("prompt %s failed on a worker: %s", self.taken.prompt_id, error)
        self.events.fail(error)
        return Ending("failed")

    def _interrupted(self, reason: str) -> Ending:
        log.info("prompt %s is interrupted: %s", self.taken.prompt_id, reason)
        self.events.interrupt()
        return Ending("interrupted")

    def _asked(self) -> Ending:
        return self.settled(self._back(Ending("back", self._reason or "it was stopped")))

    def _back(self, why: Ending) -> Ending:
        self.events.abandon()
        return why

    # -- what workers say
    def _on_step(self, step: Step) -> None:
        self.claimed.set()
        if step.preview:
            knows = self._around.knows_metadata(self.taken.client_id)
            self.events.preview(step, with_metadata=knows, side_px=self._around.preview_side_px)

    def _on_said(self, said: Said) -> None:
        self.claimed.set()
        self.events.hear(said)


def _is_of_its_host(error: DistributedComfyError) -> bool:
    """Whether a node failed for what may be missing or broken on the worker's host alone, so that this ComfyUI must try, once."""
    return isinstance(error, NodeFailed) and str(error.fields["exception_type"]) in _OF_A_HOST

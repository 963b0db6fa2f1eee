"""The core faults on workers with real ComfyUI and the tiny model, and the field where they are played.

Executions are counted by a node of a pack in ComfyUI itself, which appends a line to one file before it lets the sampler begin.
"""
from __future__ import annotations

import functools
import time
from typing import Any

from distributed_comfy.errors import JobCancelled
from distributed_comfy.messages import Prompt
from tests.cluster_rig import RunningJob
from tests.comfyui.test_cluster_models import loads
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import CommandLine, until
from tests.prompts import node, out
from tests.smoke import engine_faults, process_faults, server_faults
from tests.smoke.field import SEED, Ending, Field
from tests.smoke.measured import NOTHING, Costs
from tests.smoke.scenario import in_comfyui

OTHER_SEED = 9000
"""Of jobs that are not the field's."""
LEAST_STALL_S = 10.0
CANCELLED_S = 2.0
"""How long a cancel may take in the middle of sampling."""


class ComfyUIField(Field):
    """Each item is a picture that the tiny model samples and decodes, and the steps of every field after that."""

    _read_to = 0
    """Where in the file of the nodes the job began that is under way."""

    def prompt(self) -> Prompt:
        """See `Field.prompt`."""
        whole = distributed(seed=SEED)
        prompt = {node_id: whole[node_id] for node_id in ("1", "2", "3", "4", "5", "6", "7", "8")}
        prompt["5"]["inputs"]["batch_size"] = 1
        prompt["begin"] = node("RuleBegin", seed=out("6"))
        prompt["7"]["inputs"]["seed"] = out("begin")
        prompt["seed"] = prompt.pop("6")
        prompt["begin"]["inputs"]["seed"] = out("seed")
        return self.with_steps(prompt, "8")

    def begin(self, prompt: Prompt | None = None, items: int = 0, **options: Any) -> RunningJob:
        """See `Field.begin`."""
        self._read_to = len(self._begun())
        return super().begin(prompt, items, **options)

    def command_line(self) -> CommandLine:
        """See `Field.command_line`."""
        self._read_to = len(self._begun())
        return super().command_line()

    def executions(self, ending: Ending) -> int:
        """Lines of the node since the job began; what our own engine notes of it must not be fewer."""
        begun, ours = len(self._begun()) - self._read_to, super().executions(ending)
        assert begun <= ours, f"the node ran {begun} times, {ours} executions were noted"
        return begun

    def _begun(self) -> list[str]:
        lines = (self.rig.folder / "rule_log").read_text().splitlines()
        return [line for line in lines if line.startswith("RuleBegin ")]


@in_comfyui("ComfyUI: engine killed", "kill -9 of ComfyUI in the middle of an item", "engine death")
def engine_killed(field: Field) -> Ending:
    return process_faults.engine_killed(field)


@in_comfyui("ComfyUI: worker killed", "kill -9 of a worker and its ComfyUI at once", "lease")
def worker_killed(field: Field) -> Ending:
    return process_faults.worker_killed(field)


@in_comfyui("ComfyUI: worker frozen", "SIGSTOP of both for longer than the lease, then SIGCONT", "lease", "late results are refused")
def worker_frozen(field: Field) -> Ending:
    return process_faults.worker_frozen(field)


@in_comfyui(
    "ComfyUI: master killed",
    "kill -9 of `distributed-comfy run`, and the same command again at once",
    "resume",
    "a job goes on itself",
    costs=NOTHING,
)
def master_killed(field: Field) -> Ending:
    return process_faults.master_killed(field)


@in_comfyui(
    "ComfyUI: blob Redis killed",
    "kill -9 of the server of blobs; it starts again, empty, a second later",
    "blobs are made again",
    costs=Costs(0, 3),
)
def blobs_killed(field: Field) -> Ending:
    return server_faults.blobs_killed(field)


@in_comfyui(
    "ComfyUI: state Redis killed",
    "kill -9 of the server of the table; it starts again from its append-only file a second later",
    "append-only file",
    "one lease after a restart",
    "engines go on",
    costs=Costs(0, 2),
)
def state_killed(field: Field) -> Ending:
    return server_faults.state_killed(field)


@in_comfyui("ComfyUI: node hangs", "a node of a pack makes no step any more", "stall limit")
def node_hangs(field: Field) -> Ending:
    """On a worker of its own, whose limit is low, but not below what ComfyUI takes to start."""
    with field.another("hangs", stall_timeout_s=max(LEAST_STALL_S, 2 * field.start_s)):
        everywhere(field, "hang at hangs")
        job = field.begin()
        job.queued()
        return field.ended(job, None, time.time(), timeout_s=200.0)


@in_comfyui(
    "ComfyUI: out of memory",
    "on one of two workers every item raises torch.OutOfMemoryError; the other one runs them",
    "memory is freed, then elsewhere",
    costs=Costs(1, 4),
)
def out_of_memory(field: Field) -> Ending:
    everywhere(field, "memory at one")
    job = field.begin()
    job.queued()
    ending = field.ended(job, None, time.time())
    assert {result.worker for result in job.report.done.results.values()} == {"two"}
    return ending


@in_comfyui("ComfyUI: segfault", "a node of a pack breaks off in native code", "engine death")
def segfault(field: Field) -> Ending:
    return engine_faults.with_mishap(field, "segfault")


@in_comfyui(
    "ComfyUI: cancelled while sampling",
    "a job is cancelled while both workers sample; the next one loads no model again, and nothing of the first one runs",
    "a cancel is heard in a step",
    costs=NOTHING,
)
def cancelled_while_sampling(field: Field) -> Ending:
    field.begin(seeded(OTHER_SEED, steps=2), items=6).wait()
    until(field.rig.is_idle)
    before = loads(field.rig)
    assert min(before.values()) > 0
    job = field.begin(seeded(OTHER_SEED, steps=5000), items=4)
    for name in field.rig.workers:
        job.until(functools.partial(samples, job, name))
    job.stop.set()
    began = time.monotonic()
    assert isinstance(job.wait().error, JobCancelled)
    until(field.rig.is_idle)
    assert time.monotonic() - began < CANCELLED_S, "the step that was under way, and nothing after it"
    job = field.begin()
    job.queued()
    ending = field.ended(job, None, time.time())
    assert loads(field.rig) == before
    return ending


def everywhere(field: Field, order: str) -> None:
    """Each item does that."""
    for index in range(field.timing.items):
        (field.mishaps / str(SEED + index)).write_text(order)


def seeded(seed: int, steps: int) -> Prompt:
    """Another job with the same models."""
    prompt = distributed(seed=seed, steps=steps)
    del prompt["10"]
    return prompt


def samples(job: RunningJob, worker: str) -> bool:
    """Whether a worker is in the middle of sampling."""
    return any(step.worker == worker and step.node_id == "7" and step.value > 2 for step in job.report.steps)

"""A node whose ComfyUI can run the prompt, and cannot take what is left of its job, never waits in silence."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from distributed_comfy.comfyui.alone import open_alone
from distributed_comfy.comfyui.guest import Guest
from distributed_comfy.comfyui.participation import Participation
from distributed_comfy.comfyui.progress import JobProgress
from distributed_comfy.messages import Requirement
from distributed_comfy.settings import read_settings
from distributed_comfy.state.records import WorkerFacts
from tests.prompts import node, out
from tests.state_cluster import Job, submission

JOB = "0123456789ab"


class Sampler:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (["here.safetensors"],)}}


def waiting(model: str = "here.safetensors", device_class: str = "") -> tuple[Participation, Any]:
    """With a job of two items, without any worker."""
    cluster = open_alone(read_settings())
    whole = submission(JOB, Job(items=2))
    whole = replace(
        whole,
        record=replace(whole.record, requirement=Requirement("", ("Sampler",), device_class=device_class)),
        specs=[replace(spec, patches=()) for spec in whole.specs],
        prompts={"p": {"3": node("Sampler", model=model)}},
    )
    cluster.jobs.submit(whole, "me")
    running: Any = SimpleNamespace(
        cluster=cluster, record=whole.record, plan=SimpleNamespace(prompts=whole.prompts, items=whole.specs),
        spool=SimpleNamespace(items=tuple),
    )  # fmt: skip
    accepted = SimpleNamespace(planned={"3": node("Sampler", model=out("value"))}, foreign=())
    job = SimpleNamespace(accepted=accepted, progress=JobProgress(), running=running, phase="running", can_run_here=True, over=False)
    job.workers_starting = lambda cluster: ()
    job.progress.begin(whole.record)
    host = SimpleNamespace(
        nodes=SimpleNamespace(NODE_CLASS_MAPPINGS={"Sampler": Sampler}), cannot_add_nodes="",
        model_management=SimpleNamespace(throw_exception_if_processing_interrupted=lambda: None),
    )
    places: Any = SimpleNamespace(takes_part=lambda: True, host=host)
    return Participation(Guest(WorkerFacts("pc1-master", "pc1", "", "comfyui")), lambda: "cpu", places), job


def test_items_that_must_be_made_by_one_kind_of_device_wait_aloud_for_it() -> None:
    participation, job = waiting(device_class="RTX 4090")
    assert participation.take_turns(job, "9", 1) is None
    assert job.progress.look().text == (
        "0 of 2 items; waiting: no live worker can run it, and this ComfyUI lacks device class RTX 4090 (it has cpu);"
        " start one that can, or interrupt"
    )


def test_a_model_that_this_comfyui_lacks_fails_its_job_where_no_worker_can_ever_come() -> None:
    participation, job = waiting(model="big.safetensors")
    assert participation.begin(participation.turns.add(job, "9", 1), "9~turns1.0") is None
    table = job.running.cluster.jobs
    assert table.job_state(JOB).state == "failed"
    error = table.item_states(JOB)[0].error
    assert error["code"] == "only_workers_have" and error["fields"]["what"] == "model 'big.safetensors'"

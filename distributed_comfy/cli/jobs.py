"""``distributed-comfy jobs``."""
from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from distributed_comfy.cli.canvas_preview import CanvasPreview, preview_option
from distributed_comfy.cli.cluster import ago, connected, out_or_default, redis_now_ms
from distributed_comfy.cli.commands import interruptibly, json_option, naming_options
from distributed_comfy.cli.delivered import show_delivery
from distributed_comfy.cli.failures import cause, details, error_json
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.progress import RunProgress
from distributed_comfy.cli.worker import comfyui_option
from distributed_comfy.engine.locate import find_comfyui
from distributed_comfy.errors import JobFailed, JobUnknown, MessageVersionUnknown, from_wire
from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.messages import Capability, ItemSpec, item_id
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.local_workers import WorkerOptions
from distributed_comfy.orchestrator.run import RunOptions, check_attachable, own_workers
from distributed_comfy.orchestrator.run import attach as attach_job
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.waiting import nobody_can_run, why_it_waits
from distributed_comfy.settings import read_settings
from distributed_comfy.state.records import ItemState, JobState
from tasks.cluster import Cluster

_ITEMS_SHOWN = 100
_ERROR_CHARACTERS = 160
_STAGES = {"prepare": "image to upscale", "tile": "tile", "last": "last stage"}
"""Kinds of items that are not one of many seeds."""


@click.group()
def jobs() -> None:
    """Jobs of the cluster, whoever submitted them."""


@jobs.command("list")
@json_option
@click.pass_obj
def list_jobs(output: Output, /) -> None:
    """All jobs, oldest first; ended ones for a day (DC_JOB_TTL_S).

    \b
    State: pending; running; paused (`jobs resume`); parked (nobody collects it: `jobs attach`);
    done; failed (`jobs show` says why, `jobs retry` tries again); cancelled.
    """
    with connected(output) as cluster:
        found, now_ms, live = cluster.jobs.jobs(), redis_now_ms(cluster), cluster.matching.live()
        found = {job_id: _with_reason(cluster, job_id, state, live) for job_id, state in found.items()}
        errors = cluster.jobs.errors([job_id for job_id, state in found.items() if state.state == "failed"])
        found = {job_id: replace(state, error=errors.get(job_id) or state.error) for job_id, state in found.items()}
    output.result([{"job": job_id, **_job_json(state)} for job_id, state in found.items()])
    if not found:
        output.say("no jobs; `distributed-comfy run PROMPT.json` submits one")
        return
    rows = [
        (job_id, state.state, _done(state), str(state.counts["running"]), state.submitter, str(state.priority), state.title,
         f"{ago(now_ms, state.created_ms)} ago", _note(state))
        for job_id, state in found.items()
    ]  # fmt: skip
    right = ("DONE", "RUNNING", "PRIORITY")
    output.table(("JOB", "STATE", "DONE", "RUNNING", "USER", "PRIORITY", "PROMPT", "SUBMITTED", "NOTE"), rows, right=right)


@jobs.command(short_help="One job and its items.")
@click.argument("job_id", metavar="JOB")
@click.option("--items", "every", is_flag=True, help="All items, one to a line [tiles are summed up, and so are those of a large job].")
@json_option
@click.pass_obj
def show(output: Output, /, job_id: str, every: bool) -> None:
    """One job and its items: state, worker, failed attempts, errors. --json has all items."""
    with connected(output) as cluster:
        record, state, owner = cluster.jobs.record(job_id), cluster.jobs.job_state(job_id), cluster.jobs.owner(job_id)
        state = _with_reason(cluster, job_id, state, cluster.matching.live())
        items, specs, now_ms = cluster.jobs.item_states(job_id), cluster.jobs.specs(job_id), redis_now_ms(cluster)
        kept = _kept_results(cluster, job_id, items)
    listed = [{**_item_json(specs[index], item), "waits": kept.get(index, "")} for index, item in items.items() if index in specs]
    frames = {"option": record.frames.option, "eight_bit": list(record.frames.eight_bit) if record.frames.option == "auto" else []}
    output.result({"job": job_id, **_job_json(state), "owner": owner, "frames": frames, "items": listed})
    output.say(f"job {job_id}: {state.state}, {_done(state)} items done, {state.counts['running']} running", "bold")
    output.say(f"  {record.title or 'a prompt'} of {record.submitter} on {record.host}, priority {state.priority}, "
               f"submitted {ago(now_ms, state.created_ms)} ago")  # fmt: skip
    if state.state == "parked":
        output.say(f"  nobody collects it: `distributed-comfy jobs attach {job_id} --out DIR` takes it over")
    elif state.reason:
        output.say(f"  {state.reason}")
    if owner and not state.ended:
        output.say(f"  collected by {owner}")
    for index, reason in kept.items():
        output.say(f"  {items[index].worker} keeps the result of item {index}: {reason}")
    if record.frames.option != "exact":
        output.say(f"  frames travel as {frames_in_words(record.frames)}")
    _show_items(output, specs, items, every=every)
    for index, item in items.items():
        if item.state == "failed" and item.error:
            _show_item_error(output, job_id, index, item)


def _kept_results(cluster: Cluster, job_id: str, items: Mapping[int, ItemState]) -> dict[int, str]:
    """Items whose result cannot be stored now, and why; their workers keep it."""
    statuses = cluster.statuses.read(sorted({item.worker for item in items.values() if item.state == "running"}))
    told = {running.item: running.waits for status in statuses.values() for running in status.items}
    return {index: reason for index in items if (reason := told.get(item_id(job_id, index), ""))}


def frames_in_words(plan: FramePlan) -> str:
    """How a job's tensors travel: ``auto: 8 bits from 9, all else exact``."""
    if plan.option != "auto":
        return plan.option
    if not plan.eight_bit:
        return "auto: all exact, because more than 8 bits are used"
    return f"auto: 8 bits from {', '.join(plan.eight_bit)}, all else exact"


def _show_items(output: Output, specs: dict[int, ItemSpec], items: dict[int, ItemState], *, every: bool) -> None:
    """All items, or all of a small job; else those about which there is something to say, and how many there are in which state."""
    shown = [index for index in items if index in specs]
    if not every:
        shown = _sum_up(output, "items of tiles", [index for index in shown if specs[index].kind == "tile"], shown, items)
    if not every and len(shown) > _ITEMS_SHOWN:
        shown = _sum_up(output, "items", shown, shown, items)
    rows = [_item_row(specs[index], items[index]) for index in shown]
    if rows:
        output.table(("ITEM", "SEED", "STATE", "WORKER", "FAILED ATTEMPTS", "LAST ERROR"), rows, right=("ITEM", "FAILED ATTEMPTS"))


def _sum_up(output: Output, name: str, alike: list[int], shown: list[int], items: dict[int, ItemState]) -> list[int]:
    """Say how many of these there are in each state; those shown that are left: of these the ones that run, have failed or had errors."""
    if not alike:
        return shown
    states = Counter(items[index].state for index in alike)
    said = [index for index in alike if items[index].state not in ("pending", "done", "blocked") or items[index].error][:_ITEMS_SHOWN]
    which = ", of which these run or had errors" if said else ""
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    output.say(f"  {len(alike)} {name}: {counts}{which} (--items lists all)")
    return sorted({*shown} - {*alike} | {*said})


def _item_row(spec: ItemSpec, item: ItemState) -> tuple[str, ...]:
    name = f"{spec.index} ({_STAGES[spec.kind]})" if spec.kind in _STAGES else str(spec.index)
    short = _in_short(item.error) if item.error else ""
    return (name, spec.seed, item.state, item.worker, str(item.attempts or ""), short)


def _show_item_error(output: Output, job_id: str, index: int, item: ItemState) -> None:
    wire = item.error or {}
    failed = JobFailed(job_id=job_id, index=index, worker=wire.get("worker") or item.worker, last=str(from_wire(wire)), error=wire)
    output.say(f"item {index} failed on {failed.worker}: {cause(failed)}", "red")
    for line in details(failed)[1:]:
        output.say(f"  {line}")


@jobs.command(short_help="Stop a job.")
@click.argument("job_id", metavar="JOB")
@click.option("--reason", default="cancelled by hand", metavar="TEXT", help="Shown to whoever collects it.")
@json_option
@click.pass_obj
def cancel(output: Output, /, job_id: str, reason: str) -> None:
    """Stop a job; finished images of it are kept by whoever collects it."""
    with connected(output, orders=True) as cluster:
        cluster.jobs.cancel(job_id, reason)
        _say_state(output, cluster, job_id, "is cancelled")


@jobs.command(short_help="Run failed and unfinished items again.")
@click.argument("job_id", metavar="JOB")
@json_option
@click.pass_obj
def retry(output: Output, /, job_id: str) -> None:
    """Run the failed and unfinished items of a failed or cancelled job again; then attach to it."""
    with connected(output, orders=True) as cluster:
        cluster.jobs.retry(job_id)
        _say_state(output, cluster, job_id, f"goes on; collect it with `distributed-comfy jobs attach {job_id} --out DIR`")


@jobs.command()
@click.argument("job_id", metavar="JOB")
@json_option
@click.pass_obj
def pause(output: Output, /, job_id: str) -> None:
    """Hand out no further items of a job; running ones finish."""
    with connected(output, orders=True) as cluster:
        cluster.jobs.pause(job_id)
        _say_state(output, cluster, job_id, "is paused")


@jobs.command()
@click.argument("job_id", metavar="JOB")
@json_option
@click.pass_obj
def resume(output: Output, /, job_id: str) -> None:
    """Hand out items of a paused job again."""
    with connected(output, orders=True) as cluster:
        cluster.jobs.resume(job_id)
        _say_state(output, cluster, job_id, "goes on")


@jobs.command(short_help="Change a job's priority, 0 (last) to 9 (first).")
@click.argument("job_id", metavar="JOB")
@click.argument("number", type=click.IntRange(0, 9), metavar="N")
@json_option
@click.pass_obj
def priority(output: Output, /, job_id: str, number: int) -> None:
    """Change a job's priority: 0 (last) to 9 (first); counts for all items that are not running yet."""
    with connected(output, orders=True) as cluster:
        cluster.jobs.set_priority(job_id, number)
        _say_state(output, cluster, job_id, f"has priority {number}")


@jobs.command(short_help="Take over a job that nobody collects, and save it.")
@click.argument("job_id", metavar="JOB")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the files [output/ and the prompt's name].")
@click.option("--workers", type=click.IntRange(0, 256), default=0, metavar="N", help="Bring up N workers meanwhile, GPU by GPU.")
@comfyui_option
@preview_option
@json_option
@click.pass_obj
def attach(output: Output, /, job_id: str, out: Path | None, preview: Path | None, **options: Any) -> int:
    """Take over a job that nobody collects any more, and save what it makes.

    Items that its last owner had fetched already are taken from DIR if that is the same folder; otherwise they run again. Ctrl-C cancels
    the job.
    """
    shown = CanvasPreview(preview) if preview else None
    settings = read_settings(comfyui_path=options["comfyui"])
    with naming_options(comfyui_path=("--comfyui", options["comfyui"])):
        tree = find_comfyui(settings)
    with connected(output, settings, orders=True) as cluster, RunProgress(output, preview=shown) as progress:
        folder = out_or_default(out, cluster.jobs.record(job_id).title)
        need = check_attachable(cluster, job_id, folder).requirement
        own = RunOptions(folder, workers=options["workers"], worker=WorkerOptions(need.engine if need else "", tree))
        servers = Servers(cluster.redis_url, cluster.blob_url, embedded=not cluster.settings.redis_url)

        def work(stop: threading.Event) -> Delivery:
            with own_workers(cluster, servers, replace(own, stop=stop), progress):
                return attach_job(cluster, job_id, folder, progress, stop)

        delivery = interruptibly(output, work)
    return show_delivery(output, delivery)


def _with_reason(cluster: Cluster, job_id: str, state: JobState, live: Mapping[str, Capability]) -> JobState:
    """Also says why a job waits that nobody can run."""
    if state.reason or state.state not in ("pending", "running") or state.counts["running"]:
        return state
    with suppress(JobUnknown, MessageVersionUnknown):  # it has just gone, or another version entered it
        if error := nobody_can_run(cluster.jobs.record(job_id), state, live):
            return replace(state, reason=why_it_waits(error))
    return state


def _say_state(output: Output, cluster: Cluster, job_id: str, text: str) -> None:
    output.result({"job": job_id, **_job_json(cluster.jobs.job_state(job_id))})
    output.say(f"job {job_id} {text}")


def _note(state: JobState) -> str:
    """Why it waits or has ended, in a line."""
    return f"{state.reason}: {_in_short(state.error)}" if state.error else state.reason


def _in_short(error: dict[str, Any]) -> str:
    text = " ".join(str(from_wire(error)).split())
    return text if len(text) <= _ERROR_CHARACTERS else text[: _ERROR_CHARACTERS - 1] + "…"


def _done(state: JobState) -> str:
    return f"{state.counts['done']}/{state.counts['total']}"


def _job_json(state: JobState) -> dict[str, Any]:
    return {
        "state": state.state,
        "counts": state.counts,
        "reason": state.reason,
        "user": state.submitter,
        "priority": state.priority,
        "prompt": state.title,
        "host": state.host,
        "created_ms": state.created_ms,
        "ended_ms": state.ended_ms,
        "error": error_json(from_wire(state.error)) if state.error else None,
    }


def _item_json(spec: ItemSpec, item: ItemState) -> dict[str, Any]:
    error = error_json(from_wire(item.error)) if item.error else None
    return {
        "index": spec.index,
        "kind": spec.kind,
        "seed": spec.seed,
        "state": item.state,
        "worker": item.worker,
        "failed_attempts": item.attempts,
        "error": error,
    }

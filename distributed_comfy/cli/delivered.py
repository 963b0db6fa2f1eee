"""What a command says at the end of a job: files, who made them, what went wrong."""
from __future__ import annotations

from typing import Any

from distributed_comfy.cli.failures import error_json, show_error
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import DistributedComfyError, JobError, JobLost, OutputUnwritable, RunInterrupted
from distributed_comfy.messages import FED_KINDS, ItemKind, ItemResult, TensorRef, item_id
from distributed_comfy.orchestrator.delivery import Delivery

_FILES_SHOWN = 12
ATTACH = "attach"
"""The engine whose images travel as PNG."""


def show_delivery(output: Output, delivery: Delivery) -> int:
    """Print a delivery; the exit status."""
    output.result(delivery_json(delivery))
    if delivery.kept:
        _show_kept(output, delivery)
    else:
        _show_files(output, delivery)
    error = delivery.error
    if error is None:
        return 0
    show_error(output, error)
    output.remark(f"  {_finished(delivery)}")
    for line in _remedies(delivery, error):
        output.remark(f"  {line}")
    return error.exit_code


def _finished(delivery: Delivery) -> str:
    """What there is of an incomplete job."""
    here = delivery.finished
    if not here:
        return "no item was finished"
    if delivery.kept:
        where = "their results are kept for Celery's result API"
    else:
        files = len(delivery.paths)
        where = f"{files} {'file is' if files == 1 else 'files are'} in {delivery.out}" if files else "they left no file"
    return f"{here} of {delivery.generated or len(delivery.seeds)} items were finished; {where}"


def _show_kept(output: Output, delivery: Delivery) -> None:
    """Ids to ask Celery's result API for."""
    for index in sorted(delivery.results):
        output.say(item_id(delivery.job_id, index))
    _warn_of_missing(output, delivery)
    output.remark("these results stay in the blob server until they are forgotten or expire: AsyncResult(id).get()")


def _show_files(output: Output, delivery: Delivery) -> None:
    paths = delivery.paths
    for path in paths[:_FILES_SHOWN]:
        output.say(str(path))
    if len(paths) > _FILES_SHOWN:
        output.say(f"... {len(paths) - _FILES_SHOWN} more in {delivery.out}")
    if delivery.error is None:
        if not paths:
            output.warn("the job is done, but no node saved anything and nothing was collected")
        _warn_of_blocked(output, delivery)
        _warn_of_missing(output, delivery)
        workers = len({result.worker for result in delivery.results.values()})
        classes = {result.device_class for result in delivery.results.values()}
        output.remark(
            f"{len(paths)} {'file' if len(paths) == 1 else 'files'} in {delivery.seconds:.1f} s"
            f" from {workers} {'worker' if workers == 1 else 'workers'}, {in_megabytes(delivery.moved_bytes)} brought home",
            "bold green",
        )
        rounded = sorted({result.worker for index, result in delivery.results.items() if _is_rounded(delivery.kind(index), result)})
        if rounded:
            output.remark(f"images that {', '.join(rounded)} gave or was fed with have 8 bits per channel (docs/attach.md)")
        if len(classes) > 1:
            output.warn(f"results of different device classes are not comparable bit for bit: {'; '.join(sorted(classes))}")


def _is_rounded(kind: ItemKind, result: ItemResult) -> bool:
    """Whether images may have lost what 8 bits do not hold: those that an attached ComfyUI gave, or was fed with."""
    gave_images = any(isinstance(capture.value, TensorRef) for capture in result.captures)
    return result.engine == ATTACH and (gave_images or kind in FED_KINDS)


def in_megabytes(size_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{size_bytes / 1e6:.1f} MB"


def _warn_of_blocked(output: Output, delivery: Delivery) -> None:
    items: dict[str, list[str]] = {}
    for index, result in sorted(delivery.results.items()):
        for node_id in result.blocked:
            items.setdefault(node_id, []).append(str(index))
    for node_id, indexes in items.items():
        which = f"item {indexes[0]}" if len(indexes) == 1 else f"items {', '.join(indexes)}"
        output.warn(f"nothing reached {node_id} in {which}: something before it was blocked or skipped")


def _warn_of_missing(output: Output, delivery: Delivery) -> None:
    for index, error in delivery.missing.items():
        output.warn(f"item {index} is missing, and the job went on without it as asked: {error}")


def _remedies(delivery: Delivery, error: DistributedComfyError) -> list[str]:
    if isinstance(error, OutputUnwritable):
        return [f"nothing is lost: `distributed-comfy jobs attach {delivery.job_id} --out DIR` goes on, into a folder with room"]
    if delivery.waiting:
        again = f", and so do `jobs retry {delivery.job_id}` and `jobs attach {delivery.job_id} --out {delivery.out}`"
        lines = [f"the same command goes on with them (--fresh starts afresh){'' if isinstance(error, JobLost) else again}"]
        if delivery.early:
            what = "the file that is here stays" if delivery.early == 1 else f"the {delivery.early} files of finished items stay"
            lines.append(f"{what} then: the job's last stage, which did not run yet, saves its own beside, under its own names")
        return lines
    if delivery.kept or (isinstance(error, JobError) and not isinstance(error, RunInterrupted)):
        return []
    return [f"the job is parked: `distributed-comfy jobs attach {delivery.job_id} --out {delivery.out}` goes on with it"]


def delivery_json(delivery: Delivery) -> dict[str, Any]:
    """A delivery as JSON values."""
    files: dict[int, list[str]] = {}
    for value in delivery.collected:
        files.setdefault(value.index, []).append(str(value.path))
    for file in delivery.files:
        files.setdefault(file.index, []).append(str(file.path))
    return {
        "job": delivery.job_id,
        "out": str(delivery.out),
        "files": [str(path) for path in delivery.paths],
        "items": [
            {
                "index": index,
                "kind": delivery.kind(index),
                "seed": delivery.seeds.get(index, ""),
                "worker": result.worker,
                "seconds": round(result.seconds, 4),
                "engine": result.engine,
                "device_class": result.device_class,
                "blocked": list(result.blocked),
                "files": files.get(index, []),
            }
            for index, result in sorted(delivery.results.items())
        ],
        "missing": [{"index": index, "error": error_json(error)} for index, error in delivery.missing.items()],
        "seconds": round(delivery.seconds, 3),
        "moved_bytes": delivery.moved_bytes,
        "error": error_json(delivery.error),
    }

"""``distributed-comfy config``: configuration of other projects."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import redis

from distributed_comfy.agent.steering import give
from distributed_comfy.agent.up import agent_runs, find_local_agent, workers_file
from distributed_comfy.agent.workers_file import WorkersFile
from distributed_comfy.cli.cluster import connected
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.comfyui.gpu_config import Imported, Replaced, Written, read_gpu_config, refuse_to_replace, replaced, write_imported
from distributed_comfy.comfyui.options import options_file
from distributed_comfy.engine.locate import AMD_DRIVER, listed_gpus
from distributed_comfy.errors import DistributedComfyError, ImportRefused
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.records import HostWorker
from tasks.host_orders import order_for


@click.group()
def config() -> None:
    """Take over the configuration of another project."""


@config.command("import", short_help="Workers and settings from a gpu_config.json.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would be written, or why nothing would be.")
@click.option("--force", is_flag=True, help="Replace a workers.json that is there; it is kept as workers.json.before-import.")
@json_option
@click.pass_obj
def import_config(output: Output, /, file: Path, dry_run: bool, force: bool) -> int:
    """Take over workers and settings from the gpu_config.json of ComfyUI-Distributed, and say what was dropped and why.

    Workers of this host go into workers.json, settings into the options of the node pack. Workers of other hosts are invited instead.
    A ComfyUI with the pack, or an `up`, that runs meanwhile takes the workers over at once.

    \b
    Example:
      distributed-comfy config import ComfyUI/custom_nodes/ComfyUI-Distributed/gpu_config.json --dry-run
    """
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    imported = read_gpu_config(file, settings.host_name)
    there = workers_file(settings)
    before = replaced(imported, there, str(file))
    refusal = _refusal(imported, there, settings, str(file)) if dry_run and not force else ""
    written = taken = None
    if not dry_run:
        written = write_imported(imported, there, options_file(settings), force=force, source=str(file))
        taken = _tell_agent(output, settings, there)
    output.result(
        {
            "workers": imported.workers, "options": imported.options, "dropped": [asdict(each) for each in imported.dropped],
            "written": None if written is None else {name: path and str(path) for name, path in asdict(written).items()},
            "replaced": asdict(before), "refused": refusal, "taken_over": taken is not None and taken.done,
        }
    )  # fmt: skip
    _say(output, imported)
    _say_replaced(output, before, done=written is not None)
    if written is None:
        output.say("nothing was written" + ("" if refusal else f"; without --dry-run{', and with --force,' if force else ''} it would be"))
    else:
        _say_written(output, written)
    if taken is not None:
        for line in taken.lines:
            output.say(line)
    for name in absent_devices(imported):
        output.warn(f"worker {name} cannot start on this host: {imported.workers[name]['device']} is not here; `workers edit` changes that")
    if refusal:
        output.complain(refusal)
    return 2 if refusal else 0


def absent_devices(imported: Imported) -> list[str]:
    """Workers on GPUs that NVIDIA's driver does not list; none where there is no telling, as with AMD."""
    if AMD_DRIVER.exists():
        return []
    known = {f"cuda:{number}" for number in range(listed_gpus())}
    return [name for name, fields in imported.workers.items() if fields["device"].startswith("cuda:") and fields["device"] not in known]


def _refusal(imported: Imported, there: WorkersFile, settings: Settings, source: str) -> str:
    """Why it would not be written; empty where it would."""
    try:
        refuse_to_replace(imported, there, options_file(settings), source)
    except ImportRefused as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Taken:
    """What the agent of this host makes of it."""

    done: bool
    """It has taken everything over, without a restart."""
    lines: tuple[str, ...]
    """For the user: what is so, and what is left to do."""


def _tell_agent(output: Output, settings: Settings, file: WorkersFile) -> _Taken:
    """Let an agent that runs take the file over: that of a ComfyUI with the pack, or an `up`."""
    if not agent_runs(settings):
        return _Taken(False, ("start ComfyUI (or `distributed-comfy up`), so that it is used",))
    local = find_local_agent(settings)
    whose = f"the agent of this host (pid {local.pid})" if local else "the agent of this host"
    again = "end that ComfyUI, or `up`, and start it again, so that it is used; until then the workers of before run"
    try:
        with connected(output, settings, orders=True) as cluster:
            answer = give(cluster, cluster.settings.host_name, order_for("reload"))
            record = cluster.hosts.host(cluster.settings.host_name)
    except (DistributedComfyError, redis.RedisError) as error:
        return _Taken(False, (f"{whose} could not be told: {error}; {again}",))
    if Path(answer.facts["file"]) != file.path:
        other = f"{whose} keeps the workers of another file, {answer.facts['file']}"
        return _Taken(False, (f"{other}; {again} with DC_WORKERS_FILE={file.path}",))
    known = answer.facts["configuration"]["workers"]
    return _Taken(True, (f"{whose} has taken it over", *_left_to_do(record.workers if record else (), known)))


def _left_to_do(workers: Iterable[HostWorker], known: Collection[str]) -> Iterator[str]:
    """What does not happen by itself, or takes a while."""
    for worker in workers:
        if worker.name not in known:
            yield f"worker {worker.name} finishes its item and ends" if worker.pid else f"worker {worker.name} is gone"
        elif worker.outdated:
            yield f"worker {worker.name} runs as it was; `distributed-comfy workers restart {worker.name}` brings what is written now"
        elif worker.enabled and not worker.pid:
            yield f"worker {worker.name} is {worker.phase}; `distributed-comfy workers start {worker.name}` starts it"


def _say(output: Output, imported: Imported) -> None:
    for name, fields in imported.workers.items():
        arguments = f", {' '.join(fields['comfyui_args'])}" if fields["comfyui_args"] else ""
        called = f"{fields['old_id']} -> {name}" if fields.get("old_id") else f"worker {name}"
        output.say(f"{called}: {fields['device']}{arguments}{'' if fields['enabled'] else ', disabled'}")
    for name, value in imported.options.items():
        output.say(f"option {name}: {'on' if value else 'off'}")
    for each in imported.dropped:
        output.say(f"dropped {each.place}: {each.why}")


def _say_replaced(output: Output, before: Replaced, *, done: bool) -> None:
    for name, device in before.changed.items():
        output.say(f"{'replaced' if done else 'would be replaced'}: worker {name} ({device}), which was there before")
    for name, device in before.removed.items():
        output.say(f"{'removed' if done else 'would be removed'}: worker {name} ({device}), which was there before and is not in that file")


def _say_written(output: Output, written: Written) -> None:
    for path in (written.workers, written.options):
        if path is not None:
            output.say(f"written: {path}")
    if written.kept is not None:
        output.say(f"kept: the file of before is {written.kept}")

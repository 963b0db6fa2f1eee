"""``distributed-comfy models``."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from distributed_comfy.cli.cluster import connected
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import NoWorker
from distributed_comfy.orchestrator.first_worker import how_to_start
from distributed_comfy.orchestrator.submit import SubmitOptions, requirement_of_prompt
from distributed_comfy.planning.model_files import Choice, Live, Needs, all_models, find_needs
from tasks.cluster import Cluster

SOME_LACK = 1
"""Exit status where not every worker has everything."""


@click.group()
def models() -> None:
    """Model files of the workers: who has which, and what a prompt lacks."""


@models.command(short_help="What a prompt needs and which workers lack it.")
@click.argument("prompt", metavar="PROMPT.json", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="NODE.INPUT=VALUE", help="Change an input first; repeatable.")
@json_option
@click.pass_obj
def missing(output: Output, /, prompt: Path, sets: tuple[str, ...]) -> int:
    """What a prompt needs of models and node classes, and which of the live workers lack it.

    Workers look at their folders every DC_DESCRIBE_INTERVAL_S (60 s); `workers look` lets them do it now.

    Exit status: 0 every worker has everything, 1 some lack something, 2 bad prompt, 3 no worker.
    """
    with connected(output) as cluster:
        live = _live(cluster)
        needs = find_needs(requirement_of_prompt(prompt, SubmitOptions(sets=sets), live), live)
        hosts = {worker.facts.name: worker.facts.host for worker in cluster.workers.workers()}
    output.result({
        "workers": sorted(live),
        "models": [{**asdict(model), "lacked_by": list(model.lacked_by)} for model in needs.models],
        "values": [{**asdict(value), "lacked_by": list(value.lacked_by)} for value in needs.values],
        "node_classes": [{"class_type": name, "lacked_by": list(workers)} for name, workers in needs.classes.items()],
    })  # fmt: skip
    show_needs(output, needs, live, hosts)
    return SOME_LACK if needs.missing else 0


@models.command("list")
@click.option("--folder", metavar="NAME", help="Only this folder, as checkpoints.")
@json_option
@click.pass_obj
def list_models(output: Output, /, folder: str | None) -> None:
    """All model files of all live workers, and who has them."""
    with connected(output) as cluster:
        live = _live(cluster)
    found = {place: workers for place, workers in all_models(live).items() if folder in (None, place[0])}
    output.result([{"folder": place[0], "name": place[1], "workers": list(workers)} for place, workers in found.items()])
    if not found:
        others = sorted({place[0] for place in all_models(live)})
        where = f"; there are files in {', '.join(others)}" if others else ""
        output.say(f"no worker has a model file{f' in {folder}' if folder else ''}{where}")
        return
    rows = [(*place, _names(workers, live)) for place, workers in found.items()]
    output.table(("FOLDER", "MODEL", "WORKERS"), rows)


def _live(cluster: Cluster) -> Live:
    """Raises NoWorker where there is none."""
    live = cluster.matching.live()
    if not live:
        raise NoWorker(remedy=how_to_start(cluster))
    return live


def show_needs(output: Output, needs: Needs, live: Live, hosts: dict[str, str]) -> None:
    """What a prompt needs as a table, and a line with the remedy for each thing that is lacking.

    Args:
        output: of the command.
        needs: what was found.
        live: the workers that were looked at.
        hosts: worker -> its host.
    """
    if needs.models:
        rows = [(model.folder or "?", model.name, _lacking(model, needs, live)) for model in needs.models]
        output.table(("FOLDER", "MODEL", "LACKED BY"), rows)
    for model in needs.models:
        if model.lacked_by:
            output.say(f"{model.name}: {_remedy(model, hosts)}")
    for value in needs.values:
        near = f"; did you mean {value.near!r}?" if value.near else ""
        output.say(f"{value.class_type}.{value.input} has no {value.name!r} on {_names(value.lacked_by, live)}{near}")
    for name, workers in needs.classes.items():
        output.say(f"node class {name} is not on {_names(workers, live)}: {_class_remedy(workers, live)}")
    if not needs.missing:
        output.say(f"every worker has everything ({', '.join(sorted(live))})" if needs.models else "no worker lacks anything")


def _lacking(model: Choice, needs: Needs, live: Live) -> str:
    """Who lacks a model; and who has it, or needs none, and cannot use it all the same, because the node that loads it is not there."""
    useless = tuple(worker for worker in needs.classes.get(model.class_type, ()) if worker not in model.lacked_by)
    lacking = _names(model.lacked_by, live)
    return "; ".join(part for part in (lacking, f"no {model.class_type} on {_names(useless, live)}" if useless else "") if part) or "nobody"


def _class_remedy(workers: Iterable[str], live: Live) -> str:
    """What gives workers a node class: those of the built-in engine have the few it is made of, and take no packs."""
    builtin = [worker for worker in workers if live[worker].engine == "builtin"]
    others = [worker for worker in workers if worker not in builtin]
    remedies = []
    if builtin:
        remedies.append(f"{', '.join(builtin)} needs engine comfyui for it: the built-in one has a few nodes only and takes no packs")
    if others:
        remedies.append(f"install its node pack on {', '.join(others)} and restart the worker")
    return "; ".join(remedies)


def _remedy(model: Choice, hosts: dict[str, str]) -> str:
    """Where to put the file, and what may be meant instead."""
    where = sorted({hosts.get(name, name) for name in model.lacked_by})
    folder = f"models/{model.folder}" if model.folder else f"the folder that {model.class_type}.{model.input} lists"
    near = f"did you mean {model.near}? else " if model.near else ""
    return f"{near}put it into {folder} of ComfyUI on {', '.join(where)}, then run `distributed-comfy workers look`"


def _names(workers: Iterable[str], live: Live) -> str:
    listed: Sequence[Any] = sorted(workers)
    return "all" if len(listed) == len(live) > 1 else ", ".join(listed)

"""The configuration of ComfyUI-Distributed, taken over from a page: workers through this host's agent, options through the master."""
from __future__ import annotations

from typing import Any

from distributed_comfy.agent.configuration import wrong_fields
from distributed_comfy.agent.steering import give
from distributed_comfy.panel.place import Place, TakenOver
from tasks.host_orders import order_for

_TAKEN = "this host has a worker of this name; remove it first, or edit it"
_NO_MASTER = "it is an option of the node pack; import the file in ComfyUI's panel for that"


def take_over(place: Place, text: str, *, dry_run: bool) -> dict[str, Any]:
    """Take it over, and say what was dropped and why; as ``Imported`` of openapi.json.

    Raises:
        ImportRefused: it is no such file.
        NoAgent, AgentSilent: nobody keeps workers on this host.
        OrderRefused, OptionWrong: an agent or the pack does not do it; what came before it is done.
    """
    found = place.taken_over(text)
    workers, dropped = _possible(place, found)
    options = found.options if place.master is not None else {}
    if place.master is None:
        dropped += [(f"settings: {name}", _NO_MASTER) for name in found.options]
    if not dry_run:
        cluster = place.cluster()
        for name, fields in workers.items():
            give(cluster, cluster.settings.host_name, order_for("add", name, fields=fields))
        if options and place.master is not None:
            place.master.change(options)
    return {"dry_run": dry_run, "workers": workers, "options": options, "dropped": [{"place": at, "why": why} for at, why in dropped]}


def _possible(place: Place, found: TakenOver) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """The workers that can be added, and what is dropped."""
    cluster = place.cluster()
    record = cluster.hosts.host(cluster.settings.host_name)
    taken = {own.name for own in record.workers} if record else set()
    workers, dropped = {}, list(found.dropped)
    for name, fields in found.workers.items():
        wrong = wrong_fields(fields)
        if name in taken:
            dropped.append((f"worker {name}", _TAKEN))
        elif wrong:
            dropped.append((f"worker {name}", ", ".join(f"{field} {reason}" for field, reason in wrong.items())))
        else:
            workers[name] = fields
    return workers, dropped

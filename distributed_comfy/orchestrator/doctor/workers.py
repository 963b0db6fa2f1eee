"""The cluster's workers: a real item on each one that is free, and what differs between them."""
from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from distributed_comfy.cpu_list import parse_cpus
from distributed_comfy.errors import WorkerUnknown
from distributed_comfy.messages import Capability
from distributed_comfy.orchestrator.doctor.findings import Finding, ok, warn
from distributed_comfy.orchestrator.doctor.kept_workers import check_gone, check_kept, not_running
from distributed_comfy.orchestrator.doctor.probe import check_by_probe
from distributed_comfy.planning.requirements import is_model_name
from distributed_comfy.state.probes import ProbeTable
from distributed_comfy.state.records import WorkerFacts, WorkerState
from tasks.cluster import Cluster
from tasks.dispatch import send_tickets
from tasks.reaper import reap_once

T = TypeVar("T")

_CHECK = "workers"
_PROBES_AT_ONCE = 16
_CLASSES_SHOWN = 6
_MODELS_SHOWN = 6


def check_workers(cluster: Cluster, stop: threading.Event) -> list[Finding]:
    """One finding for each worker, running or kept by an agent, and each host that is missed, then differences; one in all for none."""
    reap_once(cluster, secrets.token_hex(8))
    records, gone = cluster.hosts.known()
    resting = not_running(records)
    workers = [worker for worker in cluster.workers.workers() if worker.facts.name not in resting]
    kept = [*check_gone(gone, cluster.hosts.now_ms()), *check_kept(records, [worker.facts.name for worker in workers])]
    if not workers:
        none = warn(_CHECK, "none is running", "start one on each GPU with `distributed-comfy up`, or do what is said of those there are")
        return [*kept, none]
    probes = ProbeTable(cluster.client, cluster.settings.key_prefix, functools.partial(send_tickets, cluster.app))
    known = cluster.matching.capabilities()
    with ThreadPoolExecutor(_PROBES_AT_ONCE, thread_name_prefix="doctor-probe") as pool:
        found = list(pool.map(lambda worker: _check(cluster, probes, worker, known.get(worker.capability), stop), workers))
    pairs = [(worker.facts, known[worker.capability]) for worker in workers if worker.capability in known]
    return [*kept, *found, *check_differences(pairs), *check_cores([worker.facts for worker in workers])]


def check_worker(cluster: Cluster, name: str, stop: threading.Event) -> Finding:
    """The finding for one worker.

    Args:
        cluster: opened with `PROBE_SETTINGS`.
        name: of the worker.
        stop: ends the wait.
    Raises:
        WorkerUnknown: there is none of this name.
    """
    found = cluster.workers.workers([name])
    if not found:
        raise WorkerUnknown(name=name)
    probes = ProbeTable(cluster.client, cluster.settings.key_prefix, functools.partial(send_tickets, cluster.app))
    return _check(cluster, probes, found[0], cluster.matching.capabilities().get(found[0].capability), stop)


def _check(cluster: Cluster, probes: ProbeTable, worker: WorkerState, capability: Capability | None, stop: threading.Event) -> Finding:
    name = worker.facts.name
    check = f"worker {name}"
    if worker.state == "busy":
        return ok(check, f"works on {', '.join(worker.claims)}; left in peace")
    if worker.state == "drained":
        return warn(check, "drained: it gets no items", f"run `distributed-comfy workers undrain {name}`")
    if worker.state == "down" or capability is None:
        remedy = f"wait a moment; if it stays so, look into engine.log of {name} on {worker.facts.host}"
        return warn(check, "its engine is not running now", remedy)
    if worker.state == "lost":
        remedy = f"look whether it runs on {worker.facts.host}, and whether that reaches the Redis"
        return warn(check, "gives no sign of life any more", remedy)
    return check_by_probe(cluster, probes, worker, capability, stop)


def check_differences(workers: Sequence[tuple[WorkerFacts, Capability]]) -> list[Finding]:
    """What differs between workers that should be alike.

    Args:
        workers: what each told about itself and what it can run.
    """
    if len(workers) < 2:
        return []
    found = [*_versions(workers), *_node_classes(workers), *_models(workers)]
    return found or [ok("workers: differences", "all have the same versions, node classes and models")]


def check_cores(workers: Sequence[WorkerFacts]) -> list[Finding]:
    """Workers of a host that compute on the same cores: each is then up to a half slower than alone, also on GPUs of their own.

    Args:
        workers: what each told about itself.
    """
    found: list[Finding] = []
    for host, of_host in _by_host(workers).items():
        known = [(facts.name, frozenset(parse_cpus(facts.cores))) for facts in of_host if facts.cores]
        crowded = sorted({name for name, cpus in known for other, others in known if name != other and cpus & others})
        if crowded:
            told = f"{', '.join(crowded)} on {host} compute on the same CPU cores and slow each other down"
            remedy = f"let `distributed-comfy up` start them, which gives each its own, or set DC_CORES and DC_THREADS of each on {host}"
            found.append(warn("workers: cores", told, remedy))
    return found


def _by_host(workers: Sequence[WorkerFacts]) -> dict[str, list[WorkerFacts]]:
    """Those that compute; a ComfyUI that takes part beside them is placed by its user."""
    hosts: dict[str, list[WorkerFacts]] = {}
    for facts in sorted(workers, key=lambda facts: facts.name):
        hosts.setdefault(facts.host, []).append(facts)
    return hosts


def _versions(workers: Sequence[tuple[WorkerFacts, Capability]]) -> Iterator[Finding]:
    ours = _grouped({facts.name: facts.package_version or "unknown" for facts, _ in workers})
    if len(ours) > 1:
        yield warn("workers: versions", f"distributed-comfy {_listed(ours)}", "install the same version on all hosts")
    for engine in sorted({facts.engine for facts, _ in workers}):
        versions = _grouped({facts.name: facts.engine_version or "unknown" for facts, _ in workers if facts.engine == engine})
        if len(versions) > 1:
            remedy = "bring all to the same version: only then are their images the same"
            yield warn("workers: versions", f"{engine} {_listed(versions)}", remedy)


def _node_classes(workers: Sequence[tuple[WorkerFacts, Capability]]) -> Iterator[Finding]:
    """Node packs that some workers have and others of the same engine do not; alike workers are named together."""
    for engine in sorted({facts.engine for facts, _ in workers}):
        has = {facts.name: set(capability.node_classes) for facts, capability in workers if facts.engine == engine}
        every = set().union(*has.values())
        lacking = _grouped({name: tuple(sorted(every - classes)) for name, classes in has.items()})
        for missing, names in lacking.items():
            if missing:
                more = len(missing) - _CLASSES_SHOWN
                shown = ", ".join(missing[:_CLASSES_SHOWN]) + (f" and {more} more" if more > 0 else "")
                found = f"{', '.join(names)}: without {len(missing)} node classes that others have ({shown})"
                yield warn("workers: node packs", found, "install the same node packs there; until then such prompts run elsewhere")


def _models(workers: Sequence[tuple[WorkerFacts, Capability]]) -> Iterator[Finding]:
    """Model files that some workers offer and others do not, of those with the same node class for them."""
    offered = {facts.name: _offered(capability) for facts, capability in workers}
    every: dict[tuple[str, str], set[str]] = {}
    for of_worker in offered.values():
        for place, models in of_worker.items():
            every.setdefault(place, set()).update(models)
    lacking = _grouped({
        name: tuple(sorted({model for place, models in of_worker.items() for model in every[place] - models}))
        for name, of_worker in offered.items()
    })  # fmt: skip
    for missing, names in lacking.items():
        if missing:
            more = len(missing) - _MODELS_SHOWN
            shown = ", ".join(missing[:_MODELS_SHOWN]) + (f" and {more} more" if more > 0 else "")
            remedy = "copy them there, into the same folders; until then prompts with them run elsewhere"
            yield warn("workers: models", f"{', '.join(names)}: without models that others have ({shown})", remedy)


def _offered(capability: Capability) -> dict[tuple[str, str], set[str]]:
    """Node class and input -> the model files that its list has; of those lists that show models at all."""
    return {
        (class_type, name): {value for value in capability.choice_lists[index] if is_model_name(value)}
        for class_type, inputs in capability.choices.items()
        for name, index in inputs.items()
        if name in capability.model_inputs.get(class_type, {}) or any(map(is_model_name, capability.choice_lists[index]))
    }


def _grouped(values: Mapping[str, T]) -> dict[T, list[str]]:
    groups: dict[T, list[str]] = {}
    for name, value in sorted(values.items()):
        groups.setdefault(value, []).append(name)
    return groups


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(groups.items()))

"""Orders to workers from any process of the cluster: through the agent that keeps a worker, and what is possible without one."""
from __future__ import annotations

from distributed_comfy.agent.up import find_local_agent
from distributed_comfy.errors import OrderRefused, WorkerUnknown
from distributed_comfy.host_messages import HostAnswer, HostOrder
from distributed_comfy.state.records import WorkerFacts
from tasks.cluster import Cluster
from tasks.host_orders import send_order

_TIMEOUT_S = 15.0
_STOPS_ELSEWHERE = {
    "systemd": "a service of systemd runs it and may start it again; on host {host}: systemctl stop UNIT",
    "container": "a container runs it and starts it again; on host {host}: docker compose stop",
    "run": "it belongs to a `distributed-comfy run`, and ends with that",
}
_RESTARTS_ELSEWHERE = {
    "hand": "it was started by hand, and nobody would start it again; on host {host} end it and run `distributed-comfy up`",
    "run": _STOPS_ELSEWHERE["run"],
}


def give(cluster: Cluster, host: str, order: HostOrder) -> HostAnswer:
    """Send an order; one for this host is signed, as this user's own.

    Raises:
        NoAgent, AgentSilent: there is nobody to obey.
        DistributedComfyError: what keeps the agent from obeying.
    """
    local = find_local_agent(cluster.settings) if host == cluster.settings.host_name else None
    return send_order(cluster, host, order, timeout_s=_TIMEOUT_S, secret=local.secret if local else "")


def keeper_of(cluster: Cluster, worker: str) -> str:
    """The host whose agent has this worker; empty where none has.  Where several say so, one that the worker is called after."""
    found = [record.host for record in cluster.hosts.hosts() if any(own.name == worker for own in record.workers)]
    return min(found, key=lambda host: (not worker.startswith(f"{host}-"), host), default="")


def order_without_agent(cluster: Cluster, order: HostOrder) -> HostAnswer:
    """Ask a worker that somebody else keeps to end; only whoever starts it decides whether it comes again.

    Raises:
        WorkerUnknown: there is no such worker.
        OrderRefused: that would not do what was asked.
    """
    if order.verb == "remove" and (host := cluster.hosts.forget_worker(order.worker)):
        text = f"worker {order.worker} is forgotten; it is there again when host {host} is, unless it is removed there"
        return HostAnswer(order.order_id, host, text, {"worker": order.worker, "host": host})
    found = cluster.workers.workers([order.worker])
    if not found:
        for gone in cluster.hosts.known()[1]:
            if any(own.name == order.worker for own in gone.record.workers):
                reason = f"host {gone.record.host} is not heard of any more; start `distributed-comfy up` there, or look at its network"
                raise OrderRefused(what=f"workers {order.verb} {order.worker}", reason=reason)
        raise WorkerUnknown(name=order.worker)
    facts = found[0].facts
    if reason := _why_not(order, facts):
        raise OrderRefused(what=f"workers {order.verb} {order.worker}", reason=reason)
    heard = cluster.workers.end(order.worker)
    after = "nobody starts it again" if order.verb == "stop" else f"{facts.started_by} on {facts.host} starts it again, if set up so"
    text = f"worker {order.worker} {'finishes its item and ends; ' + after if heard else 'did not hear it; try again'}"
    told = {"worker": order.worker, "host": facts.host, "started_by": facts.started_by, "heard": heard}
    return HostAnswer(order.order_id, facts.host, text, told)


def forget_host(cluster: Cluster, host: str) -> str:
    """Miss a host no longer that is not heard of any more; what was done, for people.

    Raises:
        OrderRefused: its agent lives, or nothing is known of it.
    """
    if cluster.hosts.host(host) is not None:
        reason = f"its agent lives; end `distributed-comfy up` there, or shut it out with `distributed-comfy invite revoke {host}`"
        raise OrderRefused(what=f"hosts forget {host}", reason=reason)
    if not cluster.hosts.forget(host):
        raise OrderRefused(what=f"hosts forget {host}", reason="no host of this name is missed; `distributed-comfy hosts list` has them")
    return f"host {host} is forgotten; it is there again when its agent is"


def _why_not(order: HostOrder, facts: WorkerFacts) -> str:
    """Why an order makes no sense for a worker that no agent keeps; empty where it does."""
    starter = facts.started_by or "hand"
    if order.verb not in ("stop", "restart"):
        return f"no agent keeps this worker ({starter} on host {facts.host} started it), so it has no configuration to change"
    if starter == "agent":
        return f"its agent does not answer; start it on host {facts.host}: `distributed-comfy up`, or the ComfyUI with the node pack"
    if order.arguments.get("at_once"):
        return "--now needs an agent; without it the worker finishes its item and ends"
    reason = (_STOPS_ELSEWHERE if order.verb == "stop" else _RESTARTS_ELSEWHERE).get(starter, "")
    remedy = "; `distributed-comfy workers drain` keeps items from it" if reason and order.verb == "stop" else ""
    return reason.format(host=facts.host) + remedy

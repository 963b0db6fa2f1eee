"""The connection breaks after a script ran and before its reply came; redis-py sends it again.  It must be as if nothing had happened."""
from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distributed_comfy.errors import EngineDied, RedisUnreachable, WorkerLacks
from distributed_comfy.state.figures import read_figures
from distributed_comfy.state.scripts import SCRIPTS
from distributed_comfy.state.status import WorkerStatus
from distributed_comfy.state.status_board import StatusAnswer, StatusBoard
from distributed_comfy.state.worker_log import LogLine, WorkerLogs
from tests.state_audit import Audit, snapshot
from tests.state_cluster import OWNER, Cluster, cluster_of, open_cluster
from tests.state_proxy import CuttingProxy, proxy_before

DIED = EngineDied(status="9", log_tail="")
LACKS = WorkerLacks(worker="v", lacks="x")
TIMES = ("created_ms", "ended_ms", "ticketed_ms", "since_ms", "warm_ms", "served_ms", "last_ms", "grace_ms", "parked", "retried_ms")
TIMED = ("aging", "backoff", "ended")
OF_ONE_CALL = ("reaper", "reaper-answer", "celery-task-meta-")


@dataclass(frozen=True)
class Case:
    """One script call to cut."""

    script: str
    before: Callable[[Cluster], Any]
    action: Callable[[Cluster, Any], Any]
    second_answer: str = ""
    """Where the second sending is answered otherwise."""


def a_job(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=3, last_needs=("Sampler",))
    cluster.submit("b", submitter="bob")


def a_claim(cluster: Cluster) -> Any:
    a_job(cluster)
    return cluster.take("v", "c1")


def a_guest(cluster: Cluster) -> None:
    a_job(cluster)
    cluster.join_guest("g")


def a_guests_claim(cluster: Cluster) -> Any:
    a_guest(cluster)
    return cluster.take_of("g", "a", "c1")


def a_dead_guest(cluster: Cluster) -> None:
    a_guests_claim(cluster)
    cluster.expire("g")


def a_last_claim(cluster: Cluster) -> Any:
    cluster.join("v")
    cluster.submit("a")
    return cluster.take("v", "c1")


def a_done_item(cluster: Cluster) -> str:
    claim = a_claim(cluster)
    cluster.complete("v", claim, 2**20)
    return str(claim.claim_id)


def a_done_job(cluster: Cluster) -> str:
    cluster.join("v", "w")
    cluster.submit("a")
    claim = cluster.take("v", "c1")
    cluster.complete("v", claim, 2**20)
    return "c1"


def a_result_that_was_lost_twice(cluster: Cluster) -> str:
    cluster.join("v", "w")
    cluster.submit("a")
    for attempt in range(cluster.settings.max_attempts):
        cluster.complete("v", cluster.take("v", f"c{attempt}"))
        if attempt < cluster.settings.max_attempts - 1:
            cluster.jobs.reopen("a", 0, f"c{attempt}")
    return f"c{attempt}"


def a_cancelled_job(cluster: Cluster) -> None:
    a_claim(cluster)
    cluster.jobs.cancel("a", "enough")


def a_paused_job(cluster: Cluster) -> None:
    a_job(cluster)
    cluster.jobs.pause("a")


def a_parked_job(cluster: Cluster) -> None:
    a_job(cluster)
    cluster.disown("a")
    cluster.reap()


def a_dead_worker(cluster: Cluster) -> None:
    a_claim(cluster)
    cluster.expire("v")


def a_forgotten_claim(cluster: Cluster) -> None:
    a_claim(cluster)
    cluster.renew("v")


def a_job_at_its_cap(cluster: Cluster) -> str:
    cluster.join("v", "w")
    cluster.submit("a", items=3)
    cluster.complete("v", cluster.take("v", "c1"), 2**40)
    return "c1"


def a_growing_job(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=0, prepare=True, grows=True)
    cluster.complete("v", cluster.take("v", "c0"), 2**20)


def some_tiles(cluster: Cluster) -> None:
    a_growing_job(cluster)
    cluster.extend("a", 1, 3, final=False)


def a_tile_claim(cluster: Cluster) -> Any:
    some_tiles(cluster)
    cluster.unblock("a", 1)
    return cluster.take("v", "c1")


def a_done_tile(cluster: Cluster) -> str:
    cluster.complete("v", a_tile_claim(cluster), 2**20)
    return "c1"


def two_kinds(cluster: Cluster) -> None:
    cluster.join("v", has=("A", "B"))
    cluster.submit("a", needs=("A",))
    cluster.join("w", has=("A",))
    cluster.submit("b", needs=("B",), priority=9)


def tell(cluster: Cluster, worker: str) -> StatusAnswer:
    status = WorkerStatus(name=worker, host="pc1", device="cpu", state="idle", since_ms=0)
    return StatusBoard(cluster.scripts).publish(status, f"life-of-{worker}", ttl_ms=60_000, log_ttl_ms=60_000)


def log_lines(cluster: Cluster, worker: str, batch: str) -> None:
    lines = [LogLine("worker", "INFO", f"{batch} {number}") for number in range(3)]
    WorkerLogs(cluster.scripts).append(worker, lines, batch, keep_lines=1000, keep_ms=60_000)


CASES = {
    "submit": Case("submit", lambda c: c.join("v", "w"), lambda c, _: c.submit("a", items=3)),
    "serve": Case("serve", lambda c: c.submit("a", items=3), lambda c, _: c.join("v", "w")),
    "register": Case("register", lambda c: c.submit("a", items=3), lambda c, _: c.join("v")),
    "register another life": Case("register", a_dead_worker, lambda c, _: c.join("v", incarnation="second")),
    "register other classes": Case("register", a_job, lambda c, _: c.join("v", has=("Other",))),
    "claim": Case("claim", a_job, lambda c, _: c.take("v", "c1")),
    "claim that calls another": Case("claim", two_kinds, lambda c, _: c.take("v", "c1")),
    "claim nothing": Case("claim", lambda c: c.join("v"), lambda c, _: c.claim("v", "c1")),
    "register a guest": Case("register", a_job, lambda c, _: c.join_guest("g")),
    "register another life of a guest": Case("register", a_dead_guest, lambda c, _: c.join_guest("g", incarnation="second")),
    "claim of a guest": Case("claim", a_guest, lambda c, _: c.take_of("g", "a", "c1")),
    "complete of a guest": Case("complete", a_guests_claim, lambda c, claim: c.complete("g", claim, 99)),
    "release of a guest": Case("give_back", a_guests_claim, lambda c, claim: c.give_back("g", claim), second_answer="lost"),
    "renew of a guest": Case("renew", a_guests_claim, lambda c, claim: c.renew("g", claim.claim_id)),
    "leave of a guest": Case("steer", a_guests_claim, lambda c, _: c.workers.leave("g", "life-of-g")),
    "reap a guest": Case("reap", a_dead_guest, lambda c, _: c.reap()),
    "complete": Case("complete", a_claim, lambda c, claim: c.complete("v", claim, 99)),
    "complete the last item": Case("complete", a_last_claim, lambda c, claim: c.complete("v", claim)),
    "release": Case("give_back", a_claim, lambda c, claim: c.give_back("v", claim), second_answer="lost"),
    "retry an item": Case("give_back", a_claim, lambda c, claim: c.give_back("v", claim, "retry", DIED), second_answer="lost"),
    "lacks": Case("give_back", a_claim, lambda c, claim: c.give_back("v", claim, "lacks", LACKS), second_answer="lost"),
    "elsewhere": Case("give_back", a_claim, lambda c, claim: c.give_back("v", claim, "elsewhere", LACKS), second_answer="lost"),
    "final": Case("give_back", a_claim, lambda c, claim: c.give_back("v", claim, "final"), second_answer="lost"),
    "renew": Case("renew", a_claim, lambda c, claim: c.renew("v", claim.claim_id)),
    "renew without a claim": Case("renew", a_forgotten_claim, lambda c, _: c.renew("v")),
    "renew without a claim for the first time": Case("renew", a_claim, lambda c, _: c.renew("v")),
    "reap": Case("reap", a_dead_worker, lambda c, _: c.reap()),
    "own": Case("collect", a_parked_job, lambda c, _: c.jobs.own("a", OWNER)),
    "disown": Case("collect", a_job, lambda c, _: c.jobs.disown("a", OWNER)),
    "fetched": Case("collect", a_job_at_its_cap, lambda c, claim: c.jobs.mark_fetched("a", 0, claim)),
    "reopen": Case("collect", a_done_item, lambda c, claim: c.jobs.reopen("a", 0, claim)),
    "reopen a done job": Case("collect", a_done_job, lambda c, claim: c.jobs.reopen("a", 0, claim)),
    "reopen once too often": Case("collect", a_result_that_was_lost_twice, lambda c, claim: c.jobs.reopen("a", 0, claim)),
    "unblock": Case("collect", a_job, lambda c, _: c.jobs.unblock("a", [(3, "{}")])),
    "unblock tiles": Case("collect", some_tiles, lambda c, _: c.unblock("a", 3, 2, 1, 3)),
    "extend": Case("collect", a_growing_job, lambda c, _: c.extend("a", 1, 5, final=False, finished=(2, 4))),
    "extend a job that knows some": Case("collect", some_tiles, lambda c, _: c.extend("a", 2, 5)),
    "extend for the last time": Case("collect", some_tiles, lambda c, _: c.extend("a", 4, 0)),
    "extend to the end": Case("collect", a_growing_job, lambda c, _: c.extend("a", 1, 2, finished=(1, 2))),
    "complete a tile": Case("collect", a_tile_claim, lambda c, claim: (c.complete("v", claim, 99), c.unblock("a", 2))),
    "reopen a tile": Case("collect", a_done_tile, lambda c, claim: c.jobs.reopen("a", 1, claim)),
    "settle": Case("collect", a_done_job, lambda c, _: c.jobs.settle("a")),
    "cancel": Case("steer", a_claim, lambda c, _: c.jobs.cancel("a", "enough")),
    "pause": Case("steer", a_claim, lambda c, _: c.jobs.pause("a")),
    "resume": Case("steer", a_paused_job, lambda c, _: c.jobs.resume("a")),
    "priority": Case("steer", a_job, lambda c, _: c.jobs.set_priority("a", 7)),
    "retry": Case("steer", a_cancelled_job, lambda c, _: c.jobs.retry("a")),
    "drain": Case("steer", a_job, lambda c, _: c.jobs.drain("v")),
    "undrain": Case("steer", lambda c: (c.join("v"), c.jobs.drain("v"), c.submit("a")), lambda c, _: c.jobs.drain("v", drained=False)),
    "suspend": Case("steer", a_claim, lambda c, _: c.workers.suspend("v", "life-of-v")),
    "live": Case("live", lambda c: c.join("v", "w"), lambda c, _: sorted(c.jobs._matching.live())),
    "measure": Case("measure", a_last_claim, lambda c, _: read_figures(c.scripts).items),
    "leave": Case("steer", a_claim, lambda c, _: c.workers.leave("v", "life-of-v")),
    "status": Case("status", lambda c: c.join("v"), lambda c, _: tell(c, "v").entered),
    "log": Case("log", lambda c: log_lines(c, "v", "first"), lambda c, _: log_lines(c, "v", "second")),
}


@dataclass
class Lab:
    """A cluster, the same cluster behind a proxy, and what cuts its connection."""

    direct: Cluster
    cut: Cluster
    proxy: CuttingProxy

    def cut_reply_to(self, script: str) -> None:
        """The reply to the next call of this script is lost."""
        self.proxy.cut_reply_to(self.cut.scripts._scripts[script].sha)


@pytest.fixture
def lab(redis_url: str) -> Iterator[Lab]:
    parts = urlsplit(redis_url)
    retry = Retry(NoBackoff(), 3)
    with proxy_before(parts.hostname or "", parts.port or 0) as proxy, redis.Redis(
        port=proxy.port, decode_responses=True, protocol=2, retry=retry
    ) as client:
        direct, cut = open_cluster(redis_url), cluster_of(client)
        cut.tickets, cut.incarnations = direct.tickets, direct.incarnations
        for script in direct.scripts._scripts.values():
            direct.client.script_load(script.script)
        yield Lab(direct, cut, proxy)
        direct.client.close()


def comparable(cluster: Cluster) -> dict[str, Any]:
    """Everything in the table but times and what belongs to one call."""
    found = {}
    for key, value in snapshot(cluster.client).items():
        name = key.removeprefix(cluster.scripts.keys.prefix)
        if name.startswith(OF_ONE_CALL):
            continue
        if name in TIMED or name.endswith(":unheld"):
            value = sorted(value)
        elif name == "tallies":
            value = executions(value)
        elif isinstance(value, dict):
            value = {field: without_time(text) for field, text in value.items() if field not in TIMES}
        found[name] = value
    return found


def without_time(text: Any) -> Any:
    """An item without the moment from which it could be claimed again."""
    return re.sub(r'"q":\d+,?', "", text) if isinstance(text, str) else text


def executions(tallies: dict[str, str]) -> Counter[str]:
    """How often everything happened, however long it took."""
    counts: Counter[str] = Counter()
    for name, count in tallies.items():
        if not name.endswith("|sum"):
            counts[re.sub(r"^((?:wait|run)\|\w+)\|.*", r"\1", name)] += int(count)
    return counts


def replaced(cluster: Cluster) -> set[str]:
    """Who is called after the tick that follows, if every ticket so far was lost."""
    cluster.tickets.clear()
    cluster.age_tickets()
    cluster.reap()
    return set(cluster.tickets)


@pytest.mark.parametrize("name", CASES)
def test_a_script_whose_reply_was_lost_leaves_the_table_as_if_it_had_been_sent_once(lab: Lab, name: str) -> None:
    case, cluster = CASES[name], lab.direct
    wanted_answer = case.action(cluster, case.before(cluster))
    wanted, wanted_tickets = comparable(cluster), set(cluster.tickets)
    wanted_after_a_tick = replaced(cluster)
    cluster.client.flushdb()
    cluster.tickets.clear()
    cluster.incarnations.clear()

    given = case.before(cluster)
    lab.cut_reply_to(case.script)
    answer = case.action(lab.cut, given)
    assert lab.proxy.cuts == 1
    assert answer == (case.second_answer or wanted_answer)
    assert comparable(cluster) == wanted
    Audit(cluster).check()
    assert set(cluster.tickets) <= wanted_tickets
    assert replaced(cluster) == wanted_after_a_tick  # so nobody waits longer than a tick
    Audit(cluster).check()


def test_every_script_is_cut() -> None:
    assert {case.script for case in CASES.values()} == set(SCRIPTS)


def test_a_worker_whose_reply_to_complete_was_lost_is_called_at_once(lab: Lab) -> None:
    claim = a_claim(lab.direct)
    lab.direct.tickets.clear()
    lab.cut_reply_to("complete")
    assert lab.cut.complete("v", claim)
    assert lab.direct.tickets == ["v"]


def test_a_reaper_whose_reply_was_lost_still_learns_who_is_gone_and_who_is_called(lab: Lab) -> None:
    lab.direct.join("v", "w")
    lab.direct.submit("a")
    lab.direct.take("v")
    lab.direct.expire("v")
    lab.cut_reply_to("reap")
    assert lab.cut.reap().gone == ("v",)
    assert lab.direct.tickets == ["w"]


def test_a_connection_that_stays_broken_is_named(redis_url: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with redis.Redis(port=nobody.getsockname()[1], retry=Retry(NoBackoff(), 1)) as client:
            cluster = cluster_of(client)
            for call in (cluster.jobs.jobs, cluster.workers.workers, lambda: cluster.workers.reap("r"), lambda: cluster.jobs.pause("a")):
                with pytest.raises(RedisUnreachable):
                    call()
            for read in (cluster.jobs.record, cluster.jobs.specs, cluster.jobs.job_state, cluster.jobs.item_states, cluster.jobs.owner):
                with pytest.raises(RedisUnreachable):
                    read("a")

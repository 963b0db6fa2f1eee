"""Networks between workers and Redis: cut, silent, lossy, slow, and replies that are lost after a script ran."""
from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.slow_link import SlowLink, missing, slow_link
from tests.conftest import missing_service
from tests.smoke.field import Ending, Field, strike
from tests.smoke.measured import NOTHING, Costs
from tests.smoke.scenario import scenario

FAST_MBIT = 1000.0
BACK_S = 10.0
"""What a worker may take to speak to its servers again: the kernel sends what it has not got through at ever longer intervals."""


@scenario(
    "connections reset",
    "every connection of all workers is reset while Redis lives, three times",
    "silent connections are given up",
    costs=NOTHING,
)
def connections_reset(field: Field) -> Ending:
    job = field.begin()
    job.queued()
    struck_at = time.time()
    for _ in range(3):
        field.hit(job.report.job_id)
        for network in field.networks.values():
            network.each(lambda way: way.reset())
    return field.ended(job, None, struck_at)


@scenario(
    "replies lost",
    "the reply to one claim, one complete and one renewal of each worker is lost after the script ran",
    "scripts bear a second call",
    costs=NOTHING,
    short=True,
)
def replies_lost(field: Field) -> Ending:
    ways = [network.state for network in field.networks.values()]
    before = sum(way.swallowed for way in ways)
    job = field.begin()
    job.queued()
    struck_at = time.time()
    for script in ("complete", "claim", "renew"):
        swallowed = [way.swallowed for way in ways]
        for way in ways:
            way.swallow(field.script(script))
        job.until(lambda swallowed=swallowed: all(way.swallowed > count for way, count in zip(ways, swallowed, strict=True)))  # type: ignore[misc]
    ending = field.ended(job, None, struck_at)
    assert sum(way.swallowed for way in ways) == before + 3 * len(ways)
    return ending


@scenario(
    "worker cut off",
    "one worker's network carries nothing for longer than its lease, and no old connection after that",
    "lease",
    "late results are refused",
    "silent connections are given up",
)
def cut_off(field: Field) -> Ending:
    items = field.items_for(field.timing.cut_s + BACK_S)
    job = field.begin(items=items)
    hit = field.hit(job.queued())
    network = field.networks[hit.worker.name]
    struck_at = strike(lambda: network.each(lambda way: way.stop()))
    time.sleep(field.timing.cut_s)
    network.each(lambda way: way.renew())
    field.refused(job, hit)
    ending = field.ended(job, hit, struck_at)
    ending.items = items
    return ending


# -- lines of real packets ---------------------------------------------------------------------------------------------------
@contextmanager
def far_worker(field: Field, round_trip_s: float = 0.001) -> Iterator[SlowLink]:
    """One worker more, in a network namespace at the other end of a line."""
    if lacks := missing():
        missing_service(lacks, "run it as root on Linux, with iproute2")
    with slow_link(rate_mbit=FAST_MBIT, round_trip_s=round_trip_s) as line, field.another("far", far=line, worker_tags="far"):
        yield line


def inside(line: SlowLink, *command: str) -> None:
    """Run a command at the far end."""
    done = subprocess.run([*line.inside, *command], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def losing(line: SlowLink, hook: str, rule: str = "") -> None:
    """Let the far end's kernel drop packets: at ``input`` those that come to it, at ``output`` those that it sends."""
    inside(line, "nft", "add table ip smoke")
    inside(line, "nft", f"add chain ip smoke {hook} {{ type filter hook {hook} priority 0 ; policy accept ; }}")
    inside(line, "nft", f"add rule ip smoke {hook} {rule} drop")


def carry_all(line: SlowLink) -> None:
    """Take all rules away."""
    inside(line, "nft", "delete table ip smoke")


def broken_line(field: Field, breaking: Callable[[SlowLink], None], mending: Callable[[SlowLink], None]) -> Ending:
    """The line of one worker fails for a time while it has an item."""
    items = field.items_for(field.timing.cut_s + BACK_S)
    with far_worker(field) as line:
        job = field.begin(items=items)
        hit = field.hit(job.queued(), on=["far"])
        struck_at = strike(lambda: breaking(line))
        time.sleep(field.timing.cut_s)
        mending(line)
        field.refused(job, hit)
        ending = field.ended(job, hit, struck_at)
    ending.items = items
    return ending


@scenario(
    "link down",
    "the device of a worker in a namespace is down for longer than its lease",
    "lease",
    "late results are refused",
    "silent connections are given up",
)
def link_down(field: Field) -> Ending:
    def set_link(line: SlowLink, state: str) -> None:
        device = next(
            name
            for name in subprocess.run([*line.inside, "ls", "/sys/class/net"], capture_output=True, text=True, check=True).stdout.split()
            if name != "lo"
        )
        inside(line, "ip", "link", "set", device, state)

    return broken_line(field, lambda line: set_link(line, "down"), lambda line: set_link(line, "up"))


@scenario(
    "one-way loss",
    "a worker in a namespace is heard, and hears nothing, for longer than its lease",
    "lease",
    "late results are refused",
    "silent connections are given up",
)
def one_way(field: Field) -> Ending:
    return broken_line(field, lambda line: losing(line, "input"), carry_all)


@scenario(
    "5 % loss",
    "one packet of twenty is lost in each direction of a worker's line, for the whole job",
    "silent connections are given up",
    costs=Costs(0, 1),
)
def lossy(field: Field) -> Ending:
    with far_worker(field) as line:
        for hook in ("input", "output"):
            losing(line, hook, "numgen random mod 100 < 5")
        field.wait_for_first_item("far")
        job = field.begin()
        field.hit(job.queued(), on=["far"])
        return field.ended(job, None, time.time())


@scenario(
    "200 ms delay", "each packet of a worker's line takes 200 ms, for the whole job", "silent connections are given up", costs=NOTHING
)
def delayed(field: Field) -> Ending:
    with far_worker(field, round_trip_s=0.4):
        field.wait_for_first_item("far")
        job = field.begin()
        field.hit(job.queued(), on=["far"])
        return field.ended(job, None, time.time())

"""What a user is told to do where no worker runs."""
from __future__ import annotations

import pytest

from distributed_comfy.orchestrator.first_worker import remedy
from distributed_comfy.state.records import HostDevice, HostRecord, HostWorker

CPU = (HostDevice("cpu"),)
GPUS = (HostDevice("cuda:0"), HostDevice("cuda:1"))
OFF = HostWorker("pc1-off", "disabled", "cpu", enabled=False)
STOPPED = HostWorker("pc1-cpu", "stopped", "cpu")
FAILED = HostWorker("pc1-cuda3", "failed", "cuda:3", reason="cuda:3 is not on this host")
AGAIN = HostWorker("pc1-cpu", "backing-off", "cpu", reason="it ended with status 1", next_start_s=8.2)


def host(name: str, *workers: HostWorker, devices: tuple[HostDevice, ...] = CPU) -> HostRecord:
    return HostRecord(name, "ann", 1, "x", devices=devices, workers=workers)


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ([], "start one with `distributed-comfy worker`, or one on each GPU of this host with `distributed-comfy up`"),
        ([host("pc1", STOPPED)], "start one with `distributed-comfy workers start pc1-cpu` (it is stopped)"),
        ([host("pc1", OFF)], "start one with `distributed-comfy workers enable pc1-off` (it is disabled)"),
        ([host("pc1", OFF, STOPPED)], "start one with `distributed-comfy workers start pc1-cpu` (it is stopped)"),
        (
            [host("pc1", FAILED, HostWorker("pc1-cuda4", "failed", "cuda:4"))],
            "start one with `distributed-comfy workers start pc1-cuda3` (it has failed: cuda:3 is not on this host; there is also "
            "pc1-cuda4 (failed))",
        ),
        (
            [host("pc1", AGAIN, STOPPED)],
            "wait for pc1-cpu (started again in 8 s: it ended with status 1): `distributed-comfy workers list` shows when it is there",
        ),
        ([host("pc1")], "give host pc1 one with `distributed-comfy workers add --device cpu`"),
        (
            [host("pc2"), host("pc1", devices=GPUS)],
            "give host pc1 one with `distributed-comfy workers add --device DEVICE` (cuda:0, cuda:1, cpu)",
        ),
        ([host("pc2")], "give host pc2 one with `distributed-comfy workers add --host pc2 --device cpu`"),
    ],
)  # fmt: skip
def test_the_remedy_is_that_of_what_agents_have(hosts: list[HostRecord], words: str) -> None:
    assert remedy(hosts, "pc1") == words

"""Entering a job again where its cluster is gone: either server may be the one that is away."""
from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui import job_entry
from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.job_entry import JobEntry
from distributed_comfy.errors import BlobStoreFull, ClusterUnavailable, ConnectionLost, DistributedComfyError
from tests.prompts import txt2img

LOG = "distributed_comfy.comfyui.job_entry"
AWAY: list[DistributedComfyError] = [
    ClusterUnavailable(reason="down"), ConnectionLost(target="pc1", reason="no route"), BlobStoreFull(target="pc1", reason="noeviction"),
]  # fmt: skip


@pytest.mark.parametrize("away", AWAY, ids=lambda error: error.code)
def test_a_job_whose_servers_do_not_come_back_goes_on_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, away: DistributedComfyError
) -> None:
    far, alone, asked = object(), object(), []

    def submit_again(cluster: Any, *rest: Any) -> str:
        asked.append(cluster)
        if cluster is far:
            raise away
        return "entered"

    monkeypatch.setattr(job_entry, "submit_again", submit_again)
    monkeypatch.setattr(job_entry, "PAUSE_S", 0.01)
    host = SimpleNamespace(folders={}, cannot_add_nodes="", user_folder=None)
    places: Any = SimpleNamespace(cluster=lambda timeout_s: far, alone=alone, host=host, engine_version="", takes_part=lambda: True)
    entry = JobEntry(AcceptedPrompt("1", txt2img(), txt2img(), ("save",)), places, threading.Event())
    queued: Any = SimpleNamespace(record=SimpleNamespace(job_id="j", items=4))
    spool: Any = SimpleNamespace(items=lambda: [0])
    entered = entry.enter_again(queued, spool, give_up_at=0.0)
    assert entered.cluster is alone and entered.queued == "entered" and asked == [far, alone]
    told = [record.message for record in caplog.records if record.name == LOG]
    assert told == [
        "job j: its cluster is gone; it goes on with 1 items in the next one",
        f"job j goes on in this ComfyUI alone, which makes the 3 of 4 items that are missing: {away}",
    ]

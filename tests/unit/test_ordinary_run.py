"""How a prompt on a worker ends where several things happen to it at once."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.ordinary_run import Ending, OrdinaryRun
from distributed_comfy.comfyui.queue_consumer import TakenPrompt
from distributed_comfy.errors import DistributedComfyError, EngineDied, JobFailed, NodeFailed


class Told:
    """What ComfyUI's clients are sent."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, _facts: Any, _client: Any) -> None:
        self.events.append(event)


@pytest.fixture
def told() -> Told:
    return Told()


def run_of(told: Told) -> OrdinaryRun:
    """Of a prompt that has not begun."""
    item = (1, "p", {"1": {"class_type": "A", "inputs": {}}}, {"client_id": "c"}, ["1"])
    around: Any = SimpleNamespace(send_sync=told, folders={"output": Path()})
    cluster: Any = None
    return OrdinaryRun(cluster, TakenPrompt(item, 0), around)


def test_a_prompt_that_goes_back_stays_ended_where_its_user_has_interrupted_it_meanwhile(told: Told) -> None:
    run = run_of(told)
    run.give_up("no worker has taken it")
    run.interrupt()
    assert run.settled(Ending("back", "no worker has taken it")).kind == "interrupted"
    assert told.events == ["execution_interrupted"] and run.events.messages[-1][0] == "execution_interrupted"


def test_without_an_interrupt_it_goes_back_and_what_is_done_is_done(told: Told) -> None:
    run = run_of(told)
    run.give_up("no worker has taken it")
    assert run.settled(Ending("back", "why")) == Ending("back", "why")
    run.interrupt()
    assert run.settled(Ending("done")) == Ending("done") and told.events == []


def node_failed(exception_type: str) -> NodeFailed:
    """As a worker tells it."""
    return NodeFailed(node_id="1", class_type="A", exception_type=exception_type, exception_message="no", traceback="")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (node_failed("FileNotFoundError"), "back"), (node_failed("PermissionError"), "back"), (node_failed("ModuleNotFoundError"), "back"),
        (node_failed("ConnectionRefusedError"), "back"), (node_failed("torch.AcceleratorError"), "back"),
        (node_failed("ValueError"), "failed"), (node_failed("RuntimeError"), "failed"), (node_failed("KeyError"), "failed"),
        (EngineDied(worker="one", status="signal 11", log_tail=""), "failed"),
    ],
    ids=lambda value: value.fields.get("exception_type", value.code) if isinstance(value, DistributedComfyError) else value,
)  # fmt: skip
def test_an_error_that_may_be_of_the_workers_host_alone_is_tried_here_once(
    told: Told, error: DistributedComfyError, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(told)

    def fail(_run: OrdinaryRun) -> Ending:
        raise JobFailed(job_id="j", index=0, worker="one", last=str(error), error=error.to_wire())

    monkeypatch.setattr(OrdinaryRun, "_run", fail)
    ending = run.run()
    assert (ending.kind, ending.here) == (kind, kind == "back")
    assert ("execution_error" in told.events) == (kind == "failed")

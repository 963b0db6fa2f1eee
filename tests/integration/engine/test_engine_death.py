"""Engines that die, stall or lose their consumer: every claim is answered, no process stays."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from distributed_comfy.engine.host import Ended
from distributed_comfy.engine.protocol import Failed, Progress, Started
from distributed_comfy.errors import EngineDied, EngineStalled, EngineStartFailed
from distributed_comfy.messages import Prompt, RunRequest, to_plain
from distributed_comfy.settings import read_settings
from tests.integration.engine.conftest import PROJECT, Recorded
from tests.prompts import node, out

EngineMaker = Callable[..., Recorded]
LONG: Prompt = {
    "1": node("SeededGenerator", seed=1, steps=10_000, width=256, height=256, batch_size=1, style="auto"),
    "9": node("DistributedSink", images=out("1")),
}
SHORT: Prompt = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0), "9": node("DistributedSink", images=out("1"))}


def probe(class_type: str, text: str) -> Prompt:
    return {"1": node(class_type, text=text), "9": node("DistributedSink", value=out("1"))}


def gone_within(pid: int, limit_s: float) -> bool:
    """Whether a process ends in time; one that nobody reaped counts as ended."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_kill_9_answers_every_claim_with_the_last_lines_of_the_log(engine: EngineMaker) -> None:
    recorded = engine()
    claims = [recorded.run(LONG), recorded.run(SHORT)]
    recorded.wait(Progress)
    assert recorded.process.pid is not None
    began = time.monotonic()
    os.kill(recorded.process.pid, signal.SIGKILL)
    for claim_id in claims:
        end = recorded.end(claim_id)
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineDied)
        assert end.error.status == "signal 9 (SIGKILL)"
        assert "item job1-0 begins" in end.error.log_tail
        assert end.error.retryable
    assert time.monotonic() - began < 1  # the target for an engine's death
    ended = recorded.wait(Ended)
    assert (ended.wanted, recorded.events[-1]) == (False, ended)
    assert not recorded.process.alive


def test_after_a_death_the_caller_starts_again_and_the_same_object_works(engine: EngineMaker) -> None:
    recorded = engine()
    first = recorded.process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    recorded.wait(Ended)
    with pytest.raises(EngineDied):
        recorded.run(SHORT)
    recorded.process.start(timeout_s=60)
    assert recorded.process.pid != first
    recorded.result(recorded.run(SHORT))


def test_a_second_start_beside_a_living_process_is_refused(engine: EngineMaker) -> None:
    with pytest.raises(EngineStartFailed, match="running already"):
        engine().process.start(timeout_s=60)


def test_a_fault_in_native_code_shows_where_it_was(engine: EngineMaker) -> None:
    recorded = engine()
    end = recorded.end(recorded.run(probe("Crashes", "")))
    assert isinstance(end, Failed)
    assert "SIGSEGV" in end.error.status
    assert "Segmentation fault" in end.error.log_tail


def test_the_log_tail_is_that_of_this_process_only(engine: EngineMaker) -> None:
    recorded = engine()
    recorded.result(recorded.run(probe("Prints", "words of the first process")))
    recorded.process.kill()
    recorded.process.start(timeout_s=60)
    recorded.process.kill()
    tails = [event.log_tail for event in recorded.events if isinstance(event, Ended)]
    assert "words of the first process" in tails[0]
    assert "words of the first process" not in tails[1]


def test_a_log_that_grew_long_is_put_aside_at_the_next_start(engine: EngineMaker) -> None:
    recorded = engine(start=False)
    log = recorded.options.log_file
    log.parent.mkdir(parents=True)
    log.write_bytes(b"old line\n" * 1_000_000)
    recorded = engine()
    assert log.with_name("w1.log.1").stat().st_size == 9_000_000
    assert log.stat().st_size < 100_000


@pytest.mark.parametrize("kind", ["Sleeps", "HoldsTheGil"])
def test_an_engine_that_shows_no_sign_of_life_is_ended(engine: EngineMaker, kind: str) -> None:
    recorded = engine(stall_timeout_s=1.0, preload=True)
    claim_id = recorded.run(probe(kind, "60"))
    began = time.monotonic()
    end = recorded.end(claim_id)
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineStalled)
    assert 0.8 < time.monotonic() - began < 10
    assert recorded.wait(Ended).status == "signal 9 (SIGKILL)"


def test_an_engine_that_hangs_as_it_frees_its_memory_is_ended_before_an_item_needs_it(engine: EngineMaker) -> None:
    recorded = engine(stall_timeout_s=1.0, preload=True)
    recorded.result(recorded.run(probe("TakesLongToFree", "60")))
    began = time.monotonic()
    recorded.process.free()
    assert recorded.wait(Ended).status == "signal 9 (SIGKILL)"
    assert 0.8 < time.monotonic() - began < 10
    recorded.process.start(timeout_s=60)
    recorded.result(recorded.run(SHORT))


def test_an_item_that_waits_for_memory_to_be_freed_without_end_is_answered(engine: EngineMaker) -> None:
    recorded = engine(stall_timeout_s=2.0, preload=True)
    recorded.result(recorded.run(probe("TakesLongToFree", "60")))
    recorded.process.free()
    end = recorded.end(recorded.run(SHORT))
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineStalled)


def test_memory_that_is_freed_slowly_is_no_stall(engine: EngineMaker) -> None:
    recorded = engine(stall_timeout_s=3.0, preload=True)
    recorded.result(recorded.run(probe("TakesLongToFree", "1")))
    recorded.process.free()
    recorded.result(recorded.run(SHORT))
    assert recorded.process.alive


def test_a_frozen_process_is_a_stall_too(engine: EngineMaker) -> None:
    recorded = engine(stall_timeout_s=1.0, preload=True)
    claim_id = recorded.run(LONG)
    recorded.wait(Progress)
    assert recorded.process.pid is not None
    os.kill(recorded.process.pid, signal.SIGSTOP)
    end = recorded.end(claim_id)
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineStalled)


def test_work_that_moves_and_an_engine_without_work_are_no_stall(engine: EngineMaker) -> None:
    recorded = engine(stall_timeout_s=1.0, preload=True)
    time.sleep(1.5)
    claim_id = recorded.run(LONG)
    time.sleep(2.5)
    assert recorded.of(claim_id)[-1] == "Progress"
    assert recorded.process.alive


def test_models_that_load_slowly_one_after_the_other_are_no_stall(engine: EngineMaker) -> None:
    """A load says nothing while it lasts.  Those of one item take longer than the limit, each takes less."""
    recorded = engine(stall_timeout_s=4.0, preload=True)
    loads = {str(number): node("Sleeps", text=f"2.{number}") for number in (4, 5)}
    sinks = {f"{number}-sink": node("DistributedSink", value=out(number)) for number in loads}
    recorded.result(recorded.run({**loads, **sinks}, *sinks))
    assert recorded.process.alive
    assert read_settings(worker_name="w").stall_timeout_s >= 20e9 / 50e6, "20 GB from a disk that gives 50 MB/s"


def test_loads_of_several_items_during_which_no_thread_runs_are_no_stall(engine: EngineMaker) -> None:
    recorded = engine(stall_timeout_s=4.0, preload=True)
    for _ in range(2):
        recorded.result(recorded.run(probe("HoldsTheGil", "2.5")))
    assert recorded.process.alive


def test_a_process_that_a_node_left_behind_does_not_hide_the_death(engine: EngineMaker, tmp_path: Path) -> None:
    recorded = engine()
    recorded.result(recorded.run(probe("LeavesAChild", str(tmp_path / "pid"))))
    left_behind = int((tmp_path / "pid").read_text())
    claim_id = recorded.run(LONG)
    recorded.wait(Progress)
    assert recorded.process.pid is not None
    os.kill(recorded.process.pid, signal.SIGKILL)
    end = recorded.end(claim_id, timeout_s=10)
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineDied)
    assert gone_within(left_behind, 2)


def test_the_thread_that_calls_start_may_end(engine: EngineMaker) -> None:
    recorded = engine(start=False)
    starter = threading.Thread(target=lambda: recorded.process.start(timeout_s=60))
    starter.start()
    starter.join()
    time.sleep(0.5)  # Linux would have killed it by now
    recorded.result(recorded.run(SHORT))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_means_the_consumer_does_not_end_the_engine(engine: EngineMaker, number: int) -> None:
    recorded = engine()
    assert recorded.process.pid is not None
    assert os.getsid(recorded.process.pid) == recorded.process.pid  # a Ctrl-C in the terminal does not even reach it
    os.kill(recorded.process.pid, number)
    recorded.result(recorded.run(SHORT))


@pytest.mark.parametrize("kind", ["sampling", "HoldsTheGil"])
def test_the_engine_is_gone_one_second_after_its_consumer_was_killed(engine: EngineMaker, tmp_path: Path, kind: str) -> None:
    recorded, mark = engine(start=False), tmp_path / "it computes"
    prompt = LONG if kind == "sampling" else probe(kind, f"60 {mark}")
    facts = json.dumps({"options": to_plain(replace(recorded.options)), "prompt": prompt, "mark": str(mark)})
    script = str(Path(__file__).with_name("run_consumer.py"))
    consumer = subprocess.Popen(
        [sys.executable, script, facts], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    assert consumer.stdout is not None
    try:
        pid = int(consumer.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        consumer.kill()
        consumer.wait()
        consumer.stdout.close()
    assert gone_within(pid, 1.0)


def test_a_consumer_that_sends_nonsense_is_left(engine: EngineMaker) -> None:
    recorded = engine()
    claim_id = recorded.run(LONG)
    recorded.wait(Started)
    child = recorded.process._child
    assert child is not None and child._process is not None and child._process.stdin is not None
    child._process.stdin.write(b"\x00\x00\x00\x03\xff\xff\xff")
    end = recorded.end(claim_id)
    assert isinstance(end, Failed)
    assert end.error.status == "exit status 71"


def test_nothing_is_run_before_a_start(engine: EngineMaker) -> None:
    recorded = engine(start=False)
    with pytest.raises(EngineDied):
        recorded.process.run(RunRequest("c", "j", 0, "whole", {}, (), {}))
    recorded.process.interrupt("c")
    recorded.process.close()
    assert not recorded.process.alive

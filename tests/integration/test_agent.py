"""``distributed-comfy up`` as a process with real workers: what it starts, what it starts again, what it obeys, and what it leaves."""
from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distributed_comfy.errors import NoAgent, OrderRefused
from distributed_comfy.host_messages import HostOrder
from distributed_comfy.messages import dump
from tasks.host_orders import order_for, post_order, send_order
from tests.agent_process import HOST, AgentProcess, engine_pid, gone
from tests.command_line import CommandLine, pictures, until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]
CPU = {"pc1-cpu": {"device": "cpu"}}
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups of POSIX")


@pytest.fixture
def line(redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, DC_REDIS_URL=redis_url, DC_BLOB_URL=blob_url)
    yield line
    assert until(lambda: not line.left_running())


@pytest.fixture
def agent(line: CommandLine, redis_url: str, blob_url: str) -> Iterator[AgentProcess]:
    agent = AgentProcess(line, redis_url, blob_url)
    yield agent
    agent.close()


# -- start and end -------------------------------------------------------------------------------------------------------
@posix
def test_the_first_start_writes_a_worker_for_the_cpu_and_ctrl_c_leaves_no_process(line: CommandLine, agent: AgentProcess) -> None:
    process = agent.start()
    worker = agent.wait("pc1-cpu", "running")
    assert list(agent.written()["workers"]) == ["pc1-cpu"]
    listed = line.run("workers", "list", "--json").json
    assert [(each["name"], each["pid"], each["started_by"]) for each in listed] == [("pc1-cpu", worker.pid, "agent")]
    done = line.run("run", line.write("graph.json", pictures()), "--items", "2", "--json")
    assert done.status == 0 and {item["worker"] for item in done.json["items"]} == {"pc1-cpu"}, done.err
    shown = line.run("hosts", "show")
    assert "host pc1: " in shown.out and str(worker.log_folder) in shown.out and "running" in shown.out, shown.err
    assert line.run("hosts", "list", "--json").json[0]["devices"][0]["name"] == "cpu"
    engine = engine_pid(worker.pid)
    assert agent.end(process) == 0, agent.said()
    assert gone(worker.pid) and gone(engine)
    assert agent.host() is None and until(lambda: line.run("workers", "list", "--json").json == [])
    assert "worker pc1-cpu: stopped" in agent.said() and "Traceback" not in agent.said()


@posix
def test_a_running_item_is_finished_at_the_first_ctrl_c_and_given_back_at_the_second(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={"pc1-cpu": {"device": "cpu", "environment": {"DC_DRAIN_TIMEOUT_S": "30"}}})
    process = agent.start()
    worker = agent.wait("pc1-cpu", "running")
    job = line.run("run", line.write("graph.json", slow_pictures()), "--items", "1", "--detach", "--json").json["job"]
    until(lambda: agent.cluster.jobs.job_state(job).counts.get("running") == 1)
    os.killpg(process.pid, signal.SIGINT)
    agent.wait("pc1-cpu", "stopping")
    time.sleep(1.0)
    assert process.poll() is None and not gone(worker.pid), "it has its item"
    os.killpg(process.pid, signal.SIGINT)
    process.wait(5)
    assert until(lambda: gone(worker.pid), timeout_s=15)
    assert until(lambda: agent.cluster.jobs.job_state(job).counts.get("running") == 0)
    line.run("jobs", "cancel", job)


def test_a_second_agent_of_the_host_is_refused_with_the_pid_of_the_first(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={})
    process = agent.start()
    until(agent.host)
    second = line.run("up")
    assert second.status == 2 and f"an agent of host pc1 is running already (pid {process.pid}, user " in second.err
    elsewhere = line.run("up", DC_RUNTIME_DIR=str(line.folder / "other"))
    assert elsewhere.status == 2 and f"(pid {process.pid}, user " in elsewhere.err, "also one of another user, by the table"
    assert agent.end(process) == 0


def test_a_wrong_file_stops_the_start_and_is_named(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={"pc1-cpu": {"device": "cpu", "threats": 2}})
    done = line.run("up")
    assert done.status == 2 and f"{agent.file}: workers.pc1-cpu.threats is not a field; did you mean threads?" in done.err
    agent.write(workers={"pc1-cpu": {"device": "cpu", "cores": [8000]}})
    done = line.run("up")
    assert done.status == 2 and "workers.pc1-cpu.cores has CPUs 8000" in done.err
    agent.file.write_text('{"workers": {"a": {}}')
    assert "workers.json, line 1, column 2" in line.run("up").err


def test_with_auto_launch_off_workers_wait_for_an_order(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers=CPU, auto_launch=False)
    process = agent.start()
    agent.wait("pc1-cpu", "stopped")
    told = "no worker is running; start one with `distributed-comfy workers start pc1-cpu` (it is stopped)"
    assert line.run("workers", "list").out == f"{told}\n"
    assert told in line.run("run", line.write("graph.json", pictures()), "--items", "1").err
    nameless = line.run("workers", "start")
    assert nameless.status == 2 and "Missing argument 'NAME': there are pc1-cpu (stopped)." in nameless.err
    assert "(there are pc1-cpu; did you mean pc1-cpu?)" in line.run("workers", "start", "pc1-cpv").err
    assert line.run("workers", "start", "pc1-cpu").out.startswith("worker pc1-cpu on pc1: starting")
    agent.wait("pc1-cpu", "running")
    assert agent.end(process) == 0


# -- supervision ---------------------------------------------------------------------------------------------------------
@posix
def test_a_killed_worker_is_started_again_after_a_wait_that_grows(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers=CPU)
    process = agent.start()
    pids = []
    for restarts in range(2):
        worker = agent.wait("pc1-cpu", "running", lambda worker, restarts=restarts: worker.restarts == restarts)  # type: ignore[misc]
        pids.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        waiting = agent.wait("pc1-cpu", "backing-off")
        assert waiting.reason.startswith("it was killed from outside with signal 9 (SIGKILL): ") and waiting.next_start_s > restarts
    last = agent.wait("pc1-cpu", "running", lambda worker: worker.restarts == 2)
    assert len({*pids, last.pid}) == 3
    assert agent.end(process) == 0


def test_a_worker_that_is_configured_wrongly_is_not_started_again(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={"pc1-cpu": {"device": "cpu", "engine": "comfyui", "comfyui_path": "nowhere"}})
    process = agent.start()
    failed = agent.wait("pc1-cpu", "failed")
    tried = line.run("workers", "start", "pc1-cpu", "--wait", "60")
    assert tried.status == 1 and tried.out.startswith("worker pc1-cpu on pc1: failed: COMFYUI_PATH: "), tried.err
    assert failed.reason.startswith("COMFYUI_PATH: ") and "nowhere is not ComfyUI's folder" in failed.reason and failed.restarts == 0
    line.run("workers", "edit", "pc1-cpu", "--engine", "builtin", "--restart")
    agent.wait("pc1-cpu", "running")
    assert agent.end(process) == 0


def test_a_gpu_that_is_not_there_is_told_and_not_tried(line: CommandLine, agent: AgentProcess, tmp_path: Path) -> None:
    tree = tmp_path / "Comfy"
    tree.mkdir()
    for name in ("main.py", "nodes.py"):
        (tree / name).touch()
    agent.write(workers={"pc1-cuda7": {"device": "cuda:7", "engine": "comfyui", "comfyui_path": str(tree)}})
    process = agent.start(DC_COMFYUI_PYTHON=sys.executable, COMFYUI_PATH=str(tree))
    assert "cuda:7 is not on this host, which has " in (reason := agent.wait("pc1-cuda7", "failed").reason)
    assert reason.endswith("then start `distributed-comfy up` again")
    assert agent.end(process) == 0


@posix
def test_workers_end_with_an_agent_that_is_killed(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers=CPU)
    process = agent.start()
    worker = agent.wait("pc1-cpu", "running")
    engine = engine_pid(worker.pid)
    job = line.run("run", line.write("graph.json", slow_pictures()), "--items", "1", "--detach", "--json").json["job"]
    until(lambda: agent.cluster.jobs.job_state(job).counts.get("running") == 1)
    process.kill()
    assert until(lambda: gone(worker.pid) and gone(engine), timeout_s=15), "also in the middle of an item"
    assert until(lambda: agent.cluster.jobs.job_state(job).counts.get("running") == 0)
    line.run("jobs", "cancel", job)
    again = agent.start()  # the place in the table is free after one lease
    agent.wait("pc1-cpu", "running", lambda found: found.pid != worker.pid)
    assert agent.end(again) == 0


@posix
def test_workers_that_outlive_a_killed_agent_are_taken_back(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers=CPU, stop_with_owner=False)
    first = agent.start()
    worker = agent.wait("pc1-cpu", "running")
    first.kill()
    first.wait()
    done = line.run("run", line.write("graph.json", pictures()), "--items", "2", "--json")
    assert done.status == 0, "it works while there is no agent"
    until(lambda: agent.host() is None)
    second = agent.start()
    assert agent.wait("pc1-cpu", "running").pid == worker.pid
    assert agent.end(second) == 0
    assert not gone(worker.pid), "nor does it end with one that ends in good order"
    agent.write(workers=CPU)  # stop_with_owner is on again
    third = agent.start()
    agent.wait("pc1-cpu", "running", lambda found: found.pid == worker.pid and found.outdated)
    assert agent.end(third) == 0
    assert gone(worker.pid)


@posix
def test_a_worker_that_outlived_its_agent_and_is_written_down_no_more_ends(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers=CPU, stop_with_owner=False)
    first = agent.start()
    worker = agent.wait("pc1-cpu", "running")
    assert agent.end(first) == 0
    agent.write(workers={}, stop_with_owner=False)
    second = agent.start()
    assert until(lambda: gone(worker.pid), timeout_s=60)
    until(lambda: (host := agent.host()) is not None and host.workers == ())
    assert agent.end(second) == 0


@posix
def test_a_worker_that_outlives_its_agent_brings_the_embedded_redis_with_it(tmp_path: Path) -> None:
    line = CommandLine(tmp_path, DC_WORKERS_FILE=str(tmp_path / "workers.json"), DC_HOST=HOST, DC_ENGINE="builtin")
    (tmp_path / "workers.json").write_text(json.dumps({"workers": CPU, "stop_with_owner": False}))
    process = line.start("up")
    until(lambda: line.run("workers", "list", "--json").json, timeout_s=60)
    line.interrupt(process)
    found = line.run("workers", "list", "--json").json
    assert [worker["name"] for worker in found] == ["pc1-cpu"], "the same servers, as the worker owns them too"
    assert line.run("workers", "stop", "pc1-cpu").status == 2, "an agent's worker is stopped by an agent"
    os.kill(found[0]["pid"], signal.SIGTERM)
    assert until(lambda: not line.left_running())


# -- placement -----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="binding to CPUs is Linux only")
def test_a_worker_and_all_threads_of_its_engine_stay_on_its_cores(line: CommandLine, agent: AgentProcess) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs; run it on a machine that has them")
    agent.write(workers={"pc1-a": {"device": "cpu", "cores": [cpus[0]]}, "pc1-b": {"device": "cpu"}})
    process = agent.start()
    bound = {"pc1-a": {cpus[0]}, "pc1-b": set(cpus[1:])}
    for name, expected in bound.items():
        worker = agent.wait(name, "running")
        for pid in (worker.pid, engine_pid(worker.pid)):
            threads = [thread.id for thread in psutil.Process(pid).threads()]
            assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset(expected)}
        environment = psutil.Process(engine_pid(worker.pid)).environ()
        assert environment["OMP_NUM_THREADS"] == str(worker.threads) and worker.threads >= 1
    assert agent.end(process) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="binding to CPUs is Linux only")
def test_a_worker_that_is_started_by_hand_is_bound_by_a_setting(line: CommandLine) -> None:
    cpu = min(os.sched_getaffinity(0))
    refused = line.run("worker", "--engine", "builtin", DC_CORES="8000")
    assert refused.status == 2 and "DC_CORES: must be among" in refused.err
    process = line.start("worker", "--engine", "builtin", "--name", "bound", DC_CORES=str(cpu))
    found = until(lambda: line.run("workers", "list", "--json").json, timeout_s=60)
    for pid in (found[0]["pid"], engine_pid(found[0]["pid"])):
        assert {frozenset(os.sched_getaffinity(thread.id)) for thread in psutil.Process(pid).threads()} == {frozenset({cpu})}
    process.send_signal(signal.SIGTERM)
    assert line.finish(process).status == 0


@posix
def test_the_first_start_on_a_host_with_gpus_writes_a_worker_for_each(line: CommandLine, agent: AgentProcess, tmp_path: Path) -> None:
    tree, tool = tmp_path / "Comfy", tmp_path / "bin" / "nvidia-smi"
    for folder in (tree, tool.parent):
        folder.mkdir()
    for name in ("main.py", "nodes.py"):
        (tree / name).touch()
    rows = [f"{number}, GPU-{number}, NVIDIA H100 80GB HBM3, 81559, 00000000:{number}4:00.0" for number in range(2)]
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    tool.chmod(0o755)
    process = agent.start(COMFYUI_PATH=str(tree), DC_ENGINE="comfyui", PATH=f"{tool.parent}:{os.environ['PATH']}")
    until(lambda: agent.worker("pc1-cuda1"), timeout_s=60)  # before that the record only holds the host's place
    host = agent.host()
    assert host is not None
    assert [(device.name, device.model, device.bus_id) for device in host.devices] == [
        ("cuda:0", "NVIDIA H100 80GB HBM3", "0000:04:00.0"), ("cuda:1", "NVIDIA H100 80GB HBM3", "0000:14:00.0"),
    ]  # fmt: skip
    written = agent.written()["workers"]
    assert {name: worker["device"] for name, worker in written.items()} == {"pc1-cuda0": "cuda:0", "pc1-cuda1": "cuda:1"}
    added = line.run("workers", "add", "--device", "cuda:9")
    assert "worker pc1-cuda9 on pc1: added, failed: cuda:9 is not on this host, which has cuda:0, cuda:1" in added.out, added.err
    assert agent.end(process) == 0


# -- orders --------------------------------------------------------------------------------------------------------------
def test_workers_are_added_changed_stopped_and_removed_and_the_file_says_so(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={})
    process = agent.start()
    until(agent.host)
    added = line.run("workers", "add", "--tags", "big,fast", "--env", "HF_TOKEN=secret", "--threads", "1", "--json")
    assert added.status == 0 and added.json["worker"] == "" and "worker pc1-cpu on pc1: added, starting" in added.json["text"], added.err
    first = agent.wait("pc1-cpu", "running")
    assert line.run("workers", "list", "--json").json[0]["tags"] == ["big", "fast"]
    edited = line.run("workers", "edit", "pc1-cpu", "--tags", "small", "--env", "HF_TOKEN=", "--env", "A=1")
    assert "it runs as before until `workers restart`" in edited.out, edited.err
    agent.wait("pc1-cpu", "running", lambda worker: worker.outdated)
    written = agent.written()["workers"]["pc1-cpu"]
    assert (written["tags"], written["environment"], written["threads"]) == (["small"], {"A": "1"}, 1)
    restarted = line.run("workers", "restart", "pc1-cpu", "--wait", "60", "--json")
    assert restarted.status == 0 and restarted.json["phase"] == "running", restarted.err
    second = agent.wait("pc1-cpu", "running")
    assert second.pid != first.pid and not second.outdated and psutil.Process(second.pid).environ()["A"] == "1"
    assert "secret" not in line.run("hosts", "config", "--json").out
    assert send_order(agent.cluster, HOST, order_for("drain", "pc1-cpu")).text == "worker pc1-cpu on pc1: gets nothing more"
    agent.wait("pc1-cpu", "draining")
    assert "frees its device" in send_order(agent.cluster, HOST, order_for("clear-memory", "pc1-cpu")).text
    line.run("workers", "resume", "pc1-cpu")
    agent.wait("pc1-cpu", "running")
    stopped = line.run("workers", "stop", "pc1-cpu", "--wait", "60")
    assert (stopped.status, stopped.out) == (0, "worker pc1-cpu on pc1: stopped\n"), stopped.err
    assert line.run("workers", "stop", "pc1-cpu", "--wait", "60").status == 0, "it is so already"
    line.run("workers", "disable", "pc1-cpu")
    agent.wait("pc1-cpu", "disabled")
    refused = line.run("workers", "start", "pc1-cpu")
    assert refused.status == 2 and "it is disabled" in refused.err
    assert agent.end(process) == 0
    again = agent.start()
    agent.wait("pc1-cpu", "disabled")
    assert line.run("workers", "remove", "pc1-cpu").status == 0
    until(lambda: (host := agent.host()) is not None and host.workers == ())
    assert agent.written()["workers"] == {}
    assert agent.end(again) == 0


def test_a_worker_that_does_not_run_gets_another_name_in_its_place(line: CommandLine, agent: AgentProcess) -> None:
    idle = {"device": "cpu", "enabled": False}
    agent.write(workers={"pc1-a": {"device": "cpu", "tags": ["kept"]}, "pc1-b": idle})
    process = agent.start()
    agent.wait("pc1-a", "running")
    for name, reason in (("pc1-c", "stop it first"), ("pc1-b", "choose another one"), ("PC1 c", "pc1-c would do")):
        refused = line.run("workers", "edit", "pc1-a", "--name", name)
        assert refused.status == 2 and reason in refused.err, refused.err
    assert line.run("workers", "stop", "pc1-a", "--wait", "60").status == 0
    renamed = line.run("workers", "edit", "pc1-a", "--name", "pc1-c", "--threads", "1", "--json")
    assert renamed.json["worker"] == "pc1-c" and "worker pc1-c on pc1: changed; it was pc1-a before" in renamed.json["text"], renamed.err
    written = agent.written()["workers"]
    assert list(written) == ["pc1-c", "pc1-b"] and (written["pc1-c"]["tags"], written["pc1-c"]["threads"]) == (["kept"], 1)
    until(lambda: (host := agent.host()) is not None and [worker.name for worker in host.workers] == ["pc1-b", "pc1-c"])
    line.run("workers", "start", "pc1-c")
    agent.wait("pc1-c", "running")
    assert agent.end(process) == 0


def test_what_a_person_writes_into_the_file_is_there_at_the_next_restart(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers=CPU)
    process = agent.start()
    first = agent.wait("pc1-cpu", "running")
    agent.write(workers={"pc1-cpu": {"device": "cpu", "environment": {"B": "2"}}})
    line.run("workers", "restart", "pc1-cpu")
    second = agent.wait("pc1-cpu", "running", lambda worker: worker.pid != first.pid)
    assert psutil.Process(second.pid).environ()["B"] == "2"
    agent.file.write_text("{")
    refused = line.run("workers", "restart", "pc1-cpu")
    assert refused.status == 2 and "workers.json, line 1" in refused.err
    assert agent.wait("pc1-cpu", "running").pid == second.pid, "a wrong file changes nothing"
    assert agent.end(process) == 0


def test_an_order_that_comes_twice_is_carried_out_once(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={})
    process = agent.start()
    until(agent.host)
    order = order_for("add", fields={"device": "cpu", "enabled": False})
    first = send_order(agent.cluster, HOST, order)
    second = send_order(agent.cluster, HOST, order)
    assert first == second and "worker pc1-cpu on pc1: added" in first.text
    assert list(agent.written()["workers"]) == ["pc1-cpu"], "a second one would be pc1-cpu-1"
    assert agent.end(process) == 0


def test_an_order_that_nobody_waits_for_any_more_is_not_carried_out(agent: AgentProcess) -> None:
    agent.write(workers={})
    post_order(agent.cluster, HOST, HostOrder("early", "add", "early", {"fields": {}}, valid_until_ms=agent.cluster.hosts.now_ms() - 1))
    process = agent.start()
    until(agent.host)
    until(lambda: "came too late" in agent.said())
    assert agent.written()["workers"] == {}
    assert agent.end(process) == 0


def test_what_is_no_order_is_refused_and_the_agent_goes_on(agent: AgentProcess) -> None:
    agent.write(workers={})
    process = agent.start()
    until(agent.host)
    valid = agent.cluster.hosts.now_ms() + 60_000
    texts = ("{}", "nonsense", dump(HostOrder("1", "stop", valid_until_ms=valid)).replace('"stop"', '"erase"'))
    for text in texts:
        agent.cluster.app.send_task("tasks.host_order", args=(text,), queue=f"host.{HOST}")
    until(lambda: agent.said().count("an order was refused") == len(texts))
    assert send_order(agent.cluster, HOST, order_for("config")).facts["host"] == HOST
    assert agent.end(process) == 0


def test_other_hosts_change_the_configuration_only_where_that_is_allowed(line: CommandLine, agent: AgentProcess) -> None:
    agent.write(workers={"pc1-cpu": {"device": "cpu", "enabled": False}})
    process = agent.start("--no-remote-configuration")
    until(lambda: agent.host() and agent.written().get("remote_configuration") is False)
    for verb in ("add", "edit", "remove"):
        with pytest.raises(OrderRefused, match="does not let others change its configuration"):
            send_order(agent.cluster, HOST, order_for(verb, "pc1-cpu", fields={"environment": {"A": "1"}}))  # type: ignore[arg-type]
    elsewhere = line.run("workers", "edit", "pc1-cpu", "--threads", "1", DC_HOST="pc2", DC_RUNTIME_DIR=str(line.folder / "pc2"))
    assert elsewhere.status == 2 and "does not let others" in elsewhere.err
    here = line.run("workers", "edit", "pc1-cpu", "--threads", "1")
    assert here.status == 0 and agent.written()["workers"]["pc1-cpu"]["threads"] == 1, here.err
    line.run("workers", "enable", "pc1-cpu", DC_HOST="pc2", DC_RUNTIME_DIR=str(line.folder / "pc2"))
    agent.wait("pc1-cpu", "running")
    assert agent.end(process) == 0


def test_without_an_agent_the_command_says_so_and_who_lives(line: CommandLine, agent: AgentProcess) -> None:
    refused = line.run("workers", "add", "--host", "Far.away")
    assert refused.status == 3 and "no agent answers on host far-away; start one there with `distributed-comfy up`" in refused.err
    assert "no agent is running" in line.run("hosts", "list").out
    with pytest.raises(NoAgent, match="agents alive: none"):
        send_order(agent.cluster, "far-away", order_for("config"))
    agent.write(workers={})
    process = agent.start()
    until(agent.host)
    assert "agents alive: pc1" in line.run("hosts", "show", "far-away").err
    assert agent.end(process) == 0


def test_an_agent_takes_an_imported_configuration_over_or_it_is_said_what_is_left_to_do(line: CommandLine, agent: AgentProcess) -> None:
    theirs = [{"id": "1", "name": "w1", "cuda_device": 1}, {"id": "2", "name": "w2", "enabled": False}]
    config = line.write("gpu_config.json", {"workers": theirs})
    agent.write(workers={"pc1-cpu": {"device": "cpu"}, "w1": {"device": "cpu"}})
    process = agent.start()
    agent.wait("pc1-cpu", "running")
    agent.wait("w1", "running")
    elsewhere = line.run("config", "import", config, "--force", DC_WORKERS_FILE=str(line.folder / "other.json"))
    assert f"keeps the workers of another file, {agent.file}; end that ComfyUI, or `up`, and start it again" in elsewhere.out
    done = line.run("config", "import", config, "--force", "--json")
    assert done.json["taken_over"] is True and done.json["replaced"] == {"changed": {"w1": "cpu"}, "removed": {"pc1-cpu": "cpu"}}
    host = agent.host()
    assert host is not None and set(host.configuration["workers"]) == {"w1", "w2"} and host.configuration["workers"]["w1"]["old_id"] == "1"
    again = line.run("config", "import", config, "--force").out
    assert "worker w1 runs as it was; `distributed-comfy workers restart w1` brings what is written now" in again, again
    os.kill(process.pid, signal.SIGSTOP)
    try:
        silent = line.run("config", "import", config, "--force")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert silent.status == 0 and f"the agent of this host (pid {process.pid}) could not be told: " in silent.out
    assert "until then the workers of before run" in silent.out
    assert agent.end(process) == 0


# -- workers of others ---------------------------------------------------------------------------------------------------
@posix
def test_a_worker_that_was_started_by_hand_can_be_ended_and_not_be_started_again(line: CommandLine) -> None:
    process = line.start("worker", "--engine", "builtin", "--name", "mine", DC_STARTED_BY="hand")
    until(lambda: line.run("workers", "list", "--json").json, timeout_s=60)
    refused = line.run("workers", "restart", "mine")
    assert refused.status == 2 and "it was started by hand, and nobody would start it again" in refused.err
    refused = line.run("workers", "enable", "mine")
    assert refused.status == 2 and "no agent keeps this worker (hand on host" in refused.err
    assert "nobody starts it again" in line.run("workers", "stop", "mine").out
    assert line.finish(process).status == 0


@posix
def test_a_service_or_container_is_told_by_its_own_means(line: CommandLine) -> None:
    host = socket.gethostname().split(".")[0].lower()
    process = line.start("worker", "--engine", "builtin", "--name", "unit", DC_STARTED_BY="", INVOCATION_ID="1", container="")
    until(lambda: line.run("workers", "list", "--json").json, timeout_s=60)
    refused = line.run("workers", "stop", "unit")
    assert refused.status == 2 and f"on host {host}: systemctl stop UNIT; `distributed-comfy workers drain`" in refused.err
    assert f"systemd on {host} starts it again" in line.run("workers", "restart", "unit").out
    assert line.finish(process).status == 0, "it finished and ended, for its service to start it again"


def slow_pictures() -> dict[str, object]:
    """An item that takes long."""
    return pictures(steps=10_000, width=1024, height=1024)  # type: ignore[return-value]


# -- metrics -------------------------------------------------------------------------------------------------------------
@posix
def test_metrics_tell_hosts_the_phases_of_their_workers_and_restarts(line: CommandLine, agent: AgentProcess) -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus_client: pip install prometheus_client")
    from tests.metrics_process import MetricsProcess

    agent.write(workers={**CPU, "pc1-second": {"device": "cpu", "enabled": False}})
    metrics = MetricsProcess(line.folder, **line.environment)
    try:
        assert metrics.value("hosts") == 0
        process = agent.start()
        worker = agent.wait("pc1-cpu", "running")
        assert metrics.value("hosts") == 1
        assert metrics.value("host_workers", host=HOST, phase="running") == metrics.value("host_workers", host=HOST, phase="disabled") == 1
        assert 0 < metrics.value("host_memory_available_bytes", host=HOST) < metrics.value("host_memory_total_bytes", host=HOST)
        assert 0 < metrics.value("host_disk_free_bytes", host=HOST) <= metrics.value("host_disk_total_bytes", host=HOST)
        os.kill(worker.pid, signal.SIGKILL)
        agent.wait("pc1-cpu", "running", lambda again: again.pid != worker.pid)
        until(lambda: metrics.value("worker_restarts_total", host=HOST, worker="pc1-cpu") == 1)
        assert agent.end(process) == 0
        until(lambda: metrics.value("hosts") == 0)
    finally:
        assert metrics.stop() == 0

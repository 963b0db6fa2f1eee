"""What befalls a host: its disk is full, its clock is wrong, its agent is killed, another version is installed there."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import psutil
from PIL import Image

from distributed_comfy.messages import Prompt
from tests.command_line import until
from tests.conftest import missing_service
from tests.hosts import Network, need_hosts
from tests.machines import Machine, join
from tests.prompts import node, out
from tests.smoke.field import SEED, Ending, Field, kill, strike
from tests.smoke.measured import NOTHING, ONE, Costs
from tests.smoke.scenario import scenario

HOST = "pc1"


# -- disks -------------------------------------------------------------------------------------------------------------------
@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of this size, mounted in this folder."""
    if sys.platform != "linux" or os.geteuid() != 0:
        missing_service("root on Linux for a small disk", "run it as root")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def with_input(field: Field) -> Prompt:
    """The field's prompt, each item a picture from a file of a megabyte and a half."""
    path = field.folder / "noise.png"
    if not path.exists():
        noise = numpy.random.default_rng(1).integers(0, 256, (700, 700, 3), numpy.uint8)
        Image.fromarray(noise).save(path)
    prompt = field.prompt()
    prompt["make"] = node("LoadImage", image=str(path))
    return prompt


@scenario(
    "worker's disk full", "the disk of one worker's cache has no room for an input file", "a full disk bars its worker", costs=NOTHING
)
def workers_disk(field: Field) -> Ending:
    prompt = with_input(field)
    field.undisturbed(prompt, field.timing.items)
    with small_disk(field.folder / "disk", "1m") as disk, field.another("full", cache_dir=disk) as worker:
        job = field.begin(prompt)
        job.queued()
        ending = field.ended(job, None, time.time())
        assert "No space left" in worker.log(), worker.log()[-3000:]
    ending.prompt = prompt
    return ending


@scenario(
    "master's disk full",
    "the disk of the folder of results is full; it gets room, and `jobs attach` goes on",
    "a full disk loses nothing",
    costs=NOTHING,
)
def masters_disk(field: Field) -> Ending:
    line = field.command_line()
    with small_disk(line.folder / "made", "256k") as disk:
        run = line.run("run", "graph.json", "--items", str(field.timing.items), "--out", "made", "--json")
        job_id = run.json["job"]
        assert run.status == 2 and "the disk is full" in run.err and f"jobs attach {job_id}" in run.err, (run.status, run.err)
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        done = line.run("jobs", "attach", job_id, "--out", "made", "--json")
        assert done.status == 0, done.err
        kept = line.folder / "kept"
        subprocess.run(["cp", "-r", disk, kept], check=True)
    return Ending(kept, [job_id])


# -- clocks ------------------------------------------------------------------------------------------------------------------
def off_by(field: Field, hours: int) -> dict[str, str]:
    """The environment of a process whose clock is wrong by that; a process of its own, `CommandLine.run` may fork one that runs already."""
    compiler, library = shutil.which("cc"), field.folder / "wrong_clock.so"
    if sys.platform != "linux" or compiler is None:
        missing_service("a C compiler on Linux for a wrong clock", "install one (Debian, Ubuntu: apt-get install gcc libc6-dev)")
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, Path(__file__).with_name("wrong_clock.c"), "-ldl"], check=True)
    wrong = {"LD_PRELOAD": str(library), "WRONG_CLOCK_S": str(3600 * hours)}
    ask = [sys.executable, "-c", "import time; print(time.time())"]
    shown = subprocess.run(ask, env={**os.environ, **wrong}, capture_output=True, check=True)
    assert abs(float(shown.stdout) - time.time() - 3600 * hours) < 60
    return wrong


@scenario("clocks off", "one worker's clock is an hour ahead, the master's an hour behind", "nobody's clock counts", costs=NOTHING)
def clocks_off(field: Field) -> Ending:
    line = field.command_line()
    with field.another("ahead", environment=off_by(field, 1)):
        command = ("run", "graph.json", "--items", str(field.timing.items), "--out", "made", "--json")
        run = line.finish(line.start(*command, **off_by(field, -1)), timeout_s=120.0)
        assert run.status == 0, run.err
        assert any(item["worker"] == "ahead" for item in run.json["items"])
    return Ending(line.folder / "made", [run.json["job"]])


# -- guests ------------------------------------------------------------------------------------------------------------------
@scenario(
    "host revoked",
    "an invited host, which works by TLS, is shut out (`invite revoke`) in the middle of the job",
    "a revoked host",
    costs=Costs(0, 1),
)
def host_revoked(field: Field) -> Ending:
    """A master with embedded servers and a worker of its own, and one guest; it may be shut out between two items."""
    need_hosts()
    logs = {"DC_EXECUTION_LOG": str(field.rig.execution_log), "RULE_LOG": str(field.rig.rule_log)}
    folder = field.folder / "hosts"
    folder.mkdir()
    with Network() as network:
        master, guest = (Machine(network.host(name), folder / name) for name in ("master", "pc2"))
        network.cable(master.host, guest.host)
        master.start_worker(**logs)
        join(master, guest, **logs)
        prompt = field.prompt(steps=3 * field.timing.steps)  # our commands take a while
        job = master.start_job(prompt, "made", field.timing.items)
        until(lambda: master.workers().get("pc2-cpu"))
        struck_at = strike(lambda: master.command("invite", "revoke", "pc2"))
        begun = field.rig.execution_log.read_text().splitlines()
        said, _ = job.communicate(timeout=240)
        assert job.returncode == 0, said
        until(lambda: "pc2-cpu" not in master.workers())
        assert "on pc2-cpu in" in said and "on master-cpu in" in said, said
    job_id = re.findall(r"\bjob ([0-9a-f]{12})\b", said)[0]
    assert sum(row.startswith(job_id) for row in begun) < field.timing.items, "it was shut out too late"
    return Ending(folder / "master" / "made", [job_id], struck_at=struck_at, prompt=prompt)


# -- programs ----------------------------------------------------------------------------------------------------------------
@scenario(
    "another version", "one worker's records have another version than the master's", "a foreign version bars its worker", costs=NOTHING
)
def another_version(field: Field) -> Ending:
    with field.another("old", environment={"TEST_JOB_VERSION": "1"}) as worker:
        job = field.begin()
        job.queued()
        ending = field.ended(job, None, time.time())
        assert "JobRecord of version" in worker.log(), worker.log()[-3000:]
        assert not worker.process.poll()
    return ending


def plain(field: Field) -> Prompt:
    """Pictures for a worker that has none of the tests' nodes; a second or so of computing each."""
    return {
        "seed": node("DistributedSeed", seed=SEED),
        "make": node("SeededGenerator", seed=out("seed"), steps=60 * field.timing.steps, width=96, height=64, batch_size=1, style="auto"),
        "collect": node("DistributedCollector", images=out("make"), load_balance=False),
    }


@scenario(
    "agent killed",
    "kill -9 of `distributed-comfy up`, whose worker gives its item back and ends",
    "an agent's death ends its workers",
    costs=ONE,
)
def agent_killed(field: Field) -> Ending:
    prompt = plain(field)
    field.undisturbed(prompt, field.timing.items)
    line = field.command_line()
    file = line.write("workers.json", {"workers": {f"{HOST}-cpu": {"device": "cpu"}}})
    settings = {"DC_WORKERS_FILE": str(file), "DC_HOST": HOST, "DC_ENGINE": "builtin", "DC_THREADS": "1"}
    agent = line.start("up", DC_EXECUTION_LOG=str(field.rig.execution_log), **settings)
    try:
        until(lambda: field.rig.state(f"{HOST}-cpu"))
        field.begin(prompt).wait()  # its engine loads torch with its first item, and heeds nothing meanwhile
        job = field.begin(prompt)
        job.queued()
        item = str(until(lambda: (state := field.rig.state(f"{HOST}-cpu")) and state.claims and state.claims[0]))
        index = int(item.rpartition("-")[2])
        until(lambda: any(row[0] == index for row in field.rig.executions(job.report.job_id)))
        struck_at = strike(lambda: kill(psutil.Process(agent.pid)))
        until(lambda: not line.left_running(), timeout_s=20)
        ending = field.ended(job, None, struck_at)
    finally:
        for process in line.processes():
            process.kill()
        agent.communicate()
    ending.prompt, ending.index = prompt, index
    return ending

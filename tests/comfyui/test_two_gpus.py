"""A ComfyUI with the pack on a host with two GPUs: which one is its own, which workers are offered, and where these compute."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.comfyui.gpu_host import Card, engines, install, visible
from tests.comfyui.server_rig import ComfyServer

FIRST = "GPU-11111111-2f16-7b0e-11b4-1c07d7a9c001"
SECOND = "GPU-22222222-8d53-41f7-c7d2-3d6b8f15c002"
PARTS = ("MIG-33333333-5b7e-5a2c-9d3e-0c1d2e3f4a03", "MIG-44444444-6c8f-5b3d-8e4f-1d2e3f4a5b04")
ALIKE = (
    Card(FIRST, "NVIDIA GeForce RTX 3090", 1, "0000:01:00.0"),
    Card(SECOND, "NVIDIA GeForce RTX 3090", 1, "0000:81:00.0"),
)
SECOND_IS_FASTER = (ALIKE[0], Card(SECOND, "NVIDIA GeForce RTX 4090", 2, "0000:81:00.0"))


class Case(NamedTuple):
    """A start of ComfyUI, and what follows from it."""

    cards: tuple[Card, ...]
    words: str
    variables: dict[str, str]
    own: str
    """Id of the GPU that it computes on."""
    workers: dict[str, str]
    """Device of each worker that is offered, and the id of the GPU it means."""


ORDER, VISIBLE = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"
CASES = {
    "nothing said": Case(ALIKE, "", {}, FIRST, {"cuda:1": SECOND}),
    "--cuda-device 1": Case(ALIKE, "--cuda-device 1", {}, SECOND, {"cuda:0": FIRST}),
    "--default-device 1": Case(ALIKE, "--default-device 1", {}, SECOND, {"cuda:0": FIRST}),
    "the second is faster": Case(SECOND_IS_FASTER, "", {}, SECOND, {"cuda:0": FIRST}),
    "the second is faster, --cuda-device 1": Case(SECOND_IS_FASTER, "--cuda-device 1", {}, FIRST, {"cuda:1": SECOND}),
    "the second is faster, --cuda-device 1 by the bus": Case(
        SECOND_IS_FASTER, "--cuda-device 1", {ORDER: "PCI_BUS_ID"}, SECOND, {"cuda:0": FIRST}
    ),
    "one may be used": Case(ALIKE, "", {VISIBLE: "1"}, SECOND, {}),
    "the second is faster, one may be used": Case(SECOND_IS_FASTER, "", {VISIBLE: "1"}, FIRST, {}),
    "the second is faster, the other way round": Case(SECOND_IS_FASTER, "", {VISIBLE: "1,0"}, FIRST, {"cuda:1": SECOND}),
    "by ids": Case(SECOND_IS_FASTER, "", {VISIBLE: f"{SECOND[:12]},{FIRST}"}, SECOND, {"cuda:1": FIRST}),
    "parts of a GPU": Case(ALIKE, "", {VISIBLE: ",".join(PARTS)}, PARTS[0], {"cuda:1": PARTS[1]}),
}
LONG = ("--default-device 1", "the second is faster, --cuda-device 1 by the bus", "one may be used", "by ids")


def cases() -> list[Any]:
    """Those that say the least when others hold are for the long run."""
    return [pytest.param(case, id=name, marks=[pytest.mark.comfyui_long] if name in LONG else []) for name, case in CASES.items()]


@pytest.mark.parametrize("case", cases())
def test_workers_are_offered_and_run_on_the_gpus_that_comfyui_does_not_use(server: ComfyServer, case: Case, tmp_path: Path) -> None:
    variables = install(case.cards, server.base, tmp_path / "gpus")
    server.environment = {name: value for name, value in server.environment.items() if not name.startswith("CUDA_")}
    server.start(*case.words.split(), DC_HOST="pc1", DC_WORKERS_FILE=str(tmp_path / "workers.json"), **variables, **case.variables)
    server.wait_ready()
    status = server.until(lambda: (found := server.status()["host"])["agent"] == "here" and found)
    own = [device for device in status["devices"] if device["own"]]
    assert len(own) == 1, status["devices"]
    assert own[0]["bus_id"] == next((card.bus_id for card in case.cards if card.uuid == case.own), "")
    file = tmp_path / "workers.json"
    written = {name: facts["device"] for name, facts in json.loads(file.read_text())["workers"].items()} if file.exists() else {}
    assert written == {f"pc1-{device.replace(':', '')}": device for device in case.workers}
    assert [offer["device"] for offer in status["offers"] if not offer["shares"]] == ["cpu"]
    shared = next(offer for offer in status["offers"] if offer["shares"])
    assert (shared["device"], shared["command"]) == (own[0]["name"], f"distributed-comfy workers add --device {own[0]['name']}")
    for name in written:
        started = server.line.run("workers", "start", name, DC_HOST="pc1", DC_WORKERS_FILE=str(file))
        assert started.status == 0, started.err
    begun: dict[int, dict[str, str]] = {}
    server.until(lambda: begun.update(engines(server.line.processes())) or len(begun) >= len(written), 60.0)
    computes = {visible(case.cards, variables)[0] for variables in begun.values()}
    assert computes == set(case.workers.values()) and case.own not in computes
    told = [line for line in server.log().splitlines() if "its ComfyUI gets the arguments" in line]
    assert len(told) >= len(written) and not any("-device" in line for line in told), "a worker's device is its own"


def test_the_shown_commands_do_what_they_say(server: ComfyServer, tmp_path: Path) -> None:
    case = CASES["--cuda-device 1"]
    variables = install(case.cards, server.base, tmp_path / "gpus")
    server.environment = {name: value for name, value in server.environment.items() if not name.startswith("CUDA_")}
    environment = {"DC_HOST": "pc1", "DC_WORKERS_FILE": str(tmp_path / "workers.json")}
    server.start("--cuda-device", "1", **variables, **environment)
    server.wait_ready()
    status = server.until(lambda: (found := server.status()["host"])["agent"] == "here" and found)
    for offer in status["offers"]:
        program, *words = offer["command"].split()
        assert program == "distributed-comfy"
        done = server.line.run(*words, **environment)
        assert done.status == 0, done.err
    workers = server.until(lambda: (found := server.status()["host"])["offers"] == [] and found["workers"])
    assert {worker["name"]: (worker["device"], worker["shares"]) for worker in workers} == {
        "pc1-cuda0": ("cuda:0", False), "pc1-cuda1": ("cuda:1", True), "pc1-cpu": ("cpu", False),
    }  # fmt: skip
    listed = server.line.run("hosts", "show", "pc1", **environment)
    assert listed.status == 0 and listed.out.count("NVIDIA GeForce RTX 3090") == 2, listed.out
    assert server.line.run("workers", "stop", "pc1-cpu", **environment).status == 0

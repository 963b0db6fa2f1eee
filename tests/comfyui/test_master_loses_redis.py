"""The embedded Redis of a master is killed while its node waits: what is here stays, and what is missing is made once."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.test_pack_start import phase, written
from tests.prompts import node, out

ITEMS = 12
DISTURBED_MS = 800


def pictures(label: str, milliseconds: int) -> dict[str, Any]:
    """Seeds -> pictures that show them, slowly."""
    return {
        "seed": node("DistributedSeed", seed=100),
        "image": node("RuleImage", seed=out("seed"), width=16, height=16, batch_size=1, channels=3),
        "work": node("RuleSlow", images=out("image"), milliseconds=milliseconds),
        "9": node("DistributedCollector", images=out("work"), items=ITEMS),
        "show": node("RuleRecord", images=out("9"), label=label),
    }


def recorded(server: ComfyServer, label: str) -> Any:
    """Every value of what the collector gave."""
    return json.loads((server.base / "output" / f"{label}.json").read_text())["images"]


def kill_redis(server: ComfyServer) -> None:
    """kill -9 of the state server."""
    keeper = next(process for process in server.line.processes() if "distributed_comfy.state.keeper" in " ".join(process.cmdline()))
    state = next(process for process in keeper.children(recursive=True) if Path(process.cwd()).name == "state")
    state.kill()


def collected(server: ComfyServer) -> int:
    """Items that were brought home, or made here."""
    return len(set(re.findall(r"job \S+ item (\d+): collected", server.log())))


@pytest.mark.parametrize("participate", [False, True])
def test_a_job_outlives_its_embedded_redis(server: ComfyServer, participate: bool) -> None:
    written(server, "comfyui.json", {"auto_launch": True, "participate": participate})
    written(server, "workers.json", {"workers": {"pc1-cpu": {"device": "cpu"}}})
    rule_log = server.line.folder / "rule_log"
    server.start(DC_HOST="pc1", RULE_LOG=str(rule_log))
    server.until(lambda: phase(server) == "running")
    prompt_id = server.queue(pictures("disturbed", DISTURBED_MS))
    waiting = server.queue(pictures("waiting", 12))
    server.until(lambda: collected(server) >= 3)
    kill_redis(server)
    assert server.wait(prompt_id)["status"]["status_str"] == "success"
    assert server.wait(waiting)["status"]["status_str"] == "success"
    told = server.log()
    assert "runs all of it" not in told and "in this ComfyUI alone" not in told, "its worker was starting"
    server.execute(pictures("undisturbed", 11))
    assert len(recorded(server, "undisturbed")) == ITEMS
    assert recorded(server, "disturbed") == recorded(server, "undisturbed") == recorded(server, "waiting")
    runs = rule_log.read_text().splitlines().count(f"RuleSlow {DISTURBED_MS}")
    assert ITEMS <= runs <= ITEMS + 2  # nothing that was here ran again; what ran when the server went did
    spools = server.line.folder / "cache" / "comfyui-jobs" / ".distributed-comfy"
    server.until(lambda: not [path for path in spools.glob("*") if path.is_dir()], 10.0)

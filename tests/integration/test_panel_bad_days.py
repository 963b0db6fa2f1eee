"""The panel when things are wrong: Redis away and back, workers that cannot start, workers of others, a tunnel."""
from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.panel.page import UI_PATH
from tests.command_line import until
from tests.conftest import RedisServer, free_port, running_redis
from tests.panel_contract import HEADER, PREFIX, declared
from tests.panel_rig import PanelRig, panel_rig
from tests.tunnel_program import FAILS, WORDS, lives, stand_in

pytestmark = [
    pytest.mark.redis, pytest.mark.timeout(240), pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups of POSIX"),
]  # fmt: skip


def test_redis_away_is_told_with_a_remedy_and_everything_is_back_with_it(redis_server: RedisServer, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "rig"
    folder.mkdir()
    url = f"redis://127.0.0.1:{port}/0"
    with ExitStack() as first, ExitStack() as ending:
        first.enter_context(running_redis(redis_server.program, tmp_path / "one", port=port))
        rig = ending.enter_context(panel_rig(folder, DC_REDIS_URL=url, DC_BLOB_URL=url))
        up = rig.up(pc1_one={"device": "cpu"})
        rig.page.wait_worker("pc1-one", lambda worker: worker["state"] == "idle", 90)
        with rig.page.events() as events:
            events.wait(lambda state: state["servers"]["state"]["up"])
            first.close()
            down = events.wait(lambda state: not (found := state["servers"]["state"])["up"] and found)
            assert events.state["servers"]["one"]  # so a page says it once
            assert down["error"]["code"] == "redis_unreachable" and down["error"]["remedy"]
            unknown = events.wait(lambda state: (found := state["workers"]["pc1-one"])["state"] == "unknown" and found)
            assert (unknown["colour"], unknown["device"]) == ("grey", "cpu"), "all but its state is as it was known last"
            assert unknown["since_ms"] == down["down_since_ms"] > 0
            asked_ms = rig.page.state()["now_ms"]
            assert down["down_since_ms"] <= asked_ms < rig.page.state()["now_ms"], "the clock goes on"
            refused = rig.page.ask("POST", "/workers/pc1-one/orders", {"order": "stop"})
            assert refused.status == 503 and refused.error["remedy"]
            assert rig.page.state()["servers"]["state"]["up"] is False
            ending.enter_context(running_redis(redis_server.program, tmp_path / "two", port=port))
            events.wait(lambda state: state["servers"]["state"]["up"])
            events.wait(lambda state: state["workers"].get("pc1-one", {}).get("state") == "idle", 90)
            assert events.state["servers"]["state"]["down_since_ms"] == 0
            events.wait(lambda state: state["agent"] == "here")
            assert rig.end(up) == 0
            events.wait(lambda state: state["agent"] == "none")
            rig.line.environment["DC_KEY_PREFIX"] = "other:"  # of another cluster
            rig.up()
            events.wait(lambda state: state["agent"] == "elsewhere")
        assert "Traceback" not in rig.said()
        rig.close()  # before the server that was started last


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelRig]:
    """An agent without workers, and a cloudflared that is none."""
    folder = tmp_path_factory.mktemp("bad")
    programs = folder / "programs"
    programs.mkdir()
    with panel_rig(folder, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}") as rig:
        rig.up(pc1_one={"device": "cpu", "enabled": False})
        rig.page.wait_worker("pc1-one", lambda worker: worker["state"] == "disabled", 60)
        yield rig


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no-such-gpu", {"device": "cuda:7", "engine": "comfyui"}, "cuda:7"),
    ("no-such-folder", {"device": "cpu", "engine": "comfyui", "comfyui_path": ""}, "is not ComfyUI's folder"),
    ("nobody-there", {"device": "cpu", "engine": "attach", "comfyui_url": "http://127.0.0.1:9"}, "127.0.0.1:9"),
]


def test_a_package_that_comfyui_needs_and_does_not_have_is_named_with_the_command_that_installs_it(rig: PanelRig) -> None:
    tree = rig.folder / "Lacking"
    comfy_without_a_package(tree)
    fields = {"device": "cpu", "engine": "comfyui", "comfyui_path": str(tree), "comfyui_python": sys.executable}
    rig.page.post("/workers", {"name": "pc1-lacking", "fields": fields})
    try:
        found = rig.page.wait_worker("pc1-lacking", lambda worker: worker["state"] == "backing-off", 90)
        assert found["colour"] == "red" and f"ComfyUI needs no_such_package_1, which {sys.executable} does not have" in found["reason"]
        assert found["remedy"].startswith(f"run: {sys.executable} -m pip install -r {tree / 'requirements.txt'}, or press “Settings”")
        assert found["repair"] == "comfyui_python"
    finally:
        rig.page.post("/workers/pc1-lacking", method="DELETE")


def comfy_without_a_package(tree: Path) -> None:
    """A ComfyUI whose start needs a package that nobody has."""
    (tree / "comfy").mkdir(parents=True)
    files = {
        "main.py": "", "nodes.py": "", "requirements.txt": "no-such-package-1", "comfy/__init__.py": "",
        "comfy/options.py": "def enable_args_parsing(): pass", "comfy/cli_args.py": "import no_such_package_1",
    }  # fmt: skip
    for name, text in files.items():
        (tree / name).write_text(text)


def test_a_port_on_which_another_program_listens_is_not_taken_for_a_comfyui(rig: PanelRig) -> None:
    fields = {"device": "cpu", "engine": "attach", "comfyui_url": f"{rig.page.url}"}  # the panel itself, say
    rig.page.post("/workers", {"name": "pc1-elsewhere", "fields": fields})
    try:
        found = rig.page.wait_worker("pc1-elsewhere", lambda worker: "no ComfyUI" in worker["reason"], 90)
        assert found["colour"] == "red" and rig.page.url in found["reason"] and "404" in found["reason"]
        assert "address that it prints" in found["remedy"]
    finally:
        rig.page.post("/workers/pc1-elsewhere", method="DELETE")


def test_a_port_that_is_taken_stops_serve_with_what_to_do(rig: PanelRig) -> None:
    port = rig.page.address.rpartition(":")[2]
    done = rig.line.run("serve", "--port", port)
    assert done.status == 2 and f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.err
    assert "another program listens there" in done.err and "choose another --port" in done.err
    assert rig.page.state()


@pytest.mark.parametrize(("name", "fields", "named"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_worker_that_cannot_start_is_red_and_says_why(rig: PanelRig, name: str, fields: dict[str, Any], named: str) -> None:
    given = {field: str(rig.folder / "ComfyUI") if field == "comfyui_path" else value for field, value in fields.items()}
    tree = comfyui_folder(rig.folder / "ComfyUI")
    rig.page.post("/workers", {"name": f"pc1-{name}", "fields": {**given, "enabled": False}})
    shutil.rmtree(tree)  # that it is none is said by its host otherwise, before it is written down
    rig.page.post(f"/workers/pc1-{name}/orders", {"order": "enable"})
    try:
        found = rig.page.wait_worker(f"pc1-{name}", lambda worker: named in worker["reason"] + worker["remedy"], 90)
        assert found["colour"] == "red" and found["remedy"], found
        repair = {"no-such-gpu": "device", "no-such-folder": "comfyui_path"}.get(name, "")
        assert found["repair"] == repair and (not repair or "press “Settings”" in found["remedy"])
    finally:
        rig.page.post(f"/workers/pc1-{name}", method="DELETE")


def comfyui_folder(folder: Path) -> Path:
    """What looks like ComfyUI's."""
    folder.mkdir()
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    return folder


def findings_of(rig: PanelRig) -> dict[str, dict[str, Any]]:
    """What the doctor says, by what it looked at."""
    return {finding["check"]: finding for finding in rig.page.post("/doctor", {"engine": False}, timeout_s=120)["findings"]}


def test_the_doctor_lists_workers_that_do_not_run_with_reason_and_remedy(rig: PanelRig) -> None:
    rig.page.post("/workers", {"name": "pc1-bad", "fields": WRONG[0][1]})
    tree = str(comfyui_folder(rig.folder / "Empty"))
    rig.page.post("/workers", {"name": "pc1-ending", "fields": {"device": "cpu", "comfyui_path": tree, "engine": "comfyui"}})
    try:
        for name in ("pc1-bad", "pc1-ending"):
            rig.page.wait_worker(name, lambda worker: worker["state"] in ("failed", "backing-off"), 90)
        found = findings_of(rig)
        bad, ending, off = (found[f"worker {name}"] for name in ("pc1-bad", "pc1-ending", "pc1-one"))
        assert (bad["level"], bad["worker"]) == ("fail", "pc1-bad") and "cuda:7" in bad["found"] and bad["remedy"]
        assert ending["level"] == "fail" and ending["found"] and ending["remedy"]
        assert off["level"] == "ok" and "by its user" in off["found"]
        done = rig.line.run("doctor", "--no-engine", "--json")
        assert done.status == 1 and {"worker pc1-bad", "worker pc1-ending"} <= {
            finding["check"] for finding in done.json["findings"] if finding["level"] == "fail"
        }
    finally:
        for name in ("pc1-bad", "pc1-ending"):
            rig.page.post(f"/workers/{name}", method="DELETE")


def test_a_computer_that_loses_its_power_is_missed_until_it_is_forgotten_or_back(rig: PanelRig) -> None:
    far = rig.folder / "far"
    far.mkdir()
    workers = {"pc2-one": {"device": "cpu"}, "pc2-off": {"device": "cpu", "enabled": False}}
    (far / "workers.json").write_text(json.dumps({"workers": workers}))
    rig.line.environment.update(DC_HOST="pc2", DC_WORKERS_FILE=str(far / "workers.json"))
    try:
        up = rig.start("far.log", "up")
        rig.page.wait_worker("pc2-one", lambda worker: worker["state"] == "idle", 90)
        assert rig.page.state()["hosts"]["pc2"]["gone_ms"] == 0
        assert rig.page.ask("DELETE", "/hosts/pc2").status == 409, "it lives"
        os.killpg(up.pid, signal.SIGKILL)
        lost = rig.page.wait_worker("pc2-one", lambda worker: worker["state"] == "lost" and worker["since_ms"], 60)
        state = rig.page.state()
        gone = state["hosts"]["pc2"]
        assert gone["gone_ms"] == lost["since_ms"] and 0 < state["now_ms"] - gone["gone_ms"] < 60_000
        assert (gone["configurable"], lost["colour"], lost["orders"], lost["editable"]) == (False, "red", [], False)
        assert "pc2" in lost["reason"] and "distributed-comfy up" in lost["remedy"]
        assert state["workers"]["pc2-off"]["state"] == "disabled" and state["agent"] == "here"
        host = findings_of(rig)["host pc2"]
        assert host["level"] == "fail" and "pc2-one" in host["found"] and "distributed-comfy up" in host["remedy"]
        refused = rig.page.ask("POST", "/workers/pc2-one/orders", {"order": "start"})
        assert refused.status == 409 and "pc2" in refused.error["message"]
        assert "pc2 has not been heard of" in rig.line.run("hosts", "list").out
        assert rig.line.run("workers", "remove", "pc2-off").status == 0
        assert until(lambda: rig.page.worker("pc2-off") is None)
        assert "pc2" in rig.page.post("/hosts/pc2", method="DELETE")["text"]
        assert until(lambda: "pc2" not in (now := rig.page.state())["hosts"] and "pc2-one" not in now["workers"])
        assert rig.page.ask("DELETE", "/hosts/pc2").status == 409
        again = rig.start("far.log", "up")
        rig.page.wait_worker("pc2-one", lambda worker: worker["state"] == "idle", 90)
        assert rig.end(again) == 0
        assert until(lambda: "pc2" not in rig.page.state()["hosts"]), "after a farewell nobody misses it"
    finally:
        rig.line.environment.update(DC_HOST="pc1", DC_WORKERS_FILE=str(rig.folder / "workers.json"))


def test_a_comfyui_that_is_not_there_is_refused_by_the_host_and_can_be_set_right(rig: PanelRig) -> None:
    refused = rig.page.ask("PATCH", "/workers/pc1-one", {"fields": {"comfyui_path": "/nowhere/ComfyUI"}})
    assert refused.status == 400 and "is not ComfyUI's folder" in refused.error["fields"]["comfyui_path"]
    refused = rig.page.ask("POST", "/workers", {"name": "pc1-two", "fields": {"comfyui_python": "/nowhere/python"}})
    assert refused.status == 400 and "is not a program" in refused.error["fields"]["comfyui_python"]
    tree = comfyui_folder(rig.folder / "Another")
    rig.page.post("/workers/pc1-one", {"fields": {"comfyui_path": str(tree), "comfyui_python": sys.executable}}, method="PATCH")
    found = rig.page.wait_worker("pc1-one", lambda worker: worker["configuration"]["comfyui_path"] == str(tree))
    assert found["configuration"]["comfyui_python"] == sys.executable
    rig.page.post("/workers/pc1-one", {"fields": {"comfyui_path": None, "comfyui_python": None}}, method="PATCH")
    rig.page.wait_worker("pc1-one", lambda worker: worker["configuration"]["comfyui_path"] == "")


def test_a_worker_of_nobodys_agent_says_who_must_be_asked(rig: PanelRig) -> None:
    name = "pc1-by-hand"
    process = rig.start("hand.log", "worker", "--name", name)
    found = rig.page.wait_worker(name, lambda worker: worker["state"] == "idle", 90)
    assert found["keeper"] == "hand" and not found["editable"] and "stop" in found["orders"] and "restart" not in found["orders"]
    refused = rig.page.ask("POST", f"/workers/{name}/orders", {"order": "restart"})
    assert refused.status == 409 and "by hand" in refused.error["message"] and "distributed-comfy up" in refused.error["remedy"]
    assert rig.page.ask("PATCH", f"/workers/{name}", {"fields": {"tags": ["a"]}}).status == 409
    assert rig.page.post(f"/workers/{name}/orders", {"order": "stop"})["text"]
    assert process.wait(60) == 0
    assert until(lambda: rig.page.worker(name) is None)


def status_at(address: str, path: str, token: str) -> int:
    """How a server answers, whatever openapi.json says of it; a stream is not read."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path, headers={HEADER: token})
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_tunnel_is_opened_used_and_closed(rig: PanelRig) -> None:
    programs = rig.folder / "programs"
    stand_in(programs, WORDS, lives=True)
    with rig.page.events() as events:
        assert rig.page.post("/tunnel")["state"] in ("opening", "open")
        opened = events.wait(lambda state: state["tunnel"]["state"] == "open" and state["tunnel"])
        assert opened["url"] == "wss://four-dashed-word-url.trycloudflare.com"
        pid, _, arguments = (programs / "ran").read_text().partition(" ")
        port = re.search(r"http://127\.0\.0\.1:(\d+)", arguments)
        assert port and f":{port[1]}" not in rig.page.url  # a relay of its own, which has no panel
        relay = f"127.0.0.1:{port[1]}"
        assert status_at(relay, "/distributed/v2/health", rig.page.token) == 200
        asked = {each.url(name="pc1-one") for each in declared() if each.method == "GET" and each.name != "get_health"}
        assert status_at(rig.page.address, f"{PREFIX}/state", rig.page.token) == 200
        for path in (*asked, "/", UI_PATH, f"{UI_PATH}page.js"):
            assert status_at(relay, path, rig.page.token) == 404, path
        assert rig.page.ask("POST", "/tunnel").status == 409
        made = rig.page.post("/invites", {"name": "pod1", "tunnel": True})
        assert made["url"] == opened["url"]
        rig.page.post("/invites/pod1", method="DELETE")
        assert rig.page.post("/tunnel", method="DELETE")["state"] == "closed"
        assert until(lambda: not lives(int(pid)))
        events.wait(lambda state: state["tunnel"]["state"] == "closed")


def test_a_tunnel_whose_program_is_killed_is_said_to_have_ended_and_opened_again(rig: PanelRig) -> None:
    programs = rig.folder / "programs"
    stand_in(programs, WORDS, lives=True)
    with rig.page.events() as events:
        for _ in range(2):
            rig.page.post("/tunnel")
            events.wait(lambda state: state["tunnel"]["state"] == "open")
            os.kill(int((programs / "ran").read_text().partition(" ")[0]), signal.SIGKILL)
            ended = events.wait(lambda state: state["tunnel"]["state"] == "ended" and state["tunnel"])
            assert ended["url"] == "" and ended["error"]["code"] == "tunnel_ended"
            assert "signal 9" in ended["error"]["message"] and "Registered tunnel connection" in ended["error"]["message"]
            assert "open it again" in ended["error"]["remedy"]
        refused = rig.page.ask("POST", "/invites", {"name": "pod2", "tunnel": True})
        assert refused.status == 409 and refused.error["remedy"] == "open one first"
        assert rig.page.post("/tunnel", method="DELETE")["state"] == "closed"


def test_a_tunnel_that_fails_says_what_the_program_said(rig: PanelRig) -> None:
    stand_in(rig.folder / "programs", FAILS, lives=False)
    rig.page.post("/tunnel")
    failed = until(lambda: (found := rig.page.get("/tunnel"))["state"] == "failed" and found)
    assert failed["error"]["code"] == "tunnel_failed" and "no such host" in failed["error"]["message"] + failed["error"]["remedy"]

"""The panel of `serve` over HTTP, with an embedded Redis, an agent and workers on the CPU; each answer is compared with openapi.json."""
from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.settings import Settings
from tests.command_line import pictures, until
from tests.panel_contract import Declared, declared, with_bodies
from tests.panel_rig import HOST, PanelRig, merged, panel_rig

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]
GUARDED = [each for each in declared() if not each.is_open]


def named(each: Declared) -> str:
    return each.name


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelRig]:
    """Two workers; tests leave them running."""
    with panel_rig(tmp_path_factory.mktemp("panel")) as rig:
        rig.up(pc1_one={"device": "cpu"}, pc1_two={"device": "cpu", "tags": ["second"]})
        for name in ("pc1-one", "pc1-two"):
            rig.page.wait_worker(name, lambda worker: worker["state"] == "idle", 90)
        yield rig


def run_in_background(rig: PanelRig, prompt: Any, *options: str) -> str:
    """A job whose collector goes on by itself; its id."""
    done = rig.line.run("run", rig.line.write("graph.json", prompt), "--detach", "--json", *options)
    assert done.status == 0, done.err
    return str(done.json["job"])


def long(steps: int = 400, **inputs: Any) -> Any:
    """Each item takes some seconds."""
    return pictures(steps=steps, width=256, height=256, **inputs)


# -- who may ask ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("each", GUARDED, ids=named)
@pytest.mark.parametrize("token", ["", "x" * 43])
def test_no_route_answers_without_the_token(rig: PanelRig, each: Declared, token: str) -> None:
    answer = rig.page.ask(each.method, each.url(), {} if "requestBody" in each.operation else None, X_Distributed_Comfy_Token=token)
    assert (answer.status, answer.error["code"]) == (401, "token_wrong")


@pytest.mark.parametrize("each", GUARDED, ids=named)
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Host": "rebound.example.com"}],
    ids=["origin", "sandbox", "cross-site", "rebinding"],
)
def test_no_route_answers_a_page_of_another_site(rig: PanelRig, each: Declared, headers: dict[str, str]) -> None:
    answer = rig.page.ask(each.method, each.url(), {} if "requestBody" in each.operation else None, **headers)
    assert (answer.status, answer.error["code"]) == (403, "foreign_origin")


def test_a_secret_in_the_clear_from_elsewhere_is_refused(rig: PanelRig) -> None:
    answer = rig.page.ask("GET", "/state", X_Forwarded_Proto="http")
    assert answer.status == 403 and answer.error["code"] == "not_encrypted" and "https://" in answer.error["remedy"]
    assert rig.page.ask("GET", "/state", X_Forwarded_Proto="https").status == 200


@pytest.mark.parametrize("each", [each for each, _ in with_bodies()], ids=named)
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"unheard_of": 1}', b"\xff"], ids=["cut", "list", "unknown", "bytes"])
def test_a_body_that_makes_no_sense_changes_nothing(rig: PanelRig, each: Declared, body: bytes) -> None:
    answer = rig.page.ask(each.method, each.url(name="pc1-one", job="0" * 12), body)
    if each.name == "change_options" and body.startswith(b'{"'):  # `serve` is no master, whatever the body
        assert (answer.status, answer.error["code"]) == (404, "no_master")
    else:
        assert (answer.status, answer.error["code"]) == (400, "request_wrong")


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_the_token_is_printed_in_a_terminal_alone(rig: PanelRig) -> None:
    assert re.search(r"^Panel: http\S+/distributed/v2/ui/ .*`distributed-comfy comfyui token`", rig.said(), re.M)
    assert rig.page.token not in rig.said()
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed_comfy", "serve", "--port", "0"], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
        cwd=rig.folder, env=rig.line.environment, start_new_session=True,
    )  # fmt: skip
    try:
        said = b""
        while b"#token=" not in said or not said.endswith(b"\n"):
            said += os.read(controller, 4096)
        address = re.search(rb"^Panel: http\S+/distributed/v2/ui/#token=(\S+)", said, re.M)
        assert address and address[1].decode() == rig.page.token
    finally:
        assert rig.end(process) == 0
        os.close(controller)
        os.close(terminal)


def test_the_page_and_its_contract_are_open_and_nothing_beside_them(rig: PanelRig) -> None:
    assert rig.page.get("/openapi.json", X_Distributed_Comfy_Token="")["openapi"] == "3.1.0"
    assert rig.page.get("/health", X_Distributed_Comfy_Token="")["servers"] == {"state": True, "blobs": True}


# -- the state -----------------------------------------------------------------------------------------------------------
def test_the_state_has_hosts_workers_and_servers(rig: PanelRig) -> None:
    state = rig.page.state()
    assert (state["kind"], state["host"], state["master"]) == ("serve", HOST, None)
    assert state["servers"]["embedded"] and state["servers"]["state"]["up"] and state["servers"]["blobs"]["up"]
    assert state["hosts"][HOST]["workers"] == ["pc1-one", "pc1-two"] and state["hosts"][HOST]["configurable"]
    worker = state["workers"]["pc1-two"]
    assert (worker["colour"], worker["keeper"], worker["tags"], worker["engine"]) == ("green", "agent", ["second"], "builtin")
    assert {"stop", "drain", "probe"} <= set(worker["orders"]) and worker["editable"]
    assert rig.page.get("/hosts")["hosts"].keys() == {HOST}


def test_a_stream_tells_everything_then_only_what_changed(rig: PanelRig) -> None:
    with rig.page.events() as events:
        events.wait(lambda state: state["workers"]["pc1-one"]["state"] == "idle")
        rig.page.post("/workers/pc1-one/orders", {"order": "drain"})
        events.wait(lambda state: state["workers"]["pc1-one"]["state"] == "drained")
        drained = events.state["workers"]["pc1-one"]
        assert drained["colour"] == "yellow" and "resume" in drained["orders"] and drained["remedy"]
        rig.page.post("/workers/pc1-one/orders", {"order": "resume"})
        events.wait(lambda state: state["workers"]["pc1-one"]["state"] == "idle")
        names = [name for name, _, _ in events.told]
        assert names[0] == "snapshot" and set(names[1:]) == {"change"}
        assert [what for change in needless(events.told) for what in change] == []
        times = [at for _, _, at in events.told[1:]]
        assert all(len([1 for other in times if 0 <= other - at < 1]) <= 5 for at in times)
        reached = dict(events.state)
    now = rig.page.state()
    assert {name: worker["state"] for name, worker in reached["workers"].items()} == {
        name: worker["state"] for name, worker in now["workers"].items()
    }


def needless(told: list[tuple[str, Any, float]]) -> Iterator[list[str]]:
    """What each change told that the page knew already."""
    known = told[0][1]
    for _, change, _ in told[1:]:
        rows = [(table, name) for table in ("hosts", "workers", "jobs") for name in change.get(table, {})]
        yield [
            *[f"{table} {name}" for table, name in rows if known[table].get(name) == change[table][name]],
            *[part for part in ("servers", "master", "invites", "tunnel") if part in change and known[part] == change[part]],
        ]
        known = merged(known, change)


# -- workers -------------------------------------------------------------------------------------------------------------
def test_a_worker_is_added_changed_told_and_removed(rig: PanelRig) -> None:
    answer = rig.page.post("/workers", {"name": "pc1-three", "fields": {"device": "cpu", "enabled": False, "comfyui_args": "--lowvram"}})
    assert (answer["worker"], answer["host"]) == ("pc1-three", HOST)
    found = rig.page.wait_worker("pc1-three", lambda worker: worker["state"] == "disabled")
    assert found["configuration"]["comfyui_args"] == ["--lowvram"] and found["colour"] == "grey" and found["orders"] == ["enable"]
    rig.page.post("/workers/pc1-three", {"fields": {"tags": ["a", "b"], "comfyui_args": None}}, method="PATCH")
    found = rig.page.wait_worker("pc1-three", lambda worker: worker["configuration"]["tags"] == ["a", "b"])
    assert found["configuration"]["comfyui_args"] == []
    refused = rig.page.ask("POST", "/workers/pc1-three/orders", {"order": "start"})
    assert refused.status == 409 and "disabled" in refused.error["message"] and refused.error["remedy"]
    rig.page.post("/workers/pc1-three", method="DELETE")
    assert until(lambda: rig.page.worker("pc1-three") is None)


def test_a_worker_without_a_name_gets_one(rig: PanelRig) -> None:
    answer = rig.page.post("/workers", {"fields": {"device": "cpu", "enabled": False}})
    assert answer["worker"].startswith("pc1-cpu")
    rig.page.post(f"/workers/{answer['worker']}", method="DELETE")
    assert until(lambda: rig.page.worker(answer["worker"]) is None)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"device": "gpu0"}, "device", "cuda:0"), ({"threads": -1}, "threads", "0 to 1024"),
        ({"threads": "two"}, "threads", "whole number"),
        ({"tags": ["a b"]}, "tags", "without spaces"), ({"comfyui_args": 'x "'}, "comfyui_args", "shell"),
        ({"engine": "other"}, "engine", "comfyui"), ({"cores": [-1]}, "cores", "CPU numbers"), ({"colour": "red"}, "colour", "not a field"),
        ({"environment": {"DC_REDIS_URL": "x"}}, "environment", "share it"), ({"comfyui_url": "nonsense"}, "comfyui_url", "http"),
    ],
)  # fmt: skip
def test_bad_fields_are_each_told_what_they_must_be(rig: PanelRig, fields: dict[str, Any], field: str, words: str) -> None:
    for method, path in (("POST", "/workers"), ("PATCH", "/workers/pc1-one")):
        answer = rig.page.ask(method, path, {"fields": {**fields, "threads": fields.get("threads", 1)}})
        assert (answer.status, answer.error["code"]) == (400, "worker_fields_wrong")
        assert list(answer.error["fields"]) == [field] and words in answer.error["fields"][field]
    assert rig.page.worker("pc1-one")


def test_a_name_that_cannot_be_is_refused_with_one_that_can(rig: PanelRig) -> None:
    answer = rig.page.ask("POST", "/workers", {"name": "My GPU!", "fields": {"device": "cpu"}})
    assert answer.status == 400 and "my-gpu" in answer.error["fields"]["name"]


def test_an_unknown_worker_and_an_unknown_order_are_refused(rig: PanelRig) -> None:
    for order in ("start", "drain", "probe", "look"):
        answer = rig.page.ask("POST", "/workers/nobody/orders", {"order": order})
        assert (answer.status, answer.error["code"]) == (404, "worker_unknown")
    answer = rig.page.ask("POST", "/workers/pc1-one/orders", {"order": "explode"})
    assert answer.status == 400 and "probe" in answer.error["fields"]["order"]
    assert rig.page.ask("GET", "/workers/..%2f..%2fetc/log").status == 404
    assert rig.page.ask("POST", "/workers", {"host": "nowhere", "fields": {"device": "cpu"}}).status == 503


def test_a_probe_gives_one_worker_an_item(rig: PanelRig) -> None:
    answer = rig.page.post("/workers/pc1-one/orders", {"order": "probe"})
    assert (answer["finding"]["level"], answer["finding"]["worker"]) == ("ok", "pc1-one"), answer
    assert "came back right" in answer["text"]


def test_all_workers_are_told_at_once(rig: PanelRig) -> None:
    for order in ("clear-memory", "look"):
        answer = rig.page.post("/orders", {"order": order})
        assert set(answer["told"]) == {"pc1-one", "pc1-two"} and not answer["refused"] and not answer["master"]
    assert rig.page.post("/orders", {"order": "look", "host": "elsewhere"})["told"] == {}


def test_a_killed_worker_goes_red_with_a_reason_then_green(rig: PanelRig) -> None:
    with rig.page.events() as events:
        before = rig.page.wait_worker("pc1-two", lambda worker: worker["state"] == "idle")
        os.kill(before["pid"], signal.SIGKILL)
        red = events.wait(lambda state: (found := state["workers"]["pc1-two"])["colour"] == "red" and found)
        assert "signal 9" in red["reason"] and "starts again by itself" in red["remedy"] and "out of memory" in red["remedy"]
        green = events.wait(lambda state: (found := state["workers"]["pc1-two"])["colour"] == "green" and found, 90)
        assert green["pid"] != before["pid"] and green["restarts"] >= 1


# -- logs ----------------------------------------------------------------------------------------------------------------
def test_a_log_is_read_searched_followed_and_saved(rig: PanelRig) -> None:
    found = rig.page.get("/workers/pc1-one/log")
    assert found["lines"] and found["last_id"] == found["lines"][-1]["id"]
    assert len(rig.page.get("/workers/pc1-one/log?lines=1")["lines"]) == 1
    word = found["lines"][0]["text"].split()[0]
    chosen = rig.page.get(f"/workers/pc1-one/log?search={word.upper()}")
    assert chosen["lines"] and all(word.lower() in line["text"].lower() for line in chosen["lines"])
    assert rig.page.get("/workers/pc1-one/log?search=%00nothing")["lines"] == []
    assert all(line["source"] == "worker" for line in rig.page.get("/workers/pc1-one/log?source=worker")["lines"])
    file = rig.page.ask("GET", "/workers/pc1-one/log/file")
    assert "attachment" in file.headers["Content-Disposition"] and word in file.content.decode()
    with rig.page.events(f"/workers/pc1-one/log/stream?after={found['last_id']}") as events:
        rig.page.post("/workers/pc1-one/orders", {"order": "probe"})
        until(lambda: any(name == "lines" for name, _, _ in events.told))
    assert rig.page.ask("GET", "/workers/nobody/log").status == 404
    for lines in ("x", "0", "-1", "20001", "1" + 30 * "0"):
        assert rig.page.ask("GET", f"/workers/pc1-one/log?lines={lines}").status == 400
    assert rig.page.ask("GET", "/workers/pc1-one/log?level=LOUD").status == 400


# -- jobs ----------------------------------------------------------------------------------------------------------------
def test_a_job_is_watched_from_the_queue_to_its_files(rig: PanelRig) -> None:
    job_id = run_in_background(rig, long(300, seed=7), "--items", "4", "--out", "made")
    with rig.page.events(f"/events?job={job_id}") as events:
        events.wait(lambda state: state["jobs"].get(job_id, {}).get("state") == "running")
        busy = events.wait(lambda state: [each for worker in state["workers"].values() for each in worker["items"] if each["maximum"]])
        assert busy[0]["job"] == job_id and busy[0]["kind"] == "generate"
        shown = events.wait(lambda state: [each for worker in state["workers"].values() for each in worker["items"] if each["preview"]])
        live = rig.page.ask("GET", f"/jobs/{job_id}/items/{shown[0]['index']}/preview?number={shown[0]['preview']}")
        assert live.status == 200 and Image.open(io.BytesIO(live.content)).width > 0
        done = events.wait(lambda state: [each for each in state["items"].get(job_id, {}).values() if each["state"] == "done"])
        assert done[0]["seconds"] > 0 and done[0]["seed"] in map(str, range(7, 11))
        events.wait(lambda state: state["jobs"][job_id]["state"] == "done", 120)
        events.wait(lambda state: all(each["state"] == "done" for each in state["items"][job_id].values()))
    until(lambda: len(rig.page.get(f"/jobs/{job_id}/results")["results"]) == 4)
    until(lambda: rig.page.get(f"/jobs/{job_id}/results")["complete"])
    detail = rig.page.get(f"/jobs/{job_id}")
    assert [each["item"] for each in detail["results"]] == [0, 1, 2, 3]  # by the seeds in them: the spool is gone
    path = f"/jobs/{job_id}/results/{detail['results'][0]['path']}"
    assert detail["job"]["counts"]["done"] == 4 and detail["job"]["mine"] and detail["job"]["orders"] == []
    assert detail["results_here"] and [each["state"] for each in detail["items"]] == ["done"] * 4
    picture = rig.page.ask("GET", path)
    assert picture.headers["Content-Type"] == "image/png" and Image.open(io.BytesIO(picture.content)).size == (256, 256)
    assert "attachment" in rig.page.ask("GET", f"{path}?download=1").headers["Content-Disposition"]
    small = rig.page.ask("GET", f"{path}?side=64")
    assert small.headers["Content-Type"] == "image/png" and Image.open(io.BytesIO(small.content)).size == (64, 64)
    assert [rig.page.ask("GET", f"{path}?side={side}").error["code"] for side in ("9000", "x", "")] == ["request_wrong"] * 3
    Path(detail["results_folder"], "words.png").write_text("no picture")
    wrong = rig.page.ask("GET", f"/jobs/{job_id}/results/words.png?side=64")
    assert (wrong.status, wrong.error["code"]) == (400, "picture_unreadable")


def test_results_cannot_leave_their_folder(rig: PanelRig) -> None:
    job_id = run_in_background(rig, pictures(seed=70), "--items", "1", "--out", "confined")
    until(lambda: rig.page.get(f"/jobs/{job_id}/results")["results"])
    out = rig.folder / "confined"
    (rig.folder / "secret.txt").write_text("secret")
    (out / "link.png").symlink_to(rig.folder / "secret.txt")
    (out / "inside").symlink_to(rig.folder)
    paths = (
        "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "link.png", "inside/secret.txt", "/etc/passwd", "%2fetc%2fpasswd",
        ".distributed-comfy/x", "..%5csecret.txt", "a%00.png",
    )  # fmt: skip
    for path in paths:
        answer = rig.page.ask("GET", f"/jobs/{job_id}/results/{path}")
        assert (answer.status, answer.error["code"]) == (404, "result_not_here"), path
        small = rig.page.ask("GET", f"/jobs/{job_id}/results/{path}?side=64")
        assert (small.status, small.error["code"]) == (404, "result_not_here"), path
    assert rig.page.ask("GET", "/jobs/000000000000/results/x.png").status == 404


def test_jobs_are_steered(rig: PanelRig) -> None:
    first = run_in_background(rig, long(600, seed=20), "--items", "4", "--out", "first")
    second = run_in_background(rig, long(600, seed=30), "--items", "2", "--out", "second")
    with rig.page.events() as events:
        waiting = events.wait(lambda state: (job := state["jobs"].get(second)) and job["state"] == "pending" and job["position"] and job)
        assert waiting["position"] >= 1
        assert rig.page.post(f"/jobs/{first}/orders", {"order": "pause"})["job"]["state"] == "paused"
        assert rig.page.post(f"/jobs/{first}/orders", {"order": "resume"})["job"]["state"] in ("running", "pending")
        assert rig.page.post(f"/jobs/{second}/orders", {"order": "priority", "priority": 9})["job"]["priority"] == 9
        before = rig.page.get(f"/jobs/{first}")["owner"]
        cancelled = rig.page.post(f"/jobs/{first}/orders", {"order": "cancel", "reason": "not wanted"})["job"]
        assert (cancelled["state"], cancelled["reason"], cancelled["orders"]) == ("cancelled", "not wanted", ["retry"])
        events.wait(lambda state: state["jobs"][first]["state"] == "cancelled")
        assert rig.page.ask("POST", f"/jobs/{first}/orders", {"order": "pause"}).status == 409
        assert rig.page.post(f"/jobs/{first}/orders", {"order": "retry"})["job"]["state"] != "cancelled"
        until(lambda: rig.page.get(f"/jobs/{first}")["owner"] not in ("", before), 60)  # somebody else collects it
        assert rig.page.ask("POST", f"/jobs/{first}/orders", {"order": "collect"}).status == 409
        ended = rig.page.post("/master/interrupt", {"what": "job", "job": first})
        assert ended["jobs"] == [first]
        ended = rig.page.post("/master/interrupt", {"what": "mine"})
        assert first not in ended["jobs"] and not ended["refused"]
        events.wait(lambda state: state["jobs"][second]["state"] in ("cancelled", "done"))
    listed = rig.page.get("/jobs?state=cancelled&limit=1")
    assert listed["total"] >= 1 and len(listed["jobs"]) == 1
    for body in ({"order": "priority", "priority": 12}, {"order": "priority"}, {"order": "explode"}):
        assert rig.page.ask("POST", f"/jobs/{first}/orders", body).status == 400
    for unknown in ("000000000000", "x", "active", "0" * 12 + ":item", "*", "%00"):
        assert rig.page.ask("POST", f"/jobs/{unknown}/orders", {"order": "pause"}).status == 404
        assert rig.page.ask("GET", f"/jobs/{unknown}").status == 404
        assert unknown == "0" * 12 or rig.page.ask("GET", f"/events?job={unknown}").status == 404
    with rig.page.events("/events?job=000000000000") as events:  # a page that shows a job which expires goes on
        events.wait(lambda state: state["items"] == {"000000000000": {}} and state["workers"])
    for path in ("/jobs?state=odd", "/jobs?limit=0", f"/jobs/{first}/items/a/preview", f"/jobs/{first}/items/0/preview?side=1"):
        assert rig.page.ask("GET", path).status == 400, path


def test_a_job_that_is_tried_again_ends_with_its_files_where_they_belong(rig: PanelRig) -> None:
    job_id = run_in_background(rig, long(300, seed=50), "--items", "3", "--out", "again")
    until(lambda: rig.page.get(f"/jobs/{job_id}")["job"]["counts"]["done"] >= 1)
    rig.page.post(f"/jobs/{job_id}/orders", {"order": "cancel"})
    until(lambda: not rig.page.get(f"/jobs/{job_id}")["owner"])
    rig.page.post(f"/jobs/{job_id}/orders", {"order": "retry"})
    until(lambda: rig.page.get(f"/jobs/{job_id}")["job"]["state"] == "done", 120)
    until(lambda: len(list((rig.folder / "again").glob("*.png"))) >= 3)


def test_a_job_that_nobody_collects_is_taken_over(rig: PanelRig) -> None:
    graph = rig.line.write("graph.json", long(300, seed=60))
    done = rig.line.run("run", graph, "--items", "12", "--out", "left", "--detach", "--json", DC_OWNER_TTL_S="2")
    os.kill(done.json["pid"], signal.SIGKILL)
    job_id = done.json["job"]
    with rig.page.events() as events:
        parked = events.wait(lambda state: (job := state["jobs"].get(job_id)) and job["state"] == "parked" and job)
        assert "collect" in parked["orders"] and parked["remedy"]
        rig.page.post(f"/jobs/{job_id}/orders", {"order": "collect"})
        events.wait(lambda state: state["jobs"][job_id]["state"] == "done", 120)
    until(lambda: len(list((rig.folder / "left").glob("*.png"))) == 12)


def test_a_failed_job_tells_node_and_traceback(rig: PanelRig) -> None:
    prompt = pictures(seed=90)
    prompt["load"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    prompt["collect"]["inputs"]["images"] = ["load", 0]
    (rig.folder / "broken.png").write_bytes(b"\x89PNG no picture")
    job_id = run_in_background(rig, prompt, "--items", "1", "--out", "failed")
    until(lambda: rig.page.get(f"/jobs/{job_id}")["job"]["state"] == "failed")
    detail = rig.page.get(f"/jobs/{job_id}")
    assert detail["error"]["node_id"] == "load" and detail["error"]["node_class"] == "LoadImage" and detail["error"]["worker"]
    assert "Error" in detail["error"]["traceback"] and detail["job"]["reason"] and detail["items"][0]["error"]["node_id"] == "load"
    nothing = rig.page.ask("GET", f"/jobs/{job_id}/items/0/preview")
    assert (nothing.status, nothing.error["code"]) == (404, "picture_not_here")


# -- the cluster ---------------------------------------------------------------------------------------------------------
def test_a_host_is_invited_and_shut_out(rig: PanelRig) -> None:
    made = rig.page.post("/invites", {"name": "pc2", "bind": "127.0.0.7"})
    assert made["command"].startswith("distributed-comfy up --join ") and made["host"] == "pc2"
    assert [each["host"] for each in rig.page.get("/invites")["invites"]] == ["pc2"]
    assert until(lambda: rig.page.state()["invites"] == 1)
    again = rig.page.ask("POST", "/invites", {"name": "pc2", "bind": "127.0.0.7"})
    assert again.status == 400 and "already" in again.error["message"]
    assert rig.page.ask("POST", "/invites", {"name": "pc3", "expires_s": 1}).status == 400
    assert rig.page.ask("POST", "/invites", {"name": "pc3", "tunnel": True}).status == 409
    rig.page.post("/invites/pc2", method="DELETE")
    assert rig.page.get("/invites")["invites"] == []
    assert rig.page.ask("DELETE", "/invites/pc2").status == 404


def test_the_doctor_reports_with_a_probe_for_each_worker(rig: PanelRig) -> None:
    for name in ("pc1-one", "pc1-two"):
        rig.page.wait_worker(name, lambda worker: worker["state"] == "idle", 90)
    report = rig.page.post("/doctor", {}, timeout_s=120)
    found = {each["worker"]: each for each in report["findings"] if each["worker"]}
    assert found["pc1-one"]["level"] == "ok" and "probe" in found["pc1-one"]["found"] and "pc1-two" in found


def test_a_gpu_config_is_taken_over(rig: PanelRig) -> None:
    text = """{"workers": [{"name": "Old One", "cuda_device": 0, "port": 8190, "extra_args": "--lowvram", "enabled": false},
        {"name": "far", "host": "10.0.0.9", "port": 8190}], "settings": {"debug": true}}"""
    looked = rig.page.post("/import", {"text": text, "dry_run": True})
    assert list(looked["workers"]) == ["old-one"] and looked["workers"]["old-one"]["comfyui_args"] == ["--lowvram"]
    assert rig.page.worker("old-one") is None
    told = {each["place"]: each["why"] for each in looked["dropped"]}
    assert any("invite" in why for why in told.values()) and "settings: debug" in told
    assert rig.page.post("/import", {"text": text})["workers"]
    assert rig.page.wait_worker("old-one", lambda worker: worker["state"] == "disabled")["device"] == "cuda:0"
    again = rig.page.post("/import", {"text": text})
    assert again["workers"] == {} and any("remove it first" in each["why"] for each in again["dropped"])
    rig.page.post("/workers/old-one", method="DELETE")
    wrong = rig.page.ask("POST", "/import", {"text": "no json"})
    assert (wrong.status, wrong.error["code"]) == (400, "import_refused")


def test_what_a_master_alone_has_is_said_to_be_absent(rig: PanelRig) -> None:
    for method, body in (("GET", None), ("PATCH", {"debug": True})):
        answer = rig.page.ask(method, "/master", body)
        assert (answer.status, answer.error["code"]) == (404, "no_master")


def test_arguments_and_timeouts_are_explained(rig: PanelRig) -> None:
    arguments = {each["argument"]: each for each in rig.page.get("/extra-arguments")["arguments"]}
    assert arguments["--reserve-vram"]["value"] == "2" and "--highvram" in arguments["--lowvram"]["excludes"]
    settings = {each["name"]: each for each in rig.page.get("/settings")["settings"]}
    assert settings["DC_LEASE_TTL_S"]["value"] == 3.0 and settings["DC_LEASE_TTL_S"]["default"] == 6.0
    assert all(each["words"] for each in settings.values())
    refused = rig.page.ask("PATCH", "/settings", {"changes": {"DC_JOB_TTL_S": 1, "DC_LEASE_TTL_S": 9}})
    assert refused.status == 400 and refused.error["fields"].keys() == {"DC_JOB_TTL_S", "DC_LEASE_TTL_S"}
    refused = rig.page.ask("PATCH", "/settings", {"changes": {"DC_JOB_TTL_S": 600}})  # DC_CONFIG is /dev/null here
    assert (refused.status, refused.error["code"]) == (400, "setting_invalid") and not Path(os.devnull).is_file()


def test_nothing_is_read_while_nobody_looks(rig: PanelRig) -> None:
    settings = Settings(host=HOST, runtime_dir=rig.folder / "runtime", cache_dir=rig.folder / "cache")
    with redis_servers(settings) as servers, redis.Redis.from_url(servers.redis_url) as client:
        with rig.page.events() as events:
            events.wait(lambda state: state["workers"])
            assert looks(client, 3)
        assert until(lambda: looks(client, 3) == 0, 60)  # a stream that has gone is noticed by its next word, and the thread lingers then
        assert looks(client, 3) == 0
        assert rig.page.state()["workers"] and looks(client, 1)


def looks(client: redis.Redis, seconds: float) -> int:
    """How often a panel looked meanwhile, by a command that is in each of its looks, and that no script, worker or agent sends."""

    def calls() -> int:
        stats: Any = client.info("commandstats")
        return int(stats.get("cmdstat_mget", {}).get("calls", 0))

    before = calls()
    time.sleep(seconds)
    return calls() - before


def test_log_of_serve_has_no_faults(rig: PanelRig) -> None:
    assert "please report" not in rig.said() and "Traceback" not in rig.said(), rig.said()[-3000:]
    assert Path(rig.folder / "serve.log").exists()

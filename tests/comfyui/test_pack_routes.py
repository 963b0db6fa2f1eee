"""The pack's routes and those of ComfyUI-Distributed on a real ComfyUI: who may use them, what they do, and what is refused."""
from __future__ import annotations

import json
import re
import shutil
import stat
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.panel.token import HEADER
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import CommandLine

WORKER = "pc1-cpu"
PLAIN = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "plain"}},
}
"""Without nodes of ours."""


@pytest.fixture(scope="module")
def running(
    comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A ComfyUI with one worker that nobody has started."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("routes")))
    workers = server.line.folder / "home" / ".config" / "distributed-comfy" / "workers.json"
    workers.parent.mkdir(parents=True)
    workers.write_text(json.dumps({"workers": {WORKER: {"device": "cpu", "engine": "builtin"}}}))
    shutil.copy(Path(__file__).with_name("listed_routes.py"), server.base / "custom_nodes")
    server.start(DC_HOST="pc1")
    server.wait_ready()
    server.until(lambda: server.status()["host"]["agent"] == "here")
    yield server
    server.close()


@pytest.fixture
def token(running: ComfyServer) -> str:
    """As a script on this host finds it."""
    found = running.line.run("comfyui", "token")
    assert found.status == 0, found.err
    return found.out.strip()


def with_token(running: ComfyServer, token: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """A request with the token."""
    return running.ask(method, path, body, **{HEADER.replace("-", "_"): token}, **headers)


def local_phase(running: ComfyServer) -> str:
    """What the worker does."""
    return str(running.status()["host"]["workers"][0]["phase"])


# -- the token -----------------------------------------------------------------------------------------------------------
def test_the_own_page_on_this_host_is_given_the_token_and_the_file_is_private(running: ComfyServer, token: str) -> None:
    path = running.line.folder / "home" / ".config" / "distributed-comfy" / "comfyui.token"
    assert path.read_text().strip() == token and stat.S_IMODE(path.stat().st_mode) == 0o600
    given = running.post("/distributed_comfy/token", Origin=running.url, Sec_Fetch_Site="same-origin")
    assert given == (200, {"token": token})
    localhost = running.url.replace("127.0.0.1", "localhost")
    assert running.post("/api/distributed_comfy/token", Origin=localhost, Host=localhost.removeprefix("http://"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "{own}", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "{own}", "Sec_Fetch_Site": "none"},
        {"Origin": "http://evil.example:{port}", "Host": "evil.example:{port}"},
        {"Origin": "http://192.168.7.7:{port}", "Host": "192.168.7.7:{port}"},
        {"Origin": "{own}", "X_Forwarded_For": "203.0.113.9"},
        {"Origin": "{own}", "Via": "1.1 tunnel"},
    ],
    ids=["script", "null", "foreign", "other port", "cross-site", "typed", "rebound", "by address", "forwarded", "proxied"],
)
def test_nobody_else_is_given_the_token(running: ComfyServer, headers: dict[str, str]) -> None:
    port = running.url.rpartition(":")[2]
    status, answer = running.post(
        "/distributed_comfy/token", **{name: value.format(own=running.url, port=port) for name, value in headers.items()}
    )
    # Of a page that posts from another port or site ComfyUI itself refuses some, with an answer of its own.
    assert status == 403 and "token" not in (answer if isinstance(answer, dict) else {}), answer


CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "/distributed_comfy/options", {"debug": True}),
    ("POST", "/distributed_comfy/clear_memory", {}),
    ("POST", "/distributed_comfy/workers", {"name": "evil", "fields": {"comfyui_python": "/bin/sh"}}),
    ("POST", f"/distributed_comfy/workers/{WORKER}/start", {}),
    ("POST", f"/distributed_comfy/workers/{WORKER}/edit", {"fields": {"comfyui_args": ["--x"]}}),
    ("GET", f"/distributed_comfy/workers/{WORKER}/log", None),
    ("POST", "/distributed_comfy/jobs/j1/cancel", {}),
    ("POST", "/distributed_comfy/invites", {"name": "evil"}),
    ("GET", "/distributed_comfy/invites", None),
    ("POST", "/distributed_comfy/invites/pc2/revoke", {}),
    ("POST", "/distributed/config/update_worker", {"worker_id": "evil", "cuda_device": 0, "extra_args": "--listen; touch /tmp/x"}),
    ("POST", "/distributed/config/update_worker", {"worker_id": WORKER, "extra_args": "--extra-model-paths-config /etc/passwd"}),
    ("POST", "/distributed/config/delete_worker", {"worker_id": WORKER}),
    ("POST", "/distributed/config/update_setting", {"key": "debug", "value": True}),
    ("POST", "/distributed/launch_worker", {"worker_id": WORKER}),
    ("POST", "/distributed/stop_worker", {"worker_id": WORKER}),
    ("POST", "/distributed/clear_memory", {}),
    ("GET", f"/distributed/worker_log/{WORKER}", None),
    ("GET", f"/distributed/remote_worker_log/{WORKER}", None),
]
"""All that launches, changes or reads."""


@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=[f"{number} {path}" for number, (_, path, _) in enumerate(CHANGES)])
def test_without_the_token_nothing_is_launched_changed_or_read(
    running: ComfyServer, token: str, method: str, path: str, body: Any
) -> None:
    config = running.line.folder / "home" / ".config" / "distributed-comfy"
    before = {file.name: file.read_bytes() for file in config.iterdir()}
    key = HEADER.replace("-", "_")
    for headers, expected in (
        ({}, 401),
        ({key: "x" * 43}, 401),
        ({key: "\u00e4".encode().decode("latin-1")}, 401),
        ({key: token, "Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}, 403),
        ({key: token, "Host": "evil.example:8188"}, 403),
    ):
        for place in ("", "/api"):
            status, answer = running.ask(method, place + path, body, **headers)
            assert status == expected, (headers, status, answer)
    assert {file.name: file.read_bytes() for file in config.iterdir()} == before
    assert local_phase(running) == "stopped"


@pytest.mark.parametrize(
    "path",
    ["/distributed_comfy/status", "/distributed_comfy/workers", "/distributed_comfy/jobs", "/distributed/config",
     "/distributed/network_info", "/distributed/local-worker-status"],
)  # fmt: skip
def test_pages_of_other_sites_and_rebound_names_may_not_even_look(running: ComfyServer, path: str) -> None:
    assert running.ask("GET", path)[0] == 200
    assert running.ask("GET", path, Origin="https://evil.example")[0] == 403
    assert running.ask("GET", path, Sec_Fetch_Site="cross-site")[0] == 403
    assert running.ask("GET", path, Host="evil.example:8188")[0] == 403
    assert running.ask("GET", path, Host="")[0] in (400, 403)


OF_THE_SITE = {
    "GET /distributed_comfy/status", "GET /distributed_comfy/options", "GET /distributed_comfy/workers", "GET /distributed_comfy/jobs",
    "POST /distributed/queue", "GET /distributed/queue_status/{job_id}", "GET /distributed/config", "GET /distributed/managed_workers",
    "GET /distributed/local-worker-status", "GET /distributed/network_info", "GET /distributed/system_info",
    "POST /distributed/load_image", "POST /distributed/check_file", "GET /distributed_comfy/attach",
}  # fmt: skip
"""For scripts and this ComfyUI's pages, without the token."""
FOR_ALL = {
    "GET /distributed/v2/health", "GET /distributed/v2/relay/{database}", "GET /distributed/v2/openapi.json",
    "GET /distributed/v2/ui", "GET /distributed/v2/ui/", "GET /distributed/v2/ui/{name}",
}  # fmt: skip
"""The page's files, and where invited hosts come in with a password of their own."""
OF_THE_OWN_PAGE = {"POST /distributed_comfy/token"}


def routes_of_the_pack(running: ComfyServer) -> dict[str, list[str]]:
    """All that ComfyUI's server has of us: method and path, and the same with ComfyUI's prefix."""
    found: dict[str, list[str]] = {}
    for method, path, module in running.get("/probe/routes"):
        if module.partition(".")[0] == "distributed_comfy":
            assert method != "*", path
            found.setdefault(f"{method.replace('HEAD', 'GET')} {path.removeprefix('/api')}", []).append(f"{method} {path}")
    return found


def test_every_route_that_is_not_known_to_be_open_wants_the_token(running: ComfyServer, token: str) -> None:
    """A new one belongs to these as long as nobody writes it down above."""
    routes = routes_of_the_pack(running)
    assert {module for name in routes for module in ("/distributed_comfy/", "/distributed/v2/", "/distributed/") if module in name} == {
        "/distributed_comfy/", "/distributed/v2/", "/distributed/",
    }  # fmt: skip
    not_there = (OF_THE_SITE | FOR_ALL | OF_THE_OWN_PAGE) - routes.keys()
    assert not not_there
    wrong = []
    for name in routes.keys() - FOR_ALL:
        expected = 403 if name in OF_THE_OWN_PAGE else 401
        for method, path in (route.split(" ") for route in routes[name]):
            path = re.sub(r"\{[^}]*\}", "x", path)
            body = None if method in ("GET", "HEAD") else {}
            if name not in OF_THE_SITE and (status := running.ask(method, path, body)[0]) != expected:
                wrong.append(f"{method} {path}: {status} without the token")
            foreign = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
            if (status := with_token(running, token, method, path, body, **foreign)[0]) != 403:
                wrong.append(f"{method} {path}: {status} for a page of another site")
    assert not wrong


def test_logs_are_read_by_a_workers_name_and_never_by_a_path(running: ComfyServer, token: str) -> None:
    secret = running.line.folder / "secret.log"
    secret.write_text("the secret")
    names = ("../secret", str(secret), "..%2f..%2fsecret", "....//secret", f"{WORKER}/../../secret", "%2e%2e", "PC1-CPU")
    for name in names:
        for path in ("/distributed/worker_log/", "/distributed/remote_worker_log/", "/distributed_comfy/workers/"):
            end = "/log" if path.endswith("workers/") else ""
            status, answer = with_token(running, token, "GET", path + urllib.parse.quote(name, safe="%") + end)
            assert status == 404 and "the secret" not in str(answer), (name, answer)


def test_files_are_not_read_by_path_any_more(running: ComfyServer, token: str) -> None:
    for path in ("/distributed/load_image", "/distributed/check_file"):
        for headers in ({}, {HEADER.replace("-", "_"): token}):
            status, answer = running.post(path, {"image_path": "/etc/passwd", "filename": "../../etc/passwd"}, **headers)
            assert status == 410 and "/upload/image" in answer["error"]


# -- what they do --------------------------------------------------------------------------------------------------------
def test_options_workers_logs_and_jobs_by_the_packs_routes(running: ComfyServer, token: str) -> None:
    ask: Callable[..., tuple[int, Any]] = lambda *given: with_token(running, token, *given)  # noqa: E731
    assert ask("POST", "/distributed_comfy/options", {"participate": False})[1]["participate"] is False
    assert running.get("/distributed_comfy/options")["participate"] is False
    assert ask("POST", "/distributed_comfy/options", {"participate": True})[0] == 200
    status, answer = ask("POST", "/distributed_comfy/options", {"participat": True})
    assert status == 400 and answer["code"] == "option_wrong" and "did you mean participate" in answer["error"]

    assert ask("POST", f"/distributed_comfy/workers/{WORKER}/start", {})[0] == 200
    running.until(lambda: [worker["name"] for worker in running.get("/distributed_comfy/workers")["cluster"]] == [WORKER])
    running.until(lambda: local_phase(running) == "running")
    running.until(lambda: ask("GET", f"/distributed_comfy/workers/{WORKER}/log?lines=5")[1].get("lines"))
    assert ask("POST", f"/distributed_comfy/workers/{WORKER}/format", {})[0] == 400
    assert ask("POST", f"/distributed_comfy/workers/{WORKER}/stop", {"signal": 9})[0] == 400
    assert ask("POST", "/distributed_comfy/workers/nobody/start", {})[0] == 404
    assert ask("POST", "/distributed_comfy/clear_memory", {}) == (200, {"workers": [WORKER]})

    assert ask("POST", f"/distributed_comfy/workers/{WORKER}/drain", {})[0] == 200
    line = running.line.run("jobs", "list", "--json")
    assert line.status == 0 and running.get("/distributed_comfy/jobs")["jobs"] == []
    assert ask("POST", "/distributed_comfy/jobs/nothing/cancel", {})[0] == 404
    assert ask("POST", f"/distributed_comfy/workers/{WORKER}/stop", {"at_once": True})[0] == 200
    running.until(lambda: local_phase(running) == "stopped")


def test_endpoints_of_comfyui_distributed_answer_in_its_shape(running: ComfyServer, token: str) -> None:
    ask: Callable[..., tuple[int, Any]] = lambda *given: with_token(running, token, *given)  # noqa: E731
    config = running.get("/distributed/config")
    assert config["workers"] == [{"id": WORKER, "name": WORKER, "host": None, "port": None, "cuda_device": None, "enabled": True,
                                  "extra_args": "", "type": "local"}]  # fmt: skip
    assert config["settings"] == {"debug": False, "auto_launch_workers": False, "stop_workers_on_master_exit": True,
                                  "master_delegate_only": False}  # fmt: skip
    assert config["master"]["port"] == int(running.url.rpartition(":")[2])

    status, answer = ask("POST", "/distributed/launch_worker", {"worker_id": WORKER})
    assert status == 200 and answer["status"] == "success" and answer["pid"] > 0 and answer["log_file"].endswith("worker.log"), answer
    assert ask("POST", "/distributed/launch_worker", {"worker_id": WORKER})[0] == 409
    assert ask("POST", "/distributed/launch_worker", {"worker_id": "nobody"})[0] == 404
    assert running.get("/distributed/managed_workers")["managed_workers"][WORKER]["pid"] == answer["pid"]
    running.until(lambda: running.get("/distributed/local-worker-status")["worker_statuses"][WORKER]["online"])
    shown = running.get("/distributed/local-worker-status")["worker_statuses"][WORKER]
    assert shown == {"online": True, "enabled": True, "processing": False, "queue_count": 0}
    log = running.until(lambda: (found := ask("GET", f"/distributed/worker_log/{WORKER}?lines=2")[1])["lines_shown"] == 2 and found)
    assert log["status"] == "success" and log["truncated"] is True and log["content"].count("\n") == 1
    assert ask("POST", "/distributed/clear_memory", {}) == (200, {"status": "success"})
    status, answer = ask("POST", "/distributed/stop_worker", {"worker_id": WORKER})
    assert status == 200 and answer["status"] == "success"
    running.until(lambda: local_phase(running) == "stopped")

    assert ask("POST", "/distributed/config/update_setting", {"key": "master_delegate_only", "value": True}) == (200, {"status": "success"})
    assert running.status()["options"]["participate"] is False
    assert ask("POST", "/distributed/config/update_setting", {"key": "master_delegate_only", "value": False})[0] == 200
    status, answer = ask("POST", "/distributed/config/update_setting", {"key": "worker_timeout_seconds", "value": 60})
    assert status == 200 and "no meaning" in answer["message"]

    update = {"worker_id": "extra", "cuda_device": 1, "extra_args": "--lowvram --port 9000", "name": "E", "port": 8190, "enabled": False}
    assert ask("POST", "/distributed/config/update_worker", update)[0] == 200
    extra = next(worker for worker in running.get("/distributed/config")["workers"] if worker["id"] == "extra")
    assert (extra["cuda_device"], extra["extra_args"], extra["enabled"]) == (1, "--lowvram", False)
    taken_away = {"worker_id": "extra", "cuda_device": None, "extra_args": None, "name": None, "port": None}
    assert ask("POST", "/distributed/config/update_worker", taken_away)[0] == 200
    extra = next(worker for worker in running.get("/distributed/config")["workers"] if worker["id"] == "extra")
    assert (extra["cuda_device"], extra["extra_args"], extra["enabled"]) == (0, "", False), "the first GPU, as without a number"
    status, answer = ask("POST", "/distributed/config/update_worker", {"worker_id": "far", "host": "10.0.0.2", "cuda_device": 0})
    assert status == 400 and "distributed-comfy invite" in answer["error"]
    status, answer = ask("POST", "/distributed/config/delete_worker", {"worker_id": "extra"})
    assert status == 200 and answer["status"] == "success" and "extra" in answer["message"]
    assert running.get("/distributed/network_info")["status"] == running.get("/distributed/system_info")["status"] == "success"


def test_a_script_queues_by_the_old_endpoint_what_comfyui_validates_and_runs(running: ComfyServer) -> None:
    body = {"prompt": PLAIN, "workflow": {"nodes": [], "links": []}, "client_id": "script", "enabled_worker_ids": [],
            "delegate_master": False, "auto_prepare": True, "trace_execution_id": "exec_1"}  # fmt: skip
    with running.listen("script") as listener:
        status, answer = running.post("/distributed/queue", body)
        assert status == 200 and answer["node_errors"] == {} and answer["auto_prepare_supported"] is True and answer["worker_count"] == 0
        assert isinstance(answer["number"], (int, float))
        assert running.wait(answer["prompt_id"])["outputs"]["2"]["images"]
        listener.wait_end(answer["prompt_id"])
    entry = running.history(answer["prompt_id"])
    assert entry is not None and entry["prompt"][3]["extra_pnginfo"] == {"workflow": {"nodes": [], "links": []}}
    assert running.get(f"/distributed/queue_status/{answer['prompt_id']}") == {"exists": False, "job_id": answer["prompt_id"]}

    nested = running.post("/distributed/queue", {"workflow": {"prompt": PLAIN}, "workers": [{"id": "pc1"}]})
    assert nested[0] == 200 and running.wait(nested[1]["prompt_id"])["outputs"]["2"]["images"]
    invalid = {**PLAIN, "2": {"class_type": "SaveImage", "inputs": {}}}
    status, answer = running.post("/distributed/queue", {"prompt": invalid})
    assert status == 400 and answer["node_errors"]
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert running.post("/distributed/queue", {"prompt": PLAIN}, **headers)[0] == 403


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "prompt must be an object"),
        ({"prompt": []}, "prompt must be an object"),
        ({"workflow": {"nodes": []}}, "prompt must be an object"),
        ({"prompt": PLAIN, "client_id": 1}, "client_id must be"),
        ({"prompt": PLAIN, "workers": "all"}, "enabled_worker_ids must be a list"),
        ({"prompt": PLAIN, "enabled_worker_ids": {"1": True}}, "enabled_worker_ids must be a list"),
        ({"prompt": PLAIN, "workers": [{"name": "pc1"}]}, "enabled_worker_ids must have names of workers"),
        ({"prompt": PLAIN, "workers": [["pc1"]]}, "enabled_worker_ids must have names of workers"),
    ],
)
def test_what_the_old_endpoint_refuses_is_not_queued(running: ComfyServer, wrong: dict[str, Any], words: str) -> None:
    """A script that is told of an error sends its prompt again: with a queued one, each picture would be made twice."""
    before = set(running.get("/history"))
    status, answer = running.post("/distributed/queue", wrong)
    assert status == 400 and words in answer["error"], answer
    queue = running.get("/queue")
    assert queue["queue_pending"] == queue["queue_running"] == [] and set(running.get("/history")) == before


def test_an_invited_host_comes_in_by_the_relay_on_comfyuis_port_until_it_is_shut_out(running: ComfyServer, token: str) -> None:
    health = running.get("/distributed/v2/health")
    assert health["service"] == "distributed-comfy" and health["servers"] == {"state": True, "blobs": True}
    wanted = {"name": "pc2", "url": running.url.replace("http", "ws")}
    status, invited = with_token(running, token, "POST", "/distributed_comfy/invites", wanted)
    assert status == 200 and invited["command"].startswith("distributed-comfy up --join "), invited
    assert [each["name"] for each in with_token(running, token, "GET", "/distributed_comfy/invites")[1]["invites"]] == ["pc2"]
    status, answer = running.ask("GET", "/distributed/v2/relay/state", Upgrade="websocket", Connection="Upgrade")
    assert status in (401, 426), answer

    folder = running.line.folder / "guest"
    folder.mkdir()
    guest = CommandLine(folder, DC_REFUSED_TTL_S="2")
    up = guest.start("up", "--engine", "builtin", "--join", invited["command"].rpartition(" ")[2])
    try:
        hosts: Callable[[], list[Any]] = lambda: running.get("/distributed_comfy/workers")["hosts"]  # noqa: E731
        running.until(lambda: any(host["host"] == "pc2" and host["workers"] for host in hosts()), 60.0)  # its agent has started
        assert with_token(running, token, "POST", "/distributed_comfy/invites/pc2/revoke", {})[0] == 200
        ended = guest.finish(up, 90)
        assert ended.status == 4, ended.err  # not invited any more
    finally:
        if up.poll() is None:
            guest.interrupt(up)


def test_the_tiny_prompt_is_accepted_by_the_old_endpoint(running: ComfyServer) -> None:
    status, answer = running.post("/distributed/queue", {"prompt": distributed()})
    assert status == 200 and answer["worker_count"] in (0, 1), answer  # one of a test before may be about to end
    assert running.wait(answer["prompt_id"])["status"]["status_str"] == "success"


def test_an_imported_worker_is_taken_over_by_the_running_comfyui_and_scripts_go_on_calling_it_by_its_id(
    running: ComfyServer, token: str
) -> None:
    """The last of this module: it takes the worker of the others away."""
    ask: Callable[..., tuple[int, Any]] = lambda *given: with_token(running, token, *given)  # noqa: E731
    assert ask("POST", "/distributed/launch_worker", {"worker_id": WORKER})[0] in (200, 409)
    running.until(lambda: local_phase(running) == "running")
    config = running.line.write("gpu_config.json", {"workers": [{"id": "1", "name": "Worker 1", "cuda_device": 1, "enabled": True}]})
    done = running.line.run("config", "import", config, "--force", DC_HOST="pc1")
    assert done.status == 0, done.err
    assert "1 -> worker-1: cuda:1" in done.out and f"removed: worker {WORKER} (cpu)" in done.out
    assert running.process is not None and f"the agent of this host (pid {running.process.pid}) has taken it over" in done.out
    assert "start ComfyUI" not in done.out
    assert f"worker {WORKER} finishes its item and ends" in done.out and "`distributed-comfy workers start worker-1` starts it" in done.out
    running.until(lambda: [worker["name"] for worker in running.status()["host"]["workers"]] == ["worker-1"])

    worker = running.get("/distributed/config")["workers"][0]
    assert (worker["id"], worker["name"], worker["cuda_device"]) == ("1", "worker-1", 1)
    update = {"worker_id": "1", "extra_args": "--lowvram"}
    assert ask("POST", "/distributed/config/update_worker", update) == (200, {"status": "success", "worker_id": "1"})
    onto_cpu = {"fields": {"device": "cpu", "engine": "builtin"}}
    assert ask("POST", "/distributed_comfy/workers/worker-1/edit", onto_cpu)[0] == 200  # this host has no GPU
    status, answer = ask("POST", "/distributed/launch_worker", {"worker_id": "1"})
    assert status == 200 and answer["pid"] > 0, answer
    assert running.get("/distributed/managed_workers")["managed_workers"]["1"]["name"] == "worker-1"
    running.until(lambda: running.get("/distributed/local-worker-status")["worker_statuses"]["1"]["online"])
    running.until(lambda: ask("GET", "/distributed/worker_log/1?lines=2")[1].get("lines_shown") == 2)
    assert ask("POST", "/distributed/launch_worker", {"worker_id": 1})[0] == 409, "an id may be a number"
    status, answer = running.post("/distributed/queue", {"prompt": distributed(), "enabled_worker_ids": ["1"]})
    assert status == 200 and answer["worker_count"] == 1, answer
    assert running.wait(answer["prompt_id"])["status"]["status_str"] == "success"
    for path in ("launch_worker", "stop_worker", "config/delete_worker"):
        status, answer = ask("POST", f"/distributed/{path}", {"worker_id": "2"})
        assert status == 404 and "no worker '2' (this host has 1 = worker-1);" in answer["error"]
    assert ask("POST", "/distributed/stop_worker", {"worker_id": "1"})[0] == 200
    assert ask("POST", "/distributed/config/delete_worker", {"worker_id": "1"})[0] == 200
    running.until(lambda: running.status()["host"]["workers"] == [])

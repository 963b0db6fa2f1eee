"""What others may put before a worker: it is refused, told once, and the worker lives and works on."""
from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.state.keys import Keys
from tests.access_servers import Servers
from tests.cluster_rig import Rig, WorkerProcess
from tests.command_line import until
from tests.kept_jobs import keep, made, rule_images

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

QUEUE = "dc:celery:gpu.victim-cpu"


DROPPED = "is none of ours and is dropped"


class Canary:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def message(
    written: bytes, content_type: str = "application/json", encoding: str = "utf-8", task: str = "tasks.run_item", **changes: Any
) -> str:
    """What kombu puts into a queue."""
    content = {
        "body": base64.b64encode(written).decode(), "content-type": content_type, "content-encoding": encoding,
        "headers": {"lang": "py", "task": task, "id": "forged", "root_id": "forged", "parent_id": None, "group": None, "retries": 0,
                    "timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": "nobody", "ignore_result": True},
        "properties": {"correlation_id": "forged", "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
                       "delivery_info": {"exchange": "", "routing_key": "gpu.victim-cpu"}, "delivery_tag": "forged"},
        **changes,
    }  # fmt: skip
    return json.dumps(content)


ARGS = [["victim-cpu"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
JSON_ARGS = json.dumps(ARGS).encode()

HOSTILE: dict[str, Callable[[Path], str]] = {
    "pickle": lambda path: message(pickle.dumps([[Canary(path)], {}, {}]), "application/x-python-serialize", "binary"),
    "pickle that is called JSON": lambda path: message(pickle.dumps([[Canary(path)], {}, {}])),
    "yaml": lambda path: message(f"!!python/object/apply:os.system ['touch {path}']".encode(), "application/x-yaml"),
    "a content type nobody knows": lambda path: message(JSON_ARGS, "application/x-nonsense"),
    "an encoding nobody knows": lambda path: message(JSON_ARGS, encoding="nonsense"),
    "a body that is no base64": lambda path: message(b"", body="%%%"),
    "a body that is no JSON": lambda path: message(b"\xff\xfe\x00"),
    "arguments that are none": lambda path: message(b'"text"'),
    "arguments without end": lambda path: message(json.dumps([["victim-cpu"] * 10_000, {}, {}]).encode()),
    "a task of another name": lambda path: message(JSON_ARGS, task="os.system"),
    "a task by its module": lambda path: message(JSON_ARGS, task="celery.backend_cleanup"),
    "a task to be run with callbacks": lambda path: message(
        json.dumps([["victim-cpu"], {}, {"callbacks": [{"task": "os.system", "args": [f"touch {path}"]}]}]).encode()
    ),
    "headers that are none": lambda path: message(JSON_ARGS, headers=None),
    "headers of another version": lambda path: message(JSON_ARGS, headers={"task": 7, "id": 7}),
    "no properties": lambda path: message(JSON_ARGS, properties={}),
    "another queue's properties": lambda path: message(JSON_ARGS, properties={"delivery_info": 7, "delivery_tag": 7, "body_encoding": 7}),
    "no message": lambda path: "no JSON at all",
    "a list": lambda path: "[1, 2, 3]",
    "a number": lambda path: "7",
    "null": lambda path: "null",
    "binary": lambda path: "\x00\x01\x02",
    "nothing": lambda path: "",
}


@pytest.fixture(scope="module")
def victim(rig: Rig) -> Iterator[WorkerProcess]:
    (worker,) = rig.start("victim-cpu")
    yield worker


def said(victim: WorkerProcess) -> str:
    """The worker's own log."""
    return (victim.folder / "worker.log").read_text(errors="replace")


def works(rig: Rig, victim: WorkerProcess) -> None:
    assert victim.process.poll() is None, victim.log()[-3000:]
    report = rig.run(rule_images(), items=1)
    assert (report.batches("collect")[0] == made(0)).all()


@pytest.mark.parametrize("what", HOSTILE)
def test_a_message_is_refused_and_the_worker_lives_on(rig: Rig, servers: Servers, victim: WorkerProcess, tmp_path: Path, what: str) -> None:
    canary = tmp_path / "canary"
    before = len(said(victim))
    with servers.state.client() as client:
        client.lpush(QUEUE, HOSTILE[what](canary))
        until(lambda: client.llen(QUEUE) == 0, timeout_s=20)
    works(rig, victim)
    assert not canary.exists()
    since = said(victim)[before:]
    assert since.count(DROPPED) <= 1 and DROPPED in said(victim), since
    assert "Traceback" not in since and "declared dead" not in since and len(since) < 2000, since


def test_a_key_of_another_type_in_place_of_its_queue_is_borne(rig: Rig, servers: Servers, victim: WorkerProcess) -> None:
    with servers.state.client() as client:
        client.eval("redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], 'not a list')", 1, QUEUE)
    works(rig, victim)
    assert victim.log().count("the queue itself is no list") == 1


@pytest.mark.parametrize("record", ['{"version": 99}', '{"version": "1", "job_id": []}', "no JSON", "[]"])
def test_a_job_of_another_version_fails_by_name_and_the_worker_lives_on(
    rig: Rig, servers: Servers, victim: WorkerProcess, record: str
) -> None:
    rig.cluster.jobs.drain("victim-cpu", True)
    job_id = keep(rig, rule_images(), items=1)
    with servers.state.client() as client:
        client.hset(Keys("dc:")("job", job_id), "record", record)
        before = len(said(victim))
        rig.cluster.jobs.drain("victim-cpu", False)
        until(lambda: client.hget(Keys("dc:")("job", job_id), "state") == "failed")
    error = rig.cluster.jobs.job_state(job_id).error
    assert error is not None and error["code"] == "message_version_unknown"
    works(rig, victim)
    assert said(victim)[before:].count(f"item {job_id}-0 failed") == 1

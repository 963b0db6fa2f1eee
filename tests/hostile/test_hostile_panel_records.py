"""Records, steps, errors and results that no honest host writes: the panel goes on for everybody else."""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distributed_comfy import messages
from distributed_comfy.errors import RedisUnreachable, WorkerLost
from distributed_comfy.messages import Capture, ItemResult, TensorRef
from distributed_comfy.orchestrator.progress import Step
from distributed_comfy.panel.composing import Composer
from distributed_comfy.panel.job_items import KnownItems, WatchedItems, read_items
from distributed_comfy.panel.job_views import Estimate, shown_job
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.pulse import Pulse
from distributed_comfy.panel.rows import finite
from distributed_comfy.panel.steps import Steps
from distributed_comfy.panel.watch import Watch
from distributed_comfy.panel.words import item_error
from distributed_comfy.serve.host_rules import host_judge
from distributed_comfy.settings import Settings
from distributed_comfy.state.records import HostDevice, HostRecord, HostWorker, ItemState, JobState, WorkerFacts, WorkerState
from distributed_comfy.state.status import DeviceUse, WorkerStatus
from tasks.cluster import Cluster
from tests.panel_contract import check, document

JOB = "0123456789ab"
INFINITE = float("inf")
NODE_FIELDS = ("node_id", "class_type", "exception_type", "exception_message")
COUNTS = dict.fromkeys(("total", "pending", "running", "done", "failed"), 1)
GOOD = HostRecord("pc1", "me", 1, "i", workers=(HostWorker("pc1-cpu0", "running", "cpu"),))


class ServePlace:
    """As `serve` has it, with nothing behind it."""

    def __init__(self, folder: Path, cluster: Callable[[], Any] = lambda: None) -> None:
        self.settings = self.own = Settings(host="pc1", cache_dir=folder / "cache")
        self.kind, self.master, self.out, self.cluster = "serve", None, folder, cluster

    def servers(self) -> None:
        """Nobody knows."""


def place(folder: Path, cluster: Callable[[], Any] = lambda: None) -> Place:
    return cast("Place", ServePlace(folder, cluster))


def pulse_of(*records: HostRecord, rows: tuple[WorkerState, ...] = (), statuses: tuple[WorkerStatus, ...] = ()) -> Pulse:
    pulse = Pulse()
    pulse.found.hosts = {record.host: record for record in records}
    pulse.found.rows = {row.facts.name: row for row in rows}
    pulse.found.statuses = {status.name: status for status in statuses}
    return pulse


def strict(value: Any) -> str:
    """As a browser reads it: there is no Infinity and no NaN."""
    return json.dumps(value, allow_nan=False)


def schema(name: str) -> Any:
    return document()["components"]["schemas"][name]


# -- hosts and workers ---------------------------------------------------------------------------------------------------
def evil(**changes: Any) -> HostRecord:
    record = HostRecord("pc2", "they", 1, "j", workers=(HostWorker("pc2-cpu0", "running", "cpu"),))
    return replace(record, **changes)


@pytest.mark.parametrize(
    "record",
    [
        evil(configuration={"workers": 5}),
        evil(configuration={"workers": {"pc2-cpu0": 5}}),
        evil(configuration={"workers": {"pc2-cpu0": {"tags": 5}}}),
        evil(configuration={"workers": {"pc2-cpu0": {"threads": INFINITE, "tags": [float("nan")]}}}),
        evil(workers=(HostWorker("pc2-cpu0", "backing-off", "cpu", next_start_s=INFINITE),)),
        evil(workers=(HostWorker("pc2-cpu0", "backing-off", "cpu", next_start_s=float("nan")),)),
        evil(workers=(HostWorker("pc2-cpu0", "backing-off", "cpu", next_start_s=1e308),)),
        evil(workers=(HostWorker("pc2-cpu0", cast("Any", "unheard-of"), "cpu"),)),
        evil(devices=(cast("HostDevice", 5),)),
    ],
)
def test_an_odd_record_of_a_host_leaves_all_others_as_they_are(tmp_path: Path, record: HostRecord) -> None:
    composer = Composer(place(tmp_path), dict)
    for _ in range(2):
        state = composer.compose(pulse_of(GOOD, record), {})
        strict(state)
        check(schema("Worker"), state["workers"]["pc1-cpu0"], "worker")
        check(schema("Host"), state["hosts"]["pc1"], "host")
    after = composer.compose(pulse_of(GOOD, evil()), {})
    assert after["workers"].keys() == {"pc1-cpu0", "pc2-cpu0"} and after["hosts"].keys() == {"pc1", "pc2"}


def test_figures_that_json_does_not_have_reach_no_page(tmp_path: Path) -> None:
    facts = WorkerFacts("pc2-cpu0", "pc2", "cpu", "builtin")
    use = DeviceUse(utilisation_percent=cast("Any", INFINITE), used_bytes=cast("Any", float("nan")))
    status = WorkerStatus("pc2-cpu0", "pc2", "cpu", "idle", 5, use=use)
    pulse = pulse_of(rows=(WorkerState(facts, "idle", capability="c"),), statuses=(status,))
    state = Composer(place(tmp_path), dict).compose(pulse, {})
    strict(state)
    assert state["workers"].keys() == {"pc2-cpu0"}
    assert finite({"a": (INFINITE, -INFINITE, [float("nan"), 1.5, True])}) == {"a": [0.0, 0.0, [0.0, 1.5, True]]}


# -- steps ---------------------------------------------------------------------------------------------------------------
class Channel:
    """What `client.pubsub` gives; ends the listening when everything was told."""

    def __init__(self, texts: list[str], stop: threading.Event) -> None:
        self._texts, self._stop = texts, stop

    def psubscribe(self, pattern: str) -> None:
        self.pattern = pattern

    def get_message(self, timeout: float) -> dict[str, str] | None:
        if not self._texts:
            self._stop.set()
            return None
        return {"channel": self.pattern.replace("*", JOB), "data": self._texts.pop(0)}


def hear(steps: Steps, texts: list[str]) -> None:
    """Let them be published, in the thread that listens."""
    stop = threading.Event()

    @contextmanager
    def pubsub(**_: Any) -> Iterator[Channel]:
        yield Channel(texts, stop)

    cluster = SimpleNamespace(settings=SimpleNamespace(key_prefix="dc:"), client=SimpleNamespace(pubsub=pubsub))
    thread = threading.Thread(target=steps.listen, args=(lambda: cast("Cluster", cluster), stop), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and stop.is_set()


@pytest.mark.parametrize(
    "text",
    [
        '{"index": 0, "worker": "", "node": "", "value": Infinity}', '{"index": -Infinity, "worker": "", "node": ""}',
        '{"index": NaN, "worker": "", "node": ""}', '{"index": 0, "worker": "", "node": "", "preview": 5}', "[]", "null", "5", '"x"',
        '{"index": 0, "worker": "", "node": "", "preview": "?"}', "[" * 100_000, "", '{"index": 0}',
        '{"index": "0", "worker": [], "node": {}}',
    ],
)  # fmt: skip
def test_a_message_that_is_none_does_not_end_the_hearing_of_others(text: str) -> None:
    steps = Steps()
    hear(steps, [text, '{"index": 1, "worker": "w", "node": "7", "value": 2, "maximum": 9}'])
    heard = steps.of(JOB, 1, "w")
    assert heard is not None and (heard.value, heard.maximum) == (2, 9)


def test_only_the_worker_that_holds_an_item_says_how_far_it_is(tmp_path: Path) -> None:
    steps = Steps()
    steps.hear(JOB, Step(3, "pc1-cpu0", "7", 5, 20))
    steps.hear(JOB, Step(3, "pc1-cpu0", "7", preview=b"\xff\xd8 mine"))
    steps.hear(JOB, Step(3, "pc2-cpu0", "9", 1, 2))
    steps.hear(JOB, Step(3, "pc2-cpu0", "9", preview=b"\xff\xd8 theirs"))
    row = WorkerState(WorkerFacts("pc1-cpu0", "pc1", "cpu", "builtin"), "busy", capability="c", claims=(f"{JOB}-3",))
    idle = WorkerState(WorkerFacts("pc2-cpu0", "pc2", "cpu", "builtin"), "idle", capability="c")
    state = Composer(place(tmp_path), dict).compose(pulse_of(rows=(row, idle)), steps.all())
    item = state["workers"]["pc1-cpu0"]["items"][0]
    assert (item["node_id"], item["value"], item["maximum"], item["preview"]) == ("7", 5, 20, 1)
    held = steps.of(JOB, 3, "pc1-cpu0")
    assert held is not None and held.preview.endswith(b"mine") and state["workers"]["pc2-cpu0"]["items"] == []


BITS = st.sampled_from([
    "{", "}", "[", "]", '"', '"worker"', '"w\\u006frker"', ":", ",", '"pc1-cpu0"', '"pc2-cpu0"', '"index": 3', '"node": "7"', " ",
    '{"index": 3, "node": "9", "worker": "pc1-cpu0", ', '"worker": "pc2-cpu0"}', '{"index": 3, "node": "9", "worker": "pc2-cpu0"', "\ufeff",
])  # fmt: skip


@given(st.lists(BITS, max_size=14).map("".join), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
@example('{"index": 3, "worker": "pc1-cpu0", "node": "9", "value": 1, "maximum": 2}', "utf-8")
@example('{"index": 3, "worker": "pc2-cpu0", "worker": "pc1-cpu0", "node": "9"}', "utf-8")
@example('{"index": 3, "worker": "pc2-cpu0", "w\\u006frker": "pc1-cpu0", "node": "9"}', "utf-8")
def test_an_invited_host_says_steps_of_its_own_workers_alone(text: str, encoding: str) -> None:
    judge = host_judge("dc:", "state", 0, "dc-host-pc2", "secret")
    assert judge is not None and judge.look(b"PUBLISH") == 0
    sent = text.encode(encoding)
    if judge.refusal([b"PUBLISH", f"dc:progress:{JOB}".encode(), sent]):
        return
    steps = Steps()
    hear(steps, [sent.decode()])
    assert all(worker.startswith("pc2-") for _, _, worker in steps.all())


def test_what_an_honest_host_says_passes() -> None:
    judge = host_judge("dc:", "state", 0, "dc-host-pc2", "secret")
    assert judge is not None
    for told in ('"node": "9", "value": 1, "maximum": 2', '"node": "9", "preview": "/9g="', '"waits": "full"'):
        text = f'{{"index": 3, "worker": "pc2-cpu0", {told}}}'
        assert judge.refusal([b"PUBLISH", f"dc:progress:{JOB}".encode(), text.encode()]) == ""


# -- errors and results --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wire",
    [
        {"code": "node_failed", "fields": {**dict.fromkeys(NODE_FIELDS), "traceback": 5}},
        {"code": "job_failed", "fields": 5}, {"code": ["x"], "fields": []}, {"fields": {"error": {"error": "x"}}}, [["a", "b"]], [5],
        "x", 5,
    ],
)  # fmt: skip
def test_an_error_of_any_shape_is_told_as_one(wire: Any) -> None:
    found = item_error(wire, "w")
    check(schema("ItemError"), found, "error")
    strict(shown_job(JOB, JobState("failed", error=wire, counts=COUNTS), Estimate(), mine=True))


class Jobs:
    """A job's part of the table, as a worker has left it."""

    def __init__(self, results: dict[int, str]) -> None:
        self.results = results

    def item_states(self, _job_id: str) -> dict[int, ItemState]:
        return {index: ItemState("done", "c", "w", error=WorkerLost(worker="w").to_wire()) for index in self.results}

    def specs(self, _job_id: str) -> dict[int, Any]:
        return {index: SimpleNamespace(index=index, kind="generate", seed="7") for index in self.results}

    def spool(self, _job_id: str) -> None:
        """Nobody collects it."""


def cluster_of(results: dict[int, str]) -> Cluster:
    client = SimpleNamespace(hmget=lambda _key, names: [results[int(name)] for name in names])
    settings = SimpleNamespace(key_prefix="dc:", host_name="pc1")
    return cast("Cluster", SimpleNamespace(jobs=Jobs(results), client=client, settings=settings))


def picture(seconds: str = "1.5") -> str:
    ref = TensorRef("b", "float32", (1, 64, 64, 3), 49_152)
    text = json.dumps(messages.to_plain(ItemResult((Capture("1", "images", 0, ref),), seconds=1.5)))
    assert '"seconds": 1.5' in text
    return text.replace('"seconds": 1.5', f'"seconds": {seconds}')


@pytest.mark.parametrize(
    "text",
    [
        picture("Infinity"), picture("NaN"), picture('"x"'), picture("1e999"), "[]", "5", "{", '{"captures": 5}', '{"captures": [5]}',
        '{"captures": [{"value": {"dtype": "x", "shape": 5}}]}', '{"files": [{"media_type": 5}]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_result_of_any_shape_is_an_item_that_a_page_can_read(text: str) -> None:
    found = read_items(cluster_of({0: text, 1: picture()}), JOB, KnownItems(), Steps())
    strict(found)
    for item in found.values():
        check(schema("Item"), item, "item")
    assert (found["1"]["seconds"], found["1"]["preview"]) == (1.5, 1) and found.keys() == {"0", "1"}


def test_a_job_that_cannot_be_read_takes_no_other_from_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_of({0: picture()})
    items = WatchedItems(Steps())
    broken = "b" * 12
    monkeypatch.setattr(cluster.jobs, "item_states", lambda job_id: Jobs({0: ""}).item_states(job_id) if job_id != broken else {}[0])
    items.look(cluster, [broken, JOB], dict.fromkeys((broken, JOB), JobState("running", counts=COUNTS)))
    assert items.changes().keys() == {JOB} and items.known(broken) == {}


# -- the thread that all pages live by -----------------------------------------------------------------------------------
def test_a_fault_of_the_panel_is_told_on_every_page_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(place(tmp_path, lambda: cast("Any", object())), dict)
    monkeypatch.setattr(Pulse, "look", lambda _self, _cluster: None)
    monkeypatch.setattr(Steps, "listen", lambda _self, _cluster, stop: stop.wait(30))
    told: list[Any] = []
    try:
        with watch.viewing(lambda: told.append(None)):
            assert watch.state()["servers"]["state"]["up"]
            whole = Composer.compose
            monkeypatch.setattr(Composer, "compose", lambda *_: 1 // 0)
            assert _until(lambda: not watch.state()["servers"]["state"]["up"])
            error = watch.state()["servers"]["state"]["error"]
            assert error["code"] == "panel_fault" and "ZeroDivisionError" in error["message"] and error["remedy"]
            monkeypatch.setattr(Composer, "compose", whole)
            assert _until(lambda: watch.state()["servers"]["state"]["up"] and not watch.state()["servers"]["state"]["error"])
    finally:
        watch.end()


def test_since_when_a_server_is_away_is_told_only_where_somebody_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed_comfy.panel.watch._LINGER_S", 0.1)
    monkeypatch.setattr("distributed_comfy.panel.watch._RETRY_S", 0.05)
    monkeypatch.setattr(Steps, "listen", lambda _self, _cluster, stop: stop.wait(30))
    clock, away = [1_000], [True]

    def look(pulse: Pulse, _cluster: Any) -> None:
        if away[0]:
            raise RedisUnreachable(url="redis://pc1", reason="refused", setting="DC_REDIS_URL")
        pulse.found.now_ms = clock[0]

    monkeypatch.setattr(Pulse, "_look", look)
    cluster: Any = SimpleNamespace(redis_url="redis://a", blob_url="redis://a")
    watch = Watch(place(tmp_path, lambda: cast("Any", cluster)), dict)

    def health() -> tuple[bool, int]:
        servers = watch.state()["servers"]
        assert servers["blobs"]["down_since_ms"] == servers["state"]["down_since_ms"]
        return servers["state"]["up"], servers["state"]["down_since_ms"]

    try:
        with watch.viewing(lambda: None):
            assert health() == (False, 0), "it never answered"
            away[0] = False
            assert _until(lambda: health() == (True, 0))
            away[0] = True
            assert _until(lambda: health() == (False, 1_000))
            away[0] = False
            assert _until(lambda: health() == (True, 0))
        assert _until(lambda: watch._thread is None)
        away[0], clock[0] = True, 9_000
        with watch.viewing(lambda: None):
            assert health() == (False, 0), "nobody looked while it fell silent"
    finally:
        watch.end()


def _until(condition: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + 15
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.05)
    return condition()

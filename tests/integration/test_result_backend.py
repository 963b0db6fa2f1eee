"""Celery's result API over items, asked by processes that did not submit them: values, states, errors, groups, forgetting."""
from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from PIL import Image

import distributed_comfy
from distributed_comfy.errors import BlobMissing, NodeFailed, ResultCollected, ResultsNeedCollector, SettingInvalid
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt, submit_prompt
from distributed_comfy.settings import Settings, read_settings
from tests.celery_user import CeleryUser
from tests.cluster_rig import Rig
from tests.command_line import CommandLine, until
from tests.prompts import node, out
from tests.rule_nodes import picture

pytestmark = pytest.mark.redis


@pytest.fixture
def user(builtin_rig: Rig, tmp_path: Path) -> CeleryUser:
    return CeleryUser(builtin_rig.cluster, tmp_path)


def rule_images(milliseconds: int = 0, side: int = 16, **changes: Any) -> Prompt:
    """seed -> pictures that show it, with values outside [0, 1] -> collector."""
    images = {"width": side, "height": side, "batch_size": 2, "channels": 3, **changes}
    return {
        "seed": node("DistributedSeed", seed=2**40),
        "make": node("RuleImage", seed=out("seed"), **images),
        "wait": node("RuleSlow", images=out("make"), milliseconds=milliseconds),
        "collect": node("DistributedCollector", images=out("wait"), load_balance=False),
    }


def made(index: int, side: int = 16) -> Any:
    """What `rule_images` collects of an item."""
    return picture(2**40 + index, (2, side, side, 3)).numpy()


def keep(rig: Rig, prompt: Prompt, items: int = 1) -> str:
    """Queue a job whose results stay for Celery; its id.  Nothing of it runs in this process."""
    options = SubmitOptions(items=items, results="celery")
    return submit_prompt(rig.cluster, read_prompt(prompt, options), options, threading.Event()).record.job_id


def wait_ended(rig: Rig, job_id: str) -> str:
    state = until(lambda: (found := rig.cluster.jobs.job_state(job_id)).ended and found)
    return str(state.state)


def blobs_of(rig: Rig, job_id: str) -> list[Any]:
    """Keys of a job's results in the blob server."""
    return list(rig.cluster.blob_client.scan_iter(f"{rig.cluster.settings.key_prefix}blob:{job_id}:*", count=1000))


def reads_of_blobs(rig: Rig) -> int:
    """Commands so far that read something from the blob server."""
    stats: Any = rig.cluster.blob_client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("get", "mget", "strlen", "getrange", "exists"))


# -- values -------------------------------------------------------------------------------------------------------------
def test_another_process_gets_the_tensors_of_an_item_bit_for_bit(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(), items=3)
    outputs = user.ask("answer = [app.AsyncResult(f'{job}-{k}').get(timeout=60) for k in (2, 0, 1)]", job=job_id)
    for index, output in zip((2, 0, 1), outputs, strict=True):
        assert (output.job_id, output.index, output.worker in ("one", "two"), output.seconds > 0) == (job_id, index, True, True)
        assert list(output.values) == ["collect"] and list(output.values["collect"]) == ["images"]
        (images,) = output.values["collect"]["images"]
        assert images.dtype == numpy.float32 and images.flags.writeable
        assert images.tobytes() == made(index).tobytes() and images.shape == (2, 16, 16, 3)


def test_lists_and_audio_keep_their_structure(builtin_rig: Rig, user: CeleryUser) -> None:
    prompt = {
        "seed": node("DistributedSeed", seed=5),
        "list": node("RuleList", seed=out("seed"), length=3, batch_size=2, skip=0),
        "split": node("RuleSplit", seed=out("seed")),
        "collect": node("DistributedCollector", images=out("list"), audio=out("split", 3), load_balance=False),
    }
    job_id = keep(builtin_rig, prompt)
    values = user.ask("answer = app.AsyncResult(job + '-0').get(timeout=60).values", job=job_id)["collect"]
    expected = [picture(5, (2, 8, 16, 3), position).numpy() for position in range(3)]
    assert all(numpy.array_equal(found, wanted) for found, wanted in zip(values["images"], expected, strict=True))
    (audio,) = values["audio"]
    assert audio["sample_rate"] == 44100 and numpy.array_equal(audio["waveform"], numpy.full((1, 2, 3), 5, numpy.float32))


def test_torch_tensors_come_where_they_are_asked_for(builtin_rig: Rig, tmp_path: Path) -> None:
    import torch

    job_id = keep(builtin_rig, rule_images())
    torch_user = CeleryUser(builtin_rig.cluster, tmp_path, tensors="torch")
    (images,) = torch_user.ask("answer = app.AsyncResult(job + '-0').get(timeout=60)", job=job_id).values["collect"]["images"]
    assert isinstance(images, torch.Tensor) and images.dtype == torch.float32
    assert torch.equal(images, picture(2**40, (2, 16, 16, 3)))


def test_whoever_wants_numpy_needs_no_torch(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images())
    script = "values = app.AsyncResult(job + '-0').get(timeout=60).values\nanswer = len(values['collect']), 'torch' in sys.modules"
    assert user.ask(script, job=job_id) == (1, False)


def test_an_unknown_kind_of_tensors_is_refused_by_name(builtin_rig: Rig) -> None:
    app = Celery(backend=f"tasks.backend:FrameBackend+{builtin_rig.cluster.redis_url}", set_as_current=False)
    app.conf.result_backend_transport_options = {"tensors": "jax"}
    with pytest.raises(SettingInvalid, match=r"tensors must be one of \('numpy', 'torch'\), not 'jax'"):
        app.AsyncResult("0123456789ab-0").state  # noqa: B018


def test_files_of_output_nodes_come_whole(builtin_rig: Rig, user: CeleryUser, tmp_path: Path) -> None:
    prompt = {
        "make": node("EmptyImage", width=16, height=8, batch_size=2, color=0x00FF00),
        "save": node("SaveImage", images=out("make"), filename_prefix="sub/green"),
    }
    job_id = keep(builtin_rig, prompt)
    output = user.ask("answer = app.AsyncResult(job + '-0').get(timeout=60)", job=job_id)
    assert output.values == {} and [file.name for file in output.files] == ["sub/green_00001_.png", "sub/green_00002_.png"]
    assert {(file.media_type, file.folder, file.node_id) for file in output.files} == {("image/png", "output", "save")}
    assert numpy.array_equal(numpy.array(Image.open(io.BytesIO(output.files[1].content))), numpy.full((8, 16, 3), (0, 255, 0)))
    saved = output.files[0].save(tmp_path)
    assert saved == tmp_path / "sub" / "green_00001_.png" and saved.read_bytes() == output.files[0].content
    assert output.outputs["save"]["images"][0]["filename"] == "green_00001_.png"


# -- waiting and states -------------------------------------------------------------------------------------------------
def test_get_waits_for_an_item_that_is_not_done_yet(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=1500))
    asking = user.begin(
        "result = app.AsyncResult(job + '-0')\nbefore = result.state, result.ready(), result.result\n"
        "value = result.get(timeout=60)\nanswer = before, result.state, result.successful(), value.index",
        job=job_id,
    )
    assert asking.answer() == (("PENDING", False, None), "SUCCESS", True, 0)


def test_waiting_survives_a_lost_connection(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=2500), items=2)
    asking = user.begin("answer = [app.AsyncResult(f'{job}-{k}').get(timeout=60).index for k in (0, 1)]", job=job_id)
    channel = f"{builtin_rig.cluster.settings.key_prefix}celery-task-meta-{job_id}-0"
    client: Any = builtin_rig.cluster.client
    until(lambda: dict(client.pubsub_numsub(channel)).get(channel))
    assert client.client_kill_filter(_type="pubsub") >= 1
    assert asking.answer() == [0, 1]


def test_get_gives_up_after_its_timeout(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=3000))
    script = """
from celery.exceptions import TimeoutError
try:
    app.AsyncResult(job + '-0').get(timeout=0.3)
except TimeoutError as error:
    answer = str(error)
"""
    assert user.ask(script, job=job_id) == "The operation timed out."
    assert wait_ended(builtin_rig, job_id) == "done"


def test_asking_for_states_moves_no_blob(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(), items=4)
    assert wait_ended(builtin_rig, job_id) == "done"
    before = reads_of_blobs(builtin_rig)
    script = """
group = app.GroupResult.restore(job)
answer = [(r.state, r.ready(), r.successful(), r.failed(), r.traceback) for r in group], group.ready(), group.completed_count()
json = __import__("json").dumps(group[0]._get_task_meta())
"""
    assert user.ask(script, job=job_id) == ([("SUCCESS", True, True, False, None)] * 4, True, 4)
    assert reads_of_blobs(builtin_rig) == before
    user.ask("answer = app.AsyncResult(job + '-0').get().index", job=job_id)
    assert reads_of_blobs(builtin_rig) > before


def test_a_task_id_that_is_no_item_is_pending(user: CeleryUser) -> None:
    assert user.ask("answer = [app.AsyncResult(name).state for name in ('0123456789ab-0', 'x', 'x-1')]") == ["PENDING"] * 3


def test_nothing_large_passes_through_pub_sub(builtin_rig: Rig, user: CeleryUser) -> None:
    client: Any = builtin_rig.cluster.client
    channel = client.pubsub(ignore_subscribe_messages=True)
    channel.psubscribe("*")
    job_id = keep(builtin_rig, rule_images(side=512, milliseconds=300), items=3)
    outputs = user.ask("answer = app.GroupResult.restore(job).get(timeout=60)", job=job_id)
    assert sum(output.values["collect"]["images"][0].nbytes for output in outputs) == 3 * 2 * 512 * 512 * 3 * 4
    messages = [message for _ in range(2000) if (message := channel.get_message(timeout=0.001))]
    channel.close()
    records = [message for message in messages if f"celery-task-meta-{job_id}" in message["channel"]]
    assert len(records) == 3 and max(len(message["data"]) for message in records) < 500
    assert max(len(message["data"]) for message in messages) < 20_000
    assert all(client.strlen(message["channel"]) < 500 for message in records)


# -- errors -------------------------------------------------------------------------------------------------------------
def failing() -> Prompt:
    prompt = rule_images()
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=2**40 + 1)
    prompt["wait"]["inputs"] = {"images": out("fail"), "milliseconds": 300}
    return prompt


ASK_FOR_ERRORS = """
answer = []
for k in range(count):
    result = app.AsyncResult(f'{job}-{k}')
    try:
        result.get(timeout=60)
        answer.append((result.state, None, '', None))
    except Exception as error:
        own = type(error).__module__ == 'distributed_comfy.errors' and error
        answer.append((result.state, type(error).__name__, str(error), own and (own.node_id, own.exception_type)))
"""


def test_a_failed_item_raises_our_own_error_with_its_facts_and_the_rest_is_revoked(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, failing(), items=6)
    assert wait_ended(builtin_rig, job_id) == "failed"
    rows = user.ask(ASK_FOR_ERRORS, job=job_id, count=6)
    message = f"node fail (RuleFail) raised ValueError: seed {2**40 + 1} brings no luck"
    assert rows[1] == ("FAILURE", "NodeFailed", message, ("fail", "ValueError"))
    others, revoked = {row[:3] for index, row in enumerate(rows) if index != 1}, ("REVOKED", "TaskRevokedError", "cancelled")
    assert others <= {("SUCCESS", None, ""), revoked} and revoked in others
    script = "result = app.AsyncResult(job + '-1')\nanswer = result.failed(), repr(result.get(propagate=False))[:10], result.traceback"
    failed, shown, trace = user.ask(script, job=job_id)
    assert failed and shown == "NodeFailed" and "rule_nodes.py" in trace


def test_stock_celery_without_our_code_sees_the_same_states_and_error_names(builtin_rig: Rig, tmp_path: Path) -> None:
    job_id = keep(builtin_rig, failing(), items=2)
    wait_ended(builtin_rig, job_id)
    rows = CeleryUser(builtin_rig.cluster, tmp_path, stock=True).ask(ASK_FOR_ERRORS, job=job_id, count=2)
    assert rows[1][:2] == ("FAILURE", "NodeFailed") and "brings no luck" in rows[1][2]


def test_items_of_a_cancelled_job_are_revoked(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=4000), items=3)
    asking = user.begin(ASK_FOR_ERRORS, job=job_id, count=3)
    until(lambda: builtin_rig.cluster.jobs.job_state(job_id).counts["running"] == 2)
    distributed_comfy.cancel(job_id, settings=settings_of(builtin_rig))
    assert asking.answer() == [("REVOKED", "TaskRevokedError", "cancelled", False)] * 3


def test_a_huge_error_text_does_not_travel_through_pub_sub(builtin_rig: Rig) -> None:
    from distributed_comfy.state import celery_meta

    error = NodeFailed(node_id="3", class_type="x" * 10**6, exception_type="E", exception_message="y" * 10**6, traceback=["z" * 10**6] * 3)
    assert len(celery_meta.failure("0123456789ab", 0, error)) < 60_000


# -- groups -------------------------------------------------------------------------------------------------------------
def test_a_job_is_a_group_of_its_items_in_order(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=100), items=5)
    script = """
group = GroupResult.restore(job, app=app)
values = group.get(timeout=60)
answer = group.id, [r.id for r in group], [v.index for v in values], [v.values["collect"]["images"][0] for v in values], group.successful()
seen = []
group.join(callback=lambda task_id, value: seen.append((task_id, value.index)))
answer += (seen,)
"""
    group_id, ids, indexes, images, successful, seen = user.ask(script, job=job_id)
    assert group_id == job_id and ids == [f"{job_id}-{index}" for index in range(5)] and indexes == list(range(5)) and successful
    assert all(numpy.array_equal(found, made(index)) for index, found in enumerate(images))
    assert seen == [(f"{job_id}-{index}", index) for index in range(5)]


def test_an_unknown_job_is_no_group(user: CeleryUser) -> None:
    assert user.ask("answer = app.GroupResult.restore('0123456789ab')") is None


def test_groups_that_a_user_saves_are_left_as_they_are(user: CeleryUser) -> None:
    script = """
app.GroupResult("mine", [app.AsyncResult("a"), app.AsyncResult("b")]).save()
answer = [r.id for r in app.GroupResult.restore("mine")]
app.GroupResult.restore("mine").delete()
"""
    assert user.ask(script) == ["a", "b"]


# -- forgetting and keeping ---------------------------------------------------------------------------------------------
def test_forgetting_an_item_frees_its_blobs_and_its_record(builtin_rig: Rig, user: CeleryUser) -> None:
    job_id = keep(builtin_rig, rule_images(), items=2)
    assert wait_ended(builtin_rig, job_id) == "done"
    assert builtin_rig.cluster.jobs.unfetched(job_id) == 2 * 2 * 16 * 16 * 3 * 4
    script = """
result = app.AsyncResult(job + '-0')
result.get(timeout=60)
result.forget()
answer = app.AsyncResult(job + '-0').state, app.AsyncResult(job + '-1').get().index
"""
    assert user.ask(script, job=job_id) == ("PENDING", 1)
    assert {key.split(b":")[3] for key in blobs_of(builtin_rig, job_id)} == {b"1"}
    assert builtin_rig.cluster.jobs.unfetched(job_id) == 2 * 16 * 16 * 3 * 4
    user.ask("app.GroupResult.restore(job).forget()\nanswer = None", job=job_id)
    assert blobs_of(builtin_rig, job_id) == [] and builtin_rig.cluster.jobs.unfetched(job_id) == 0
    user.ask("app.AsyncResult(job + '-0').forget()\nanswer = None", job=job_id)  # once more changes nothing


def test_a_result_that_the_blob_server_lost_says_so(builtin_rig: Rig) -> None:
    job_id = keep(builtin_rig, rule_images())
    assert wait_ended(builtin_rig, job_id) == "done"
    builtin_rig.cluster.blob_client.delete(*blobs_of(builtin_rig, job_id))
    result = builtin_rig.cluster.app.AsyncResult(f"{job_id}-0")
    assert result.state == "SUCCESS"
    with pytest.raises(BlobMissing):
        result.get(timeout=10)


def test_a_job_whose_results_are_kept_needs_nobody_to_own_it(builtin_rig: Rig) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=1200), items=4)
    states = {seen.state for seen in distributed_comfy.watch(job_id, settings=settings_of(builtin_rig))}
    assert states <= {"pending", "running", "done"} and builtin_rig.cluster.jobs.owner(job_id) == ""
    assert len({key.split(b":")[3] for key in blobs_of(builtin_rig, job_id)}) == 4


def test_a_prompt_that_goes_on_behind_its_collector_is_refused_before_anything_runs(builtin_rig: Rig) -> None:
    prompt = rule_images()
    prompt["save"] = node("SaveImage", images=out("collect"), filename_prefix="x")
    before = len(builtin_rig.cluster.jobs.jobs())
    with pytest.raises(ResultsNeedCollector, match=r"what follows the collector \(nodes save\)"):
        keep(builtin_rig, prompt, items=2)
    assert len(builtin_rig.cluster.jobs.jobs()) == before


# -- results that a collector fetches -----------------------------------------------------------------------------------
@pytest.fixture
def collected(builtin_rig: Rig) -> Iterator[Callable[[], tuple[str, Any]]]:
    """A job of 3 whose item 0 lies in its collector's spool while the others run; calling it waits for the end."""
    running = builtin_rig.begin(rule_images(milliseconds=1500), items=5)
    job_id = running.queued()
    running.until(lambda: running.report.arrived)

    def end() -> tuple[str, Any]:
        return job_id, running.wait().done

    end.job_id = job_id  # type: ignore[attr-defined]
    end.index = running.report.arrived[0]  # type: ignore[attr-defined]
    yield end
    running.wait()


def test_what_a_collector_has_fetched_is_read_from_its_spool_on_the_same_host(
    builtin_rig: Rig, user: CeleryUser, collected: Any
) -> None:
    until(lambda: not [key for key in blobs_of(builtin_rig, collected.job_id) if key.split(b":")[3] == b"%d" % collected.index])
    output = user.ask("answer = app.AsyncResult(item).get(timeout=60)", item=f"{collected.job_id}-{collected.index}")
    assert numpy.array_equal(output.values["collect"]["images"][0], made(collected.index))
    assert not builtin_rig.cluster.jobs.job_state(collected.job_id).ended


def test_elsewhere_and_later_a_collected_result_says_where_it_went(builtin_rig: Rig, collected: Any) -> None:
    cluster = builtin_rig.cluster
    app, item = cluster.app, f"{collected.job_id}-{collected.index}"
    until(lambda: not [key for key in blobs_of(builtin_rig, collected.job_id) if key.split(b":")[3] == b"%d" % collected.index])
    place = cluster.jobs.spool(collected.job_id)
    assert place is not None and place.host == cluster.settings.host_name
    job_key = f"{cluster.settings.key_prefix}job:{collected.job_id}"
    cluster.client.hset(job_key, "spool", "/not/on/this/host")
    with pytest.raises(ResultCollected) as elsewhere:
        app.AsyncResult(item).get(timeout=10)
    assert (elsewhere.value.item_id, elsewhere.value.host, elsewhere.value.folder) == (item, place.host, place.out)
    cluster.client.hset(job_key, "spool", place.folder)
    _, delivery = collected()
    assert place.out == str(delivery.out)
    with pytest.raises(ResultCollected):
        app.AsyncResult(item).get(timeout=10)
    assert app.AsyncResult(item).state == "SUCCESS"


def test_forgetting_an_item_of_a_collected_job_takes_nothing_from_its_collector(builtin_rig: Rig) -> None:
    running = builtin_rig.begin(rule_images(milliseconds=200), items=6)
    job_id = running.queued()
    app = builtin_rig.cluster.app
    while builtin_rig.cluster.jobs.job_state(job_id).state != "done":
        for index in range(6):
            app.AsyncResult(f"{job_id}-{index}").forget()
        time.sleep(0.01)
    report = running.wait()
    assert numpy.array_equal(report.batch("collect"), numpy.concatenate([made(index) for index in range(6)]))
    assert len(builtin_rig.executions(job_id)) == 6, "no item ran twice"


# -- the ways in --------------------------------------------------------------------------------------------------------
def settings_of(rig: Rig) -> Settings:
    cluster = rig.cluster
    return read_settings(redis_url=cluster.redis_url, blob_url=cluster.blob_url, key_prefix=cluster.settings.key_prefix)


def test_the_python_api_submits_such_jobs_and_gives_an_application_to_ask(builtin_rig: Rig) -> None:
    settings = settings_of(builtin_rig)
    job = distributed_comfy.submit(rule_images(), items=2, results="celery", settings=settings)
    delivery = job.wait(60)
    assert delivery.kept and delivery.paths == [] and sorted(delivery.results) == [0, 1] and delivery.seeds[1] == str(2**40 + 1)
    with distributed_comfy.celery_app(settings=settings) as app:
        assert numpy.array_equal(app.AsyncResult(f"{job.id}-1").get(timeout=10).values["collect"]["images"][0], made(1))


def test_collecting_without_a_folder_is_refused(builtin_rig: Rig) -> None:
    with pytest.raises(SettingInvalid, match="collected results need a folder"):
        distributed_comfy.submit(rule_images(), settings=settings_of(builtin_rig))


def test_a_failed_job_is_reported_with_the_results_that_are_kept(builtin_rig: Rig) -> None:
    job = distributed_comfy.submit(failing(), items=4, results="celery", settings=settings_of(builtin_rig))
    with pytest.raises(distributed_comfy.errors.JobFailed):
        job.wait(60)
    assert job.delivery is not None and 1 not in job.delivery.results


def test_the_command_prints_the_ids_to_ask_for_and_leaves_no_file(builtin_rig: Rig, tmp_path: Path) -> None:
    cluster = builtin_rig.cluster
    line = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)
    done = line.run("run", line.write("graph.json", rule_images()), "--items", "3", "--results", "celery")
    assert done.status == 0, done.err
    ids = done.out.split()
    assert [item.split("-")[1] for item in ids] == ["0", "1", "2"]
    assert not (tmp_path / "output").exists()
    output = cluster.app.AsyncResult(ids[2]).get(timeout=10)
    assert numpy.array_equal(output.values["collect"]["images"][0], made(2))


def test_ctrl_c_cancels_such_a_job_and_keeps_what_is_finished(builtin_rig: Rig, tmp_path: Path) -> None:
    cluster = builtin_rig.cluster
    line = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)
    path = line.write("graph.json", rule_images(milliseconds=700))
    process = line.start("run", path, "--items", "6", "--results", "celery", "--json")
    job_id = until(lambda: next((job for job, state in cluster.jobs.jobs().items() if state.counts["done"] and not state.ended), None))
    done = line.interrupt(process)
    found = json.loads(done.out)
    assert done.status == 130 and found["job"] == job_id and found["error"]["code"] == "job_cancelled"
    assert 0 < len(found["items"]) < 6
    item = f"{job_id}-{found['items'][0]['index']}"
    assert cluster.app.AsyncResult(item).get(timeout=10).index == found["items"][0]["index"]


def test_an_application_of_ones_own_needs_only_urls(builtin_rig: Rig) -> None:
    cluster = builtin_rig.cluster
    job_id = keep(builtin_rig, rule_images())
    app = Celery(backend=f"tasks.backend:FrameBackend+{cluster.redis_url}", set_as_current=False)
    app.conf.result_backend_transport_options = {"global_keyprefix": cluster.settings.key_prefix, "blob_url": cluster.blob_url}
    assert AsyncResult(f"{job_id}-0", app=app).get(timeout=30).index == 0
    assert isinstance(redis.Redis.from_url(cluster.redis_url).get(f"{cluster.settings.key_prefix}celery-task-meta-{job_id}-0"), bytes)

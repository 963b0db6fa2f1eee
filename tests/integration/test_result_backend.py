"""Celery's result API over items, asked by processes that did not submit them: values, states, errors and groups."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy
import pytest
from celery import Celery
from PIL import Image

import distributed_comfy
from distributed_comfy.errors import NodeFailed, SettingInvalid
from tests.celery_user import CeleryUser
from tests.cluster_rig import Rig
from tests.command_line import until
from tests.kept_jobs import failing, keep, made, rule_images, settings_of, wait_ended
from tests.prompts import node, out
from tests.rule_nodes import picture

pytestmark = pytest.mark.redis


@pytest.fixture
def user(builtin_rig: Rig, tmp_path: Path) -> CeleryUser:
    return CeleryUser(builtin_rig.cluster, tmp_path)


def reads_of_blobs(rig: Rig) -> int:
    """Commands so far that read something from the blob server."""
    stats: Any = rig.cluster.blob_client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("get", "mget", "strlen", "getrange", "exists"))


# -- values -------------------------------------------------------------------------------------------------------------
def test_another_process_gets_the_tensors_of_an_item_bit_for_bit(rig: Rig, tmp_path: Path) -> None:
    job_id = keep(rig, rule_images(), items=3)
    script = "answer = [app.AsyncResult(f'{job}-{k}').get(timeout=60) for k in (2, 0, 1)]"
    outputs = CeleryUser(rig.cluster, tmp_path).ask(script, job=job_id)
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
    job_id = keep(builtin_rig, rule_images(milliseconds=6000))
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

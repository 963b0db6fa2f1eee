"""How long results are kept and by whom: until somebody forgets them, or by the job's collector; and the ways to ask for either."""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from celery import Celery
from celery.result import AsyncResult

import distributed_comfy
from distributed_comfy.errors import BlobMissing, JobFailed, ResultCollected, ResultsNeedCollector, SettingInvalid
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.run import SilentReporter, attach
from tests.celery_user import CeleryUser
from tests.cluster_rig import Rig, RunningJob
from tests.command_line import CommandLine, until
from tests.kept_jobs import blobs_of, failing, keep, made, rule_images, settings_of, wait_ended
from tests.prompts import node, out

pytestmark = pytest.mark.redis


@pytest.fixture
def user(builtin_rig: Rig, tmp_path: Path) -> CeleryUser:
    return CeleryUser(builtin_rig.cluster, tmp_path)


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


def test_whoever_attaches_to_such_a_job_collects_it(builtin_rig: Rig, tmp_path: Path) -> None:
    job_id = keep(builtin_rig, rule_images(milliseconds=200), items=4)
    until(lambda: builtin_rig.cluster.jobs.job_state(job_id).counts["done"])
    delivery = attach(builtin_rig.cluster, job_id, tmp_path, SilentReporter(), threading.Event())
    assert delivery.error is None and [image.index for image in delivery.images] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert blobs_of(builtin_rig, job_id) == []
    with pytest.raises(ResultCollected):
        builtin_rig.cluster.app.AsyncResult(f"{job_id}-0").get(timeout=10)


def test_a_prompt_that_goes_on_behind_its_collector_is_refused_before_anything_runs(builtin_rig: Rig) -> None:
    prompt = rule_images()
    prompt["save"] = node("SaveImage", images=out("collect"), filename_prefix="x")
    before = len(builtin_rig.cluster.jobs.jobs())
    with pytest.raises(ResultsNeedCollector, match=r"what follows the collector \(nodes save\)"):
        keep(builtin_rig, prompt, items=2)
    assert len(builtin_rig.cluster.jobs.jobs()) == before


# -- results that a collector fetches -----------------------------------------------------------------------------------
@dataclass
class HalfCollected:
    """A job that is paused when its first item lies in its collector's spool and no longer in the blob server."""

    rig: Rig
    running: RunningJob

    def __post_init__(self) -> None:
        self.job_id = self.running.queued()
        self.index: int = self.running.until(lambda: self.running.report.arrived)[0]
        self.rig.cluster.jobs.pause(self.job_id)
        self.item = f"{self.job_id}-{self.index}"
        until(lambda: not [key for key in blobs_of(self.rig, self.job_id) if key.split(b":")[3] == b"%d" % self.index])

    def end(self) -> Delivery:
        """Let the job come to its end."""
        if not self.rig.cluster.jobs.job_state(self.job_id).ended:
            self.rig.cluster.jobs.resume(self.job_id)
        return self.running.wait().done


@pytest.fixture
def collected(builtin_rig: Rig) -> Iterator[HalfCollected]:
    job = HalfCollected(builtin_rig, builtin_rig.begin(rule_images(milliseconds=700), items=5))
    yield job
    job.end()


def test_what_a_collector_has_fetched_is_read_from_its_spool_on_the_same_host(user: CeleryUser, collected: HalfCollected) -> None:
    output = user.ask("answer = app.AsyncResult(item).get(timeout=60)", item=collected.item)
    assert output.values["collect"]["images"][0].tobytes() == made(collected.index).tobytes()


def test_elsewhere_and_later_a_collected_result_says_where_it_went(builtin_rig: Rig, collected: HalfCollected) -> None:
    cluster, item = builtin_rig.cluster, collected.item
    app = cluster.app
    place = cluster.jobs.spool(collected.job_id)
    assert place is not None and place.host == cluster.settings.host_name
    job_key = f"{cluster.settings.key_prefix}job:{collected.job_id}"
    cluster.client.hset(job_key, "spool", "/not/on/this/host")
    with pytest.raises(ResultCollected) as elsewhere:
        app.AsyncResult(item).get(timeout=10)
    assert (elsewhere.value.item_id, elsewhere.value.host, elsewhere.value.folder) == (item, place.host, place.out)
    cluster.client.hset(job_key, "spool", place.folder)
    assert place.out == str(collected.end().out)
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
    with pytest.raises(JobFailed):
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


def test_what_an_application_of_ones_own_does_not_say_comes_from_the_environment(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = builtin_rig.cluster
    job_id = keep(builtin_rig, rule_images(), items=2)
    monkeypatch.setenv("DC_KEY_PREFIX", cluster.settings.key_prefix)
    monkeypatch.setenv("DC_BLOB_URL", cluster.blob_url)
    app = Celery(backend=f"tasks.backend:FrameBackend+{cluster.redis_url}", set_as_current=False)
    group = app.GroupResult.restore(job_id)
    assert [output.index for output in group.get(timeout=30)] == [0, 1]
    group.forget()
    assert blobs_of(builtin_rig, job_id) == [] and app.AsyncResult(f"{job_id}-0").state == "PENDING"

"""The Python API on real workers: `submit`, `watch`, `cancel`, and the handle of a job."""
from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import distributed_comfy
from distributed_comfy.errors import ItemsOutOfRange, JobCancelled, JobFailed, JobStateInvalid, JobUnknown, NoWorker
from distributed_comfy.settings import Settings, read_settings
from tests.cluster_rig import Rig
from tests.command_line import PROJECT, pictures, slow, texts, until
from tests.prompts import node, out

pytestmark = pytest.mark.redis


@pytest.fixture
def settings(builtin_rig: Rig) -> Settings:
    cluster = builtin_rig.cluster
    return read_settings(redis_url=cluster.redis_url, blob_url=cluster.blob_url, key_prefix=cluster.settings.key_prefix)


def test_a_submitted_job_gives_its_files_in_order(settings: Settings, tmp_path: Path) -> None:
    job = distributed_comfy.submit(pictures(), out=tmp_path, items=5, seed=20, sets=["make.width=40"], user="ann", settings=settings)
    assert len(job.id) == 12
    delivery = job.wait(60)
    assert [image.index for image in delivery.images] == list(range(5))
    assert [texts(path)["seed"] for path in delivery.paths] == list(range(20, 25))
    assert delivery.seeds == {index: str(20 + index) for index in range(5)}
    assert job.state().state == "done" and job.state().submitter == "ann" and job.delivery is delivery


def test_a_prompt_may_be_a_path_or_text_or_a_dict(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(pictures()))
    for number, prompt in enumerate((path, str(path), path.read_text(), pictures())):
        job = distributed_comfy.submit(prompt, out=tmp_path / str(number), items=1, settings=settings)
        assert len(job.wait(60).images) == 1


def test_waiting_can_give_up_without_ending_the_job(settings: Settings, tmp_path: Path) -> None:
    job = distributed_comfy.submit(slow(200), out=tmp_path, items=6, settings=settings)
    assert job.delivery is None
    with pytest.raises(TimeoutError, match=f"job {job.id} has not ended within 0.05 s"):
        job.wait(0.05)
    assert len(job.wait(60).images) == 6


def test_watch_tells_every_change_until_the_end(settings: Settings, tmp_path: Path) -> None:
    job = distributed_comfy.submit(slow(100), out=tmp_path, items=8, settings=settings)
    states = list(distributed_comfy.watch(job.id, settings=settings))
    done = [state.counts["done"] for state in states]
    assert done == sorted(done) and done[-1] == 8 and len(set(done)) >= 4
    assert [state.state for state in states][-1] == "done" and all(not state.ended for state in states[:-1])
    job.wait(60)


def test_a_cancelled_job_keeps_what_is_finished(settings: Settings, tmp_path: Path) -> None:
    job = distributed_comfy.submit(slow(200), out=tmp_path, items=60, settings=settings)
    until(lambda: list(tmp_path.glob("*.png")))
    job.cancel()
    with pytest.raises(JobCancelled, match="interrupted by its user"):
        job.wait(60)
    assert job.delivery is not None
    assert 1 <= len(job.delivery.images) < 60 and all(path.is_file() for path in job.delivery.paths)
    job.cancel()  # without effect
    assert job.state().state == "cancelled"


def test_anybody_can_cancel_by_id(settings: Settings, tmp_path: Path) -> None:
    job = distributed_comfy.submit(slow(200), out=tmp_path, items=60, settings=settings)
    distributed_comfy.cancel(job.id, reason="lunch", settings=settings)
    with pytest.raises(JobCancelled, match="lunch"):
        job.wait(60)
    assert [state.state for state in distributed_comfy.watch(job.id, settings=settings)] == ["cancelled"]


def test_a_failed_job_raises_with_what_was_saved(settings: Settings, tmp_path: Path) -> None:
    prompt = pictures()
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=102)
    prompt["wait"] = node("RuleSlow", images=out("fail"), milliseconds=100)
    prompt["collect"]["inputs"]["images"] = out("wait")
    job = distributed_comfy.submit(prompt, out=tmp_path, items=4, settings=settings)
    with pytest.raises(JobFailed, match="seed 102 brings no luck") as caught:
        job.wait(60)
    assert caught.value.index == 2
    assert job.delivery is not None and job.delivery.error is caught.value and len(job.delivery.images) >= 1


def test_what_cannot_be_queued_raises_at_once(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ItemsOutOfRange):
        distributed_comfy.submit(pictures(), out=tmp_path, items=0, settings=settings)
    with pytest.raises(NoWorker):
        distributed_comfy.submit(pictures(), out=tmp_path, settings=settings.model_copy(update={"key_prefix": "empty:"}))
    with pytest.raises(JobUnknown):
        distributed_comfy.cancel("0123456789ab", settings=settings)
    with pytest.raises(JobUnknown):
        list(distributed_comfy.watch("0123456789ab", settings=settings))


def test_an_ended_job_cannot_be_cancelled(settings: Settings, tmp_path: Path) -> None:
    job = distributed_comfy.submit(pictures(), out=tmp_path, items=1, settings=settings)
    job.wait(60)
    with pytest.raises(JobStateInvalid, match="is done"):
        distributed_comfy.cancel(job.id, settings=settings)


def test_several_jobs_of_one_process_run_at_the_same_time(settings: Settings, tmp_path: Path) -> None:
    jobs = [distributed_comfy.submit(slow(50), out=tmp_path / str(n), items=4, seed=n * 10, settings=settings) for n in range(3)]
    for number, job in enumerate(jobs):
        assert list(job.wait(60).seeds.values()) == [str(number * 10 + index) for index in range(4)]
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "collecting"])


def test_importing_the_package_loads_next_to_nothing_and_offers_the_api() -> None:
    code = (
        "import sys, distributed_comfy; before = set(sys.modules); assert {'submit', 'watch', 'cancel'} <= set(dir(distributed_comfy));"
        "heavy = {'torch', 'celery', 'redis', 'pydantic', 'numpy', 'click'} & before; assert not heavy, heavy;"
        "distributed_comfy.submit; assert 'celery' in sys.modules and 'torch' not in sys.modules;"
        "from distributed_comfy import Delivery, Job, JobState, cancel, watch"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sumbit'"):
        distributed_comfy.sumbit  # noqa: B018


def test_the_page_on_python_runs_as_it_stands(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("redis_url", "blob_url", "key_prefix"):
        monkeypatch.setenv(f"DC_{name.upper()}", getattr(settings, name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.json").write_text(json.dumps(slow(50)))
    page = (PROJECT / "docs/python.md").read_text(encoding="utf-8")
    code = "\n".join(line[4:] for line in page.splitlines() if line.startswith("    ") or not line)
    exec(compile(code, "docs/python.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert "done 8 of 8" in said and f"7 107 {Path('pictures', 'ComfyUI_00008_.png')}" in said
    assert said[-2].endswith("pictures were finished and are kept")
    assert said[-1].startswith("nothing was queued: items_out_of_range {'items': 0, ")

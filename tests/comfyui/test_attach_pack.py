"""A worker that drives a ComfyUI with the node pack of this project: all values as exact as those of a worker with a tree of its own."""
from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from distributed_comfy.engine.attach.pack_words import ATTACH_PATH, VISITS_PATH
from distributed_comfy.errors import JobFailed
from distributed_comfy.pack_token import KEY_HEADER, attach_key, kept_token
from distributed_comfy.settings import read_settings
from tests.cluster_fixtures import THREADS
from tests.cluster_rig import JobReport, Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.test_attach_cluster import by, slow_noise, until
from tests.comfyui.test_upscale_exactness import Form, upscaled
from tests.comfyui.tiles_by_hand import Rules
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import CommandLine
from tests.command_line import until as wait_until
from tests.prompts import node, out

SPLIT = {"seed": node("DistributedSeed", seed=2**53 + 1), "split": node("RuleSplit", seed=out("seed"))}
"""A value of each kind."""


def collected(nodes: dict[str, Any], **slots: Any) -> dict[str, Any]:
    return {**nodes, "collect": node("DistributedCollector", load_balance=False, **slots)}


@pytest.fixture(scope="module")
def packed(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI with the pack, which uses no cluster of the tests'."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("packed")))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="module")
def pair(
    comfy: Comfy, base_directory: Path, packed: ComfyServer, cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """Workers ``headless`` and ``attached``; the second one drives the ComfyUI with the pack."""
    from tasks.cluster import open_cluster

    folder = tmp_path_factory.mktemp("pack-rig")
    settings = read_settings(key_prefix="attach-pack:", cache_dir=folder / "cache")
    cluster = open_cluster(settings, cluster_servers.state_url, cluster_servers.blob_url)
    environment = {
        "DC_THREADS": str(THREADS), "COMFYUI_PATH": str(comfy.root), "DC_COMFYUI_PYTHON": comfy.python,
        "DC_COMFYUI_BASE_DIRECTORY": str(base_directory),
    }  # fmt: skip
    rig = Rig("comfyui", cluster, folder, environment)
    try:
        rig.start("attached", engine="attach", comfyui_url=packed.url, worker_tags="attached", workers_file=workers_file(packed))
        rig.start("headless", worker_tags="headless")
        yield rig
    finally:
        rig.close()
        cluster.close()


def workers_file(server: ComfyServer) -> Path:
    """Beside it lies the token of the user who runs that ComfyUI."""
    return server.line.folder / "home" / ".config" / "distributed-comfy" / "workers.json"


def key_of(server: ComfyServer) -> dict[str, str]:
    """The header of a worker that may come in."""
    token = kept_token(workers_file(server).with_name("comfyui.token"))
    assert token
    return {KEY_HEADER: attach_key(token)}


def on_both(rig: Rig, prompt: dict[str, Any], **options: Any) -> tuple[JobReport, JobReport]:
    """The job on each of the two workers alone; both have run it."""
    one, other = (rig.run(prompt, tags=[name], **options) for name in ("headless", "attached"))
    for report, name in ((one, "headless"), (other, "attached")):
        assert {result.worker for result in report.done.results.values()} == {name}
    return one, other


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, and of the same types."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, numpy.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other


def assert_same_values(one: JobReport, other: JobReport) -> None:
    """All that the collectors collected, the records of it, and the pictures."""
    assert_same(one.values, other.values)
    files = [{file.name: file.path.read_bytes() for file in report.done.files} for report in (one, other)]
    assert files[0] == files[1]
    shapes = [[capture_of(report, index) for index in sorted(report.done.results)] for report in (one, other)]
    assert shapes[0] == shapes[1]


def capture_of(report: JobReport, index: int) -> list[Any]:
    """Element types and shapes in a result, as its record has them; ComfyUI may run sinks in any order."""
    result = report.done.results[index]
    return sorted((one.node_id, one.slot, one.list_index, repr(described(one.value))) for one in result.captures)


def described(value: Any) -> Any:
    entries = getattr(value, "entries", None)
    if entries is not None:
        return {key: described(entry) for key, entry in entries.items()}
    return (value.dtype, tuple(value.shape)) if hasattr(value, "dtype") else value.literal


# -- exactness ---------------------------------------------------------------------------------------------------------------
def test_such_a_worker_offers_all_that_one_with_a_tree_offers_in_the_same_device_class(pair: Rig) -> None:
    live = pair.cluster.matching.live()
    ours, theirs = live["attached"], live["headless"]
    assert (ours.engine, ours.services, ours.device_class) == ("attach", None, theirs.device_class)
    assert theirs.output_types["KSampler"] == ours.output_types["KSampler"]


def test_generated_images_and_the_files_of_the_last_stage_are_those_of_a_headless_worker(pair: Rig) -> None:
    one, other = on_both(pair, distributed({}, "8", seed=700), items=3)
    assert len(one.batches("9")) == 3 and len(one.done.files) == 6
    assert_same_values(one, other)


def test_alpha_batches_lists_and_values_outside_0_to_1_are_kept(pair: Rig) -> None:
    seed = {"seed": node("DistributedSeed", seed=8)}
    wide = node("RuleImage", seed=out("seed"), width=16, height=8, batch_size=3, channels=4)
    several = node("RuleList", seed=out("seed"), length=3, batch_size=2, skip=0)
    for made in (wide, several):
        prompt = collected({**seed, "made": made}, images=out("made"))
        prompt["record"] = node("RuleRecord", label="last", images=out("collect"))
        one, other = on_both(pair, prompt, items=2)
        assert one.batch("collect").min() == -0.5
        assert_same_values(one, other)


def test_latents_with_all_their_keys_masks_and_audio_come_out_and_go_in(pair: Rig) -> None:
    prompt = collected(SPLIT, images=out("split", 0), masks=out("split", 1), latents=out("split", 2), audio=out("split", 3))
    prompt["record"] = node(
        "RuleRecord", label="got", images=out("collect", 0), audio=out("collect", 1), latent=out("collect", 2), mask=out("collect", 3),
        number=out("split", 4), real=out("split", 5), text=out("split", 6),
    )  # fmt: skip
    one, other = on_both(pair, prompt, items=3)
    assert {place[2] for place in one.values} == {"images", "masks", "latents", "audio", "value"}
    assert_same_values(one, other)
    assert one.record("got")["latent"]["batch_index"] == [3, 3, 3] and one.record("got")["number"] == 2**53 + 1


def test_an_upscale_is_redrawn_by_such_a_worker_and_shared_with_another(pair: Rig) -> None:
    prompt = upscaled(Form(300, 260, Rules(tile=128, padding=16, feather=8)), "chess")
    one, other = on_both(pair, prompt)
    assert len(one.planned) > 3
    shared = pair.run(prompt)
    for report in (one, other, shared):
        files = {file.name: file.path.read_bytes() for file in report.done.files}
        assert files == {file.name: file.path.read_bytes() for file in one.done.files}
    assert by(shared, "attached") and by(shared, "headless"), "both redrew tiles"
    assert_same(one.values, other.values)


def test_frames_travel_as_the_job_says(pair: Rig) -> None:
    one, other = on_both(pair, distributed({}, "8", seed=710, side=128), items=2, frames="fp16")
    assert_same_values(one, other)
    exact = pair.run(distributed({}, "8", seed=710, side=128), items=2, tags=["attached"])
    assert exact.batch("9").tobytes() != one.batch("9").tobytes()


def test_a_node_that_fails_and_a_value_that_cannot_travel_are_told_with_their_words(pair: Rig) -> None:
    prompt = {**slow_noise(), "slow": node("ProbeRaise", images=out("noise"), kind="ValueError")}
    error = pair.run(prompt, items=1, tags=["attached"]).error
    assert isinstance(error, JobFailed) and "node slow (ProbeRaise) raised ValueError: no such thing" in str(error)
    seed = {"seed": node("DistributedSeed", seed=8), "grown": node(
        "RuleImage", seed=out("seed"), width=16, height=8, batch_size=1, channels=3, grow=4
    )}  # fmt: skip
    prompt = collected(seed, images=out("grown"))
    prompt["record"] = node("RuleRecord", label="last", images=out("collect"))
    errors = {str(pair.run(prompt, items=2, tags=[name]).error).replace("attached", "headless") for name in ("attached", "headless")}
    assert len(errors) == 1, errors


# -- what stays --------------------------------------------------------------------------------------------------------------
def test_nothing_stays_in_that_comfyui_after_a_job(pair: Rig, packed: ComfyServer) -> None:
    prompt = distributed({"shown": node("PreviewImage", images=out("8"))}, "8", seed=720)
    assert len(pair.run(prompt, items=2, tags=["attached"]).done.files) == 6
    pair.wait_idle()
    assert [path for path in left_in(packed) if path.startswith(("output/", "temp/"))] == []
    wait_until(lambda: left_in(packed) == [], 60)  # input files are there for the next item a while longer
    assert packed.get("/history") == {} and packed.get("/queue") == {"queue_running": [], "queue_pending": []}


def left_in(server: ComfyServer) -> list[str]:
    """Files of workers in ComfyUI's folders; what nodes of packs name by themselves in the output folder is not ours to remove."""
    found = [path.relative_to(server.base) for kind in ("input", "output", "temp") for path in (server.base / kind).rglob("*")]
    return sorted(path.as_posix() for path in found if "distributed-comfy" in path.parts or path.parts[0] == "temp")


def test_a_worker_that_is_killed_midway_leaves_neither_its_prompt_nor_its_files(pair: Rig, packed: ComfyServer) -> None:
    prompt = {**slow_noise(4000), "kept": node("SaveImage", images=out("noise"), filename_prefix="before")}
    mortal = pair.start(
        "mortal", engine="attach", comfyui_url=packed.url, worker_tags="mortal", workers_file=workers_file(packed), lease_ttl_s=2
    )[0]  # fmt: skip
    running = pair.begin(prompt, items=1, tags=["mortal"])
    running.until(lambda: any(step.node_id == "slow" for step in running.report.steps))
    assert left_in(packed), "the other node has saved already"
    pair.workers.pop("mortal")
    mortal.kill()
    until(lambda: packed.get("/queue") == {"queue_running": [], "queue_pending": []}, timeout_s=40)
    wait_until(lambda: left_in(packed) == [], 60)
    assert packed.get("/history") == {}
    assert packed.log().count("nothing is heard of the worker of claim") == 1
    running.stop.set()
    running.wait()


def test_cancelling_ends_the_prompt_and_leaves_nothing(pair: Rig, packed: ComfyServer) -> None:
    running = pair.begin(slow_noise(2000), items=1, tags=["attached"])
    running.until(lambda: any(step.node_id == "slow" for step in running.report.steps))
    running.stop.set()
    running.wait()
    until(lambda: packed.get("/queue") == {"queue_running": [], "queue_pending": []}, timeout_s=5)
    pair.wait_idle()
    wait_until(lambda: left_in(packed) == [] and packed.get("/history") == {}, 60)


# -- who gets in -------------------------------------------------------------------------------------------------------------
def asked(server: ComfyServer, method: str, path: str, content: bytes | None = None, **headers: str) -> tuple[int, Any]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, content, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


VISIT = {"claim_id": "aa", "job_id": "0123456789ab", "worker": "w", "kind": "whole"}


def test_strangers_learn_the_version_alone_and_open_nothing(packed: ComfyServer, pair: Rig) -> None:
    status, facts = asked(packed, "GET", ATTACH_PATH)
    assert (status, facts["allowed"], facts["device_class"]) == (200, False, "")
    token = kept_token(workers_file(packed).with_name("comfyui.token"))
    body = json.dumps(VISIT).encode()
    for headers in ({}, {KEY_HEADER: "wrong"}, {KEY_HEADER: token}, {"X-Distributed-Comfy-Token": token}):
        for method, path in (
            ("POST", VISITS_PATH), ("DELETE", f"{VISITS_PATH}/aa"), ("GET", f"{VISITS_PATH}/aa/wanted"),
            ("PUT", f"{VISITS_PATH}/aa/blob?id=x&size=3"), ("GET", f"{VISITS_PATH}/aa/captures"), ("GET", f"{VISITS_PATH}/aa/blob?id=x"),
        ):  # fmt: skip
            assert asked(packed, method, path, body, **headers)[0] == 401, (method, path)


def test_the_key_of_a_worker_opens_no_other_route_and_pages_of_other_sites_get_nothing(packed: ComfyServer, pair: Rig) -> None:
    key = key_of(packed)[KEY_HEADER]
    as_token = {"X-Distributed-Comfy-Token": key, KEY_HEADER: key}
    assert packed.ask("POST", "/distributed_comfy/options", {"debug": True}, **as_token)[0] == 401
    for origin in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "elsewhere.example"}):
        assert packed.ask("POST", VISITS_PATH, VISIT, **key_of(packed), **origin)[0] == 403
        assert packed.ask("GET", ATTACH_PATH, None, **key_of(packed), **origin)[0] == 403


@pytest.mark.parametrize("wrong", [{"claim_id": "../up"}, {"worker": "../up"}, {"worker": ""}, {"kind": "other"}, {"feed": 3}])
def test_a_visit_with_names_that_are_none_is_refused(packed: ComfyServer, pair: Rig, wrong: dict[str, Any]) -> None:
    assert packed.ask("POST", VISITS_PATH, {**VISIT, **wrong}, **key_of(packed))[0] == 400


def test_a_frame_that_nobody_waits_for_is_not_taken_and_what_is_no_visit_is_not_found(packed: ComfyServer, pair: Rig) -> None:
    key = key_of(packed)
    assert packed.ask("GET", f"{VISITS_PATH}/aa/wanted", None, **key)[0] == 404
    assert packed.ask("POST", VISITS_PATH, VISIT, **key) == (200, {"files": []})
    status, said = asked(packed, "PUT", f"{VISITS_PATH}/aa/blob?id=x&size=3", b"abc", **key)
    assert status == 400 and "nothing waits for such a frame" in said
    assert packed.ask("GET", f"{VISITS_PATH}/aa/captures", None, **key) == (200, {"captures": [], "reached": [], "failure": None})
    assert packed.ask("DELETE", f"{VISITS_PATH}/aa", None, **key) == (200, {})
    assert packed.ask("GET", f"{VISITS_PATH}/aa/captures", None, **key)[0] == 404


def test_our_internal_nodes_refuse_a_prompt_that_is_no_visit(packed: ComfyServer, pair: Rig) -> None:
    prompt = {"n": node("TinyNoise", size=8, batch_size=1, seed=1), "s": node("DistributedSink", claim_id="x", images=out("n"))}
    entry = packed.wait(packed.queue(prompt))
    assert entry["status"]["status_str"] == "error" and "works only inside a job" in str(entry["status"]["messages"])
    packed.post("/history", {"clear": True})


# -- without the pack's consent ----------------------------------------------------------------------------------------------
def test_without_the_token_images_come_as_8_bits_and_one_line_says_what_to_do(
    pair: Rig, packed: ComfyServer, tmp_path: Path
) -> None:
    stranger = pair.start(
        "stranger", engine="attach", comfyui_url=packed.url, worker_tags="stranger", workers_file=tmp_path / "workers.json",
        describe_interval_s=1,
    )[0]  # fmt: skip
    try:
        live = pair.cluster.matching.live()["stranger"]
        assert live.device_class.endswith("images of 8 bits") and live.services is not None
        assert by(pair.run(distributed({}, "8", seed=730), items=1, tags=["stranger"]), "stranger")
        assert stranger.log().count("wants its token from this worker; set DC_COMFYUI_TOKEN") == 1
    finally:
        pair.stop("stranger")


def test_a_token_that_is_given_opens_the_pack_and_a_wrong_one_ends_the_worker_with_the_remedy(
    pair: Rig, packed: ComfyServer, tmp_path: Path
) -> None:
    token = kept_token(workers_file(packed).with_name("comfyui.token"))
    file = tmp_path / "token"
    file.write_text(token + "\n")
    elsewhere = {"engine": "attach", "comfyui_url": packed.url, "workers_file": tmp_path / "workers.json"}
    guest = pair.start("guest", comfyui_token=token, **elsewhere)[0]
    assert pair.cluster.matching.live()["guest"].services is None
    assert token not in guest.log()
    pair.stop("guest")
    (tmp_path / "line").mkdir()
    line = CommandLine(
        tmp_path / "line", DC_REDIS_URL=pair.cluster.redis_url, DC_BLOB_URL=pair.cluster.blob_url, DC_KEY_PREFIX="attach-wrong:"
    )
    given = ("worker", "--engine", "attach", "--comfyui-url", packed.url, "--comfyui-token")
    done = line.run(*given, token[::-1])
    assert done.status != 0 and "does not take DC_COMFYUI_TOKEN" in done.err and "`distributed-comfy comfyui token`" in done.err
    assert token[::-1] not in done.err
    refused = line.run(*given, "short")
    assert refused.status == 2 and "--comfyui-token" in refused.err and "short" not in refused.err
    missing = line.run(*given, f"@{tmp_path / 'none'}")
    assert missing.status == 2 and "--comfyui-token: cannot read" in missing.err


def test_a_pack_of_another_version_is_used_like_a_comfyui_without_one(
    pair: Rig, comfy: Comfy, packed_python: str, base_directory: Path, tmp_path: Path
) -> None:
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path))
    (door,) = server.base.glob("custom_nodes/*/__init__.py")
    lines = door.read_text()
    at = lines.index("from distributed_comfy")
    door.write_text(lines[:at] + "import distributed_comfy; distributed_comfy.__version__ = '0.0.1'\n    " + lines[at:])
    try:
        server.start()
        worker = pair.start("older", engine="attach", comfyui_url=server.url, worker_tags="older", workers_file=workers_file(server))[0]
        assert pair.cluster.matching.live()["older"].device_class.endswith("images of 8 bits")
        assert by(pair.run(distributed({}, "8", seed=740), items=1, tags=["older"]), "older")
        assert worker.log().count("is of version 0.0.1; install version") == 1
        pair.stop("older")
    finally:
        server.close()


def test_prompts_of_a_worker_stay_where_it_queued_them(pair: Rig, packed: ComfyServer) -> None:
    """Ordinary prompts of that ComfyUI may run on workers; one that a worker queued there would go round in a circle."""
    from distributed_comfy.comfyui.ordinary import OrdinaryPrompts

    item = (0, "p", {}, {"client_id": "distributed-comfy-attached"}, [])
    assert OrdinaryPrompts._judge(object(), item, {}) == "a worker has queued it here"  # type: ignore[arg-type]

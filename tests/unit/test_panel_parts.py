"""Parts of the panel that need no server: words, colours, places in the queue, differences, its contract and its files."""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from distributed_comfy.agent.configuration import WorkerConfiguration
from distributed_comfy.comfyui.options import Options
from distributed_comfy.errors import (
    NoAgent,
    OrderRefused,
    RedisUnreachable,
    SettingInvalid,
    ValidationRefused,
    WorkerFieldsWrong,
    WorkersFileWrong,
    WorkerUnknown,
    all_errors,
)
from distributed_comfy.orchestrator.progress import Step
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.panel.contract import check_body, operations
from distributed_comfy.panel.explained import extra_arguments
from distributed_comfy.panel.job_views import Estimate, Pace, Power, estimates, shown_job, with_time_for_a_collector
from distributed_comfy.panel.page import page_file
from distributed_comfy.panel.routes import Panel
from distributed_comfy.panel.steps import Steps
from distributed_comfy.panel.watch import Change, difference
from distributed_comfy.panel.words import item_error, split_remedy, status_of, told
from distributed_comfy.panel.worker_logs import LogQuery
from distributed_comfy.panel.worker_orders import checked_fields
from distributed_comfy.panel.worker_views import WorkerSources, shown_worker, state_of
from distributed_comfy.state.records import HostWorker, JobState, WorkerFacts, WorkerState
from distributed_comfy.state.status import RunningItem, WorkerStatus
from distributed_comfy.state.worker_log import LogLine
from tests.panel_contract import bodies, check, declared, document, with_bodies


# -- the contract --------------------------------------------------------------------------------------------------------
def test_every_operation_has_a_method_and_no_method_is_left_over() -> None:
    names = [each.name for each in operations()]
    assert len(names) == len(set(names))
    assert all(callable(getattr(Panel, name, None)) for name in names if name != "get_health")
    handlers = {name for name in vars(Panel) if not name.startswith("_")} - {"routes", "end", "halt"}
    assert handlers == set(names) - {"get_health"}


def test_only_the_contract_and_the_health_need_no_token() -> None:
    assert {each.name for each in operations() if each.is_open} == {"get_openapi", "get_health"}


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [found for each in value.values() for found in references(each)]
        return [found for each in value for found in references(each)] if isinstance(value, list) else []

    for schema in document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in references(document()):
        found: Any = document()
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    assert all(each.operation["responses"].keys() >= {"200"} for each in declared())


def test_the_contract_has_every_field_of_a_worker_and_every_option() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["WorkerFields"]["properties"].keys() == WorkerConfiguration.model_fields.keys()
    assert schemas["Options"]["properties"].keys() == schemas["OptionChanges"]["properties"].keys() == Options.model_fields.keys()


@pytest.mark.parametrize("each", list(operations()), ids=lambda each: each.name)
def test_bodies_that_fit_pass_and_what_is_unknown_or_missing_is_told(each: Any) -> None:
    if each.body is None:
        return
    check_body(each, bodies()[each.name])
    if each.name == "change_options":  # the options themselves say it better
        return
    with pytest.raises(BadRequest) as wrong:
        check_body(each, {"nonsense": 1})
    assert "nonsense" in wrong.value.fields


def test_wrong_kinds_of_values_are_told_by_field() -> None:
    order = next(each for each in operations() if each.name == "order_job")
    with pytest.raises(BadRequest) as wrong:
        check_body(order, {"order": "explode", "priority": True, "reason": 5})
    assert wrong.value.fields.keys() == {"order", "priority", "reason"} and "cancel" in wrong.value.fields["order"]
    with pytest.raises(BadRequest, match="from 0 to 9"):
        check_body(order, {"order": "priority", "priority": 10})


def test_every_body_of_the_tests_is_as_the_contract_has_it() -> None:
    for each, body in with_bodies():
        check(each.operation["requestBody"]["content"]["application/json"]["schema"], body, each.name)


# -- words ---------------------------------------------------------------------------------------------------------------
def test_the_remedy_of_an_error_stands_apart() -> None:
    wrong, remedy = split_remedy(WorkerUnknown(name="x"))
    assert wrong == "no worker 'x'" and remedy == "`distributed-comfy workers list` shows the known ones"
    refused = OrderRefused(what="worker a", reason="it is disabled; enable starts it")
    assert split_remedy(refused) == ("worker a: it is disabled", "enable starts it")


def test_message_and_remedy_of_every_error_are_its_whole_sentence() -> None:
    for cls in all_errors():
        error = cls(**{name: 1 if "!" not in name else "x" for name in cls.field_names()})
        message, remedy = split_remedy(error)
        assert str(error) == (f"{message}; {remedy}" if remedy else message) or str(error).rstrip("; ") == message


def test_statuses_tell_apart_who_is_wrong() -> None:
    assert status_of(WorkerUnknown(name="x")) == 404
    assert status_of(OrderRefused(what="a", reason="b")) == 409
    assert status_of(RedisUnreachable(url="u", reason="r", setting="s")) == status_of(NoAgent(host="h", alive="none")) == 503
    assert status_of(WorkerFieldsWrong(shown="x", wrong={})) == 400


def test_wrong_fields_are_named_without_their_place_in_the_file() -> None:
    file = WorkersFileWrong(source="workers edit", place="workers.pc1-cuda0.device", reason="must be cpu")
    assert told(file)["fields"] == {"device": "must be cpu"}


def test_an_items_error_has_node_and_traceback_whatever_form_the_traceback_has() -> None:
    facts = {"node_id": "3", "class_type": "Sampler", "exception_type": "E", "exception_message": "m", "traceback": ["a\n", "b"]}
    found = item_error({"code": "node_failed", "fields": facts, "worker": "w"})
    assert found and (found["node_id"], found["node_class"], found["worker"], found["traceback"]) == ("3", "Sampler", "w", "a\nb\n")
    assert item_error({"code": "of another version", "fields": {"x": 1}})["code"] == "remote_error"  # type: ignore[index]
    assert item_error(None) is None


WEB = Path(__file__).parents[2] / "distributed_comfy" / "panel" / "web"


# -- workers -------------------------------------------------------------------------------------------------------------
KEPT = HostWorker("w", "running", "cpu")
ROW = WorkerState(WorkerFacts("w", "pc1", "cpu", "builtin", started_by="agent"), "idle", capability="c")
STATUS = WorkerStatus("w", "pc1", "cpu", "idle", 5)
BUSY = replace(ROW, state="busy", claims=("0123456789ab-3",))


@pytest.mark.parametrize(
    ("found", "state", "colour"),
    [
        (WorkerSources("w", KEPT, row=ROW, status=STATUS), "idle", "green"),
        (WorkerSources("w", KEPT, row=replace(ROW, state="ticketed")), "idle", "green"),
        (WorkerSources("w", KEPT), "starting", "yellow"),
        (WorkerSources("w", replace(KEPT, phase="disabled")), "disabled", "grey"),
        (WorkerSources("w", replace(KEPT, phase="failed", reason="no GPU; look")), "failed", "red"),
        (WorkerSources("w", replace(KEPT, phase="backing-off", reason="it was killed"), row=ROW), "backing-off", "red"),
        (WorkerSources("w", KEPT, row=BUSY), "busy", "green"),
        (WorkerSources("w", KEPT, row=replace(BUSY, drained=True)), "draining", "yellow"),
        (WorkerSources("w", KEPT, row=replace(ROW, state="drained", drained=True)), "drained", "yellow"),
        (WorkerSources("w", KEPT, row=replace(ROW, state="down"), status=replace(STATUS, state="down", reason="it died")), "down", "red"),
        (WorkerSources("w", KEPT, row=BUSY, status=replace(STATUS, state="ending")), "stopping", "yellow"),
        (WorkerSources("w", row=replace(ROW, state="lost")), "lost", "red"),
        (WorkerSources("w", replace(KEPT, phase="starting"), row=replace(ROW, state="lost")), "starting", "yellow"),
        (WorkerSources("w", replace(KEPT, phase="starting", pid=7, reason="it was killed"), row=ROW), "starting", "red"),
        (WorkerSources("w", replace(KEPT, phase="starting", pid=7), row=BUSY), "starting", "yellow"),
        (WorkerSources("w", KEPT, keeper="pc2", gone_ms=5), "lost", "red"),
        (WorkerSources("w", replace(KEPT, phase="failed", reason="no GPU"), keeper="pc2", gone_ms=5), "lost", "red"),
        (WorkerSources("w", replace(KEPT, phase="stopped"), keeper="pc2", gone_ms=5), "stopped", "grey"),
        (WorkerSources("w", replace(KEPT, phase="stopped"), keeper="pc2", row=BUSY, gone_ms=5), "busy", "green"),
    ],
)
def test_a_worker_has_one_state_one_colour_and_red_has_a_reason_and_a_remedy(found: WorkerSources, state: str, colour: str) -> None:
    shown = shown_worker(found)
    check(document()["components"]["schemas"]["Worker"], shown, "worker")
    assert (state_of(found), shown["colour"]) == (state, colour)
    if colour == "red":
        assert shown["reason"] and shown["remedy"]
    if colour == "green":
        assert not shown["reason"]


def test_a_worker_whose_engine_ends_again_and_again_is_said_to_have_a_log() -> None:
    status = replace(STATUS, state="down", reason="the engine ended with signal 11 (SIGSEGV); it starts again after 3 s")
    shown = shown_worker(WorkerSources("w", KEPT, row=replace(ROW, state="down"), status=status))
    assert shown["reason"] == "the engine ended with signal 11 (SIGSEGV)"
    assert shown["remedy"] == "it starts again after 3 s; if that does not help, look into its log"
    killed = replace(status, reason="the engine ended with signal 9 (SIGKILL); it starts again after 3 s")
    shown = shown_worker(WorkerSources("w", KEPT, row=replace(ROW, state="down"), status=killed))
    assert shown["reason"] == "the engine ended with signal 9 (SIGKILL)" and "its computer was out of memory" in shown["remedy"]


def test_what_belongs_to_the_command_line_is_left_out_of_an_error() -> None:
    error = SettingInvalid(name="--port", reason="cannot listen on 192.0.2.2 port 47380: Address already in use; end the program")
    assert split_remedy(error) == ("cannot listen on 192.0.2.2 port 47380: Address already in use", "end the program")
    assert split_remedy(SettingInvalid(name="DC_PORT", reason="too high"))[0] == "DC_PORT: too high"


PATH = "COMFYUI_PATH: /nope is not ComfyUI's folder (it has no main.py and nodes.py)"


@pytest.mark.parametrize(
    ("reason", "field", "words"),
    [
        (PATH, "comfyui_path", "“ComfyUI's folder”"),
        ("DC_COMFYUI_PYTHON: /nope/python is not a program", "comfyui_python", "“Python of ComfyUI”"),
        ("the engine did not start: No module named 'torch'; it starts again after 7 s", "comfyui_python", "install torch"),
        ("ComfyUI needs yaml, which /p does not have; run: /p -m pip install -r r", "comfyui_python", "run: /p -m pip install -r r, or"),
        ("it ended with exit status 1: main.py: error: unrecognized arguments: --fastt", "comfyui_args", "“Extra arguments of ComfyUI”"),
        ("main.py: error: argument --cache-lru: expected one argument", "comfyui_args", "“Extra arguments of ComfyUI”"),
        ("cuda:5 is not on this host, which has cuda:0, cpu; see that the driver lists it (nvidia-smi)", "device", "has cuda:0, cpu"),
        ("the engine did not start: torch 2.7 cannot use cuda:0; use --device cpu", "device", "install for it a torch"),
        ("it ended with exit status 1: the disk is full", "", "look into its log"),
    ],
)
def test_a_worker_that_can_only_fail_again_names_the_field_of_its_settings(reason: str, field: str, words: str) -> None:
    kept = replace(KEPT, phase="failed", reason=reason)
    shown = shown_worker(WorkerSources("w", kept, editable=True, devices=("cuda:0", "cpu")))
    check(document()["components"]["schemas"]["Worker"], shown, "worker")
    assert shown["repair"] == field and words in shown["remedy"] and ";" not in shown["reason"]
    assert "COMFYUI_P" not in shown["reason"], "nobody has set a variable"
    assert not field or "press “Settings”" in shown["remedy"]
    for label in re.findall("“(.*?)”", shown["remedy"]):
        assert f'"{label}"' in (WEB / "texts.js").read_text(encoding="utf-8"), "the form calls it otherwise"
    assert shown_worker(WorkerSources("w", kept))["repair"] == "", "its settings cannot be changed from here"
    assert shown_worker(WorkerSources("w", replace(kept, phase="stopped"), editable=True))["repair"] == ""


def test_workers_are_offered_only_orders_that_make_sense_to_whoever_keeps_them() -> None:
    def by(starter: str) -> list[str]:
        found: list[str] = shown_worker(WorkerSources("w", row=replace(ROW, facts=replace(ROW.facts, started_by=starter))))["orders"]
        return found

    assert {"stop", "start", "enable"} & set(by("systemd")) == set() and "restart" in by("systemd")
    assert "stop" in by("hand") and "restart" not in by("hand") and "edit" not in by("hand")
    assert by("comfyui") == []
    assert shown_worker(WorkerSources("w", KEPT, keeper="pc2", gone_ms=5))["orders"] == []
    assert not shown_worker(WorkerSources("w", row=ROW, editable=True))["editable"]


def test_a_step_is_newer_than_the_status_and_keeps_its_class_only_for_the_same_node() -> None:
    steps, running = Steps(), RunningItem("0123456789ab-3", "generate", node_id="7", node_class="KSampler", value=2, maximum=20)
    status = replace(STATUS, state="busy", items=(running,))
    steps.hear("0123456789ab", Step(3, "w", "7", 5, 20))

    def now() -> dict[str, Any]:
        own = {(job_id, index): step for (job_id, index, _), step in steps.all().items()}
        found: dict[str, Any] = shown_worker(WorkerSources("w", KEPT, row=BUSY, status=status, steps=own))["items"][0]
        return found

    shown = now()
    assert (shown["node_class"], shown["value"], shown["preview"]) == ("KSampler", 5, 0)
    steps.hear("0123456789ab", Step(3, "w", "8", 1, 4))
    steps.hear("0123456789ab", Step(3, "w", "8", preview=b"\xff\xd8"))
    shown = now()
    assert (shown["node_id"], shown["node_class"], shown["value"], shown["preview"]) == ("8", "", 1, 1)


def test_steps_are_kept_in_bounds() -> None:
    steps = Steps()
    for number in range(2000):
        steps.hear("0123456789ab", Step(number, "w", "1", 1, 2))
    assert len(steps.all()) <= 512 and steps.of("0123456789ab", 1999, "w") is not None
    steps.hear("0123456789ab", Step(1999, "w", "1", preview=bytes(3 * 2**20)))
    assert steps.of("0123456789ab", 1999, "w").number == 0  # type: ignore[union-attr]
    for number in range(100):
        steps.hear("0123456789ab", Step(number, "w", "1", preview=bytes(2**20)))
    assert sum(len(step.preview) for step in steps.all().values()) <= 64 * 2**20


@pytest.mark.parametrize("fields", [{"device": None}, {"environment": {"HF_HOME": None}}, {"comfyui_args": "--a 'b c'"}, {}])
def test_nulls_and_texts_of_arguments_are_taken_as_an_agent_takes_them(fields: dict[str, Any]) -> None:
    found = checked_fields(fields)
    assert found.get("comfyui_args", []) in ([], ["--a", "b c"]) and found.keys() == fields.keys()


def test_all_wrong_fields_are_told_at_once() -> None:
    with pytest.raises(WorkerFieldsWrong) as wrong:
        checked_fields({"device": "x", "threads": 99_999, "tags": "a", "comfyui_args": "'"})
    assert wrong.value.fields["wrong"].keys() == {"device", "threads", "tags", "comfyui_args"}


# -- jobs ----------------------------------------------------------------------------------------------------------------
def job(state: Any = "pending", *, pending: int = 4, running: int = 0, done: int = 0, **facts: Any) -> JobState:
    counts = {"total": pending + running + done, "pending": pending, "running": running, "done": done, "failed": 0}
    return JobState(state, counts=counts, **facts)


def test_jobs_wait_by_priority_then_age_and_those_that_run_have_no_place() -> None:
    jobs = {
        "late": job(created_ms=30), "first": job(created_ms=20), "urgent": job(created_ms=40, priority=9),
        "runs": job("running", running=1, created_ms=10), "paused": job("paused", created_ms=1),
    }  # fmt: skip
    found = estimates(jobs, {}, {}, 0, Power(2, 1.0))
    assert {name: each.position for name, each in found.items()} == {"runs": 0, "urgent": 1, "first": 2, "late": 3}
    assert found["runs"].ends_ms < found["urgent"].ends_ms < found["first"].ends_ms < found["late"].ends_ms


def test_places_far_behind_are_told_in_steps_so_that_few_rows_change() -> None:
    jobs = {f"{number:04}": job(created_ms=number) for number in range(1000)}
    before = estimates(jobs, {}, {}, 0, Power(0, 0.0))
    assert [before[f"{number:04}"].position for number in (0, 19, 20, 199, 200, 999)] == [1, 20, 30, 200, 300, 1000]
    del jobs["0000"]
    after = estimates(jobs, {}, before, 0, Power(0, 0.0))
    assert sum(after[name] != before[name] for name in after) < 60


def test_nobody_knows_when_a_job_ends_without_workers_or_experience() -> None:
    for power in (Power(0, 1.0), Power(3, 0.0)):
        assert estimates({"a": job()}, {}, {}, 1000, power)["a"] == Estimate(1, 0)


def test_a_job_under_way_is_judged_by_its_own_pace_and_told_steadily() -> None:
    jobs = {"a": job("running", pending=5, running=1, done=6)}
    paces = {"a": Pace(0, 2)}
    first = estimates(jobs, paces, {}, 8000, Power(1, 99.0))["a"]
    assert first.ends_ms == 8000 + 6 * 2000
    again = estimates(jobs, paces, {"a": first}, 8400, Power(1, 99.0))["a"]
    assert again.ends_ms == first.ends_ms


@pytest.mark.parametrize("state", ["pending", "running", "paused", "parked", "done", "failed", "cancelled"])
def test_every_job_is_as_the_contract_has_it(state: Any) -> None:
    shown = shown_job("0123456789ab", job(state, reason="why; do this"), Estimate(), mine=True)
    check(document()["components"]["schemas"]["Job"], shown, "job")
    assert (shown["reason"], shown["remedy"]) == ("why", "do this") and ("retry" in shown["orders"]) == (state in ("failed", "cancelled"))


def test_a_prompt_that_is_not_valid_is_not_offered_again_and_says_what_to_do() -> None:
    refused = ValidationRefused(details="node 4 (KSampler): steps must be a number").to_wire()
    shown = shown_job("0123456789ab", job("failed", error=refused), Estimate(), mine=True)
    assert shown["orders"] == [] and shown["reason"].startswith("the prompt is not valid: node 4")
    assert shown["remedy"] == "correct it in ComfyUI, and run it again as a new job"


def test_a_job_that_has_just_been_told_to_go_on_is_not_called_parked_before_its_collector_can_be_there() -> None:
    parked = job("parked", reason="its owner is gone", retried_ms=1_000_000)
    fresh = with_time_for_a_collector(parked, 1_010_000)
    assert (fresh.state, fresh.reason) == ("pending", "")
    assert with_time_for_a_collector(parked, 1_030_000) is parked
    never = job("parked", reason="its owner is gone")
    assert with_time_for_a_collector(never, 1_700_000_000_000) is never


# -- what is told --------------------------------------------------------------------------------------------------------
def parts(**changes: Any) -> dict[str, Any]:
    return {"servers": {}, "master": None, "invites": 0, "tunnel": {}, "agent": "here", "hosts": {}, "workers": {}, "jobs": {}, **changes}


def test_only_what_differs_is_told_and_what_is_gone_is_null() -> None:
    before = parts(workers={"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1}})
    after = parts(workers={"a": {"x": 1}, "b": {"x": 2}, "d": {"x": 1}}, invites=2)
    assert difference(before, after) == {"invites": 2, "workers": {"b": {"x": 2}, "c": None, "d": {"x": 1}}}
    assert difference(after, parts(**after)) == {}


def test_items_are_told_to_those_who_watch_their_job() -> None:
    change = Change(3, {"revision": 3, "now_ms": 1}, {"a": {"0": None}})
    assert change.text("") == "" and change.text("b") == ""
    assert '"items": {"a": {"0": null}}' in change.text("a")


def test_lines_of_a_log_are_chosen_by_level_source_and_text() -> None:
    lines = [LogLine("worker", "INFO", "Began"), LogLine("engine", "WARNING", "hot"), LogLine("engine", "ERROR", "Out of memory")]
    assert [line.text for line in LogQuery(level="WARNING").chosen(lines)] == ["hot", "Out of memory"]
    assert [line.text for line in LogQuery(level="ERROR").chosen(lines)] == ["Out of memory"]
    assert [line.text for line in LogQuery(search="OUT OF").chosen(lines)] == ["Out of memory"]
    assert [line.text for line in LogQuery(1, source="engine").chosen(lines)] == ["Out of memory"]


# -- files ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "..", "", ".", "link.js", "/etc/passwd", "a\\..\\b", "C:x", "x\0", "a//b"])
def test_nothing_outside_the_pages_folder_is_given(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "web"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "link.js").symlink_to(tmp_path / "secret")
    (folder / "a" / "page.js").write_text("")
    assert page_file(folder, name) is None
    assert page_file(folder, "a/page.js") == folder / "a" / "page.js"


def test_arguments_exclude_each_other_both_ways() -> None:
    found = {each["argument"]: each for each in extra_arguments()}
    for name, each in found.items():
        assert each["words"] and name not in each["excludes"]
        assert all(name in found[other]["excludes"] for other in each["excludes"] if other in found), name

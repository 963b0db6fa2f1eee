"""Saved workflows of ComfyUI-Distributed in the real editor: they load, mean what they meant, are saved as they were, and run."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.browser import ComfyPage, comfy_page
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.examples_of_before import CONTROL, EXAMPLES, Example
from tests.comfyui.saved_workflows import OLD_COLLECTOR, UPSCALE_INPUTS, UPSCALE_VALUES, chosen, collected, sampled, upscaled, valued
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import CommandLine
from tests.prompts import node, out


@pytest.fixture(scope="module")
def running(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI with the pack."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("saved")))
    server.start(DC_HOST="pc1")
    server.wait_ready()
    yield server
    server.close()


@pytest.fixture(scope="module")
def page(running: ComfyServer) -> Iterator[ComfyPage]:
    """Its editor."""
    with comfy_page(running, running.line.folder) as page:
        yield page


@pytest.mark.parametrize(
    ("collector", "load_balance"),
    [
        ({**OLD_COLLECTOR, "values": None}, False),
        ({**OLD_COLLECTOR, "values": []}, False),
        ({"inputs": ["images IMAGE", "audio AUDIO"], "outputs": ["images IMAGE", "audio AUDIO"], "values": [True]}, True),
    ],
    ids=["no values", "empty values", "with load_balance and audio"],
)
def test_every_variant_of_the_collector_loads_and_runs(
    running: ComfyServer, page: ComfyPage, collector: dict[str, Any], load_balance: bool
) -> None:
    page.load(collected(collector))
    prompt = page.prompt()
    assert prompt["2"]["class_type"] == "DistributedCollector"
    inputs = prompt["2"]["inputs"]
    assert inputs["images"] == ["1", 0] and inputs["load_balance"] is load_balance and inputs["items"] == 0, inputs
    assert prompt["3"]["inputs"]["images"] == ["2", 0]
    entry = running.execute(prompt)
    assert len(entry["outputs"]["3"]["images"]) == 4
    again = page.saved()
    page.load(again)
    assert page.prompt() == prompt


def expected_links(example: Example) -> dict[tuple[str, str], list[Any]]:
    """Node and input -> what it is to be linked to, with bypassed nodes left out."""
    modes = {node["id"]: node["mode"] for node in example.nodes}
    into = {(target, example.nodes[target - 1]["inputs"][place]["name"]): (source, slot) for source, slot, target, place in example.links}
    found = {}
    for (target, name), (source, slot) in into.items():
        if modes[source]:
            source, slot = into[source, "image"]
        if not modes[target] and target not in example.missing:
            found[str(target), name] = [str(source), slot]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_files_of_the_five_examples_load_with_every_value_and_link_in_its_place(page: ComfyPage, name: str) -> None:
    example = EXAMPLES[name]()
    page.load(example.file())
    page.close_dialogs()
    prompt = page.prompt()
    links = expected_links(example)
    for (target, slot), source in links.items():
        assert prompt[target]["inputs"][slot] == source, (target, slot)
    for node_id, values in example.values.items():
        if node_id in example.missing or example.nodes[node_id - 1]["mode"]:
            continue
        sent = {name: value for name, value in values.items() if name not in (CONTROL, "upload") and (str(node_id), name) not in links}
        given = prompt[str(node_id)]["inputs"]
        assert {name: given.get(name) for name in sent} == sent, example.nodes[node_id - 1]["type"]
    saved = {node["id"]: node for node in page.saved()["nodes"]}
    assert sorted(saved) == sorted(example.values)
    for node_id, values in example.values.items():
        kept = saved[node_id].get("widgets_values") or []
        if node_id not in example.missing:
            assert list(kept)[: len(values)] == list(values.values()), "what was stored is saved again"
    for divider in example.nodes:
        if divider["type"] == "ImageBatchDivider":
            assert len(saved[divider["id"]]["outputs"]) == divider["widgets_values"][0]


def test_a_divider_behind_an_old_collector_keeps_its_links_and_shows_its_parts(running: ComfyServer, page: ComfyPage) -> None:
    page.load(collected(OLD_COLLECTOR, divided=3))
    assert page.node(4, "node.outputs.map((output) => output.name)") == ["batch_1", "batch_2", "batch_3"]
    prompt = page.prompt()
    assert prompt["4"]["inputs"] == {"images": ["2", 0], "divide_by": 3} and prompt["3"]["inputs"]["images"] == ["4", 2]
    assert len(running.execute(prompt)["outputs"]["3"]["images"]) == 1  # of 4 in 3 parts the last has one


def test_the_seeds_two_values_and_a_converted_widget_load_and_run(running: ComfyServer, page: ComfyPage) -> None:
    page.load(sampled([42, "fixed"]))
    prompt = page.prompt()
    assert prompt["5"]["inputs"] == {"seed": 42}
    assert prompt["6"]["inputs"]["seed"] == ["5", 0]
    assert len(running.execute(prompt)["outputs"]["9"]["images"]) == 2


@pytest.mark.parametrize("values", [UPSCALE_VALUES, [*UPSCALE_VALUES, True]], ids=["13 values", "14 values"])
def test_the_upscales_values_keep_their_places_past_bypassed_nodes_and_reroutes(
    running: ComfyServer, page: ComfyPage, values: list[Any]
) -> None:
    page.load(upscaled(values))
    prompt = page.prompt()
    inputs = prompt["5"]["inputs"]
    assert {name: inputs[name] for name in UPSCALE_INPUTS} == UPSCALE_INPUTS
    ours = running.get("/object_info/UltimateSDUpscaleDistributed")["UltimateSDUpscaleDistributed"]["input"]["optional"]
    given = {name: inputs[name] for name, (_, *options) in ours.items() if name in inputs and options}
    assert given == {name: ours[name][1]["default"] for name in given} and given, "the last value of old files is none of ours"
    assert inputs["upscaled_image"] == ["1", 0] and prompt["6"]["inputs"]["images"] == ["5", 0] and "2" not in prompt and "7" not in prompt
    saved = page.saved()
    assert saved["nodes"][_place(saved, 5)]["widgets_values"][:13] == values[:13]


@pytest.mark.parametrize("stored", ['{"1": "9", "2": "11", "_type": "INT"}', "{}", "no JSON"])
def test_fields_for_each_worker_never_shift_what_is_stored(page: ComfyPage, stored: str) -> None:
    page.load(valued(["5", stored]))
    names = page.node(1, "node.widgets.map((widget) => widget.name)")
    assert names[:4] == ["default_value", "worker_values", "_dv_default", "_dv_worker_1"], names
    assert page.node(1, "node.widgets.slice(0, 2).map((widget) => widget.hidden)") == [True, True]
    assert page.node(1, "node.widgets[2].value") == "5"
    assert page.prompt()["1"]["inputs"] == {"default_value": "5", "worker_values": stored}
    saved = page.saved()
    assert saved["nodes"][_place(saved, 1)]["widgets_values"] == ["5", stored]


def test_a_field_writes_into_the_stored_json_and_an_empty_one_takes_it_out(page: ComfyPage) -> None:
    page.load(valued(["5", '{"2": "11"}']))
    values = "node.widgets.filter((widget) => widget.name.startsWith('_dv_worker_')).map((widget) => widget.value)"
    assert page.node(1, values) == ["", "11"]
    edit = "(() => {{ const widget = node.widgets.find((each) => each.name === '{0}'); widget.value = '{1}'; widget.callback('{1}'); }})()"
    page.node(1, edit.format("_dv_worker_1", "9"))
    page.node(1, edit.format("_dv_worker_2", ""))
    page.node(1, edit.format("_dv_default", "6"))
    inputs = page.prompt()["1"]["inputs"]
    assert inputs["default_value"] == "6" and json.loads(inputs["worker_values"]) == {"1": "9", "_type": "STRING"}
    page.load(page.saved())
    assert page.prompt()["1"]["inputs"] == inputs


def test_a_value_for_a_list_is_chosen_from_it_and_kept_with_its_type(page: ComfyPage) -> None:
    page.load(chosen(["euler", '{"1": "dpmpp_2m", "_type": "COMBO"}']))
    fields = page.node(1, "node.widgets.slice(2, 4).map((widget) => [widget.type, widget.value])")
    assert fields == [["combo", "euler"], ["combo", "dpmpp_2m"]]
    page.node(1, "(() => { const widget = node.widgets[3]; widget.value = 'heun'; widget.callback('heun'); })()")
    prompt = page.prompt()
    assert json.loads(prompt["1"]["inputs"]["worker_values"]) == {"1": "heun", "_type": "COMBO"}
    assert prompt["2"]["inputs"]["sampler_name"] == ["1", 0]


def test_inner_nodes_are_neither_in_the_menu_nor_in_the_search(running: ComfyServer, page: ComfyPage) -> None:
    known = running.get("/object_info")
    inner = {name for name, about in known.items() if about["category"] == "distributed/internal"}
    assert {"DistributedLocalCapture", "DistributedForeignNode"} <= inner and all(known[name]["deprecated"] for name in inner)
    pinia = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia"
    shown = set(page.page.evaluate(f"() => {pinia}._s.get('nodeDef').visibleNodeDefs.map((about) => about.name)"))
    assert {"DistributedCollector", "ImageBatchDivider", "KSampler"} <= shown and not inner & shown


def test_a_dividers_outputs_follow_its_parts_and_connected_ones_stay(page: ComfyPage) -> None:
    page.load(collected(OLD_COLLECTOR, divided=3))
    turn = "(() => {{ const widget = node.widgets[0]; widget.value = {0}; widget.callback({0}); return node.outputs.length; }})()"
    assert page.node(4, turn.format(5)) == 5
    assert page.node(4, turn.format(1)) == 3  # the third is connected
    assert page.prompt()["3"]["inputs"]["images"] == ["4", 2]
    page.node(4, "node.disconnectOutput(2)")
    page.page.wait_for_timeout(200)
    assert page.node(4, "node.outputs.length") == 1
    make = "const made = window.LiteGraph.createNode('AudioBatchDivider'); window.app.graph.add(made); return made.outputs.length;"
    assert page.page.evaluate(f"() => {{ {make} }}") == 2


def test_a_model_name_shows_its_text_and_saves_one_value(running: ComfyServer, page: ComfyPage) -> None:
    page.load(valued(["some/model.safetensors", "{}"]))
    page.run()
    page.page.wait_for_function("() => window.app.graph.getNodeById(2).widgets.some((widget) => widget.value === 'some/model.safetensors')")
    page.close_dialogs()
    visible = "(each) => each.readOnly && each.checkVisibility()"
    shown = f"() => [...document.querySelectorAll('textarea')].filter({visible}).map((each) => each.value)"
    running.until(lambda: _pumped(page) and page.page.evaluate(shown) == ["some/model.safetensors"], 20.0)
    saved = page.saved()
    assert len(saved["nodes"][_place(saved, 2)]["widgets_values"]) == 1
    assert page.prompt()["2"]["inputs"] == {"text": ["1", 0]}


def test_the_debug_option_is_switched_in_the_dialog_and_logs_in_the_console(running: ComfyServer, page: ComfyPage) -> None:
    page.page.evaluate("() => window.app.extensionManager.setting.set('DistributedComfy.debug', true)")
    running.until(lambda: running.status()["options"]["debug"] is True)
    running.until(lambda: _pumped(page) and any("session" in line and "ready" in line for line in page.console), 20.0)
    assert any(line.startswith("[distributed-comfy] debug: detailed logs are on") for line in page.console)
    added = running.line.run("workers", "add", "pc1-cpu", "--device", "cpu", DC_HOST="pc1")
    assert added.status == 0, added.err
    running.until(lambda: _pumped(page) and any("] worker pc1-cpu" in line and "idle" in line for line in page.console))
    prompt = distributed({"wait": node("RuleSlow", images=out("8"), milliseconds=2500)}, "wait")
    job = running.line.start("run", running.line.write("slow.json", prompt), "--items", "3", "--out", running.line.folder / "out")
    try:
        running.until(lambda: _pumped(page) and {"job", "distribution", "traffic"} <= _kinds(page) and job.poll() is not None)
    finally:
        finished = running.line.finish(job)
    assert finished.status == 0, finished.err
    page.page.evaluate("() => window.app.extensionManager.setting.set('DistributedComfy.debug', false)")
    running.until(lambda: _pumped(page) and running.status()["options"]["debug"] is False)
    assert [fault for fault in page.faults if "distributed" in fault.lower()] == []


def _pumped(page: ComfyPage) -> bool:
    """Lets the page's events reach this process."""
    page.page.wait_for_timeout(100)
    return True


def _kinds(page: ComfyPage) -> set[str]:
    """What the page's lines in the console are about."""
    return {words[1] for line in page.console if (words := line.split(" ", 2))[0] == "[distributed-comfy]"}


def _place(saved: dict[str, Any], number: int) -> int:
    return next(place for place, node in enumerate(saved["nodes"]) if node["id"] == number)

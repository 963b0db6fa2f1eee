"""The page when its server falters: streams that break, jobs that are gone, files that come late and pictures that are gone.

A server of our own tells the state, because a real one does none of this when it is asked to; what it answers besides is set by each test.
"""
from __future__ import annotations

import io
import sys
import wave
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.cli.worker_orders import ORDERS
from distributed_comfy.engine.builtin.engine import torch_device
from distributed_comfy.engine.comfyui.device import unusable_device
from distributed_comfy.errors import (
    ComfyUIUnreachable,
    ConnectionLost,
    EngineStalled,
    EngineStartFailed,
    InviteUnknown,
    JobUnknown,
    OutOfMemory,
    WorkerUnknown,
)
from distributed_comfy.orchestrator.first_worker import remedy as first_remedy
from distributed_comfy.panel.worker_views import WorkerSources, why
from distributed_comfy.state.records import HostRecord, HostWorker
from tests.command_line import until
from tests.panel.many import Many, many_server, now_ms, picture
from tests.panel.panel_page import SHOWN_MS, PanelPage, panel_page

pytestmark = pytest.mark.timeout(120)

ENDED, LONG_AGO = "job-0100", "job-0101"
_FOLLOWED = """async ([words, patience]) => {
  const { followEvents } = await import("/distributed/v2/ui/events.js");
  const said = [];
  let signal;
  const start = (way) => {
    signal.addEventListener("abort", () => way.error(signal.reason)); // as that of fetch does
    if (words) way.enqueue(new TextEncoder().encode(words));
  };
  const body = () => new ReadableStream({ start });
  const open = async (given) => ((signal = given), new Response(body()));
  await new Promise((done) => {
    const state = (name, error) => {
      said.push([name, error?.code ?? "", signal?.aborted ?? false]);
      if (name === "broken") done(stream.end());
    };
    const stream = followEvents(open, { event: () => {}, state }, patience);
  });
  return said;
}"""
_OUT_OF_SIGHT = """async () => {
  const { followEvents } = await import("/distributed/v2/ui/events.js");
  const signals = [];
  const reach = (signal) => (signals.push(signal), new Promise((_, fail) => signal.addEventListener("abort", () => fail(signal.reason))));
  const look = (state) => {
    Object.defineProperty(document, "visibilityState", { configurable: true, get: () => state });
    document.dispatchEvent(new Event("visibilitychange"));
  };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const seen = () => signals.map((signal) => signal.aborted);
  const states = [];
  const stream = followEvents(reach, { event: () => {}, state: (name) => states.push(name) }, { hidden_ms: 100 });
  look("hidden");
  await wait(20);
  const before = seen();
  await wait(1500);
  const hidden = seen();
  look("visible");
  await wait(100);
  const back = seen();
  stream.end();
  delete document.visibilityState;
  return { before, hidden, back, after: seen(), states: [...new Set(states)] };
}"""
_WHY_NONE = """async () => {
  const { JobPlace } = await import("/distributed/v2/ui/job_view.js");
  const why = (kind, mine, results_complete, results_here, results_host = "pc0") => {
    const place = new JobPlace({ store: { state: { kind, host: "pc0" } } });
    return place.whyNone({ mine }, { results_complete, results_here, results_host });
  };
  return {
    elsewhere: why("serve", true, true, false, "pc7"),
    "not yet": why("serve", true, false, true),
    none: why("serve", true, true, true),
    "prompt not yet": why("comfyui", true, false, true),
    "prompt none": why("comfyui", true, true, true),
    "another's beside ComfyUI": why("comfyui", false, true, true),
    "no folder": why("serve", true, true, false),
  };
}"""
_ENDED_REQUEST = """async () => {
  const { Server } = await import("/distributed/v2/ui/requests.js");
  const any = AbortSignal.any;
  AbortSignal.any = undefined;
  const none = async () => "";
  const server = new Server(new URL("/distributed/v2/", location.href), { get: none, renew: none });
  const said = (promise) => promise.then(() => "came", (error) => error);
  const [early, late, before] = [new AbortController(), new AbortController(), new AbortController()];
  before.abort("enough");
  const first = said(server.read("never", {}, early.signal));
  const body = (await server.stream("events", late.signal)).body.getReader();
  const second = said((async () => { for (;;) await body.read(); })());
  setTimeout(() => (early.abort("enough"), late.abort("enough")), 100);
  const found = { early: await first, late: await second, before: await said(server.read("never", {}, before.signal)) };
  AbortSignal.any = any;
  return found;
}"""
_PAGE_WORDS = """async (said) => {
  const { inPageWords } = await import("/distributed/v2/ui/page_words.js");
  return said.map((each) => inPageWords(each));
}"""
_WRONG = """async (one) => {
  const { whatIsWrong } = await import("/distributed/v2/ui/help_view.js");
  const down = { up: false, error: null };
  const state = { servers: { one, state: down, blobs: down }, hosts: {}, workers: {}, master: null, tunnel: {} };
  return whatIsWrong(state, 0).map(({ what }) => what);
}"""
_LOG = """async (lines) => {
  const { LogView } = await import("/distributed/v2/ui/log_view.js");
  const place = document.body.appendChild(document.createElement("div"));
  const log = new LogView(place, { name: "w", server: { read: () => new Promise(() => {}) }, failed: () => {} });
  const said = async () => {
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return place.querySelector(".log-note").textContent;
  };
  const choose = (onlyWrong) => ((log.wrong.checked = onlyWrong), log.filter());
  const found = {};
  log.take(lines);
  log.tell("open");
  await said();
  choose(true);
  found.found = await said();
  log.take([{ ...lines[0], id: "9" }]);
  found.later = await said();
  log.tell("broken", new Error("It is gone."));
  found.broken = await said();
  choose(false);
  found.cleared = await said();
  log.tell("open");
  found.live = await said();
  log.end();
  place.remove();
  return found;
}"""
_MIDNIGHT = """async () => {
  const { timeOf } = await import("/distributed/v2/ui/silent.js");
  const { clock } = await import("/distributed/v2/ui/format.js");
  const at_ms = new Date(2026, 0, 5, 0, 5).getTime();
  const { toLocaleString, toLocaleTimeString } = Date.prototype;
  const cycles = [];
  const told = (method) => function (_, options) {
    cycles.push(options.hour12 ?? options.hourCycle);
    return method.call(this, "en-US", options);
  };
  Object.assign(Date.prototype, { toLocaleString: told(toLocaleString), toLocaleTimeString: told(toLocaleTimeString) });
  const said = [timeOf(at_ms, at_ms), clock(at_ms)];
  Object.assign(Date.prototype, { toLocaleString, toLocaleTimeString });
  return { said, cycles };
}"""
_KEPT = """async ([count, size]) => {
  const { Pictures } = await import("/distributed/v2/ui/pictures.js");
  const pictures = new Pictures({ blob: async () => new Blob([new Uint8Array(size)]) }, () => {});
  for (let number = 0; number < count; number += 1) await pictures.addressOf(`picture ${number}`);
  const kept = [pictures.keptBytes, [...pictures.kept.keys()].at(-1)];
  await pictures.addressOf("picture 0"); // of those that went, it comes again
  const again = pictures.kept.has("picture 0");
  pictures.end();
  return { kept, again, ended: pictures.keptBytes };
}"""
_READ = """async () => {
  const { Server } = await import("/distributed/v2/ui/requests.js");
  const none = async () => "";
  const server = new Server(new URL("/distributed/v2/", location.href), { get: none, renew: none });
  window.read = server.read("never").then(() => "came", (error) => [error.code, error.message]);
}"""


@pytest.fixture(scope="module")
def many() -> Many:
    """A small cluster, in which one job has just ended."""
    many = Many(2, 110)
    for job, ended_ms in ((ENDED, now_ms()), (LONG_AGO, now_ms() - 3_600_000)):
        many.jobs[job] = {**many.jobs[job], "state": "done", "ended_ms": ended_ms}
    return many


@pytest.fixture(scope="module")
def opened(many: Many, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelPage]:
    """The page of it."""
    with many_server(many) as url, panel_page(f"{url}#token=x", tmp_path_factory.mktemp("troubles")) as panel:
        yield panel


@pytest.fixture
def panel(opened: PanelPage) -> Iterator[PanelPage]:
    """The same, loaded anew, whose server answers as ever."""
    opened.page.reload()
    opened.page.locator(".top .link.open").wait_for(timeout=SHOWN_MS)
    yield opened
    opened.page.unroute_all(behavior="ignoreErrors")
    assert opened.faults == []


def look_at(panel: PanelPage, job: str) -> Any:
    """Open a job; what shows it."""
    panel.section("Jobs")
    panel.page.get_by_label("Find a job").fill(job)
    panel.page.locator(f".job-row[data-key='{job}']").click()
    return panel.page.locator(".job-detail")


def file(name: str, media_type: str, item: int | None = None) -> dict[str, Any]:
    """One of a job's files."""
    return {"path": name, "name": name, "media_type": media_type, "size_bytes": 2048, "item": item}


def failure(code: str, message: str) -> dict[str, Any]:
    """What a server answers that does not do it."""
    return {"error": {"code": code, "message": message, "remedy": ""}}


def refuse(panel: PanelPage, place: str, status: int, words: str) -> None:
    """Let the server answer that there."""
    panel.page.route(place, lambda route: route.fulfill(status=status, json=failure("some_code", words)))


def with_files(panel: PanelPage, many: Many, job: str, files: list[dict[str, Any]], **more: Any) -> None:
    """Let a job have these."""
    detail = {**many.detail(job), "results_host": "pc0", "results_folder": "/out", "results_here": True, "results": files, **more}
    panel.page.route(f"**/jobs/{job}", lambda route: route.fulfill(json=detail))


# -- streams -------------------------------------------------------------------------------------------------------------
def test_a_stream_that_cannot_be_read_lets_its_connection_go(panel: PanelPage) -> None:
    said = panel.page.evaluate(_FOLLOWED, ['event: change\ndata: {"seconds": Infinity}\n\n', {}])
    assert said == [["connecting", "", False], ["open", "", False], ["broken", "page.unreadable", True]]


def test_a_stream_without_a_word_is_taken_for_broken(panel: PanelPage) -> None:
    said = panel.page.evaluate(_FOLLOWED, ["", {"silence_ms": 200}])
    assert said[-1] == ["broken", "page.silent", True]


def test_a_page_that_nobody_sees_ends_its_stream_until_it_is_seen(panel: PanelPage) -> None:
    found = panel.page.evaluate(_OUT_OF_SIGHT)
    assert found["before"] == [False]
    assert found["hidden"] == [True]
    assert found["back"] == [True, False]
    assert found["after"] == [True, True] and found["states"] == ["connecting"]


def test_an_answer_that_does_not_come_is_said(panel: PanelPage) -> None:
    other = panel.page.context.new_page()
    try:
        other.goto(panel.page.url)
        other.route("**/never", lambda _route: None)
        other.clock.install()
        other.evaluate(_READ)
        other.clock.run_for(31_000)
        assert other.evaluate("window.read") == ["page.slow", "The server has not answered within 30 s."]
    finally:
        other.close()


def test_a_request_is_ended_in_browsers_without_abortsignal_any_too(panel: PanelPage) -> None:
    panel.page.route("**/never", lambda _route: None)
    assert panel.page.evaluate(_ENDED_REQUEST) == {"early": "enough", "late": "enough", "before": "enough"}


def test_one_server_that_is_away_is_one_thing_that_is_wrong(panel: PanelPage) -> None:
    assert panel.page.evaluate(_WRONG, True) == ["Queues, jobs, pictures and tensors"]
    assert panel.page.evaluate(_WRONG, False) == ["Queues and jobs", "Pictures and tensors on their way"]


# -- jobs that are gone, Redis that is away ------------------------------------------------------------------------------
def test_a_job_that_is_gone_leaves_the_rest_of_the_page_live(panel: PanelPage) -> None:
    said = failure("job_unknown", "no job of that name")
    for place in (f"**/events?job={ENDED}", f"**/jobs/{ENDED}"):
        panel.page.route(place, lambda route: route.fulfill(status=404, json=said))
    detail = look_at(panel, ENDED)
    detail.get_by_role("alert").filter(has_text="no job of that name").wait_for()
    panel.page.locator(".top .link.open").wait_for()
    assert not panel.page.locator(".panel > .banner.bad").count()
    assert not detail.locator("[data-order]").count()


def test_a_job_that_redis_cannot_tell_of_now_is_asked_for_again(panel: PanelPage) -> None:
    asked = f"**/events?job={LONG_AGO}"
    panel.page.route(asked, lambda route: route.fulfill(status=503, json=failure("redis_unavailable", "Redis is away")))
    look_at(panel, LONG_AGO).locator(".cell").first.wait_for()
    panel.page.locator(".top .link.open").wait_for()
    panel.page.unroute(asked)
    with panel.page.expect_response(lambda response: response.url.endswith(f"/events?job={LONG_AGO}"), timeout=SHOWN_MS) as response:
        pass
    assert response.value.status == 200
    panel.page.locator(".top .link.open").wait_for()


# -- narrow --------------------------------------------------------------------------------------------------------------
LONG = "a-very-long-name-that-somebody-chose-" * 5


@pytest.fixture
def narrow(opened: PanelPage, many: Many) -> Iterator[PanelPage]:
    """The page 360 pixels wide and dark, where every name and reason is as long as one can be, in one word."""
    before = (dict(many.workers), dict(many.jobs), dict(many.items))
    error = {"code": "node_failed", "message": LONG, "remedy": LONG, "worker": LONG, "node_id": "3", "node_class": LONG, "traceback": LONG}
    last = {"code": "x", "message": LONG, "remedy": LONG, "at_ms": 1, "job": ENDED, "index": 0}
    names = {"device": LONG, "tags": [LONG], "reason": LONG, "remedy": LONG, "last_error": last, "host": LONG, "packs": {LONG: LONG}}
    states = ({"state": "failed", "colour": "red", "items": []}, {})
    workers = zip(many.workers.values(), states, strict=True)
    many.workers = {(name := f"{LONG}{number}"): {**each, **names, **more, "name": name} for number, (each, more) in enumerate(workers)}
    many.jobs[ENDED] = {**many.jobs[ENDED], "title": LONG, "user": LONG, "host": LONG, "state": "failed", "reason": LONG, "remedy": LONG}
    many.items["0"] = {**many.items["0"], "state": "failed", "worker": LONG, "seed": "9" * 20, "error": error, "preview": 0}
    files = [file(f"{LONG}{number}.{kind}", media) for number, (kind, media) in enumerate((("jpg", "image/jpeg"), ("wav", "audio/wav")))]
    with_files(opened, many, ENDED, files, error=error, owner=LONG, results_folder=f"/{LONG}")
    opened.page.route("**/results/*", lambda route: route.fulfill(body=picture(1, 1), content_type="image/jpeg"))
    opened.page.set_viewport_size({"width": 360, "height": 740})
    opened.page.emulate_media(color_scheme="dark")
    opened.page.reload()
    opened.page.locator(".top .link.open").wait_for(timeout=SHOWN_MS)
    yield opened
    many.workers, many.jobs, many.items = before
    opened.page.unroute_all(behavior="ignoreErrors")
    opened.page.set_viewport_size({"width": 1400, "height": 900})
    assert opened.faults == []


def fits(panel: PanelPage) -> None:
    """All of what is shown now is in sight, can be read, and has a name."""
    panel.page.wait_for_timeout(200)
    assert (panel.too_wide(), panel.too_pale(), panel.nameless()) == (0, [], [])


def test_very_long_names_fit_on_a_phone(narrow: PanelPage) -> None:
    worker = f"article[data-worker^='{LONG}']"
    for section in ("Workers", "Jobs", "This computer", "Help"):
        narrow.section(section)
        fits(narrow)
    narrow.section("Workers")
    narrow.page.locator(f"{worker} details summary").first.click()
    narrow.page.locator(f"{worker} [data-order=more]").first.click()
    fits(narrow)
    narrow.page.locator(".menu [data-order=facts]").click()
    narrow.page.locator("dialog dl").wait_for()
    fits(narrow)
    narrow.close_dialogs()
    for action in ("edit", "log"):
        narrow.page.locator(f"{worker} [data-order={action}]").first.click()
        narrow.page.locator("dialog").wait_for()
        fits(narrow)
        narrow.close_dialogs()


def test_a_job_with_very_long_names_fits_on_a_phone(narrow: PanelPage) -> None:
    detail = look_at(narrow, ENDED)
    detail.locator(".file").last.scroll_into_view_if_needed()
    detail.locator(".file img[data-state=shown]").wait_for()
    detail.get_by_text("Traceback").first.click()
    fits(narrow)
    detail.locator(".cell[data-key='0']").click()
    detail.locator(".card").get_by_text("Traceback").click()
    fits(narrow)
    detail.locator(".cell[data-key='1']").click()
    detail.locator(".card img.large").scroll_into_view_if_needed()
    detail.locator(".card img.large[data-state=shown]").wait_for()
    fits(narrow)
    for button in ("Look at", "Play"):
        detail.get_by_role("button", name=button).click()
        narrow.page.locator("dialog .large-picture").wait_for()
        fits(narrow)
        narrow.close_dialogs()


# -- words ---------------------------------------------------------------------------------------------------------------
def advice() -> dict[str, str]:
    """What errors and cards say of remedies that the page has buttons for, as it is really said, and what the page is to name."""
    no_cuda = SimpleNamespace(__version__="2.7", version=SimpleNamespace(cuda=None, hip=None), cuda=None)
    no_gpu = SimpleNamespace(__version__="2.7", version=SimpleNamespace(cuda="12"), cuda=SimpleNamespace(device_count=lambda: 0))
    kept = HostWorker(name="pc1-cuda0", phase="stopped", device="cuda:0")

    def host(*workers: HostWorker) -> HostRecord:
        return HostRecord("pc1", "me", 1, "x", workers=workers)

    cuda = SimpleNamespace(is_available=lambda: False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(EngineStartFailed) as unusable:
        patch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.7", cuda=cuda, backends=None))
        torch_device("cuda:1")
    drained = WorkerSources("pc1-cuda0", kept=replace(kept, phase="running"))
    failed = WorkerSources("pc1-cuda0", kept=replace(kept, phase="failed", reason="it ended with status 1"))
    return {
        unusable_device("cuda:0", no_cuda): "“Settings” and choose cpu", unusable_device("cuda:0", no_gpu): "“Settings” and choose another",
        str(unusable.value): "“Settings” and choose cpu", first_remedy([host(kept)], "pc1"): "“Start” (pc1-cuda0)",
        first_remedy([host(replace(kept, phase="disabled"))], "pc1"): "“Switch on” (pc1-cuda0)",
        first_remedy([host(replace(kept, phase="starting"))], "pc1"): "“Workers” shows", first_remedy([host()], "pc2"): "“Add worker”",
        str(WorkerUnknown(name="x")): "“Workers” shows", str(JobUnknown(job_id="x")): "“Jobs” shows",
        str(InviteUnknown(name="x")): "“Invited computers”", str(EngineStalled(seconds=900)): "“Change timeouts”",
        str(ComfyUIUnreachable(url="u", reason="r")): "“Address of the ComfyUI” (“Settings”)",
        str(ConnectionLost(target="t", reason="r")): "“Examine everything”", why(drained, "drained")[1]: "“Take items again”",
        why(failed, "failed")[1]: "“Log”",
        str(OutOfMemory(device="cuda:0", node_id="3", exception_message="m")): "--lowvram (“Settings”)",
    }  # fmt: skip


def test_a_remedy_names_the_button_or_field_of_the_page(panel: PanelPage) -> None:
    told = advice()
    said = panel.page.evaluate(_PAGE_WORDS, list(told))
    for before, after in zip(told, said, strict=True):
        assert told[before] in after, f"{before}\n{after}"
        assert "--device" not in after and "distributed-comfy" not in after.replace("`distributed-comfy up`", ""), after


def test_a_worker_without_settings_here_keeps_the_words_for_a_terminal(panel: PanelPage) -> None:
    script = _PAGE_WORDS.replace("inPageWords(each)", "inPageWords(each, false)")
    said = "start the worker with --device cpu or install another torch; press nothing; look into its log"
    assert panel.page.evaluate(script, [said]) == [said.replace("look into its log", "press “Log”")]


def test_every_button_that_is_named_in_a_remedy_is_an_order_of_the_command_line(panel: PanelPage) -> None:
    said = panel.page.evaluate(_PAGE_WORDS, [f"`distributed-comfy workers {name} pc1`" for name in (order.name for order in ORDERS)])
    assert [words for words in said if "distributed-comfy" in words] == []


# -- where the focus is ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", ["job-0105", "no job at all"])
def test_a_job_that_is_left_takes_the_focus_from_no_search_that_finds_it_later(panel: PanelPage, words: str) -> None:
    panel.page.set_viewport_size({"width": 420, "height": 500})
    try:
        panel.section("Jobs")
        panel.page.get_by_label("Find a job").fill(words)
        panel.page.locator(".job-row[data-key=job-0000]").wait_for(state="detached")
        panel.section("Workers")
        panel.page.locator("[data-worker] .link-button").first.click()
        panel.page.locator(".job-detail .back").click()
        panel.page.locator(".job-detail").wait_for(state="detached")
        search = panel.page.get_by_label("Find a job")
        search.focus()
        search.press_sequentially("job-0000", delay=30)
        panel.page.locator(".job-row[data-key=job-0000]").wait_for()
        assert search.input_value() == "job-0000" and panel.focused("aria-label") == "Find a job"
    finally:
        panel.page.set_viewport_size({"width": 1400, "height": 900})


# -- logs ----------------------------------------------------------------------------------------------------------------
def test_a_log_says_what_was_found_and_that_it_is_broken_whatever_is_searched_for(panel: PanelPage) -> None:
    lines = [{"id": str(at), "at_ms": at, "level": "ERROR" if at % 2 else "INFO", "text": f"line {at}"} for at in range(1, 5)]
    said = panel.page.evaluate(_LOG, lines)
    assert said["found"] == "2 lines" and said["later"] == "3 lines"
    assert said["broken"] == "3 lines · Not live now. It is gone. It is tried again."
    assert said["cleared"] == "Not live now. It is gone. It is tried again." and said["live"].startswith("Live")


def test_midnight_is_no_hour_24(panel: PanelPage) -> None:
    said = panel.page.evaluate(_MIDNIGHT)  # with hour12 it depends on the browser
    assert said == {"said": ["00:05", "00:05:00"], "cycles": ["h23", "h23"]}


# -- who is silent -------------------------------------------------------------------------------------------------------
def away(panel: PanelPage, many: Many, *, back: bool = False) -> None:
    """Let Redis go, or come back."""
    many.is_down, many.down_since_ms = not back, 0 if back else now_ms() - 60_000
    panel.page.locator(f".top .link.{'open' if back else 'away'}").wait_for()


@pytest.fixture
def redis_comes_back(many: Many) -> Iterator[None]:
    """Whatever a test finds."""
    yield
    many.down_since_ms, many.is_down, many.down_code = 0, False, "redis_unreachable"
    many.gone.clear()
    many.agent = "here"


@pytest.mark.usefixtures("redis_comes_back")
def test_while_redis_is_away_no_worker_is_said_to_be_ready_and_nothing_can_be_ordered(panel: PanelPage, many: Many) -> None:
    summary = panel.page.locator(".top .summary")
    until(lambda: " of 2 workers ready" in summary.inner_text())
    away(panel, many)
    card = panel.page.locator("[data-worker]").first
    card.locator("[data-state=unknown]", has_text="Unknown since").wait_for()
    assert "2 workers, unknown since" in summary.inner_text() and "ready" not in summary.inner_text()
    assert "Redis has not answered since" in panel.page.locator(".panel > .banner.bad").inner_text()
    buttons = card.locator("footer > button")
    assert buttons.count() >= 2 and all(buttons.nth(number).is_disabled() for number in range(buttons.count()))
    assert all(panel.page.locator(f"[data-action={name}]").is_disabled() for name in ("add", "import", "clear-all"))
    card.locator("[data-order=more]").click()
    assert card.locator("[role=menuitem]").evaluate_all("entries => entries.map((entry) => entry.dataset.order)") == ["facts"]
    panel.page.keyboard.press("Escape")
    away(panel, many, back=True)
    panel.page.locator("[data-worker] [data-state=unknown]").first.wait_for(state="detached")
    panel.page.locator(".panel > .banner.bad").wait_for(state="detached")
    until(lambda: " of 2 workers ready" in summary.inner_text())
    assert not buttons.first.is_disabled()


@pytest.mark.usefixtures("redis_comes_back")
def test_what_was_said_of_an_outage_goes_with_it_and_what_was_found_before_is_old(panel: PanelPage, many: Many) -> None:
    found = {"healthy": True, "findings": [{"check": "state Redis", "level": "ok", "found": "answers", "remedy": "", "worker": ""}]}
    panel.page.route("**/doctor", lambda route: route.fulfill(json=found))
    panel.section("Help")
    panel.action("doctor")
    panel.page.locator(".report").wait_for()
    assert not panel.page.locator(".report.old").count()
    panel.section("Workers")
    for status, words in ((503, "Redis is away"), (409, "it refuses that")):
        refuse(panel, "**/orders", status, words)
        panel.action("clear-all")
        panel.page.locator(".notice.error", has_text=words).wait_for()
    away(panel, many)
    panel.section("Help")
    panel.page.locator(".report.old", has_text="This is old").wait_for()
    assert panel.page.locator(".notice.error").count() == 2
    away(panel, many, back=True)
    panel.page.locator(".notice.error", has_text="Redis is away").wait_for(state="detached")
    assert panel.page.locator(".notice.error", has_text="it refuses that").count(), "which has nothing to do with it"
    assert panel.page.locator(".report.old").count()
    panel.action("doctor")
    panel.page.locator(".report.old").wait_for(state="detached")


@pytest.mark.usefixtures("redis_comes_back")
def test_a_fault_of_the_panel_is_no_absence_of_redis_and_what_still_works_can_be_ordered(panel: PanelPage, many: Many) -> None:
    many.down_code = "panel_fault"
    away(panel, many)
    assert panel.page.locator(".top .link").inner_text() == "State unknown"
    assert "Redis" not in panel.page.locator(".panel > .banner.bad strong").inner_text()
    card = panel.page.locator("[data-worker]").first
    card.locator("[data-state=unknown]").wait_for()
    buttons = card.locator("footer > button")
    assert buttons.count() >= 2 and not any(buttons.nth(number).is_disabled() for number in range(buttons.count()))
    card.locator("[data-order=more]").click()
    card.locator("[role=menuitem][data-order=remove]").wait_for()
    panel.page.keyboard.press("Escape")
    panel.section("Jobs")
    panel.page.get_by_label("Find a job").fill("job-0000")
    panel.page.locator(".job-row[data-key=job-0000]").click()
    assert panel.page.locator(".job-detail [data-order=cancel]").is_enabled()


@pytest.mark.usefixtures("redis_comes_back")
def test_since_when_redis_is_away_is_only_said_where_it_is_known(panel: PanelPage, many: Many) -> None:
    many.is_down, many.down_since_ms = True, 0
    panel.page.locator(".top .link.away").wait_for()
    assert panel.page.locator(".top .summary").inner_text() == "2 workers, unknown"
    assert panel.page.locator(".panel > .banner.bad strong").inner_text() == "Redis does not answer."
    assert panel.page.locator("[data-worker] [data-state=unknown]").first.inner_text().endswith("Unknown")
    panel.section("This computer")
    assert "since" not in panel.page.locator(".panel").inner_text().lower()


@pytest.mark.usefixtures("redis_comes_back")
def test_while_redis_is_away_a_file_is_fetched_and_an_interrupt_is_answered_by_the_server(panel: PanelPage, many: Many) -> None:
    with_files(panel, many, LONG_AGO, [file("one.txt", "text/plain")])
    refuse(panel, "**/results/*", 503, "the file is not read now")
    refuse(panel, "**/master/interrupt", 503, "nothing is interrupted now")
    detail = look_at(panel, LONG_AGO)
    detail.get_by_role("button", name="Download one.txt").wait_for()
    away(panel, many)
    detail.get_by_role("button", name="Download one.txt").click()
    panel.said("the file is not read now")
    panel.section("This computer")
    panel.action("interrupt-all")
    panel.page.locator("dialog button.danger, dialog button.first").last.click()
    panel.said("nothing is interrupted now")


def test_a_file_that_is_being_fetched_is_not_fetched_again(panel: PanelPage, many: Many) -> None:
    held: list[Any] = []
    panel.page.route("**/results/*", lambda route: held.append(route))
    with_files(panel, many, LONG_AGO, [file("one.txt", "text/plain")])
    press = look_at(panel, LONG_AGO).get_by_role("button", name="Download one.txt")
    press.click()
    until(lambda: bool(panel.page.evaluate("1")) and bool(held))
    until(press.is_disabled)
    with panel.page.expect_download():
        held[0].fulfill(body="x", content_type="text/plain")
    until(press.is_enabled)


@pytest.mark.parametrize("around", ["the page's own field", "nothing"])
def test_an_order_that_ends_takes_the_focus_from_no_field_around_the_panel(panel: PanelPage, around: str) -> None:
    held: list[Any] = []
    panel.page.route("**/doctor", lambda route: held.append(route))
    panel.section("Help")
    panel.page.evaluate("document.body.prepend(Object.assign(document.createElement('textarea'), { id: 'prompt' }))")
    try:
        panel.action("doctor")
        until(lambda: bool(panel.page.evaluate("1")) and bool(held))
        if around != "nothing":
            panel.page.locator("#prompt").focus()
        held[0].fulfill(json={"healthy": True, "findings": []})
        panel.page.locator(".report").wait_for()
        panel.page.wait_for_function("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        panel.page.keyboard.type("a b")
        if around == "nothing":
            assert panel.focused("data-action") == "doctor" and len(held) == 2
        else:
            assert panel.page.locator("#prompt").input_value() == "a b" and len(held) == 1
    finally:
        panel.page.evaluate("document.getElementById('prompt').remove()")


def test_messages_cover_no_button_of_a_dialog(panel: PanelPage) -> None:
    refuse(panel, "**/orders", 409, "it is refused, " + "for a reason that takes very many words, " * 20)
    panel.action("clear-all")
    panel.page.locator(".notice.error").wait_for()
    panel.action("add")
    for width, height in ((1280, 900), (360, 640)):
        panel.page.set_viewport_size({"width": width, "height": height})
        last = panel.page.locator("dialog .end button").last
        last.wait_for()
        panel.page.locator("dialog .notice.error", has_text="very many words").wait_for()
        last.click(trial=True)  # fails where something else lies over it
    panel.page.set_viewport_size({"width": 1400, "height": 900})
    panel.close_dialogs()


@pytest.mark.usefixtures("redis_comes_back")
def test_a_computer_that_is_not_heard_of_says_since_when_and_can_be_forgotten(panel: PanelPage, many: Many) -> None:
    many.gone["pc0"] = now_ms() - 180_000
    before = {name: dict(worker) for name, worker in many.workers.items()}
    lost = {"state": "lost", "colour": "red", "reason": "its computer, pc0, is not heard of any more", "remedy": "look", "items": [],
            "orders": [], "editable": False, "since_ms": many.gone["pc0"]}  # fmt: skip
    try:
        for name in many.workers:
            many.workers[name] = {**many.workers[name], **lost}
        panel.page.reload()
        note = panel.page.locator("[data-gone=pc0]")
        note.wait_for()
        assert "Not heard of since" in note.inner_text() and "3 min" in note.inner_text()
        assert panel.page.locator(".top .summary").inner_text().startswith("0 of 2 workers ready")
        assert panel.page.get_by_role("tab", name="Help").locator(".count").inner_text() == "1", "the computer, and not its workers as well"
        panel.section("Help")
        card = panel.page.locator(".card.red", has_text="Not heard of since")
        assert card.locator("h3").inner_text() == "pc0"
        asked: list[str] = []
        done = {"host": "pc0", "text": "host pc0 is forgotten"}
        panel.page.route("**/hosts/pc0", lambda route: (asked.append(route.request.method), route.fulfill(json=done)))
        card.locator("[data-forget=pc0]").click()
        panel.action("confirm")
        panel.page.locator(".notice.done", has_text="is forgotten").wait_for()
        assert asked == ["DELETE"]
        panel.section("This computer")
        panel.page.locator("[data-gone=pc0]").wait_for()
    finally:
        many.workers.update(before)


@pytest.mark.usefixtures("redis_comes_back")
@pytest.mark.parametrize(("agent", "words"), [("none", "does not run here"), ("elsewhere", "end it with Ctrl+C")])
def test_without_an_agent_of_this_computer_the_page_says_so_with_the_command(
    panel: PanelPage, many: Many, agent: str, words: str
) -> None:
    assert not panel.page.locator("[data-agent]").count()
    many.agent = agent
    panel.page.reload()
    note = panel.page.locator(f"[data-agent={agent}]")
    note.wait_for()
    assert words in note.inner_text() and "distributed-comfy up" in note.locator("code").inner_text()
    assert "Nobody looks after its workers" in note.inner_text()
    panel.section("This computer")
    panel.page.locator(f"[data-agent={agent}]").wait_for()


# -- files and pictures --------------------------------------------------------------------------------------------------
def test_files_that_come_after_the_end_are_shown_and_a_failed_read_is_said(panel: PanelPage, many: Many) -> None:
    reads: list[int] = []

    def answer(route: Any) -> None:
        reads.append(len(reads))
        if len(reads) == 2:
            route.fulfill(status=503, json=failure("redis_unavailable", "Redis is away"))
            return
        names = ["one.png", "two.png", "three.png"][: 0 if len(reads) == 1 else len(reads) - 1]
        files = [file(name, "application/octet-stream") for name in names]
        whole = {"results_host": "pc0", "results_here": True, "results": files, "results_complete": len(files) == 3}
        route.fulfill(json={**many.detail(ENDED), **whole})

    panel.page.route(f"**/jobs/{ENDED}", answer)
    detail = look_at(panel, ENDED)
    detail.locator(".results", has_text="None yet").wait_for()
    detail.get_by_role("alert").filter(has_text="Redis is away").wait_for()
    detail.locator(".file").nth(2).wait_for(timeout=SHOWN_MS)
    assert not detail.get_by_role("alert").count()
    panel.page.wait_for_timeout(3000)
    assert len(reads) == 4, "nobody looks for more where no more come"


def test_a_job_that_is_not_shown_is_read_again_when_it_is(panel: PanelPage, many: Many) -> None:
    reads: list[int] = []

    def answer(route: Any) -> None:
        reads.append(1)
        route.fulfill(json={**many.detail(ENDED), "results_host": "pc0", "results_here": True, "results_complete": False})

    panel.page.route(f"**/jobs/{ENDED}", answer)
    look_at(panel, ENDED).locator(".results", has_text="None yet").wait_for()
    panel.section("Workers")
    panel.page.wait_for_timeout(2500)
    seen = len(reads)
    assert seen <= 2
    with panel.page.expect_response(f"**/jobs/{ENDED}"):
        panel.section("Jobs")
    assert len(reads) == seen + 1


def test_why_there_are_no_files_is_said_as_it_is(panel: PanelPage) -> None:
    said = panel.page.evaluate(_WHY_NONE)
    assert said["elsewhere"] == "They are on pc7; open the page of that computer to look at them."
    assert said["not yet"] == "None yet." and said["none"] == "It left no files here."
    assert "whole workflow" in said["prompt not yet"] and "ComfyUI names none" in said["prompt none"]
    assert said["another's beside ComfyUI"] == "It left no files here."
    assert "knows no folder" in said["no folder"]


def test_files_of_another_computer_are_not_looked_for_here(panel: PanelPage, many: Many) -> None:
    detail = {**many.detail(ENDED), "results_host": "pc7"}
    panel.page.route(f"**/jobs/{ENDED}", lambda route: route.fulfill(json=detail))
    assert "They are on pc7" in look_at(panel, ENDED).locator(".results").inner_text()
    detail.update(results_host="pc0", results_complete=False)
    look_at(panel, LONG_AGO)
    assert "None yet" in look_at(panel, ENDED).locator(".results").inner_text()


def test_a_preview_that_is_gone_is_no_empty_box(panel: PanelPage, many: Many) -> None:
    panel.page.route("**/preview?*", lambda route: route.fulfill(status=404, json=failure("picture_not_here", "it is gone")))
    panel.page.route("**/results/*", lambda route: route.fulfill(body=picture(1, 1), content_type="image/jpeg"))
    with_files(panel, many, LONG_AGO, [file("own.jpg", "image/jpeg", item=3)])
    detail = look_at(panel, LONG_AGO)
    detail.locator(".cell[data-key='3'] img[data-state=shown]").wait_for()
    detail.locator(".cell[data-key='3']").click()
    detail.locator(".card img.large[data-state=shown]").wait_for()
    detail.locator(".cell[data-key='2']").click()
    detail.locator(".card", has_text="among the files below").wait_for()
    assert not detail.locator(".card img").count()


def test_a_picture_that_failed_is_tried_again(panel: PanelPage, many: Many) -> None:
    tried: list[int] = []

    def answer(route: Any) -> None:
        tried.append(1)
        if len(tried) == 1:
            route.fulfill(status=503, json=failure("redis_unavailable", "Redis is away"))
        else:
            route.fulfill(body=picture(1, 1), content_type="image/jpeg")

    panel.page.route("**/results/*", answer)
    with_files(panel, many, LONG_AGO, [file("one.jpg", "image/jpeg")])
    detail = look_at(panel, LONG_AGO)
    detail.locator(".file img[data-state=missing]").wait_for(state="attached")
    detail.locator(".file img[data-state=shown]").wait_for()


def test_pictures_are_fetched_small_until_one_is_looked_at(panel: PanelPage, many: Many) -> None:
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url.partition("/results/")[2])
        route.fulfill(body=picture(1, 1), content_type="image/jpeg")

    panel.page.route("**/preview?*", lambda route: route.fulfill(status=404, json=failure("picture_not_here", "it is gone")))
    panel.page.route("**/results/*", answer)
    with_files(panel, many, LONG_AGO, [file("own.jpg", "image/jpeg", item=3)])
    detail = look_at(panel, LONG_AGO)
    detail.locator(".cell[data-key='3'] img[data-state=shown]").wait_for()
    detail.locator(".file img").scroll_into_view_if_needed()
    detail.locator(".file img[data-state=shown]").wait_for()
    assert {"own.jpg?side=128", "own.jpg?side=320"} == set(asked)
    detail.locator(".picture-button").click()
    panel.page.locator("dialog img[data-state=shown]").wait_for()
    assert asked[-1] == "own.jpg"
    panel.close_dialogs()


def test_a_picture_that_cannot_be_drawn_small_can_still_be_looked_at(panel: PanelPage, many: Many) -> None:
    panel.page.route("**/results/*", lambda route: route.fulfill(body=picture(1, 1), content_type="image/jpeg"))
    refuse(panel, "**/results/*?side=*", 400, "it is of another format")
    with_files(panel, many, LONG_AGO, [file("one.avif", "image/avif")])
    look_at(panel, LONG_AGO).get_by_role("button", name="Look at one.avif").click()
    panel.page.locator("dialog img[data-state=shown]").wait_for()
    panel.close_dialogs()


def test_pictures_are_kept_until_they_take_too_much_memory(panel: PanelPage) -> None:
    size = 10 * 2**20
    assert panel.page.evaluate(_KEPT, [8, size]) == {"kept": [6 * size, "picture 7"], "again": True, "ended": 0}


def test_a_sound_is_played(panel: PanelPage, many: Many) -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(8000)
        written.writeframes(bytes(16_000))
    panel.page.route("**/results/*", lambda route: route.fulfill(body=sound.getvalue(), content_type="audio/wav"))
    with_files(panel, many, LONG_AGO, [file("one.wav", "audio/wav")])
    look_at(panel, LONG_AGO).get_by_role("button", name="Play one.wav").click()
    player = panel.page.locator("dialog audio")
    player.wait_for()
    until(lambda: player.evaluate("player => player.duration") == 1)
    panel.close_dialogs()

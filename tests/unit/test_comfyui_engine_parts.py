"""The parts of the ComfyUI engine that need no ComfyUI."""
from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from distributed_comfy.engine.catalogue import listed_choices
from distributed_comfy.engine.comfyui.choices import output_types, self_validated_inputs
from distributed_comfy.engine.comfyui.device import device_class, unusable_device
from distributed_comfy.engine.comfyui.failures import FailureWatch
from distributed_comfy.engine.comfyui.launch import tree_arguments, tree_commit
from distributed_comfy.engine.comfyui.listener import CLIENT_ID, ClientListener
from distributed_comfy.engine.comfyui.outputs import plain_outputs, take_files
from distributed_comfy.engine.comfyui.warm import WarmNodes
from distributed_comfy.engine.endings import cached_nodes, ending, node_failure
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.engine.interrupts import InterruptLatch
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import EngineStartFailed, NodeFailed, OutOfMemory
from distributed_comfy.messages import RunRequest
from tests.prompts import node, out

OLD_FLAGS = ("--output-directory", "--input-directory", "--temp-directory", "--base-directory", "--cpu", "--disable-api-nodes")
NEW_FLAGS = (*OLD_FLAGS, "--disable-partner-nodes", "--disable-assets", "--front-end-root", "--database-url", "--disable-auto-launch")


def options(tmp_path: Path, flags: tuple[str, ...] = NEW_FLAGS, **changes: Any) -> EngineOptions:
    """Options for a tree whose argument parser knows ``flags``."""
    tree = tmp_path / "tree"
    (tree / "comfy").mkdir(parents=True, exist_ok=True)
    (tree / "main.py").touch()
    (tree / "comfy" / "cli_args.py").write_text("".join(f'parser.add_argument("{flag}")\n' for flag in flags))
    facts: dict[str, Any] = {
        "engine": "comfyui", "worker": "w", "python": "", "folder": tmp_path / "work", "log_file": tmp_path / "log", "blob_url": "",
        "comfyui_path": tree,
    }  # fmt: skip
    return EngineOptions(**{**facts, **changes})


def test_comfyui_is_started_with_folders_of_the_worker_and_the_users_arguments_last(tmp_path: Path) -> None:
    words = tree_arguments(options(tmp_path, comfyui_args=("--lowvram", "--cache-lru", "5"), comfyui_base_directory=tmp_path / "base"))
    pairs = dict(itertools.pairwise(words))
    assert pairs["--output-directory"] == str(tmp_path / "work" / "output")
    assert pairs["--temp-directory"] == str(tmp_path / "work"), 'ComfyUI appends "temp"'
    assert pairs["--base-directory"] == str(tmp_path / "base")
    assert words[-3:] == ["--lowvram", "--cache-lru", "5"] and "--cpu" in words
    assert "--cpu" not in tree_arguments(options(tmp_path, device="cuda:1"))


def test_flags_that_a_version_does_not_know_are_left_out(tmp_path: Path) -> None:
    words = tree_arguments(options(tmp_path, OLD_FLAGS))
    assert {word for word in words if word.startswith("--")} <= set(OLD_FLAGS)
    assert "--disable-api-nodes" in words
    newer = tree_arguments(options(tmp_path, NEW_FLAGS))
    assert "--disable-partner-nodes" in newer and "--disable-api-nodes" not in newer and "--disable-assets" in newer


def test_paid_nodes_are_loaded_only_if_asked_for(tmp_path: Path) -> None:
    words = tree_arguments(options(tmp_path, comfyui_args=("--enable-api-nodes",)))
    assert not {"--enable-api-nodes", "--disable-api-nodes", "--disable-partner-nodes"} & set(words)


def test_a_folder_without_comfyui_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for path in (None, tmp_path / "nothing"):
        with pytest.raises(EngineStartFailed, match="COMFYUI_PATH"):
            tree_arguments(options(tmp_path, comfyui_path=path))


def test_the_commit_is_read_in_every_form_that_git_keeps_it(tmp_path: Path) -> None:
    assert tree_commit(tmp_path) == ""
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("0123456789abcdef0123456789abcdef01234567\n")
    assert tree_commit(tmp_path) == "0123456789"
    (git / "HEAD").write_text("ref: refs/heads/master\n")
    assert tree_commit(tmp_path) == ""
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{'a' * 40} refs/heads/other\n{'b' * 40} refs/heads/master\n")
    assert tree_commit(tmp_path) == "b" * 10
    (git / "refs" / "heads" / "master").write_text("c" * 40 + "\n")
    assert tree_commit(tmp_path) == "c" * 10


def torch_that_sees(devices: int, cuda: str | None = "12.8") -> Any:
    version, backend = SimpleNamespace(cuda=cuda, hip=None), SimpleNamespace(device_count=lambda: devices)
    return SimpleNamespace(__version__="2.9", version=version, cuda=backend, xpu=backend)


def test_a_device_that_torch_cannot_use_is_told_with_the_interpreter_and_the_remedy() -> None:
    without = unusable_device("cuda:0", torch_that_sees(0, cuda=None))
    assert without.startswith(f"{sys.executable} has torch 2.9, which is built without CUDA") and "use --device cpu, or install" in without
    assert "finds no device of cuda:7 on this host; name another --device" in unusable_device("cuda:7", torch_that_sees(0))
    assert "finds 1 device of cuda:0,3 on this host" in unusable_device("cuda:0,3", torch_that_sees(1))
    assert "finds no device of xpu:1" in unusable_device("xpu:1", torch_that_sees(0))
    assert unusable_device("cuda:0,1", torch_that_sees(2)) == "" == unusable_device("cpu", torch_that_sees(0))
    assert unusable_device("cuda:0", None) == "", "it went wrong before torch was there"


def test_the_device_class_holds_the_flags_that_matter(tmp_path: Path) -> None:
    torch = SimpleNamespace(__version__="2.9.1+cpu", get_num_threads=lambda: 3)
    arguments = ("--fast", "fp16_accumulation", "--output-directory", "/x", "--port", "1", "--preview-method", "auto", "--lowvram")
    said = device_class(options(tmp_path, comfyui_args=arguments), "0.3.64 (abc)", torch)
    assert said.startswith("cpu ") and ", 3 threads, torch 2.9.1+cpu, ComfyUI 0.3.64 (abc), " in said
    assert said.endswith(", --fast fp16_accumulation --lowvram")


# -- interrupts ---------------------------------------------------------------------------------------------------------
def test_an_interrupt_is_raised_again_until_the_run_is_over_and_never_after() -> None:
    flags: list[float] = []
    latch = InterruptLatch(lambda: flags.append(time.monotonic()))
    assert latch.begin("a") and not latch.requested
    latch.request("a")
    assert latch.requested and flags
    deadline = time.monotonic() + 5
    while len(flags) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    latch.end()
    raised = len(flags)
    assert raised >= 4
    time.sleep(0.15)
    assert len(flags) == raised
    assert latch.begin("b") and not latch.requested


def test_an_early_interrupt_waits_for_its_claim_and_is_used_up_by_it() -> None:
    latch = InterruptLatch(lambda: None)
    latch.request("later")
    assert latch.begin("other")
    latch.end()
    assert not latch.begin("later")
    latch.end()
    assert latch.begin("later")


# -- messages -----------------------------------------------------------------------------------------------------------
class Sink:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.pictures: list[tuple[str, bytes]] = []

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        self.steps.append((node_id, value, maximum))

    def preview(self, node_id: str, image: bytes) -> None:
        self.pictures.append((node_id, image))


def test_progress_of_each_form_is_told_once_under_the_prompts_own_node() -> None:
    listener, sink = ClientListener(), Sink()
    server = SimpleNamespace(sockets_metadata={}, send_sync=None)
    listener.attach(server)
    assert server.sockets_metadata[CLIENT_ID]["feature_flags"] == {"supports_preview_metadata": True}
    server.send_sync("progress", {"value": 1, "max": 2, "node": "x"}, CLIENT_ID)
    listener.begin(sink)
    server.send_sync("executing", {"node": "7"}, CLIENT_ID)
    for value in (1.0, 1.0, 2.0):
        server.send_sync("progress_state", {"nodes": {"7.0.1": {"value": value, "max": 4.0, "real_node_id": "7"}}}, CLIENT_ID)
    server.send_sync("progress", {"value": 2, "max": 4, "node": "7"}, CLIENT_ID)
    server.send_sync("progress", {"value": 3, "max": 4, "node": None}, CLIENT_ID)
    server.send_sync("executing", {"node": None}, CLIENT_ID)
    server.send_sync("status", {"anything": 1})
    listener.end()
    server.send_sync("progress", {"value": 4, "max": 4, "node": "7"}, CLIENT_ID)
    assert sink.steps == [("7", 1, 4), ("7", 2, 4), ("7", 3, 4)]
    assert listener.started == {"7"}


def test_previews_are_small_jpegs_and_not_too_many() -> None:
    listener, sink = ClientListener(), Sink()
    listener.begin(sink)
    picture = Image.new("RGBA", (300, 100))
    for _ in range(5):
        listener.receive(4, (("PNG", picture, 64), {"node_id": "3.1", "real_node_id": "3"}))
    ((node_id, jpeg),) = sink.pictures
    assert node_id == "3" and jpeg[:2] == b"\xff\xd8" and len(jpeg) < 3000
    assert picture.size == (300, 100), "the node's own picture is left alone"


# -- endings ------------------------------------------------------------------------------------------------------------
def test_the_last_ending_counts() -> None:
    messages = [("execution_start", {}), ("execution_cached", {"nodes": ["1", 2]}), ("execution_error", {"node_id": "5"})]
    assert ending(messages) == ("execution_error", {"node_id": "5"})
    assert ending(messages[:2]) == ("", {})
    assert cached_nodes(messages) == {"1", "2"}
    assert node_failure("execution_interrupted", {"node_id": "5"}).exception_type == "InterruptProcessingException"


class Exhausted(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "known", "expected"),
    [
        (Exhausted(), Exhausted, OutOfMemory),
        (ValueError("out of memory"), Exhausted, NodeFailed),
        (ValueError(), Exception, NodeFailed),
        (MemoryError(), Exhausted, OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), Exhausted, OutOfMemory),
    ],
)
def test_exhausted_memory_is_known_by_the_exception_and_not_by_its_words(error: Exception, known: Any, expected: type) -> None:
    watch = FailureWatch(SimpleNamespace(OOM_EXCEPTION=known))
    handled: list[Any] = []
    executor = SimpleNamespace(handle_execution_error=lambda *arguments: handled.append(arguments))
    watch.attach(executor)
    watch.begin()
    executor.handle_execution_error("id", {}, [], set(), {}, error)
    assert handled == [("id", {}, [], set(), {}, error)]
    failure = watch.failure("execution_error", {"node_id": "5", "exception_message": "x\n"}, "cpu")
    assert type(failure) is expected and failure.exception_message == "x"


# -- models stay loaded ---------------------------------------------------------------------------------------------------
def test_neither_stage_of_a_job_makes_comfyui_forget_the_other() -> None:
    loader, sink = SimpleNamespace(), SimpleNamespace(OUTPUT_NODE=True)
    warm = WarmNodes({"Loader": loader, "Use": loader, "DistributedSink": sink, "DistributedSource": loader, "SaveImage": sink})
    item = {"1": node("Loader"), "2": node("Use", model=out("1")), "3": node("Use", a=out("2"))}
    item["9"] = node("DistributedSink", images=out("2"))
    last = {"9": node("DistributedSource"), "5": node("Loader"), "6": node("Use", model=out("5"), images=out("9"))}
    last["7"] = node("SaveImage", images=out("6"))
    original = {**item, **last}

    def request(kind: Any, prompt: Any, original_prompt: Any = original) -> RunRequest:
        return RunRequest("claim", "job", 0, kind, prompt, (), original_prompt)

    assert warm.beside(request("generate", item), item) == item
    executed = {**item, "2": {**item["2"], "is_changed": ["x"]}}
    warm.note(request("generate", item), executed, {"3"})
    beside = warm.beside(request("last", last), last)
    assert beside == {**last, "1": item["1"], "2": executed["2"]}, "with ComfyUI's marks, without outputs and what shows something"
    warm.note(request("last", last), beside, ())
    assert warm.beside(request("generate", item), item) == {**item, "5": last["5"]}, "what was fed is new each time"
    other = {"1": node("Loader")}
    assert warm.beside(request("whole", other, other), other) == other
    assert warm.beside(request("generate", item), item) == item, "it was let go"


# -- outputs and classes ------------------------------------------------------------------------------------------------
def test_a_cached_nodes_ui_counts_only_while_its_files_are_there(tmp_path: Path) -> None:
    folders = WorkFolders(tmp_path).create()
    (folders.output / "a.png").write_bytes(b"a")
    images = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}], "odd": (1, {2})}
    history = {"outputs": {"1": images, "2.0": {**images, "images": [{**images["images"][0], "filename": "gone.png"}]}},
               "meta": {"2.0": {"real_node_id": "2"}}}  # fmt: skip
    assert list(plain_outputs(history, frozenset({"1", "2"}), folders)) == ["1"]
    kept = plain_outputs(history, frozenset({"1"}), folders)
    assert list(kept) == ["1", "2.0"] and kept["1"]["odd"] == [1, "{2}"]
    (file,) = take_files(kept, folders, "claim")
    assert (file.node_id, file.name, file.path.read_bytes()) == ("1", "a.png", b"a")
    assert not (folders.output / "a.png").exists()


def test_lists_are_known_in_old_and_new_form() -> None:
    assert listed_choices((["a", 1], {})) == ["a", 1]
    assert listed_choices(("COMBO", {"options": ["a"]})) == ["a"]
    assert listed_choices(("COMBO", {"options": [], "remote": {"route": "/x"}})) is None
    assert listed_choices(("COMBO", {})) is None and listed_choices(("INT", {"max": 3})) is None


def test_a_class_that_raises_gives_nothing_and_takes_nobody_down() -> None:
    class Broken(type):
        @property
        def RETURN_TYPES(cls) -> Any:
            raise OSError

    assert output_types(Broken("Node", (), {})) == ()
    assert output_types(SimpleNamespace(RETURN_TYPES=("IMAGE", ["a", "b"]))) == ("IMAGE", "COMBO")


def test_inputs_that_a_class_checks_by_itself_are_told() -> None:
    class One:
        @classmethod
        def VALIDATE_INPUTS(cls, image: str) -> bool:
            return True

    class All:
        @classmethod
        def VALIDATE_INPUTS(cls, **inputs: Any) -> bool:
            return True

    assert self_validated_inputs(One) == {"cls", "image"} and self_validated_inputs(All) is None and self_validated_inputs(int) == set()

"""Every prompt in examples/ is one that `run` takes."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distributed_comfy.orchestrator.submit import SubmitOptions, check_early, read_prompt
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, SEED_CLASS, UPSCALE_CLASS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_can_be_planned(path: Path) -> None:
    is_upscale = path.stem.startswith("upscale")
    options = SubmitOptions() if is_upscale else SubmitOptions(items=3, seed=11)
    given = read_prompt(path, options)
    check_early(given, options)
    classes = {node["class_type"] for node in given.parsed.prompt.values()}
    assert ({UPSCALE_CLASS} if is_upscale else {SEED_CLASS, COLLECTOR_CLASS}) <= classes
    assert all(node["_meta"]["title"] for node in given.parsed.prompt.values()), "what people see in the editor"


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_page_on_examples_has_a_command_for_it(path: Path) -> None:
    page = path.with_name("README.md").read_text("utf-8")
    assert f"]({path.name})" in page and f"\n    distributed-comfy run examples/{path.name} " in page


def test_the_tiny_model_says_which_python_it_needs() -> None:
    """-S leaves out torch and safetensors."""
    script = EXAMPLES[0].with_name("tiny_model.py")
    done = subprocess.run([sys.executable, "-I", "-S", script, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"{sys.executable} lacks torch, which this needs: use ComfyUI's own")


def test_the_tiny_model_lands_where_git_looks_away() -> None:
    page = EXAMPLES[0].with_name("README.md").read_text("utf-8")
    ignored = EXAMPLES[0].parents[1].joinpath(".gitignore").read_text("utf-8").splitlines()
    assert "python examples/tiny_model.py tiny\n" in page and "/tiny/" in ignored

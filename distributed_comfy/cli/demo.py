"""``distributed-comfy demo``."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from distributed_comfy.cli.commands import interruptibly, json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.progress import RunProgress
from distributed_comfy.cli.typed import typed_command
from distributed_comfy.errors import JobError
from distributed_comfy.orchestrator.demo import DemoOptions, run_demo
from distributed_comfy.orchestrator.demo_summary import (
    COLUMNS,
    ENGINE_NOTE,
    SUMMARY_TEXT,
    comfyui_steps,
    summary_json,
    summary_lines,
    summary_rows,
    write_summary,
)
from distributed_comfy.orchestrator.demo_upscale import BEFORE_AFTER
from distributed_comfy.settings import read_settings


@click.command()
@click.option("--items", type=int, default=8, show_default=True, metavar="N", help="Pictures to make.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, metavar="N", help="CPU workers to start.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True, help="Folder.")
@json_option
@click.pass_obj
def demo(output: Output, /, items: int, workers: int, out: Path) -> None:
    """Eight pictures on two CPU workers: a look at how it works, without a GPU, ComfyUI or a Redis of your own.

    Starts a private Redis and the workers, runs one job on all of them and then the same job on one of them, upscales a part of the first
    picture in tiles, and ends everything again. Leaves the pictures, a contact sheet, the upscale before and after, and a summary.
    The pictures come from the built-in engine; the last lines say how to use ComfyUI.

    That engine needs torch: pip install "distributed-comfy[worker]", where it is not there yet.
    """
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    output.remark("demo with the built-in engine: a private Redis and CPU workers, all gone at the end", "bold")
    with RunProgress(output) as progress:
        asked = DemoOptions(out, items, workers, progress.retitle)
        try:
            result = interruptibly(output, lambda stop: run_demo(settings, replace(asked, stop=stop), progress))
        except JobError:
            if left := len(list(out.glob("demo_*.png"))):
                output.remark(f"{left} {'picture stays' if left == 1 else 'pictures stay'} in {out}, without contact sheet and summary")
            raise
    sheet = write_summary(result, out, typed_command())
    output.result(summary_json(result))
    output.say()
    output.table(COLUMNS, summary_rows(result), right=("ITEM", "SECONDS"))
    output.say()
    for line in summary_lines(result):
        output.say(line)
    output.say(f"pictures: {out}    contact sheet: {sheet}    summary: {out / SUMMARY_TEXT}", "bold")
    output.say(f"upscale, before and after: {out / BEFORE_AFTER}", "bold")
    output.say()
    output.say(ENGINE_NOTE)
    for line in comfyui_steps(typed_command()):
        output.say(line)

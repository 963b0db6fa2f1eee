"""``distributed-comfy run``."""
from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from distributed_comfy.cli.canvas_preview import CanvasPreview, preview_option
from distributed_comfy.cli.cluster import out_or_default
from distributed_comfy.cli.commands import interruptibly, json_option, naming_options
from distributed_comfy.cli.delivered import show_delivery
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.progress import RunProgress
from distributed_comfy.cli.typed import typed_command
from distributed_comfy.cli.worker import comfyui_option
from distributed_comfy.engine.locate import find_comfyui
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.frame_plan import FRAME_OPTIONS
from distributed_comfy.orchestrator.detach import announce, announce_failure, start_detached
from distributed_comfy.orchestrator.local_workers import WorkerOptions
from distributed_comfy.orchestrator.run import JobStart, RunOptions, run_prompt
from distributed_comfy.orchestrator.submit import SubmitOptions
from distributed_comfy.settings import Settings, read_settings


@click.command(short_help="Run a prompt on all workers and save what it makes.")
@click.argument("prompt", type=click.Path(path_type=Path), metavar="PROMPT.json")
@click.option("--items", type=int, metavar="N", help="Seeds to run [the collector's items, else one per live worker].")
@click.option("--seed", type=int, metavar="S", help="Item 0's seed; item k has S + k [as in the prompt].")
@click.option(
    "--set", "sets", multiple=True, metavar="NODE.INPUT=VALUE",
    help="Change an input; NODE: id, class or title. NODE.+INPUT adds one that the file leaves out. Repeatable.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the files [output/ and the prompt's name].")
@click.option("--workers", type=click.IntRange(0, 256), default=0, metavar="N", help="Bring up N workers for this run, GPU by GPU.")
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, metavar="N", help="0 (last) to 9 (first).")
@click.option("--user", default="", metavar="NAME", help="Whose turn it is, where several share the workers [DC_USER, else login name].")
@click.option("--engine", type=click.Choice(["comfyui", "builtin", "attach"]), help="Only workers with this engine [any].")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only workers with this tag (their DC_WORKER_TAGS). Repeatable.")
@comfyui_option
@click.option(
    "--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
    help="Queue it although no worker can run it now; if none can within SECONDS, cancel it and exit with status 3 [0: refuse it at once].",
)  # fmt: skip
@click.option(
    "--results", type=click.Choice(["collector", "celery"]), default="collector", show_default=True,
    help="celery: save nothing; results stay in the blob server for Celery's result API.",
)  # fmt: skip
@click.option(
    "--on-missing", type=click.Choice(["error", "drop", "repeat"]),
    help="What becomes of items that fail for good: the job fails, they are left out, or the last good one stands in [as in the prompt].",
)  # fmt: skip
@preview_option
@click.option(
    "--frames", type=click.Choice(FRAME_OPTIONS),
    help="How tensors travel, for slow links; auto: in 8 bits where only 8-bit files are made of them [DC_FRAMES, else exact].",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Do not go on with an unfinished job of the same content that lies in the folder.")
@click.option("--detach", is_flag=True, help="Return as soon as the job is queued; a process in the background collects it.")
@click.option("--announce", type=click.Path(path_type=Path), hidden=True)
@json_option
@click.pass_obj
def run(output: Output, /, prompt: Path, out: Path | None, **options: Any) -> int:
    """Run PROMPT.json (saved in ComfyUI with Workflow > Export (API)) and save what it makes.

    A prompt with a DistributedCollector runs once per seed, on whichever worker is free, and is collected in order; any other is one item.
    All files of output nodes are saved, and the collected images too where no node behind the collector saves them. Nothing in the folder
    is overwritten. Ctrl-C cancels the job; what is finished stays. If this process or its host dies, the same command goes on where it
    stopped.

    \b
    Examples:
      distributed-comfy run graph.json --items 32 --out pictures
      distributed-comfy run graph.json --seed 42 --set 3.steps=30 --set "KSampler.cfg=4.5"
      distributed-comfy run graph.json --workers 2          no cluster: brings its own Redis and workers
      distributed-comfy run graph.json --items 500 --detach  go home; see `distributed-comfy jobs`
    """
    settings = read_settings(comfyui_path=options["comfyui"])
    out = out_or_default(out, prompt.name)
    preview = CanvasPreview(options["preview"]) if options["preview"] else None
    if options["detach"]:
        return _detach(output, settings, prompt, {**options, "out": out})
    supervised = options["announce"] is not None
    set_up_logging(settings, output, audience="supervisor" if supervised else "person", child=supervised)
    with _Progress(output, options["announce"], preview) as progress:
        try:
            with naming_options(comfyui_path=("--comfyui", options["comfyui"])):
                options["tree"] = find_comfyui(settings)
            delivery = interruptibly(output, lambda stop: run_prompt(settings, prompt, _run_options(out, options, stop), progress))
        except DistributedComfyError as error:
            if supervised:
                announce_failure(options["announce"], error)
            raise
    return show_delivery(output, delivery)


class _Progress(RunProgress):
    """Also tells the command that waits for a detached run which job it is."""

    def __init__(self, output: Output, announcement: Path | None, preview: CanvasPreview | None) -> None:
        super().__init__(output, preview=preview)
        self._announcement = announcement

    def submitted(self, start: JobStart) -> None:
        """See `Reporter`."""
        super().submitted(start)
        if self._announcement is not None:
            announce(self._announcement, start.record.job_id)


def _run_options(out: Path, options: dict[str, Any], stop: threading.Event) -> RunOptions:
    asked = SubmitOptions(
        items=options["items"],
        seed=options["seed"],
        sets=options["sets"],
        priority=options["priority"],
        user=options["user"],
        engine=options["engine"] or "",
        tags=options["tags"],
        wait_s=options["wait"],
        comfyui_path=options["tree"],
        results=options["results"],
        on_missing=options["on_missing"],
        frames=options["frames"],
    )
    return RunOptions(out, asked, options["workers"], WorkerOptions(options["engine"] or "", options["tree"]), stop, fresh=options["fresh"])


def _detach(output: Output, settings: Settings, prompt: Path, options: dict[str, Any]) -> int:
    """Start this command again in the background, and say how to find it."""
    set_up_logging(settings, output, audience="person")
    arguments = [str(prompt), "--out", str(options["out"])]
    named = ("items", "seed", "workers", "priority", "user", "engine", "comfyui", "wait", "results", "on_missing", "frames", "preview")
    for name in named:
        if options[name] not in (None, ""):
            arguments += [f"--{name.replace('_', '-')}", str(options[name])]
    if options["fresh"]:
        arguments.append("--fresh")
    for assignment in options["sets"]:
        arguments += ["--set", assignment]
    for tag in options["tags"]:
        arguments += ["--tag", tag]
    started = interruptibly(output, lambda stop: start_detached(settings, arguments, stop))
    output.result({"job": started.job_id, "pid": started.pid, "log": str(started.log_file), "out": str(options["out"])})
    output.say(f"job {started.job_id} runs on in the background (process {started.pid}) and saves into {options['out']}")
    command = typed_command()
    output.say(f"  how it goes:  {command} jobs show {started.job_id}    or: tail -f {started.log_file}")
    output.say(f"  end it:       {command} jobs cancel {started.job_id}")
    output.say(f"  if this host goes down, elsewhere: distributed-comfy jobs attach {started.job_id} --out DIR")
    return 0

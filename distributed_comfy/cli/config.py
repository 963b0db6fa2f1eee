"""``distributed-comfy config``: configuration of other projects."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from distributed_comfy.agent.up import workers_file
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.comfyui.gpu_config import Imported, Written, read_gpu_config, write_imported
from distributed_comfy.comfyui.options import options_file
from distributed_comfy.settings import read_settings


@click.group()
def config() -> None:
    """Take over the configuration of another project."""


@config.command("import", short_help="Workers and settings from a gpu_config.json.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@click.option("--force", is_flag=True, help="Replace a workers.json that is there; it is kept as workers.json.before-import.")
@json_option
@click.pass_obj
def import_config(output: Output, /, file: Path, dry_run: bool, force: bool) -> None:
    """Take over workers and settings from the gpu_config.json of ComfyUI-Distributed, and say what was dropped and why.

    Workers of this host go into workers.json, settings into the options of the node pack. Workers of other hosts are invited instead.

    \b
    Example:
      distributed-comfy config import ComfyUI/custom_nodes/ComfyUI-Distributed/gpu_config.json --dry-run
    """
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    imported = read_gpu_config(file, settings.host_name)
    imported.configuration(str(file))
    written = None
    if not dry_run:
        written = write_imported(imported, workers_file(settings), options_file(settings), force=force, source=str(file))
    output.result(
        {
            "workers": imported.workers, "options": imported.options, "dropped": [asdict(each) for each in imported.dropped],
            "written": None if written is None else {name: path and str(path) for name, path in asdict(written).items()},
        }
    )  # fmt: skip
    _say(output, imported, written)


def _say(output: Output, imported: Imported, written: Written | None) -> None:
    for name, fields in imported.workers.items():
        arguments = f", {' '.join(fields['comfyui_args'])}" if fields["comfyui_args"] else ""
        output.say(f"worker {name}: {fields['device']}{arguments}{'' if fields['enabled'] else ', disabled'}")
    for name, value in imported.options.items():
        output.say(f"option {name}: {'on' if value else 'off'}")
    for each in imported.dropped:
        output.say(f"dropped {each.place}: {each.why}")
    if written is None:
        output.say("nothing was written; leave --dry-run out to do so")
        return
    for path in (written.workers, written.options):
        if path is not None:
            output.say(f"written: {path}")
    if written.kept is not None:
        output.say(f"kept: the file of before is {written.kept}")
    output.say("start ComfyUI again (or `distributed-comfy up`), so that it is used")

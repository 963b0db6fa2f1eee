"""``distributed-comfy doctor``."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from distributed_comfy.cli.commands import interruptibly, json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.orchestrator.doctor.findings import Finding, healthy
from distributed_comfy.orchestrator.doctor.packages import check_packages
from distributed_comfy.settings import Settings, read_settings

_SHOWN = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}


@click.command(short_help="Look for whatever is wrong with servers, disk, engine and workers.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("output"), show_default=True, metavar="DIR", help="Where results go.")
@click.option("--no-engine", is_flag=True, help="Do not start this host's engine (it takes memory of the GPU for a moment).")
@json_option
@click.pass_obj
def doctor(output: Output, /, out: Path, no_engine: bool) -> int:
    """Look for whatever is wrong, from this host, and say what to do about it.

    It asks both Redis servers (the embedded ones where none is configured), really starts the engine that a worker of this host would use,
    and gives each free worker one small item, of which nothing stays. Running work is left in peace.

    \b
    Exit status: 0 nothing failed (warnings are not failures), 1 something did.
    """
    findings = check_packages()
    if healthy(findings):
        settings = read_settings()
        set_up_logging(settings, output, audience="person")
        findings += _examine(output, settings, out, no_engine)
    _show(output, findings)
    return 0 if healthy(findings) else 1


def _examine(output: Output, settings: Settings, out: Path, no_engine: bool) -> list[Finding]:
    # Only now, because this imports the packages whose place was just looked at.
    from distributed_comfy.orchestrator.doctor.examination import ExaminationOptions, examine

    output.remark("looking at servers, disk, engine and workers; an engine with many node packs takes a while")
    options = ExaminationOptions(out, engine=not no_engine)
    return interruptibly(output, lambda stop: examine(settings, options, stop))


def _show(output: Output, findings: Sequence[Finding]) -> None:
    output.result({"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]})
    rows = [(_SHOWN[finding.level], finding.check, _text(finding)) for finding in findings]
    output.table(("", "CHECK", "FOUND"), rows)
    failed, warned = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    output.say()
    output.say(f"{len(findings)} checks: {failed} failed, {warned} with a warning", "bold red" if failed else "bold")


def _text(finding: Finding) -> str:
    return f"{finding.found}\n-> {finding.remedy}" if finding.remedy else finding.found

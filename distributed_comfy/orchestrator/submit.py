"""From a prompt to a queued job: set inputs, plan, check that somebody can run it, bring its files, enter it in the table."""
from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed_comfy import __version__
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import (
    ClusterUnavailable,
    DistributedComfyError,
    ItemsOutOfRange,
    NoCapableWorker,
    NothingToVary,
    NoWorker,
    PromptHasNoOutput,
    PromptMalformed,
    ResultsNeedCollector,
    RunInterrupted,
    UpscaleUnused,
)
from distributed_comfy.frame_plan import FrameOption, FramePlan
from distributed_comfy.messages import Capability, InputFile, JobRecord, OnMissing, Requirement, ResultsGoTo
from distributed_comfy.nodes.registry import declared_inputs
from distributed_comfy.orchestrator.first_worker import how_to_start
from distributed_comfy.orchestrator.input_files import InputFolders, JobInputs
from distributed_comfy.orchestrator.resume import Resumed, resume
from distributed_comfy.orchestrator.unknown_inputs import unknown_inputs
from distributed_comfy.planning.near_names import meant
from distributed_comfy.planning.plan import ITEMS_LIMIT, JobPlan, PlanOptions, plan_job, resume_key
from distributed_comfy.planning.requirements import common_class, lacks, matches, signature, united
from distributed_comfy.state.jobs import Submission
from distributed_comfy.state.records import Outer
from distributed_comfy.transport.travel import check_here, loses_bits
from distributed_comfy.workflow.edit import set_input
from distributed_comfy.workflow.parse import ParsedPrompt, parse_prompt
from tasks.cluster import Cluster

_POLL_S = 0.25
_OWN_WORKERS = ", or add --workers 2 to let this command start its own"

Live = Mapping[str, Capability]
"""Worker name -> its capability, of workers whose lease runs."""


@dataclass(frozen=True)
class OuterRun:
    """A ComfyUI that runs the prompt itself, and takes from the job what its collectors and its upscale give."""

    outputs: tuple[str, ...]
    """The output nodes that it runs."""
    engine_version: str
    """Of itself, as `Capability.engine_version` would tell it."""
    folders: Mapping[str, Path]
    """``input``, ``output``, ``temp`` -> where it has the files that prompts load."""
    can_run_items: bool
    """The job is queued also where no worker can run it: this ComfyUI can."""
    takes_part: bool
    """It counts among those for whom there is one item each by default."""


@dataclass(frozen=True)
class SubmitOptions:
    """What the submitter asks for, beside the prompt."""

    items: int | None = None
    """Seeds to run; None: the collector's own number, else one for each live worker that can run the prompt."""
    seed: int | None = None
    """Item 0's seed; None: as in the prompt."""
    sets: Sequence[str] = ()
    """``NODE.INPUT=VALUE`` changes."""
    priority: int = 5
    """0 (last) to 9 (first)."""
    user: str = ""
    """For fairness between users; empty: the login name."""
    engine: str = ""
    """Only workers with this engine; empty: any."""
    tags: Sequence[str] = ()
    """Only workers with all of these tags."""
    wait_s: float = 0.0
    """Queue the job even if no live worker can run it now, and cancel it if none can within this time; 0: do not queue it then."""
    comfyui_path: Path | None = None
    """Its ``input`` folder is searched for the files that the prompt loads."""
    results: ResultsGoTo = "collector"
    """``celery``: nobody collects the job; its results stay in the blob store for Celery's result API."""
    resume_in: Path | None = None
    """Output folder in which an unfinished job of the same content is looked for, to go on where it stopped; None: start afresh."""
    on_missing: OnMissing | None = None
    """What every collector makes of items that fail for good; None: as in the prompt."""
    frames: FrameOption | None = None
    """How the job's tensors travel; None: as DC_FRAMES says."""
    outer: OuterRun | None = None
    """Where the prompt runs, if it is not the job that runs all of it."""
    outputs: tuple[str, ...] | None = None
    """The output nodes to run; None: every one of the prompt."""
    folders: Mapping[str, Path] | None = None
    """ComfyUI's ``input``, ``output`` and ``temp`` on this host, the only places where files are looked for; None: as
    `InputFolders.of_submitter` says."""
    echoes: bool = False
    """As `JobRecord.echoes`."""
    job_id: str = ""
    """12 hexadecimal digits, made up by a submitter who listens to the job before it runs; empty: a new one."""


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt with the user's changes, and where it came from."""

    parsed: ParsedPrompt
    folder: Path
    """Where input files are looked for first."""
    title: str = ""
    """Name of the file; empty where it came from none."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that has entered the table."""

    record: JobRecord
    plan: JobPlan
    inputs: JobInputs
    owner: str
    """Who holds the owner lease; empty where nobody has to."""
    resumed: Resumed | None = None
    """What it goes on with; the spool is then open."""

    @property
    def is_old(self) -> bool:
        """Whether it is the very job that stopped, which is in the table, and has results in the blob store."""
        return self.resumed is not None and self.resumed.record is not None


def read_prompt(source: str | Path | Mapping[str, Any], options: SubmitOptions) -> GivenPrompt:
    """The prompt with every ``--set`` applied.

    Args:
        source: path, JSON text or parsed JSON of an API-format prompt.
        options: for `SubmitOptions.sets`.
    Raises:
        PromptUnreadable, PromptIsWorkflow, PromptMalformed, InputUnknown: it is none, or cannot be changed so.
    """
    parsed = parse_prompt(source)
    for assignment in options.sets:
        parsed = replace(parsed, prompt=set_input(parsed.prompt, assignment, declared_inputs))
    if isinstance(source, Mapping) or (isinstance(source, str) and source.lstrip("\ufeff \t\r\n")[:1] in ("{", "[")):
        return GivenPrompt(parsed, Path.cwd())
    return GivenPrompt(parsed, Path(source).absolute().parent, Path(source).name)


def check_early(given: GivenPrompt, options: SubmitOptions) -> None:
    """Refuse what no worker could change, before servers and workers are started.

    Which classes save something, and which of their inputs take a seed, is known for sure only once there are workers to ask.

    Raises:
        BadInput: such as a cycle, nested collectors, or items or seeds out of range.
    """
    try:
        plan_job(given.parsed, PlanOptions(options.items, options.seed, options.engine, on_missing=options.on_missing), [])
    except (PromptHasNoOutput, NothingToVary, PromptMalformed, UpscaleUnused):  # a worker may know output nodes that we do not
        if options.items is not None and not 1 <= options.items <= ITEMS_LIMIT:
            raise ItemsOutOfRange(items=options.items, limit=ITEMS_LIMIT) from None


def submit_prompt(cluster: Cluster, given: GivenPrompt, options: SubmitOptions, stop: threading.Event) -> QueuedJob:
    """Queue a prompt.

    Args:
        cluster: open connections.
        given: from `read_prompt`.
        options: what to run.
        stop: ends the wait for a worker.
    Raises:
        BadInput: any of its kinds; nothing was queued.
        NoWorker, NoCapableWorker: nobody can run it, within ``wait_s``; the message names what each worker lacks.
        FrameEncodingMissing: what its tensors would come in cannot be read here.
        RunInterrupted: ``stop`` was set.
    """
    prepared = prepare_job(cluster, given, options, stop)
    try:
        enter_job(cluster, prepared, options.outer)
    except BaseException as error:
        give_up_job(cluster, prepared, error)
        raise
    return prepared


def prepare_job(cluster: Cluster, given: GivenPrompt, options: SubmitOptions, stop: threading.Event) -> QueuedJob:
    """All of `submit_prompt` but the last step: the job as `enter_job` enters it, with its files and what it goes on with."""
    plan, live = _plan_with_workers(cluster, given.parsed, options, stop)
    if plan.tiles is not None:
        plan = replace(plan, tiles=replace(plan.tiles, item_bytes=cluster.settings.tile_item_bytes))
    plan = replace(plan, warnings=(*plan.warnings, *unknown_inputs(given.parsed.prompt)))
    frames = _frame_plan(cluster, plan, options)
    kept = options.results == "celery"
    if kept and plan.has_last_stage:
        raise ResultsNeedCollector(nodes=", ".join(plan.items[-1].targets))
    job_id, owner = options.job_id or secrets.token_hex(6), "" if kept else f"{cluster.settings.host_name}-{secrets.token_hex(4)}"
    inputs = JobInputs(cluster.blobs, job_id, cluster.settings.blob_limit_bytes)
    try:
        input_files = inputs.add(plan.input_files, _folders(given, options))
        record = _record(cluster, given, plan, options, input_files)
        key = _resume_key(plan, _engines(plan, live, options), input_files, frames)
        record = replace(record, job_id=job_id, frames=frames, resume_key=key)
        itself = options.outer is None  # a ComfyUI that runs the prompt has claims of its own on its job
        resumed = resume(cluster, record, options.resume_in, owner, itself=itself) if options.resume_in else None
    except DistributedComfyError:
        _drop_blobs(cluster, job_id)
        raise
    prepared = QueuedJob(record, plan, inputs, owner, resumed)
    if resumed is None or resumed.record is None:
        return prepared
    try:
        return _gone_on(cluster, replace(prepared, record=resumed.record), _folders(given, options), job_id)
    except BaseException:
        resumed.spool.close()
        raise


def enter_job(cluster: Cluster, prepared: QueuedJob, outer: OuterRun | None) -> None:
    """Let a job from `prepare_job` enter the table; a second time changes nothing.

    Raises:
        ClusterUnavailable: no answer; it may be there all the same.
    """
    if not prepared.is_old:
        cluster.jobs.submit(_submission(prepared.record, prepared.plan, prepared.resumed, outer), prepared.owner)


def give_up_job(cluster: Cluster, prepared: QueuedJob, error: BaseException) -> None:
    """Nobody enters it any more: what it would have gone on with waits for another one.

    If only the answer was lost, the job is there, and nobody renews its owner's lease: it is parked, and cancelled by and by.
    """
    if prepared.resumed is not None:
        prepared.resumed.spool.close()
    if isinstance(error, DistributedComfyError) and not prepared.is_old:
        _drop_blobs(cluster, prepared.record.job_id)


def _drop_blobs(cluster: Cluster, job_id: str) -> None:
    with suppress(DistributedComfyError):
        cluster.blobs.drop_job(job_id)


def submit_again(cluster: Cluster, queued: QueuedJob, spool: Spool | None, outer: OuterRun) -> QueuedJob:
    """Enter a job in another table, as it was planned and under its id: what lies in its spool does not run again.

    A table that knows the job, because it is the old one come back, is changed in nothing.

    Args:
        cluster: open connections.
        queued: the job, whose table is gone.
        spool: its own, open; None where nothing of it is here.
        outer: the ComfyUI that runs the prompt.
    Raises:
        InputFileMissing, InputFileOutside: a file that the prompt loads is there no more, or no longer in ComfyUI's folders.
        ClusterUnavailable: this table does not answer either.
    """
    record = queued.record
    inputs = JobInputs(cluster.blobs, record.job_id, cluster.settings.blob_limit_bytes)
    inputs.add(queued.plan.input_files, InputFolders.of_comfyui(outer.folders))
    resumed = Resumed(record.job_id, spool, record.items) if spool is not None else None
    cluster.jobs.submit(_submission(record, queued.plan, resumed, outer), queued.owner)
    return replace(queued, inputs=inputs, resumed=resumed)


def _gone_on(cluster: Cluster, queued: QueuedJob, folders: InputFolders, unused_id: str) -> QueuedJob:
    """A job that went on itself: its input files are there under its own id, and nothing of the one that would have been queued."""
    record = queued.record
    inputs = JobInputs(cluster.blobs, record.job_id, cluster.settings.blob_limit_bytes)
    inputs.add(queued.plan.input_files, folders)
    cluster.blobs.drop_job(unused_id)
    return replace(queued, inputs=inputs)


def _folders(given: GivenPrompt, options: SubmitOptions) -> InputFolders:
    folders = options.folders if options.outer is None else options.outer.folders
    if folders is not None:
        return InputFolders.of_comfyui(folders)
    return InputFolders.of_submitter(given.folder, options.comfyui_path)


def _frame_plan(cluster: Cluster, plan: JobPlan, options: SubmitOptions) -> FramePlan:
    """How the job's tensors travel; whoever asks Celery for results gets all bits, unless asked otherwise."""
    option = options.frames or cluster.settings.frames
    steps = plan.tiles.made_from if plan.tiles is not None else frozenset()
    pictures = tuple(one.node_id for one in plan.collectors if "images" in one.slots and one.node_id not in steps)
    frames = FramePlan(option, plan.eight_bit if options.results == "collector" else (), pictures)
    check_here(frames)
    return frames


def _submission(record: JobRecord, plan: JobPlan, resumed: Resumed | None, outer: OuterRun | None) -> Submission:
    prompts = {**plan.prompts, plan.original_prompt_hash: plan.original_prompt}
    last = signature(plan.last_requirement) if plan.last_requirement else ""
    finished = resumed.finished if resumed else ()
    return Submission(record, plan.items, prompts, signature(plan.requirement), last, finished, outer=_outer(outer))


def _outer(outer: OuterRun | None) -> Outer:
    return "" if outer is None else "runs" if outer.can_run_items else "checked"


def _record(cluster: Cluster, given: GivenPrompt, plan: JobPlan, options: SubmitOptions, input_files: tuple[InputFile, ...]) -> JobRecord:
    return JobRecord(
        job_id="",
        submitter=options.user or cluster.settings.submitter,
        priority=options.priority,
        items=len(plan.items),
        prompts=tuple(plan.prompts),
        original_prompt_hash=plan.original_prompt_hash,
        collectors=plan.collectors,
        edges=plan.edges,
        input_files=input_files,
        extra_pnginfo=given.parsed.extra_pnginfo,
        requirement=plan.requirement,
        last_requirement=plan.last_requirement,
        has_prepare=plan.has_prepare,
        has_last_stage=plan.has_last_stage,
        grows=plan.tiles is not None,
        tiles=plan.tiles,
        host=cluster.settings.host_name,
        title=given.title,
        results=options.results,
        echoes=options.echoes,
    )


def check_capable(requirements: Sequence[Requirement], live: Live) -> None:
    """Raises NoCapableWorker, naming what each live worker lacks and what may have been meant, unless one worker meets each requirement."""
    for requirement in requirements:
        missing = {name: lacks(requirement, capability) for name, capability in live.items()}
        if all(missing.values()):
            words = [f"{name} lacks {', '.join(what)}" for name, what in sorted(missing.items())]
            words += [f"did you mean {each}?" for each in meant(requirement, live.values())]
            raise NoCapableWorker(lacks="; ".join(words))


def _plan_with_workers(cluster: Cluster, parsed: ParsedPrompt, options: SubmitOptions, stop: threading.Event) -> tuple[JobPlan, Live]:
    """Plan against the live workers, waiting for the first one as long as the user allows; the plan and those workers."""
    give_up = time.monotonic() + options.wait_s
    while not stop.is_set():
        live = cluster.matching.live()
        plan = _plan(parsed, options, list(live.values()))
        if options.outer is not None and options.outer.can_run_items:
            return plan, live
        try:
            if not live:
                raise NoWorker(remedy=how_to_start(cluster) + ("" if options.outer else _OWN_WORKERS))
            check_capable([need for need in (plan.requirement, plan.last_requirement) if need], live)
            return plan, live
        except ClusterUnavailable:
            if live and options.wait_s > 0 and not _wants_one_class(plan):
                return plan, live  # queued all the same: a worker that gains what is missing starts it
            if time.monotonic() >= give_up:
                raise
        stop.wait(_POLL_S)
    raise RunInterrupted(when="before a job was queued")


def _plan(parsed: ParsedPrompt, options: SubmitOptions, live: Sequence[Capability]) -> JobPlan:
    """By default one item for each live worker that can run it, for all of them while none can; one more for a ComfyUI that takes part."""
    beside = int(options.outer is not None and options.outer.takes_part)
    wanted = PlanOptions(
        options.items, options.seed, options.engine, tuple(options.tags), max(1, len(live) + beside), options.on_missing,
        outer_outputs=options.outer.outputs if options.outer else None, outputs=options.outputs,
    )  # fmt: skip
    plan = _in_one_class(plan_job(parsed, wanted, live), live)
    capable = sum(matches(plan.requirement, capability) for capability in live)
    if capable == len(live) or (capable == 0 and not beside):
        return plan
    return _in_one_class(plan_job(parsed, replace(wanted, participants=capable + beside), live), live)


def requirement_of_prompt(source: str | Path | Mapping[str, Any], options: SubmitOptions, live: Live) -> Requirement:
    """What a worker must have to run every stage of a prompt; errors as `submit_prompt`."""
    plan = _plan(read_prompt(source, options).parsed, options, list(live.values()))
    return united([plan.requirement, *([plan.last_requirement] if plan.last_requirement else [])])


def _wants_one_class(plan: JobPlan) -> bool:
    return plan.tiles is not None and plan.tiles.deterministic == "same-class"


def _in_one_class(plan: JobPlan, live: Sequence[Capability]) -> JobPlan:
    """The same job for workers of one device class only, where its upscale asks for that; the last stage too, if one of them can run it."""
    name = common_class(plan.requirement, plan.last_requirement, live) if _wants_one_class(plan) else ""
    if not name:
        return plan
    last = plan.last_requirement and replace(plan.last_requirement, device_class=name)
    able = last and any(matches(last, capability) for capability in live)
    return replace(
        plan,
        requirement=replace(plan.requirement, device_class=name),
        last_requirement=last if able else plan.last_requirement,
        warnings=(*plan.warnings, f"tiles run on workers of one device class only, as asked: {name}"),
    )


def _engines(plan: JobPlan, live: Live, options: SubmitOptions) -> set[str]:
    """With versions, of whoever can run the job; with workers of its own version a ComfyUI is the same one as without."""
    found = {f"{one.engine} {one.engine_version}" for one in live.values() if matches(plan.requirement, one)}
    return found | ({f"comfyui {options.outer.engine_version}"} if options.outer else set())


def _resume_key(plan: JobPlan, engines: set[str], input_files: Sequence[InputFile], frames: FramePlan) -> str:
    """What lost bits is taken for nothing else."""
    versions = {"package": __version__, "engines": ", ".join(sorted(engines))}
    if plan.requirement.device_class:
        versions["device class"] = plan.requirement.device_class
    if loses_bits(frames):
        versions["frames"] = frames.option
    return resume_key(plan, input_hashes={entry.file.name: entry.file.sha256 for entry in input_files}, versions=versions)

"""Every error this project raises, in one tree: a stable code, whether a retry can help, and its facts as fields.

An error crosses process and host borders as ``{"code", "fields"}`` (`to_wire`, `from_wire`), never as text, so the far side can
still act on the facts.  ``tiler`` has an error file of its own, because it depends on nothing here.
"""
from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any, ClassVar


class DistributedComfyError(Exception):
    """Base of the tree; a subclass is a code, a retry rule and a sentence with a remedy."""

    code: ClassVar[str] = "error"
    """Stable name for scripts, logs and the wire."""
    retryable: ClassVar[bool] = False
    """True where the same item can succeed elsewhere or later."""
    exit_code: ClassVar[int] = 1
    """Exit status of the command line: 1 failed, 2 bad input, 3 no worker or no Redis, 4 not invited any more."""
    sentence: ClassVar[str] = "{reason}"
    """Message with one ``{field}`` for each fact the raiser must give."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.sentence.format(**fields))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (self.to_wire(),))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The facts that `sentence` names, in order."""
        return tuple(dict.fromkeys(name.split("[")[0] for _, name, _, _ in string.Formatter().parse(cls.sentence) if name))

    def to_wire(self) -> dict[str, Any]:
        """The error as plain JSON values."""
        return {"code": self.code, "fields": self.fields}


# -- bad input ----------------------------------------------------------------------------------------------------------
class BadInput(DistributedComfyError):
    """The caller gave something that cannot work; nothing was queued."""

    code = "bad_input"
    exit_code = 2


class OptionWrong(BadInput):
    """An option of the node pack cannot be changed like this."""

    code = "option_wrong"
    sentence = "option {name}: {reason}"


class ImportRefused(BadInput):
    """A configuration of another project cannot be taken over, or would replace what is there."""

    code = "import_refused"
    sentence = "{path} is not imported: {reason}"


class ComfyUINotFound(BadInput):
    """Nobody knows into which ComfyUI the door of the node pack is to be written."""

    code = "comfyui_not_found"
    sentence = (
        "no ComfyUI in {folder}; name the folder (DIR) that holds its main.py, its base directory, or its custom_nodes folder "
        "(a new base directory has none yet: make one)"
    )


class InstallRefused(BadInput):
    """The door of the node pack cannot be written into custom_nodes, or not be removed from there."""

    code = "install_refused"
    sentence = "{path}: {reason}"


class PackNotImportable(BadInput):
    """ComfyUI's interpreter lacks this package, or has another version of it."""

    code = "pack_not_importable"
    sentence = "{python}, which runs ComfyUI, {reason}; run: {remedy}"


class NodeOutsideJob(BadInput):
    """A node class that only a plan of ours uses stands in a prompt of the user's."""

    code = "node_outside_job"
    sentence = "node {node_id} is internal to distributed-comfy and works only inside a job; remove it from the prompt"


class SettingInvalid(BadInput):
    """A setting has a value that cannot be used."""

    code = "setting_invalid"
    sentence = "{name}: {reason}"


class SettingsWrong(BadInput):
    """Settings cannot be changed like this; field ``wrong`` says of each what it must be."""

    code = "settings_wrong"
    sentence = "settings cannot be like this: {shown}; these must be changed"


class PromptUnreadable(BadInput):
    """The prompt file is missing, unreadable or not JSON."""

    code = "prompt_unreadable"
    sentence = "cannot read the prompt {source}: {reason}"


class PromptIsWorkflow(BadInput):
    """A UI workflow was given where a prompt is needed."""

    code = "prompt_is_workflow"
    sentence = "{source} is a workflow saved for ComfyUI's editor, not a prompt; in ComfyUI use Workflow > Export (API) and pass that file"


class PromptMalformed(BadInput):
    """The JSON is not an API-format graph."""

    code = "prompt_malformed"
    sentence = "{source} is not an API-format prompt: {reason}; export one with Workflow > Export (API)"


class PromptHasCycle(BadInput):
    """The graph feeds a node from itself."""

    code = "prompt_has_cycle"
    sentence = "the prompt has a cycle through nodes {nodes}; break one of these links"


class PromptHasNoOutput(BadInput):
    """Nothing in the prompt saves, shows or collects anything."""

    code = "prompt_has_no_output"
    sentence = "the prompt has no output node; add SaveImage, PreviewImage or DistributedCollector"


class CollectorsNested(BadInput):
    """One collector feeds another."""

    code = "collectors_nested"
    sentence = "collector {inner} feeds collector {outer}; collect once, or set pass_through on the second one"


class UpscaleUndistributed(BadInput):
    """The node of a tiled upscale was run as it is."""

    code = "upscale_undistributed"
    sentence = "{class_type} runs only through the cluster, which makes an item of each tile; submit the prompt with distributed-comfy run"


class UpscalesNested(BadInput):
    """One upscale feeds another."""

    code = "upscales_nested"
    sentence = "upscale {inner} feeds upscale {outer}; run them one after the other: save the first image and load it in a second prompt"


class SeveralUpscales(BadInput):
    """Two upscales stand side by side."""

    code = "several_upscales"
    sentence = "the prompt has two upscales, {first} and {second}, and a job takes one; put each in a prompt of its own"


class UpscaleUnused(BadInput):
    """What an upscale makes reaches no output node."""

    code = "upscale_unused"
    sentence = "nothing saves or shows what upscale {node_id} makes; put SaveImage or PreviewImage behind it"


class UpscaleOfItems(BadInput):
    """Several items were asked for, and nothing brings them together before the upscale."""

    code = "upscale_of_items"
    sentence = (
        "{option} was given, but upscale {node_id} takes one batch: put a DistributedCollector before it, which makes that batch of all "
        "items, or leave {option} out (a collector behind the upscale needs pass_through)"
    )


class UpscaleInputWrong(BadInput):
    """An input of an upscale has a value with which it cannot be planned."""

    code = "upscale_input_wrong"
    sentence = "{input} of upscale {node_id} (UltimateSDUpscaleDistributed) is {value}; it must be {expected}"


class NothingToVary(BadInput):
    """More than one item was asked for, or a seed, but the prompt has nothing that takes it."""

    code = "nothing_to_vary"
    sentence = "{option} was given, but the prompt has no {needed}; add one in ComfyUI (or leave {option} out)"


class ItemsOutOfRange(BadInput):
    """The number of items is not one this project queues."""

    code = "items_out_of_range"
    sentence = "items must be from 1 to {limit}, not {items}"


class SeedOutOfRange(BadInput):
    """A seed, or the last seed of the batch, is outside what ComfyUI samples with."""

    code = "seed_out_of_range"
    sentence = "seed {seed} with {items} items ends outside 0..{limit}; choose a smaller seed"


class SeedNotLiteral(BadInput):
    """A seed comes from a node, so the items cannot be numbered before the run."""

    code = "seed_not_literal"
    sentence = "DistributedSeed {node_id} takes its seed from node {feeder}, known only when it runs; type the number in or use --seed"


class ValueNotLiteral(BadInput):
    """A DistributedValue takes its values from a node, so nobody knows before the run what the items get."""

    code = "value_not_literal"
    sentence = "DistributedValue {node_id} takes its {input} from node {feeder}, known only when it runs; put the value in itself"


class InputUnknown(BadInput):
    """``--set`` names a node or input that the prompt does not have."""

    code = "input_unknown"
    sentence = "--set {target}: {reason}"


class InputFileMissing(BadInput):
    """The prompt loads a file that is not in the input folder."""

    code = "input_file_missing"
    sentence = "node {node_id} loads {name!r}, which is not in {folders}; put the file there or name it with its path"


class InputFileOutside(BadInput):
    """A prompt that a ComfyUI was sent loads a file from outside of its folders: that is not for workers to see."""

    code = "input_file_outside"
    sentence = "node {node_id} loads {name!r}, which is outside of {folders}; only files from there are sent to workers, put it there"


class JobUnknown(BadInput):
    """No job has this id."""

    code = "job_unknown"
    sentence = "no job {job_id}; `distributed-comfy jobs list` shows the known ones"


class ResultNotHere(BadInput):
    """A file was asked for that is none of a job's results on this host."""

    code = "result_not_here"
    sentence = "job {job_id} has no such result on this host: {name}; use a path of the list of its results"


class PictureUnreadable(BadInput):
    """Bytes that another host sent as a picture are none that is read here."""

    code = "picture_unreadable"
    sentence = "a picture cannot be read: {reason}; only {formats} of a bounded size are decoded"


class PictureNotHere(BadInput):
    """An item has no picture that this host could show."""

    code = "picture_not_here"
    sentence = "item {index} of job {job_id} has no picture here: {reason}; use the list of its results once it is done"


class NoMaster(BadInput):
    """What only a ComfyUI with the node pack has was asked of a server that is none."""

    code = "no_master"
    sentence = "this page is not served by a ComfyUI, so it has no {what}; use the panel inside ComfyUI for that"


class JobStateInvalid(BadInput):
    """The job is in a state in which the order makes no sense."""

    code = "job_state_invalid"
    sentence = "job {job_id} is {state}; {order} needs {needed}"


class JobOwned(BadInput):
    """Another live process collects the job."""

    code = "job_owned"
    sentence = "job {job_id} is collected by {owner}; stop that first, or wait until it is gone"


class WorkerUnknown(BadInput):
    """No worker has this name."""

    code = "worker_unknown"
    sentence = "no worker {name!r}{known}; `distributed-comfy workers list` shows the known ones"

    def __init__(self, *, known: str = "", **fields: Any) -> None:
        """Args:
        known: in words, which workers there are, as `distributed_comfy.cli.worker_names` says it.
        """
        super().__init__(known=known, **fields)


class WorkersFileWrong(BadInput):
    """The configuration of a host's workers, or a change to it, has something that cannot be used."""

    code = "workers_file_wrong"
    sentence = "{source}: {place} {reason}"


class WorkerFieldsWrong(BadInput):
    """Fields of a worker's configuration cannot be used; field ``wrong`` says of each what it must be."""

    code = "worker_fields_wrong"
    sentence = "a worker cannot be like this: {shown}; these fields must be changed"


class OrderRefused(BadInput):
    """A host's agent, or a worker, cannot do what it was told."""

    code = "order_refused"
    sentence = "{what}: {reason}"


class AgentRunning(BadInput):
    """The host has an agent already."""

    code = "agent_running"
    sentence = "an agent of host {host} is running already (pid {pid}, user {user}); end that one, or set DC_HOST if this is another host"


class InvitationInUse(BadInput):
    """Another machine works by the invitation of this one."""

    code = "invitation_in_use"
    sentence = (
        "an agent works as host {host!r} for {url} already (pid {pid}, user {user}); stop that one, or, where that is another machine, "
        "invite this one under a name of its own (`distributed-comfy invite --name NAME`, on the host that has the cluster)"
    )


class OutputUnwritable(BadInput):
    """The output folder cannot be written."""

    code = "output_unwritable"
    sentence = "cannot write to {path}: {reason}; free space there or choose another folder with --out"


class ResultsNeedCollector(BadInput):
    """Results were to be left to Celery, but part of the prompt can run only where somebody collects."""

    code = "results_need_collector"
    sentence = "what follows the collector (nodes {nodes}) needs the results of all items; remove it, or leave out results='celery'"


class TokenUnreadable(BadInput):
    """What was given as an invitation is none."""

    code = "token_unreadable"
    sentence = (
        "this is no token of an invitation: {reason}; copy the whole line that `distributed-comfy invite` printed, or ask for a new one"
    )


class HostNotInvitable(BadInput):
    """A host of this name cannot be invited."""

    code = "host_not_invitable"
    sentence = "host {name!r} cannot be invited: {reason}; choose another --name"


class InviteUnknown(BadInput):
    """No host of this name was invited."""

    code = "invite_unknown"
    sentence = "no host {name!r} was invited; `distributed-comfy invite list` shows all that were"


class FlowerMissing(BadInput):
    """The program that shows the cluster's tasks is not installed."""

    code = "flower_missing"
    sentence = "Flower is not installed for {python}: {reason}; run `{python} -m pip install 'distributed-comfy[flower]'`"


class MetricsMissing(BadInput):
    """What speaks to Prometheus is not installed."""

    code = "metrics_missing"
    sentence = "metrics need prometheus_client for {python}: {reason}; run `{python} -m pip install 'distributed-comfy[metrics]'`"


# -- the cluster is not there -------------------------------------------------------------------------------------------
class ClusterUnavailable(DistributedComfyError):
    """No Redis, no worker, or none that can run this."""

    code = "cluster_unavailable"
    exit_code = 3


class NoWorker(ClusterUnavailable):
    """No live worker is registered."""

    code = "no_worker"
    sentence = "no worker is running; {remedy}"


class NoCapableWorker(ClusterUnavailable):
    """Live workers exist, but each lacks something the prompt needs."""

    code = "no_capable_worker"
    sentence = "no live worker can run this prompt: {lacks}; install what is missing, or give it time with --wait SECONDS"


class NobodyCapable(ClusterUnavailable):
    """Neither a live worker nor the ComfyUI that accepted the prompt has all that it needs."""

    code = "nobody_capable"
    sentence = "neither a live worker nor this ComfyUI can run this prompt: {lacks}; install it on one of them, and queue the prompt again"


class NoAgent(ClusterUnavailable):
    """The host that an order is for has no agent."""

    code = "no_agent"
    sentence = (
        "no agent answers on host {host}; start one there with `distributed-comfy up` (a ComfyUI with the node pack is one too), or a "
        "single worker without one with `distributed-comfy worker`; agents alive: {alive}"
    )


class AgentSilent(ClusterUnavailable):
    """An agent lives and did not answer an order in time; the order is not carried out later."""

    code = "agent_silent"
    retryable = True
    sentence = "the agent of host {host} did not answer within {seconds} s; check what it says there, on its terminal or in its log"


class RedisUnreachable(ClusterUnavailable):
    """Redis does not answer."""

    code = "redis_unreachable"
    retryable = True
    sentence = "cannot reach Redis at {url}: {reason}; is it running, and is {setting} right?"


class RedisBusy(ClusterUnavailable):
    """Redis runs one script and does nothing else."""

    code = "redis_busy"
    retryable = True
    sentence = (
        "{url} runs a script that does not end and answers nobody: {reason}; the embedded Redis frees itself within a minute or two, on "
        "another one `redis-cli SCRIPT KILL` ends the script, and a restart of the server where that answers UNKILLABLE"
    )


class RedisRefusesWrites(ClusterUnavailable):
    """Redis answers and takes no changes: its memory or disk is full, or it is a replica."""

    code = "redis_refuses_writes"
    retryable = True
    sentence = "{url} takes no changes: {reason}; give it memory (maxmemory) or disk space, or name the primary server in DC_REDIS_URL"


class RedisRefused(ClusterUnavailable):
    """Redis answers and refuses the password or user."""

    code = "redis_refused"
    sentence = "Redis at {url} refuses the user or password: {reason}; check {setting}"


class RedisForbids(ClusterUnavailable):
    """The user that this process has on the server may not do what was asked."""

    code = "redis_forbids"
    sentence = (
        "{url} does not allow its user that ({reason}); an invited host runs workers and nothing else, and their names begin with its own "
        "(DC_HOST, a hyphen): run this on the host that invited it"
    )


class RedisTooOld(ClusterUnavailable):
    """The server lacks commands the scripts use."""

    code = "redis_too_old"
    sentence = "Redis at {url} is version {version}; {needed} or later is needed: upgrade it, or name another in DC_REDIS_URL"


class DoorRefused(ClusterUnavailable):
    """A server is not opened for other hosts."""

    code = "door_refused"
    sentence = "{what} is not opened for other hosts: {reason}; {remedy}"


class InviteRefused(ClusterUnavailable):
    """The server does not know the user of a token (any more)."""

    code = "invite_refused"
    exit_code = 4
    sentence = (
        "{url} does not let host {host!r} in ({reason}): its invitation was revoked, or expired before it was used; "
        "ask for a new one (`distributed-comfy invite --name {host}`), or forget that cluster here (`distributed-comfy up --leave`)"
    )


class JoinedUnreachable(ClusterUnavailable):
    """The cluster that this host has joined does not answer."""

    code = "joined_unreachable"
    retryable = True
    sentence = (
        "cannot reach {url}, which this host has joined as host {host!r}: {reason}; is that cluster running? Where it has shut this host "
        "out nobody may answer any more: ask for a new invitation (`distributed-comfy invite --name {host}`), or forget that cluster here "
        "(`distributed-comfy up --leave`)"
    )


class ServerNotTrusted(ClusterUnavailable):
    """A server has another certificate than the invitation promises."""

    code = "server_not_trusted"
    sentence = (
        "what answers at {url} is not the server of this invitation: {reason}; let this host's clock be right, and ask for a new one "
        "(`distributed-comfy invite --name {host}`): the server's authority is another one now, or a part of the token was changed"
    )


class ForFirstHost(ClusterUnavailable):
    """The command is not for a host that was invited."""

    code = "for_first_host"
    sentence = (
        "`{command}` is for the host that has the cluster, and this one has joined {url} as host {host}: run it there; "
        "for a cluster of this host's own run `distributed-comfy up --leave` first"
    )


class NoRedisServer(ClusterUnavailable):
    """No provider of the embedded Redis works on this system."""

    code = "no_redis_server"
    sentence = "no Redis server found on this system ({tried}); {remedy}"


class ServerStartFailed(ClusterUnavailable):
    """A server program of the embedded Redis did not start."""

    code = "server_start_failed"
    sentence = "{program} did not start: {reason}; free memory and disk, or name a running server in DC_REDIS_URL"


class WorkerNameTaken(ClusterUnavailable):
    """A live worker already has this name."""

    code = "worker_name_taken"
    sentence = "a live worker is already called {name!r}; stop it or choose another --name"


class RelayUnreachable(ClusterUnavailable):
    """Nobody answers at a relay's address, or only a proxy before it."""

    code = "relay_unreachable"
    retryable = True
    sentence = "no answer from the relay at {url}: {reason}; see whether `distributed-comfy serve` and its tunnel or proxy are up"


class RelayPauses(ClusterUnavailable):
    """The relay lets nobody log in for a while, because too many tries have failed."""

    code = "relay_pauses"
    retryable = True
    sentence = (
        "the relay at {url} takes no login of this host for now: {reason}; its invitation was revoked or has expired, or its secret is "
        "another now: ask for a new one (`distributed-comfy invite`), or forget that cluster here (`distributed-comfy up --leave`)"
    )


class RelayTlsFailed(ClusterUnavailable):
    """The certificate of a relay is not one that this host trusts."""

    code = "relay_tls_failed"
    sentence = (
        "no secure connection to the relay at {url}: {reason}; use the name that its certificate has, let this host's clock be right, and "
        "give a CA of your own with the invite"
    )


class RelayRefused(ClusterUnavailable):
    """The relay does not know this user, or its secret is another now."""

    code = "relay_refused"
    sentence = "the relay at {url} does not accept user {user} ({reason}); the invite may be revoked or too old, ask for a new one"


class RelayForbidden(ClusterUnavailable):
    """The relay will not be used in this way."""

    code = "relay_forbidden"
    sentence = "the relay at {url} refuses: {reason}"


class RelayAbsent(ClusterUnavailable):
    """Something answers at the address, but it is no relay."""

    code = "relay_absent"
    sentence = "{url} is not the address of a relay: {reason}; it must lead to `distributed-comfy serve`, any path of a proxy included"


class RelayWithoutWebSockets(ClusterUnavailable):
    """A proxy before the relay does not pass WebSockets on."""

    code = "relay_without_web_sockets"
    sentence = (
        "a proxy before {url} does not pass WebSockets: {reason}; let it hand on the headers Upgrade and Connection with HTTP/1.1 "
        "(docs/relay.md shows it for nginx)"
    )


class TunnelMissing(BadInput):
    """A tunnel was asked for, and its program is not installed."""

    code = "tunnel_missing"
    exit_code = 3
    sentence = "--tunnel needs the program {program}, which is not in PATH; {remedy}"


class TunnelFailed(ClusterUnavailable):
    """The tunnel's program ended, or said no address."""

    code = "tunnel_failed"
    sentence = "{program} gives no tunnel: {reason}; see whether this host reaches the internet, or lead a proxy of your own to {target}"


class TunnelEnded(ClusterUnavailable):
    """The tunnel's program ended by itself while it led here."""

    code = "tunnel_ended"
    sentence = (
        "the tunnel of {program} has ended: {reason}; open it again: it gets another address, by which hosts must then be invited anew"
    )


class ForeignPackage(ClusterUnavailable):
    """A package of another project stands where one of ours is needed."""

    code = "foreign_package"
    sentence = "the Python package {package!r} comes from {path}, not from distributed-comfy; remove it or use a clean environment"


class ClusterNotReady(ClusterUnavailable):
    """The node pack in ComfyUI is not connected to the cluster (yet)."""

    code = "cluster_not_ready"
    sentence = "this ComfyUI is not connected to the cluster (its session is {state}); its log shows why"


class StateNotRead(ClusterUnavailable):
    """The panel waits for the state of the cluster, which is being read for the first time."""

    code = "state_not_read"
    sentence = "the state of the cluster was not read within {seconds} s; check whether its Redis answers, and try again"


class JobsNotEnded(ClusterUnavailable):
    """The prompts of a ComfyUI were ended, and jobs of the cluster were to be."""

    code = "jobs_not_ended"
    sentence = (
        "prompts of this ComfyUI that were ended: {prompts}; jobs of the cluster were not ended ({reason}); "
        "look whether its Redis runs, and end them then"
    )


class PanelFault(ClusterUnavailable):
    """The panel met something that nobody foresaw; what it shows is what was known before."""

    code = "panel_fault"
    sentence = "the panel met a fault of its own ({reason}); look into the log of the program that serves it, and please report it"


class SessionFailed(ClusterUnavailable):
    """The node pack in ComfyUI lost its cluster for a reason that nobody foresaw."""

    code = "session_failed"
    sentence = "the connection to the cluster failed: {reason}; ComfyUI's log shows where, and it is made again by itself"


# -- frames and blobs ---------------------------------------------------------------------------------------------------
class FrameError(DistributedComfyError):
    """A frame cannot be read as what it claims to be."""

    code = "frame_error"
    retryable = True


class FrameTruncated(FrameError):
    """The bytes end before the header says."""

    code = "frame_truncated"
    sentence = "frame ends after {have_bytes} bytes, its header says {need_bytes}; the sender or the blob was cut off"


class FrameMalformed(FrameError):
    """Not a frame of ours, or its header contradicts itself."""

    code = "frame_malformed"
    sentence = "not a tensor frame: {reason}; run one version of distributed-comfy on all hosts, and nothing else under DC_KEY_PREFIX"


class FrameVersionUnknown(FrameError):
    """The frame was written by another version of this project."""

    code = "frame_version_unknown"
    retryable = False
    sentence = "frame version {version} is not among {known}; run the same version of distributed-comfy on all hosts"


class FrameDtypeUnknown(FrameError):
    """The element type is not one we carry."""

    code = "frame_dtype_unknown"
    retryable = False
    sentence = "frame has element type {dtype!r}; known are {known}; run the same version of distributed-comfy on all hosts"


class FrameEncodingUnknown(FrameError):
    """The payload is encoded in a way that this version does not know."""

    code = "frame_encoding_unknown"
    retryable = False
    sentence = "frame has encoding {encoding!r}; known are {known}; run the same version of distributed-comfy on all hosts"


class FrameEncodingMissing(FrameError):
    """A package that this encoding needs is not installed here."""

    code = "frame_encoding_missing"
    retryable = False
    sentence = (
        "frames in encoding {encoding!r} need the package {package} ({reason}); run `python -m pip install {package}` with the interpreter "
        "that said so (ComfyUI's own on a worker), or use --frames exact"
    )


class FrameChecksumWrong(FrameError):
    """The payload differs from what was written."""

    code = "frame_checksum_wrong"
    sentence = "frame checksum is {found}, its header says {expected}; the blob was damaged on the way"


class FrameTooLarge(FrameError):
    """The tensor is larger than the limit on one blob."""

    code = "frame_too_large"
    retryable = False
    sentence = "tensor of {size_bytes} bytes is over the limit of {limit_bytes}; raise DC_BLOB_LIMIT_BYTES or use smaller batches"


class ValueNotSendable(FrameError):
    """A value on an edge of the graph is of a kind that cannot leave its process."""

    code = "value_not_sendable"
    retryable = False
    sentence = "{where} is {kind}, which cannot travel between workers; only tensors, finite numbers, text and dicts of these can"


class FileTooLarge(FrameError):
    """A file is larger than the limit on one blob."""

    code = "file_too_large"
    retryable = False
    sentence = "file {name!r} of {size_bytes} bytes is over the limit of {limit_bytes}; raise DC_BLOB_LIMIT_BYTES"


class FileDamaged(FrameError):
    """A file's content differs from what its record says."""

    code = "file_damaged"
    sentence = "file {name!r} has {found}, its record says {expected}; the blob was damaged on the way, and the item runs again"


class FileNameUnsafe(FrameError):
    """A file name would lead out of the folder it belongs to."""

    code = "file_name_unsafe"
    retryable = False
    sentence = "file name {name!r} does not stay inside its folder; nothing was written; choose a relative name without .."


class FileUnreadable(FrameError):
    """A file that must be shipped cannot be read."""

    code = "file_unreadable"
    sentence = "cannot read {path}: {reason}; see that it is there and that this user may read it"


class CacheUnwritable(DistributedComfyError):
    """The folder for input files cannot be written."""

    code = "cache_unwritable"
    retryable = True
    sentence = "cannot write to {path}: {reason}; free space there or set DC_CACHE_DIR"


class BlobStoreFull(DistributedComfyError):
    """The blob Redis is at its memory limit and takes nothing more."""

    code = "blob_store_full"
    retryable = True
    sentence = "the blob Redis at {target} is full ({reason}); raise its maxmemory or lower DC_BYTES_IN_FLIGHT"


class ResultTooLarge(DistributedComfyError):
    """All of one item's result is more than the blob Redis holds even when it is empty."""

    code = "result_too_large"
    sentence = (
        "the result of item {item_id} needs {size_bytes} bytes, and the blob Redis at {target} holds {limit_bytes} when it is empty; "
        "raise its maxmemory or use smaller batches"
    )


class BlobMissing(DistributedComfyError):
    """A blob that a record points to is not in the blob store any more."""

    code = "blob_missing"
    retryable = True
    sentence = "blob {blob} is gone from the blob Redis (restarted, evicted or over DC_BLOB_TTL_S old); set maxmemory-policy noeviction"


class ResultCollected(DistributedComfyError):
    """The pixels were fetched by the job's collector and are not in the blob store any more."""

    code = "result_collected"
    sentence = "the result of item {item_id} was collected by {host} into {folder}; read it there, or submit with results='celery'"


# -- items --------------------------------------------------------------------------------------------------------------
class ItemError(DistributedComfyError):
    """An item could not be finished."""

    code = "item_error"


class NodeFailed(ItemError):
    """A node raised: the user's own error, reported whole."""

    code = "node_failed"
    sentence = "node {node_id} ({class_type}) raised {exception_type}: {exception_message}"


class ValidationRefused(ItemError):
    """The engine's validation refuses the prompt on every worker alike."""

    code = "validation_refused"
    sentence = "the prompt is not valid: {details}; correct it in ComfyUI, and run it again as a new job"


class WorkerLacks(ItemError):
    """Validation refuses the prompt because of something that this worker does not have."""

    code = "worker_lacks"
    retryable = True
    sentence = "worker {worker} lacks {lacks}"


class OutOfMemory(ItemError):
    """The device ran out of memory."""

    code = "out_of_memory"
    retryable = True
    sentence = (
        "{device} ran out of memory in node {node_id}: {exception_message}; ask for a smaller batch_size or smaller images, give the "
        "worker --lowvram, or run it where there is more memory"
    )


class SinkDidNotRun(ItemError):
    """The engine reports success, but a node that must hand over its result never ran."""

    code = "sink_did_not_run"
    sentence = "node {node_id} did not run although the engine reports success; this is a fault of the engine, please report it"


class EngineDied(ItemError):
    """The engine process ended while it had an item."""

    code = "engine_died"
    retryable = True
    sentence = (
        "the engine process ended with {status}, after its last lines: {log_tail}; look into its log: by signal 9 a computer that is out "
        "of memory ends it, and then needs more memory or fewer workers"
    )


class EngineStalled(ItemError):
    """The engine shows no sign of life."""

    code = "engine_stalled"
    retryable = True
    sentence = "the engine gave no sign of life for {seconds} s and was ended; raise DC_STALL_TIMEOUT_S if a model takes longer to load"


class EngineStartFailed(ItemError):
    """The engine never became ready."""

    code = "engine_start_failed"
    sentence = "the engine did not start: {reason}"


class EngineGaveUp(ItemError):
    """The engine process ended while it started; its log says why."""

    code = "engine_gave_up"
    sentence = "the engine did not start: {what}, after these lines (the whole log is {log_file}):\n{log_tail}"


class ComfyUIUnreachable(ItemError):
    """The running ComfyUI that a worker drives does not answer."""

    code = "comfyui_unreachable"
    retryable = True
    sentence = "ComfyUI at {url} does not answer: {reason}; start it, or set DC_COMFYUI_URL to the address that it prints at its start"


class ComfyUIDropped(ItemError):
    """The running ComfyUI that a worker drives has given up the item's prompt."""

    code = "comfyui_dropped"
    retryable = True
    sentence = "ComfyUI at {url} gave up the prompt of the item: {reason}; the item runs again"


class WorkerLost(ItemError):
    """The worker's lease ran out while it had the item."""

    code = "worker_lost"
    retryable = True
    sentence = "worker {worker} disappeared while it had the item; its log says more"


class WorkerHung(ItemError):
    """A part of a worker does not move any more, and only another process can take its place."""

    code = "worker_hung"
    retryable = True
    sentence = "worker {worker}: its {what} has not moved for {seconds} s; it ends at once, and its agent or supervisor starts it again"


class ConnectionLost(ItemError):
    """The worker lost its connection while it shipped the result."""

    code = "connection_lost"
    retryable = True
    sentence = "lost the connection to {target}: {reason}; if that goes on, `distributed-comfy doctor` looks at both servers"


class ItemInterrupted(ItemError):
    """The item was cancelled or taken back while it ran."""

    code = "item_interrupted"
    retryable = True
    sentence = "item {item_id} was interrupted"


# -- the pipe between a consumer and its engine ---------------------------------------------------------------------------
class PipeError(ItemError):
    """The pipe carries something that is not a message of ours."""

    code = "pipe_error"
    retryable = True


class PipeTruncated(PipeError):
    """The pipe closed inside a message."""

    code = "pipe_truncated"
    sentence = "the engine pipe closed inside a message: {have_bytes} of {need_bytes} bytes came; the log of the engine says why"


class PipeMessageTooLarge(PipeError):
    """A message is longer than either side may send."""

    code = "pipe_message_too_large"
    retryable = False
    sentence = "a message of {size_bytes} bytes is over the engine pipe's limit of {limit_bytes}; load large data from files"


class PipeMalformed(PipeError):
    """A message cannot be decoded."""

    code = "pipe_malformed"
    sentence = "the engine pipe carries something that is no message: {reason}; look for a node that writes to files it did not open"


# -- jobs ---------------------------------------------------------------------------------------------------------------
class JobError(DistributedComfyError):
    """A job did not finish with every item accounted for."""

    code = "job_error"


class JobFailed(JobError):
    """At least one item failed for good."""

    code = "job_failed"
    sentence = "job {job_id} failed: item {index} on worker {worker}: {last}"


class CollectedTooLarge(JobError):
    """What a collector collected does not fit into the memory of the ComfyUI that waits for it."""

    code = "collected_too_large"
    sentence = (
        "the {items} items that node {node_id} collected ({megabytes} MB) do not fit into the memory of this ComfyUI: {reason}; "
        "ask for fewer items or smaller images; or end what else uses memory and queue the same prompt again: nothing is made again"
    )


class OnlyWorkersHave(JobError):
    """Something that this ComfyUI lacks has come to run in it."""

    code = "only_workers_have"
    sentence = "this ComfyUI does not have {what}; only workers do, and none of them runs this prompt now; {remedy}, or install it here"

    def __init__(self, *, remedy: str = "start one", **fields: Any) -> None:
        """Args:
        remedy: how a worker is started, as `distributed_comfy.orchestrator.first_worker` says it.
        """
        super().__init__(remedy=remedy, **fields)


class NoItemsHere(JobError):
    """No worker can run the job of a prompt, and the ComfyUI that accepted it makes no items itself."""

    code = "no_items_here"
    sentence = (
        "this ComfyUI {why}, so it makes no items itself, and no worker can: {reason}; {remedy}, or start this ComfyUI without that option"
    )


class WorkerNodeFailed(JobError):
    """What failed on a worker, for the node in ComfyUI that waited for it: node, exception and traceback there."""

    code = "worker_node_failed"
    sentence = "{summary}\n{worker_traceback}"


class JobCancelled(JobError):
    """The job was cancelled."""

    code = "job_cancelled"
    exit_code = 130
    sentence = "job {job_id} was cancelled: {reason}"


class RunInterrupted(JobError):
    """The user ended the run before a job was queued, or while no server answered."""

    code = "run_interrupted"
    exit_code = 130
    sentence = "interrupted {when}"


class ItemsMissing(JobError):
    """The job ended with items that nobody can account for."""

    code = "items_missing"
    sentence = "job {job_id} ended without items {indexes}; nothing was assembled; run the prompt again"


class JobLost(JobError):
    """The table has lost the job, because its server came back without its data."""

    code = "job_lost"
    sentence = "the state Redis has lost job {job_id}: it came back without its data; run the prompt again"


class BlobsAway(JobError):
    """The server of tensors and files did not come back while a job waited for it."""

    code = "blobs_away"
    exit_code = 3
    sentence = (
        "the blob server has not answered for {seconds} s ({reason}), and the job waits no longer; start that server again "
        "and run the same prompt again: what is finished is kept, and goes into it (DC_BLOB_AWAY_S says how long is waited)"
    )


class SizesDiffer(JobError):
    """Images of one batch have different sizes."""

    code = "sizes_differ"
    sentence = "item {index} has images of {size}, item {first} of {first_size}; one batch needs one size; make them equal"


class UpscaleImageUnusable(JobError):
    """What an upscale got, or what a tile of it became, cannot be made into one image."""

    code = "upscale_image_unusable"
    sentence = "upscale {node_id}: {reason}"


class AudioDiffers(JobError):
    """Audio of one batch cannot be joined."""

    code = "audio_differs"
    sentence = "item {index} has audio of {format}, item {first} of {first_format}; one track needs one format; make them equal"


class BatchDiffers(JobError):
    """Latents or masks of one batch have different sizes."""

    code = "batch_differs"
    sentence = "item {index} has {slot} of {size}, item {first} of {first_size}; one batch needs one size; make them equal"


class PictureUnsavable(JobError):
    """A collected value is not an image that a PNG can hold."""

    code = "picture_unsavable"
    sentence = "item {index} collected images of shape {shape}; a PNG needs [batch, height, width, 1 to 4 channels]"


class ValueUnsavable(JobError):
    """A collected value cannot be written as a file of its kind."""

    code = "value_unsavable"
    sentence = "item {index} collected {slot} that cannot be saved: it needs {expected}; put a node behind the collector that saves it"


class SpoolUnusable(JobError):
    """The folder for a job's fetched results cannot be opened."""

    code = "spool_unusable"
    sentence = "cannot collect into {folder}: {reason}; stop the other collector, or choose another folder"


class MessageVersionUnknown(DistributedComfyError):
    """A record was written by another version of this project."""

    code = "message_version_unknown"
    sentence = "a {kind} of version {version} cannot be read here (known: {known}); run the same version of distributed-comfy on all hosts"


class RemoteError(DistributedComfyError):
    """An error with a code this version does not know."""

    code = "remote_error"
    sentence = "{original_code}: {details}"


def all_errors(base: type[DistributedComfyError] = DistributedComfyError) -> Iterator[type[DistributedComfyError]]:
    """Every class of the tree, the base first."""
    yield base
    for child in base.__subclasses__():
        yield from all_errors(child)


def from_wire(wire: Any) -> DistributedComfyError:
    """The error that `DistributedComfyError.to_wire` wrote; what this version cannot make one of its own of becomes a `RemoteError`.

    Args:
        wire: ``{"code": str, "fields": {...}}``, as another process says: it may be of another version, or anything else.
    """
    said = wire if isinstance(wire, dict) else {"fields": {"said": wire}}
    code, fields = str(said.get("code")), said.get("fields") or {}
    cls = {error.code: error for error in all_errors()}.get(code)
    try:
        if cls is not None and all(name in fields for name in cls.field_names()):
            return cls(**fields)
    except (TypeError, ValueError, LookupError, AttributeError):  # a field is not what the sentence takes
        pass
    return RemoteError(original_code=code, details=fields)

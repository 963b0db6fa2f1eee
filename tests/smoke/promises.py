"""What the cluster promises, the tests that show it, and for each what must be taken out of the product to see its test fail."""
from __future__ import annotations

from dataclasses import dataclass

STATE = "tests/integration/state"
ENGINE = "tests/integration/engine/test_engine_death.py"
FAULTS = "tests/smoke/test_faults.py::test_a_fault_loses_nothing_at_short_times"
SCRIPTS = "distributed_comfy/state/scripts"


@dataclass(frozen=True)
class Mutation:
    """One protection taken out."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Promise:
    """One sentence that must stay true."""

    text: str
    test: str
    """The test that fails without the protection: file, name, and the parameter in brackets where it is one case of several."""
    mutation: Mutation | None
    why: str = ""
    """Why nothing can be taken out, where that is so."""
    raises: str = ""
    """The error by which the test fails without the protection, where it is no assertion: the one that the protection keeps away."""


PROMISES: dict[str, Promise] = {
    "engine death": Promise(
        "An engine that ends by itself, by a signal or by a fault in native code, costs its worker one item's attempt; the item is given "
        "back at once, and the worker starts another engine.",
        f"{FAULTS}[engine killed]",
        Mutation("tasks/run_item.py", 'return "retry" if error.retryable', 'return "final" if error.retryable'),
    ),
    "engine ends with consumer": Promise(
        "A worker that is killed leaves no engine behind, whatever that computes.",
        f"{ENGINE}::test_the_engine_is_gone_one_second_after_its_consumer_was_killed",
        Mutation(
            "distributed_comfy/engine/process.py", "prctl(set_parent_death_signal, signal.SIGKILL)", "prctl(set_parent_death_signal, 0)"
        ),
    ),
    "lease": Promise(
        "What a worker has that is not heard of for a lease (6 s) goes back.",
        f"{STATE}/test_leases_and_reaper.py::test_the_items_of_a_lost_worker_go_to_others_and_count_an_attempt",
        Mutation(f"{SCRIPTS}/reap.lua", "if NOW >= grace and call('EXISTS', K.lease(name)) == 0 then", "if false then"),
    ),
    "late results are refused": Promise(
        "Of two executions of an item one result counts; the other is refused.",
        f"{STATE}/test_item_ends.py::test_a_late_result_of_a_lost_claim_is_refused",
        Mutation(f"{SCRIPTS}/complete.lua", "or item.s ~= 'running' or item.c ~= claim then", "or item.s == 'done' then"),
    ),
    "blobs of late results": Promise(
        "A result that is refused deletes its own blobs, and no others.",
        f"{STATE}/test_item_ends.py::test_a_refused_result_takes_its_own_blobs_along_and_no_others",
        Mutation("tasks/run_item.py", "    _unlink(runtime, result)\n", ""),
    ),
    "parked work": Promise(
        "A job without any worker waits for one.",
        f"{STATE}/test_leases_and_reaper.py::test_a_job_that_has_lost_its_last_worker_waits_for_another_one",
        Mutation("distributed_comfy/state/workers.py", "self._matching.match_capability(capability_hash, capability)", "pass"),
    ),
    "attempts end": Promise(
        "An item that ends its engine each time fails after three executions of one class of error, and takes nothing else along where "
        "the job may go on without it.",
        f"{STATE}/test_item_ends.py::test_attempts_count_per_class_of_error",
        Mutation(f"{SCRIPTS}/_ends.lua", "if item.a[class] >= max_attempts then return false end", ""),
    ),
    "memory is freed, then elsewhere": Promise(
        "An item that runs out of memory runs once more on its worker, and then on another one.",
        "tests/unit/test_how_items_go_back.py::test_an_item_that_runs_out_of_memory_twice_on_a_worker_goes_elsewhere",
        Mutation("tasks/run_item.py", 'return "elsewhere"', 'return "retry"'),
    ),
    "memory is freed": Promise(
        "An engine that runs out of memory gives up all that it kept before its item goes back.",
        "tests/unit/test_builtin_engine.py::test_full_memory_is_freed_and_can_be_tried_elsewhere[memory]",
        Mutation("distributed_comfy/engine/builtin/executor.py", "            self.clear()\n", ""),
    ),
    "a full disk bars its worker": Promise(
        "A worker that cannot store an input file leaves the job to the others.",
        "tests/unit/test_how_items_go_back.py::test_what_a_worker_cannot_do_another_may[cache_unwritable-elsewhere]",
        Mutation("tasks/run_item.py", "isinstance(error, CacheUnwritable) or ", ""),
    ),
    "a foreign version bars its worker": Promise(
        "A worker of a version that cannot read a job's records leaves the job to the others.",
        "tests/unit/test_how_items_go_back.py::test_what_a_worker_cannot_do_another_may[message_version_unknown-lacks]",
        Mutation("tasks/run_item.py", "FrameEncodingMissing, MessageVersionUnknown)", "FrameEncodingMissing)"),
    ),
    "stall limit": Promise(
        "An engine that shows no sign of life for DC_STALL_TIMEOUT_S is ended, and its item goes back.",
        f"{ENGINE}::test_an_engine_that_shows_no_sign_of_life_is_ended",
        Mutation("distributed_comfy/engine/host.py", "quiet_s > self._options.stall_timeout_s", "False"),
    ),
    "slow loads are no stall": Promise(
        "A model that loads slowly is no stall: the limit is for one load, however many an item has, and leaves time for 20 GB from a "
        "slow disk.",
        f"{ENGINE}::test_models_that_load_slowly_one_after_the_other_are_no_stall",
        Mutation("distributed_comfy/engine/builtin/executor.py", "                self._alive()\n", ""),
    ),
    "a cancel is heard in a step": Promise(
        "A cancel ends a job and its running items within two seconds, also in the middle of sampling; engines and models stay loaded.",
        "tests/integration/test_cancel_stages.py::test_a_cancel_ends_job_and_work_at_once_and_no_engine[its owner-in a step]",
        Mutation(
            "distributed_comfy/engine/builtin/workbench.py",
            "if self._request is not None and self._request.claim_id in self._interrupted:",
            "if False:",
        ),
    ),
    "a consumer that hangs": Promise(
        "A worker whose consumer hangs for DC_HANG_TIMEOUT_S ends; its agent starts another one, and the job goes on.",
        "tests/integration/test_watchdogs.py::test_a_consumer_that_hangs_ends_its_worker_and_the_job_goes_on_with_another",
        Mutation("tasks/runtime.py", 'self._end_at_once("consumer")', "pass"),
    ),
    "a lease thread that hangs": Promise(
        "A worker whose lease thread hangs for DC_HANG_TIMEOUT_S ends, and its item goes back at once.",
        "tests/integration/test_watchdogs.py::test_a_lease_thread_that_hangs_ends_its_worker_and_its_item_goes_back",
        Mutation("tasks/runtime.py", 'self._end_at_once("lease thread")', "pass"),
    ),
    "scripts bear a second call": Promise(
        "A script that ran although its reply was lost is sent again and changes nothing more.",
        f"{STATE}/test_cut_connections.py::test_a_script_whose_reply_was_lost_leaves_the_table_as_if_it_had_been_sent_once",
        Mutation(f"{SCRIPTS}/claim.lua", "if known then return answer(halves(known)) end", ""),
    ),
    "renewals compare claims": Promise(
        "What the table says that a worker runs, and the worker does not hold, goes back with its second renewal.",
        f"{STATE}/test_leases_and_reaper.py::test_what_a_worker_does_not_hold_goes_back_at_its_second_sign_of_life",
        Mutation(f"{SCRIPTS}/renew.lua", "elseif missed_by ~= this_call then", "elseif false then"),
    ),
    "one lease after a restart": Promise(
        "After a restart of the state server nothing is taken from anybody for one lease.",
        f"{STATE}/test_leases_and_reaper.py::test_after_a_restart_of_the_server_everyone_has_one_lease_to_speak_up",
        Mutation(f"{SCRIPTS}/reap.lua", "facts[1] ~= ARGV[5] or ", ""),
    ),
    "append-only file": Promise(
        "The embedded state server keeps all it was told in an append-only file that is synced every second.",
        "tests/integration/test_embedded_redis.py",
        Mutation("distributed_comfy/state/keeper.py", '"appendonly": "yes"', '"appendonly": "no"'),
    ),
    "dead servers are raised": Promise(
        "An embedded server that dies is started again where it was, with what it was told before; clients reconnect.",
        "tests/integration/test_embedded_redis.py::test_a_server_that_died_is_started_again_where_its_clients_look_for_it[state-shared]",
        Mutation("distributed_comfy/state/keeper.py", "server.restart(self._is_given_up)", "return False"),
    ),
    "dead servers are raised for every owner": Promise(
        "Shared embedded servers that die are started again also when the process that started them first has ended.",
        "tests/integration/test_embedded_redis.py::"
        "test_servers_that_die_after_whoever_started_them_has_ended_are_started_again_for_the_others",
        Mutation("distributed_comfy/state/keeper.py", "if self._entered and not self._order.private:", "if False:"),
    ),
    "strangers at old ports": Promise(
        "A program of another user at the port of a dead embedded server is told no password by a start and is not taken for the server.",
        "tests/integration/test_embedded_redis.py::"
        "test_strangers_at_the_ports_of_dead_servers_are_told_no_password_and_not_taken_for_them",
        Mutation("distributed_comfy/state/server_process.py", "if not is_ours():", "if False:"),
    ),
    "names beside nodes": Promise(
        "What a collector saves as it arrives is never written over by a node of that ComfyUI that saves under the same name.",
        "tests/unit/test_arrivals.py::test_a_node_that_saves_under_the_same_name_is_waited_for_and_not_written_over",
        Mutation(
            "distributed_comfy/comfyui/arrivals.py",
            "with self._saves.alone(self.folder / relative.parent, relative.name, self._stop):",
            "if True:",
        ),
    ),
    "engines go on": Promise(
        "While the state server is away engines go on; what they finish is entered when it is back.",
        "tests/integration/test_outages.py::test_a_finished_result_waits_for_a_table_that_is_away",
        Mutation("tasks/run_item.py", "if runtime.stopped or runtime.draining.is_set():", "if True:"),
        raises="distributed_comfy.errors.RedisUnreachable",
    ),
    "results wait for the blob server": Promise(
        "A result that is on its way when the blob server dies is stored when it is back; its item does not run again.",
        "tests/integration/test_shipping.py::test_a_result_that_is_on_its_way_when_the_blob_server_dies_arrives_after_it_is_back",
        Mutation("distributed_comfy/engine/shipping.py", "if not _is_away(error):", "if True:"),
    ),
    "a full blob server is waited for": Promise(
        "A result for which the blob server has no room waits on its worker, which says so, and uses up no attempt; one that the server "
        "could never hold ends its job at once.",
        "tests/integration/test_shipping.py::test_a_result_for_which_there_is_no_room_waits_for_it_and_says_why",
        Mutation("distributed_comfy/engine/shipping.py", "                self._make_room(error)\n", "                raise\n"),
    ),
    "blobs are made again": Promise(
        "An item whose result the blob server has lost runs again.",
        "tests/unit/test_collect.py::test_a_blob_that_is_gone_runs_the_item_again",
        Mutation("distributed_comfy/collector/collect.py", "self._ask.call(self._table.reopen, self._job.job_id, index, claim_id)", "pass"),
    ),
    "the spool counts": Promise(
        "What the master has fetched does not run again, also where the table came back without that.",
        "tests/unit/test_collect_tiles.py::test_a_new_collector_tells_the_table_what_it_forgot",
        Mutation("distributed_comfy/collector/collect.py", "if lost:\n", "if False:\n"),
    ),
    "a lost table is told": Promise(
        "A job that the state server has lost ends with its own error, and the same command goes on with what is here.",
        f"{FAULTS}[state Redis wiped]",
        Mutation("distributed_comfy/collector/collect.py", "raise JobLost(job_id=self._job.job_id) from error", "raise"),
    ),
    "resume": Promise(
        "A run that was killed goes on where it stopped when the same command is given again; each image is there once.",
        "tests/integration/test_resume.py::test_the_same_command_goes_on_where_a_killed_one_stopped",
        Mutation("distributed_comfy/orchestrator/run.py", "resume_in=None if kept or options.fresh else options.out", "resume_in=None"),
    ),
    "a job goes on itself": Promise(
        "What its workers finished after a run was killed counts, and what they run goes on: the same command takes the job itself over.",
        "tests/integration/test_resume.py::test_the_same_command_goes_on_where_a_killed_one_stopped",
        Mutation("distributed_comfy/orchestrator/resume.py", "_take_over(change, record, left, manifest) if itself", "None if itself"),
    ),
    "an owner keeps results": Promise(
        "Where another job goes on with what the killed one finished, no reaper takes its results away meanwhile.",
        "tests/integration/test_resume.py::test_a_reaper_that_comes_while_the_old_job_is_fetched_leaves_its_results",
        Mutation("distributed_comfy/orchestrator/resume.py", "if change.own() or not cluster.jobs.owner(old):", "if True:"),
    ),
    "a job without a collector is parked": Promise(
        "A job that nobody collects is parked, and shown so: what runs is finished, nothing more begins, and `jobs attach` goes on.",
        f"{STATE}/test_steering.py::test_a_job_without_an_owner_is_parked_and_runs_on_when_the_owner_is_back",
        Mutation(f"{SCRIPTS}/reap.lua", "    job.parked = NOW\n", "    job.parked = 0\n"),
    ),
    "a failed job is retried": Promise(
        "A job that failed or was cancelled keeps what is finished: `jobs retry` and `jobs attach` into the same folder run only the rest.",
        "tests/integration/test_resume.py::test_a_cancelled_job_is_retried_and_attached_without_running_finished_items_again",
        Mutation("distributed_comfy/orchestrator/delivery.py", "            self._waiting = True\n", "            self._waiting = False\n"),
    ),
    "leases at maxmemory": Promise(
        "Leases are renewed on a state server that has no memory left.",
        f"{STATE}/test_leases_and_reaper.py::test_signs_of_life_work_on_a_server_that_is_full",
        Mutation(f"{SCRIPTS}/renew.lua", "if call('PEXPIRE', K.lease(name), ARGV[3]) == 0 then", "if true then"),
        raises="distributed_comfy.errors.RedisRefusesWrites",
    ),
    "silent connections are given up": Promise(
        "A connection that died without a word is noticed, and another one takes its place.",
        "tests/integration/test_partitions.py::test_a_worker_whose_one_broker_connection_goes_silent_goes_on_by_itself[reads]",
        Mutation("tasks/runtime.py", "            self._restart_consumer()\n", ""),
    ),
    "drain": Promise(
        "A worker that is told to end finishes the item that it has, within DC_DRAIN_TIMEOUT_S.",
        "tests/integration/test_drain.py::test_a_worker_that_is_told_to_end_finishes_its_item_and_takes_no_other",
        Mutation("tasks/runtime.py", "while self.held.running() and time.monotonic() < deadline:", "while False:"),
    ),
    "an agent's death ends its workers": Promise(
        "Workers end with their agent, and give their items back.",
        "tests/integration/test_agent.py::test_workers_end_with_an_agent_that_is_killed",
        Mutation(
            "tasks/consumer.py", "            self._begin_end(0)\n\n    def _watch_failure", "            pass\n\n    def _watch_failure"
        ),
    ),
    "a full disk loses nothing": Promise(
        "A master whose disk is full stops; the results wait, and `jobs attach` goes on.",
        "tests/unit/test_collect.py::test_a_full_disk_ends_the_collection_and_leaves_the_result_in_the_store",
        Mutation(
            "distributed_comfy/collector/collect.py",
            "self._load.call(self._spool.add,",
            "self._ask.call(self._table.mark_fetched, self._job.job_id, index, claim_id)\n            self._load.call(self._spool.add,",
        ),
    ),
    "nobody's clock counts": Promise(
        "Times are those of the state server; the clocks of hosts may be wrong.",
        "tests/smoke/test_faults.py::test_a_fault_loses_nothing[clocks off]",
        Mutation(
            "distributed_comfy/state/jobs.py",
            "to_ms(settings.blob_ttl_s if kept else settings.owner_ttl_s)",
            'to_ms(settings.owner_ttl_s + __import__("time").time() - self._scripts.client.time()[0])',
        ),
    ),
    "a revoked host": Promise(
        "A host that is shut out in the middle of a job works no more, and its item runs elsewhere.",
        "tests/integration/access/test_two_hosts.py"
        "::test_an_invited_host_works_by_tls_without_a_port_and_when_it_is_shut_out_its_item_runs_elsewhere",
        Mutation("distributed_comfy/access/invites.py", "server.remove(user_of(name))\n            server.save()", "pass"),
    ),
}

"""Which tests the processes of xdist are given, and in which order: what takes longest comes first, so that none of it is left for the end.

A file is never divided, for its tests share a cluster; files that share processes with a real ComfyUI stay together as well, each start
of which costs five seconds of a core.  xdist by itself begins with the files of many tests, which are the quick ones.
"""
from __future__ import annotations

import re

import pytest
from xdist.scheduler import LoadFileScheduling

COMFYUI_WORKERS = "two workers with real ComfyUI"
COMFYUI_ENGINES = "engines with real ComfyUI"
COMFYUI_MASTERS = "masters over workers with real ComfyUI"
SHARED = {
    **dict.fromkeys((
        "test_attach_cluster", "test_clear_memory", "test_cluster_exactness", "test_cluster_failures", "test_cluster_models",
        "test_cluster_rules", "test_cluster_slots", "test_doctor", "test_frame_options_in_comfyui", "test_look_again", "test_master_intake",
        "test_master_many_queued", "test_master_orchestrates", "test_master_takes_part", "test_saved_values", "test_upscale_exactness",
        "test_upscale_example",
    ), COMFYUI_WORKERS),
    **dict.fromkeys((
        "test_attach_agent", "test_builtin_matches_comfyui", "test_capability", "test_engine_process", "test_exactness", "test_failures",
        "test_runs", "test_start", "test_tile_crops_in_comfyui",
    ), COMFYUI_ENGINES),
    **dict.fromkeys(("test_example_workflows", "test_master_worse_days"), COMFYUI_MASTERS),
}  # fmt: skip
"""File in tests/comfyui -> what it uses that lives as long as the session: `comfyui_rig`, or `engine`, `attached` and `plain`."""
_WITH_COMFYUI_RIG = re.compile(r"\[(.*-)?comfyui(-.*)?\]$")

SECONDS = {
    "test_agent": 100, "test_workers_page": 70, "test_demo": 90, "test_upscale": 80, "test_benchmarks": 60, "test_relay_worker": 60,
    "test_run_command": 50, "test_worker_status": 50, "test_jobs_commands": 50, "test_partitions": 45, "test_worker_command": 40,
    "test_joined_host": 40, "test_monitoring": 40, "test_resume": 40, "test_frame_options": 40, "test_engine_death": 50,
    "test_invites": 35, "test_killed_processes": 30, "test_outages": 30, "test_agent_outages": 30, "test_attached_worker": 30,
    "test_two_hosts": 30, "test_flower": 30, "test_doctor": 25, "test_upscale_cuts": 20, "test_result_backend": 20,
    "test_relay_serve": 20, "test_relay_agent": 20, "test_relay_network": 20, "test_embedded_redis": 20, "test_worker_user": 20,
    "test_other_roles": 20, "test_tls_servers": 20, "test_bad_input": 15, "test_kept_and_collected_results": 15, "test_python_api": 15,
    "test_cut_rules": 15, "test_forged_orders": 15, "test_door_visits": 15, "test_state_machine": 15, "test_local_items": 10,
    "test_contact_sheet": 10, "test_hostile_messages": 10, "test_private_redis": 10, "test_shipping": 10,
    "test_tile_items": 10, "test_pack_session": 40, "test_faults": 60, "test_soak": 40,
    COMFYUI_WORKERS: 400, COMFYUI_ENGINES: 150, "test_ordinary_bad_days": 100, "test_master_bad_days": 60, "test_pack_start": 90,
    "test_ordinary_prompts": 60, "test_ordinary_files": 40, "test_pack_routes": 30, "test_saved_workflows": 30, "test_upscale_command": 30,
    "test_prompts_of_before": 20, COMFYUI_MASTERS: 250, "test_attach_pack": 120,
    "test_master_loses_redis": 60, "test_master_ends": 60, "test_two_gpus": 60, "test_offer_in_browser": 40, "test_watchdogs": 40,
    "test_housekeeping": 50, "test_cancel_stages": 40, "test_gone_for_good": 20, "test_video_tiles": 20, "test_queue_consumer": 10,
    "test_planned_tiles": 10, "test_faults_in_comfyui": 150, "test_drain": 15,
    "test_page": 190, "test_page_with_another_host": 60,
    "test_page_troubles": 60, "test_page_mending": 20, "test_page_with_many": 40, "test_panel_in_sidebar": 130, "test_panel_in_comfyui": 60,
    "test_panel": 60, "test_panel_bad_days": 60, "test_panel_load": 40, "test_panel_words": 45,
}  # fmt: skip
"""Roughly, of one process on an idle machine; what is not here takes few. ``make test ARGS=--durations=50`` shows what is slow."""


class SharingScheduling(LoadFileScheduling):
    """Gives a process of xdist the tests of a file at once, or those of all files that share processes."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """The file of a test, or what its file shares with others."""
    path = nodeid.partition("::")[0]
    if path.startswith("tests/comfyui/"):
        return SHARED.get(_name(path), path)
    return COMFYUI_WORKERS if _WITH_COMFYUI_RIG.search(nodeid) else path


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the length of their file, or of all files with it; those of one file, and files of one length, stay in order."""
    items.sort(key=lambda item: -SECONDS.get(_name(unit_of(item.nodeid)), 0))


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".py")

"""Which test files the processes of xdist are given first: those that take longest, so that none of them is left for the end.

A file is never divided, for its tests share a cluster.  xdist by itself begins with the files of many tests, which are the quick ones.
"""
from __future__ import annotations

import pytest

SECONDS = {
    "test_agent": 100, "test_workers_page": 90, "test_demo": 90, "test_benchmarks": 80, "test_upscale": 80, "test_relay_worker": 60,
    "test_run_command": 50, "test_worker_status": 50, "test_jobs_commands": 50, "test_partitions": 45, "test_worker_command": 40,
    "test_state_machine": 40, "test_monitoring": 40, "test_resume": 40, "test_frame_options": 40, "test_engine_death": 40,
    "test_invites": 40, "test_killed_processes": 30, "test_outages": 30, "test_agent_outages": 30, "test_attached_worker": 30,
    "test_two_hosts": 30, "test_flower": 30, "test_doctor": 25, "test_upscale_cuts": 20, "test_result_backend": 20,
    "test_relay_serve": 20, "test_relay_agent": 20, "test_relay_network": 20, "test_embedded_redis": 20, "test_worker_user": 20,
    "test_other_roles": 20, "test_tls_servers": 20, "test_bad_input": 15, "test_kept_and_collected_results": 15, "test_python_api": 15,
    "test_cut_rules": 15, "test_contact_sheet": 10, "test_hostile_messages": 10, "test_private_redis": 10, "test_shipping": 10,
    "test_tile_items": 10, "test_pack_session": 40,
}  # fmt: skip
"""Roughly, of one process on an idle machine; a file that is not here takes few. ``make test ARGS=--durations=50`` shows what is slow."""


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the length of their file; those of one file, and files of one length, stay in order."""
    items.sort(key=lambda item: -SECONDS.get(item.path.stem, 0))

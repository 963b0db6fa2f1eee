"""ComfyUI with the pack, nothing configured: it starts as ever, has our classes, and finds itself a cluster."""
from __future__ import annotations

from tests.comfyui.server_rig import ComfyServer


def test_with_nothing_configured_the_pack_has_a_cluster_and_the_classes_are_there(server: ComfyServer) -> None:
    server.start()
    status = server.wait_ready()
    assert status["servers"].startswith("embedded Redis at redis://:***@127.0.0.1")
    assert status["options"]["auto_launch"] is False
    listed = server.get("/object_info")
    assert {"DistributedSeed", "DistributedCollector", "UltimateSDUpscaleDistributed"} <= listed.keys()
    assert "distributed-comfy" not in "".join(line for line in server.log().splitlines() if "IMPORT FAILED" in line)

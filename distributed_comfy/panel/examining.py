"""The doctor for a page: one report, with a probe of each free worker."""
from __future__ import annotations

import threading
from typing import Any

from distributed_comfy.errors import OrderRefused
from distributed_comfy.orchestrator.doctor.findings import healthy
from distributed_comfy.orchestrator.doctor.packages import check_packages
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.worker_orders import shown_finding


class Doctor:
    """One examination at a time.

    Args:
        place: what serves the panel.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._busy = threading.Lock()
        self._stop = threading.Event()

    def report(self, *, engine: bool) -> dict[str, Any]:
        """Look at everything; as ``Report`` of openapi.json.

        Raises:
            OrderRefused: somebody lets it look already.
            RunInterrupted: this process ends.
        """
        from distributed_comfy.orchestrator.doctor.examination import ExaminationOptions, examine  # ComfyUI's start does not wait for it

        if not self._busy.acquire(blocking=False):
            raise OrderRefused(what="doctor", reason="it is looking already; wait for that report")
        try:
            findings = check_packages()
            if healthy(findings):
                findings = [*findings, *examine(self._place.own, ExaminationOptions(self._place.out, engine=engine), self._stop)]
        finally:
            self._busy.release()
        return {"healthy": healthy(findings), "findings": list(map(shown_finding, findings))}

    def end(self) -> None:
        """End what waits."""
        self._stop.set()

"""The scripts that Celery's transport, and not this project, has Redis run for a worker, as the installed versions have them."""
from __future__ import annotations

from kombu.transport import redis as transport

REFRESH_SCRIPT: str = getattr(transport, "REFRESH_BINDING", "")
"""A queue is bound to its exchange for a time.  Keys: bindings, deadlines; arguments: binding, exchange, milliseconds."""
SWEEP_SCRIPT: str = getattr(transport, "SWEEP_BINDINGS", "")
"""Bindings whose time is over are removed.  Key: deadlines; arguments: two prefixes, a limit.  Both are empty before kombu 5.7."""

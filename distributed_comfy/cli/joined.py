"""What commands say and refuse on a host that has joined somebody's cluster."""
from __future__ import annotations

from distributed_comfy.access.join import joined_token
from distributed_comfy.cli.output import Output
from distributed_comfy.settings import Settings


def say_where(output: Output, settings: Settings) -> None:
    """One line beside the result: which cluster is asked, where nothing that was set says so."""
    token = joined_token(settings)
    if token is not None:
        output.remark(f"asking {token.url}, which this host has joined as {token.host}; `distributed-comfy up --leave` leaves that cluster")

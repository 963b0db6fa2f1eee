"""Health check of Flower: its API answers who has the password, and nobody else.  Exit status 1 with one line otherwise."""
from __future__ import annotations

import base64
import sys
import urllib.error
import urllib.request

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.settings import read_settings

URL = "http://127.0.0.1:5555/api/workers"
TIMEOUT_S = 5.0
_UNAUTHORIZED = 401


def status(authorization: str) -> int:
    """HTTP status of the API.

    Raises:
        OSError: nobody answers.
    """
    headers = {"Authorization": f"Basic {base64.b64encode(authorization.encode()).decode()}"} if authorization else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(URL, headers=headers), timeout=TIMEOUT_S) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> int:
    """Exit status 0 where both are as they must be."""
    try:
        with_password, without = status(read_settings().flower_basic_auth), status("")
    except (OSError, DistributedComfyError) as error:
        sys.stdout.write(f"Flower does not answer: {error}\n")
        return 1
    sys.stdout.write(f"Flower answers {with_password} with the password and {without} without\n")
    return 0 if (with_password, without) == (200, _UNAUTHORIZED) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Health check of Flower: its API answers who has the password, and nobody else, and the server that it listens to is there."""
from __future__ import annotations

import base64
import sys
import urllib.error
import urllib.request

import redis

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.settings import read_settings
from distributed_comfy.state.connection import connect

URL = "http://127.0.0.1:5555/api/workers"
TIMEOUT_S = 2.0
"""Of each question."""
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
    """Exit status 0 where all is as it must be, else 1 with a line that says what is not."""
    try:
        settings = read_settings()
        connect(settings.redis_url, "DC_REDIS_URL", decode_responses=True, socket_timeout_s=TIMEOUT_S).close()
        with_password, without = status(settings.flower_basic_auth), status("")
    except (DistributedComfyError, redis.RedisError) as error:
        sys.stdout.write(f"Flower hears nothing: {error}\n")
        return 1
    except OSError as error:
        sys.stdout.write(f"Flower does not answer: {error}\n")
        return 1
    sys.stdout.write(f"Flower answers {with_password} with the password and {without} without\n")
    return 0 if (with_password, without) == (200, _UNAUTHORIZED) else 1


if __name__ == "__main__":
    sys.exit(main())

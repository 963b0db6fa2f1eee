"""A job that random faults strike one after the other is complete, counts nothing twice, and has the bytes of an undisturbed one."""
from __future__ import annotations

import os
import random

import pytest

from tests.smoke.field import Field
from tests.smoke.measured import NOTHING, Measured
from tests.smoke.soak import Soak

pytestmark = [pytest.mark.redis, pytest.mark.slow]

ITEMS = int(os.environ.get("SOAK_ITEMS") or 2000)
SEED = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.timeout(240)
def test_a_job_bears_random_faults(short_field: Field, measured: list[Measured]) -> None:
    play(Soak(short_field, SEED, items=18, pause_s=(0.2, 0.6), faults_s=6.0), 120.0, measured)


@pytest.mark.smoke
@pytest.mark.timeout(3000)
def test_a_job_bears_random_faults_for_minutes(long_soak: Field, measured: list[Measured]) -> None:
    play(Soak(long_soak, SEED, items=ITEMS, pause_s=(1.0, 4.0)), 2000.0, measured)


def play(soak: Soak, timeout_s: float, measured: list[Measured]) -> None:
    print(f"SOAK_SEED={soak.seed}")  # noqa: T201 - shown where the test fails
    what = f"a random fault every few seconds, SOAK_SEED={soak.seed}"
    soak.field.undisturbed(soak.field.prompt(), soak.items)
    with soak.field.measuring("soak", what, NOTHING, measured) as endings:
        endings.append(soak.run(timeout_s))
    row = measured[-1]
    assert not row.faults, f"{row}\n{soak.done}\n{soak.field.rig.logs()}"

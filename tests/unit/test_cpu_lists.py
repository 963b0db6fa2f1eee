"""CPU lists as Linux writes them."""
from __future__ import annotations

import pytest

from distributed_comfy.cpu_list import format_cpus, parse_cpus
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.settings import read_settings


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("3", (3,)), ("0-3,8", (0, 1, 2, 3, 8)), ("8,0-1,0", (0, 1, 8)), (" 1 , 3-4\n", (1, 3, 4))]
)
def test_a_list_is_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "-1", "1;2", "9999", "0-99999999999", "1.5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0-3,8"):
        parse_cpus(text)
    with pytest.raises(SettingInvalid, match="DC_CORES"):
        read_settings(cores=text)


def test_the_shortest_text_is_written() -> None:
    assert format_cpus({9, 0, 1, 2, 4}) == "0-2,4,9"
    assert format_cpus(()) == ""

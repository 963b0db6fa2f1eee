"""The tree of errors: the wire, the codes, the remedies, and that code and documentation know the same ones."""
from __future__ import annotations

import ast
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import write_reference

from distributed_comfy import errors

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = tuple(error for error in errors.all_errors() if error.__subclasses__())
FAMILY_NAMES = {error.__name__ for error in FAMILIES}
LEAVES = tuple(error for error in errors.all_errors() if not error.__subclasses__())
REMEDIES = re.compile(
    r"\b(add|break|check|choose|collect|export|free|install|is it running|leave|lower|make|must|need|needs|needed|put|raise|remove|retry"
    r"|run|set|shows|start|stop|unset|use)\b|\{remedy\}|\{reason\}"
)


def sample(error: type[errors.DistributedComfyError]) -> errors.DistributedComfyError:
    """An error with values of every JSON type in its fields."""
    values: tuple[Any, ...] = ("text with {braces} and 'quotes'", 7, ["a", 1], {"key": None}, 1.5)
    return error(**{name: values[position % len(values)] for position, name in enumerate(error.field_names())})


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_an_error_survives_the_wire_as_json(error: type[errors.DistributedComfyError]) -> None:
    sent = sample(error)
    received = errors.from_wire(json.loads(json.dumps(sent.to_wire())))
    assert type(received) is error
    assert received.fields == sent.fields
    assert str(received) == str(sent)


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_an_error_survives_a_pickle(error: type[errors.DistributedComfyError]) -> None:
    received = pickle.loads(pickle.dumps(sample(error)))
    assert type(received) is error
    assert received.fields == sample(error).fields


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_the_fields_of_an_error_are_attributes(error: type[errors.DistributedComfyError]) -> None:
    raised = sample(error)
    assert {name: getattr(raised, name) for name in error.field_names()} == raised.fields
    with pytest.raises(AttributeError):
        raised.no_such_field  # noqa: B018


@pytest.mark.parametrize("error", [error for error in LEAVES if error.field_names()], ids=lambda error: error.code)
def test_an_error_without_its_facts_cannot_be_made(error: type[errors.DistributedComfyError]) -> None:
    with pytest.raises(KeyError):
        error()


def test_each_code_belongs_to_one_class_and_is_a_plain_word() -> None:
    codes = [error.code for error in errors.all_errors()]
    assert sorted(set(codes)) == sorted(codes)
    assert [code for code in codes if not re.fullmatch(r"[a-z][a-z_]*", code)] == []


def test_each_class_states_its_own_code() -> None:
    assert [error.__name__ for error in errors.all_errors() if "code" not in vars(error)] == []


@pytest.mark.parametrize(
    "error", [error for error in LEAVES if issubclass(error, (errors.BadInput, errors.ClusterUnavailable))], ids=lambda error: error.code
)
def test_an_error_that_the_user_can_mend_says_how(error: type[errors.DistributedComfyError]) -> None:
    assert REMEDIES.search(error.sentence), error.sentence


def test_an_unknown_code_from_another_version_keeps_its_facts() -> None:
    received = errors.from_wire({"code": "of_the_future", "fields": {"planet": "Mars"}})
    assert isinstance(received, errors.RemoteError)
    assert (received.original_code, received.details) == ("of_the_future", {"planet": "Mars"})


def test_a_known_code_without_a_fact_it_needs_becomes_a_remote_error() -> None:
    received = errors.from_wire({"code": "job_unknown", "fields": {}})
    assert isinstance(received, errors.RemoteError)
    assert received.original_code == "job_unknown"


@pytest.mark.parametrize("wire", [{}, {"code": None}, {"code": "job_unknown", "fields": None}])
def test_a_damaged_wire_form_still_becomes_an_error(wire: dict[str, Any]) -> None:
    assert isinstance(errors.from_wire(wire), errors.RemoteError)


def test_the_page_on_errors_is_what_the_code_says() -> None:
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == write_reference.errors_page(), "run `make docs`"


def test_the_errors_that_code_raises_are_the_documented_ones() -> None:
    made = {name for path in source_files() for name in names_made(path)}
    assert made & FAMILY_NAMES == set(), "a family has no message of its own; raise one of its members"
    assert {error.__name__ for error in LEAVES} - made == set(), "nothing raises these; delete them"


def source_files() -> list[Path]:
    """All modules of the project, errors.py too: `from_wire` makes one."""
    in_packages = (path for folder in ("distributed_comfy", "tasks") for path in sorted((ROOT / folder).rglob("*.py")))
    return [ROOT / "worker_entry.py", *in_packages]


def names_made(path: Path) -> set[str]:
    """Names in one file that are called, raised, or handed to a function as the class to make."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc:
            names.add(last_name(node.exc))
        elif isinstance(node, ast.Call) and last_name(node.func) not in ("isinstance", "issubclass"):
            leaves = (last_name(argument) for argument in node.args)
            names |= {last_name(node.func), *(name for name in leaves if name not in FAMILY_NAMES)}
    return names


def last_name(node: ast.expr) -> str:
    """``c`` of ``a.b.c``, empty for what is no name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""

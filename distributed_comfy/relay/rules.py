"""Which requests may pass: a table of forms, matched with a request's first arguments before any of it goes on."""
from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from distributed_comfy.relay.wire import Database

LARGEST_LOOK_BYTES = 4 * 2**20
"""Of arguments that are looked at; a blob of 8 GiB in pieces of 1 MiB has keys of half a megabyte in one request."""

Pattern = bytes | re.Pattern[bytes] | Callable[[bytes], bool]
"""What one argument must be: these very bytes, a full match, or what somebody says yes to."""


class Judge(Protocol):
    """Says of each request of a connection whether it may pass."""

    def look(self, name: bytes) -> int | None:
        """How many arguments it must see before it can say, the name in upper case included; 0: all; None: no such request may pass."""

    def refusal(self, arguments: Sequence[bytes]) -> str:
        """Why a request may not pass; empty where it may.

        Args:
            arguments: as many as `look` asked for, or all.
        """


JudgeOf = Callable[[Database, str, str], "Judge | None"]
"""The judge of a connection to a database, for its user and secret; None for a user who may not use the relay at all."""


@dataclass(frozen=True)
class Form:
    """A request that may pass."""

    first: tuple[Pattern, ...]
    """One for each argument after the name."""
    each: re.Pattern[bytes] | None = None
    """What each argument after those must be."""
    last: re.Pattern[bytes] | None = None
    """What the very last one must be, where that differs."""
    open_end: bool = False
    """Whatever follows passes, and is not even looked at: values, and what only scripts read."""

    @property
    def look(self) -> int:
        """See `Judge.look`."""
        return 1 + len(self.first) if self.open_end else 0

    def fits(self, arguments: Sequence[bytes]) -> bool:
        """Whether a request has this form; `arguments` without the name."""
        if len(arguments) < len(self.first) or not all(map(_matches, self.first, arguments)):
            return False
        rest = list(arguments[len(self.first) :])
        if self.last is not None and not (rest and _matches(self.last, rest.pop())):
            return False
        return self.open_end or all(self.each is not None and _matches(self.each, argument) for argument in rest)


@dataclass(frozen=True)
class FormJudge:
    """A `Judge` over forms by command name."""

    forms: Mapping[bytes, Sequence[Form]]
    hints: Mapping[bytes, str] = field(default_factory=dict)
    """What to add to a refusal, by command name."""
    _looks: dict[bytes, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, forms in self.forms.items():
            looks = [form.look for form in forms]
            self._looks[name] = 0 if 0 in looks else max(looks)

    def look(self, name: bytes) -> int | None:
        """See `Judge.look`."""
        return self._looks.get(name)

    def refusal(self, arguments: Sequence[bytes]) -> str:
        """See `Judge.refusal`."""
        name, *rest = arguments
        if any(form.fits(rest) for form in self.forms.get(name.upper(), ())):
            return ""
        hint = self.hints.get(name.upper(), "")
        return f"{shown(name.upper())} with these arguments is not for this user{hint}"


def form(
    *first: Pattern | str, each: re.Pattern[bytes] | None = None, last: re.Pattern[bytes] | None = None, open_end: bool = False
) -> Form:
    """A `Form`; text stands for a literal in ASCII."""
    return Form(tuple(part.encode() if isinstance(part, str) else part for part in first), each, last, open_end)


def gather(entries: Iterable[tuple[str, Form]]) -> dict[bytes, list[Form]]:
    """Forms by command name, of a table of (name, form)."""
    forms: dict[bytes, list[Form]] = {}
    for name, entry in entries:
        forms.setdefault(name.encode(), []).append(entry)
    return forms


def connection_forms(user: str, secret: str, database_number: int) -> list[tuple[str, Form]]:
    """What every connection may send about itself; as somebody else it may not log in."""
    again = (user.encode(), secret.encode())
    version, login, named = re.compile(rb"[23]"), re.compile(rb"(?i)AUTH"), (re.compile(rb"(?i)SETNAME"), re.compile(rb"[!-~]{0,200}"))
    return [
        ("AUTH", form(*again)),
        ("HELLO", form(version)),
        ("HELLO", form(version, *named)),
        ("HELLO", form(version, login, *again)),
        ("HELLO", form(version, login, *again, *named)),
        ("SELECT", form(str(database_number))),
        ("CLIENT", form(re.compile(rb"(?i)SETINFO"), re.compile(rb"(?i)LIB-(NAME|VER)"), re.compile(rb"[!-~]{0,200}"))),
        ("CLIENT", form(*named)),
        ("CLIENT", form(re.compile(rb"(?i)MAINT_NOTIFICATIONS"), open_end=True)),  # redis-py 8 asks it of every server
        *[(name, form()) for name in ("PING", "QUIT", "MULTI", "EXEC", "DISCARD", "UNWATCH")],
        ("PING", form(re.compile(rb"[ -~]{0,200}"))),
    ]


def shown(argument: bytes) -> str:
    """An argument for a log or an error: short, printable."""
    return re.sub(r"[^ -~]", "?", argument[:40].decode("latin-1"))


def _matches(pattern: Pattern, argument: bytes) -> bool:
    if isinstance(pattern, bytes):
        return hmac.compare_digest(pattern, argument)
    return pattern.fullmatch(argument) is not None if isinstance(pattern, re.Pattern) else pattern(argument)

"""The first words at the door: nothing reaches a server before a user and a secret were named, and who they are decides what may follow.

    visitor: AUTH or HELLO with AUTH --> the server says whether that is right --> a judge for an invited host, none for other users

Standard library only.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distributed_comfy.relay.gate import Gate, Refusals, Replies
from distributed_comfy.relay.requests import FirstRequest, NotARequest, make_request
from distributed_comfy.relay.rules import Judge

BytesLike = bytes | memoryview
Passes = Callable[[BytesLike], Sequence[BytesLike]]
"""What of some bytes goes on, in pieces of which the large ones are views of the argument; may raise `NotARequest`."""
_COPIED_BYTES = 2**14
"""So much is put together, because each piece costs a system call, or a record of TLS."""

LOGIN_TIMEOUT_S = 10.0
"""From the first byte of the handshake to the login."""
_LONGEST_LOGIN_BYTES = 4096
_TRIES = 3
_NOT_YET = b"-NOAUTH Authentication required.\r\n"


class NotLetIn(Exception):
    """The connection is over before it began."""


@dataclass(frozen=True)
class Admission:
    """Who has come in, and how it goes on."""

    user: str
    into_server: Passes
    to_visitor: Passes
    greeting: Sequence[BytesLike]
    """Comes first, to the visitor."""
    early: bytes
    """What the visitor has sent behind its login."""


@dataclass(frozen=True)
class Talk:
    """A visitor and the server behind, as long as words are few."""

    hear: Callable[[], bytes]
    """The next bytes of the visitor; empty where it has left."""
    say: Callable[[BytesLike], None]
    """To the visitor."""
    ask: Callable[[bytes], bytes]
    """Sends a request to the server and gives the beginning of its reply: a line at least; empty where it has left."""


JudgeOf = Callable[[str, str], "Judge | None"]
"""For user and secret; None: all passes."""


def log_in(talk: Talk, judge_of: JudgeOf, on_refused: Callable[[str, str, str], None]) -> Admission:
    """Wait until the visitor has logged in.

    Args:
        talk: with the visitor and the server.
        judge_of: see there.
        on_refused: told user, command and reason of a request that does not pass, later.
    Raises:
        NotLetIn: it has not.
        OSError: one of the two has left, or time is up.
    """
    early, tries = b"", 0
    while tries < _TRIES:
        arguments, early = _next_request(talk, early)
        named = _named(arguments)
        if named is None:
            talk.say(_NOT_YET)
            tries += 1
            continue
        reply = talk.ask(make_request(*arguments))
        if not reply:
            raise NotLetIn("the server behind has closed the connection")
        if not reply.startswith(b"-"):
            return _admitted(named, reply, early, judge_of, on_refused)
        talk.say(reply)
        tries += 1
    raise NotLetIn(f"it did not log in with {_TRIES} requests")


def _next_request(talk: Talk, early: bytes) -> tuple[list[bytes], bytes]:
    first = FirstRequest(_LONGEST_LOGIN_BYTES)
    try:
        while not first.feed(early):
            early = talk.hear()
            if not early:
                raise NotLetIn("it has left")
    except NotARequest as error:
        raise NotLetIn(str(error)) from error
    return first.arguments, first.rest


def _named(arguments: list[bytes]) -> tuple[str, str] | None:
    """User and secret in a request that logs in."""
    name, given = arguments[0].upper(), arguments[1:]
    if name == b"HELLO":
        given = given[2:4] if len(given) >= 4 and given[1].upper() == b"AUTH" else []
    elif name != b"AUTH":
        return None
    if len(given) == 1:
        given = [b"default", *given]
    return (given[0].decode("latin-1"), given[1].decode("latin-1")) if len(given) == 2 else None


def _admitted(
    named: tuple[str, str], reply: bytes, early: bytes, judge_of: JudgeOf, on_refused: Callable[[str, str, str], None]
) -> Admission:
    user, judge = named[0], judge_of(*named)
    if judge is None:
        return Admission(user, _unchanged, _unchanged, (reply,), early)
    refusals = Refusals(lambda command, reason: on_refused(user, command, reason), "door")
    gate, replies = Gate(judge, refusals), Replies(refusals)

    def into_server(data: BytesLike) -> Sequence[BytesLike]:
        return _few(gate.pass_on(data))

    def to_visitor(data: BytesLike) -> Sequence[BytesLike]:
        return _few(replies.pass_on(data))

    return Admission(user, into_server, to_visitor, to_visitor(reply), early)


def _unchanged(data: BytesLike) -> Sequence[BytesLike]:
    return (data,)


def _few(pieces: Sequence[BytesLike]) -> Sequence[BytesLike]:
    """The same with small neighbours put together."""
    if len(pieces) < 2:
        return pieces
    found: list[BytesLike] = []
    small: list[BytesLike] = []
    for piece in pieces:
        if len(piece) <= _COPIED_BYTES:
            small.append(piece)
            continue
        if small:
            found.append(b"".join(small))
            small.clear()
        found.append(piece)
    return [*found, b"".join(small)] if small else found

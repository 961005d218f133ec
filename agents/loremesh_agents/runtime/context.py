"""What every part of a call may know about it: its query id, its principal, its deadline."""

import contextvars
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from loremesh.v1 import principal_pb2

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.principal import ANONYMOUS, Principal
from loremesh_agents.runtime.ids import new_id

QUERY_ID_KEY = "loremesh-query-id"
"""Metadata key of the query id, in requests and in responses."""

PRINCIPAL_KEY = "loremesh-principal-bin"
"""Metadata key of the principal: a serialised `loremesh.v1.Principal`."""

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
"""Metadata of a call as gRPC takes it."""

_QUERY_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The circumstances of one call.

    Attributes:
        query_id: Id of the query that the call is part of: the same on every hop, in every log line, span and response.
        agent: Name of the agent that serves the call.
        method: Full name of the method, as in `loremesh.v1.RetrieverService/Retrieve`.
        principal: On whose behalf the call is made; anonymous until an authenticated peer has vouched for somebody.
        deadline: When the answer becomes useless; None for methods that run as long as messages flow.
        peer: Identity that the peer has proved (a SPIFFE id or another name of its certificate), else empty.
    """

    query_id: str
    agent: str = ""
    method: str = ""
    principal: Principal = ANONYMOUS
    deadline: Deadline | None = None
    peer: str = ""


_current: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar("loremesh_request", default=None)


def current() -> RequestContext:
    """The context of the call that this code serves.

    It is right in the servicer, in its async generators and in the tasks that it starts.

    Raises:
        LookupError: This code does not run on behalf of a call.
    """
    context = _current.get()
    if context is None:
        raise LookupError("this code does not run on behalf of a call")
    return context


def current_or_none() -> RequestContext | None:
    """The context of the call that this code serves, None outside a call."""
    return _current.get()


def replace_current(context: RequestContext) -> None:
    """Sets the context of the running call anew. For interceptors, inside `activate`."""
    _current.set(context)


@contextmanager
def activate(context: RequestContext) -> Generator[RequestContext]:
    """Makes a context the current one within the block: for calls, jobs and commands that begin here."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def query_id_from(metadata: Mapping[str, str | bytes]) -> str:
    """The query id that the caller sent, or a new one when there is none that can be taken over.

    A value is taken over when it has 1 to 64 of the characters `A-Za-z0-9._:-`: it goes into logs and headers as it is.
    """
    value = metadata.get(QUERY_ID_KEY)
    return value if isinstance(value, str) and _QUERY_ID.fullmatch(value) else new_id()


def encode_principal(principal: Principal) -> bytes:
    """The value of `loremesh-principal-bin`."""
    message = principal_pb2.Principal(subject=principal.subject, groups=sorted(principal.groups))
    return message.SerializeToString(deterministic=True)


def decode_principal(value: bytes) -> Principal:
    """The principal of a value of `loremesh-principal-bin`.

    Raises:
        google.protobuf.message.DecodeError: The bytes are no serialised `loremesh.v1.Principal`.
    """
    message = principal_pb2.Principal.FromString(value)
    return Principal(subject=message.subject, groups=frozenset(message.groups))


def outgoing_metadata(context: RequestContext | None) -> Metadata:
    """The metadata that hands a context on to the next agent: the query id and, unless anonymous, the principal."""
    if context is None:
        return ()
    query_id: Metadata = ((QUERY_ID_KEY, context.query_id),)
    if context.principal == ANONYMOUS:
        return query_id
    return (*query_id, (PRINCIPAL_KEY, encode_principal(context.principal)))

"""Domain errors as `google.rpc.Status`, and back.

The table of status codes is here and nowhere else. On the wire an error is a `google.rpc.Status` with exactly one
ErrorInfo (domain `loremesh.dev`, the class's reason) and, as it fits, BadRequest, ResourceInfo, PreconditionFailure,
QuotaFailure and RetryInfo. A status is never larger than 4 KiB: headers above 8 KiB would turn it into
RESOURCE_EXHAUSTED.
"""

import logging
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs] - it has types

from loremesh_agents.domain.errors import (
    ERRORS_BY_REASON,
    BudgetExhausted,
    Conflict,
    Exhausted,
    FieldViolation,
    InternalError,
    InvalidRequest,
    LoremeshError,
    NotFound,
    NotImplementedYet,
    Overloaded,
    PeerUnavailable,
    PreconditionFailed,
    PrincipalNotTrusted,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from loremesh_agents.runtime.ids import new_id

DOMAIN = "loremesh.dev"
"""Domain of every ErrorInfo of ours."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries the serialised status."""

MAX_STATUS_BYTES = 4096
MAX_VALUE_BYTES = 64
MAX_VIOLATIONS = 16

_MAX_MESSAGE_BYTES = 512
_MAX_FIELD_BYTES = 128
_MAX_DESCRIPTION_BYTES = 192
_MAX_METADATA_ENTRIES = 16

_CODES: dict[type[LoremeshError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotImplementedYet: grpc.StatusCode.UNIMPLEMENTED,
    InternalError: grpc.StatusCode.INTERNAL,
}
_CODES_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_OUR_FAULT = (InvalidRequest, Unauthenticated)
"""What a peer blames its caller for, and its caller is us: an end user can do nothing about it."""

_log = logging.getLogger(__name__)

_Detail = TypeVar("_Detail", bound=Message)

Decoder: TypeAlias = Callable[[grpc.aio.AioRpcError, str], LoremeshError]
"""Turns a failed call of a peer into a domain error: `from_rpc_error` or `from_rpc_error_for_user`."""


def code_of(error: LoremeshError) -> grpc.StatusCode:
    """The status code of an error: that of the branch of the tree which its class belongs to."""
    return next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), grpc.StatusCode.INTERNAL)


def cut(text: str, limit: int = MAX_VALUE_BYTES) -> str:
    """The longest beginning of a text that has at most that many bytes in UTF-8 and splits no code point."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def to_status(error: LoremeshError) -> status_pb2.Status:
    """An error as it goes over the wire, as the status of a call or within a message. At most 4 KiB."""
    status = status_pb2.Status(code=code_of(error).value[0], message=cut(error.message, _MAX_MESSAGE_BYTES))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in list(error.metadata.items())[:_MAX_METADATA_ENTRIES]:
        info.metadata[cut(key)] = cut(value)
    details: list[Message] = [info]
    if error.violations:
        details.append(_bad_request(error))
    if isinstance(error, NotFound):
        details.append(
            error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=cut(error.resource_name))
        )
    elif isinstance(error, PreconditionFailed):
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=error.reason, subject=cut(error.subject), description=cut(status.message, 256))
        details.append(failure)
    elif isinstance(error, Exhausted):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=cut(error.subject), description=cut(status.message, 256))
        details.append(quota)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(retry)
    for detail in details:
        status.details.add().Pack(detail)
    _shrink(status, details)
    return status


def _bad_request(error: LoremeshError) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations[:MAX_VIOLATIONS]:
        bad_request.field_violations.add(
            field=cut(violation.field, _MAX_FIELD_BYTES),
            description=cut(violation.description, _MAX_DESCRIPTION_BYTES),
            reason=cut(violation.rule),
        )
    return bad_request


def _shrink(status: status_pb2.Status, details: list[Message]) -> None:
    """Drops the last violations until the status is small enough."""
    for index, detail in enumerate(details):
        if isinstance(detail, error_details_pb2.BadRequest):
            while detail.field_violations and status.ByteSize() > MAX_STATUS_BYTES:
                detail.field_violations.pop()
                status.details[index].Pack(detail)


def from_status(status: status_pb2.Status, peer: str) -> LoremeshError:
    """The error that a status in a peer's message stands for, as the peer meant it.

    Args:
        status: As made by `to_status`, or by something between the peer and us.
        peer: Name of the agent that sent it.
    """
    code = _CODES_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return _decode(status) or _from_code(code, status.message, peer)


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> LoremeshError:
    """The error that the failed call of a peer means to an agent.

    What the peer blames us for (an invalid request, a principal that it does not trust) is a defect of ours: it is
    logged under a new incident id and becomes an InternalError. An incident of the peer keeps its id.

    Args:
        error: What `grpc.aio` raised.
        peer: Name of the agent that was called.
    """
    decoded = _from_rpc_error(error, peer)
    if isinstance(decoded, _OUR_FAULT):
        return _incident(peer, error.code(), f"{decoded.message} {decoded.violations or ''}")
    return decoded


def from_rpc_error_for_user(error: grpc.aio.AioRpcError, peer: str) -> LoremeshError:
    """The error that a failed call means to an end user: as `from_rpc_error`, but an invalid request stays one."""
    return _from_rpc_error(error, peer)


def _from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> LoremeshError:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                decoded = _decode(status_pb2.Status.FromString(value))
            except DecodeError:
                _log.warning("the details of an error of peer %s cannot be decoded", peer)
            else:
                if decoded is not None:
                    return decoded
    return _from_code(error.code(), error.details() or "", peer)


def _decode(status: status_pb2.Status) -> LoremeshError | None:
    """The error of a status of ours, None when another program made it or its reason is newer than this build."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return None
    cls = ERRORS_BY_REASON.get(info.reason)
    if cls is None:
        return None
    retry = _detail(status, error_details_pb2.RetryInfo)
    bad_request = _detail(status, error_details_pb2.BadRequest)
    return cls.restore(
        status.message,
        metadata=dict(info.metadata),
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry is not None else None,
        violations=tuple(
            FieldViolation(violation.field, violation.description, violation.reason)
            for violation in (bad_request.field_violations if bad_request is not None else ())
        ),
    )


def _detail(status: status_pb2.Status, cls: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        detail = cls()
        if packed.Unpack(detail):
            return detail
    return None


def _from_code(code: grpc.StatusCode, message: str, peer: str) -> LoremeshError:
    """The error of a bare status code: from a proxy, gRPC itself, or a program that is not ours."""
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return PeerUnavailable(peer)
        case grpc.StatusCode.INTERNAL if "RST_STREAM" in message:
            # A connection or a proxy's route that broke in mid-stream.
            return PeerUnavailable(peer)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return BudgetExhausted(peer, "call")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" not in message:
            return Overloaded.restore(
                f"The {peer} agent takes no more work: {cut(message, 256)}.",
                metadata={"agent": peer, "limit": "unknown"},
                retry_after=1.0,
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return NotImplementedYet.restore(f"The {peer} agent: {cut(message, 256)}", metadata={"feature": peer})
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest.of("", cut(message, 256))
        case grpc.StatusCode.RESOURCE_EXHAUSTED if message.startswith("SERVER: Received"):
            # gRPC itself refuses what is larger than the server takes, so that there are no details.
            return InvalidRequest.of("", cut(message.removeprefix("SERVER: "), 256))
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return PrincipalNotTrusted.restore(cut(message, 256), metadata={"agent": peer})
        case _:
            return _incident(peer, code, message)


def _incident(peer: str, code: grpc.StatusCode, message: str) -> InternalError:
    incident_id = new_id()
    _log.error(
        "peer %s answered %s: %s",
        peer,
        code.name,
        cut(message, 1024),
        extra={"incident_id": incident_id, "peer_agent": peer},
    )
    return InternalError(incident_id)

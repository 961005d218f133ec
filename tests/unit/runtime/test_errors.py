import logging

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from loremesh.v1 import error_reason_pb2

from loremesh_agents.domain import errors as domain
from loremesh_agents.runtime.errors import (
    DETAILS_KEY,
    MAX_STATUS_BYTES,
    code_of,
    cut,
    from_rpc_error,
    from_rpc_error_for_user,
    from_status,
    to_status,
)

CODES = grpc.StatusCode
EXAMPLES = [
    (domain.InvalidRequest.of("k", "must be positive, got -1", "int32.gt"), CODES.INVALID_ARGUMENT),
    (domain.CollectionNotFound("docs"), CODES.NOT_FOUND),
    (domain.DocumentNotFound("docs", "d1"), CODES.NOT_FOUND),
    (domain.PassageNotFound("docs", "p1"), CODES.NOT_FOUND),
    (domain.EntityNotFound("Ada"), CODES.NOT_FOUND),
    (domain.ModelNotFound("m", ["n"]), CODES.NOT_FOUND),
    (domain.RevisionNotReached("docs", 7, 3), CODES.FAILED_PRECONDITION),
    (domain.CollectionRecreated("docs", "a", "b"), CODES.FAILED_PRECONDITION),
    (domain.CollectionOptionsMismatch("docs", "reader_statistics", "false", "true"), CODES.FAILED_PRECONDITION),
    (domain.EmbeddingMismatch("docs", "a", "b"), CODES.FAILED_PRECONDITION),
    (domain.ReembeddingRefused("docs", "there is no encoder"), CODES.FAILED_PRECONDITION),
    (domain.UnsupportedByModel("m", "tools"), CODES.FAILED_PRECONDITION),
    (domain.ModelChanged("m", "a", "b"), CODES.FAILED_PRECONDITION),
    (domain.StaleSourceVersion("d1", 1, 2), CODES.FAILED_PRECONDITION),
    (domain.UnsupportedMediaType("d1", "a/b", ["text/plain"]), CODES.FAILED_PRECONDITION),
    (domain.DocumentUnreadable("d1", "no text"), CODES.FAILED_PRECONDITION),
    (domain.DocumentTooLarge("d1", 2, 1), CODES.FAILED_PRECONDITION),
    (domain.WriteConflict("sqlite"), CODES.ABORTED),
    (domain.Overloaded("retriever", 4, 0.25), CODES.RESOURCE_EXHAUSTED),
    (domain.ReaderSetsExhausted("docs", "d1", 256), CODES.RESOURCE_EXHAUSTED),
    (domain.StorageFull("sqlite"), CODES.RESOURCE_EXHAUSTED),
    (domain.BackendUnavailable("neo4j"), CODES.UNAVAILABLE),
    (domain.PeerUnavailable("generator"), CODES.UNAVAILABLE),
    (domain.Draining("retriever"), CODES.UNAVAILABLE),
    (domain.BudgetExhausted("retriever", "search"), CODES.DEADLINE_EXCEEDED),
    (domain.StreamIdle("retriever", 30), CODES.DEADLINE_EXCEEDED),
    (domain.PrincipalNotTrusted("retriever"), CODES.UNAUTHENTICATED),
    (domain.NotImplementedYet("Ask"), CODES.UNIMPLEMENTED),
    (domain.InternalError("i1"), CODES.INTERNAL),
]


def rpc_error(code, message="", status=None):
    metadata = grpc.aio.Metadata()
    if status is not None:
        metadata.add(DETAILS_KEY, status.SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=message)


def details(status, cls):
    found = []
    for packed in status.details:
        detail = cls()
        if packed.Unpack(detail):
            found.append(detail)
    return found


def test_every_reason_of_the_contract_has_a_class_and_an_example():
    names = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    assert names == set(domain.ERRORS_BY_REASON)
    assert names == {error.reason for error, _ in EXAMPLES}


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=[error.reason for error, _ in EXAMPLES])
def test_errors_survive_the_wire(error, code):
    status = to_status(error)
    assert code_of(error) is code
    assert status.code == code.value[0]
    (info,) = details(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, "loremesh.dev")
    back = from_status(status, "peer")
    assert type(back) is type(error)
    assert (back.message, back.metadata) == (error.message, error.metadata)
    assert (back.retry_after, back.violations) == (error.retry_after, error.violations)


@pytest.mark.parametrize(("error", "_"), EXAMPLES, ids=[error.reason for error, _ in EXAMPLES])
def test_each_kind_of_error_has_its_details(error, _):
    status = to_status(error)
    kinds = [packed.TypeName().rpartition(".")[2] for packed in status.details]
    expected = ["ErrorInfo"]
    if isinstance(error, domain.InvalidRequest):
        expected.append("BadRequest")
    if isinstance(error, domain.NotFound):
        expected.append("ResourceInfo")
    if isinstance(error, domain.PreconditionFailed):
        expected.append("PreconditionFailure")
    if isinstance(error, domain.Exhausted):
        expected.append("QuotaFailure")
    if error.retry_after is not None:
        expected.append("RetryInfo")
    assert kinds == expected


TEXTS = st.text(max_size=300) | st.text(alphabet="é€🙂", min_size=100, max_size=300) | st.just("\ud800" * 50)


@given(
    cls=st.sampled_from(sorted(domain.ERRORS_BY_REASON.values(), key=lambda cls: cls.reason)),
    message=TEXTS,
    metadata=st.dictionaries(TEXTS, TEXTS, max_size=40),
    retry_after=st.none() | st.floats(0, 1e6),
    violations=st.lists(st.builds(domain.FieldViolation, TEXTS, TEXTS, TEXTS), max_size=40),
)
def test_no_status_is_larger_than_headers_can_bear(cls, message, metadata, retry_after, violations):
    error = cls.restore(message, metadata=metadata, retry_after=retry_after, violations=violations)
    status = to_status(error)
    assert status.ByteSize() <= MAX_STATUS_BYTES
    (info,) = details(status, error_details_pb2.ErrorInfo)
    assert info.reason == cls.reason
    assert all(len(value.encode()) <= 64 for value in info.metadata.values())
    for bad_request in details(status, error_details_pb2.BadRequest):
        assert len(bad_request.field_violations) <= 16
    assert type(from_status(status, "peer")) is cls


def test_violations_that_do_not_fit_are_left_out_from_the_end():
    violations = [domain.FieldViolation(f"field{n}" + "f" * 200, "d" * 300, "r" * 100) for n in range(20)]
    status = to_status(domain.InvalidRequest(violations))
    (bad_request,) = details(status, error_details_pb2.BadRequest)
    kept = [violation.field[:7].rstrip("f") for violation in bad_request.field_violations]
    assert kept == [f"field{n}" for n in range(len(kept))]
    assert MAX_STATUS_BYTES - 500 < status.ByteSize() <= MAX_STATUS_BYTES


@given(st.text(), st.integers(0, 80))
def test_cut_splits_no_code_point(value, limit):
    result = cut(value, limit)
    assert value.startswith(result)
    assert len(result.encode()) <= limit
    rest = value[len(result) :]
    assert not rest or len((result + rest[0]).encode()) > limit


def test_what_a_peer_blames_us_for_is_an_incident_of_ours(caplog):
    for error in (domain.InvalidRequest.of("k", "must be positive"), domain.PrincipalNotTrusted("retriever")):
        with caplog.at_level(logging.ERROR):
            result = from_rpc_error(rpc_error(code_of(error), error.message, to_status(error)), "retriever")
        assert isinstance(result, domain.InternalError)
        assert caplog.records[-1].incident_id == result.metadata["incidentId"]
        assert error.message[:20] in caplog.records[-1].getMessage()
        assert "k" not in result.message.replace("incident", "")


def test_an_end_user_hears_that_the_request_was_invalid():
    error = domain.InvalidRequest.of("k", "must be positive", "int32.gt")
    result = from_rpc_error_for_user(rpc_error(CODES.INVALID_ARGUMENT, error.message, to_status(error)), "coordinator")
    assert isinstance(result, domain.InvalidRequest)
    assert result.violations == error.violations


def test_an_incident_of_a_peer_keeps_its_id():
    error = domain.InternalError("i42")
    result = from_rpc_error(rpc_error(CODES.INTERNAL, error.message, to_status(error)), "generator")
    assert result.metadata == {"incidentId": "i42"}


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (CODES.UNAVAILABLE, "connection refused", domain.PeerUnavailable),
        (CODES.CANCELLED, "", domain.PeerUnavailable),
        (CODES.INTERNAL, "Received RST_STREAM with error code 2", domain.PeerUnavailable),
        (CODES.INTERNAL, "", domain.InternalError),
        (CODES.DEADLINE_EXCEEDED, "Deadline Exceeded", domain.BudgetExhausted),
        (CODES.RESOURCE_EXHAUSTED, "too many", domain.Overloaded),
        (CODES.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", domain.InternalError),
        (CODES.UNIMPLEMENTED, "Method not found!", domain.NotImplementedYet),
        (CODES.UNKNOWN, "boom", domain.InternalError),
        (CODES.DATA_LOSS, "", domain.InternalError),
        (CODES.NOT_FOUND, "", domain.InternalError),
        (CODES.INVALID_ARGUMENT, "bad", domain.InternalError),
        (CODES.PERMISSION_DENIED, "RBAC: access denied", domain.InternalError),
    ],
)
def test_bare_codes_become_something_sensible(code, message, expected):
    assert type(from_rpc_error(rpc_error(code, message), "peer")) is expected


@pytest.mark.parametrize("code", list(CODES))
def test_every_bare_code_becomes_a_domain_error_with_a_reason(code):
    for decode in (from_rpc_error, from_rpc_error_for_user):
        error = decode(rpc_error(code, "because"), "peer")
        assert error.reason in domain.ERRORS_BY_REASON
        assert to_status(error).code


def test_details_of_others_and_damaged_ones_are_passed_over():
    foreign = status_pb2.Status(code=14, message="x")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="DRAINING", domain="example.com"))
    newer = status_pb2.Status(code=14, message="x")
    newer.details.add().Pack(error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain="loremesh.dev"))
    for status in (foreign, newer, status_pb2.Status()):
        assert isinstance(from_rpc_error(rpc_error(CODES.UNAVAILABLE, "x", status), "peer"), domain.PeerUnavailable)
    damaged = grpc.aio.AioRpcError(CODES.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata((DETAILS_KEY, b"\xff")))
    assert isinstance(from_rpc_error(damaged, "peer"), domain.PeerUnavailable)

import asyncio
import logging

import grpc
import pytest

from loremesh_agents.domain import errors as domain
from loremesh_agents.runtime.errors import DETAILS_KEY, from_rpc_error_for_user

from ..support import AGENT, collect, echo, service, serving, text, trailing


async def failing(error, **shape):
    """What a client sees of a method that raises, and how the server counted it."""

    async def unary(*_):
        raise error

    async def stream(*_):
        yield text("first")
        raise error

    async with serving(service(unary=unary, stream=stream)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            await running.stub.Unary(text())
        call = running.stub.Stream(text())
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await collect(call)
        assert streamed.value.code() is seen.value.code()
        await running.settled()
        assert running.count("Unary", seen.value.code().name) == running.count("Stream", seen.value.code().name) == 1
        assert running.in_flight("Unary") == running.in_flight("Stream") == 0
    return seen.value


@pytest.mark.parametrize(
    "error",
    [
        domain.InvalidRequest.of("k", "must be positive"),
        domain.CollectionNotFound("docs"),
        domain.RevisionNotReached("docs", 2, 1),
        domain.WriteConflict("sqlite"),
        domain.StorageFull("sqlite"),
        domain.BackendUnavailable("neo4j"),
        domain.BudgetExhausted("retriever", "search"),
        domain.NotImplementedYet("this"),
        domain.InternalError("i1"),
    ],
    ids=lambda error: error.reason,
)
async def test_domain_errors_reach_the_caller_with_all_that_they_say(error):
    seen = from_rpc_error_for_user(await failing(error), AGENT)
    assert type(seen) is type(error)
    assert (seen.message, seen.metadata) == (error.message, error.metadata)
    assert (seen.retry_after, seen.violations) == (error.retry_after, error.violations)


async def test_an_unknown_exception_shows_nothing_but_an_incident_id(caplog):
    with caplog.at_level(logging.ERROR):
        seen = await failing(ValueError("the password is hunter2"))
    assert seen.code() is grpc.StatusCode.INTERNAL
    error = from_rpc_error_for_user(seen, AGENT)
    incident = error.metadata["incidentId"]
    assert incident in seen.details()
    assert "hunter2" not in seen.details() + str(seen.trailing_metadata())
    (record,) = [record for record in caplog.records if getattr(record, "incident_id", "") == incident]
    assert "hunter2" in str(record.exc_info[1])
    assert record.exc_info[1].__traceback__ is not None


async def test_an_oversized_error_is_cut():
    violations = [domain.FieldViolation(f"documents[{n}]." + "f" * 500, "é" * 500, "r" * 200) for n in range(100)]
    seen = await failing(domain.InvalidRequest(violations))
    assert seen.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(seen.trailing_metadata()[DETAILS_KEY]) <= 4096
    assert 1 <= len(from_rpc_error_for_user(seen, AGENT).violations) <= 16


async def test_a_group_of_failed_tasks_is_answered_with_the_domain_error_in_it():
    async def unary(*_):
        async with asyncio.TaskGroup() as outer:
            outer.create_task(nested())
        return text()

    async def nested():
        async with asyncio.TaskGroup() as inner:
            inner.create_task(fail())

    async def fail():
        raise domain.CollectionNotFound("docs")

    async with serving(service(unary=unary)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            await running.stub.Unary(text())
    assert seen.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_defect_in_a_group_is_not_hidden_by_a_domain_error():
    seen = await failing(ExceptionGroup("both", [domain.CollectionNotFound("docs"), ValueError("defect")]))
    assert seen.code() is grpc.StatusCode.INTERNAL


async def test_a_cancelled_error_out_of_nowhere_does_not_hang_the_caller():
    async def unary(*_):
        raise asyncio.CancelledError

    async with serving(service(unary=unary)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            await running.stub.Unary(text(), timeout=30)
        assert seen.value.code() is grpc.StatusCode.INTERNAL
        await running.settled()
        assert running.in_flight("Unary") == 0


async def test_a_servicer_that_aborts_by_itself_is_counted_right():
    async def unary(_, context):
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "again")

    async with serving(service(unary=unary)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            await running.stub.Unary(text())
        assert seen.value.code() is grpc.StatusCode.ALREADY_EXISTS
        await running.settled()
        assert running.count("Unary", "ALREADY_EXISTS") == 1


async def test_exactly_one_status_comes_with_an_error():
    async def unary(*_):
        raise domain.CollectionNotFound("docs")

    async with serving(service(unary=unary, stream=echo)) as running:
        call = running.stub.Unary(text())
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert [key for key, _ in await call.trailing_metadata()].count(DETAILS_KEY) == 1
        assert set(await trailing(call)) == {DETAILS_KEY, "loremesh-query-id"}

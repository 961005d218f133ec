import grpc
import pytest

from loremesh_agents.domain.errors import DocumentNotFound
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.runtime.context import QUERY_ID_KEY, current

from ..support import AGENT, SERVICE, service, serving, text, trailing


async def test_the_callers_query_id_is_taken_over_and_told_with_the_status():
    seen = []

    async def unary(request, _):
        seen.append(current())
        return request

    async with serving(service(unary=unary)) as running:
        call = running.stub.Unary(text(), metadata=((QUERY_ID_KEY, "q1"),))
        await call
        assert (await trailing(call))[QUERY_ID_KEY] == "q1"
    (context,) = seen
    assert (context.query_id, context.agent, context.method) == ("q1", AGENT, f"{SERVICE}/Unary")
    assert context.principal == ANONYMOUS


@pytest.mark.parametrize("sent", [(), ((QUERY_ID_KEY, "not one of ours"),)])
async def test_a_query_without_id_gets_one(sent):
    async def stream(*_):
        yield text(current().query_id)

    async with serving(service(stream=stream)) as running:
        call = running.stub.Stream(text(), metadata=sent)
        (message,) = [message async for message in call]
        assert len(message.value) == 32
        assert (await call.initial_metadata())[QUERY_ID_KEY] == message.value


async def test_an_error_has_it_in_its_trailing_metadata_alone():
    async def unary(*_):
        raise DocumentNotFound("docs", "d")

    async with serving(service(unary=unary)) as running:
        call = running.stub.Unary(text(), metadata=((QUERY_ID_KEY, "q1"),))
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert (await trailing(call))[QUERY_ID_KEY] == "q1"
        # Initial metadata would settle that this attempt is not to be retried.
        assert QUERY_ID_KEY not in await call.initial_metadata()

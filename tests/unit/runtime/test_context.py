import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.domain.principal import Principal
from loremesh_agents.runtime.context import (
    PRINCIPAL_KEY,
    QUERY_ID_KEY,
    RequestContext,
    activate,
    current,
    current_or_none,
    decode_principal,
    encode_principal,
    outgoing_metadata,
    query_id_from,
)

from .support import service, serving, text


def test_there_is_none_outside_a_call():
    assert current_or_none() is None
    with pytest.raises(LookupError):
        current()


def test_activate_ends_with_its_block():
    with activate(RequestContext(query_id="outer")):
        with activate(RequestContext(query_id="inner")):
            assert current().query_id == "inner"
        assert current().query_id == "outer"
    assert current_or_none() is None


async def test_generators_and_tasks_of_concurrent_calls_see_their_own():
    async def stream(request, _):
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.to_thread(lambda: current().query_id))
                inner = group.create_task(_current_id())
            yield text(f"{current().query_id} {task.result()} {inner.result()} {request.value}")

    async with serving(service(stream=stream)) as running:

        async def ask(query_id):
            call = running.stub.Stream(text(query_id), metadata=((QUERY_ID_KEY, query_id),))
            return {message.value async for message in call}

        ids = [f"q{number}" for number in range(20)]
        seen = await asyncio.gather(*(ask(query_id) for query_id in ids))
    assert seen == [{f"{query_id} {query_id} {query_id} {query_id}"} for query_id in ids]


async def _current_id():
    return current().query_id


@given(st.builds(Principal, subject=st.text(), groups=st.frozensets(st.text())))
def test_principals_survive_the_wire(principal):
    assert decode_principal(encode_principal(principal)) == principal


def test_outgoing_metadata():
    assert outgoing_metadata(None) == ()
    assert outgoing_metadata(RequestContext(query_id="q")) == ((QUERY_ID_KEY, "q"),)
    principal = Principal("ada", frozenset({"staff"}))
    metadata = outgoing_metadata(RequestContext(query_id="q", principal=principal))
    assert metadata == ((QUERY_ID_KEY, "q"), (PRINCIPAL_KEY, encode_principal(principal)))


@pytest.mark.parametrize("value", ["", "a b", "x" * 65, "a\nb", "ü", b"bytes"])
def test_a_query_id_that_does_not_belong_into_logs_is_replaced(value):
    assert query_id_from({QUERY_ID_KEY: value}) != value

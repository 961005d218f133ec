import logging

import grpc
import pytest

from loremesh_agents.domain.errors import DocumentNotFound
from loremesh_agents.domain.principal import Principal
from loremesh_agents.runtime.context import PRINCIPAL_KEY, QUERY_ID_KEY, encode_principal
from loremesh_agents.runtime.logs import JsonFormatter
from loremesh_agents.runtime.server import PeerTrust, ServerOptions

from ..support import SERVICE, echo_all, service, serving, text, until


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="loremesh.access")
    return lambda: [record for record in caplog.records if record.name == "loremesh.access"]


async def test_a_call_is_one_line(lines):
    async with serving(service(duplex=echo_all)) as running:
        call = running.stub.Duplex(iter([text(), text()]))
        assert len([message async for message in call]) == 2
        await until(lambda: lines() != [])
    (line,) = lines()
    assert (line.code, line.sent, line.received) == ("OK", 2, 2)
    assert line.duration_ms > 0
    assert f"{SERVICE}/Duplex" in line.getMessage()


async def test_an_error_is_logged_with_its_final_status(lines):
    async def unary(*_):
        raise DocumentNotFound("docs", "d")

    async with serving(service(unary=unary)) as running:
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.Unary(text())
        await running.settled()
    (line,) = lines()
    assert (line.code, line.reason) == ("NOT_FOUND", "DOCUMENT_NOT_FOUND")


async def test_the_line_has_the_query_id_and_no_groups(tmp_path, caplog):
    written = []

    class Writing(logging.Handler):
        def emit(self, record):
            written.append(JsonFormatter().format(record))

    handler = Writing()
    logger = logging.getLogger("loremesh.access")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger="loremesh.access")
    principal = encode_principal(Principal("ada", frozenset({"top-secret-group"})))
    options = ServerOptions(address=f"unix:{tmp_path}/s", trust=PeerTrust.SOCKET)

    async def unary(request, _):
        return request

    try:
        async with serving(service(unary=unary), options) as running:
            await running.stub.Unary(text(), metadata=((QUERY_ID_KEY, "q1"), (PRINCIPAL_KEY, principal)))
            await running.settled()
    finally:
        logger.removeHandler(handler)
    (line,) = written
    assert '"query_id":"q1"' in line
    assert "top-secret-group" not in line

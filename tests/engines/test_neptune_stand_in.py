"""What is Neptune's alone: TLS and signatures, against Apache Gremlin Server behind a proxy that checks them. Neptune itself is untested."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from loremesh_agents.adapters.graph.gremlin.bytecode import source
from loremesh_agents.adapters.graph.gremlin.neptune import NeptuneEngine, neptune_endpoint
from loremesh_agents.adapters.graph.versioned.engine import Changes, Setting, Vertex
from loremesh_agents.adapters.graph.versioned.schema import migrate, require_current
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, ConfigurationError
from loremesh_agents.domain.graph_schema import VERSION, VertexLabel
from tests.engines.gremlin_engines import opened_neptune
from tests.engines.servers import gremlin_server
from tests.engines.signing_proxy import SECRET, SigningProxy, front_door

pytestmark = pytest.mark.timeout(120)


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SigningProxy]:
    async with opened_neptune(), front_door(gremlin_server.shared().port, tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
async def engine(proxy: SigningProxy) -> AsyncIterator[NeptuneEngine]:
    found = NeptuneEngine(neptune_endpoint("stores.graph", f"neptune+wss://127.0.0.1:{proxy.port}"))
    yield found
    await found.close()


async def test_a_signed_connection_is_served(proxy: SigningProxy, engine: NeptuneEngine) -> None:
    await require_current(engine, deadline=soon())
    assert await engine.create(Vertex(VertexLabel.CLAIM, "c1", {"claim": "x"}), deadline=soon())
    assert not await engine.create(Vertex(VertexLabel.CLAIM, "c1", {"claim": "y"}), deadline=soon())
    assert all("x-amz-security-token" not in request for request in proxy.requests)


async def test_each_connection_is_signed_anew_with_the_credentials_of_the_moment(
    proxy: SigningProxy, engine: NeptuneEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.schema_version(deadline=soon())
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session/token==")
    proxy.drop()
    version = None
    while version is None:
        try:
            version = await engine.schema_version(deadline=soon())
        except BackendUnavailable as error:
            await asyncio.sleep(error.retry_after or 0)
    assert version == VERSION
    tokens = [request.get("x-amz-security-token") for request in proxy.requests]
    assert tokens == [None, "a-session/token=="]
    assert proxy.requests[0]["authorization"] != proxy.requests[1]["authorization"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_SECRET_ACCESS_KEY", "another"), ("AWS_ACCESS_KEY_ID", "AKIDSTRANGER"), ("AWS_REGION", "us-east-1")],
)
async def test_a_wrong_signature_is_refused_and_said(
    proxy: SigningProxy, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    engine = NeptuneEngine(neptune_endpoint("stores.graph", f"neptune+wss://127.0.0.1:{proxy.port}"))
    with pytest.raises(ConfigurationError, match="refuses our credentials: status 403") as refused:
        await engine.schema_version(deadline=soon())
    assert SECRET not in str(refused.value)
    await engine.close()


async def test_without_credentials_nothing_is_signed_and_the_door_stays_shut(
    proxy: SigningProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    engine = NeptuneEngine(neptune_endpoint("stores.graph", f"neptune+wss://127.0.0.1:{proxy.port}"))
    with pytest.raises(ConfigurationError, match="status 403"):
        await engine.schema_version(deadline=soon())
    await engine.close()


async def test_a_certificate_of_strangers_is_refused(
    proxy: SigningProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "strangers.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "strangers.pem"))
    engine = NeptuneEngine(neptune_endpoint("stores.graph", f"neptune+wss://127.0.0.1:{proxy.port}"))
    with pytest.raises(ConfigurationError, match="TLS"):
        await engine.schema_version(deadline=soon())
    assert proxy.requests == []
    await engine.close()


async def test_a_graph_without_a_schema_or_with_a_newer_one_is_refused(
    proxy: SigningProxy, engine: NeptuneEngine
) -> None:
    await engine.migrate(VERSION + 1, deadline=soon())
    with pytest.raises(ConfigurationError, match=f"newer than {VERSION}"):
        await require_current(engine, deadline=soon())
    await engine.migrate(0, deadline=soon())
    with pytest.raises(ConfigurationError, match="loremesh graph migrate"):
        await require_current(engine, deadline=soon())
    assert await migrate(engine, deadline=soon()) == tuple(range(1, VERSION + 1))
    await require_current(engine, deadline=soon())


async def test_a_single_value_stays_single_where_sets_are_the_default(engine: NeptuneEngine) -> None:
    for size in (1, 2, 3):
        entity = Vertex(VertexLabel.ENTITY, "e1", {"entity_key": "ada", "uid": "u1", "size": size})
        await engine.apply(Changes(vertices=[entity]), unless="d1", deadline=soon())
        hint = Setting(VertexLabel.ENTITY, "e1", "size", size * 10)
        await engine.apply(Changes(settings=[hint]), unless="d1", deadline=soon())
    (found,) = await engine._connections.submit(
        source().V("e1").values("size").fold(),
        deadline=soon(),
    )
    assert found == [30]

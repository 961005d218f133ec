"""A mesh under TLS, mutual or not, by plain settings: principals are taken from authenticated peers, and from nobody else."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import (
    coordinator_service_pb2_grpc,
    document_pb2,
    knowledge_service_pb2_grpc,
    principal_pb2,
)
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb

from loremesh_agents.bootstrap.serve import ALL, Mesh, running
from loremesh_agents.bootstrap.settings import SecuritySettings, load
from tests.mesh.conftest import Client, settings_for
from tests.mesh.test_ask import reason_of

QUESTION = pb.AskRequest(question="Who leads the Zorblax project?")


def principal(*groups: str) -> tuple[tuple[str, bytes], ...]:
    return (("loremesh-principal-bin", principal_pb2.Principal(subject="s", groups=groups).SerializeToString()),)


def pem_files(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate for loopback, its key, and the authority that it comes from."""
    folder.mkdir(exist_ok=True)
    ca = trustme.CA()
    own = ca.issue_cert("127.0.0.1", "localhost")
    certificate, key, authority = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    own.private_key_pem.write_to_path(str(key))
    ca.cert_pem.write_to_path(str(authority))
    return certificate, key, authority


async def ingest(channel: grpc.aio.Channel, text: str, *, readers: Sequence[str] = ()) -> None:
    document = document_pb2.Document(
        document_id=text[:8],
        title="Zorblax",
        readers=readers,
        text=document_pb2.StructuredText(sections=[document_pb2.Section(text=text)]),
    )
    requests = [
        knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="docs")),
        knowledge_pb.IngestRequest(document=document),
    ]
    stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
    outcomes = [event.result.outcome async for event in stub.Ingest(iter(requests)) if event.HasField("result")]
    assert outcomes == [knowledge_pb.DOCUMENT_OUTCOME_CREATED]


async def test_access_lists_are_obeyed_from_end_to_end(tmp_path: Path) -> None:
    certificate, key, authority = pem_files(tmp_path)
    security = SecuritySettings(mode="mtls", certificate=certificate, key=key, ca=authority)
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), key.read_bytes(), certificate.read_bytes())
    async with running(("all",), settings_for(tmp_path, security=security)) as mesh:
        async with grpc.aio.secure_channel(mesh.targets["knowledge"], credentials) as channel:
            await ingest(channel, "Jane Doe leads the Zorblax project.", readers=["staff"])
        async with grpc.aio.secure_channel(mesh.targets["coordinator"], credentials) as channel:
            stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)

            async def text(*groups: str) -> str:
                call = stub.Ask(QUESTION, timeout=20, metadata=principal(*groups) if groups else None)
                return "".join([event.delta.text async for event in call])

            assert "Jane Doe" in await text("staff")
            assert "Jane Doe" not in await text("guests")
            assert "Jane Doe" not in await text()
        async with grpc.aio.insecure_channel(mesh.targets["coordinator"]) as channel:
            call = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel).Ask(QUESTION, timeout=5)
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(aiter(call))


class Tls:
    """A mesh whose servers show certificates and ask for none, set up by a file as docs/configuration.md has it."""

    def __init__(self, mesh: Mesh, authority: Path) -> None:
        self.mesh = mesh
        self.authority = authority

    def channel(self, agent: str, authority: Path | None = None) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials((authority or self.authority).read_bytes())
        return grpc.aio.secure_channel(self.mesh.targets[agent], credentials)


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[Tls]:
    certificate, key, authority = pem_files(tmp_path / "own")
    config = tmp_path / "loremesh.toml"
    config.write_text(
        f"[stores]\ndata = '{tmp_path / 'data'}'\nembedder = 'none'\n"
        f"[security]\nmode = 'tls'\ncertificate = '{certificate}'\nkey = '{key}'\nca = '{authority}'\n"
    )
    async with running(("all",), load(config).settings) as mesh:
        yield Tls(mesh, authority)


async def test_under_tls_the_authority_is_all_that_a_client_needs(tls: Tls) -> None:
    async with tls.channel("knowledge") as channel:
        await ingest(channel, "Jane Doe leads the Zorblax project.")
    async with tls.channel("coordinator") as channel:
        call = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel).Ask(QUESTION, timeout=20)
        assert "Jane Doe" in "".join([event.delta.text async for event in call])


@pytest.mark.parametrize("agent", ALL)
async def test_under_tls_no_agent_lets_strangers_in(tls: Tls, tmp_path: Path, agent: str) -> None:
    *_, other = pem_files(tmp_path / "other")
    for channel in (tls.channel(agent, other), grpc.aio.insecure_channel(tls.mesh.targets[agent])):
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_under_tls_nobody_is_believed_to_speak_for_others(tls: Tls) -> None:
    async with tls.channel("knowledge") as channel:
        await ingest(channel, "Jane Doe leads the Zorblax project.", readers=["staff"])
    async with tls.channel("coordinator") as channel:
        stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)
        code, info, _ = await reason_of(stub.Ask(QUESTION, timeout=20, metadata=principal("staff")))
        assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "PRINCIPAL_NOT_TRUSTED")
        anonymous = "".join([event.delta.text async for event in stub.Ask(QUESTION, timeout=20)])
        assert "Jane Doe" not in anonymous


@pytest.mark.parametrize(("mode", "state", "code"), [("tls", "ready", 0), ("plain", "does not answer", 3)])
async def test_the_command_reaches_agents_with_the_authority_alone(tls: Tls, mode: str, state: str, code: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loremesh_agents.cli", "health", "coordinator", "--json"),
        env={
            **os.environ,
            "LOREMESH_ADDRESSES__COORDINATOR": tls.mesh.targets["coordinator"],
            "LOREMESH_SECURITY__MODE": mode,
            "LOREMESH_SECURITY__CA": str(tls.authority),
        },
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert (json.loads(said)["state"], process.returncode) == (state, code)


async def test_a_principal_in_plain_text_is_refused(client: Client) -> None:
    code, info, _ = await reason_of(client.coordinator.Ask(QUESTION, timeout=5, metadata=principal("staff")))
    assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "PRINCIPAL_NOT_TRUSTED")

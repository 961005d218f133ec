"""A mesh under mutual TLS, by plain settings: principals are taken from authenticated peers, and from nobody else."""

from pathlib import Path

import grpc
import pytest
import trustme
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import (
    coordinator_service_pb2_grpc,
    document_pb2,
    knowledge_service_pb2_grpc,
    principal_pb2,
)
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb

from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import SecuritySettings
from tests.mesh.conftest import Client, settings_for
from tests.mesh.test_ask import reason_of

QUESTION = pb.AskRequest(question="Who leads the Zorblax project?")


def principal(*groups: str) -> tuple[tuple[str, bytes], ...]:
    return (("loremesh-principal-bin", principal_pb2.Principal(subject="s", groups=groups).SerializeToString()),)


async def test_access_lists_are_obeyed_from_end_to_end(tmp_path: Path) -> None:
    ca = trustme.CA()
    own = ca.issue_cert("127.0.0.1", "localhost")
    certificate, key, authority = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    own.private_key_pem.write_to_path(str(key))
    ca.cert_pem.write_to_path(str(authority))
    security = SecuritySettings(mode="mtls", certificate=certificate, key=key, ca=authority)
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), key.read_bytes(), certificate.read_bytes())
    async with running(("all",), settings_for(tmp_path, security=security)) as mesh:
        async with grpc.aio.secure_channel(mesh.targets["knowledge"], credentials) as channel:
            section = document_pb2.Section(text="Jane Doe leads the Zorblax project.")
            secret = document_pb2.Document(
                document_id="z",
                title="Zorblax",
                readers=["staff"],
                text=document_pb2.StructuredText(sections=[section]),
            )
            requests = [
                knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="docs")),
                knowledge_pb.IngestRequest(document=secret),
            ]
            async for _ in knowledge_service_pb2_grpc.KnowledgeServiceStub(channel).Ingest(iter(requests)):
                pass
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


async def test_a_principal_in_plain_text_is_refused(client: Client) -> None:
    code, info, _ = await reason_of(client.coordinator.Ask(QUESTION, timeout=5, metadata=principal("staff")))
    assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "PRINCIPAL_NOT_TRUSTED")

"""Every reason of `ErrorReason`, raised by a real agent and read over gRPC: it keeps what its comment in the contract promises."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from loremesh.v1 import answer_pb2, error_reason_pb2, retriever_service_pb2_grpc
from loremesh.v1 import coordinator_service_pb2 as coordinator_pb
from loremesh.v1 import coordinator_service_pb2_grpc as coordinator_grpc
from loremesh.v1 import generator_service_pb2 as generator_pb
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb
from loremesh.v1 import retriever_service_pb2 as retriever_pb

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.model.extractive import ExtractiveModel
from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import AddressSettings, ServerSettings
from loremesh_agents.domain.document import MOST_READER_SETS
from loremesh_agents.domain.errors import ERRORS_BY_REASON, InternalError, InvalidRequest, LoremeshError
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.retriever.settings import RetrieverSettings
from loremesh_agents.runtime.errors import from_status
from loremesh_agents.runtime.server import AgentServer, Service
from tests.documents import document, soon, writes
from tests.mesh.conftest import Client, answers, served, settings_for, status_of
from tests.mesh.test_knowledge import blob, ingest, results_of, start
from tests.repository.repository import ROOT
from tests.unit.runtime.test_errors import EXAMPLES

REASONS = sorted(name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()[1:])
SECRET = "the password is hunter2"
WATCH = knowledge_pb.WatchRevisionsRequest(collection="docs")


@dataclass(frozen=True)
class Promise:
    """What the comment of a reason says."""

    code: str
    metadata: frozenset[str]
    retryable: bool
    details: frozenset[str]


def promises() -> dict[str, Promise]:
    contract = (ROOT / "proto/loremesh/v1/error_reason.proto").read_text()
    found = {}
    for comment, reason in re.findall(r"((?: *//.*\n)+) *ERROR_REASON_(\w+) = [1-9]\d*;", contract):
        text = re.sub(r"\s*//\s*", " ", comment)
        rule = re.search(r"Code (\w+)\. Metadata: (.+?)\. Retry: (.+)", text)
        assert rule is not None, reason
        keys = re.sub(r" \(.*?\)", "", rule[2])
        found[reason] = Promise(
            rule[1],
            frozenset(() if keys == "none" else keys.split(", ")),
            rule[3].startswith("yes"),
            frozenset(re.findall(r"google\.rpc\.(\w+)", text)),
        )
    return found


@dataclass(frozen=True)
class Refusal:
    """An error as it came over the wire, and what our own call layer makes of it."""

    status: status_pb2.Status
    error: LoremeshError


@dataclass(frozen=True)
class Scene:
    """Where a situation takes place: in the mesh that all share, or in one of its own over the folder."""

    client: Client
    folder: Path
    monkeypatch: pytest.MonkeyPatch


@dataclass(frozen=True)
class Situation:
    """How an agent comes to raise a reason, and metadata that it then gives."""

    happens: Callable[[Scene], Awaitable[Refusal]]
    metadata: Mapping[str, str] = field(default_factory=dict)


async def refused(events: AsyncIterator[Message]) -> Refusal:
    with pytest.raises(LoremeshError) as raised:
        async for _ in events:
            pass
    return Refusal(status_of(raised.value), raised.value)


def calling(agent: str, method: str, *requests: Message, **more: object) -> Callable[[Scene], Awaitable[Refusal]]:
    def happens(scene: Scene) -> Awaitable[Refusal]:
        return refused(answers(getattr(getattr(scene.client, agent), method), *requests, **more))

    return happens


async def failed(client: Client, *documents: knowledge_pb.IngestRequest) -> Refusal:
    """The failure of the last document of an ingestion, which goes on to its completion."""
    events = await ingest(client, start("failures"), *documents)
    assert events[-1].HasField("completion")
    result = results_of(events)[-1]
    assert result.outcome == knowledge_pb.DOCUMENT_OUTCOME_FAILED
    return Refusal(result.error, from_status(result.error, "knowledge"))


def ingesting(*documents: knowledge_pb.IngestRequest) -> Callable[[Scene], Awaitable[Refusal]]:
    return lambda scene: failed(scene.client, *documents)


def retrieval(collection: str = "docs", uid: str = "", revision: int = 0) -> retriever_pb.RetrieveRequest:
    least = {"collection": collection, "collection_uid": uid, "revision": revision}
    return retriever_pb.RetrieveRequest(question="Who?", consistency={"min_revision": {"revisions": [least]}})


def generation(**fields: object) -> generator_pb.GenerateRequest:
    return generator_pb.GenerateRequest(messages=[{"role": "ROLE_USER", "text": "Who?"}], **fields)


async def a_collection_is_deleted_and_made_again(scene: Scene) -> Refusal:
    (old,) = await scene.client.ingest({"a": ("A", "A text.")}, "again")
    await scene.client.knowledge.DeleteCollection(knowledge_pb.DeleteCollectionRequest(collection="again"))
    await scene.client.ingest({"a": ("A", "A text.")}, "again")
    request = retrieval("again", old.revision.collection_uid, old.revision.revision)
    return await refused(answers(scene.client.retriever.Retrieve, request))


async def a_revision_does_not_come(scene: Scene) -> Refusal:
    async with served(scene.folder, retriever=RetrieverSettings(default_budget=0.5)) as client:
        await client.ingest({"a": ("A", "A text.")})
        return await refused(answers(client.retriever.Retrieve, retrieval(revision=99)))


async def another_encoder_was_configured_before(scene: Scene) -> Refusal:
    store = SqliteGraphStore(scene.folder / "graph.db")
    found = writes(document("a", "A", "A text."))
    await store.write("docs", found, embedding_model="older", deadline=soon())
    await store.close()
    async with served(scene.folder) as client:
        return await refused(answers(client.knowledge.Ingest, start(), blob("b", b"B text.")))


async def there_is_no_encoder_to_embed_a_collection_with(scene: Scene) -> Refusal:
    async with served(scene.folder) as client:
        await client.ingest({"a": ("A", "A text.")})
        return await refused(answers(client.knowledge.Reembed, knowledge_pb.ReembedRequest(collection="docs")))


async def there_are_as_many_sets_of_readers_as_there_may_be(scene: Scene) -> Refusal:
    groups = [f"group-{number}" for number in range(MOST_READER_SETS + 1)]
    events = await ingest(
        scene.client,
        start("groups", reader_statistics=True),
        *(blob(name, b"A text.", readers=[name]) for name in groups),
        blob("everybody", b"A text."),
        blob("one more of a known set", b"A text.", readers=[groups[0]]),
    )
    *stored, refused_one, everybody, known = results_of(events)
    assert {result.outcome for result in (*stored, everybody, known)} == {knowledge_pb.DOCUMENT_OUTCOME_CREATED}
    return Refusal(refused_one.error, from_status(refused_one.error, "knowledge"))


async def a_collection_was_created_with_other_options(scene: Scene) -> Refusal:
    ingested = answers(scene.client.knowledge.Ingest, start("docs", reader_statistics=True), blob("b", b"B text."))
    refusal = await refused(ingested)
    with pytest.raises(LoremeshError, match="There is no document"):
        await anext(answers(scene.client.knowledge.GetDocument, GET_B))
    return refusal


async def a_document_is_too_large(scene: Scene) -> Refusal:
    async with served(scene.folder, knowledge=KnowledgeSettings(largest_document=10)) as client:
        return await failed(client, blob("long", b"Eleven text"))


async def another_process_writes(scene: Scene) -> Refusal:
    async with served(scene.folder, knowledge=KnowledgeSettings(write_budget=0.1)) as client:
        with closing(sqlite3.connect(scene.folder / "graph.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            delete = knowledge_pb.DeleteDocumentsRequest(collection="docs", document_ids=["a"])
            for call in (
                answers(client.knowledge.DeleteDocuments, delete),
                answers(client.knowledge.DeleteCollection, knowledge_pb.DeleteCollectionRequest(collection="docs")),
            ):
                assert (await refused(call)).error.reason == "WRITE_CONFLICT"
            return await refused(answers(client.knowledge.Ingest, start(), blob("a", b"A text.")))


async def as_many_calls_as_allowed_are_in_flight(scene: Scene) -> Refusal:
    async with served(scene.folder, server=ServerSettings(max_in_flight=1)) as client:
        await client.ingest({"a": ("A", "A text.")})
        (knowledge,) = [server for server in client.mesh.servers if server.agent == "knowledge"]
        async with asyncio.timeout(10):
            while knowledge.in_flight:
                await asyncio.sleep(0)
        watching = answers(client.knowledge.WatchRevisions, WATCH)
        await anext(watching)
        refusal = await refused(
            answers(client.knowledge.GetCollection, knowledge_pb.GetCollectionRequest(collection="docs"))
        )
        await watching.aclose()
        return refusal


async def the_store_is_full(scene: Scene) -> Refusal:
    opened = backends.open_graph

    def open_small(stores):
        graph, text = opened(stores)
        # The pragma holds for the connection that writes.
        graph.connections._writer.execute("PRAGMA max_page_count = 1")
        return graph, text

    scene.monkeypatch.setattr(backends, "open_graph", open_small)
    async with served(scene.folder) as client:
        return await refused(answers(client.knowledge.Ingest, start(), blob("a", b"A text. " * 60_000)))


async def the_store_is_damaged(scene: Scene) -> Refusal:
    async with served(scene.folder) as client:
        with closing(sqlite3.connect(scene.folder / "graph.db")) as other:
            other.execute("ALTER TABLE collection RENAME TO lost")
        return await refused(answers(client.knowledge.ListCollections, knowledge_pb.ListCollectionsRequest()))


async def a_peer_has_stopped(scene: Scene) -> Refusal:
    async with served(scene.folder) as client:
        (generator,) = [server for server in client.mesh.servers if server.agent == "generator"]
        await generator.stop(0)
        request = coordinator_pb.AskRequest(question="Who?", route=coordinator_pb.ROUTE_DIRECT)
        return await refused(answers(client.coordinator.Ask, request))


async def the_agent_stops_during_a_call(scene: Scene) -> Refusal:
    async with served(scene.folder) as client:
        await client.ingest({"a": ("A", "A text.")})
        watching = answers(client.knowledge.WatchRevisions, WATCH)
        await anext(watching)
        (knowledge,) = [server for server in client.mesh.servers if server.agent == "knowledge"]
        stopping = asyncio.create_task(knowledge.stop(0))
        refusal = await refused(watching)
        await stopping
        return refusal


async def there_is_less_time_than_any_answer_takes(scene: Scene) -> Refusal:
    async with served(scene.folder, retriever=RetrieverSettings(default_budget=0.001)) as client:
        return await refused(answers(client.retriever.Retrieve, retriever_pb.RetrieveRequest(question="Who?")))


async def nothing_happens_on_a_stream(scene: Scene) -> Refusal:
    async with served(scene.folder) as client:
        await client.ingest({"a": ("A", "A text.")})
    # The ingestion may be slower than that.
    async with served(scene.folder, server=ServerSettings(idle_timeout=0.1)) as client:
        return await refused(answers(client.knowledge.WatchRevisions, WATCH))


async def an_engine_has_a_defect(scene: Scene) -> Refusal:
    class Broken(ExtractiveModel):
        async def models(self, *, deadline):
            raise RuntimeError(SECRET)

    scene.monkeypatch.setattr(backends, "open_model", lambda *_: Broken())
    async with served(scene.folder) as client:
        return await refused(answers(client.generator.ListModels, generator_pb.ListModelsRequest()))


GET_B = knowledge_pb.GetDocumentRequest(collection="docs", document_id="b")
GET_NEVER = knowledge_pb.GetDocumentRequest(collection="docs", document_id="never")
FROM_NEVER = retriever_pb.ExpandRequest(passages=[{"collection": "docs", "passage_id": "acme#99"}])
SITUATIONS = {
    "INVALID_REQUEST": Situation(calling("retriever", "Retrieve", retriever_pb.RetrieveRequest(question="?!"))),
    "COLLECTION_NOT_FOUND": Situation(
        calling("knowledge", "GetCollection", knowledge_pb.GetCollectionRequest(collection="nowhere")),
        {"collection": "nowhere"},
    ),
    "DOCUMENT_NOT_FOUND": Situation(
        calling("knowledge", "GetDocument", GET_NEVER), {"collection": "docs", "documentId": "never"}
    ),
    "PASSAGE_NOT_FOUND": Situation(
        calling("retriever", "Expand", FROM_NEVER), {"collection": "docs", "passageId": "acme#99"}
    ),
    "ENTITY_NOT_FOUND": Situation(
        calling("retriever", "Expand", retriever_pb.ExpandRequest(entities=["Nobody Known"])),
        {"entity": "Nobody Known"},
    ),
    "MODEL_NOT_FOUND": Situation(
        calling("generator", "Generate", generation(options={"model": "gpt"})),
        {"model": "gpt", "served": "extractive"},
    ),
    "REVISION_NOT_REACHED": Situation(
        a_revision_does_not_come, {"collection": "docs", "requestedRevision": "99", "currentRevision": "1"}
    ),
    "COLLECTION_RECREATED": Situation(a_collection_is_deleted_and_made_again, {"collection": "again"}),
    "COLLECTION_OPTIONS_MISMATCH": Situation(
        a_collection_was_created_with_other_options,
        {
            "collection": "docs",
            "option": "reader_statistics",
            "collectionValue": "false",
            "requestedValue": "true",
        },
    ),
    "EMBEDDING_MISMATCH": Situation(
        another_encoder_was_configured_before,
        {"collection": "docs", "collectionModel": "older", "configuredModel": "none"},
    ),
    "REEMBEDDING_REFUSED": Situation(
        there_is_no_encoder_to_embed_a_collection_with,
        {"collection": "docs"},
    ),
    "UNSUPPORTED_BY_MODEL": Situation(
        calling("generator", "Generate", generation(tools=[{"name": "look"}])),
        {"model": "extractive", "feature": "tools"},
    ),
    "MODEL_CHANGED": Situation(
        calling("generator", "Generate", generation(resume={"model_fingerprint": "older"})),
        {"model": "extractive", "expectedFingerprint": "older"},
    ),
    "STALE_SOURCE_VERSION": Situation(
        ingesting(blob("v", b"New text.", source_version=2), blob("v", b"Old text.", source_version=1)),
        {"documentId": "v", "sourceVersion": "1", "currentSourceVersion": "2"},
    ),
    "UNSUPPORTED_MEDIA_TYPE": Situation(
        ingesting(blob("x", b"PK", "application/zip")), {"documentId": "x", "mediaType": "application/zip"}
    ),
    "DOCUMENT_UNREADABLE": Situation(ingesting(blob("latin", b"caf\xe9")), {"documentId": "latin"}),
    "DOCUMENT_TOO_LARGE": Situation(
        a_document_is_too_large, {"documentId": "long", "sizeBytes": "11", "limitBytes": "10"}
    ),
    "WRITE_CONFLICT": Situation(another_process_writes, {"backend": "sqlite"}),
    "OVERLOADED": Situation(as_many_calls_as_allowed_are_in_flight, {"agent": "knowledge", "limit": "1"}),
    "READER_SETS_EXHAUSTED": Situation(
        there_are_as_many_sets_of_readers_as_there_may_be,
        {"collection": "groups", "documentId": f"group-{MOST_READER_SETS}", "limit": str(MOST_READER_SETS)},
    ),
    "STORAGE_FULL": Situation(the_store_is_full, {"backend": "sqlite"}),
    "BACKEND_UNAVAILABLE": Situation(the_store_is_damaged, {"backend": "sqlite"}),
    "PEER_UNAVAILABLE": Situation(a_peer_has_stopped, {"peer": "generator"}),
    "DRAINING": Situation(the_agent_stops_during_a_call, {"agent": "knowledge"}),
    "BUDGET_EXHAUSTED": Situation(
        there_is_less_time_than_any_answer_takes, {"agent": "retriever", "stage": "admission"}
    ),
    "STREAM_IDLE": Situation(nothing_happens_on_a_stream, {"agent": "knowledge", "idleSeconds": "0.1"}),
    "PRINCIPAL_NOT_TRUSTED": Situation(
        calling("knowledge", "GetDocument", GET_NEVER, metadata=(("loremesh-principal-bin", b""),)),
        {"agent": "knowledge"},
    ),
    "NOT_IMPLEMENTED": Situation(
        calling("coordinator", "Ask", coordinator_pb.AskRequest(question="Who?", route=coordinator_pb.ROUTE_SQL)),
        {"feature": "loremesh.v1.SqlService"},
    ),
    "INTERNAL": Situation(an_engine_has_a_defect),
}


def details_of(status: status_pb2.Status) -> dict[str, Message]:
    """The details by their names; each kind comes at most once."""
    found: dict[str, Message] = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        detail = getattr(error_details_pb2, name)()
        assert packed.Unpack(detail)
        assert name not in found
        found[name] = detail
    return found


def test_every_reason_has_a_situation_and_a_promise() -> None:
    assert REASONS == sorted(SITUATIONS) == sorted(promises())


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("reason", REASONS)
async def test_a_reason_comes_with_all_that_is_promised(
    shared: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    situation, promised = SITUATIONS[reason], promises()[reason]
    refusal = await situation.happens(Scene(shared, tmp_path, monkeypatch))
    status, error = refusal.status, refusal.error
    assert status.code == grpc.StatusCode[promised.code].value[0]
    assert status.ByteSize() <= 4096
    assert SECRET not in str(status)

    details = details_of(status)
    assert details.keys() == {"ErrorInfo", *promised.details}
    info = details["ErrorInfo"]
    assert (info.reason, info.domain) == (reason, "loremesh.dev")
    assert info.metadata.keys() == promised.metadata
    assert {key: info.metadata[key] for key in situation.metadata} == situation.metadata
    if "BadRequest" in details:
        assert all(violation.field and violation.description for violation in details["BadRequest"].field_violations)
    if "ResourceInfo" in details:
        sought = details["ResourceInfo"]
        assert (sought.resource_type, sought.resource_name) in {
            (key.removesuffix("Id"), value) for key, value in situation.metadata.items()
        }
    if "PreconditionFailure" in details:
        (violation,) = details["PreconditionFailure"].violations
        assert (violation.type, violation.description) == (reason, status.message)
    if "QuotaFailure" in details:
        (violation,) = details["QuotaFailure"].violations
        assert violation.subject in {f"{key} {value}" for key, value in situation.metadata.items()}
    if "RetryInfo" in details:
        assert promised.retryable
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0

    assert type(error) is ERRORS_BY_REASON[reason]
    assert (error.message, error.metadata) == (status.message, dict(info.metadata))
    assert bool(error.violations) == ("BadRequest" in details)
    assert (error.retry_after is not None) == ("RetryInfo" in details)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_message_that_is_too_large_is_the_caller_s_fault(shared: Client) -> None:
    request = generator_pb.CountTokensRequest(texts=["x" * 4_300_000])
    with pytest.raises(InvalidRequest, match="larger than max") as raised:
        await anext(answers(shared.generator.CountTokens, request))
    # gRPC itself refuses it, before any code of ours.
    assert isinstance(raised.value.__cause__, grpc.aio.AioRpcError)
    assert raised.value.__cause__.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class FailingRetriever(retriever_service_pb2_grpc.RetrieverServiceServicer):
    """Fails with the reason that the question names."""

    async def Retrieve(self, request, context):
        raise next(error for error, _ in EXAMPLES if error.reason == request.question)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def coordinator(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[coordinator_grpc.CoordinatorServiceStub]:
    """A coordinator whose retriever fails."""
    service = Service.of(
        retriever_pb.DESCRIPTOR.services_by_name["RetrieverService"],
        retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server,
        FailingRetriever(),
    )
    async with AgentServer("retriever", [service]) as retriever:
        settings = settings_for(
            tmp_path_factory.mktemp("failing"), addresses=AddressSettings(retriever=retriever.target)
        )
        async with (
            running(("generator", "synthesizer", "coordinator"), settings) as mesh,
            grpc.aio.insecure_channel(mesh.targets["coordinator"]) as channel,
        ):
            yield coordinator_grpc.CoordinatorServiceStub(channel)


BLAMED_ON_US = ("INVALID_REQUEST", "PRINCIPAL_NOT_TRUSTED")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "error",
    [error for error, _ in EXAMPLES if error.reason not in (*BLAMED_ON_US, "BUDGET_EXHAUSTED")],
    ids=lambda error: error.reason,
)
async def test_the_error_of_a_peer_reaches_the_caller_as_it_was(coordinator, error: LoremeshError) -> None:
    refusal = await refused(answers(coordinator.Ask, coordinator_pb.AskRequest(question=error.reason)))
    assert type(refusal.error) is type(error)
    assert (refusal.error.message, refusal.error.metadata) == (error.message, error.metadata)
    assert refusal.error.retry_after == error.retry_after


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("reason", BLAMED_ON_US)
async def test_what_a_peer_blames_on_an_agent_is_an_incident_to_its_caller(coordinator, reason: str) -> None:
    refusal = await refused(answers(coordinator.Ask, coordinator_pb.AskRequest(question=reason)))
    assert type(refusal.error) is InternalError
    assert details_of(refusal.status).keys() == {"ErrorInfo"}
    assert refusal.error.metadata["incidentId"] in refusal.error.message


@pytest.mark.asyncio(loop_scope="module")
async def test_a_peer_that_ran_out_of_time_is_left_out(coordinator) -> None:
    request = coordinator_pb.AskRequest(question="BUDGET_EXHAUSTED")
    events = [event async for event in answers(coordinator.Ask, request)]
    (degradation,) = events[-1].completion.degradations
    assert (degradation.agent, degradation.reason) == ("retriever", answer_pb2.DEGRADATION_REASON_BUDGET)

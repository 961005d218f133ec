"""Ingestion, deletes, changes."""

import json

import grpc
import pytest
from loremesh.v1 import collection_pb2, document_pb2
from loremesh.v1 import knowledge_service_pb2 as pb

from tests.mesh.conftest import DOCUMENTS, Client
from tests.mesh.test_ask import reason_of


def start(collection: str = "docs", **options: bool) -> pb.IngestRequest:
    chosen = collection_pb2.CollectionOptions(**options) if options else None
    return pb.IngestRequest(start=pb.IngestStart(collection=collection, options=chosen))


def blob(
    document_id: str, data: bytes, media_type: str = "text/plain", total: int = 0, **fields: object
) -> pb.IngestRequest:
    content = document_pb2.Blob(media_type=media_type, data=data, total_size=total)
    return pb.IngestRequest(document=document_pb2.Document(document_id=document_id, blob=content, **fields))


async def ingest(client: Client, *requests: pb.IngestRequest) -> list[pb.IngestResponse]:
    return [event async for event in client.knowledge.Ingest(iter(requests))]


def results_of(events: list[pb.IngestResponse]) -> list[pb.DocumentResult]:
    return [event.result for event in events if event.HasField("result")]


async def test_results_come_in_order_and_a_completion_last(client: Client) -> None:
    events = await ingest(client, start(), blob("b", b"Text b."), blob("a", b"Text a."))
    assert [result.document_id for result in results_of(events)] == ["b", "a"]
    assert events[-1].HasField("completion")
    assert events[-1].completion.revisions[0].revision == results_of(events)[0].revision.revision


async def test_the_same_documents_are_unchanged(client: Client) -> None:
    results = await client.ingest(DOCUMENTS)
    assert {result.outcome for result in results} == {pb.DOCUMENT_OUTCOME_UNCHANGED}


async def test_what_cannot_be_read_fails_alone(client: Client) -> None:
    events = await ingest(
        client,
        start(),
        blob("bad.pdf", b"%PDF-1.4 nothing", "application/pdf"),
        blob("x.zip", b"PK", "application/zip"),
        blob("empty.txt", b"   "),
        blob("latin.txt", b"caf\xe9"),
        blob("good.txt", b"Good text."),
    )
    results = {result.document_id: result for result in results_of(events)}
    outcomes = {name: result.outcome for name, result in results.items()}
    assert outcomes.pop("good.txt") == pb.DOCUMENT_OUTCOME_CREATED
    assert set(outcomes.values()) == {pb.DOCUMENT_OUTCOME_FAILED}
    assert "application/zip" in results["x.zip"].error.message
    assert all(name in result.error.message for name, result in results.items() if name != "good.txt")


async def test_a_long_blob_comes_in_parts(client: Client) -> None:
    text = b"A long story. " * 100_000
    size = 500_000
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    requests = [start(), blob("long", parts[0], total=len(text))]
    requests += [pb.IngestRequest(blob_part=pb.BlobPart(data=part)) for part in parts[1:]]
    (result,) = results_of(await ingest(client, *requests))
    assert result.outcome == pb.DOCUMENT_OUTCOME_CREATED
    assert result.passage_count > 100


async def test_lines_of_json_become_documents(client: Client) -> None:
    lines = [
        json.dumps({"_id": "1", "title": "One", "text": "First text.", "metadata": {"year": 1990}}),
        "no json",
        json.dumps({"_id": "2", "title": "Two", "text": "Second text."}),
    ]
    events = await ingest(client, start(), blob("", "\n".join(lines).encode(), "application/x-ndjson"))
    assert [result.outcome for result in results_of(events)] == [
        pb.DOCUMENT_OUTCOME_CREATED,
        pb.DOCUMENT_OUTCOME_FAILED,
        pb.DOCUMENT_OUTCOME_CREATED,
    ]
    got = await client.knowledge.GetDocument(pb.GetDocumentRequest(collection="docs", document_id="1"))
    assert (got.document.title, dict(got.document.metadata)) == ("One", {"year": "1990"})


async def test_an_old_version_is_refused(client: Client) -> None:
    events = await ingest(client, start(), blob("v", b"new", source_version=2), blob("v", b"old", source_version=1))
    created, stale = results_of(events)
    assert created.outcome == pb.DOCUMENT_OUTCOME_CREATED
    assert "source version" in stale.error.message


async def test_deleted_documents_are_gone_and_reported(client: Client) -> None:
    response = await client.knowledge.DeleteDocuments(
        pb.DeleteDocumentsRequest(collection="docs", document_ids=["acme", "never"])
    )
    assert response.deleted_count == 1
    changes = [change async for change in client.knowledge.ReadChanges(pb.ReadChangesRequest(collection="docs"))]
    kinds = {change.document.document_id: change.kind for change in changes}
    assert kinds["acme"] == pb.CHANGE_KIND_DELETED
    assert kinds["jane"] == pb.CHANGE_KIND_WRITTEN
    assert changes[-1].revision == response.revision
    code, info, _ = await reason_of(
        client.knowledge.GetDocument(pb.GetDocumentRequest(collection="docs", document_id="acme"))
    )
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "DOCUMENT_NOT_FOUND")


async def test_a_watcher_is_told_of_writes(client: Client) -> None:
    call = client.knowledge.WatchRevisions(pb.WatchRevisionsRequest(collection="docs"))
    first = await call.read()
    (result,) = await client.ingest({"more": ("More", "More text.")})
    second = await call.read()
    assert second.revision.revision == result.revision.revision == first.revision.revision + 1
    call.cancel()


async def test_collections_are_listed_and_deleted(client: Client) -> None:
    await client.ingest(DOCUMENTS, collection="other")
    listed = await client.knowledge.ListCollections(pb.ListCollectionsRequest(page_size=1))
    rest = await client.knowledge.ListCollections(pb.ListCollectionsRequest(page_token=listed.next_page_token))
    assert [entry.name for entry in (*listed.collections, *rest.collections)] == ["docs", "other"]
    assert (await client.knowledge.DeleteCollection(pb.DeleteCollectionRequest(collection="other"))).deleted
    code, info, _ = await reason_of(client.knowledge.GetCollection(pb.GetCollectionRequest(collection="other")))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([blob("a", b"x")], "start"),
        ([start(), start()], "start"),
        ([start(), pb.IngestRequest(blob_part=pb.BlobPart(data=b"x"))], "blob_part"),
        ([start(), blob("a", b"x", total=5), blob("b", b"y")], "document.blob.total_size"),
        ([start(), blob("", b"x")], "document.document_id"),
        ([start("NOT A NAME")], "start.collection"),
    ],
)
async def test_a_stream_that_breaks_the_rules_is_refused(
    client: Client, requests: list[pb.IngestRequest], field: str
) -> None:
    code, info, status = await reason_of(client.knowledge.Ingest(iter(requests)))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert field in str(status)


async def test_options_are_set_when_a_collection_is_made_and_stay(client: Client) -> None:
    async def reader_statistics(name: str) -> bool:
        got = await client.knowledge.GetCollection(pb.GetCollectionRequest(collection=name))
        return got.collection.options.reader_statistics

    assert not await reader_statistics("docs")
    await ingest(client, start("divided", reader_statistics=True))
    assert await reader_statistics("divided")
    # Whoever says nothing of them leaves them as they are.
    for first in (start("divided"), start("divided", reader_statistics=True)):
        (result,) = results_of(await ingest(client, first, blob("a", b"A text.")))
        assert result.outcome in (pb.DOCUMENT_OUTCOME_CREATED, pb.DOCUMENT_OUTCOME_UNCHANGED)
    assert await reader_statistics("divided")
    call = client.knowledge.Ingest(iter([start("divided", reader_statistics=False), blob("b", b"B text.")]))
    code, info, _ = await reason_of(call)
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COLLECTION_OPTIONS_MISMATCH")
    got = await client.knowledge.GetCollection(pb.GetCollectionRequest(collection="divided"))
    assert got.collection.document_count == 1

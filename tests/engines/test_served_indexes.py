"""Agents with stores of their own over one graph and one OpenSearch, as processes have them: what is acknowledged is found."""

from pathlib import Path

import grpc
from loremesh.v1 import (
    collection_pb2,
    document_pb2,
    knowledge_service_pb2_grpc,
    retriever_service_pb2_grpc,
)
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb
from loremesh.v1 import retriever_service_pb2 as pb

from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import Settings, StoreSettings
from tests.engines.search_indexes import new_prefix
from tests.engines.servers.opensearch import OpenSearchNode


def named(number: int) -> knowledge_pb.IngestRequest:
    text = document_pb2.StructuredText(sections=[document_pb2.Section(text=f"we keep the word{number} in a drawer.")])
    return knowledge_pb.IngestRequest(document=document_pb2.Document(document_id=f"d{number}", text=text))


async def test_what_is_acknowledged_is_found_by_text_at_once_and_after_deletion_no_more(
    opensearch: OpenSearchNode, tmp_path: Path
) -> None:
    prefix = new_prefix().replace("-", "_")
    url = opensearch.url.replace("http", "opensearch+http")
    settings = Settings(stores=StoreSettings(data=tmp_path, embedder="none", text=f"{url}/{prefix}"))

    async with (
        running(["knowledge"], settings) as writing,
        running(["retriever"], settings) as reading,
        grpc.aio.insecure_channel(writing.targets["knowledge"]) as to_knowledge,
        grpc.aio.insecure_channel(reading.targets["retriever"]) as to_retriever,
    ):
        knowledge = knowledge_service_pb2_grpc.KnowledgeServiceStub(to_knowledge)
        retriever = retriever_service_pb2_grpc.RetrieverServiceStub(to_retriever)

        async def ask(number: int, revision: collection_pb2.CollectionRevision) -> tuple[set[str], set[str]]:
            """Ids of the documents found, and what was left out."""
            least = collection_pb2.Consistency.MinRevision(revisions=[revision])
            request = pb.RetrieveRequest(
                question=f"which word{number}?",
                collections=["docs"],
                consistency=collection_pb2.Consistency(min_revision=least),
            )
            events = [event async for event in retriever.Retrieve(request, timeout=20)]
            found = {event.evidence.passage.document_id for event in events if event.HasField("evidence")}
            return found, {entry.stage for entry in events[-1].completion.degradations}

        stream = knowledge.Ingest()
        await stream.write(knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="docs")))
        acknowledged = 0
        await stream.write(named(0))
        async for event in stream:
            if not event.HasField("result"):
                continue
            # The stream goes on: nothing but the commit brings the index up.
            assert await ask(acknowledged, event.result.revision) == ({f"d{acknowledged}"}, {"vectors"})
            acknowledged += 1
            if acknowledged == 5:
                await stream.done_writing()
            else:
                await stream.write(named(acknowledged))
        assert acknowledged == 5
        deleted = await knowledge.DeleteDocuments(
            knowledge_pb.DeleteDocumentsRequest(collection="docs", document_ids=["d3"])
        )
        assert await ask(3, deleted.revision) == (set(), {"vectors"})
        rebuilt = await knowledge.RebuildIndexes(knowledge_pb.RebuildIndexesRequest(collection="docs"))
        assert rebuilt.revision == deleted.revision
        assert await ask(4, rebuilt.revision) == ({"d4"}, {"vectors"})
    opensearch.request("DELETE", f"/{prefix}-*")

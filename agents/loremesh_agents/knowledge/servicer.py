"""The knowledge agent's gRPC face."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
from loremesh.v1 import knowledge_service_pb2 as pb
from loremesh.v1 import knowledge_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import InvalidRequest
from loremesh_agents.knowledge import convert
from loremesh_agents.knowledge.ingestion import Submission
from loremesh_agents.knowledge.service import KnowledgeService
from loremesh_agents.runtime import wire
from loremesh_agents.runtime.context import current

_DEFAULT_PASSAGES = 100
_DEFAULT_PAGE = 100
_MOST_BYTES = 900_000


class KnowledgeServicer(pb_grpc.KnowledgeServiceServicer):
    """Serves `loremesh.v1.KnowledgeService`."""

    def __init__(self, service: KnowledgeService) -> None:
        self._service = service

    async def Ingest(
        self,
        request_iterator: AsyncIterator[pb.IngestRequest],
        context: grpc.aio.ServicerContext[pb.IngestRequest, pb.IngestResponse],
    ) -> AsyncGenerator[pb.IngestResponse]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("start"):
            raise InvalidRequest.of("start", "the first message must be a start")
        ingested = self._service.ingest(
            first.start.collection,
            _submissions(request_iterator),
            options=convert.options_from_proto(first.start.options),
        )
        async with aclosing(ingested) as events:
            async for event in events:
                yield convert.ingest_event_to_proto(event)

    async def DeleteDocuments(
        self,
        request: pb.DeleteDocumentsRequest,
        context: grpc.aio.ServicerContext[pb.DeleteDocumentsRequest, pb.DeleteDocumentsResponse],
    ) -> pb.DeleteDocumentsResponse:
        revision, deleted = await self._service.delete_documents(
            request.collection, request.document_ids, deadline=self._deadline()
        )
        return pb.DeleteDocumentsResponse(revision=wire.revision_to_proto(revision), deleted_count=deleted)

    async def DeleteCollection(
        self,
        request: pb.DeleteCollectionRequest,
        context: grpc.aio.ServicerContext[pb.DeleteCollectionRequest, pb.DeleteCollectionResponse],
    ) -> pb.DeleteCollectionResponse:
        deleted = await self._service.delete_collection(request.collection, deadline=self._deadline())
        return pb.DeleteCollectionResponse(deleted=deleted)

    async def RebuildIndexes(
        self,
        request: pb.RebuildIndexesRequest,
        context: grpc.aio.ServicerContext[pb.RebuildIndexesRequest, pb.RebuildIndexesResponse],
    ) -> pb.RebuildIndexesResponse:
        revision = await self._service.rebuild(request.collection, deadline=self._deadline())
        return pb.RebuildIndexesResponse(revision=wire.revision_to_proto(revision))

    async def Reembed(
        self,
        request: pb.ReembedRequest,
        context: grpc.aio.ServicerContext[pb.ReembedRequest, pb.ReembedResponse],
    ) -> pb.ReembedResponse:
        found = await self._service.reembed(request.collection, request.model, deadline=self._deadline())
        return pb.ReembedResponse(collection=convert.collection_to_proto(found))

    async def FinishReembedding(
        self,
        request: pb.FinishReembeddingRequest,
        context: grpc.aio.ServicerContext[pb.FinishReembeddingRequest, pb.FinishReembeddingResponse],
    ) -> pb.FinishReembeddingResponse:
        found = await self._service.finish_reembedding(request.collection, deadline=self._deadline())
        return pb.FinishReembeddingResponse(collection=convert.collection_to_proto(found))

    async def GetDocument(
        self,
        request: pb.GetDocumentRequest,
        context: grpc.aio.ServicerContext[pb.GetDocumentRequest, pb.GetDocumentResponse],
    ) -> pb.GetDocumentResponse:
        revision, summary, passages = await self._service.document(
            request.collection,
            request.document_id,
            principal=current().principal,
            first_passage=request.first_passage,
            passage_limit=request.passage_limit or _DEFAULT_PASSAGES,
            deadline=self._deadline(),
        )
        response = pb.GetDocumentResponse(
            document=convert.summary_to_proto(summary), revision=wire.revision_to_proto(revision)
        )
        size = response.ByteSize()
        for passage in passages:
            message = wire.passage_to_proto(passage)
            size += message.ByteSize()
            if size > _MOST_BYTES and response.passages:
                break
            response.passages.append(message)
        return response

    async def GetCollection(
        self,
        request: pb.GetCollectionRequest,
        context: grpc.aio.ServicerContext[pb.GetCollectionRequest, pb.GetCollectionResponse],
    ) -> pb.GetCollectionResponse:
        collection = await self._service.collection(request.collection, deadline=self._deadline())
        return pb.GetCollectionResponse(collection=convert.collection_to_proto(collection))

    async def ListCollections(
        self,
        request: pb.ListCollectionsRequest,
        context: grpc.aio.ServicerContext[pb.ListCollectionsRequest, pb.ListCollectionsResponse],
    ) -> pb.ListCollectionsResponse:
        size = request.page_size or _DEFAULT_PAGE
        found = await self._service.collections(after=request.page_token, limit=size + 1, deadline=self._deadline())
        return pb.ListCollectionsResponse(
            collections=[convert.collection_to_proto(collection) for collection in found[:size]],
            next_page_token=found[size - 1].name if len(found) > size else "",
        )

    async def WatchRevisions(
        self,
        request: pb.WatchRevisionsRequest,
        context: grpc.aio.ServicerContext[pb.WatchRevisionsRequest, pb.WatchRevisionsResponse],
    ) -> AsyncGenerator[pb.WatchRevisionsResponse]:
        watched = self._service.watch(request.collection, after_revision=request.after_revision)
        async with aclosing(watched) as revisions:
            async for revision in revisions:
                yield pb.WatchRevisionsResponse(revision=wire.revision_to_proto(revision))

    async def ReadChanges(
        self,
        request: pb.ReadChangesRequest,
        context: grpc.aio.ServicerContext[pb.ReadChangesRequest, pb.ReadChangesResponse],
    ) -> AsyncGenerator[pb.ReadChangesResponse]:
        read = self._service.changes(
            request.collection,
            collection_uid=request.collection_uid,
            after_revision=request.after_revision,
            follow=request.follow,
            principal=current().principal,
        )
        async with aclosing(read) as changes:
            async for reached, change in changes:
                yield convert.change_to_proto(reached, change)

    def _deadline(self) -> Deadline:
        return current().deadline or Deadline.after(self._service.settings.default_budget)


async def _submissions(requests: AsyncIterator[pb.IngestRequest]) -> AsyncGenerator[Submission]:
    async for request in requests:
        yield convert.submission_from_proto(request)

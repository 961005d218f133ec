"""The knowledge agent's messages between `loremesh.v1` and the domain."""

from loremesh.v1 import collection_pb2, document_pb2
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.document import (
    Change,
    Collection,
    CollectionOptions,
    Document,
    DocumentSummary,
    Link,
    Outcome,
    Reembedding,
    ReembeddingPhase,
    Section,
)
from loremesh_agents.domain.errors import FieldViolation, InvalidRequest
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.knowledge.ingestion import File, FilePart, Progress, Result, Submission
from loremesh_agents.ports.parsing import Upload
from loremesh_agents.runtime import wire
from loremesh_agents.runtime.errors import to_status

_OUTCOMES = {
    Outcome.CREATED: pb.DOCUMENT_OUTCOME_CREATED,
    Outcome.UPDATED: pb.DOCUMENT_OUTCOME_UPDATED,
    Outcome.UNCHANGED: pb.DOCUMENT_OUTCOME_UNCHANGED,
}
_PHASES = {
    ReembeddingPhase.MAKING: collection_pb2.REEMBEDDING_PHASE_MAKING,
    ReembeddingPhase.KEPT: collection_pb2.REEMBEDDING_PHASE_KEPT,
    ReembeddingPhase.LAPSED: collection_pb2.REEMBEDDING_PHASE_LAPSED,
    ReembeddingPhase.DROPPING: collection_pb2.REEMBEDDING_PHASE_DROPPING,
}
_JSON_LINES = ("application/x-ndjson", "application/jsonl")


def options_from_proto(message: collection_pb2.CollectionOptions) -> CollectionOptions:
    """Options of a collection."""
    return CollectionOptions(message.reader_statistics if message.HasField("reader_statistics") else None)


def submission_from_proto(message: pb.IngestRequest) -> Submission:
    """A document, a file, or a part of one.

    Raises:
        InvalidRequest: A document has no id and brings none.
    """
    match message.WhichOneof("message"):
        case "blob_part":
            return FilePart(message.blob_part.data)
        case "document":
            return _document_from_proto(message.document)
        case _:
            raise InvalidRequest((FieldViolation("start", "only the first message may be a start"),))


def _document_from_proto(message: document_pb2.Document) -> Document | File:
    version = message.source_version if message.HasField("source_version") else None
    blob = message.blob
    if not message.document_id and blob.media_type.partition(";")[0] not in _JSON_LINES:
        raise InvalidRequest.of("document.document_id", "it may be empty only for a blob of JSON lines")
    if message.HasField("blob"):
        upload = Upload(
            document_id=message.document_id,
            media_type=blob.media_type,
            data=blob.data,
            title=message.title,
            aliases=tuple(message.aliases),
            uri=message.uri,
            source_version=version,
            metadata=dict(message.metadata),
            readers=frozenset(message.readers),
        )
        return File(upload, blob.total_size)
    return Document(
        document_id=message.document_id,
        title=message.title or message.uri.rstrip("/").rpartition("/")[2],
        sections=tuple(
            Section(
                section.text,
                tuple(section.headings),
                tuple(Link(link.target, link.anchor) for link in section.links),
            )
            for section in message.text.sections
        ),
        aliases=tuple(message.aliases),
        uri=message.uri,
        source_version=version,
        metadata=dict(message.metadata),
        readers=frozenset(message.readers),
    )


def ingest_event_to_proto(event: Result | Progress | Completion) -> pb.IngestResponse:
    """An event of an ingestion."""
    match event:
        case Result():
            return pb.IngestResponse(
                result=pb.DocumentResult(
                    document_id=event.document_id,
                    outcome=pb.DOCUMENT_OUTCOME_FAILED if event.outcome is None else _OUTCOMES[event.outcome],
                    revision=None if event.revision is None else wire.revision_to_proto(event.revision),
                    passage_count=event.passage_count,
                    error=None if event.error is None else to_status(event.error),
                    position=event.position,
                )
            )
        case Progress():
            return pb.IngestResponse(
                progress=pb.IngestProgress(
                    received_count=event.received,
                    finished_count=event.finished,
                    failed_count=event.failed,
                    passage_count=event.passages,
                )
            )
        case Completion():
            return pb.IngestResponse(completion=wire.completion_to_proto(event))


def summary_to_proto(summary: DocumentSummary) -> document_pb2.DocumentSummary:
    """What is known of a document."""
    return document_pb2.DocumentSummary(
        document_id=summary.document_id,
        title=summary.title,
        uri=summary.uri,
        source_version=summary.source_version,
        metadata=summary.metadata,
        readers=sorted(summary.readers),
        content_hash=summary.content_hash,
        passage_count=summary.passage_count,
        revision=summary.revision,
        update_time=wire.timestamp_to_proto(summary.update_time),
        media_type=summary.media_type,
    )


def collection_to_proto(collection: Collection) -> collection_pb2.Collection:
    """A collection's state and counts."""
    revision = CollectionRevision(collection.name, collection.collection_uid, collection.revision)
    return collection_pb2.Collection(
        name=collection.name,
        revision=wire.revision_to_proto(revision),
        document_count=collection.document_count,
        passage_count=collection.passage_count,
        entity_count=collection.entity_count,
        embedding_model=collection.embedding_model,
        create_time=wire.timestamp_to_proto(collection.create_time),
        update_time=wire.timestamp_to_proto(collection.update_time),
        options=collection_pb2.CollectionOptions(reader_statistics=collection.options.reader_statistics),
        reembedding=None if collection.reembedding is None else _reembedding_to_proto(collection.reembedding),
    )


def _reembedding_to_proto(reembedding: Reembedding) -> collection_pb2.Reembedding:
    return collection_pb2.Reembedding(
        model=reembedding.model, phase=_PHASES[reembedding.phase], passage_count=reembedding.passage_count
    )


def change_to_proto(reached: CollectionRevision, change: Change) -> pb.ReadChangesResponse:
    """A changed document."""
    if change.document is None:
        deleted = document_pb2.DocumentSummary(document_id=change.document_id, revision=change.revision)
        document, kind = deleted, pb.CHANGE_KIND_DELETED
    else:
        document, kind = summary_to_proto(change.document), pb.CHANGE_KIND_WRITTEN
    return pb.ReadChangesResponse(
        kind=kind,
        document=document,
        revision=wire.revision_to_proto(reached),
        change_time=wire.timestamp_to_proto(change.change_time),
    )

"""Keeps the documents."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import ANY_OPTIONS, Change, Collection, CollectionOptions, DocumentSummary, Passage
from loremesh_agents.domain.errors import CollectionNotFound, CollectionRecreated, LoremeshError
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.knowledge.ingestion import Ingestion, Progress, Result, Submission
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.parsing import DocumentParser
from loremesh_agents.ports.vectors import VectorIndex

_log = logging.getLogger(__name__)
_MAINTENANCE_SECONDS = 600.0
_WRITE_SHARE = 0.9
"""Share of the time left that a delete may take: the rest is for the answer that another process was writing all along."""


class KnowledgeService:
    """Keeps the documents; the only writer of the stores.

    Args:
        graph: The truth.
        vectors: A derived index to keep up; None without an encoder.
        parser: Parses files.
        embedder: Encodes passages; None for none.
        settings: Limits.
    """

    def __init__(
        self,
        graph: GraphStore,
        vectors: VectorIndex | None,
        parser: DocumentParser,
        embedder: Embedder | None,
        settings: KnowledgeSettings,
    ) -> None:
        self._graph = graph
        self._vectors = vectors
        self._parser = parser
        self._embedder = embedder
        self._settings = settings
        self._maintenance: dict[str, asyncio.Task[None]] = {}

    @property
    def settings(self) -> KnowledgeSettings:
        """Limits."""
        return self._settings

    async def ingest(
        self, collection: str, submissions: AsyncIterator[Submission], *, options: CollectionOptions = ANY_OPTIONS
    ) -> AsyncGenerator[Result | Progress | Completion]:
        """Stores documents; see `Ingestion.run`."""
        ingestion = Ingestion(collection, self._graph, self._parser, self._embedder, self._settings, options=options)
        try:
            async for event in ingestion.run(submissions):
                yield event
        finally:
            self._maintain(collection)

    async def delete_documents(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> tuple[CollectionRevision, int]:
        """Deletes documents; gives the state in which they are gone, and how many there were."""
        return await self._graph.delete_documents(collection, document_ids, deadline=self._to_write(deadline))

    async def delete_collection(self, collection: str, *, deadline: Deadline) -> bool:
        """Deletes a collection; gives whether it was there."""
        deleted = await self._graph.delete_collection(collection, deadline=self._to_write(deadline))
        if self._vectors is not None:
            await self._vectors.drop(collection, deadline=deadline)
        return deleted

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """Builds the derived indexes again; gives the state that they have reached."""
        if self._vectors is None:
            return await self._graph.revision(collection, deadline=deadline)
        return await self._vectors.rebuild(collection, deadline=deadline)

    async def document(
        self,
        collection: str,
        document_id: str,
        *,
        principal: Principal,
        first_passage: int,
        passage_limit: int,
        deadline: Deadline,
    ) -> tuple[CollectionRevision, DocumentSummary, tuple[Passage, ...]]:
        """A document with some of its passages."""
        return await self._graph.document(
            collection,
            document_id,
            principal=principal,
            first_passage=first_passage,
            passage_limit=passage_limit,
            deadline=deadline,
        )

    async def collection(self, name: str, *, deadline: Deadline) -> Collection:
        """A collection's state and counts."""
        return await self._graph.collection(name, deadline=deadline)

    async def collections(self, *, after: str, limit: int, deadline: Deadline) -> tuple[Collection, ...]:
        """Collections in the order of their names."""
        return await self._graph.collections(after=after, limit=limit, deadline=deadline)

    async def watch(self, collection: str, *, after_revision: int) -> AsyncGenerator[CollectionRevision]:
        """The collection's revision whenever it has risen."""
        async for revision in self._graph.watch(collection, after_revision=after_revision):
            yield revision

    async def changes(
        self, collection: str, *, collection_uid: str, after_revision: int, follow: bool, principal: Principal
    ) -> AsyncGenerator[tuple[CollectionRevision, Change]]:
        """The changed documents that the principal may read, each with the state that a reader has reached with it.

        Raises:
            CollectionRecreated: The collection is not the one that `after_revision` is of.
        """
        uid = collection_uid
        while True:
            reached, changes = await self._page(collection, after_revision)
            if uid and reached.collection_uid != uid:
                raise CollectionRecreated(collection, uid, reached.collection_uid)
            uid = reached.collection_uid
            for change in changes:
                summary = change.document
                if summary is None or not summary.readers or summary.readers & principal.groups:
                    # The revision before: the other documents of this one may still be to come.
                    last = change is changes[-1]
                    at = change.revision if last else change.revision - 1
                    yield CollectionRevision(collection, uid, max(at, after_revision)), change
            if reached.revision > after_revision:
                after_revision = reached.revision
                continue
            if not follow:
                return
            async for risen in self._graph.watch(collection, after_revision=after_revision):
                if risen.collection_uid != uid:
                    raise CollectionRecreated(collection, uid, risen.collection_uid)
                break

    async def _page(self, collection: str, after_revision: int) -> tuple[CollectionRevision, tuple[Change, ...]]:
        return await self._graph.changes(
            collection,
            after_revision=after_revision,
            limit=self._settings.changes_page,
            deadline=Deadline.after(self._settings.default_budget),
        )

    def _to_write(self, deadline: Deadline) -> Deadline:
        return deadline.fraction(_WRITE_SHARE).shrink(cap=self._settings.write_budget)

    def _maintain(self, collection: str) -> None:
        """Brings the stored index up to date in the background; one such task a collection."""
        running = self._maintenance.get(collection)
        if self._vectors is None or (running is not None and not running.done()):
            return
        self._maintenance[collection] = asyncio.create_task(self._maintain_now(self._vectors, collection))

    async def _maintain_now(self, vectors: VectorIndex, collection: str) -> None:
        try:
            await vectors.maintain(collection, deadline=Deadline.after(_MAINTENANCE_SECONDS))
        except CollectionNotFound:
            # Nothing was stored, or it has been deleted meanwhile.
            return
        except LoremeshError as error:
            _log.warning("the vector index of %s is not brought up to date: %s", collection, error)

    async def close(self) -> None:
        """Ends what runs in the background."""
        tasks = list(self._maintenance.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Keeps the documents."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import ANY_OPTIONS, Change, Collection, CollectionOptions, DocumentSummary, Passage
from loremesh_agents.domain.errors import CollectionRecreated
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.knowledge.analysis import Analysis
from loremesh_agents.knowledge.encoders import Encoders
from loremesh_agents.knowledge.ingestion import Ingestion, Progress, Result, Submission
from loremesh_agents.knowledge.reembedding import Reembedding
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.knowledge.upkeep import Sweep, Upkeep
from loremesh_agents.ports.derived import DerivedIndex
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.parsing import DocumentParser
from loremesh_agents.ports.vector_sets import VectorSets

_log = logging.getLogger(__name__)
_WRITE_SHARE = 0.9
"""Share of the time left that a delete may take: the rest is for the answer that another process was writing all along."""


class KnowledgeService:
    """Keeps the documents; the only writer of the stores.

    Args:
        graph: The truth.
        indexes: The derived indexes to keep up, by the names that logs give them.
        parser: Parses files.
        embedder: Encodes passages of new collections; None for none.
        settings: Limits.
        previous_embedder: Encodes passages of collections that are not embedded anew yet; None for none.
        sweep: Removes what has ended in a store that does not do so by itself; None for any other.
        vector_sets: Where the store keeps vectors of two models of a collection; None where it cannot.
    """

    def __init__(
        self,
        graph: GraphStore,
        indexes: Mapping[str, DerivedIndex],
        parser: DocumentParser,
        embedder: Embedder | None,
        settings: KnowledgeSettings,
        *,
        previous_embedder: Embedder | None = None,
        sweep: Sweep | None = None,
        vector_sets: VectorSets | None = None,
    ) -> None:
        self._graph = graph
        self._indexes = indexes
        self._parser = parser
        self._encoders = Encoders(embedder, previous_embedder)
        self._settings = settings
        self._analysis = Analysis()
        self._upkeep = Upkeep(indexes, sweep)
        self._reembedding = Reembedding(
            graph,
            vector_sets,
            indexes.get("vector"),
            self._encoders,
            switched=self._upkeep.written,
            settings=settings,
        )

    @property
    def settings(self) -> KnowledgeSettings:
        """Limits."""
        return self._settings

    def start(self) -> None:
        """Begins in the background to bring the derived indexes up to date, and to go on with what embeds collections anew."""
        self._upkeep.start()
        self._reembedding.start()

    async def ingest(
        self, collection: str, submissions: AsyncIterator[Submission], *, options: CollectionOptions = ANY_OPTIONS
    ) -> AsyncGenerator[Result | Progress | Completion]:
        """Stores documents; see `Ingestion.run`."""
        ingestion = Ingestion(
            collection,
            graph=self._graph,
            parser=self._parser,
            encoders=self._encoders,
            analysis=self._analysis,
            settings=self._settings,
            options=options,
        )
        try:
            async for event in ingestion.run(submissions):
                if isinstance(event, Progress):
                    self._upkeep.written(collection)
                yield event
        finally:
            # Also where the caller has left between a commit and its report.
            self._upkeep.written(collection)

    async def delete_documents(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> tuple[CollectionRevision, int]:
        """Deletes documents; gives the state in which they are gone, and how many there were."""
        try:
            return await self._graph.delete_documents(collection, document_ids, deadline=self._to_write(deadline))
        finally:
            # Also where it is not known whether it was done.
            self._upkeep.written(collection)

    async def delete_collection(self, collection: str, *, deadline: Deadline) -> bool:
        """Deletes a collection; gives whether it was there."""
        deleted = await self._graph.delete_collection(collection, deadline=self._to_write(deadline))
        # What fails here is found again at the next start, and is in nobody's way until then.
        dropped = [index.drop(collection, deadline=deadline) for index in self._indexes.values()]
        for problem in await asyncio.gather(*dropped, return_exceptions=True):
            if isinstance(problem, Exception):
                _log.warning("an index of the deleted collection %s is not removed yet: %s", collection, problem)
        return deleted

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """Builds the derived indexes again; gives the state that all of them have reached."""
        current = await self._graph.revision(collection, deadline=deadline)
        reached = [await index.rebuild(collection, deadline=deadline) for index in self._indexes.values()]
        # Where an index of another format was made anew, the other collections have to come back as well.
        self._upkeep.start()
        return min([current, *reached], key=lambda state: state.revision)

    async def reembed(self, collection: str, model: str, *, deadline: Deadline) -> Collection:
        """Begins to embed a collection with another model; see `Reembedding.begin`."""
        return await self._reembedding.begin(collection, model, deadline=self._to_write(deadline))

    async def finish_reembedding(self, collection: str, *, deadline: Deadline) -> Collection:
        """Begins to remove a collection's vectors that do not count; gives it as it is then."""
        return await self._reembedding.finish(collection, deadline=self._to_write(deadline))

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

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self._reembedding.close()
        await self._upkeep.close()
        self._analysis.close()

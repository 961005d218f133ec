"""The graph store: the only truth."""

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Collection as Group
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import (
    ANY_OPTIONS,
    Change,
    Collection,
    CollectionOptions,
    CollectionVectors,
    DocumentSummary,
    DocumentWrite,
    Passage,
    WriteResult,
)
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import EntryPoints, Expansion, PassageFeatures, PassageRef
from loremesh_agents.domain.revision import CollectionRevision, Consistency


@dataclass(frozen=True, slots=True)
class VectorChanges:
    """What a derived vector index must apply to get from one revision to another.

    Attributes:
        collection_uid: The collection that the revisions are of.
        revision: Revision that the index has reached once it has applied this.
        removed: Passages that are gone (or were never seen: no error).
        added: Passages with a vector, in the order of the rows of `vectors`.
        vectors: Shape (len(added), dimension), float32.
        more: Whether the collection has further changes, to be read after `revision`.
    """

    collection_uid: str
    revision: int
    removed: tuple[PassageRef, ...]
    added: tuple[PassageRef, ...]
    vectors: NDArray[np.float32]
    more: bool


@dataclass(frozen=True, slots=True)
class PassageWords:
    """What a text index knows of a passage.

    Attributes:
        ref: Its handle.
        words: The normalised words of its text in order, separated by spaces.
        further_words: Its search terms that are not among these, each once and separated by spaces, in any order.
    """

    ref: PassageRef
    words: str
    further_words: str


@dataclass(frozen=True, slots=True)
class TextChanges:
    """What a derived text index must apply to get from one revision to another.

    Attributes:
        collection_uid: The collection that the revisions are of.
        revision: Revision that the index has reached once it has applied this.
        removed: Passages that are gone (or were never seen: no error).
        added: Passages with their words.
        more: Whether the collection has further changes, to be read after `revision`.
    """

    collection_uid: str
    revision: int
    removed: tuple[PassageRef, ...]
    added: tuple[PassageWords, ...]
    more: bool


class GraphSnapshot(Protocol):
    """One state of some collections, as one principal may see it through one filter.

    Every method is one round trip to the engine; several may be called at once. Passages that the principal may not read, or that the filter leaves out, appear
    nowhere: not as a result, not as a seed, not as a bridge.

    Statistics (of terms and entities, and how many passages link to a target) are those of a whole collection; where it has the option
    `reader_statistics`, those of the documents that the principal may read, so that the others change nothing at all. A filter changes no statistics.
    """

    @property
    def revisions(self) -> tuple[CollectionRevision, ...]:
        """The states that are read, one a collection."""
        ...

    @property
    def embedding_models(self) -> Mapping[str, str]:
        """The models of the vectors, by collection; empty for one without vectors."""
        ...

    @property
    def selective(self) -> bool:
        """Whether some passages may be hidden, from the principal or by the filter."""
        ...

    async def readable(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> tuple[PassageRef, ...]:
        """Those of the passages that are there and readable, in the order given."""
        ...

    async def enter(
        self,
        *,
        terms: Sequence[str] = (),
        entities: Group[str] = (),
        passages: Sequence[tuple[str, str]] = (),
        title_limit: int = 0,
        deadline: Deadline,
    ) -> EntryPoints:
        """Where a question enters the graph.

        Args:
            terms: The question's, for their statistics.
            entities: Keys of entities that it may name.
            passages: Passages that it is about, as (collection, passage id).
            title_limit: Most title edges to follow from an entity.
            deadline: When the answer is of no more use.
        """
        ...

    async def features(self, refs: Group[PassageRef], terms: Sequence[str], *, deadline: Deadline) -> PassageFeatures:
        """Features of those of the passages that are there and readable."""
        ...

    async def expand(
        self,
        seeds: Sequence[PassageRef],
        terms: Sequence[str],
        *,
        entities: Group[str],
        known: Group[PassageRef],
        mention_limit: int,
        title_limit: int,
        deadline: Deadline,
    ) -> Expansion:
        """The neighbourhood of the seeds.

        Args:
            seeds: Where to start.
            terms: Question terms, for the features of what is reached.
            entities: Keys of entities to start from besides.
            known: Passages whose features the caller has.
            mention_limit: Mention edges are followed from entities with at most so many mentions.
            title_limit: Most title edges to follow from an entity.
            deadline: When the answer is of no more use.
        """
        ...

    async def fetch(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> Mapping[PassageRef, Passage]:
        """The passages themselves."""
        ...


class GraphStore(Protocol):
    """Documents, passages, entities and edges of collections.

    A document is written with its passages, entities and edges in one transaction together with the next revision of its collection; a
    reader, in this process or another, sees all of it or nothing. What a method has returned survives any crash.

    Errors raised: `CollectionNotFound`, `WriteConflict`, `StorageFull`, `BackendUnavailable`, `BudgetExhausted` when the deadline passes.
    """

    async def write(
        self,
        collection: str,
        documents: Sequence[DocumentWrite],
        *,
        embedding_model: str,
        options: CollectionOptions = ANY_OPTIONS,
        deadline: Deadline,
    ) -> tuple[CollectionRevision, tuple[WriteResult, ...]]:
        """Writes documents in one transaction; creates the collection where it does not exist.

        A document whose content hash is stored already (with the same or a newer source version stored) is UNCHANGED; one whose source version is below the stored or deleted one is STALE and not written.
        One that would bring a set of readers too many into a collection with `reader_statistics` is REFUSED and not written.
        All that are written share one new revision; where none is, the revision stays.

        Args:
            collection: Name of the collection.
            documents: Documents; an id that comes twice counts as two writes in order.
            embedding_model: Model of the passages' `vector`; empty where they have none. `further_vectors` are taken as far as the collection has use
                for them.
            options: What a new collection gets, and one that is there must have.
            deadline: When to give up; nothing is written then.

        Returns:
            The state of the collection, and a result for each document.

        Raises:
            CollectionOptionsMismatch: The collection was created with other options.
            EmbeddingMismatch: The collection has vectors of another model that are not given, or none while these have some.
        """
        ...

    async def delete_documents(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> tuple[CollectionRevision, int]:
        """Deletes documents in one revision; gives the state and how many there were."""
        ...

    async def delete_collection(self, collection: str, *, deadline: Deadline) -> bool:
        """Deletes a collection; gives whether it was there."""
        ...

    async def collections(self, *, after: str, limit: int, deadline: Deadline) -> tuple[Collection, ...]:
        """Collections in the order of their names, those after a name."""
        ...

    async def collection(self, name: str, *, deadline: Deadline) -> Collection:
        """A collection's state and counts."""
        ...

    async def vectors(self, collection: str, *, deadline: Deadline) -> CollectionVectors:
        """What vectors a collection has; asked with every batch that is written."""
        ...

    async def revision(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """A collection's newest revision; as cheap as can be."""
        ...

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
        """A document that the principal may read, with some of its passages.

        Raises:
            DocumentNotFound: It is not there, or the principal may not read it.
        """
        ...

    async def content_hashes(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> Mapping[str, tuple[str, int | None]]:
        """Content hash and source version of those documents that are there; empty where the collection is not.

        It spares the encoder the work for what is unchanged; `write` decides again.
        """
        ...

    async def changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> tuple[CollectionRevision, tuple[Change, ...]]:
        """The newest change of each document that changed after a revision, in the order of revisions.

        At most about `limit`, and never a part of a revision. The state returned is the one that the changes lead to; where it is the collection's
        newest, there are no more.
        """
        ...

    async def vector_changes(
        self, collection: str, *, model: str | None = None, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        """What a vector index that is at a revision must apply next; in whole revisions, about `limit` passages.

        Args:
            collection: Name of the collection.
            model: Of which vectors; None for those that count now.
            after_revision: Where the index is.
            limit: Passages.
            deadline: When the answer is of no more use.

        Raises:
            BackendUnavailable: The collection has no vectors of the model, or not of every passage.
        """
        ...

    async def text_changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> TextChanges:
        """What a text index that is at a revision must apply next; in whole revisions, about `limit` passages."""
        ...

    def snapshot(
        self,
        collections: Sequence[str],
        *,
        principal: Principal,
        filter: MetadataFilter,
        consistency: Consistency,
        deadline: Deadline,
    ) -> AbstractAsyncContextManager[GraphSnapshot]:
        """One state of the collections (all that there are, if none is named).

        Raises:
            CollectionNotFound: One of them is not there.
            RevisionNotReached: The asked revision is not visible at the deadline.
            CollectionRecreated: The asked revision is of an earlier collection of the name.
        """
        ...

    def watch(self, collection: str, *, after_revision: int) -> AsyncIterator[CollectionRevision]:
        """The collection's revision at once where it is higher, and whenever it has risen, from any process."""
        ...

    async def check(self, *, deadline: Deadline) -> None:
        """Returns if the store can be read.

        Raises:
            BackendUnavailable: It cannot.
        """
        ...

    async def close(self) -> None:
        """Frees what the store holds."""
        ...

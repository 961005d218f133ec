"""One state of a collection. It is never changed: a write makes another one.

A state holds documents and nothing else; entities, edges and statistics follow from these, so that they cannot contradict them.
"""

from collections import Counter
from collections.abc import Collection as Group
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from loremesh_agents.domain.document import (
    MOST_READER_SETS,
    Change,
    Collection,
    CollectionOptions,
    Document,
    DocumentSummary,
    DocumentWrite,
    Passage,
    PassageWrite,
    Title,
)
from loremesh_agents.domain.mentions import mentioned
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage with its handle and its document."""

    ref: PassageRef
    collection: str
    document: Document
    content: PassageWrite

    @property
    def passage_id(self) -> str:
        """Its name in the collection."""
        return f"{self.document.document_id}#{self.content.passage.ordinal}"

    @property
    def shown(self) -> Passage:
        """The passage as evidence shows it."""
        passage, document = self.content.passage, self.document
        return Passage(
            collection=self.collection,
            passage_id=self.passage_id,
            document_id=document.document_id,
            title=document.shown_title,
            headings=passage.headings,
            text=passage.text,
            uri=document.uri,
            ordinal=passage.ordinal,
            start_byte=passage.start_byte,
            end_byte=passage.end_byte,
            metadata=document.metadata,
        )


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document with its passages, in order."""

    document: Document
    passages: tuple[StoredPassage, ...]
    revision: int
    time: datetime

    @property
    def summary(self) -> DocumentSummary:
        """What the store knows of it."""
        document = self.document
        return DocumentSummary(
            document_id=document.document_id,
            title=document.shown_title,
            uri=document.uri,
            source_version=document.source_version,
            metadata=document.metadata,
            readers=document.readers,
            content_hash=document.content_hash,
            media_type=document.media_type,
            passage_count=len(self.passages),
            revision=self.revision,
            update_time=self.time,
        )


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a deleted document."""

    revision: int
    source_version: int | None
    time: datetime


@dataclass(frozen=True, slots=True)
class Graph:
    """Who bears a name and who mentions it, among some passages of a collection.

    Attributes:
        titles: By key: the passages that bear the name, each with its title of the greatest weight.
        mentions: By key: the passages that mention the entity.
    """

    titles: Mapping[str, Mapping[PassageRef, Title]]
    mentions: Mapping[str, Group[PassageRef]]

    @classmethod
    def of(cls, passages: Iterable[StoredPassage]) -> "Graph":
        """The graph that these passages alone make: none of its edges is owed to another passage."""
        group = tuple(passages)
        titles: dict[str, dict[PassageRef, Title]] = {}
        for passage in group:
            for title in sorted(passage.content.passage.titles, key=lambda title: title.weight):
                titles.setdefault(title.key, {})[passage.ref] = title
        mentions: dict[str, set[PassageRef]] = {}
        for passage in group:
            for key in mentioned(passage.content.spans, titles):
                mentions.setdefault(key, set()).add(passage.ref)
        return cls(titles, mentions)


@dataclass(frozen=True)
class Statistics:
    """What is counted of some passages of a collection.

    Attributes:
        passages: Which ones.
    """

    passages: Mapping[PassageRef, StoredPassage]

    @cached_property
    def graph(self) -> Graph:
        """Their graph."""
        return Graph.of(self.passages.values())

    @cached_property
    def document_frequencies(self) -> Counter[str]:
        """By term: the passages that contain it."""
        return Counter(term for passage in self.passages.values() for term in passage.content.term_frequencies)

    @property
    def term_total(self) -> int:
        """The lengths of all these passages together."""
        return sum(passage.content.length for passage in self.passages.values())


@dataclass(frozen=True)
class CollectionState:
    """A state of a collection.

    Attributes:
        name: Its name.
        uid: Made when it was created.
        create_time: When that was.
        update_time: When this state was written.
        options: With which it was created, each of them given.
        revision: Number of writes that the state includes.
        embedding_model: Model of its vectors; empty where there are none.
        documents: By id.
        tombstones: Of those that were deleted, by id.
        removed: Passages that are gone, each with the revision at which it went.
    """

    name: str
    uid: str
    create_time: datetime
    update_time: datetime
    options: CollectionOptions
    revision: int = 0
    embedding_model: str = ""
    documents: Mapping[str, StoredDocument] = field(default_factory=dict[str, StoredDocument])
    tombstones: Mapping[str, Tombstone] = field(default_factory=dict[str, Tombstone])
    removed: tuple[tuple[int, PassageRef], ...] = ()

    @property
    def reached(self) -> CollectionRevision:
        """The state's name for callers."""
        return CollectionRevision(self.name, self.uid, self.revision)

    @cached_property
    def passages(self) -> Mapping[PassageRef, StoredPassage]:
        """All passages by handle, in ascending order."""
        found = {passage.ref: passage for document in self.documents.values() for passage in document.passages}
        return dict(sorted(found.items()))

    @cached_property
    def statistics(self) -> Statistics:
        """What is counted of all passages."""
        return Statistics(self.passages)

    @property
    def counted(self) -> Collection:
        """The state with its counts."""
        return Collection(
            name=self.name,
            collection_uid=self.uid,
            revision=self.revision,
            document_count=len(self.documents),
            passage_count=len(self.passages),
            entity_count=len(self.statistics.graph.titles.keys() | self.statistics.graph.mentions.keys()),
            embedding_model=self.embedding_model,
            create_time=self.create_time,
            update_time=self.update_time,
            options=self.options,
        )

    def has_room_for(self, document: Document) -> bool:
        """Whether the document may come with its set of readers, in place of the one of its id."""
        if not self.options.reader_statistics:
            return True
        others = [stored.document for name, stored in self.documents.items() if name != document.document_id]
        return len({other.readers for other in (*others, document) if other.readers}) <= MOST_READER_SETS

    @property
    def changes(self) -> list[Change]:
        """The newest change of each document, in the order of revisions."""
        written = [
            Change(document_id, stored.revision, stored.time, stored.summary)
            for document_id, stored in self.documents.items()
        ]
        deleted = [
            Change(document_id, tombstone.revision, tombstone.time, None)
            for document_id, tombstone in self.tombstones.items()
        ]
        return sorted([*written, *deleted], key=lambda change: (change.revision, change.document_id))

    def with_document(
        self, write: DocumentWrite, refs: Sequence[PassageRef], *, revision: int, time: datetime
    ) -> "CollectionState":
        """The state after a document is written, in place of the one of its id."""
        document = write.document
        passages = tuple(
            StoredPassage(ref, self.name, document, content) for ref, content in zip(refs, write.passages, strict=True)
        )
        return replace(
            self,
            revision=revision,
            update_time=time,
            documents={**self.documents, document.document_id: StoredDocument(document, passages, revision, time)},
            tombstones={name: found for name, found in self.tombstones.items() if name != document.document_id},
            removed=(*self.removed, *self._gone(document.document_id, revision)),
        )

    def with_source_version(self, document_id: str, source_version: int) -> "CollectionState":
        """The state in which a document has another source version: not a change that a reader can see."""
        stored = self.documents[document_id]
        document = replace(stored.document, source_version=source_version)
        return replace(self, documents={**self.documents, document_id: replace(stored, document=document)})

    def without(self, document_id: str, *, revision: int, time: datetime) -> "CollectionState":
        """The state after a document is deleted."""
        tombstone = Tombstone(revision, self.documents[document_id].document.source_version, time)
        return replace(
            self,
            revision=revision,
            update_time=time,
            documents={name: found for name, found in self.documents.items() if name != document_id},
            tombstones={**self.tombstones, document_id: tombstone},
            removed=(*self.removed, *self._gone(document_id, revision)),
        )

    def _gone(self, document_id: str, revision: int) -> list[tuple[int, PassageRef]]:
        stored = self.documents.get(document_id)
        return [(revision, passage.ref) for passage in stored.passages] if stored is not None else []

"""What is said of collections, documents, changes and versions, as the text that vertices hold."""

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import orjson

from loremesh_agents.domain.document import (
    Collection,
    CollectionOptions,
    CollectionVectors,
    DocumentSummary,
    DocumentWrite,
    Reembedding,
    ReembeddingPhase,
)
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.revision import CollectionRevision

_MOST_ANCHORS = 500


def encoded(content: object) -> str:
    """As JSON, without spaces."""
    return orjson.dumps(content).decode()


def _given(content: Mapping[str, object], **defaults: object) -> dict[str, object]:
    """Content without what is as a build takes it that knows nothing of it: such a build may be running still."""
    return {name: value for name, value in content.items() if name not in defaults or value != defaults[name]}


@dataclass(frozen=True, slots=True)
class OtherVectors:
    """Vectors of a collection that do not count.

    Attributes:
        model: Their model.
        number: Of their set.
        phase: What becomes of them, as the value of a `ReembeddingPhase`; never DROPPING, for a set goes at once.
        count: Passages that are there and have one.
    """

    model: str
    number: int
    phase: str
    count: int


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection at a version; times are seconds since 1970."""

    uid: str
    name: str
    create_time: float
    update_time: float
    revision: int = 0
    embedding_model: str = ""
    documents: int = 0
    restricted: int = 0
    """Of the documents, those that not everybody may read."""
    passages: int = 0
    entities: int = 0
    terms: int = 0
    """Lengths of the passages together."""
    vector_set: int = 0
    """Number of the set of vectors that count, which are of `embedding_model`."""
    newest_set: int = 0
    """The highest number that a set has had: none has the same later."""
    other: OtherVectors | None = None

    @classmethod
    def of(cls, content: dict[str, Any]) -> "CollectionState":
        """From what `content` gave."""
        other = content.get("other")
        content["other"] = OtherVectors(**other) if other is not None else None
        return cls(**content)

    @classmethod
    def decoded(cls, text: str) -> "CollectionState":
        """From text."""
        return cls.of(orjson.loads(text))

    @property
    def content(self) -> dict[str, object]:
        """What is stored of it."""
        content = {name: getattr(self, name) for name in self.__slots__}
        return _given(content, vector_set=0, newest_set=0, other=None)

    def encoded(self) -> str:
        """As text."""
        return encoded(self.content)

    @property
    def vertex_sets(self) -> tuple[int, ...]:
        """Numbers of the sets of which there may be vertices of vectors, but for those that it has let go."""
        if not self.newest_set:
            return ()
        return (self.vector_set, self.other.number) if self.other is not None else (self.vector_set,)

    @property
    def reached(self) -> CollectionRevision:
        """The state's name for callers."""
        return CollectionRevision(self.name, self.uid, self.revision)

    @property
    def reembedding(self) -> Reembedding | None:
        """The vectors that do not count, as callers are told of them."""
        other = self.other
        return Reembedding(other.model, ReembeddingPhase(other.phase), other.count) if other is not None else None

    @property
    def vectors(self) -> CollectionVectors:
        """What vectors there are."""
        return CollectionVectors(self.reached, self.embedding_model, self.passages, self.reembedding)

    def set_of(self, model: str | None) -> int | None:
        """The set of a model's vectors if every passage has one, None for the model that counts; None where there is no such set."""
        if model in (None, self.embedding_model):
            return self.vector_set
        return self.other.number if self.other is not None and model in self.vectors.whole else None

    @property
    def counted(self) -> Collection:
        """The state with its counts."""
        return Collection(
            name=self.name,
            collection_uid=self.uid,
            revision=self.revision,
            document_count=self.documents,
            passage_count=self.passages,
            entity_count=self.entities,
            embedding_model=self.embedding_model,
            create_time=moment(self.create_time),
            update_time=moment(self.update_time),
            options=CollectionOptions(reader_statistics=False),
            reembedding=self.reembedding,
        )


def moment(seconds: float) -> datetime:
    """The time so many seconds after 1970."""
    return datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, slots=True)
class DocumentState:
    """A document at a version, or what is left of a deleted one.

    Attributes:
        first_ref: Handle of its first passage; those of the others follow.
        passages: How many it has.
        anchors: By the fragment that addresses a heading: the place of the first passage below it.
        named: Addresses that an edge leads to, those of earlier states among them.
    """

    document_id: str
    deleted: bool
    revision: int
    time: float
    source_version: int | None
    named: tuple[str, ...]
    content_hash: str = ""
    title: str = ""
    uri: str = ""
    media_type: str = ""
    readers: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    first_ref: int = 0
    passages: int = 0
    anchors: Mapping[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def of(
        cls, write: DocumentWrite, *, revision: int, time: float, first_ref: int, before: "DocumentState | None"
    ) -> "DocumentState":
        """The state of a document that is written."""
        document = write.document
        anchors: dict[str, int] = {}
        for place, passage in enumerate(write.passages):
            anchor = _anchor(passage.passage.headings)
            if anchor and len(anchors) < _MOST_ANCHORS:
                anchors.setdefault(anchor, place)
        names = dict.fromkeys([*(before.named if before is not None else ()), document.document_id, document.uri])
        return cls(
            document_id=document.document_id,
            deleted=False,
            revision=revision,
            time=time,
            source_version=document.source_version,
            named=tuple(name for name in names if name),
            content_hash=document.content_hash,
            title=document.shown_title,
            uri=document.uri,
            media_type=document.media_type,
            readers=tuple(sorted(document.readers)),
            metadata=dict(document.metadata),
            first_ref=first_ref,
            passages=len(write.passages),
            anchors=anchors,
        )

    def gone(self, *, revision: int, time: float) -> "DocumentState":
        """What is left of it when it is deleted."""
        return DocumentState(
            self.document_id,
            deleted=True,
            revision=revision,
            time=time,
            source_version=self.source_version,
            named=self.named,
        )

    @classmethod
    def decoded(cls, text: str) -> "DocumentState":
        """From text."""
        content: dict[str, Any] = orjson.loads(text)
        content["named"], content["readers"] = tuple(content["named"]), tuple(content["readers"])
        return cls(**content)

    def encoded(self) -> str:
        """As text."""
        return encoded(self)

    def names(self, address: str) -> bool:
        """Whether links to an address lead to it."""
        return not self.deleted and address in (self.document_id, self.uri)

    def readable(self, principal: Principal, kept: MetadataFilter) -> bool:
        """Whether a principal may read it, and the filter keeps it."""
        allowed = not self.readers or not principal.groups.isdisjoint(self.readers)
        return not self.deleted and allowed and kept.matches(self.metadata)

    @property
    def summary(self) -> DocumentSummary:
        """What callers are told of it."""
        return DocumentSummary(
            document_id=self.document_id,
            title=self.title,
            uri=self.uri,
            source_version=self.source_version,
            metadata=self.metadata,
            readers=frozenset(self.readers),
            content_hash=self.content_hash,
            media_type=self.media_type,
            passage_count=self.passages,
            revision=self.revision,
            update_time=moment(self.time),
        )


def _anchor(headings: Sequence[str]) -> str:
    """The fragment by which pages commonly address the innermost heading."""
    return "-".join(re.findall(r"[\w-]+", headings[-1].lower())) if headings else ""


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """What a revision has changed.

    Attributes:
        documents: Ids of those written and deleted.
        added: Passages, as (first handle, count).
        removed: The same of those that are gone.
        titled: Keys of entities whose name became a title for the first time.
        made: Ids of the vertices of entities and addresses that were not there before.
        checkpoint: Those of `titled` of this revision and all since the last one that has some here, packed; empty for most revisions.
    """

    documents: tuple[str, ...]
    added: tuple[tuple[int, int], ...]
    removed: tuple[tuple[int, int], ...]
    titled: tuple[str, ...]
    made: tuple[str, ...]
    checkpoint: str = ""

    @classmethod
    def decoded(cls, text: str) -> "ChangeRecord":
        """From text."""
        content: dict[str, Any] = orjson.loads(text)
        return cls(
            documents=tuple(content["documents"]),
            added=tuple((first, count) for first, count in content["added"]),
            removed=tuple((first, count) for first, count in content["removed"]),
            titled=tuple(content["titled"]),
            made=tuple(content["made"]),
            checkpoint=content["checkpoint"],
        )

    @property
    def titles_until_here(self) -> list[str]:
        """The keys of its checkpoint."""
        return zlib.decompress(base64.b64decode(self.checkpoint)).decode().split("\n") if self.checkpoint else []

    def encoded(self) -> str:
        """As text."""
        return encoded(self)


def packed(keys: Sequence[str]) -> str:
    """Entity keys for a checkpoint."""
    return base64.b64encode(zlib.compress("\n".join(keys).encode())).decode()


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """What a writer says of itself when it begins.

    Attributes:
        writer: Random; tells whose it is.
        uid: Collection that it writes; empty for none.
        passages: Handles that it may use.
        time: When, for those who read it; nothing depends on it.
        sets: Numbers of the sets of which it may write vectors as vertices.
    """

    writer: str
    uid: str
    passages: int
    time: float
    sets: tuple[int, ...] = ()

    @classmethod
    def decoded(cls, text: str) -> "ClaimRecord":
        """From text."""
        content: dict[str, Any] = orjson.loads(text)
        content["sets"] = tuple(content.get("sets", ()))
        return cls(**content)

    def encoded(self) -> str:
        """As text."""
        return encoded(_given({name: getattr(self, name) for name in self.__slots__}, sets=()))


class Outcome(Enum):
    """What became of a version."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """It does not count, though some of what it wrote may be there, or still come."""
    VOID = "void"
    """It has written nothing."""


@dataclass(frozen=True, slots=True)
class Purge:
    """A deleted collection of which something may be there still, or sets of vectors that a collection has let go.

    Attributes:
        uid: The collection.
        since: Version that deleted it.
        revision: The next revision whose traces are to be removed.
        last: The last one.
        sets: Numbers of the sets whose vectors are to be removed; of a deleted collection those of which there may be vertices.
        vectors_alone: Whether the collection stays but for these.
    """

    uid: str
    since: int
    revision: int
    last: int
    sets: tuple[int, ...] = ()
    vectors_alone: bool = False

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Purge":
        """From what `content` gave."""
        content["sets"] = tuple(content.get("sets", ()))
        return cls(**content)

    @property
    def content(self) -> dict[str, object]:
        """What is stored of it."""
        return _given({name: getattr(self, name) for name in self.__slots__}, sets=(), vectors_alone=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a version, and what follows.

    Attributes:
        outcome: What became of it.
        time: When it was decided, for those who read it; nothing depends on it.
        aborted: All versions that do not count, up to this one.
        swept: Traces of what ended up to this version are removed.
        purging: What is not purged yet of deleted collections, and of sets of vectors.
        collection: The state of the collection that the version changed; None where it changed none.
        deleted: Uid of the collection that it deleted; empty for none.
        revised: Whether the collection has a new revision, and so a record of the change.
        removes: Whether passages have ended.
    """

    outcome: Outcome
    time: float
    aborted: tuple[int, ...]
    swept: int
    purging: tuple[Purge, ...]
    collection: CollectionState | None = None
    deleted: str = ""
    revised: bool = False
    removes: bool = False

    @classmethod
    def decoded(cls, text: str) -> "Decision":
        """From text."""
        content: dict[str, Any] = orjson.loads(text)
        collection = content["collection"]
        return cls(
            outcome=Outcome(content["outcome"]),
            time=content["time"],
            aborted=tuple(content["aborted"]),
            swept=content["swept"],
            purging=tuple(Purge.of(entry) for entry in content["purging"]),
            collection=CollectionState.of(collection) if collection is not None else None,
            deleted=content["deleted"],
            revised=content["revised"],
            removes=content["removes"],
        )

    def encoded(self) -> str:
        """As text."""
        content = {name: getattr(self, name) for name in self.__slots__}
        content["purging"] = [entry.content for entry in self.purging]
        content["collection"] = self.collection.content if self.collection is not None else None
        return encoded(content)

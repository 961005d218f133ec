"""What is said of collections, documents, changes and versions, as the text that vertices hold."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from loremesh_agents.domain.document import Collection, CollectionOptions, DocumentSummary, DocumentWrite
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.revision import CollectionRevision

_MOST_ANCHORS = 500


def encoded(content: object) -> str:
    """As JSON, without spaces."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


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

    @classmethod
    def decoded(cls, text: str) -> "CollectionState":
        """From text."""
        return cls(**json.loads(text))

    def encoded(self) -> str:
        """As text."""
        return encoded(asdict(self))

    @property
    def reached(self) -> CollectionRevision:
        """The state's name for callers."""
        return CollectionRevision(self.name, self.uid, self.revision)

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
        content: dict[str, Any] = json.loads(text)
        content["named"], content["readers"] = tuple(content["named"]), tuple(content["readers"])
        return cls(**content)

    def encoded(self) -> str:
        """As text."""
        return encoded(asdict(self))

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
    """

    documents: tuple[str, ...]
    added: tuple[tuple[int, int], ...]
    removed: tuple[tuple[int, int], ...]
    titled: tuple[str, ...]
    made: tuple[str, ...]

    @classmethod
    def decoded(cls, text: str) -> "ChangeRecord":
        """From text."""
        content: dict[str, Any] = json.loads(text)
        return cls(
            documents=tuple(content["documents"]),
            added=tuple((first, count) for first, count in content["added"]),
            removed=tuple((first, count) for first, count in content["removed"]),
            titled=tuple(content["titled"]),
            made=tuple(content["made"]),
        )

    def encoded(self) -> str:
        """As text."""
        return encoded(asdict(self))


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """What a writer says of itself when it begins.

    Attributes:
        writer: Random; tells whose it is.
        uid: Collection that it writes; empty for none.
        passages: Handles that it may use.
        time: When, for those who read it; nothing depends on it.
    """

    writer: str
    uid: str
    passages: int
    time: float

    @classmethod
    def decoded(cls, text: str) -> "ClaimRecord":
        """From text."""
        return cls(**json.loads(text))

    def encoded(self) -> str:
        """As text."""
        return encoded(asdict(self))


class Outcome(Enum):
    """What became of a version."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """It does not count, though some of what it wrote may be there, or still come."""
    VOID = "void"
    """It has written nothing."""


@dataclass(frozen=True, slots=True)
class Purge:
    """A deleted collection of which something may be there still.

    Attributes:
        uid: The collection.
        since: Version that deleted it.
        revision: The next revision whose traces are to be removed.
        last: The last one.
    """

    uid: str
    since: int
    revision: int
    last: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a version, and what follows.

    Attributes:
        outcome: What became of it.
        time: When it was decided, for those who read it; nothing depends on it.
        aborted: All versions that do not count, up to this one.
        swept: Traces of what ended up to this version are removed.
        purging: Deleted collections that are not purged yet.
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
        content: dict[str, Any] = json.loads(text)
        collection = content["collection"]
        return cls(
            outcome=Outcome(content["outcome"]),
            time=content["time"],
            aborted=tuple(content["aborted"]),
            swept=content["swept"],
            purging=tuple(Purge(**entry) for entry in content["purging"]),
            collection=CollectionState(**collection) if collection is not None else None,
            deleted=content["deleted"],
            revised=content["revised"],
            removes=content["removes"],
        )

    def encoded(self) -> str:
        """As text."""
        return encoded({**asdict(self), "outcome": self.outcome.value})

"""Documents from what a client sends to what the stores keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.errors import CollectionOptionsMismatch
from loremesh_agents.domain.revision import CollectionRevision


@dataclass(frozen=True, slots=True)
class Link:
    """A reference to another document.

    Attributes:
        target: Absolute address, address relative to the document's own, or a document id; a fragment names a heading.
        anchor: The text that bears the link.
    """

    target: str
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A run of text below one heading.

    Attributes:
        text: Paragraphs separated by an empty line.
        headings: From the outermost to that of the section, without the document's title.
        links: Links in the text.
    """

    text: str
    headings: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its structure, ready to be cut into passages.

    Attributes:
        document_id: Unique in its collection.
        title: Empty where it has none.
        sections: In reading order.
        aliases: Other names by which texts refer to what the document describes.
        uri: Where it came from.
        source_version: Rising version in its source; None where there is none.
        metadata: Free key-value pairs.
        readers: Groups that may read it; empty for everybody.
        media_type: Type of the bytes that it was parsed from; empty for structured text.
        content_hash: SHA-256 of all that was sent of it, in hexadecimal digits.
    """

    document_id: str
    title: str
    sections: tuple[Section, ...]
    aliases: tuple[str, ...] = ()
    uri: str = ""
    source_version: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    readers: frozenset[str] = frozenset()
    media_type: str = ""
    content_hash: str = ""

    @property
    def shown_title(self) -> str:
        """What it is called where people read; its id where it has no title, which no text is searched for."""
        return self.title or self.document_id


@dataclass(frozen=True, slots=True)
class Title:
    """A name that a passage bears.

    Attributes:
        name: As it is written.
        key: `lexicon.entity_key(name)`, never empty.
        weight: 1 for the exact title; less for an alias or a weaker source. Above 0, at most 1.
    """

    name: str
    key: str
    weight: float


@dataclass(frozen=True, slots=True)
class PassageText:
    """A part of a document that is retrieved as one, before it is analysed.

    Attributes:
        ordinal: Place among the passages of the document, from 0.
        text: Its text.
        headings: Headings above it, the outermost first.
        start_byte: First byte of it in the document's text (UTF-8).
        end_byte: Byte after the last.
        titles: Names that it bears.
        links: Links in it.
    """

    ordinal: int
    text: str
    headings: tuple[str, ...]
    start_byte: int
    end_byte: int
    titles: tuple[Title, ...]
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class PassageWrite:
    """A passage as a graph store takes it.

    Attributes:
        passage: The passage.
        term_frequencies: How often each search term (`lexicon.search_terms`) occurs in title and text; BM25 needs it.
        length: Search terms in title and text, with repeats.
        spans: Its words and names (`mentions.text_spans` of the text).
        vector: Unit vector of the embedding model, shape (dimension,), float32; None without an encoder.
        further_vectors: The same of other models, by model, for a collection that is embedded with two.
    """

    passage: PassageText
    term_frequencies: Mapping[str, int]
    length: int
    spans: "TextSpans"
    vector: NDArray[np.float32] | None = None
    further_vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])

    @property
    def further_terms(self) -> tuple[str, ...]:
        """Its search terms that are not among its words."""
        return tuple(sorted(set(self.term_frequencies).difference(self.spans.words)))


@dataclass(frozen=True, slots=True)
class TextSpans:
    """The words of a text and the names that its capital letters show.

    Attributes:
        words: Normalised words (`lexicon.entity_key` of each), in order.
        names: Those that a title of that single word may match: written like a name (a capital letter, a digit or underscore inside), and
            not part of a longer capitalised span.
        capitalised: Keys of the capitalised spans, whatever the titles of the collection are.
    """

    words: tuple[str, ...]
    names: frozenset[str]
    capitalised: frozenset[str]


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """A document as a graph store takes it: written whole, in one transaction, or not at all."""

    document: Document
    passages: tuple[PassageWrite, ...]


@dataclass(frozen=True, slots=True)
class DocumentSummary:
    """What a store knows of a document.

    Attributes:
        document_id: Its id.
        title: Its title.
        uri: Where it came from.
        source_version: Version in its source, if given.
        metadata: Its metadata.
        readers: Groups that may read it.
        content_hash: SHA-256 of all that was sent of it.
        media_type: Type of the bytes that it was parsed from.
        passage_count: Its passages.
        revision: Revision at which it was written.
        update_time: When.
    """

    document_id: str
    title: str
    uri: str
    source_version: int | None
    metadata: Mapping[str, str]
    readers: frozenset[str]
    content_hash: str
    media_type: str
    passage_count: int
    revision: int
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Passage:
    """A stored passage as evidence shows it.

    Attributes:
        collection: Name of its collection.
        passage_id: `{document_id}#{ordinal}`, unique in the collection.
        document_id: Its document.
        title: Title of its document.
        headings: Headings above it.
        text: Its text.
        uri: Address of its document.
        ordinal: Place in its document, from 0.
        start_byte: First byte in the document's text.
        end_byte: Byte after the last.
        metadata: Metadata of its document.
    """

    collection: str
    passage_id: str
    document_id: str
    title: str
    headings: tuple[str, ...]
    text: str
    uri: str
    ordinal: int
    start_byte: int
    end_byte: int
    metadata: Mapping[str, str]


MOST_READER_SETS = 256
"""Different sets of readers, that of everybody not counted, in a collection that keeps statistics for each: a query sums over them."""


@dataclass(frozen=True, slots=True)
class CollectionOptions:
    """What is decided when a collection is created.

    Attributes:
        reader_statistics: Whether document frequencies are kept per set of readers, so that they tell nothing of hidden documents. None for
            whatever the collection has, and false in a new one.
    """

    reader_statistics: bool | None = None

    def require(self, collection: str, other: "CollectionOptions") -> None:
        """Checks options that are asked of a collection which has these.

        Raises:
            CollectionOptionsMismatch: One that is given differs.
        """
        if other.reader_statistics not in (None, bool(self.reader_statistics)):
            has, asked = (str(bool(options.reader_statistics)).lower() for options in (self, other))
            raise CollectionOptionsMismatch(collection, "reader_statistics", has, asked)


ANY_OPTIONS = CollectionOptions()
"""Whatever the collection has."""


class ReembeddingPhase(Enum):
    """What becomes of vectors that do not count."""

    MAKING = "making"
    """They are being made; the collection switches to them when every passage has one."""
    KEPT = "kept"
    """The collection has switched away from them. Every passage has one."""
    LAPSED = "lapsed"
    """As KEPT, but somebody without the encoder has written: some passages lack one."""
    DROPPING = "dropping"
    """They are being removed."""


@dataclass(frozen=True, slots=True)
class Reembedding:
    """Vectors of another model, beside those that count.

    Attributes:
        model: Name and version of the model.
        phase: What becomes of them.
        passage_count: Passages that have one.
    """

    model: str
    phase: ReembeddingPhase
    passage_count: int

    @property
    def written(self) -> bool:
        """Whether a new passage gets such a vector as well."""
        return self.phase is not ReembeddingPhase.DROPPING


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection's state and counts.

    Attributes:
        name: Its name.
        collection_uid: Its uid.
        revision: Its newest revision.
        document_count: Documents in it.
        passage_count: Passages of these.
        entity_count: Entities that passages mention or bear.
        embedding_model: Name and version of the model of its vectors; empty where there are none.
        create_time: When it was created.
        update_time: When its newest revision was written.
        options: With which it was created, each of them given.
        reembedding: Its vectors of another model; None without.
    """

    name: str
    collection_uid: str
    revision: int
    document_count: int
    passage_count: int
    entity_count: int
    embedding_model: str
    create_time: datetime
    update_time: datetime
    options: CollectionOptions
    reembedding: Reembedding | None = None


@dataclass(frozen=True, slots=True)
class CollectionVectors:
    """What vectors a collection has; cheaper than all of its counts.

    Attributes:
        reached: Its newest revision.
        model: Of the vectors that count; empty where there are none.
        passage_count: Its passages.
        reembedding: Its vectors of another model; None without.
    """

    reached: CollectionRevision
    model: str
    passage_count: int
    reembedding: Reembedding | None = None

    @property
    def whole(self) -> tuple[str, ...]:
        """The models of which every passage has a vector: that which counts, and where it is as far the other one."""
        other = self.reembedding
        if other is None or other.phase in (ReembeddingPhase.LAPSED, ReembeddingPhase.DROPPING):
            return (self.model,)
        return (self.model, other.model) if other.passage_count == self.passage_count else (self.model,)


class Outcome(Enum):
    """What became of a document that was written; STALE and REFUSED ones are not stored.

    REFUSED: its set of readers is one more than `MOST_READER_SETS`.
    """

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    STALE = "stale"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The result of one document.

    Attributes:
        document_id: Its id.
        outcome: What became of it.
        revision: Revision at which the stored content is visible.
        passage_count: Passages of the stored content.
        source_version: Source version that is stored now (for STALE: the newer one).
    """

    document_id: str
    outcome: Outcome
    revision: int
    passage_count: int
    source_version: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """The newest change of a document.

    Attributes:
        document_id: Its id.
        revision: When it was, as a revision.
        change_time: When it was.
        document: Its state; None when it was deleted.
    """

    document_id: str
    revision: int
    change_time: datetime
    document: DocumentSummary | None

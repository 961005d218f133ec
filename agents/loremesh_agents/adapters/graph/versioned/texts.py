"""What is stored of a passage to be shown, and to be searched for titles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urldefrag

import orjson

from loremesh_agents.adapters.graph.versioned.states import encoded
from loremesh_agents.domain.document import Document, Link, Passage, PassageWrite, TextSpans


@dataclass(frozen=True, slots=True)
class Body:
    """What is stored of a passage besides its features, vector and words.

    Attributes:
        names: Words that single-word titles match.
        capitalised: Keys of its capitalised spans.
    """

    document_id: str
    title: str
    headings: tuple[str, ...]
    text: str
    uri: str
    ordinal: int
    start_byte: int
    end_byte: int
    metadata: Mapping[str, str]
    names: tuple[str, ...]
    capitalised: tuple[str, ...]

    @classmethod
    def of(cls, document: Document, write: PassageWrite) -> "Body":
        """Of a new passage."""
        passage = write.passage
        return cls(
            document_id=document.document_id,
            title=document.shown_title,
            headings=passage.headings,
            text=passage.text,
            uri=document.uri,
            ordinal=passage.ordinal,
            start_byte=passage.start_byte,
            end_byte=passage.end_byte,
            metadata=dict(document.metadata),
            names=tuple(sorted(write.spans.names)),
            capitalised=tuple(sorted(write.spans.capitalised)),
        )

    @classmethod
    def decoded(cls, text: str) -> "Body":
        """From text."""
        content: dict[str, Any] = orjson.loads(text)
        content.update({name: tuple(content[name]) for name in ("headings", "names", "capitalised")})
        return cls(**content)

    def encoded(self) -> str:
        """As text."""
        return encoded(self)

    def spans(self, words: str) -> TextSpans:
        """The words and names of its text, given the stored words."""
        return TextSpans(tuple(words.split()), frozenset(self.names), frozenset(self.capitalised))

    def shown(self, collection: str) -> Passage:
        """The passage as evidence shows it."""
        return Passage(
            collection=collection,
            passage_id=f"{self.document_id}#{self.ordinal}",
            document_id=self.document_id,
            title=self.title,
            headings=self.headings,
            text=self.text,
            uri=self.uri,
            ordinal=self.ordinal,
            start_byte=self.start_byte,
            end_byte=self.end_byte,
            metadata=self.metadata,
        )


def searched(write: PassageWrite) -> tuple[str, str]:
    """The words of a passage in order, and further terms by which it is found."""
    return " ".join(write.spans.words), " ".join(write.further_terms)


def target_of(link: Link) -> tuple[str, str]:
    """The address that a link leads to, empty within its own document, and its fragment."""
    address, fragment = urldefrag(link.target)
    return address, fragment

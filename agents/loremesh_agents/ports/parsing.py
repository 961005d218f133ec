"""Parsers: bytes of a file to documents with their structure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document
from loremesh_agents.domain.errors import LoremeshError


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as a client sent it, with what the client said of it.

    Attributes:
        document_id: Its id; empty where the file brings ids of its own.
        media_type: Type of the bytes.
        data: The bytes.
        title: Title; empty to take it from the content.
        aliases: Other names.
        uri: Where it came from.
        source_version: Version in its source.
        metadata: Its metadata.
        readers: Groups that may read it.
    """

    document_id: str
    media_type: str
    data: bytes
    title: str = ""
    aliases: tuple[str, ...] = ()
    uri: str = ""
    source_version: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    readers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A document of an upload that cannot be read, and why."""

    document_id: str
    error: LoremeshError


class DocumentParser(Protocol):
    """Parses uploads. Nothing that is in a file is ever run, and no link in it is followed."""

    async def parse(self, upload: Upload, *, deadline: Deadline) -> tuple[Document | Unparsed, ...]:
        """The documents of an upload, without content hashes, in order; one that cannot be read does not hinder the others."""
        ...

    async def close(self) -> None:
        """Ends what parses in the background."""
        ...

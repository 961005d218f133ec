"""Documents for tests."""

import hashlib

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite, Link, Section
from loremesh_agents.domain.passages import analyse, cut


def soon() -> Deadline:
    return Deadline.after(20)


def document(
    document_id: str,
    title: str,
    text: str,
    *,
    readers: frozenset[str] = frozenset(),
    metadata: dict[str, str] | None = None,
    links: tuple[Link, ...] = (),
    uri: str = "",
    source_version: int | None = None,
) -> Document:
    content = f"{title}\0{text}\0{sorted(readers)}\0{metadata}\0{uri}"
    return Document(
        document_id,
        title,
        (Section(text, links=links),),
        uri=uri,
        source_version=source_version,
        metadata=metadata or {},
        readers=readers,
        content_hash=hashlib.sha256(content.encode()).hexdigest(),
    )


def write(found: Document) -> DocumentWrite:
    return DocumentWrite(found, tuple(analyse(found, passage) for passage in cut(found)))


def writes(*found: Document) -> list[DocumentWrite]:
    return [write(entry) for entry in found]

"""Chooses the parser of a media type and fills in what the client said."""

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from posixpath import basename
from typing import TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from pebble import ProcessExpired, ProcessPool

from loremesh_agents.adapters.parsing import html, jsonl, markdown, pdf, plain
from loremesh_agents.adapters.parsing.content import Content, UnreadableError
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, Link, Section
from loremesh_agents.domain.errors import DocumentUnreadable, UnsupportedMediaType
from loremesh_agents.ports.parsing import Unparsed, Upload

_TEXT_PARSERS = {
    "text/html": html.parse,
    "application/xhtml+xml": html.parse,
    "text/markdown": markdown.parse,
    "text/plain": plain.parse,
}
_First = TypeVar("_First")
_Result = TypeVar("_Result")

_JSON_LINES = frozenset({"application/x-ndjson", "application/jsonl"})
_PDF = "application/pdf"

SUPPORTED = (*sorted(_TEXT_PARSERS), *sorted(_JSON_LINES), _PDF)
"""Media types that can be parsed."""


class FileParser:
    """See `ports.parsing.DocumentParser`.

    Args:
        threads: Files of text that are parsed at once.
        pdf_seconds: Time that a PDF may take.
    """

    def __init__(self, *, threads: int = 2, pdf_seconds: float = 60.0) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="parser")
        self._pdf_seconds = pdf_seconds
        self._processes: ProcessPool | None = None

    async def parse(self, upload: Upload, *, deadline: Deadline) -> tuple[Document | Unparsed, ...]:
        """See the port."""
        kind, _, parameters = upload.media_type.partition(";")
        kind = kind.strip().lower()
        charset = parameters.partition("charset=")[2].strip().strip('"')
        try:
            if kind == _PDF:
                return (_document(upload, await self._pdf(upload.data, deadline)),)
            if kind in _JSON_LINES:
                return await self._in_thread(_lines, upload, charset)
            if kind in _TEXT_PARSERS:
                return (_document(upload, await self._in_thread(_TEXT_PARSERS[kind], upload.data, charset)),)
        except UnreadableError as error:
            return (Unparsed(upload.document_id, DocumentUnreadable(upload.document_id, str(error))),)
        return (Unparsed(upload.document_id, UnsupportedMediaType(upload.document_id, upload.media_type, SUPPORTED)),)

    async def close(self) -> None:
        """See the port."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            self._processes.stop()  # type: ignore[no-untyped-call]  # it has no types
            await asyncio.to_thread(self._processes.join)

    async def _in_thread(self, work: Callable[[_First, str], _Result], first: _First, charset: str) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, first, charset)

    async def _pdf(self, data: bytes, deadline: Deadline) -> Content:
        if self._processes is None:
            # Forked children would inherit the event loop's and gRPC's threads in whatever state they are.
            self._processes = ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn"))
        seconds = min(self._pdf_seconds, deadline.remaining())
        running = self._processes.schedule(pdf.parse, args=(data,), timeout=seconds)
        try:
            content: Content = await asyncio.wrap_future(running)
        except (FutureTimeoutError, TimeoutError):
            raise UnreadableError(f"reading it took more than {seconds:.0f} s") from None
        except ProcessExpired:
            raise UnreadableError("reading it ended the process that did") from None
        return content


def _lines(upload: Upload, charset: str) -> tuple[Document | Unparsed, ...]:
    return tuple(_line_documents(upload, charset))


def _line_documents(upload: Upload, charset: str) -> Iterator[Document | Unparsed]:
    for line in jsonl.parse(upload.data, charset):
        name = line.document_id or f"{upload.document_id or upload.uri or 'line'}:{line.number}"
        if isinstance(line.content, UnreadableError):
            yield Unparsed(name, DocumentUnreadable(name, str(line.content)))
            continue
        metadata = {**line.content.metadata, **upload.metadata}
        found = Upload(
            name,
            upload.media_type,
            b"",
            uri=f"{upload.uri}#{name}" if upload.uri else "",
            source_version=upload.source_version,
            metadata=metadata,
            readers=upload.readers,
        )
        yield _document(found, line.content)


def _document(upload: Upload, content: Content) -> Document | Unparsed:
    title = upload.title or content.title
    sections = tuple(section for section in content.sections if section.text.strip())
    if not sections:
        return Unparsed(upload.document_id, DocumentUnreadable(upload.document_id, "it holds no text"))
    uri = urlsplit(upload.uri)
    if not title and not uri.fragment:
        title = unquote(basename(uri.path.rstrip("/")))
    return Document(
        document_id=upload.document_id,
        title=title,
        sections=tuple(_absolute(section, upload.uri) for section in sections),
        aliases=(*upload.aliases, *content.aliases),
        uri=upload.uri,
        source_version=upload.source_version,
        metadata={**content.metadata, **upload.metadata},
        readers=upload.readers,
        media_type=upload.media_type,
    )


def _absolute(section: Section, base: str) -> Section:
    if not section.links:
        return section
    links = tuple(Link(_join(base, link.target), link.anchor) for link in section.links)
    return Section(section.text, section.headings, links)


def _join(base: str, target: str) -> str:
    try:
        return urljoin(base, target) if base else target
    except ValueError:
        # An address that is none: it leads nowhere, and that is no reason to refuse the document.
        return target

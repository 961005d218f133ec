"""One ingestion: received, parsed, analysed, encoded, committed, reported; all stages work at once, and each waits for the next."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.answer import Completion, FinishReason
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import (
    ANY_OPTIONS,
    MOST_READER_SETS,
    CollectionOptions,
    Document,
    DocumentWrite,
    Outcome,
    PassageWrite,
    WriteResult,
)
from loremesh_agents.domain.errors import (
    CollectionNotFound,
    DocumentTooLarge,
    DocumentUnreadable,
    EmbeddingMismatch,
    InvalidRequest,
    LoremeshError,
    ReaderSetsExhausted,
    StaleSourceVersion,
)
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.knowledge.analysis import Analysis
from loremesh_agents.knowledge.encoders import Encoders
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.parsing import DocumentParser, Unparsed, Upload


@dataclass(frozen=True, slots=True)
class File:
    """A file to parse; `total_size` is the whole file's where parts follow, else 0."""

    upload: Upload
    total_size: int = 0


@dataclass(frozen=True, slots=True)
class FilePart:
    """What the file before goes on with."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one document.

    Attributes:
        position: Place of its message in the stream, from 0.
        document_id: Its id.
        outcome: What became of it; None where it failed.
        revision: The state in which it is visible; None where it failed.
        passage_count: Its passages.
        error: Why it failed.
    """

    position: int
    document_id: str
    outcome: Outcome | None
    revision: CollectionRevision | None
    passage_count: int = 0
    error: LoremeshError | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the ingestion is."""

    received: int
    finished: int
    failed: int
    passages: int


Submission: TypeAlias = Document | File | FilePart
_Parsed: TypeAlias = "tuple[int, Document | Unparsed]"

_PARSED_AHEAD = 512
_BATCHES_AHEAD = 1
_REPORTED_AHEAD = 4


class Ingestion:
    """One stream of documents into one collection.

    Args:
        collection: Name of the collection.
        graph: Takes the documents.
        parser: Parses files.
        encoders: Encode passages.
        analysis: Makes passages of documents.
        settings: Limits.
        options: With which the collection is created, or must have been.
    """

    def __init__(
        self,
        collection: str,
        *,
        graph: GraphStore,
        parser: DocumentParser,
        encoders: Encoders,
        analysis: Analysis,
        settings: KnowledgeSettings,
        options: CollectionOptions,
    ) -> None:
        self._collection = collection
        self._options = options
        self._graph = graph
        self._parser = parser
        self._encoders = encoders
        self._analysis = analysis
        self._settings = settings
        self._parsed: asyncio.Queue[_Parsed | None] = asyncio.Queue(_PARSED_AHEAD)
        self._analysed: asyncio.Queue[_Batch | None] = asyncio.Queue(_BATCHES_AHEAD)
        self._encoded: asyncio.Queue[_Batch | None] = asyncio.Queue(_BATCHES_AHEAD)
        self._uncommitted: Counter[str] = Counter()
        self._reports: asyncio.Queue[list[Result] | None] = asyncio.Queue(_REPORTED_AHEAD)
        self._received = 0
        self._revision: CollectionRevision | None = None

    async def run(self, submissions: AsyncIterator[Submission]) -> AsyncGenerator[Result | Progress | Completion]:
        """Gives a result for each document in the order sent, progress after each batch, and a completion.

        Raises:
            CollectionOptionsMismatch: The collection was created with other options; nothing is stored.
            LoremeshError: What the store or the encoder raised; whatever has a result is stored all the same.
        """
        if self._options != ANY_OPTIONS:
            # Without documents, so that a caller hears of a mistake before it has sent and the encoder has worked.
            await self._write([], self._encoders.model)
        work = (self._parse(submissions), self._analyse(), self._encode(), self._commit())
        stages = [asyncio.create_task(stage) for stage in work]
        finished = failed = passages = 0
        try:
            while (results := await self._next_report(stages)) is not None:
                for result in results:
                    yield result
                    finished += 1
                    failed += result.error is not None
                    if result.outcome in (Outcome.CREATED, Outcome.UPDATED):
                        passages += result.passage_count
                yield Progress(self._received, finished, failed, passages)
            revisions = (self._revision,) if self._revision is not None else ()
            yield Completion(FinishReason.STOP, revisions=revisions)
        finally:
            for stage in stages:
                stage.cancel()
            await asyncio.gather(*stages, return_exceptions=True)

    async def _next_report(self, stages: Sequence[asyncio.Task[None]]) -> list[Result] | None:
        """The next results; raises what a stage raised, after the results of what was committed before it."""
        waiting = asyncio.create_task(self._reports.get())
        try:
            while not waiting.done():
                failed = [stage for stage in stages if stage.done() and stage.exception() is not None]
                if failed and self._reports.empty():
                    await failed[0]
                running = [stage for stage in stages if not stage.done()]
                await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
            return waiting.result()
        finally:
            waiting.cancel()

    async def _parse(self, submissions: AsyncIterator[Submission]) -> None:
        position = -1
        open_file: _OpenFile | None = None
        async for submission in submissions:
            if isinstance(submission, FilePart):
                if open_file is None:
                    raise InvalidRequest.of("blob_part", "it follows no document whose blob is longer than its data")
                open_file.add(submission.data)
            else:
                if open_file is not None:
                    raise InvalidRequest.of(
                        "document.blob.total_size", f"{open_file.missing} bytes of the document before are missing"
                    )
                position += 1
                self._received += 1
                if isinstance(submission, Document):
                    await self._parsed.put((position, submission))
                    continue
                open_file = _OpenFile(submission, self._settings.largest_document)
            if open_file.missing <= 0:
                await self._finish(position, open_file)
                open_file = None
        if open_file is not None:
            raise InvalidRequest.of(
                "document.blob.total_size", f"{open_file.missing} bytes of the last document are missing"
            )
        await self._parsed.put(None)

    async def _finish(self, position: int, file: "_OpenFile") -> None:
        upload = file.upload
        if file.error is not None:
            await self._parsed.put((position, Unparsed(upload.document_id, file.error)))
            return
        deadline = Deadline.after(self._settings.parse_budget)
        for document in await self._parser.parse(replace(upload, data=file.data), deadline=deadline):
            await self._parsed.put((position, document))

    async def _analyse(self) -> None:
        ended = False
        while not ended:
            parsed, ended = await self._batch()
            if parsed:
                await self._analysed.put(await self._analysed_batch(parsed))
        await self._analysed.put(None)

    async def _encode(self) -> None:
        while (batch := await self._analysed.get()) is not None:
            await self._encoded.put(await self._encoded_batch(batch, await self._wanted_models()))
        await self._encoded.put(None)

    async def _commit(self) -> None:
        while (batch := await self._encoded.get()) is not None:
            await self._reports.put(await self._store(batch))
        await self._reports.put(None)

    async def _batch(self) -> tuple[list[_Parsed], bool]:
        """What is there to commit together; waits for the first document, and shortly for more."""
        first = await self._parsed.get()
        if first is None:
            return [], True
        batch = [first]
        size = _size(first)
        until = Deadline.after(self._settings.batch_wait)
        while len(batch) < self._settings.batch_documents and size < self._settings.batch_bytes:
            if self._parsed.empty():
                try:
                    async with asyncio.timeout(until.remaining()):
                        entry = await self._parsed.get()
                except TimeoutError:
                    break
            else:
                entry = self._parsed.get_nowait()
            if entry is None:
                return batch, True
            batch.append(entry)
            size += _size(entry)
        return batch, False

    async def _analysed_batch(self, parsed: Sequence[_Parsed]) -> "_Batch":
        hashed = {
            place: replace(document, content_hash=content_hash(document))
            for place, (_, document) in enumerate(parsed)
            if isinstance(document, Document)
        }
        known = await self._graph.content_hashes(
            self._collection,
            [document.document_id for document in hashed.values()],
            deadline=Deadline.after(self._settings.write_budget),
        )
        fresh = {
            place: document
            for place, document in hashed.items()
            # Of a document whose last version is not yet committed nothing is known.
            if document.document_id in self._uncommitted
            or known.get(document.document_id, ("", None))[0] != document.content_hash
        }
        ids = Counter(document.document_id for document in hashed.values())
        self._uncommitted += ids
        analysed, texts = await self._analysis.analyse(fresh)
        # An unchanged document goes along without its passages: the store decides whether it is still unchanged.
        writes = {
            place: DocumentWrite(document, analysed.get(place, ()))
            for place, document in hashed.items()
            if place not in fresh or analysed[place]
        }
        return _Batch(parsed, writes, ids, texts)

    async def _encoded_batch(self, batch: "_Batch", models: Sequence[str]) -> "_Batch":
        """A batch with the vectors of models, of which the first one counts."""
        vectors: dict[str, NDArray[np.float32]] = {}
        for model in models if batch.texts else ():
            encoder = self._encoders.of(model)
            if encoder is not None:
                deadline = Deadline.after(self._settings.embed_budget)
                vectors[model] = await encoder.embed(batch.texts, deadline=deadline)
        return batch.encoded(models, vectors)

    async def _wanted_models(self) -> tuple[str, ...]:
        """The models of which a passage gets a vector: first that which counts, empty for none."""
        deadline = Deadline.after(self._settings.write_budget)
        try:
            return self._encoders.wanted(await self._graph.vectors(self._collection, deadline=deadline))
        except CollectionNotFound:
            return self._encoders.wanted(None)

    async def _write_encoded(self, batch: "_Batch") -> tuple[CollectionRevision, tuple[WriteResult, ...]]:
        """Writes a batch; where the collection has switched to another model since it was encoded, encodes it once more."""
        try:
            return await self._write(list(batch.writes.values()), batch.models[0])
        except EmbeddingMismatch:
            models = await self._wanted_models()
            if set(models) <= set(batch.models):
                raise
        again = await self._encoded_batch(batch, models)
        return await self._write(list(again.writes.values()), models[0])

    async def _store(self, batch: "_Batch") -> list[Result]:
        stored: dict[int, WriteResult] = {}
        revision = None
        if batch.writes:
            revision, results = await self._write_encoded(batch)
            self._revision = revision
            stored = dict(zip(batch.writes, results, strict=True))
        self._uncommitted -= batch.document_ids
        return [
            self._result(position, document, stored.get(place), revision)
            for place, (position, document) in enumerate(batch.parsed)
        ]

    async def _write(
        self, documents: Sequence[DocumentWrite], model: str
    ) -> tuple[CollectionRevision, tuple[WriteResult, ...]]:
        return await self._graph.write(
            self._collection,
            documents,
            embedding_model=model,
            options=self._options,
            deadline=Deadline.after(self._settings.write_budget),
        )

    def _result(
        self,
        position: int,
        document: Document | Unparsed,
        stored: WriteResult | None,
        revision: CollectionRevision | None,
    ) -> Result:
        document_id = document.document_id
        if isinstance(document, Unparsed):
            return Result(position, document_id, None, None, error=document.error)
        if stored is None or revision is None:
            empty = DocumentUnreadable(document_id, "it holds no text")
            return Result(position, document_id, None, None, error=empty)
        if stored.outcome is Outcome.STALE:
            stale = StaleSourceVersion(document_id, document.source_version or 0, stored.source_version or 0)
            return Result(position, document_id, None, None, error=stale)
        if stored.outcome is Outcome.REFUSED:
            refused = ReaderSetsExhausted(self._collection, document_id, MOST_READER_SETS)
            return Result(position, document_id, None, None, error=refused)
        return Result(position, document_id, stored.outcome, revision, stored.passage_count)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is committed together.

    Attributes:
        parsed: Documents and files that could not be parsed.
        writes: What is written, by the place in `parsed`.
        document_ids: How often each document comes.
        texts: What to encode of the passages of the writes, in their order.
        models: With which they are encoded: first that which counted then, empty for none.
    """

    parsed: Sequence[_Parsed]
    writes: dict[int, DocumentWrite]
    document_ids: Counter[str]
    texts: Sequence[str]
    models: Sequence[str] = ("",)

    def encoded(self, models: Sequence[str], vectors: Mapping[str, NDArray[np.float32]]) -> "_Batch":
        """The batch with vectors of models, each of shape (texts, dimension)."""
        each = {model: iter(found) for model, found in vectors.items()}
        counting = each.pop(models[0], None)

        def with_vectors(passage: PassageWrite) -> PassageWrite:
            vector = next(counting) if counting is not None else None
            return replace(passage, vector=vector, further_vectors={model: next(rest) for model, rest in each.items()})

        writes = {
            place: replace(write, passages=tuple([with_vectors(passage) for passage in write.passages]))
            for place, write in self.writes.items()
        }
        return replace(self, writes=writes, models=models)


class _OpenFile:
    """A file whose parts are still coming; of one that is too large nothing is kept."""

    def __init__(self, file: File, limit: int) -> None:
        self.upload = file.upload
        self.error: LoremeshError | None = None
        self._parts = [file.upload.data]
        self.missing = file.total_size - len(file.upload.data) if file.total_size else 0
        size = file.total_size or len(file.upload.data)
        if size > limit:
            self.error = DocumentTooLarge(file.upload.document_id, size, limit)
            self._parts = []
        elif self.missing < 0:
            raise InvalidRequest.of("document.blob.total_size", "it is less than the size of data")

    @property
    def data(self) -> bytes:
        """The whole file."""
        return b"".join(self._parts)

    def add(self, data: bytes) -> None:
        """Takes a part."""
        self.missing -= len(data)
        if self.missing < 0:
            raise InvalidRequest.of("blob_part.data", f"it goes {-self.missing} bytes over the blob's total_size")
        if self.error is None:
            self._parts.append(data)


def content_hash(document: Document) -> str:
    """SHA-256 of all that was sent of a document but its source version."""
    content = [
        document.document_id,
        document.title,
        [
            [section.headings, section.text, [[link.target, link.anchor] for link in section.links]]
            for section in document.sections
        ],
        document.aliases,
        document.uri,
        sorted(document.metadata.items()),
        sorted(document.readers),
        document.media_type,
    ]
    return hashlib.sha256(json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def _size(parsed: _Parsed) -> int:
    document = parsed[1]
    return sum(len(section.text) for section in document.sections) if isinstance(document, Document) else 0

"""What each source of names is worth: recall with all of them, and without each.

Passages bear names from their document's title, its other names, their headings, what their first sentence defines, and the parts of dotted names; links
between documents are edges besides. Two corpora, both without the encoder, so that nothing makes up for a name that is missing:

- the data set of `--data` without its titles, as a corpus whose documents have none;
- the Python language reference (pydoc_data.topics), with the questions of python_reference.jsonl in this folder.
"""

import argparse
import asyncio
import hashlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from bench.beir import COLLECTION, Query, read_documents, read_queries, rows
from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.parsing.parser import FileParser
from loremesh_agents.adapters.text.sqlite import SqliteTextIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite, PassageText
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.passages import analyse, cut
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import Profile, RetrievalRequest
from loremesh_agents.domain.titles import EXACT, titles
from loremesh_agents.ports.parsing import Upload
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings

_REFERENCE = Path(__file__).parent / "python_reference.jsonl"
_BUDGET = 60.0
_DEPTH = 30
_FOUND = 5


def _named(document: Document, passages: Sequence[PassageText], without: str) -> list[PassageText]:
    """The passages with the names that they bear without one of the sources."""
    found: list[PassageText] = []
    for passage in passages:
        opens = not found or found[-1].headings != passage.headings
        names = titles(
            "" if without == "title" else document.title,
            aliases=() if without == "aliases" else document.aliases,
            headings=() if without == "headings" else passage.headings,
            first=not found,
            opens_section=opens,
            text="" if without == "definitions" else passage.text,
        )
        if without == "shortened names":
            names = tuple(name for name in names if name.weight == EXACT)
        links = () if without == "links" else passage.links
        found.append(replace(passage, titles=names, links=links))
    return found


_SOURCES = ("title", "aliases", "headings", "definitions", "shortened names", "links")


async def _recall(
    documents: Iterable[Document],
    questions: Sequence[str],
    found: Callable[[int, Sequence[Evidence]], float],
    without: str,
) -> float:
    """Mean over the questions of what `found` says of their evidence, in per cent."""
    writes = [
        DocumentWrite(
            document, tuple(analyse(document, passage) for passage in _named(document, cut(document), without))
        )
        for document in documents
    ]
    with tempfile.TemporaryDirectory() as folder:
        graph = SqliteGraphStore(Path(folder) / "graph.db")
        try:
            await graph.write(COLLECTION, writes, embedding_model="", deadline=Deadline.after(_BUDGET * 10))
            text = SqliteTextIndex(graph)
            retriever = RetrieverService(graph, text, None, None, RetrieverSettings())
            return round(
                100
                * statistics.fmean(
                    [found(place, await _ask(retriever, question)) for place, question in enumerate(questions)]
                ),
                1,
            )
        finally:
            await graph.close()


async def _ask(retriever: RetrieverService, question: str) -> list[Evidence]:
    request = RetrievalRequest(question, (COLLECTION,), k=_DEPTH, profile=Profile.FAST)
    events = retriever.retrieve(request, principal=ANONYMOUS, deadline=Deadline.after(_BUDGET))
    return [event async for event in events if isinstance(event, Evidence)]


async def _table(
    documents: Sequence[Document],
    questions: Sequence[str],
    found: Callable[[int, Sequence[Evidence]], float],
    sources: Sequence[str],
) -> dict[str, float]:
    """Recall with all sources, and without each."""
    return {without or "all": await _recall(documents, questions, found, without) for without in ("", *sources)}


async def _reference() -> dict[str, float]:
    parser = FileParser()
    try:
        documents: list[Document] = []
        for name, text in topics.items():
            upload = Upload(name, "text/plain", text.encode(), aliases=(name,), uri=f"pydoc:{name}")
            documents += [
                found
                for found in await parser.parse(upload, deadline=Deadline.after(_BUDGET))
                if isinstance(found, Document)
            ]
    finally:
        await parser.close()
    asked = rows(_REFERENCE)

    def found(place: int, evidence: Sequence[Evidence]) -> float:
        texts = [" ".join(entry.source.text.split()) for entry in evidence[:_FOUND]]
        gold = asked[place]["gold"]
        return sum(any(words in text for text in texts) for words in gold) / len(gold)

    return await _table(documents, [row["question"] for row in asked], found, _SOURCES)


async def _without_titles(data: Path) -> dict[str, float]:
    documents = read_documents(data / "corpus.jsonl", titles=False)
    documents = [
        replace(document, content_hash=hashlib.sha256(document.document_id.encode()).hexdigest())
        for document in documents
    ]
    queries: list[Query] = read_queries(data)

    def found(place: int, evidence: Sequence[Evidence]) -> float:
        relevant = queries[place].relevant
        first = list(dict.fromkeys(entry.source.document_id for entry in evidence))[:_FOUND]
        return sum(document in relevant for document in first) / len(relevant)

    return await _table(documents, [query.text for query in queries], found, ("definitions", "shortened names"))


def add_arguments(_: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives recall at five by corpus and by what is left out."""
    if arguments.data is None:
        sys.exit("title-sources needs --data DIR, a folder in BEIR layout")
    return {
        "python_reference": asyncio.run(_reference()),
        "without_titles": asyncio.run(_without_titles(arguments.data)),
    }

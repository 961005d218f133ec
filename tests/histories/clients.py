"""One who writes and one who looks, and how both reach the store of a history."""

import random
import time
from dataclasses import replace
from pathlib import Path

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.timing import Timing
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import DocumentWrite, Section
from loremesh_agents.domain.errors import CollectionNotFound
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.revision import LATEST
from loremesh_agents.ports.graph import GraphSnapshot, GraphStore
from tests.documents import document, write
from tests.engines.graph_engines import connected
from tests.histories.model import Look, Operation, State

SQLITE = "sqlite"
TIMING = Timing(write=5.0, lease=6.0, retention=20.0, snapshot=15.0, abort=1.0)
"""Shorter than in production, where whoever waits for a dead writer has more time: nothing that is promised depends on it."""
IDS = "abcdef"
PARTS = 2
"""Passages of each document."""
_COMMON = "kept"
_DELETES = 0.2


def opened_store(engine: str, url: str) -> GraphStore:
    """The store as a process of its own has it; the URL is a path for SQLite."""
    return (
        SqliteGraphStore(Path(url)) if engine == SQLITE else VersionedGraphStore(connected(engine, url), timing=TIMING)
    )


def patiently() -> Deadline:
    return Deadline.after(30)


def operation(number: int, chance: random.Random) -> Operation:
    """Any operation."""
    names = tuple(sorted(chance.sample(IDS, chance.randint(1, 3))))
    return Operation(number, names, deletes=chance.random() < _DELETES)


async def carry_out(store: GraphStore, collection: str, operation: Operation) -> int:
    """The revision that it made; 0 where there was nothing to delete."""
    if operation.deletes:
        try:
            reached, deleted = await store.delete_documents(collection, operation.documents, deadline=patiently())
        except CollectionNotFound:
            return 0
        return reached.revision if deleted else 0
    written = [_document(name, operation.number) for name in operation.documents]
    reached, _ = await store.write(collection, written, embedding_model="", deadline=patiently())
    return reached.revision


def _document(name: str, number: int) -> DocumentWrite:
    made = document(name, name, f"{number}")
    sections = tuple(
        Section(f"{number} is {_COMMON} in part {part} of {name}.", (f"Part {part}",)) for part in range(PARTS)
    )
    return write(replace(made, sections=sections))


async def look(store: GraphStore, collection: str) -> Look:
    """What a snapshot of the collection shows."""
    began = time.monotonic()
    try:
        async with store.snapshot(
            [collection], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=patiently()
        ) as snapshot:
            seen = await _seen(snapshot, collection)
            return Look(began, time.monotonic(), snapshot.revisions[0].revision, seen)
    except CollectionNotFound:
        return Look(began, time.monotonic(), 0, {})


async def _seen(snapshot: GraphSnapshot, collection: str) -> State | None:
    """The documents, read in several requests; None where they are there by halves."""
    wanted = [(collection, f"{name}#{part}") for name in IDS for part in range(PARTS)]
    entry = await snapshot.enter(terms=[_COMMON], passages=wanted, title_limit=10, deadline=patiently())
    passages = await snapshot.fetch(list(entry.passages.values()), deadline=patiently())
    numbers: dict[str, list[int]] = {}
    for passage in passages.values():
        numbers.setdefault(passage.document_id, []).append(int(passage.text.split()[0]))
    whole = all(len(found) == PARTS and len(set(found)) == 1 for found in numbers.values())
    counted = entry.statistics.passage_count == entry.statistics.document_frequencies[_COMMON] == len(passages)
    if not whole or not counted or len(entry.passages) != len(passages):
        return None
    return {name: found[0] for name, found in numbers.items()}

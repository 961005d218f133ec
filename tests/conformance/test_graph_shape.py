"""What `loremesh graph stats` says of a collection in each store, and what an entity that everybody mentions costs."""

import sqlite3
import time

import pytest

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore, connection
from loremesh_agents.bootstrap.graph_shape import HotEntity, graph_shape
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.ranking import MENTION_LIMIT
from loremesh_agents.domain.revision import LATEST
from loremesh_agents.ports.graph import GraphStore
from tests.documents import document, soon, writes

MENTIONS = 100_000
STEPS = 100


async def test_hot_entities_are_named_with_their_counts_and_hidden_ones_count(store: GraphStore) -> None:
    found = [document(f"d{place}", f"Note {place}", "Ada Lovelace met Charles Babbage.") for place in range(6)]
    found += [document(f"e{place}", f"Letter {place}", "Ada Lovelace went to London.") for place in range(3)]
    found += [document("h", "Hidden", "Ada Lovelace rests.", readers=frozenset({"few"}))]
    await store.write("c", writes(*found), embedding_model="", deadline=soon())
    shape = await graph_shape(store, "c", top=2, deadline=soon())
    assert [entity.mentions for entity in shape.hot] == [10, 6]
    assert [entity.name.lower() for entity in shape.hot] == ["ada lovelace", "charles babbage"]
    assert (shape.sampled, shape.smallest, shape.median) == (10, 0, 0)
    assert 1 <= shape.largest <= 10


async def test_an_empty_collection_has_no_hot_entities(store: GraphStore) -> None:
    await store.write("c", writes(document("a", "A", "Text.")), embedding_model="", deadline=soon())
    await store.delete_documents("c", ["a"], deadline=soon())
    shape = await graph_shape(store, "c", top=5, deadline=soon())
    assert (shape.hot, shape.sampled, shape.largest) == ((), 0, 0)


@pytest.fixture
async def crowded(tmp_path_factory: pytest.TempPathFactory) -> SqliteGraphStore:
    """A store with an entity that very many passages mention, made by bulk."""
    opened = SqliteGraphStore(tmp_path_factory.mktemp("crowded") / "graph.db")
    found = [document(f"d{place}", f"Note {place}", "Ada Lovelace met Charles Babbage.") for place in range(3)]
    await opened.write("c", writes(*found), embedding_model="", deadline=soon())

    def crowd(opened: sqlite3.Connection) -> None:
        execute = opened.execute
        (entity,) = execute("SELECT id FROM entity WHERE key = 'ada lovelace'").fetchone()
        execute(
            "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO mention SELECT ?, i, 1 FROM n",
            (999 + MENTIONS, entity),
        )
        execute("UPDATE entity SET mention_count = mention_count + ? WHERE id = ?", (MENTIONS, entity))

    await opened.connections.write(crowd, soon())
    return opened


class Checks:
    """Stands for the clock that the database looks at every so many steps of its programs; a row takes several."""

    def __init__(self) -> None:
        self.count = 0

    def monotonic(self) -> float:
        self.count += 1
        return time.monotonic()


async def test_an_entity_of_very_many_mentions_costs_a_bounded_read(
    crowded: SqliteGraphStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks()
    monkeypatch.setattr(connection, "_STEPS_BETWEEN_CHECKS", STEPS)
    monkeypatch.setattr(connection, "time", checks)
    async with crowded.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        entry = await snapshot.enter(passages=[("c", "d0#0")], entities=["ada lovelace"], deadline=soon())
        expansion = await snapshot.expand(
            list(entry.passages.values()),
            (),
            entities=["ada lovelace"],
            known=frozenset(),
            mention_limit=MENTION_LIMIT,
            title_limit=10,
            deadline=soon(),
        )
    assert expansion.entities["ada lovelace"].mention_count == MENTIONS + 3
    # Its mentions are not followed, those of the other one are.
    assert {key for key, passages in expansion.mentions.items() if passages} == {"charles babbage"}
    assert len(expansion.features.refs) <= 3
    shape = await graph_shape(crowded, "c", top=1, deadline=soon())
    assert shape.hot == (HotEntity("ada lovelace", MENTIONS + 3),)
    assert checks.count * STEPS < MENTIONS / 10
    # The measure sees it when the mentions are read.
    async with crowded.connections.reader(soon()) as reader:
        text = "SELECT sum(passage + kind) FROM mention"
        await crowded.connections.read(reader, lambda opened: opened.execute(text).fetchall(), soon())
    assert checks.count * STEPS > MENTIONS
    await crowded.close()

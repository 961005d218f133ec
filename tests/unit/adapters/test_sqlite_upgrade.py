"""Files of earlier versions of the graph store."""

import sqlite3
from pathlib import Path

import pytest

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.graph.sqlite.vector_sets import SqliteVectorSets
from loremesh_agents.domain.errors import ConfigurationError
from tests.documents import document, soon, writes

_LATER_COLUMNS = ("vector_slot", "other_model", "other_phase", "other_count")


async def make(path: Path) -> None:
    store = SqliteGraphStore(path)
    await store.write("c", writes(document("a", "A", "A text.")), embedding_model="", deadline=soon())
    await store.close()


def as_of_version_3(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE second_vector")
        for column in _LATER_COLUMNS:
            connection.execute(f"ALTER TABLE collection DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 3")
    connection.close()


async def test_a_file_of_version_3_is_brought_up_to_date_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "graph.db"
    await make(path)
    as_of_version_3(path)
    for _ in range(2):
        store = SqliteGraphStore(path)
        found = await store.collection("c", deadline=soon())
        assert (found.document_count, found.reembedding) == (1, None)
        await store.close()
    store = SqliteGraphStore(path)
    begun = await SqliteVectorSets(store.connections).begin("c", "m", deadline=soon())
    assert begun.reembedding is not None
    await store.close()


async def test_files_of_other_versions_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "graph.db"
    await make(path)
    for version in (2, 99):
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match=f"version {version}; this build reads version 4"):
            SqliteGraphStore(path)
        assert path.read_bytes() == before

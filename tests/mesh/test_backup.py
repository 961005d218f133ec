"""The embedded stores are copied while agents write, and put back elsewhere."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loremesh.v1 import document_pb2
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.vector.faiss import FaissVectorIndex
from loremesh_agents.bootstrap.backup import back_up, restore
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.errors import ConfigurationError
from tests.documents import document, soon, writes
from tests.mesh.conftest import served

WRITTEN_BEFORE = 200
FEWEST_MEANWHILE = 50


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


async def loremesh(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loremesh_agents.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def request(name: str) -> pb.IngestRequest:
    sections = [document_pb2.Section(text=f"Document {name} has some text about rivers and towns. " * 20)]
    content = document_pb2.StructuredText(sections=sections)
    return pb.IngestRequest(document=document_pb2.Document(document_id=name, title=name, text=content))


async def test_a_backup_under_writes_is_one_of_the_states_in_between(tmp_path: Path) -> None:
    data, copy, elsewhere = tmp_path / "data", tmp_path / "copy", tmp_path / "elsewhere"
    acknowledged: dict[str, int] = {}
    began, done = asyncio.Event(), asyncio.Event()
    revisions: list[int] = []

    async with served(data) as client:

        async def documents() -> AsyncIterator[pb.IngestRequest]:
            yield pb.IngestRequest(start=pb.IngestStart(collection="docs"))
            number = 0
            # A write a document, each acknowledged before the next, until the backup has ended.
            while not done.is_set() or number < WRITTEN_BEFORE + FEWEST_MEANWHILE:
                yield request(f"d{number}")
                number += 1
                while f"d{number - 1}" not in acknowledged and number > WRITTEN_BEFORE:
                    await answered.get()

        answered: asyncio.Queue[None] = asyncio.Queue()

        async def write() -> None:
            async for event in client.knowledge.Ingest(documents(), timeout=50):
                if event.HasField("result"):
                    acknowledged[event.result.document_id] = event.result.revision.revision
                    answered.put_nowait(None)
                    if len(acknowledged) >= WRITTEN_BEFORE:
                        began.set()

        writing = asyncio.create_task(write())
        await asyncio.wait_for(began.wait(), 40)
        revisions.append(max(acknowledged.values()))
        code, out, err = await loremesh("backup", str(copy), "--json", "--data", str(data))
        revisions.append(max(acknowledged.values()))
        done.set()
        await writing
    assert (code, err) == (0, "")
    taken = json.loads(out)["collections"]["docs"]
    # The newest one may have been committed and not yet acknowledged.
    assert revisions[0] <= taken <= revisions[1] + 1
    assert revisions[1] > revisions[0], "nothing was written meanwhile"

    code, out, _ = await loremesh("restore", str(copy), "--data", str(elsewhere))
    assert (code, f"docs at revision {taken:,}" in out) == (0, True)
    store = SqliteGraphStore(elsewhere / "graph.db")
    reached, changes = await store.changes("docs", after_revision=0, limit=10**6, deadline=soon())
    collection = await store.collection("docs", deadline=soon())
    await store.close()
    assert reached.revision == collection.revision == taken
    assert {change.document_id for change in changes} == {name for name, at in acknowledged.items() if at <= taken}
    assert collection.document_count == len(changes)

    async with served(elsewhere) as client:
        (result,) = await client.ingest({"after": ("After", "It goes on after the restore.")})
        assert result.revision.revision == taken + 1


@pytest.fixture
async def stores(tmp_path: Path) -> StoreSettings:
    """Stores with a vector index that has a base."""
    found = StoreSettings(data=tmp_path / "data")
    store = SqliteGraphStore(found.data / "graph.db")
    index = FaissVectorIndex(store, found.data / "vectors", exact_limit=0)
    documents = [
        replace(write, passages=tuple(replace(passage, vector=vector) for passage in write.passages))
        for write, vector in zip(
            writes(*(document(f"d{place}", f"D {place}", "Text.") for place in range(8))),
            np.eye(8, dtype=np.float32),
            strict=True,
        )
    ]
    await store.write("c", documents, embedding_model="m", deadline=soon())
    await index.rebuild("c", deadline=soon())
    await index.close()
    await store.close()
    return found


async def test_the_vector_index_comes_along_with_its_base(stores: StoreSettings, tmp_path: Path) -> None:
    back_up(stores, tmp_path / "copy", silent)
    target = StoreSettings(data=tmp_path / "target")
    report = restore(target, tmp_path / "copy", silent)
    assert sorted(Path(name).suffix for name in report.files) == [".db", ".faiss", ".json"]
    store = SqliteGraphStore(target.data / "graph.db")
    index = FaissVectorIndex(store, target.data / "vectors", exact_limit=0)
    revision = await store.revision("c", deadline=soon())
    found = await index.search(
        np.eye(8, dtype=np.float32)[3], model="m", revisions=(revision,), limit=1, deadline=soon()
    )
    assert len(found) == 1
    assert {path.name for path in (target.data / "vectors").iterdir()} == {
        path.name for path in (stores.data / "vectors").iterdir()
    }
    await index.close()
    await store.close()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def changed(**values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("graph.db", flipped, "is damaged: the checksum of graph.db is wrong"),
    ("graph.db", lambda path: path.write_bytes(path.read_bytes()[:-512]), "is damaged: graph.db has"),
    ("graph.db", Path.unlink, "is damaged: graph.db is missing"),
    ("backup.json", Path.unlink, "holds no whole backup"),
    ("backup.json", lambda path: path.write_text("{"), "is damaged: backup.json cannot be read"),
    ("backup.json", lambda path: path.write_text("[]"), "is damaged: backup.json is no object"),
    ("backup.json", changed(collections={}), "is damaged: the checksum of backup.json is wrong"),
    ("backup.json", changed(format=99), "is newer than this build: its format is 99, this build knows 1"),
    ("backup.json", changed(graph_schema=99), "is newer than this build: its graph_schema is 99"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
async def test_what_is_damaged_or_newer_is_refused_and_nothing_is_restored(
    stores: StoreSettings, tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "copy"
    back_up(stores, folder, silent)
    damage(folder / name)
    target = StoreSettings(data=tmp_path / "target")
    with pytest.raises(ConfigurationError, match=message):
        restore(target, folder, silent)
    assert not (target.data / "graph.db").exists()
    # The same folder takes a good one.
    back_up(stores, tmp_path / "good", silent)
    restore(target, tmp_path / "good", silent)


async def test_nothing_is_overwritten(stores: StoreSettings, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    back_up(stores, folder, silent)
    with pytest.raises(ConfigurationError, match="is not an empty folder"):
        back_up(stores, folder, silent)
    with pytest.raises(ConfigurationError, match=r"graph\.db is there already"):
        restore(stores, folder, silent)
    target = StoreSettings(data=tmp_path / "target")
    (target.data / "vectors").mkdir(parents=True)
    (target.data / "vectors" / "other.faiss").touch()
    with pytest.raises(ConfigurationError, match="vectors is there already"):
        restore(target, folder, silent)


def test_other_stores_and_stores_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no graph store .* to back up"):
        back_up(StoreSettings(data=tmp_path), tmp_path / "copy", silent)
    elsewhere = StoreSettings(data=tmp_path, graph="bolt://127.0.0.1:7687/neo4j")
    with pytest.raises(ConfigurationError, match=r"bolt://127.0.0.1:7687/neo4j.*docs/engines.md"):
        back_up(elsewhere, tmp_path / "copy", silent)
    assert not (tmp_path / "copy").exists()

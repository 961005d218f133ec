"""What every vector index does, and what the files of the one that has files may be like."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.vector.faiss import FaissVectorIndex
from loremesh_agents.adapters.vector.memory import MemoryVectorIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import DocumentWrite
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import LATEST, CollectionRevision
from loremesh_agents.ports.graph import GraphStore, VectorChanges
from loremesh_agents.ports.vector_sets import VectorSets
from loremesh_agents.ports.vectors import VectorIndex
from tests.conformance.conftest import GRAPHS, opened, vector_sets
from tests.documents import document, soon, write
from tests.engines.search_indexes import OUTSIDE, KeptGraph, neo4j_index

Vector = NDArray[np.float32]

KINDS: Mapping[str, Callable[[GraphStore, Path], VectorIndex]] = {
    "memory": lambda graph, folder: MemoryVectorIndex(graph),
    "faiss exact": FaissVectorIndex,
    "faiss based": lambda graph, folder: FaissVectorIndex(graph, folder, exact_limit=0),
}
"""Those that every process makes for itself, from the graph."""


def at(degrees: float) -> Vector:
    """The unit vector of an angle."""
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=np.float32)


EAST, NORTH = at(0), at(90)


def with_vector(name: str, vector: Vector | None, text: str) -> DocumentWrite:
    found = write(document(name, name, text))
    return replace(found, passages=tuple(replace(passage, vector=vector) for passage in found.passages))


@dataclass(frozen=True)
class Searched:
    """A graph and an index over it."""

    graph: GraphStore
    index: VectorIndex

    async def put(
        self, vectors: Mapping[str, Vector], *, collection: str = "c", model: str = "m", text: str = "Text."
    ) -> CollectionRevision:
        documents = [with_vector(name, vector, text) for name, vector in vectors.items()]
        revision, _ = await self.graph.write(collection, documents, embedding_model=model, deadline=soon())
        return revision

    async def near(
        self,
        vector: Vector,
        *,
        collections: tuple[str, ...] = ("c",),
        limit: int = 10,
        deadline: Deadline | None = None,
    ) -> list[str]:
        """Ids of the documents that are proposed, the nearest first; a passage that is gone among them is an error."""
        async with self.graph.snapshot(
            collections, principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
        ) as snapshot:
            refs = await self.index.search(
                vector,
                model=next(iter(filter(None, snapshot.embedding_models.values())), ""),
                revisions=snapshot.revisions,
                limit=limit,
                deadline=deadline or soon(),
            )
            passages = await snapshot.fetch(refs, deadline=soon())
        return [passages[ref].document_id for ref in refs]


@asynccontextmanager
async def opened_index(graph: GraphStore, folder: Path, kind: str = "faiss based") -> AsyncIterator[Searched]:
    index = KINDS[kind](graph, folder)
    yield Searched(graph, index)
    await index.close()


@pytest.fixture(
    params=[
        *product(GRAPHS, KINDS),
        pytest.param(("neo4j", "neo4j"), marks=pytest.mark.engines),
        *(pytest.param((graph, kind), marks=pytest.mark.engines) for graph in ("sqlite", "memory") for kind in OUTSIDE),
    ],
    ids="-".join,
)
async def searched(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Searched]:
    async with opened_kind(request, tmp_path) as found:
        yield found


@asynccontextmanager
async def opened_kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Searched]:
    """The graph and the index that the parameter of a fixture names."""
    graph, kind = request.param
    async with opened(graph, tmp_path) as stores:
        if kind in KINDS:
            async with opened_index(stores.graph, tmp_path / "vectors", kind) as found:
                yield found
        elif kind in OUTSIDE:
            async with OUTSIDE[kind](request.getfixturevalue(kind), stores.graph) as index:
                yield Searched(KeptGraph(stores.graph, [index]), index)
        else:
            yield Searched(stores.graph, neo4j_index(stores.graph))


@pytest.fixture(
    params=[
        *product(("sqlite", "versioned"), KINDS),
        pytest.param(("neo4j", "neo4j"), marks=pytest.mark.engines),
        *(pytest.param(("versioned", kind), marks=pytest.mark.engines) for kind in OUTSIDE),
    ],
    ids="-".join,
)
async def changing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Searched]:
    """An index that follows a collection from one model to another, filled as `filled` is."""
    async with opened_kind(request, tmp_path) as found:
        await found.put({"east": EAST, "hazel": at(20), "north": NORTH})
        await found.index.maintain("c", deadline=soon())
        yield found


@pytest.fixture
async def filled(searched: Searched) -> Searched:
    """With three documents; the index has had the chance to store them."""
    await searched.put({"east": EAST, "hazel": at(20), "north": NORTH})
    await searched.index.maintain("c", deadline=soon())
    return searched


async def test_the_nearest_comes_first(filled: Searched) -> None:
    assert await filled.near(EAST) == ["east", "hazel", "north"]
    assert await filled.near(NORTH) == ["north", "hazel", "east"]


async def test_no_more_are_proposed_than_asked_for(filled: Searched) -> None:
    assert await filled.near(EAST, limit=2) == ["east", "hazel"]
    await filled.put({"near": at(2)})
    assert await filled.near(EAST, limit=2) == ["east", "near"]


async def test_an_index_that_has_seen_nothing_catches_up(searched: Searched) -> None:
    await searched.put({"east": EAST})
    await searched.put({"north": NORTH})
    assert await searched.near(EAST) == ["east", "north"]


async def test_what_is_written_after_a_search_is_found_by_the_next(filled: Searched) -> None:
    assert await filled.near(NORTH, limit=1) == ["north"]
    await filled.put({"between": at(60)})
    assert await filled.near(at(60), limit=1) == ["between"]


async def test_what_is_deleted_is_not_proposed_and_takes_no_place(filled: Searched) -> None:
    await filled.put({"late": at(1)})
    assert await filled.near(EAST, limit=2) == ["east", "late"]
    await filled.graph.delete_documents("c", ["east", "late"], deadline=soon())
    assert await filled.near(EAST, limit=2) == ["hazel", "north"]


async def test_of_an_updated_document_only_the_new_vector_counts(filled: Searched) -> None:
    await filled.put({"east": at(120)}, text="It has moved.")
    assert await filled.near(EAST) == ["hazel", "north", "east"]
    await filled.put({"east": at(180)}, text="And moved on.")
    assert await filled.near(EAST, limit=2) == ["hazel", "north"]


async def test_collections_are_searched_together_and_apart(filled: Searched) -> None:
    await filled.put({"other": at(10)}, collection="d")
    assert await filled.near(EAST, collections=("d",)) == ["other"]
    assert await filled.near(EAST, collections=("c", "d"), limit=3) == ["east", "other", "hazel"]
    assert await filled.near(EAST) == ["east", "hazel", "north"]


async def test_a_collection_made_anew_has_nothing_of_the_old_one(filled: Searched) -> None:
    old = await filled.graph.revision("c", deadline=soon())
    await filled.graph.delete_collection("c", deadline=soon())
    await filled.put({"new": at(45)})
    assert await filled.near(EAST) == ["new"]
    await filled.index.search(EAST, model="m", revisions=(old,), limit=3, deadline=soon())
    assert await filled.near(EAST) == ["new"]


async def test_a_collection_that_is_gone_does_not_end_the_search(filled: Searched) -> None:
    gone = await filled.put({"other": at(10)}, collection="d")
    await filled.graph.delete_collection("d", deadline=soon())
    held = await filled.graph.revision("c", deadline=soon())
    (nearest,) = await filled.index.search(NORTH, model="m", revisions=(gone, held), limit=1, deadline=soon())
    async with filled.graph.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        found = await snapshot.fetch([nearest], deadline=soon())
    assert found[nearest].document_id == "north"


async def test_a_collection_without_vectors_proposes_nothing(searched: Searched) -> None:
    bare = [with_vector("bare", None, "No vector.")]
    await searched.graph.write("c", bare, embedding_model="", deadline=soon())
    assert await searched.near(EAST) == []


async def test_vectors_of_another_model_take_the_place_of_those_before(filled: Searched) -> None:
    await filled.graph.delete_documents("c", ["east", "hazel", "north"], deadline=soon())
    east, up = np.eye(3, dtype=np.float32)[[0, 2]]
    await filled.put({"east in space": east, "up": up}, model="of three")
    assert await filled.near(up) == ["up", "east in space"]


async def embed(searched: Searched, model: str, vectors: Mapping[str, Vector]) -> VectorSets:
    """Gives the passages of documents vectors of another model."""
    sets = vector_sets(searched.graph)
    await sets.begin("c", model, deadline=soon())
    async with searched.graph.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        asked = [("c", f"{name}#0") for name in vectors]
        places = (await snapshot.enter(passages=asked, deadline=soon())).passages
    added = {places["c", f"{name}#0"]: vector for name, vector in vectors.items()}
    await sets.add("c", model, added, deadline=soon())
    return sets


async def proposed(searched: Searched, vector: Vector, model: str, revision: CollectionRevision) -> list[str]:
    """What is proposed to a reader of a state in which a model counts."""
    refs = await searched.index.search(vector, model=model, revisions=(revision,), limit=10, deadline=soon())
    async with searched.graph.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        found = await snapshot.fetch(refs, deadline=soon())
    return [found[ref].document_id for ref in refs if ref in found]


async def test_an_index_follows_a_collection_to_another_model_and_back(changing: Searched) -> None:
    before = await changing.graph.revision("c", deadline=soon())
    # The other way round, and of the same dimension: vectors of both models beside one another would be found at once.
    sets = await embed(changing, "n", {"east": NORTH, "hazel": at(70)})
    assert await changing.near(EAST) == ["east", "hazel", "north"]
    await embed(changing, "n", {"north": EAST})
    await changing.index.maintain("c", deadline=soon())
    # Ready before it counts.
    assert await proposed(changing, EAST, "n", before) == ["north", "hazel", "east"]
    assert await changing.near(EAST) == ["east", "hazel", "north"]
    assert await sets.switch("c", "n", deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(EAST) == ["north", "hazel", "east"]
    # A reader who began before.
    assert await proposed(changing, EAST, "m", before) == ["east", "hazel", "north"]
    late = with_vector("late", at(5), "Text.")
    late = replace(late, passages=tuple(replace(p, further_vectors={"m": at(40)}) for p in late.passages))
    await changing.graph.write("c", [late], embedding_model="n", deadline=soon())
    await changing.graph.delete_documents("c", ["hazel"], deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(EAST) == ["north", "late", "east"]
    await sets.begin("c", "m", deadline=soon())
    assert await sets.switch("c", "m", deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(EAST) == ["east", "late", "north"]


async def test_an_index_forgets_the_vectors_that_a_collection_has_let_go(changing: Searched) -> None:
    before = await changing.graph.revision("c", deadline=soon())
    sets = await embed(changing, "n", {"east": NORTH, "hazel": at(70), "north": EAST})
    assert await sets.switch("c", "n", deadline=soon())
    last: PassageRef | None = PassageRef(0)
    while last is not None:
        last = await sets.drop("c", after=last, limit=10, deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(EAST) == ["north", "hazel", "east"]
    with pytest.raises(BackendUnavailable):
        await proposed(changing, EAST, "m", before)
    # A third one, whose vectors are longer.
    third = {"east": [1, 0, 0], "north": [0.6, 0.8, 0], "hazel": [0, 0, 1]}
    await embed(changing, "o", {name: np.array(vector, dtype=np.float32) for name, vector in third.items()})
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(EAST) == ["north", "hazel", "east"]
    assert await sets.switch("c", "o", deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(np.array([1, 0, 0], dtype=np.float32)) == ["east", "north", "hazel"]
    # The same model again, at once.
    last = PassageRef(0)
    while last is not None:
        last = await sets.drop("c", after=last, limit=10, deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    await embed(changing, "n", {"hazel": EAST, "north": at(30), "east": NORTH})
    await changing.index.maintain("c", deadline=soon())
    assert await sets.switch("c", "n", deadline=soon())
    await changing.index.maintain("c", deadline=soon())
    assert await changing.near(EAST) == ["hazel", "north", "east"]


@pytest.mark.parametrize(
    "vector",
    [np.ones(3, dtype=np.float32), np.ones((1, 2), dtype=np.float32), np.array([math.nan, 1], dtype=np.float32)],
    ids=["too long", "a row too many", "not a number"],
)
async def test_a_vector_that_cannot_be_compared_is_refused(
    filled: Searched, vector: Vector, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BackendUnavailable):
        await filled.near(vector)
    assert "collection c" in caplog.text
    assert await filled.near(EAST, limit=1) == ["east"]


async def test_a_passed_deadline_is_said_and_harms_nobody(filled: Searched) -> None:
    with pytest.raises(BudgetExhausted):
        await filled.near(EAST, deadline=Deadline.after(-1))
    assert await filled.near(EAST, limit=1) == ["east"]


async def test_searches_at_once_find_the_same(searched: Searched) -> None:
    for degrees in range(5):
        await searched.put({f"{degrees}": at(degrees)})
    found = await asyncio.gather(*(searched.near(EAST) for _ in range(8)))
    assert found == [["0", "1", "2", "3", "4"]] * 8


async def test_rebuilding_and_maintaining_give_the_state_and_change_no_result(filled: Searched) -> None:
    state = await filled.put({"west": at(180)})
    await filled.graph.delete_documents("c", ["hazel"], deadline=soon())
    state = replace(state, revision=state.revision + 1)
    for _ in range(2):
        assert await filled.index.rebuild("c", deadline=soon()) == state
        assert await filled.near(EAST) == ["east", "north", "west"]
        assert await filled.index.maintain("c", deadline=soon()) == state
        assert await filled.near(EAST) == ["east", "north", "west"]


async def test_a_dropped_collection_can_be_made_anew(filled: Searched) -> None:
    await filled.graph.delete_collection("c", deadline=soon())
    await filled.index.drop("c", deadline=soon())
    await filled.index.drop("c", deadline=soon())
    await filled.put({"new": at(45)})
    assert await filled.near(EAST) == ["new"]


class WatchedStore(MemoryGraphStore):
    """Gives its changes in short pages, and notes what was asked for; waits while its gate is closed, which closes when `closes_at` is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[int] = []
        self.closes_at: int | None = None
        self.waiting = asyncio.Event()

    async def vector_changes(
        self, collection: str, *, model: str | None = None, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        self.asked.append(after_revision)
        if after_revision == self.closes_at:
            self.gate.clear()
        self.waiting.set()
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self.gate.wait()
        except TimeoutError:
            raise BudgetExhausted("graph", "reading") from None
        return await super().vector_changes(
            collection, model=model, after_revision=after_revision, limit=min(limit, 2), deadline=deadline
        )


@pytest.fixture
async def watched() -> AsyncIterator[WatchedStore]:
    store = WatchedStore()
    yield store
    await store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_changes_are_read_to_their_last_page(watched: WatchedStore, tmp_path: Path, kind: str) -> None:
    async with opened_index(watched, tmp_path, kind) as searched:
        for degrees in range(7):
            await searched.put({f"{degrees}": at(degrees)})
        await searched.graph.delete_documents("c", ["3"], deadline=soon())
        assert await searched.near(EAST) == ["0", "1", "2", "4", "5", "6"]
        assert len(watched.asked) > 2


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_waits_longer_than_his_deadline_for_another_search(
    watched: WatchedStore, tmp_path: Path, kind: str
) -> None:
    async with opened_index(watched, tmp_path, kind) as searched:
        await searched.put({"east": EAST})
        watched.gate.clear()
        patient = asyncio.create_task(searched.near(EAST))
        await watched.waiting.wait()
        async with asyncio.timeout(5):
            with pytest.raises(BudgetExhausted):
                await searched.near(EAST, deadline=Deadline.after(0.01))
        watched.gate.set()
        assert await patient == ["east"]


# From here on: files.


async def filed(graph: GraphStore, folder: Path) -> list[str]:
    """Writes three documents and an index of them; gives what is near to the east."""
    async with opened_index(graph, folder) as searched:
        await searched.put({"east": EAST, "hazel": at(20), "north": NORTH})
        await searched.index.maintain("c", deadline=soon())
        return await searched.near(EAST)


async def test_another_process_reads_the_file_and_only_what_came_after_from_the_graph(
    watched: WatchedStore, tmp_path: Path
) -> None:
    before = await filed(watched, tmp_path)
    watched.asked.clear()
    async with opened_index(watched, tmp_path) as searched:
        assert await searched.near(EAST) == before
        assert watched.asked == []
        await searched.put({"late": at(10)})
        assert await searched.near(EAST) == ["east", "late", "hazel", "north"]
        assert watched.asked == [1]


async def test_a_file_is_extended_by_what_came_after_it_and_nothing_else_is_read(
    watched: WatchedStore, tmp_path: Path
) -> None:
    await filed(watched, tmp_path)
    async with opened_index(watched, tmp_path) as searched:
        await searched.put({"late": at(10)})
        await searched.graph.delete_documents("c", ["hazel"], deadline=soon())
        watched.asked.clear()
        assert (await searched.index.maintain("c", deadline=soon())).revision == 3
        assert await searched.near(EAST) == ["east", "late", "north"]
        assert min(watched.asked) == 1
    watched.asked.clear()
    async with opened_index(watched, tmp_path) as searched:
        assert await searched.near(EAST) == ["east", "late", "north"]
    assert watched.asked == []


@asynccontextmanager
async def renewing(watched: WatchedStore, folder: Path) -> AsyncIterator[Searched]:
    """An index that has read more beside its file than it should, since when there is a later file: it begins to open that one."""
    await filed(watched, folder)
    async with opened_index(watched, folder) as writer, opened_index(watched, folder) as reader:
        await reader.near(EAST)
        await writer.put({"late": at(10)})
        await writer.index.maintain("c", deadline=soon())
        await writer.put({"later": at(12)})
        watched.asked.clear()
        assert await reader.near(EAST) == ["east", "late", "later", "hazel", "north"]
        async with asyncio.timeout(5):
            # From the file before, and then from the new one.
            while watched.asked != [1, 2]:
                await watched.waiting.wait()
                watched.waiting.clear()
        yield reader


async def test_who_has_read_much_beside_a_file_opens_the_one_that_was_written_since(
    watched: WatchedStore, tmp_path: Path
) -> None:
    async with renewing(watched, tmp_path) as searched:
        assert await searched.near(EAST) == ["east", "late", "later", "hazel", "north"]
        assert watched.asked == [1, 2]


async def test_questions_go_on_while_a_later_file_is_opened_and_the_end_does_not_wait_for_it(
    watched: WatchedStore, tmp_path: Path
) -> None:
    watched.closes_at = 2
    async with asyncio.timeout(5), renewing(watched, tmp_path) as searched:
        assert not watched.gate.is_set()
        assert await searched.near(EAST) == ["east", "late", "later", "hazel", "north"]


async def test_a_file_that_is_gone_or_of_another_writer_is_not_extended(watched: WatchedStore, tmp_path: Path) -> None:
    await filed(watched, tmp_path)
    async with opened_index(watched, tmp_path) as first, opened_index(watched, tmp_path) as second:
        await first.near(EAST)
        await second.put({"late": at(10)})
        await second.index.maintain("c", deadline=soon())
        await second.put({"later": at(12)})
        await first.index.maintain("c", deadline=soon())
        for path in tmp_path.iterdir():
            path.unlink()
        await first.put({"last": at(14), "west": at(180)})
        await first.index.maintain("c", deadline=soon())
    watched.asked.clear()
    async with opened_index(watched, tmp_path) as searched:
        assert await searched.near(EAST) == ["east", "late", "later", "last", "hazel", "north", "west"]
    assert watched.asked == []


async def test_a_small_collection_has_no_file(watched: WatchedStore, tmp_path: Path) -> None:
    async with opened_index(watched, tmp_path, "faiss exact") as searched:
        await searched.put({"east": EAST})
        await searched.index.rebuild("c", deadline=soon())
        assert list(tmp_path.iterdir()) == []


async def test_dropping_removes_the_files(watched: WatchedStore, tmp_path: Path) -> None:
    await filed(watched, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".faiss", ".json"}
    async with opened_index(watched, tmp_path) as searched:
        await searched.index.drop("c", deadline=soon())
    assert list(tmp_path.iterdir()) == []


async def test_the_file_of_a_deleted_collection_of_the_name_is_not_read(watched: WatchedStore, tmp_path: Path) -> None:
    await filed(watched, tmp_path)
    await watched.delete_collection("c", deadline=soon())
    async with opened_index(watched, tmp_path) as searched:
        await searched.put({"new": NORTH})
        assert await searched.near(EAST) == ["new"]


def rewrite(path: Path, content: bytes) -> None:
    """Puts a new file in the place of one that somebody may still have mapped."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def cut_short(path: Path) -> None:
    rewrite(path, path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    *content, last = path.read_bytes()
    rewrite(path, bytes([*content, last ^ 1]))


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def whole(content: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, content.encode())


def manifest(**changes: object) -> Callable[[Path], None]:
    return lambda path: rewrite(path, json.dumps({**json.loads(path.read_text()), **changes}).encode())


DAMAGES = (
    ("an index cut short", ".faiss", cut_short),
    ("an index without content", ".faiss", whole("")),
    ("a flipped bit", ".faiss", flip_a_bit),
    ("a folder in place of the index", ".faiss", replace_by_a_folder),
    ("a manifest cut short", ".json", cut_short),
    ("a manifest without content", ".json", whole("")),
    ("a manifest of another kind", ".json", whole("null")),
    ("a manifest of a list", ".json", whole("[]")),
    ("another format", ".json", manifest(format=1)),
    ("another field", ".json", manifest(colour="red")),
    ("another revision", ".json", manifest(revision=2)),
    ("a revision that is no number", ".json", manifest(revision="1")),
    ("another dimension", ".json", manifest(dimension=3)),
    ("another checksum", ".json", manifest(sha256="0" * 64)),
)


@pytest.mark.parametrize(("suffix", "damage"), [entry[1:] for entry in DAMAGES], ids=[entry[0] for entry in DAMAGES])
async def test_a_file_that_is_not_as_it_was_written_is_named_and_made_again(
    watched: WatchedStore,
    tmp_path: Path,
    suffix: str,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = await filed(watched, tmp_path)
    async with opened_index(watched, tmp_path, "faiss exact") as writer:
        await writer.put({"late": at(10)})
    index_file = next(tmp_path.glob("*.faiss"))
    damage(next(tmp_path.glob(f"*{suffix}")))
    now = ["east", "late", "hazel", "north"]
    assert before == ["east", "hazel", "north"]
    async with opened_index(watched, tmp_path) as searched:
        with caplog.at_level(logging.WARNING):
            assert await searched.near(EAST) == now
        assert str(index_file) in caplog.text
        if index_file.is_dir():
            index_file.rmdir()
        await searched.index.maintain("c", deadline=soon())
    caplog.clear()
    watched.asked.clear()
    async with opened_index(watched, tmp_path) as searched:
        assert await searched.near(EAST) == now
    assert (caplog.text, watched.asked) == ("", [])


async def test_a_file_that_is_missing_costs_no_result(watched: WatchedStore, tmp_path: Path) -> None:
    before = await filed(watched, tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
        async with opened_index(watched, tmp_path) as searched:
            assert await searched.near(EAST) == before


async def test_nearly_all_of_the_exact_nearest_are_found_in_a_large_collection(tmp_path: Path) -> None:
    random = np.random.default_rng(7)

    def units(vectors: NDArray[np.float64]) -> Vector:
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    centres = random.normal(size=(40, 48))
    vectors = units(centres[random.integers(40, size=3000)] + 1.5 * random.normal(size=(3000, 48)))
    asked = units(centres[random.integers(40, size=50)] + 2.5 * random.normal(size=(50, 48)))
    graph = MemoryGraphStore()
    index = FaissVectorIndex(graph, tmp_path, exact_limit=1000)
    documents = [with_vector(f"{row}", vector, "Text.") for row, vector in enumerate(vectors)]
    searched = Searched(graph, index)
    # What comes after the first part goes into the lists of that part.
    for part in (documents[:1800], documents[1800:]):
        await graph.write("c", part, embedding_model="m", deadline=soon())
        await index.maintain("c", deadline=soon())
    assert len(list(tmp_path.glob("*.faiss"))) == 1

    async def recall(rows: NDArray[np.intp]) -> float:
        """The share of the ten nearest of these rows, by exact search, that is proposed."""
        proposed = [set(await searched.near(vector)) for vector in asked]
        shares = [len(nearest & found) / 10 for nearest, found in zip(exact(rows), proposed, strict=True)]
        return sum(shares) / len(shares)

    def exact(rows: NDArray[np.intp]) -> list[set[str]]:
        return [{str(row) for row in rows[np.argsort(-(vectors[rows] @ vector))[:10]]} for vector in asked]

    rows = np.arange(3000)
    assert await recall(rows) >= 0.9
    gone = {row for nearest in exact(rows) for row in nearest}
    await graph.delete_documents("c", sorted(gone), deadline=soon())
    assert await recall(np.array([row for row in rows if str(row) not in gone])) >= 0.9
    await index.close()
    await graph.close()

"""What the versioned store does besides the port: what it keeps and removes, how it waits, and what it asks of an engine."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from loremesh_agents.adapters.graph.versioned import VersionedGraphStore, writer
from loremesh_agents.adapters.graph.versioned.chain import LANDMARK
from loremesh_agents.adapters.graph.versioned.engine import Vertex
from loremesh_agents.adapters.graph.versioned.schema import migrate, pending
from loremesh_agents.adapters.graph.versioned.timing import Clock, Timing
from loremesh_agents.adapters.graph.versioned.vector_sets import VersionedVectorSets
from loremesh_agents.bootstrap.graph_care import graph_report, migrate_schema
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite, Outcome
from loremesh_agents.domain.errors import BackendUnavailable, ConfigurationError, WriteConflict
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.graph_schema import VertexLabel
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import LATEST
from tests.conformance.memory_engine import Graph, MemoryEngine, no_fault
from tests.documents import document, soon, writes

TIMING = Timing()


class SetClock(Clock):
    """A clock that a test sets; who waits moves it on."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


@pytest.fixture
def graph() -> Graph:
    return Graph()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def store(graph: Graph, clock: SetClock) -> AsyncIterator[VersionedGraphStore]:
    opened = VersionedGraphStore(MemoryEngine(graph), clock=clock)
    yield opened
    await opened.close()


async def put(store: VersionedGraphStore, *documents: Document, collection: str = "c") -> list[Outcome]:
    _, results = await store.write(collection, writes(*documents), embedding_model="", deadline=soon())
    return [result.outcome for result in results]


def held(graph: Graph) -> Counter[str]:
    """How many vertices of each kind there are."""
    return Counter(node.label.value for node in graph.nodes.values())


async def swept(store: VersionedGraphStore, clock: SetClock) -> None:
    """Removes all that can be removed."""
    for _ in range(4):
        clock.time += TIMING.retention
        while await store.sweep(deadline=soon()):
            pass


async def mentioned_by_all(store: VersionedGraphStore) -> set[str]:
    """Keys of the entities that the document "all" mentions."""
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        seeds = (await snapshot.enter(passages=[("c", "all#0")], deadline=soon())).passages.values()
        found = await snapshot.expand(
            list(seeds), [], entities=(), known=(), mention_limit=60, title_limit=5, deadline=soon()
        )
    return {edge.entity for edge in found.seed_mentions}


async def test_a_deleted_collection_leaves_nothing_but_what_tells_the_versions(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    await put(store, *(document(f"d{n}", f"Title {n}", "Ada met Babbage.", uri=f"https://x.org/{n}") for n in range(9)))
    await put(store, document("d1", "Another", "London fell."))
    await store.delete_documents("c", ["d2"], deadline=soon())
    assert await store.delete_collection("c", deadline=soon())
    await swept(store, clock)
    left = held(graph)
    assert left.keys() <= {"Register", "Decision", "Claim"}
    assert left["Claim"] <= 1
    assert not any(graph.outgoing.values())
    assert not graph.nodes["register"].sets["collections"]


async def embedded_anew(store: VersionedGraphStore, model: str) -> None:
    """Brings the collection to vectors of a model."""
    sets = VersionedVectorSets(store)
    await sets.begin("c", model, deadline=soon())
    found = await sets.unembedded("c", model, after=PassageRef(0), limit=100, deadline=soon())
    vectors = {ref: np.full(4, 0.5, dtype=np.float32) for ref in found.texts}
    await sets.add("c", model, vectors, deadline=soon())
    assert await sets.switch("c", model, deadline=soon())


def with_vectors(*documents: Document, further: str = "") -> list[DocumentWrite]:
    vector = np.full(4, 0.5, dtype=np.float32)
    return [
        replace(
            write,
            passages=tuple(
                replace(passage, vector=vector, further_vectors={further: vector} if further else {})
                for passage in write.passages
            ),
        )
        for write in writes(*documents)
    ]


async def test_vectors_that_a_collection_has_let_go_are_removed_once_nobody_can_read_them(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    documents = [document(f"d{n}", f"Title {n}", "Ada met Babbage.") for n in range(5)]
    await store.write("c", with_vectors(*documents), embedding_model="a", deadline=soon())
    await embedded_anew(store, "b")
    sets = VersionedVectorSets(store)
    await sets.drop("c", after=PassageRef(0), limit=1, deadline=soon())
    own = [node for node in graph.nodes.values() if node.label is VertexLabel.PASSAGE]
    assert all(node.properties["vector"] for node in own)
    assert (await graph_report(store, top=1, deadline=soon())).purging == 0
    await swept(store, clock)
    assert not any(node.properties["vector"] for node in own)
    assert held(graph)["Vector"] == len(own) == 5
    await embedded_anew(store, "c")
    await sets.drop("c", after=PassageRef(0), limit=1, deadline=soon())
    await swept(store, clock)
    assert {str(node.properties["model"]) for node in graph.nodes.values() if node.label is VertexLabel.VECTOR} == {"c"}
    # What has ended takes its vectors along, and so does what was given up.
    await embedded_anew(store, "d")
    await store.delete_documents("c", ["d0"], deadline=soon())
    engine = store.engine
    assert isinstance(engine, MemoryEngine)

    async def lose(method: str, number: int) -> None:
        if method == "applied":
            raise BackendUnavailable("memory engine")

    engine.fault = lose
    with pytest.raises(BackendUnavailable):
        await store.write(
            "c", with_vectors(document("e", "E", "Text."), further="c"), embedding_model="d", deadline=soon()
        )
    engine.fault = no_fault
    assert held(graph)["Vector"] > 10
    await swept(store, clock)
    assert held(graph)["Vector"] == 2 * held(graph)["Passage"] == 8
    await store.delete_collection("c", deadline=soon())
    await swept(store, clock)
    assert held(graph).keys() <= {"Register", "Decision", "Claim"}


async def test_what_is_let_go_of_takes_nothing_from_an_emptied_collection_that_is_written_again(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    await store.write("c", with_vectors(document("old", "Old", "Text.")), embedding_model="a", deadline=soon())
    await embedded_anew(store, "b")
    await store.delete_documents("c", ["old"], deadline=soon())
    await store.write("c", with_vectors(document("new", "New", "Text.")), embedding_model="c", deadline=soon())
    await swept(store, clock)
    assert held(graph)["Vector"] == 0
    found = await store.vector_changes("c", model="c", after_revision=0, limit=10, deadline=soon())
    assert found.vectors.tolist() == [[0.5] * 4]


async def test_a_switch_keeps_what_a_writer_must_know_of_titles(store: VersionedGraphStore, graph: Graph) -> None:
    with patch.object(writer, "CHECKPOINT_INTERVAL", 4):
        for number in range(3):
            written = with_vectors(document(f"d{number}", f"Engine number{number}", "A machine."))
            await store.write("c", written, embedding_model="a", deadline=soon())
        # The fourth revision, with the checkpoint.
        await embedded_anew(store, "b")
        fresh = VersionedGraphStore(MemoryEngine(graph))
        text = "The engine number0, the engine number1 and the engine number2."
        await fresh.write("c", with_vectors(document("all", "All", text)), embedding_model="b", deadline=soon())
    assert await mentioned_by_all(fresh) == {f"engine number{number}" for number in range(3)}


async def test_a_build_that_knows_nothing_of_two_models_reads_what_has_one(
    store: VersionedGraphStore, graph: Graph
) -> None:
    await store.write("c", with_vectors(document("a", "Ada", "Text.")), embedding_model="a", deadline=soon())
    await store.delete_collection("c", deadline=soon())
    stored = [str(value) for node in graph.nodes.values() for value in node.properties.values()]
    stored += [value for node in graph.nodes.values() for values in node.sets.values() for value in values]
    assert not any(
        name in text for text in stored for name in ("vector_set", "newest_set", '"other"', '"sets"', "vectors_alone")
    )


async def test_a_store_at_rest_is_swept_to_an_end(store: VersionedGraphStore, graph: Graph, clock: SetClock) -> None:
    await put(store, document("a", "Ada", "Ada met Babbage."))
    await put(store, document("a", "Ada", "Ada went to London."))
    await swept(store, clock)
    assert held(graph)["Passage"] == 1
    version = (await store.head(deadline=soon())).version
    for _ in range(5):
        clock.time += TIMING.retention
        assert not await store.sweep(deadline=soon())
    # A removal is a version, and must not give the next one something to remove.
    assert (await store.head(deadline=soon())).version == version


async def test_what_was_replaced_is_removed_once_nobody_can_read_it(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    await put(store, document("a", "Ada", "Ada met Babbage."))
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        refs = list((await snapshot.enter(passages=[("c", "a#0")], deadline=soon())).passages.values())
        for number in range(30):
            await put(store, document("a", "Ada", f"Ada went to London {number} times."))
        assert held(graph)["Passage"] == 31
        assert (await snapshot.fetch(refs, deadline=soon()))[refs[0]].text == "Ada met Babbage."
        await swept(store, clock)
        assert held(graph)["Passage"] == 1
        with pytest.raises(WriteConflict):
            await snapshot.fetch(refs, deadline=soon())
    assert (await store.collection("c", deadline=soon())).passage_count == 1


async def test_cells_stay_few_however_often_something_is_written(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    for number in range(300):
        await put(store, document("a", "Ada", f"Ada met Babbage {number} times."))
        clock.time += 5
    most = max(len(values) for node in graph.nodes.values() for values in node.sets.values())
    assert most < 80
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        entry = await snapshot.enter(terms=["ada", "babbage", "299", "298"], entities=["babbage"], deadline=soon())
    assert entry.statistics.document_frequencies == {"ada": 1, "babbage": 1, "299": 1, "298": 0}
    assert entry.entities["babbage"].mention_count == 1


async def test_old_versions_are_forgotten_and_still_nobody_misses_the_newest(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    away = VersionedGraphStore(MemoryEngine(graph), clock=clock)
    await put(store, document("a", "Ada", "Text."))
    assert (await away.revision("c", deadline=soon())).revision == 1
    for number in range(LANDMARK + 80):
        await store.write(
            "c", writes(document("a", "A", f"Text {number}.")), embedding_model="", deadline=Deadline.after(60)
        )
        clock.time += 2
    await swept(store, clock)
    assert held(graph)["Decision"] < 200
    expected = await store.collection("c", deadline=soon())
    assert await away.collection("c", deadline=soon()) == expected
    fresh = VersionedGraphStore(MemoryEngine(graph), clock=clock)
    assert await fresh.collection("c", deadline=soon()) == expected
    graph.nodes["register"].properties["head"] = 3  # the hint of a writer that was given up
    fresh = VersionedGraphStore(MemoryEngine(graph), clock=clock)
    assert await fresh.collection("c", deadline=soon()) == expected
    assert await put(away, document("b", "B", "New.")) == [Outcome.CREATED]


async def test_a_writer_that_died_is_given_up_after_its_lease(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    await put(store, document("a", "Ada", "Text."))

    async def die(method: str, number: int) -> None:
        if method == "applied":
            dying.dead = True

    dying = MemoryEngine(graph, fault=die)
    dying.split = lambda size: size // 2
    dead = VersionedGraphStore(dying, clock=clock)
    with pytest.raises(BackendUnavailable):
        await put(dead, document("b", "Babbage", "Never seen."))
    began = clock.time
    assert await put(store, document("c", "C", "Text.")) == [Outcome.CREATED]
    assert clock.time - began >= TIMING.lease
    assert held(graph)["Passage"] >= 2
    dying.release()
    collection = await store.collection("c", deadline=soon())
    assert (collection.document_count, collection.passage_count, collection.revision) == (2, 2, 2)
    await swept(store, clock)
    assert held(graph)["Passage"] == 2
    assert await put(store, document("b", "Babbage", "Never seen.")) == [Outcome.CREATED]


async def test_a_writer_whose_deadline_passes_does_not_hold_up_the_next(
    store: VersionedGraphStore, graph: Graph, clock: SetClock
) -> None:
    async def never(method: str, number: int) -> None:
        if method == "apply":
            await asyncio.sleep(3600)

    slow = VersionedGraphStore(MemoryEngine(graph, fault=never), clock=clock)
    write = asyncio.create_task(put(slow, document("b", "Babbage", "Never seen.")))
    while "claim1" not in graph.nodes:
        await asyncio.sleep(0)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    began = clock.time
    assert await put(store, document("c", "C", "Text.")) == [Outcome.CREATED]
    assert clock.time - began < 1
    await slow.close()


async def test_a_watcher_hears_of_what_another_process_writes_and_that_the_engine_is_gone(graph: Graph) -> None:
    here, there = VersionedGraphStore(MemoryEngine(graph)), VersionedGraphStore(MemoryEngine(graph))
    await put(here, document("a", "Ada", "Text."))
    watcher = here.watch("c", after_revision=1)
    coming = asyncio.ensure_future(anext(watcher))
    await put(there, document("b", "B", "Text."))
    assert (await coming).revision == 2
    coming = asyncio.ensure_future(anext(watcher))
    await asyncio.sleep(0)
    here.engine.dead = True
    with pytest.raises(BackendUnavailable):
        await coming
    await watcher.aclose()


async def test_a_question_asked_again_reads_no_statistics_anew(graph: Graph) -> None:
    store = VersionedGraphStore(MemoryEngine(graph))
    await put(store, document("a", "Ada", "Ada met Babbage."))
    counts: list[int] = []
    for _ in range(2):
        before = store.engine.requests
        async with store.snapshot(
            ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
        ) as snapshot:
            statistics = (await snapshot.enter(terms=["ada", "babbage"], deadline=soon())).statistics
        assert statistics.document_frequencies == {"ada": 1, "babbage": 1}
        counts.append(store.engine.requests - before)
    assert counts[1] < counts[0]
    await put(store, document("b", "B", "Babbage again."))
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        statistics = (await snapshot.enter(terms=["ada", "babbage"], deadline=soon())).statistics
    assert statistics.document_frequencies == {"ada": 1, "babbage": 2}


async def test_passages_that_were_read_before_are_asked_for_again_only_where_they_may_have_gone(graph: Graph) -> None:
    store = VersionedGraphStore(MemoryEngine(graph))
    await put(store, document("a", "Ada", "Ada met Babbage."), document("b", "B", "Babbage stayed."))

    async def shown(names: list[str]) -> tuple[list[str], int]:
        """The texts of some passages that are candidates, and how many requests these took."""
        async with store.snapshot(
            ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
        ) as snapshot:
            before = store.engine.requests
            features = await snapshot.features(refs, ["ada"], deadline=soon())
            assert list(features.passage_ids) == [f"c/{name}#0" for name in names]
            passages = await snapshot.fetch(features.refs, deadline=soon())
            return [passages[ref].text for ref in features.refs], store.engine.requests - before

    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        places = [("c", "a#0"), ("c", "b#0")]
        refs = list((await snapshot.enter(passages=places, deadline=soon())).passages.values())
    assert await shown(["a", "b"]) == (["Ada met Babbage.", "Babbage stayed."], 1)
    assert await shown(["a", "b"]) == (["Ada met Babbage.", "Babbage stayed."], 0)
    await store.delete_documents("c", ["a"], deadline=soon())
    assert await shown(["b"]) == (["Babbage stayed."], 1)
    assert await shown(["b"]) == (["Babbage stayed."], 1), "the one that has gone is looked for"
    # Not everybody may read everything any more.
    await put(store, document("h", "Hidden", "Ada rests.", readers=frozenset({"few"})))
    assert await shown(["b"]) == (["Babbage stayed."], 1)
    assert await shown(["b"]) == (["Babbage stayed."], 1)


async def test_who_waits_for_a_living_writer_in_vain_is_told(graph: Graph, store: VersionedGraphStore) -> None:
    graph.add_vertex(Vertex(VertexLabel.CLAIM, "claim1", {"claim": "{}"}))
    with pytest.raises(WriteConflict):
        await store.write("c", writes(document("c", "C", "Text.")), embedding_model="", deadline=Deadline.after(0.09))


async def test_a_commit_of_which_the_engine_lost_the_answer_is_acknowledged(graph: Graph) -> None:
    async def lose(method: str, number: int) -> None:
        if method == "created" and "decision1" in graph.nodes and lost.fault is lose:
            lost.fault = quiet
            raise BackendUnavailable("memory engine")

    async def quiet(method: str, number: int) -> None:
        await asyncio.sleep(0)

    lost = MemoryEngine(graph, fault=lose)
    store = VersionedGraphStore(lost)
    assert await put(store, document("a", "Ada", "Text.")) == [Outcome.CREATED]
    assert (await store.collection("c", deadline=soon())).revision == 1


async def test_a_store_with_another_schema_is_refused_with_what_mends_it(graph: Graph) -> None:
    graph.version = 0
    engine = MemoryEngine(graph)
    store = VersionedGraphStore(engine)
    with pytest.raises(ConfigurationError, match="graph schema 0, this build needs 2: run `loremesh graph migrate`"):
        await store.check(deadline=soon())
    assert await pending(engine, deadline=soon()) == (0, (1, 2))
    assert await migrate(engine, deadline=soon()) == (1, 2)
    assert await migrate(engine, deadline=soon()) == ()
    await store.check(deadline=soon())
    graph.version = 3
    with pytest.raises(ConfigurationError, match="newer"):
        await VersionedGraphStore(engine).check(deadline=soon())
    with pytest.raises(ConfigurationError, match="newer"):
        await migrate(engine, deadline=soon())


async def test_who_looks_after_a_store_sees_what_it_lacks_and_holds(graph: Graph) -> None:
    graph.version = 0
    store = VersionedGraphStore(MemoryEngine(graph))
    planned = await migrate_schema(store, plan=True, deadline=soon())
    assert (planned.found, planned.needed, list(planned.pending), planned.made) == (0, 2, [1, 2], ())
    assert (await migrate_schema(store, plan=False, deadline=soon())).made == (1, 2)
    assert (await migrate_schema(store, plan=False, deadline=soon())).pending == {}
    await put(store, document("a", "Ada", "Text."))
    await put(store, document("a", "Ada", "Text."))
    report = await graph_report(store, top=5, deadline=soon())
    assert [entry.name for entry in report.collections] == ["c"]
    assert (report.version, report.given_up, report.unswept, report.purging) == (2, 0, 2, 0)


async def test_a_process_that_begins_to_write_knows_every_title_without_reading_every_change(
    store: VersionedGraphStore, graph: Graph
) -> None:
    with patch.object(writer, "CHECKPOINT_INTERVAL", 8), patch.object(writer, "_CHANGES_AT_ONCE", 1):
        for number in range(44):
            await put(store, document(f"d{number}", f"Engine number{number}", "A machine."))
        fresh = VersionedGraphStore(MemoryEngine(graph))
        await put(fresh, document("all", "All", " and ".join(f"the engine number{number}" for number in range(44))))
        # Five checkpoints, and the four changes after the last; the rest is what the first write of a process takes.
        assert fresh.engine.requests <= 5 + 4 + 11
    keys = await mentioned_by_all(fresh)
    assert keys == {f"engine number{number}" for number in range(44)}


async def test_a_bulk_load_takes_few_requests_a_write(store: VersionedGraphStore) -> None:
    batches = [
        [document(f"d{10 * batch + n}", f"Title {batch} {n}", f"Ada met number {n} of {batch}.") for n in range(10)]
        for batch in range(12)
    ]
    await put(store, *batches[0])
    before = store.engine.requests
    for batch in batches[1:]:
        await put(store, *batch)
    # The claim and a look whether it stands, the documents, the changes, the decision.
    assert (store.engine.requests - before) / len(batches[1:]) <= 5


class Refusing:
    """A fault that refuses some methods while it is on."""

    def __init__(self, *methods: str) -> None:
        self.methods = methods
        self.on = False

    async def __call__(self, name: str, number: int) -> None:
        await asyncio.sleep(0)
        if self.on and name in self.methods:
            raise BackendUnavailable("memory engine")


async def test_a_removal_that_fails_costs_no_write_and_is_made_up_for_later(
    graph: Graph, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing("remove")
    store = VersionedGraphStore(MemoryEngine(graph, fault=refusing), clock=clock)
    failures: list[str] = []
    store.on_failed_sweep(lambda: failures.append("failed"))
    for number in range(20):
        await put(store, document("a", "Ada", f"Ada went to London {number} times."))
        clock.time += 1
    clock.time += TIMING.retention
    refusing.on = True
    for number in range(20, 25):
        assert await put(store, document("a", "Ada", f"Ada went to London {number} times.")) == [Outcome.UPDATED]
    assert held(graph)["Passage"] == 25
    # It is not tried with every write.
    assert failures == ["failed"]
    assert "what has ended is not removed yet" in caplog.text
    with pytest.raises(BackendUnavailable):
        await store.sweep(deadline=soon())
    refusing.on = False
    clock.time += TIMING.retention
    await put(store, document("b", "Babbage", "Babbage stayed."))
    assert held(graph)["Passage"] < 10
    await swept(store, clock)
    assert held(graph)["Passage"] == 2
    await store.close()


@pytest.mark.parametrize("broken_at", range(1, 8))
async def test_a_removal_that_broke_off_leaves_nothing_behind_for_ever(
    graph: Graph, clock: SetClock, broken_at: int
) -> None:
    removals = 0
    losing = Refusing("applied")

    async def fault(name: str, number: int) -> None:
        nonlocal removals
        await losing(name, number)
        removals += name == "remove"
        if name == "remove" and removals == broken_at:
            raise BackendUnavailable("memory engine")

    store = VersionedGraphStore(MemoryEngine(graph, fault=fault), clock=clock)
    await put(store, document("a", "Ada", "Ada met Babbage."))
    losing.on = True
    with pytest.raises(BackendUnavailable):
        await put(store, document("b", "Bridge", "The Bridge fell."))
    losing.on = False
    assert held(graph)["Passage"] == 2
    await put(store, document("a", "Ada", "Ada went to London."), document("b", "Babbage", "Babbage stayed."))

    async def sweep_repeatedly() -> None:
        for _ in range(3):
            clock.time += TIMING.retention
            with suppress(BackendUnavailable):
                while await store.sweep(deadline=soon()):
                    pass

    await sweep_repeatedly()
    assert held(graph)["Passage"] == 2
    await store.delete_collection("c", deadline=soon())
    await sweep_repeatedly()
    assert removals > broken_at
    assert held(graph).keys() <= {"Register", "Decision", "Claim"}
    await store.close()

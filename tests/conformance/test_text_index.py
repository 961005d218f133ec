"""What every text index does."""

import math
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.revision import LATEST
from tests.conformance.conftest import GRAPHS, Stores, opened
from tests.documents import document, soon, writes
from tests.engines.search_indexes import KeptGraph, opensearch_text

OUTSIDE = tuple(pytest.param(f"opensearch over {graph}", marks=pytest.mark.engines) for graph in GRAPHS)

TEXTS = {
    "bridge": "London Bridge crosses the Thames.",
    "tower": "The tower stands near the Thames in London.",
    "café": "A café in Köln; object.__exit__ is not served.",
    "tea": "日本 tea and the quiet protocol.",
}


@pytest.fixture(params=[*GRAPHS, *OUTSIDE])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    index, _, graph = request.param.rpartition(" over ")
    async with opened(graph, tmp_path) as found:
        if not index:
            yield found
            return
        async with opensearch_text(request.getfixturevalue(index), found.graph) as text:
            yield Stores(KeptGraph(found.graph, [text]), text)


async def put(stores: Stores, *documents: Document, collection: str = "c") -> None:
    await stores.graph.write(collection, writes(*documents), embedding_model="", deadline=soon())


async def found(stores: Stores, question: str, *, collections: tuple[str, ...] = ("c",), limit: int = 10) -> list[str]:
    """The ids of the documents that are proposed, the best first."""
    async with stores.graph.snapshot(
        collections, principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        statistics = (await snapshot.enter(terms=search_terms(question), deadline=soon())).statistics
        refs = await stores.text.search(
            statistics.document_frequencies, revisions=snapshot.revisions, limit=limit, deadline=soon()
        )
        passages = await snapshot.fetch(refs, deadline=soon())
    return [passages[ref].document_id for ref in refs]


@pytest.fixture
async def filled(stores: Stores) -> Stores:
    await put(stores, *(document(name, name, text) for name, text in TEXTS.items()))
    return stores


async def test_passages_with_the_words_are_proposed(filled: Stores) -> None:
    assert set(await found(filled, "thames")) == {"bridge", "tower"}
    assert await found(filled, "nowhere") == []
    assert await found(filled, "") == []


@pytest.mark.parametrize(
    ("question", "name"), [("CAFE", "café"), ("koln", "café"), ("__exit__", "café"), ("exit", "café"), ("本", "tea")]
)
async def test_words_are_found_however_they_are_written(filled: Stores, question: str, name: str) -> None:
    assert await found(filled, question) == [name]


async def test_what_has_the_rarer_words_comes_first(filled: Stores) -> None:
    assert (await found(filled, "the thames bridge"))[0] == "bridge"
    assert await found(filled, "thames bridge", limit=1) == ["bridge"]


async def test_the_best_by_exact_bm25_is_among_the_proposed(stores: Stores) -> None:
    vocabulary = ["red", "green", "blue", "black", "white", "grey"]
    texts = {
        f"d{number}": " ".join(vocabulary[(number * step) % 6] for step in range(1, 4 + number % 5))
        for number in range(40)
    }
    await put(stores, *(document(name, f"t{name}", text) for name, text in texts.items()))
    bags = {name: Counter(search_terms(f"t{name} {text}")) for name, text in texts.items()}
    mean = sum(bag.total() for bag in bags.values()) / len(bags)
    asked = ["red", "grey"]

    def score(bag: Counter[str]) -> float:
        total = 0.0
        for term in asked:
            holding = sum(term in other for other in bags.values())
            weight = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
            total += weight * bag[term] * 1.9 / (bag[term] + 0.9 * (0.6 + 0.4 * bag.total() / mean))
        return total

    best = max(bags, key=lambda name: score(bags[name]))
    assert best in await found(stores, " ".join(asked), limit=15)


async def test_it_is_never_behind_the_graph(filled: Stores) -> None:
    await put(filled, document("bridge", "bridge", "A viaduct."))
    assert await found(filled, "thames") == ["tower"]
    assert await found(filled, "viaduct") == ["bridge"]
    await filled.graph.delete_documents("c", ["tower"], deadline=soon())
    assert await found(filled, "thames") == []


async def test_collections_are_kept_apart(filled: Stores) -> None:
    await put(filled, document("other", "other", "The Thames again."), collection="d")
    assert await found(filled, "thames", collections=("d",)) == ["other"]
    assert set(await found(filled, "thames", collections=("c", "d"))) == {"bridge", "tower", "other"}
    await filled.graph.delete_collection("d", deadline=soon())
    await put(filled, document("new", "new", "Nothing."), collection="d")
    assert await found(filled, "thames", collections=("d",)) == []


@pytest.mark.parametrize(
    "term",
    ['"', "a OR b", "words:the", "x*", "NEAR(a b)", "'; DROP TABLE passage; --", "^the", "", "\\0", "*", "{thames}"],
)
async def test_a_term_is_never_read_as_a_query(filled: Stores, term: str) -> None:
    revision = await filled.graph.revision("c", deadline=soon())
    await filled.text.search({term: 1}, revisions=(revision,), limit=5, deadline=soon())
    assert set(await found(filled, "thames")) == {"bridge", "tower"}


async def test_a_passed_deadline_is_said(filled: Stores) -> None:
    revision = await filled.graph.revision("c", deadline=soon())
    with pytest.raises(BudgetExhausted):
        await filled.text.search({"thames": 2}, revisions=(revision,), limit=5, deadline=Deadline.after(-1))


async def test_common_words_do_not_hide_the_passage_of_a_rare_one(filled: Stores) -> None:
    await put(filled, *(document(f"s{number}", "song", "the the the common refrain") for number in range(30)))
    revision = await filled.graph.revision("c", deadline=soon())
    # What the counts say of a far larger collection: an index that leaves words out leaves out the commonest.
    counts = {"the": 900_000, "common": 600_000, "refrain": 500_000, "viaduct": 0, "bridge": 1}
    refs = await filled.text.search(counts, revisions=(revision,), limit=5, deadline=soon())
    async with filled.graph.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        passages = await snapshot.fetch(refs, deadline=soon())
    assert passages[refs[0]].document_id == "bridge"


async def test_a_question_of_common_words_alone_is_answered(filled: Stores) -> None:
    revision = await filled.graph.revision("c", deadline=soon())
    counts = {"thames": 1_000_000, "the": 2_000_000}
    assert len(await filled.text.search(counts, revisions=(revision,), limit=5, deadline=soon())) >= 2


async def test_an_old_state_of_a_collection_made_anew_is_not_searched(filled: Stores) -> None:
    old = await filled.graph.revision("c", deadline=soon())
    await filled.graph.delete_collection("c", deadline=soon())
    await put(filled, document("new", "new", "The Thames."))
    assert await filled.text.search({"thames": 1}, revisions=(old,), limit=5, deadline=soon()) == ()

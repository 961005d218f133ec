"""What every graph store does."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import MOST_READER_SETS, CollectionOptions, Link, Outcome
from loremesh_agents.domain.errors import (
    BudgetExhausted,
    CollectionNotFound,
    CollectionOptionsMismatch,
    CollectionRecreated,
    DocumentNotFound,
    EmbeddingMismatch,
    RevisionNotReached,
)
from loremesh_agents.domain.filter import EVERYTHING, Condition, MetadataFilter
from loremesh_agents.domain.principal import ANONYMOUS, Principal
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import LATEST, CollectionRevision, Consistency
from loremesh_agents.ports.graph import GraphStore, TextChanges
from tests.documents import document, soon, write, writes

ADA = document(
    "ada", "Ada Lovelace", "Ada Lovelace wrote notes on the Analytical Engine while Charles Babbage was abroad."
)
ENGINE = document("engine", "Analytical Engine", "The Analytical Engine was designed by Charles Babbage in London.")
LONDON = document("london", "London", "London is the capital of England.")


async def put(store: GraphStore, *documents: object, collection: str = "c") -> CollectionRevision:
    revision, _ = await store.write(collection, writes(*documents), embedding_model="", deadline=soon())
    return revision


def view(
    store: GraphStore,
    *,
    principal: Principal = ANONYMOUS,
    kept: MetadataFilter = EVERYTHING,
    consistency: Consistency = LATEST,
):
    return store.snapshot(["c"], principal=principal, filter=kept, consistency=consistency, deadline=soon())


async def linked_ids(store: GraphStore, key: str, **options: object) -> dict[str, float]:
    async with view(store, **options) as snapshot:
        found = await snapshot.enter(entities=[key], title_limit=10, deadline=soon())
        passages = await snapshot.fetch([edge.passage for edge in found.titles], deadline=soon())
        return {passages[edge.passage].document_id: edge.weight for edge in found.titles}


async def reached_ids(store: GraphStore, key: str, **options: object) -> set[str]:
    async with view(store, **options) as snapshot:
        found = await snapshot.expand(
            [], [], entities=[key], known=(), mention_limit=60, title_limit=10, deadline=soon()
        )
        refs = [ref for refs in found.mentions.values() for ref in refs]
        return {passage.document_id for passage in (await snapshot.fetch(refs, deadline=soon())).values()}


async def test_a_written_document_is_there_whole(store: GraphStore) -> None:
    revision, results = await store.write("c", writes(ADA, ENGINE), embedding_model="", deadline=soon())
    assert revision.revision == 1
    assert [result.outcome for result in results] == [Outcome.CREATED, Outcome.CREATED]
    collection = await store.collection("c", deadline=soon())
    assert (collection.document_count, collection.passage_count) == (2, 2)
    _, summary, passages = await store.document(
        "c", "ada", principal=ANONYMOUS, first_passage=0, passage_limit=10, deadline=soon()
    )
    assert summary.title == "Ada Lovelace"
    assert passages[0].text == ADA.sections[0].text
    assert passages[0].passage_id == "ada#0"


async def test_the_same_content_is_unchanged_and_makes_no_revision(store: GraphStore) -> None:
    await put(store, ADA)
    revision, results = await store.write("c", writes(ADA), embedding_model="", deadline=soon())
    assert results[0].outcome is Outcome.UNCHANGED
    assert revision.revision == 1


async def test_an_older_source_version_never_comes_back(store: GraphStore) -> None:
    await put(store, replace(ADA, source_version=5))
    older = replace(document("ada", "Ada", "Old text about her."), source_version=4)
    _, results = await store.write("c", writes(older), embedding_model="", deadline=soon())
    assert results[0].outcome is Outcome.STALE
    await store.delete_documents("c", ["ada"], deadline=soon())
    _, results = await store.write("c", writes(older), embedding_model="", deadline=soon())
    assert results[0].outcome is Outcome.STALE
    _, results = await store.write("c", writes(replace(ADA, source_version=6)), embedding_model="", deadline=soon())
    assert results[0].outcome is Outcome.CREATED


async def test_titles_and_mentions_are_found(store: GraphStore) -> None:
    await put(store, ADA, ENGINE)
    assert await linked_ids(store, "analytical engine") == {"engine": 1.0}
    assert await reached_ids(store, "charles babbage") == {"ada", "engine"}


async def test_a_new_title_links_old_passages_and_a_deleted_one_unlinks_them(store: GraphStore) -> None:
    lower = document("notes", "Notes", "she studied the difference engine with care, and more.")
    await put(store, lower)
    assert await reached_ids(store, "difference engine") == set()
    await put(store, document("de", "Difference engine", "A machine."))
    assert "notes" in await reached_ids(store, "difference engine")
    await store.delete_documents("c", ["de"], deadline=soon())
    assert await reached_ids(store, "difference engine") == set()


async def test_deleting_everything_leaves_nothing(store: GraphStore) -> None:
    await put(store, ADA, ENGINE, LONDON)
    _, deleted = await store.delete_documents("c", ["ada", "engine", "london", "never there"], deadline=soon())
    assert deleted == 3
    collection = await store.collection("c", deadline=soon())
    assert (collection.document_count, collection.passage_count, collection.entity_count) == (0, 0, 0)
    async with view(store) as snapshot:
        statistics = (await snapshot.enter(terms=["london", "the"], deadline=soon())).statistics
    assert statistics.passage_count == 0
    assert set(statistics.document_frequencies.values()) == {0}


async def test_changes_are_reported_in_order_with_deletes(store: GraphStore) -> None:
    await put(store, ADA)
    await put(store, ENGINE)
    await store.delete_documents("c", ["ada"], deadline=soon())
    reached, changes = await store.changes("c", after_revision=0, limit=10, deadline=soon())
    assert reached.revision == 3
    assert [(change.document_id, change.document is None) for change in changes] == [("engine", False), ("ada", True)]
    reached, changes = await store.changes("c", after_revision=0, limit=1, deadline=soon())
    assert (reached.revision, [change.document_id for change in changes]) == (2, ["engine"])


async def test_a_hidden_document_appears_nowhere(store: GraphStore) -> None:
    secret = document("secret", "Analytical Engine", "Charles Babbage hid plans.", readers=frozenset({"staff"}))
    await put(store, ADA, secret)
    staff = Principal("s", frozenset({"staff"}))
    assert await linked_ids(store, "analytical engine") == {}
    assert set(await linked_ids(store, "analytical engine", principal=staff)) == {"secret"}
    assert await reached_ids(store, "charles babbage") == {"ada"}
    assert await reached_ids(store, "charles babbage", principal=staff) == {"ada", "secret"}
    async with view(store, principal=staff) as snapshot:
        located = (await snapshot.enter(passages=[("c", "secret#0")], deadline=soon())).passages
    async with view(store) as snapshot:
        assert (await snapshot.enter(passages=[("c", "secret#0")], deadline=soon())).passages == {}
        refs = list(located.values())
        assert await snapshot.fetch(refs, deadline=soon()) == {}
        assert (await snapshot.features(refs, ["plans"], deadline=soon())).refs == ()
        expansion = await snapshot.expand(
            refs, [], entities=(), known=(), mention_limit=60, title_limit=5, deadline=soon()
        )
        assert expansion.seed_mentions == ()
    with pytest.raises(DocumentNotFound):
        await store.document("c", "secret", principal=ANONYMOUS, first_passage=0, passage_limit=1, deadline=soon())


async def test_a_hidden_title_does_not_join_what_is_visible(store: GraphStore) -> None:
    first = document("one", "One", "they used the quiet protocol here.")
    second = document("two", "Two", "we know the quiet protocol too.")
    secret = document("secret", "Quiet protocol", "Nothing.", readers=frozenset({"staff"}))
    await put(store, first, second, secret)
    assert await reached_ids(store, "quiet protocol") == set()
    staff = Principal("s", frozenset({"staff"}))
    assert {"one", "two"} <= await reached_ids(store, "quiet protocol", principal=staff)


async def test_filters_keep_documents_by_metadata(store: GraphStore) -> None:
    await put(
        store,
        document("a", "Engine", "Text a.", metadata={"lang": "en"}),
        document("b", "Engine", "Text b.", metadata={"lang": "de"}),
    )
    german = MetadataFilter((Condition("lang", frozenset({"de", "fr"})),))
    assert set(await linked_ids(store, "engine", kept=german)) == {"b"}


async def test_links_lead_to_documents_by_uri_or_id(store: GraphStore) -> None:
    source = document("s", "Source", "See the target.", links=(Link("https://example.org/t"), Link("u")))
    await put(
        store, source, document("t", "Target", "Here.", uri="https://example.org/t"), document("u", "Other", "There.")
    )
    async with view(store) as snapshot:
        seeds = list((await snapshot.enter(passages=[("c", "s#0")], deadline=soon())).passages.values())
        found = await snapshot.expand(
            seeds, [], entities=(), known=(), mention_limit=60, title_limit=5, deadline=soon()
        )
        targets = await snapshot.fetch([edge.target for edge in found.references], deadline=soon())
    assert {passage.document_id for passage in targets.values()} == {"t", "u"}
    assert {edge.in_degree for edge in found.references} == {1}


async def test_statistics_and_features_are_exact(store: GraphStore) -> None:
    await put(store, LONDON, document("x", "X", "London London bridge"))
    async with view(store) as snapshot:
        statistics = (await snapshot.enter(terms=["london", "bridge", "nowhere"], deadline=soon())).statistics
        assert statistics.document_frequencies == {"london": 2, "bridge": 1, "nowhere": 0}
        refs = (await snapshot.enter(passages=[("c", "x#0")], deadline=soon())).passages.values()
        features = await snapshot.features(refs, ["london", "bridge", "nowhere"], deadline=soon())
    assert features.passage_ids == ("c/x#0",)
    assert features.term_frequencies.tolist() == [[2, 1, 0]]
    assert features.lengths.tolist() == [4]


DIVIDED = CollectionOptions(reader_statistics=True)
STAFF = Principal("s", frozenset({"staff"}))


async def test_statistics_are_of_all_documents_or_of_the_readable_ones(divided_store: GraphStore) -> None:
    documents = writes(
        LONDON,
        document("plan", "Plan", "London Bridge will fall, and London with it.", readers=frozenset({"staff"})),
        document("list", "List", "London, Paris, Rome.", readers=frozenset({"board"})),
    )
    await divided_store.write("open", documents, embedding_model="", deadline=soon())
    await divided_store.write("divided", documents, embedding_model="", options=DIVIDED, deadline=soon())

    async def known(collections: list[str], principal: Principal) -> tuple[int, int, object]:
        async with divided_store.snapshot(
            collections, principal=principal, filter=EVERYTHING, consistency=LATEST, deadline=soon()
        ) as snapshot:
            entry = await snapshot.enter(terms=["london"], entities=["london"], deadline=soon())
        entity = entry.entities["london"]
        counts = (entity.mention_count, entity.title_count)
        return entry.statistics.passage_count, entry.statistics.document_frequencies["london"], counts

    assert await known(["open"], ANONYMOUS) == (3, 3, (3, 1))
    assert await known(["divided"], ANONYMOUS) == (1, 1, (1, 1))
    assert await known(["divided"], STAFF) == (2, 2, (2, 1))
    assert await known(["divided"], Principal("a", frozenset({"staff", "board"}))) == (3, 3, (3, 1))
    assert await known(["open", "divided"], STAFF) == (5, 5, (5, 2))


async def test_a_filter_changes_no_statistics(divided_store: GraphStore) -> None:
    await divided_store.write("c", (), embedding_model="", options=DIVIDED, deadline=soon())
    secret = document("s", "Secret", "London too.", readers=frozenset({"staff"}))
    await put(divided_store, LONDON, secret, document("b", "B", "London again.", metadata={"lang": "de"}))
    german = MetadataFilter((Condition("lang", frozenset({"de"})),))
    async with view(divided_store, kept=german) as snapshot:
        statistics = (await snapshot.enter(terms=["london"], deadline=soon())).statistics
    assert (statistics.passage_count, statistics.document_frequencies["london"]) == (2, 2)


async def test_an_entity_that_only_hidden_documents_know_is_not_known(divided_store: GraphStore) -> None:
    await divided_store.write("c", (), embedding_model="", options=DIVIDED, deadline=soon())
    secret = document("secret", "Quiet protocol", "Xanadu uses it.", readers=frozenset({"staff"}))
    await put(divided_store, document("one", "One", "they used the quiet protocol here."), secret)
    async with view(divided_store) as snapshot:
        entry = await snapshot.enter(entities=["xanadu", "quiet protocol"], deadline=soon())
    assert entry.entities == {}
    async with view(divided_store, principal=STAFF) as snapshot:
        entry = await snapshot.enter(entities=["xanadu", "quiet protocol"], deadline=soon())
    assert {key: entity.mention_count for key, entity in entry.entities.items()} == {"quiet protocol": 1, "xanadu": 1}


async def test_a_title_that_comes_back_counts_what_it_makes_once(divided_store: GraphStore) -> None:
    await divided_store.write("c", (), embedding_model="", options=DIVIDED, deadline=soon())
    title = document("title", "Quiet protocol", "Nothing.")
    await put(
        divided_store,
        document("lower", "Lower", "they used the quiet protocol here."),
        document("upper", "Upper", "It was called Quiet Protocol then."),
        document("secret", "Secret", "Nothing.", readers=frozenset({"staff"})),
    )
    counts = []
    for _ in range(2):
        await put(divided_store, title)
        async with view(divided_store) as snapshot:
            counts.append((await snapshot.enter(entities=["quiet protocol"], deadline=soon())).entities)
        await divided_store.delete_documents("c", ["title"], deadline=soon())
    assert [(found["quiet protocol"].mention_count, found["quiet protocol"].title_count) for found in counts] == [
        (2, 1),
        (2, 1),
    ]
    async with view(divided_store) as snapshot:
        left = (await snapshot.enter(entities=["quiet protocol"], deadline=soon())).entities["quiet protocol"]
    assert (left.mention_count, left.title_count) == (1, 0)


async def test_links_from_hidden_passages_count_for_nobody_else(divided_store: GraphStore) -> None:
    await divided_store.write("c", (), embedding_model="", options=DIVIDED, deadline=soon())
    hidden = [
        document(f"h{number}", f"H{number}", "See.", links=(Link("london"),), readers=frozenset({"staff"}))
        for number in range(3)
    ]
    await put(divided_store, LONDON, document("s", "S", "See London.", links=(Link("london"),)), *hidden)
    degrees = []
    for principal in (ANONYMOUS, STAFF):
        async with view(divided_store, principal=principal) as snapshot:
            seeds = list((await snapshot.enter(passages=[("c", "s#0")], deadline=soon())).passages.values())
            found = await snapshot.expand(
                seeds, [], entities=(), known=(), mention_limit=60, title_limit=5, deadline=soon()
            )
        degrees += [edge.in_degree for edge in found.references]
    assert degrees == [1, 4]


async def test_a_collection_s_options_are_those_of_its_first_write(divided_store: GraphStore) -> None:
    await divided_store.write("c", writes(LONDON), embedding_model="", options=DIVIDED, deadline=soon())
    assert (await divided_store.collection("c", deadline=soon())).options == DIVIDED
    await put(divided_store, ADA)
    with pytest.raises(CollectionOptionsMismatch):
        await divided_store.write("c", (), embedding_model="", options=CollectionOptions(False), deadline=soon())
    await put(divided_store, ADA, collection="d")
    assert (await divided_store.collection("d", deadline=soon())).options == CollectionOptions(reader_statistics=False)
    with pytest.raises(CollectionOptionsMismatch):
        await divided_store.write("d", writes(LONDON), embedding_model="", options=DIVIDED, deadline=soon())
    assert (await divided_store.collection("d", deadline=soon())).document_count == 1
    await divided_store.delete_collection("d", deadline=soon())
    await divided_store.write("d", writes(LONDON), embedding_model="", options=DIVIDED, deadline=soon())
    assert (await divided_store.collection("d", deadline=soon())).options == DIVIDED


async def test_statistics_per_set_of_readers_are_refused_by_name_where_there_are_none(
    undivided_store: GraphStore,
) -> None:
    with pytest.raises(CollectionOptionsMismatch, match=r"'c' cannot have reader_statistics: the .+ store"):
        await undivided_store.write("c", writes(LONDON), embedding_model="", options=DIVIDED, deadline=soon())
    with pytest.raises(CollectionNotFound):
        await undivided_store.collection("c", deadline=soon())
    await undivided_store.write(
        "c", writes(LONDON), embedding_model="", options=CollectionOptions(False), deadline=soon()
    )
    with pytest.raises(CollectionOptionsMismatch):
        await undivided_store.write("c", (), embedding_model="", options=DIVIDED, deadline=soon())


async def test_sets_of_readers_are_bounded_where_statistics_are_kept_of_them(divided_store: GraphStore) -> None:
    def of(number: int, text: str = "A text."):
        return document(f"d{number}", f"D{number}", text, readers=frozenset({f"group-{number}"}))

    full = [of(number) for number in range(MOST_READER_SETS)]
    await divided_store.write("c", writes(*full), embedding_model="", options=DIVIDED, deadline=soon())

    async def outcomes(*documents: object) -> list[Outcome]:
        _, results = await divided_store.write("c", writes(*documents), embedding_model="", deadline=soon())
        return [result.outcome for result in results]

    more = of(MOST_READER_SETS)
    assert await outcomes(more, LONDON) == [Outcome.REFUSED, Outcome.CREATED]
    assert (await divided_store.collection("c", deadline=soon())).document_count == MOST_READER_SETS + 1
    assert await outcomes(replace(of(0, "Another text."), readers=frozenset({"group-1"})), more) == [
        Outcome.UPDATED,
        Outcome.CREATED,
    ]
    await divided_store.delete_documents("c", ["d5"], deadline=soon())
    assert await outcomes(of(0, "A third text."), of(5)) == [Outcome.UPDATED, Outcome.REFUSED]


async def test_vectors_come_back_exactly_and_changes_replay_to_the_final_set(store: GraphStore) -> None:
    def with_vector(found, *values: float):
        made = write(found)
        return replace(made, passages=tuple(replace(p, vector=np.array(values, np.float32)) for p in made.passages))

    await store.write("c", [with_vector(ADA, 1, 0), with_vector(ENGINE, 0, 1)], embedding_model="m", deadline=soon())
    first = await store.vector_changes("c", after_revision=0, limit=100, deadline=soon())
    assert first.vectors.tolist() == [[1, 0], [0, 1]]
    await store.delete_documents("c", ["ada"], deadline=soon())
    second = await store.vector_changes("c", after_revision=first.revision, limit=100, deadline=soon())
    assert (second.removed, second.added, second.more) == ((first.added[0],), (), False)
    with pytest.raises(EmbeddingMismatch):
        await store.write("c", writes(LONDON), embedding_model="other", deadline=soon())


async def test_every_string_may_hold_anything(store: GraphStore) -> None:
    evil = "x'; DROP TABLE document; -- \" OR 1=1 \\ % _ ) { } $ \u0301\U0001f600 日本"
    found = replace(
        document("id " + evil, "Title " + evil, "Text " + evil, metadata={evil[:100]: evil}, readers=frozenset({evil})),
        uri=evil,
        aliases=(evil,),
    )
    revision = await put(store, found)
    member = Principal("p", frozenset({evil}))
    kept = MetadataFilter((Condition(evil[:100], frozenset({evil})),))
    async with view(store, principal=member, kept=kept, consistency=Consistency({"c": revision})) as snapshot:
        located = (await snapshot.enter(passages=[("c", f"id {evil}#0")], deadline=soon())).passages
        assert len(located) == 1
        keys = [evil, '"', "*", "a OR b", "NEAR(a)"]
        await snapshot.enter(terms=[evil, '"'], entities=keys, title_limit=5, deadline=soon())
        passage = next(iter((await snapshot.fetch(list(located.values()), deadline=soon())).values()))
    assert passage.metadata == {evil[:100]: evil}
    await store.delete_documents("c", ["id " + evil], deadline=soon())
    assert (await store.collection("c", deadline=soon())).entity_count == 0


async def test_a_snapshot_stays_what_it_is_while_others_write(store: GraphStore) -> None:
    await put(store, ADA)
    async with view(store) as snapshot:
        before = (await snapshot.enter(terms=["london"], deadline=soon())).statistics
        await put(store, LONDON)
        assert (await snapshot.enter(terms=["london"], deadline=soon())).statistics == before
        assert snapshot.revisions[0].revision == 1
    async with view(store) as snapshot:
        assert snapshot.revisions[0].revision == 2


async def test_a_read_waits_for_the_revision_that_it_needs(store: GraphStore) -> None:
    first = await put(store, ADA)
    needed = replace(first, revision=2)

    async def read() -> int:
        async with view(store, consistency=Consistency({"c": needed})) as snapshot:
            return snapshot.revisions[0].revision

    reading = asyncio.create_task(read())
    await put(store, ENGINE)
    assert await reading == 2
    never = Consistency({"c": replace(first, revision=99)})
    with pytest.raises(RevisionNotReached):
        async with store.snapshot(
            ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=never, deadline=Deadline.after(0.1)
        ):
            pass


async def test_a_collection_made_anew_has_another_uid(store: GraphStore) -> None:
    first = await put(store, ADA)
    assert await store.delete_collection("c", deadline=soon())
    assert not await store.delete_collection("c", deadline=soon())
    with pytest.raises(CollectionNotFound):
        await store.collection("c", deadline=soon())
    second = await put(store, ADA)
    assert second.collection_uid != first.collection_uid
    with pytest.raises(CollectionRecreated):
        async with view(store, consistency=Consistency({"c": first})):
            pass


async def test_collections_are_listed_in_order_by_pages(store: GraphStore) -> None:
    for name in ("b", "a", "c"):
        await put(store, ADA, collection=name)
    first = await store.collections(after="", limit=2, deadline=soon())
    rest = await store.collections(after=first[-1].name, limit=2, deadline=soon())
    assert [entry.name for entry in (*first, *rest)] == ["a", "b", "c"]


async def test_a_watcher_sees_revisions_rise(store: GraphStore) -> None:
    await put(store, ADA)
    watcher = store.watch("c", after_revision=0)
    assert (await anext(watcher)).revision == 1
    await put(store, ENGINE)
    assert (await anext(watcher)).revision == 2
    await watcher.aclose()


async def test_a_passed_deadline_stops_the_query(store: GraphStore) -> None:
    await put(store, ADA)
    with pytest.raises(BudgetExhausted):
        async with store.snapshot(
            ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=Deadline.after(-1)
        ):
            pass
    assert (await store.collection("c", deadline=soon())).document_count == 1


async def test_concurrent_writers_lose_nothing(store: GraphStore) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(put(store, document(f"d{number}", f"Title {number}", f"Charles Babbage, text {number}.")))
    collection = await store.collection("c", deadline=soon())
    assert (collection.document_count, collection.revision) == (20, 20)
    assert len(await reached_ids(store, "charles babbage")) == 20


async def all_words(store: GraphStore, *, after_revision: int = 0, limit: int) -> tuple[list[TextChanges], set[str]]:
    """The pages of a text index that begins at a revision, and the texts that it then holds in addition."""
    pages: list[TextChanges] = []
    held: dict[PassageRef, str] = {}
    more = True
    while more:
        page = await store.text_changes("c", after_revision=after_revision, limit=limit, deadline=soon())
        pages.append(page)
        for ref in page.removed:
            held.pop(ref, None)
        held.update({entry.ref: entry.words for entry in page.added})
        assert page.revision > after_revision or not page.more
        after_revision, more = page.revision, page.more
    return pages, set(held.values())


async def test_words_come_with_all_search_terms_of_a_passage(store: GraphStore) -> None:
    await put(store, document("ada", "Countess of Lovelace", "Ada's notes: object.__exit__ in Köln, twice in Köln."))
    page = await store.text_changes("c", after_revision=0, limit=10, deadline=soon())
    (entry,) = page.added
    (passage,) = write(
        document("ada", "Countess of Lovelace", "Ada's notes: object.__exit__ in Köln, twice in Köln.")
    ).passages
    assert entry.words.split(" ") == list(passage.spans.words)
    assert entry.words.split(" ").count("koln") == 2
    assert set(passage.term_frequencies) <= {*entry.words.split(" "), *entry.further_words.split(" ")}
    assert {"countess", "__exit__"} <= {*entry.words.split(" "), *entry.further_words.split(" ")}
    assert (page.revision, page.removed, page.more) == (1, (), False)
    assert page.collection_uid == (await store.revision("c", deadline=soon())).collection_uid


async def test_changes_for_a_text_index_come_in_whole_revisions(store: GraphStore) -> None:
    for number in range(4):
        await put(store, *(document(f"d{number}{letter}", "", f"Text {number} {letter}.") for letter in "abc"))
    pages, words = await all_words(store, limit=4)
    assert [page.revision for page in pages] == [1, 2, 3, 4]
    assert words == {f"text {number} {letter}" for number in range(4) for letter in "abc"}
    pages, words = await all_words(store, after_revision=2, limit=100)
    assert [page.revision for page in pages] == [4]
    assert words == {f"text {number} {letter}" for number in (2, 3) for letter in "abc"}


async def test_what_is_gone_is_removed_from_a_text_index(store: GraphStore) -> None:
    await put(store, ADA, ENGINE)
    first = await store.text_changes("c", after_revision=0, limit=10, deadline=soon())
    await put(store, document("ada", "Ada Lovelace", "Other words."))
    await store.delete_documents("c", ["engine"], deadline=soon())
    later = await store.text_changes("c", after_revision=first.revision, limit=10, deadline=soon())
    assert set(later.removed) == {entry.ref for entry in first.added}
    assert [entry.words for entry in later.added] == ["other words"]
    assert (await all_words(store, limit=10))[1] == {"other words"}
    nothing = await store.text_changes("c", after_revision=later.revision, limit=10, deadline=soon())
    assert (nothing.revision, nothing.removed, nothing.added, nothing.more) == (later.revision, (), (), False)


async def test_a_text_index_of_no_collection_is_told(store: GraphStore) -> None:
    with pytest.raises(CollectionNotFound):
        await store.text_changes("nowhere", after_revision=0, limit=10, deadline=soon())

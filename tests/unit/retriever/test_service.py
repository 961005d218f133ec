"""What a retrieval does when vectors are late, down or there."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.text.sqlite import SqliteTextIndex
from loremesh_agents.adapters.vector.faiss import FaissVectorIndex
from loremesh_agents.domain.answer import Completion, DegradationReason
from loremesh_agents.domain.conversation import PassageReference, RetrievalContext
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, CollectionNotFound, InvalidRequest
from loremesh_agents.domain.evidence import EdgeKind, Evidence
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.principal import ANONYMOUS, Principal
from loremesh_agents.domain.ranker import SIGNALS
from loremesh_agents.domain.retrieval import PassageRef, Profile, RetrievalRequest
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings
from tests.documents import document, soon, writes

DOCUMENTS = (
    document("acme", "Acme Corporation", "Acme Corporation makes anvils. Jane Doe leads Acme Corporation."),
    document("jane", "Jane Doe", "Jane Doe comes from Lisbon."),
    document("lisbon", "Lisbon", "Lisbon lies on the Tagus."),
    document("anvil", "Anvil", "A block of steel."),
)


class WordEmbedder:
    """Texts that share words are near each other."""

    model = "words"
    dimension = 32

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for term in search_terms(text):
                vectors[row, zlib.crc32(term.encode()) % self.dimension] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    async def close(self) -> None:
        return


class NotedEmbedder(WordEmbedder):
    """Notes that it was asked."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        self.asked.set()
        return await super().embed(texts, deadline=deadline)


class LateEmbedder(WordEmbedder):
    """Never answers."""

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        await asyncio.Event().wait()
        raise AssertionError


class DownEmbedder(WordEmbedder):
    """Is down."""

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        raise BackendUnavailable("words")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteGraphStore]:
    opened = SqliteGraphStore(tmp_path / "graph.db")
    await opened.write("docs", writes(*DOCUMENTS), embedding_model="", deadline=soon())
    yield opened
    await opened.close()


@pytest.fixture
async def vectors(store: SqliteGraphStore, tmp_path: Path) -> AsyncIterator[FaissVectorIndex]:
    opened = FaissVectorIndex(store, tmp_path / "vectors")
    yield opened
    await opened.close()


def service(
    store: SqliteGraphStore,
    vectors: FaissVectorIndex | None = None,
    embedder: Embedder | None = None,
    **settings: float,
) -> RetrieverService:
    changed = RetrieverSettings.model_validate(settings)
    return RetrieverService(store, SqliteTextIndex(store), vectors, embedder, changed)


async def found(
    retriever: RetrieverService,
    request: RetrievalRequest,
    *,
    principal: Principal = ANONYMOUS,
    deadline: Deadline | None = None,
) -> tuple[list[Evidence], Completion]:
    events = [event async for event in retriever.retrieve(request, principal=principal, deadline=deadline or soon())]
    *evidence, completion = events
    assert isinstance(completion, Completion)
    assert all(isinstance(event, Evidence) for event in evidence)
    return [event for event in evidence if isinstance(event, Evidence)], completion


def reasons(completion: Completion) -> list[tuple[str, DegradationReason]]:
    return [(degradation.stage, degradation.reason) for degradation in completion.degradations]


def documents(evidence: Sequence[Evidence]) -> list[str]:
    return [entry.source.document_id for entry in evidence]


ASKED = RetrievalRequest("Where does the head of Acme Corporation come from?", ("docs",))


async def test_two_rounds_reach_what_is_two_steps_away(store: SqliteGraphStore) -> None:
    evidence, completion = await found(service(store), RetrievalRequest("Acme Corporation?", ("docs",)))
    assert documents(evidence)[:3] == ["acme", "jane", "lisbon"]
    assert completion.usage.evidence_count == len(evidence)


async def test_a_late_encoder_costs_its_share_of_the_time_and_no_evidence(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    retriever = service(store, vectors, LateEmbedder(), vector_share=0.02)
    evidence, completion = await found(retriever, ASKED)
    assert documents(evidence)[:2] == ["acme", "jane"]
    assert reasons(completion) == [("vectors", DegradationReason.BUDGET)]


async def test_an_encoder_that_is_down_costs_no_evidence(store: SqliteGraphStore, vectors: FaissVectorIndex) -> None:
    evidence, completion = await found(service(store, vectors, DownEmbedder()), ASKED)
    assert documents(evidence)[:2] == ["acme", "jane"]
    assert reasons(completion) == [("vectors", DegradationReason.UNAVAILABLE)]


async def test_a_question_is_encoded_while_it_waits_for_a_revision(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    embedder = NotedEmbedder()
    collection = await store.collection("docs", deadline=soon())
    awaited = CollectionRevision("docs", collection.collection_uid, collection.revision + 1)
    request = replace(ASKED, consistency=Consistency({"docs": awaited}))
    asking = asyncio.create_task(found(service(store, vectors, embedder), request))
    async with asyncio.timeout(10):
        await embedder.asked.wait()
        assert not asking.done()
        new = document("head", "Jane Doe of Acme Corporation", "Jane Doe heads Acme Corporation.")
        await store.write("docs", writes(new), embedding_model="", deadline=soon())
        evidence, _ = await asking
    assert "head" in documents(evidence)


async def test_a_question_to_an_unknown_collection_leaves_no_encoding_behind(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    running = asyncio.all_tasks()
    with pytest.raises(CollectionNotFound):
        await found(service(store, vectors, LateEmbedder()), replace(ASKED, collections=("none",)))
    assert asyncio.all_tasks() == running


async def test_rounds_are_left_out_when_time_is_short(store: SqliteGraphStore) -> None:
    evidence, completion = await found(service(store, expansion_reserve=1000.0), ASKED)
    assert documents(evidence)[0] == "acme"
    assert ("graph", DegradationReason.BUDGET) in reasons(completion)


async def test_a_collection_without_vectors_is_searched_all_the_same(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    evidence, completion = await found(service(store, vectors, WordEmbedder()), ASKED)
    assert documents(evidence)[:2] == ["acme", "jane"]
    assert all(entry.why is not None and entry.why.cosine == 0.0 for entry in evidence)
    assert completion.degradations == ()


async def test_collections_with_vectors_of_other_models_are_searched_without_them(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    for collection, model, dimension in (("older", "words", 32), ("other", "letters", 8)):
        unit = np.eye(1, dimension, dtype=np.float32)[0]
        (one,) = writes(document("d", "Acme Corporation", "Acme Corporation makes anvils."))
        one = replace(one, passages=tuple(replace(passage, vector=unit) for passage in one.passages))
        await store.write(collection, [one], embedding_model=model, deadline=soon())
    request = replace(ASKED, collections=("docs", "older", "other"))
    evidence, completion = await found(service(store, vectors, WordEmbedder()), request)
    assert sorted(documents(evidence)[:3]) == ["acme", "d", "d"]
    assert reasons(completion) == [("vectors", DegradationReason.NOT_CONFIGURED)]
    assert "other has vectors of letters" in completion.degradations[0].detail


async def test_no_time_at_all_is_an_error(store: SqliteGraphStore) -> None:
    with pytest.raises(BudgetExhausted):
        await found(service(store), ASKED, deadline=Deadline.after(-1))


async def test_a_question_without_a_word_is_an_error(store: SqliteGraphStore) -> None:
    with pytest.raises(InvalidRequest, match="question"):
        await found(service(store), RetrievalRequest("?!", ("docs",)))


async def test_a_long_question_is_cut_and_says_so(store: SqliteGraphStore) -> None:
    evidence, completion = await found(service(store, longest_question=20), ASKED)
    assert evidence is not None
    assert ("question", DegradationReason.LIMIT) in reasons(completion)


async def test_what_an_earlier_answer_cited_has_its_reason(store: SqliteGraphStore) -> None:
    context = RetrievalContext(passages=(PassageReference("docs", "anvil#0"),))
    evidence, _ = await found(service(store), RetrievalRequest("How heavy is it?", ("docs",), context=context))
    assert documents(evidence)[0] == "anvil"
    why = evidence[0].why
    assert why is not None
    assert [step.edge for step in why.path] == [EdgeKind.EARLIER_TURN]


async def test_a_hidden_passage_is_no_bridge(store: SqliteGraphStore) -> None:
    hidden = document("deal", "Zed Deal", "The Zed Deal ties Acme Corporation to Xanadu.", readers=frozenset({"board"}))
    target = document("xanadu", "Xanadu", "Pleasure domes stand there.")
    await store.write("docs", writes(hidden, target), embedding_model="", deadline=soon())
    request = RetrievalRequest("What does the Zed Deal tie?", ("docs",))
    evidence, _ = await found(service(store), request)
    assert not {"deal", "xanadu"} & set(documents(evidence))
    evidence, _ = await found(service(store), request, principal=Principal("ada", frozenset({"board"})))
    assert documents(evidence)[0] == "deal"
    assert "xanadu" in documents(evidence)


async def test_a_caller_who_leaves_early_leaves_nothing_behind(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    before = asyncio.all_tasks()
    events = service(store, vectors, WordEmbedder()).retrieve(ASKED, principal=ANONYMOUS, deadline=soon())
    async for _ in events:
        break
    await events.aclose()
    assert asyncio.all_tasks() == before


async def test_hidden_passages_do_not_crowd_out_the_readable_ones(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    secret = frozenset({"board"})
    hidden = [document(f"h{n}", f"Memo {n}", "Obelisks, obelisks, obelisks.", readers=secret) for n in range(40)]
    shown = document("shown", "Notes", "Much is written here about all kinds of stones, and once of obelisks too.")
    await store.write("memos", writes(*hidden, shown), embedding_model="", deadline=soon())
    request = RetrievalRequest("obelisks", ("memos",))
    evidence, _ = await found(service(store, text_candidates=5), request)
    assert documents(evidence) == ["shown"]


async def test_a_ranker_is_asked_for_its_opinion_but_for_the_fast_profile(store: SqliteGraphStore) -> None:
    asked: list[tuple[int, ...]] = []

    def relevance(signals: NDArray[np.float64]) -> NDArray[np.float64]:
        asked.append(signals.shape)
        return np.array([0.0] * (len(signals) - 1) + [1.0])

    text = SqliteTextIndex(store)
    ranked = RetrieverService(store, text, None, None, RetrieverSettings(), relevance=relevance)
    fast, _ = await found(ranked, replace(ASKED, profile=Profile.FAST))
    assert not asked
    balanced, _ = await found(ranked, replace(ASKED, profile=Profile.BALANCED))
    assert asked == [(len(fast), len(SIGNALS))]
    before = dict(zip(documents(fast), [entry.score for entry in fast], strict=True))
    after = dict(zip(documents(balanced), [entry.score for entry in balanced], strict=True))
    last = documents(fast)[-1]
    assert after == pytest.approx({**before, last: before[last] + 0.5})
    assert [entry.score for entry in balanced] == sorted((entry.score for entry in balanced), reverse=True)


async def put_with_vectors(store: SqliteGraphStore) -> None:
    """The documents anew, encoded."""
    await store.delete_collection("docs", deadline=soon())
    encoded = [
        replace(write, passages=tuple([replace(passage, vector=vector) for passage in write.passages]))
        for write in writes(*DOCUMENTS)
        for vector in await WordEmbedder().embed([write.document.sections[0].text], deadline=soon())
    ]
    await store.write("docs", encoded, embedding_model=WordEmbedder.model, deadline=soon())


async def test_the_thorough_profile_asks_for_what_the_evidence_names(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    questions: list[str] = []

    class Listening(WordEmbedder):
        async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
            questions.extend(texts)
            return await super().embed(texts, deadline=deadline)

    await put_with_vectors(store)
    retriever = service(store, vectors, Listening())
    await found(retriever, replace(ASKED, profile=Profile.BALANCED))
    assert questions == [ASKED.question]
    _, completion = await found(retriever, replace(ASKED, profile=Profile.THOROUGH))
    assert "Where does the head of Jane Doe come from?" in questions
    assert {"encode", "substitute"} <= completion.timings.keys()
    assert not completion.degradations


async def test_a_substitution_for_which_the_encoder_fails_is_left_out_and_named(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    class OnceEmbedder(WordEmbedder):
        async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
            if len(texts) > 1:
                raise BackendUnavailable("words")
            return await super().embed(texts, deadline=deadline)

    await put_with_vectors(store)
    request = replace(ASKED, profile=Profile.THOROUGH)
    evidence, completion = await found(service(store, vectors, OnceEmbedder()), request)
    assert evidence
    assert reasons(completion) == [("substitution", DegradationReason.UNAVAILABLE)]


async def test_a_document_without_a_title_is_found_by_what_it_defines_and_shown_under_its_id(
    store: SqliteGraphStore,
) -> None:
    nameless = document("p7", "", "Ada Lovelace (1815-1852) was a mathematician. Her notes are famous.")
    await store.write("docs", writes(nameless), embedding_model="", deadline=soon())
    evidence, _ = await found(service(store), RetrievalRequest("Who was Ada Lovelace?", ("docs",)))
    assert evidence[0].source.title == "p7"
    assert [step.edge for step in evidence[0].why.path] == [EdgeKind.NAMED_IN_QUESTION, EdgeKind.TITLE]
    found_by_id, _ = await found(service(store), RetrievalRequest("p7?", ("docs",)))
    assert "p7" not in documents(found_by_id)


async def test_many_questions_at_once_are_all_answered(store: SqliteGraphStore) -> None:
    retriever = service(store)
    answers = await asyncio.gather(*(found(retriever, ASKED) for _ in range(40)))
    (alone, _) = await found(retriever, ASKED)
    assert all(documents(evidence) == documents(alone) for evidence, _ in answers)


async def test_a_question_that_is_given_up_while_others_are_asked_leaves_the_store_usable(
    store: SqliteGraphStore,
) -> None:
    retriever = service(store)
    asked = [asyncio.create_task(found(retriever, ASKED)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in asked[::2]:
        task.cancel()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert all(isinstance(result, tuple) for result in results[1::2])
    evidence, _ = await found(retriever, ASKED)
    assert evidence


class DownText(SqliteTextIndex):
    """A text index whose server is down."""

    async def search(self, *_: object, **__: object) -> tuple[PassageRef, ...]:
        raise BackendUnavailable("text")


class LateText(SqliteTextIndex):
    """A text index that never answers."""

    async def search(self, *_: object, **__: object) -> tuple[PassageRef, ...]:
        await asyncio.Event().wait()
        raise AssertionError


class BehindText(SqliteTextIndex):
    """A text index that has not reached the state in time."""

    async def search(self, *_: object, **__: object) -> tuple[PassageRef, ...]:
        raise BudgetExhausted("text", "waiting")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (DownText, DegradationReason.UNAVAILABLE),
        (LateText, DegradationReason.BUDGET),
        (BehindText, DegradationReason.BUDGET),
    ],
)
async def test_without_text_the_graph_and_the_vectors_still_answer(
    store: SqliteGraphStore, vectors: FaissVectorIndex, broken: type[SqliteTextIndex], reason: DegradationReason
) -> None:
    await put_with_vectors(store)
    settings = RetrieverSettings(text_share=0.1)
    retriever = RetrieverService(store, broken(store), vectors, WordEmbedder(), settings)
    evidence, completion = await found(retriever, ASKED)
    assert "acme" in documents(evidence)
    assert reasons(completion) == [("text", reason)]


async def test_vectors_that_fail_when_more_are_asked_for_do_not_fail_the_question(
    store: SqliteGraphStore, vectors: FaissVectorIndex
) -> None:
    class OnceVectors(FaissVectorIndex):
        async def search(self, vector: NDArray[np.float32], **options: object) -> tuple[PassageRef, ...]:
            if options["limit"] != 1:
                raise BackendUnavailable("vectors")
            return await super().search(vector, **options)

    await put_with_vectors(store)
    secret = [
        replace(entry, passages=tuple(replace(passage, vector=vector) for passage in entry.passages))
        for entry in writes(document("secret", "", ASKED.question, readers=frozenset({"board"})))
        for vector in await WordEmbedder().embed([ASKED.question], deadline=soon())
    ]
    await store.write("docs", secret, embedding_model=WordEmbedder.model, deadline=soon())
    once = OnceVectors(store, vectors._folder)
    evidence, completion = await found(service(store, once, WordEmbedder(), vector_candidates=1), ASKED)
    assert "acme" in documents(evidence)
    assert reasons(completion) == [("vectors", DegradationReason.UNAVAILABLE)]
    await once.close()

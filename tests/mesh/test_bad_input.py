"""What no well-meant corpus holds and no well-meant question asks, from end to end."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from loremesh.v1 import answer_pb2, coordinator_service_pb2, document_pb2
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb
from loremesh.v1 import retriever_service_pb2 as pb

from tests.mesh.conftest import Client

SCRIPTS = {
    "arabic": ("القاهرة", "القاهرة هي عاصمة مصر وتقع على نهر النيل.", "ما هي عاصمة مصر؟"),
    "chinese": ("北京", "北京是中华人民共和国的首都。", "中国的首都是北京吗？"),
    "cyrillic": ("Москва", "Москва — столица России.", "Где находится Москва?"),
    "decomposed": ("Cafe\u0301 Zo\u0308lle", "Das Cafe\u0301 Zo\u0308lle steht in Graz.", "Wo steht das Café Zölle?"),
    "emoji": ("🦄 Farm", "The 🦄 Farm sells 🍎 and 🍐.", "What does the 🦄 Farm sell?"),
    "devanagari": ("दिल्ली", "दिल्ली भारत की राजधानी है।", "भारत की राजधानी क्या है?"),
}


async def retrieved(client: Client, question: str, collection: str = "docs") -> tuple[list[str], pb.RetrieveResponse]:
    request = pb.RetrieveRequest(question=question, collections=[collection])
    events = [event async for event in client.retriever.Retrieve(request, timeout=20)]
    return [event.evidence.passage.document_id for event in events[:-1]], events[-1]


@pytest.mark.parametrize("script", SCRIPTS)
async def test_any_script_is_found(client: Client, script: str) -> None:
    results = await client.ingest({name: (title, text) for name, (title, text, _) in SCRIPTS.items()}, "scripts")
    assert {result.outcome for result in results} == {knowledge_pb.DOCUMENT_OUTCOME_CREATED}
    documents, _ = await retrieved(client, SCRIPTS[script][2], "scripts")
    assert documents[0] == script


@pytest.mark.parametrize("question", ["", "?!…", " \n\t", "«—»", "🦄🦄"])
async def test_a_question_without_a_word_names_the_field(client: Client, question: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await retrieved(client, question)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "question" in (raised.value.details() or "")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"json_schema": "{"}, "generation.json_schema"),
        ({"json_schema": "[]"}, "generation.json_schema"),
        ({"temperature": 2.5}, "generation.temperature"),
        ({"temperature": float("nan")}, "generation.temperature"),
        ({"frequency_penalty": -3.0}, "generation.frequency_penalty"),
        ({"stop": [""]}, "generation.stop[0]"),
    ],
)
async def test_what_is_wrong_with_an_option_is_said_by_field(client: Client, options: dict, field: str) -> None:
    request = coordinator_service_pb2.AskRequest(
        question="Who leads Acme?", generation=answer_pb2.GenerationOptions(**options)
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in client.coordinator.Ask(request, timeout=10):
            pass
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = error_details_pb2.BadRequest()
    assert any(detail.Unpack(told) for detail in rpc_status.from_call(raised.value).details)
    assert {violation.field for violation in told.field_violations} == {field}


async def test_a_question_of_100_kilobytes_is_cut_and_answered(client: Client) -> None:
    documents, last = await retrieved(client, "Who leads Acme Corporation? " + "blah " * 20_000)
    assert documents[0] == "acme"
    assert [(d.stage, d.reason) for d in last.completion.degradations if d.stage == "question"] == [
        ("question", answer_pb2.DEGRADATION_REASON_LIMIT)
    ]


async def test_a_question_that_is_longer_than_allowed_is_refused(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await retrieved(client, "x" * 131_073)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_passage_without_words_is_kept_and_disturbs_nobody(client: Client) -> None:
    results = await client.ingest({"dots": ("...", "... --- ..."), "plain": ("Plain", "A plain text.")}, "wordless")
    assert [result.outcome for result in results] == [knowledge_pb.DOCUMENT_OUTCOME_CREATED] * 2
    documents, _ = await retrieved(client, "What is plain?", "wordless")
    assert documents == ["plain"]


async def test_a_document_without_text_fails_by_name_and_the_rest_is_taken(client: Client) -> None:
    results = await client.ingest({"empty": ("Empty", " \n "), "plain": ("Plain", "A plain text.")}, "some")
    assert [(result.document_id, result.outcome) for result in results] == [
        ("empty", knowledge_pb.DOCUMENT_OUTCOME_FAILED),
        ("plain", knowledge_pb.DOCUMENT_OUTCOME_CREATED),
    ]


async def test_of_two_documents_with_one_id_the_last_stays(client: Client) -> None:
    text = [
        document_pb2.StructuredText(sections=[document_pb2.Section(text=text)]) for text in ("Old tin.", "New zinc.")
    ]
    requests = [
        knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="twice")),
        *(
            knowledge_pb.IngestRequest(document=document_pb2.Document(document_id="same", title="Metal", text=content))
            for content in text
        ),
    ]
    events = [event async for event in client.knowledge.Ingest(iter(requests), timeout=20)]
    outcomes = [event.result.outcome for event in events if event.HasField("result")]
    assert outcomes == [knowledge_pb.DOCUMENT_OUTCOME_CREATED, knowledge_pb.DOCUMENT_OUTCOME_UPDATED]
    request = pb.RetrieveRequest(question="metal tin zinc", collections=["twice"])
    found = [event async for event in client.retriever.Retrieve(request, timeout=20)]
    assert [event.evidence.passage.text for event in found[:-1]] == ["New zinc."]


@pytest.mark.timeout(120)
async def test_ten_thousand_titles_that_are_one_common_word(client: Client) -> None:
    documents = {f"the{n}": ("The", f"Entry number{n} of the list.") for n in range(5_000)}
    documents |= {f"paris{n}": ("Paris", f"Paris is named in entry number{n}.") for n in range(5_000)}
    results = await client.ingest(documents, "common")
    assert {result.outcome for result in results} == {knowledge_pb.DOCUMENT_OUTCOME_CREATED}
    found, last = await retrieved(client, "What is in the Paris entry number77?", "common")
    assert found[0] == "paris77"
    assert not last.completion.degradations[1:]  # without an encoder there is one


async def test_a_document_that_links_to_itself_is_not_its_own_evidence(client: Client) -> None:
    section = document_pb2.Section(
        text="The ouroboros eats its tail.", links=[document_pb2.Link(target="worm", anchor="tail")]
    )
    worm = document_pb2.Document(
        document_id="worm", title="Ouroboros", text=document_pb2.StructuredText(sections=[section])
    )
    requests = [
        knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="loop")),
        knowledge_pb.IngestRequest(document=worm),
    ]
    async for _ in client.knowledge.Ingest(iter(requests), timeout=20):
        pass
    documents, _ = await retrieved(client, "What does the ouroboros eat?", "loop")
    assert documents == ["worm"]

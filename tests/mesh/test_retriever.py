"""Retrieval and walks through the graph, over gRPC."""

import grpc
import pytest
from loremesh.v1 import answer_pb2, collection_pb2, document_pb2, evidence_pb2
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb
from loremesh.v1 import retriever_service_pb2 as pb

from tests.mesh.conftest import Client


async def retrieve(client: Client, question: str, **fields: object) -> list[pb.RetrieveResponse]:
    request = pb.RetrieveRequest(question=question, **fields)
    return [event async for event in client.retriever.Retrieve(request, timeout=20)]


def evidence_of(events: list[pb.RetrieveResponse]) -> list[evidence_pb2.Evidence]:
    return [event.evidence for event in events if event.HasField("evidence")]


def documents_of(events: list[pb.RetrieveResponse]) -> list[str]:
    return [evidence.passage.document_id for evidence in evidence_of(events)]


async def expand(client: Client, **fields: object) -> list[pb.ExpandResponse]:
    return [event async for event in client.retriever.Expand(pb.ExpandRequest(**fields), timeout=20)]


async def code_of(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in call:
            pass
    return raised.value.code()


async def test_evidence_comes_in_the_order_of_its_rank_and_then_a_completion(client: Client) -> None:
    events = await retrieve(client, "Where was the head of Acme Corporation born?", collections=["docs"])
    found = evidence_of(events)
    assert [evidence.evidence_id for evidence in found] == [f"E{rank}" for rank in range(1, len(found) + 1)]
    scores = [evidence.score for evidence in found]
    assert scores == sorted(scores, reverse=True)
    assert [event.WhichOneof("event") for event in events].index("completion") == len(events) - 1
    completion = events[-1].completion
    assert completion.finish_reason == answer_pb2.FINISH_REASON_STOP
    assert [revision.collection for revision in completion.revisions] == ["docs"]
    assert {"total", "candidates", "rank", "fetch"} <= {timing.stage for timing in completion.timings}


async def test_a_passage_that_shares_no_word_with_the_question_is_found_through_the_graph(client: Client) -> None:
    events = await retrieve(client, "Which city raised the head of Acme Corporation?", collections=["docs"])
    assert documents_of(events)[:2] == ["acme", "jane"]
    path = evidence_of(events)[1].why.path
    assert [step.edge for step in path] == [
        evidence_pb2.EDGE_KIND_SIMILAR,
        evidence_pb2.EDGE_KIND_MENTIONS,
        evidence_pb2.EDGE_KIND_TITLE,
    ]
    assert path[1].entity == "Jane Doe"


async def test_what_the_question_names_is_the_reason_for_the_passage_of_that_name(client: Client) -> None:
    first = evidence_of(await retrieve(client, "What is Lisbon the capital of?", collections=["docs"]))[0]
    assert first.passage.document_id == "lisbon"
    assert [step.edge for step in first.why.path] == [
        evidence_pb2.EDGE_KIND_NAMED_IN_QUESTION,
        evidence_pb2.EDGE_KIND_TITLE,
    ]


async def test_without_an_encoder_the_completion_says_so(client: Client) -> None:
    degradations = (await retrieve(client, "anvils"))[-1].completion.degradations
    assert [(entry.stage, entry.reason) for entry in degradations] == [
        ("vectors", answer_pb2.DEGRADATION_REASON_NOT_CONFIGURED)
    ]


async def test_no_more_is_given_than_was_asked_for(client: Client) -> None:
    events = await retrieve(client, "Acme Corporation Lisbon anvil", options=pb.RetrievalOptions(k=2))
    assert len(evidence_of(events)) == 2
    assert events[-1].completion.usage.evidence_count == 2


async def test_all_collections_are_searched_where_none_is_named(client: Client) -> None:
    await client.ingest({"porto": ("Porto", "Porto is a city on the Douro.")}, "more")
    events = await retrieve(client, "Is Porto larger than Lisbon?")
    assert {"porto", "lisbon"} <= set(documents_of(events))
    assert {revision.collection for revision in events[-1].completion.revisions} == {"docs", "more"}


async def test_a_mesh_without_documents_finds_nothing(start) -> None:
    events = await retrieve(await start(), "Where is Lisbon?")
    assert [event.WhichOneof("event") for event in events] == ["completion"]


async def test_a_collection_that_is_not_there_is_an_error(client: Client) -> None:
    request = pb.RetrieveRequest(question="Where is Lisbon?", collections=["nowhere"])
    assert await code_of(client.retriever.Retrieve(request, timeout=20)) == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("question", ["?!", "...", "-- ' --", "\u0301"])
async def test_a_question_without_a_word_is_an_error(client: Client, question: str) -> None:
    request = pb.RetrieveRequest(question=question)
    assert await code_of(client.retriever.Retrieve(request, timeout=20)) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("question", "title", "text"),
    [
        ("Где находится Казань?", "Казань", "Казань — столица Татарстана."),
        ("東京はどこですか", "東京", "東京は日本の首都です。"),
        ("أين تقع القاهرة؟", "القاهرة", "القاهرة عاصمة مصر."),
        ("Πού είναι η Αθήνα;", "Αθήνα", "Η Αθήνα είναι πρωτεύουσα."),
    ],
)
async def test_questions_of_any_script_are_answered(client: Client, question: str, title: str, text: str) -> None:
    await client.ingest({"wanted": (title, text)})
    assert documents_of(await retrieve(client, question))[0] == "wanted"


async def test_of_an_endless_question_the_beginning_is_searched(client: Client) -> None:
    events = await retrieve(client, "Where was Jane Doe of Acme Corporation born? " * 2300)
    assert "jane" in documents_of(events)
    assert "question" in {entry.stage for entry in events[-1].completion.degradations}


async def test_a_question_about_what_was_said_before_finds_it(client: Client) -> None:
    context = pb.RetrievalContext(entities=["Jane Doe"])
    events = await retrieve(client, "When was she born?", collections=["docs"], context=context)
    assert documents_of(events)[0] == "jane"


async def test_what_a_filter_leaves_out_is_no_bridge(client: Client) -> None:
    only = collection_pb2.MetadataFilter(conditions=[{"key": "kind", "any_of": ["city"]}])
    options = pb.RetrievalOptions(filter=only)
    assert evidence_of(await retrieve(client, "Where was Jane Doe born?", options=options)) == []


async def test_a_passage_that_the_caller_may_not_read_is_not_found(client: Client) -> None:
    text = document_pb2.StructuredText(sections=[document_pb2.Section(text="Jane Doe earns two anvils a year.")])
    secret = document_pb2.Document(document_id="pay", title="Pay of Jane Doe", text=text, readers=["board"])
    requests = [
        knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="docs")),
        knowledge_pb.IngestRequest(document=secret),
    ]
    _ = [event async for event in client.knowledge.Ingest(iter(requests))]
    events = await retrieve(client, "What is the pay of Jane Doe?", collections=["docs"])
    assert "jane" in documents_of(events)
    assert "pay" not in documents_of(events)


async def test_the_neighbourhood_of_an_entity_is_nodes_and_edges_between_them(client: Client) -> None:
    events = await expand(client, collections=["docs"], entities=["Jane Doe"])
    nodes = {event.node.node_id: event.node for event in events if event.HasField("node")}
    names = {node.entity.name for node in nodes.values() if node.HasField("entity")}
    passages = {node.passage.document_id for node in nodes.values() if node.HasField("passage")}
    assert "Jane Doe" in names
    assert {"jane", "acme"} <= passages
    edges = [event.edge for event in events if event.HasField("edge")]
    assert edges
    assert all({edge.from_node_id, edge.to_node_id} <= nodes.keys() for edge in edges)
    assert events[-1].HasField("completion")


async def test_a_walk_starts_at_a_passage_as_well(client: Client) -> None:
    start = pb.PassageReference(collection="docs", passage_id="acme#0")
    events = await expand(client, collections=["docs"], passages=[start])
    first = events[0].node
    assert (first.passage.document_id, first.distance) == ("acme", 0)
    assert "jane" in {event.node.passage.document_id for event in events if event.HasField("node")}


async def test_a_walk_gives_no_more_nodes_than_asked_for(client: Client) -> None:
    events = await expand(client, collections=["docs"], entities=["Jane Doe"], depth=2, limit=2)
    assert sum(event.HasField("node") for event in events) == 2


async def test_a_walk_from_what_is_not_there_is_an_error(client: Client) -> None:
    unknown = pb.ExpandRequest(collections=["docs"], entities=["Nobody Known"])
    assert await code_of(client.retriever.Expand(unknown, timeout=20)) == grpc.StatusCode.NOT_FOUND
    passage = pb.PassageReference(collection="docs", passage_id="acme#99")
    missing = pb.ExpandRequest(collections=["docs"], passages=[passage])
    assert await code_of(client.retriever.Expand(missing, timeout=20)) == grpc.StatusCode.NOT_FOUND

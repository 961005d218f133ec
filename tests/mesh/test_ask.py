"""Questions, from end to end."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from loremesh.v1 import answer_pb2, collection_pb2, message_pb2, retriever_service_pb2
from loremesh.v1 import coordinator_service_pb2 as pb

from tests.mesh.conftest import Client


async def ask(client: Client, question: str, **fields: object) -> list[pb.AskResponse]:
    request = pb.AskRequest(question=question, **fields)
    return [event async for event in client.coordinator.Ask(request, timeout=20)]


def text_of(events: list[pb.AskResponse]) -> str:
    return "".join(event.delta.text for event in events)


def kinds_of(events: list[pb.AskResponse]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


async def ended(call: object) -> None:
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


async def reason_of(call: object) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, status_pb2.Status]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ended(call)
    details = dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert info.domain == "loremesh.dev"
    return raised.value.code(), info, status


async def test_an_answer_is_streamed_with_its_sources(client: Client) -> None:
    events = await ask(client, "Who has led Acme Corporation since 2019?", collections=["docs"])
    kinds = kinds_of(events)
    assert kinds[0] == "plan"
    assert kinds[-1] == "completion"
    assert kinds.count("completion") == 1
    answer = text_of(events)
    assert "Jane Doe has led Acme Corporation since 2019." in answer
    citation = next(event.citation for event in events if event.HasField("citation"))
    cited = answer.encode()[citation.start_byte : citation.end_byte].decode()
    assert cited == "Jane Doe has led Acme Corporation since 2019."
    evidence = {event.evidence.evidence_id: event.evidence for event in events if event.HasField("evidence")}
    assert evidence[citation.evidence_id].passage.document_id == "acme"
    assert evidence[citation.evidence_id].why.path
    completion = events[-1].completion
    assert completion.finish_reason == answer_pb2.FINISH_REASON_STOP
    assert completion.model == "extractive"
    assert completion.revisions[0].collection == "docs"
    assert [degradation.stage for degradation in completion.degradations] == ["vectors"]


async def test_evidence_over_two_hops_is_found(client: Client) -> None:
    events = await ask(client, "Where was the leader of Acme Corporation born?", collections=["docs"])
    found = [event.evidence for event in events if event.HasField("evidence")]
    jane = next(evidence for evidence in found if evidence.passage.document_id == "jane")
    assert [step.entity or step.passage_id for step in jane.why.path] == ["acme#0", "Jane Doe", "jane#0"]


async def test_what_the_documents_do_not_know_is_said(client: Client) -> None:
    events = await ask(client, "What is the boiling point of helium?")
    assert events[-1].completion.finish_reason == answer_pb2.FINISH_REASON_NO_ANSWER
    assert "do not answer" in text_of(events) or "nothing about" in text_of(events)


async def test_deltas_are_numbered_without_gaps(client: Client) -> None:
    events = await ask(client, "Who has led Acme Corporation since 2019?")
    deltas = [event.delta for event in events if event.HasField("delta")]
    expected = 0
    for delta in deltas:
        assert delta.sequence == expected
        expected += delta.token_count
    assert expected == events[-1].completion.usage.completion_tokens


async def test_what_was_written_is_read(client: Client) -> None:
    (result,) = await client.ingest({"news": ("News", "Zorblax was opened in Faro in 2024.")})
    needed = collection_pb2.Consistency(
        min_revision=collection_pb2.Consistency.MinRevision(revisions=[result.revision])
    )
    events = await ask(client, "When was Zorblax opened?", consistency=needed)
    assert "2024" in text_of(events)


async def test_a_follow_up_is_understood_from_history(client: Client) -> None:
    history = [
        message_pb2.Message(role=message_pb2.ROLE_USER, text="Who is Jane Doe?"),
        message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, text="Jane Doe has led Acme Corporation since 2019. [1]"),
    ]
    events = await ask(client, "and where was she born?", history=history)
    assert "Jane Doe" in events[0].plan.standalone_question
    assert "Lisbon" in text_of(events)


async def test_the_direct_route_asks_the_generator_alone(client: Client) -> None:
    events = await ask(client, "Hello there?", route=pb.ROUTE_DIRECT)
    assert [step.agent for step in events[0].plan.steps] == ["generator"]
    assert "evidence" not in kinds_of(events)
    assert events[-1].completion.finish_reason == answer_pb2.FINISH_REASON_NO_ANSWER


async def test_a_plan_is_given_without_doing_it(client: Client) -> None:
    response = await client.coordinator.PlanQuery(pb.PlanQueryRequest(ask=pb.AskRequest(question="Who?")), timeout=5)
    assert [step.action for step in response.plan.steps] == ["retrieve", "synthesize", "generate"]
    # gRPC rounds a deadline up on its way.
    assert 4 <= response.plan.budget.seconds <= 5


async def test_an_unknown_collection_is_not_found(client: Client) -> None:
    code, info, _ = await reason_of(
        client.coordinator.Ask(pb.AskRequest(question="Who?", collections=["nowhere"]), timeout=10)
    )
    assert (code, info.reason, info.metadata["collection"]) == (
        grpc.StatusCode.NOT_FOUND,
        "COLLECTION_NOT_FOUND",
        "nowhere",
    )


async def test_a_route_that_is_not_there_is_unimplemented(client: Client) -> None:
    code, info, _ = await reason_of(
        client.coordinator.Ask(pb.AskRequest(question="Who?", route=pb.ROUTE_SQL), timeout=10)
    )
    assert (code, info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_an_unknown_model_is_not_found(client: Client) -> None:
    request = pb.AskRequest(question="Who leads Acme?", generation=answer_pb2.GenerationOptions(model="gpt"))
    code, info, _ = await reason_of(client.coordinator.Ask(request, timeout=10))
    assert (code, info.reason, info.metadata["served"]) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "extractive")


async def test_what_the_model_cannot_do_is_refused(client: Client) -> None:
    request = pb.AskRequest(question="Who leads Acme?", generation=answer_pb2.GenerationOptions(temperature=1.0))
    code, info, _ = await reason_of(client.coordinator.Ask(request, timeout=10))
    assert (code, info.reason, info.metadata["feature"]) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "UNSUPPORTED_BY_MODEL",
        "sampling",
    )


async def test_a_question_without_words_is_refused(client: Client) -> None:
    for call in (
        client.retriever.Retrieve(retriever_service_pb2.RetrieveRequest(question="?!"), timeout=5),
        client.coordinator.Ask(pb.AskRequest(question="?!"), timeout=5),
    ):
        code, info, _ = await reason_of(call)
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("question", ["من يقود Acme؟", "誰がAcmeを率いていますか", "👩‍🚀 Acme?", "A\u0301cme " * 2000])
async def test_any_script_gets_an_answer_or_a_clear_no(client: Client, question: str) -> None:
    events = await ask(client, question)
    assert events[-1].HasField("completion")


async def test_a_peer_that_is_down_is_named(client: Client) -> None:
    (generator,) = [server for server in client.mesh.servers if server.agent == "generator"]
    await generator.stop(0)
    code, info, _ = await reason_of(client.coordinator.Ask(pb.AskRequest(question="Who leads Acme?"), timeout=10))
    assert (code, info.reason, info.metadata["peer"]) == (grpc.StatusCode.UNAVAILABLE, "PEER_UNAVAILABLE", "generator")

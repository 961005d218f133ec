"""A model that calls tools, through all agents and over the wire. The engine is a double that writes what a test tells it to."""

import json
from collections.abc import AsyncGenerator, Sequence

import grpc
import pytest
from loremesh.v1 import answer_pb2, document_pb2, retriever_service_pb2
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb

from loremesh_agents.adapters.model.text_tools import TextToolModel
from loremesh_agents.bootstrap import backends
from loremesh_agents.coordinator.tool_calls import RETRIEVE
from loremesh_agents.domain.answer import FinishReason, TokenDelta, Usage
from loremesh_agents.domain.conversation import Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model, ToolCallPiece
from tests.mesh.conftest import Client
from tests.mesh.gates import Gates, busy, install
from tests.mesh.test_ask import ask, kinds_of, reason_of, text_of
from tests.unit.runtime.support import until

QUESTION = "Who has led Acme Corporation since 2019?"


class Engine:
    """A double of an engine that calls tools: one call in pieces, then an answer that cites the last source.

    Attributes:
        arguments: What it calls `retrieve` with.
        asked: What it was asked.
    """

    def __init__(self) -> None:
        self.arguments = '{"question": "Where was Jane Doe born?", "k": 2}'
        self.asked: list[GenerationRequest] = []

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        return (Model("double", 8192, "", "1", frozenset({Capability.GENERATION, Capability.TOOLS})),)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        self.asked.append(request)
        if request.tools:
            middle = len(self.arguments) // 2
            yield ToolCallPiece(0, "call-a", "retrieve", self.arguments[:middle])
            yield ToolCallPiece(0, "", "", self.arguments[middle:])
            yield GenerationEnd(FinishReason.TOOL_CALLS, Usage(10, 5))
            return
        yield TokenDelta(f"Lisbon [{len(request.sources)}].", 0, 3)
        yield GenerationEnd(FinishReason.STOP, Usage(20, 3))

    async def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    double = Engine()
    monkeypatch.setattr(backends, "open_model", lambda *_: double)
    return double


async def test_a_call_and_what_it_found_are_events_of_the_answer(engine: Engine, client: Client) -> None:
    options = retriever_service_pb2.RetrievalOptions(k=1)
    events = await ask(client, QUESTION, collections=["docs"], retrieval=options, tool_rounds=1)
    kinds = kinds_of(events)
    assert kinds[0] == "plan"
    assert [kind for kind in kinds if kind in ("tool_call", "tool_result", "sources")] == [
        *("sources", "tool_call", "tool_result", "sources"),
    ]
    call = next(event.tool_call for event in events if event.HasField("tool_call"))
    result = next(event.tool_result for event in events if event.HasField("tool_result"))
    assert (call.tool_call_id, call.name, call.arguments_json) == ("call-a", "retrieve", engine.arguments)
    assert (result.tool_call_id, result.name, result.failed) == ("call-a", "retrieve", False)
    evidence = {event.evidence.evidence_id: event.evidence.passage for event in events if event.HasField("evidence")}
    assert list(evidence) == [f"E{number}" for number in range(1, len(evidence) + 1)]
    assert set(result.evidence_ids) <= set(evidence)
    assert "jane" in {evidence[found].document_id for found in result.evidence_ids}
    assert "She studied chemistry." in result.text
    assert text_of(events).startswith("Lisbon")
    citation = next(event.citation for event in events if event.HasField("citation"))
    assert citation.evidence_id in evidence
    completion = events[-1].completion
    assert completion.finish_reason == answer_pb2.FINISH_REASON_STOP
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (30, 8)
    assert completion.usage.evidence_count == len(evidence)
    assert "tools" in [degradation.stage for degradation in completion.degradations]


async def test_the_engine_reads_the_schema_of_the_arguments_and_the_result(engine: Engine, client: Client) -> None:
    events = await ask(client, QUESTION, tool_rounds=1)
    result = next(event.tool_result for event in events if event.HasField("tool_result"))
    first, second = engine.asked
    (tool,) = first.tools
    assert tool.parameters["required"] == ["question"]
    assert tool.parameters["additionalProperties"] is False
    # Engines refuse a limit of 1024.0, and see the same prompt only if names come in the same order.
    assert json.dumps(tool.parameters) == json.dumps(RETRIEVE.parameters, sort_keys=True)
    assert [message.role for message in second.messages[-2:]] == [Role.ASSISTANT, Role.TOOL]
    assert second.messages[-1].text == result.text


async def test_a_tool_finds_nothing_that_the_caller_may_not_read(engine: Engine, client: Client) -> None:
    document = document_pb2.Document(
        document_id="secret",
        title="Zanzibar plan",
        readers=["staff"],
        text=document_pb2.StructuredText(sections=[document_pb2.Section(text="The Zanzibar plan begins in May.")]),
    )
    requests = [
        knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection="docs")),
        knowledge_pb.IngestRequest(document=document),
    ]
    async for _ in client.knowledge.Ingest(iter(requests)):
        pass
    engine.arguments = '{"question": "When does the Zanzibar plan begin?"}'
    events = await ask(client, QUESTION, tool_rounds=1)
    found = [event.evidence.passage.document_id for event in events if event.HasField("evidence")]
    result = next(event.tool_result for event in events if event.HasField("tool_result"))
    assert not result.failed
    assert "secret" not in found
    assert "in May" not in result.text


async def test_wrong_arguments_are_told_over_the_wire(engine: Engine, client: Client) -> None:
    engine.arguments = '{"question": "x", "readers": ["staff"]}'
    events = await ask(client, QUESTION, tool_rounds=1)
    result = next(event.tool_result for event in events if event.HasField("tool_result"))
    assert result.failed
    assert "readers" in result.text
    assert events[-1].completion.finish_reason == answer_pb2.FINISH_REASON_STOP


async def test_a_model_that_calls_no_tools_is_named(client: Client) -> None:
    request = pb.AskRequest(question=QUESTION, tool_rounds=1)
    code, info, _ = await reason_of(client.coordinator.Ask(request, timeout=20))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_BY_MODEL")
    assert (info.metadata["model"], info.metadata["feature"]) == ("extractive", "tools")


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Gates:
    return install(monkeypatch)[0]


async def test_who_leaves_stops_the_tool_that_runs(gates: Gates, engine: Engine, client: Client) -> None:
    call = client.coordinator.Ask(pb.AskRequest(question=QUESTION, tool_rounds=1), timeout=20)
    async for event in call:
        if event.HasField("sources"):
            break
    gates["search"].close()
    await until(lambda: gates["search"].waiting == 1)
    assert "retriever" in busy(client)
    call.cancel()
    await until(lambda: not gates["search"].waiting)
    await until(lambda: not busy(client))
    assert len(engine.asked) == 1


class Rubra(Engine):
    """A double of a model that writes its calls as text, in pieces of three characters."""

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        self.asked.append(request)
        done = any(message.text.startswith("Result of the call") for message in request.messages)
        said = (
            f"Lisbon [{len(request.sources)}]."
            if done
            else f'Wait. starttoolcall{{"name": "retrieve", "arguments": {self.arguments}}}endtoolcall'
        )
        for place in range(0, len(said), 3):
            yield TokenDelta(said[place : place + 3], place // 3)
        yield GenerationEnd(FinishReason.STOP, Usage(10, len(said) // 3 + 1))


async def test_a_model_that_writes_calls_as_text_calls_them_too(monkeypatch: pytest.MonkeyPatch, start) -> None:
    double = Rubra()
    monkeypatch.setattr(backends, "open_model", lambda *_: TextToolModel(double))
    client = await start()
    await client.ingest({"jane": ("Jane Doe", "Jane Doe was born in Lisbon in 1975. She studied chemistry.")})
    events = await ask(client, "Who is Jane?", tool_rounds=2)
    assert [event.tool_call.name for event in events if event.HasField("tool_call")] == ["retrieve"]
    assert text_of(events) == "Wait. Lisbon [1]."
    assert [event.tool_result.failed for event in events if event.HasField("tool_result")] == [False]

"""A real vLLM whose model calls a tool, in the engine's own form and as text, with connections that break meanwhile."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from loremesh_agents.adapters.model.pool import EnginePool
from loremesh_agents.adapters.model.text_tools import TextToolModel
from loremesh_agents.coordinator.tool_calls import TOOLS, CallsInTheMaking
from loremesh_agents.domain.answer import FinishReason, TokenDelta
from loremesh_agents.domain.conversation import Message, Role, ToolCall
from loremesh_agents.domain.errors import BackendUnavailable
from loremesh_agents.ports.language_model import GenerationEnd, GenerationRequest, LanguageModel, ToolCallPiece
from tests.engines.cut_proxy import proxy
from tests.engines.generations import asked, opened, soon
from tests.engines.servers.vllm import VllmServer, saying_model

CALL = '{"name": "retrieve", "arguments": {"question": "Where was Jane Doe born?", "k": 3}}'
TEXT_CALL = f"starttoolcall{CALL}endtoolcall"
SAID = f"Wait. {TEXT_CALL}<tool_call>{CALL}</tool_call>"
ROUNDS = 20


@pytest.fixture(scope="module")
def caller() -> AsyncIterator[VllmServer]:
    """An engine whose model writes a call as text, and then one in the form of Hermes, which the engine reads."""
    server = VllmServer("http", saying_model(SAID))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def offered() -> GenerationRequest:
    return replace(asked(max_tokens=300), tools=TOOLS)


async def taken(
    model: LanguageModel, request: GenerationRequest
) -> tuple[list[TokenDelta], list[ToolCallPiece], GenerationEnd]:
    events = [event async for event in model.generate(request, deadline=soon())]
    end = events[-1]
    assert isinstance(end, GenerationEnd)
    return (
        [event for event in events if isinstance(event, TokenDelta)],
        [event for event in events if isinstance(event, ToolCallPiece)],
        end,
    )


def said(deltas: list[TokenDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def arguments_of(pieces: list[ToolCallPiece]) -> str:
    """What comes together in a piece is the engine's affair."""
    return "".join(piece.arguments_json for piece in pieces)


async def test_the_arguments_of_a_call_come_in_pieces_and_are_valid(caller: VllmServer) -> None:
    model = opened(caller)
    deltas, pieces, end = await taken(model, offered())
    await model.close()
    assert said(deltas) == f"Wait. {TEXT_CALL}"
    assert end.finish_reason is FinishReason.TOOL_CALLS
    assert len(pieces) > 1
    making = CallsInTheMaking(4)
    for piece in pieces:
        making.add(piece)
    (call,), one_too_many = making.calls(set())
    assert one_too_many is None
    assert call.call.name == "retrieve"
    assert call.call.tool_call_id
    arguments = call.arguments()
    assert (arguments.question, arguments.k) == ("Where was Jane Doe born?", 3)


async def test_where_the_connection_breaks_the_call_is_not_made_twice(caller: VllmServer) -> None:
    pieces: list[ToolCallPiece] = []

    async def read(model: LanguageModel) -> None:
        async for event in model.generate(offered(), deadline=soon()):
            if isinstance(event, ToolCallPiece):
                pieces.append(event)

    async with proxy(caller.target) as one, proxy(caller.target) as two:
        pool = EnginePool({"one": opened(caller, target=one.target), "two": opened(caller, target=two.target)})
        _, whole, _ = await taken(pool, offered())
        for way in (one, two):
            way.cut_at(b'"arguments"', 2)
        with pytest.raises(BackendUnavailable):
            await read(pool)
        assert arguments_of(whole).startswith(arguments_of(pieces))
        assert len(arguments_of(pieces)) < len(arguments_of(whole))
        assert len([piece for piece in pieces if piece.name]) == 1
        for way in (one, two):
            way.cut()
        _, again, _ = await taken(pool, offered())
        assert arguments_of(again) == arguments_of(whole)
        await pool.close()


async def test_a_call_that_is_written_as_text_is_whole_wherever_a_connection_breaks(caller: VllmServer) -> None:
    chosen = random.Random(13)
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(proxy(caller.target)) for _ in range(2)]
        pool = EnginePool({str(number): opened(caller, target=way.target) for number, way in enumerate(ways)})
        model = TextToolModel(pool)
        stack.push_async_callback(model.close)
        whole, calls, _ = await taken(model, offered())
        assert said(whole) == f"Wait. <tool_call>{CALL}</tool_call>"
        (call,) = calls
        assert (call.name, json.loads(call.arguments_json)) == ("retrieve", json.loads(CALL)["arguments"])
        before = sum(way.passed for way in ways)
        # The round after: the model reads its call and what it gave, and an engine that was lost between is no loss.
        question = offered().messages
        answered = (
            Message(
                Role.ASSISTANT, "Wait. ", tool_calls=(ToolCall(call.tool_call_id, call.name, call.arguments_json),)
            ),
            Message(Role.TOOL, "Lisbon [1].", tool_call_id=call.tool_call_id),
        )
        next_round = replace(offered(), messages=(*question, *answered))
        again, next_calls, _ = await taken(model, next_round)
        assert said(again) == said(whole)
        most = sum(way.passed for way in ways) - before
        went_on = number = 0
        # Some cuts come when the answer is written already: more of them on a slow machine.
        while number < ROUNDS or went_on < ROUNDS // 4:
            number += 1
            for way in ways:
                way.cut()
                way.cut_after(chosen.randint(1, most))
            request, expected = (next_round, next_calls) if number % 2 else (offered(), calls)
            deltas, found, end = await taken(model, request)
            assert said(deltas) == said(whole)
            assert found == expected
            assert end.finish_reason is FinishReason.TOOL_CALLS
            went_on += len(end.resumptions)


async def test_ask_runs_the_call_of_a_real_engine(caller: VllmServer, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOREMESH_")}
    environment["LOREMESH_STORES__EMBEDDER"] = "none"
    environment["LOREMESH_STORES__MODEL"] = f"openai+http://{caller.target}/v1"
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "jane.txt").write_text("Jane Doe\n========\n\nJane Doe was born in Lisbon in 1975.\n")

    async def loremesh(*arguments: str) -> str:
        command = [sys.executable, "-m", "loremesh_agents.cli", *arguments, "--data", str(tmp_path / "data")]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        return done.stdout

    await loremesh("ingest", str(notes), "-c", "notes")
    told = await loremesh("ask", "Who is Jane Doe?", "--tools", "1", "--json")
    events = [json.loads(line) for line in told.splitlines()]
    (call,) = [event["toolCall"] for event in events if "toolCall" in event]
    (result,) = [event["toolResult"] for event in events if "toolResult" in event]
    assert call["name"] == result["name"] == "retrieve"
    assert json.loads(call["argumentsJson"])["question"] == "Where was Jane Doe born?"
    assert "failed" not in result
    assert "Found again: [1]" in result["text"]

"""A chat over peers that wait where they are told to."""

import asyncio
from collections.abc import AsyncIterator

from loremesh_agents.coordinator.chat import Chat
from loremesh_agents.coordinator.events import CancelTurn, Question, Turn
from loremesh_agents.coordinator.service import CoordinatorService
from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.domain.answer import Completion, FinishReason
from loremesh_agents.domain.errors import Overloaded
from loremesh_agents.domain.retrieval import RetrievalRequest
from tests.unit.coordinator_peers import Peers


def turn(turn_id: str, budget: float | None = None) -> Turn:
    return Turn(turn_id, Question(RetrievalRequest("What is water?")), budget)


def chat_with(peers: Peers, **settings: int) -> Chat:
    return Chat(CoordinatorService(peers, peers, peers, CoordinatorSettings(**settings)))


async def ends(chat: Chat, inputs: AsyncIterator[Turn | CancelTurn]) -> dict[str, Completion]:
    return {event.turn_id: event.event async for event in chat.events(inputs) if isinstance(event.event, Completion)}


async def test_a_running_turn_is_cancelled_and_the_next_one_runs() -> None:
    peers = Peers(closed="generate")

    async def inputs() -> AsyncIterator[Turn | CancelTurn]:
        yield turn("1")
        await peers.gates["generate"].reached.wait()
        peers.gates["generate"].reached.clear()
        yield CancelTurn("1")
        yield turn("2")
        await peers.gates["generate"].reached.wait()
        peers.gates["generate"]._open.set()

    found = await ends(chat_with(peers), inputs())
    assert found["1"].finish_reason is FinishReason.CANCELLED
    assert peers.gates["generate"].cancelled
    assert found["2"].finish_reason is FinishReason.STOP


async def test_a_turn_has_a_budget_of_its_own() -> None:
    async def inputs() -> AsyncIterator[Turn | CancelTurn]:
        yield turn("1", budget=0.2)

    found = await ends(chat_with(Peers(closed="generate")), inputs())
    assert found["1"].finish_reason is FinishReason.BUDGET


async def test_too_many_waiting_turns_are_refused_one_by_one() -> None:
    peers = Peers(closed="generate")

    async def inputs() -> AsyncIterator[Turn | CancelTurn]:
        yield turn("1")
        await peers.gates["generate"].reached.wait()
        yield turn("2")
        yield turn("3")
        peers.gates["generate"]._open.set()

    found = await ends(chat_with(peers, waiting_turns=1), inputs())
    assert isinstance(found["3"].error, Overloaded)
    assert found["2"].finish_reason is FinishReason.STOP


async def test_closing_the_chat_ends_the_running_turn() -> None:
    peers = Peers(closed="generate")
    before = asyncio.all_tasks()

    async def inputs() -> AsyncIterator[Turn | CancelTurn]:
        yield turn("1")
        await asyncio.Event().wait()

    events = chat_with(peers).events(inputs())
    while not peers.gates["generate"].reached.is_set():
        await anext(events)
    await events.aclose()
    assert peers.gates["generate"].cancelled
    assert asyncio.all_tasks() == before

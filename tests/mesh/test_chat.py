"""Conversations."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from loremesh.v1 import answer_pb2
from loremesh.v1 import coordinator_service_pb2 as pb

from tests.mesh.conftest import Client


class Talk:
    """A chat: turns in, events out."""

    def __init__(self, client: Client) -> None:
        self._requests: asyncio.Queue[pb.ChatRequest | None] = asyncio.Queue()
        self._call = client.coordinator.Chat(self._sent())
        self._events = aiter(self._call)

    async def _sent(self) -> AsyncIterator[pb.ChatRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    def say(self, turn_id: str, question: str, **fields: object) -> None:
        turn = pb.Turn(turn_id=turn_id, ask=pb.AskRequest(question=question, **fields))
        self._requests.put_nowait(pb.ChatRequest(turn=turn))

    def cancel(self, turn_id: str) -> None:
        self._requests.put_nowait(pb.ChatRequest(cancel=pb.CancelTurn(turn_id=turn_id)))

    def hang_up(self) -> None:
        self._requests.put_nowait(None)

    async def turn(self, turn_id: str) -> list[pb.AskResponse]:
        events: list[pb.AskResponse] = []
        async for response in self._events:
            assert response.turn_id == turn_id
            events.append(response.event)
            if response.event.HasField("completion"):
                return events
        raise AssertionError("the chat ended within a turn")

    async def rest(self) -> list[pb.ChatResponse]:
        return [response async for response in self._events]


@pytest.fixture
def talk(client: Client) -> Talk:
    return Talk(client)


def text_of(events: list[pb.AskResponse]) -> str:
    return "".join(event.delta.text for event in events)


async def test_a_follow_up_is_understood_from_the_turn_before(talk: Talk) -> None:
    talk.say("1", "Who leads Acme Corporation?")
    assert "Jane Doe" in text_of(await talk.turn("1"))
    talk.say("2", "and since when?")
    second = await talk.turn("2")
    assert "Acme Corporation" in second[0].plan.standalone_question
    assert "2019" in text_of(second)
    talk.hang_up()
    assert await talk.rest() == []


async def test_a_turn_that_fails_does_not_end_the_chat(talk: Talk) -> None:
    talk.say("1", "Who leads Acme?", collections=["nowhere"])
    failed = (await talk.turn("1"))[-1].completion
    assert failed.finish_reason == answer_pb2.FINISH_REASON_ERROR
    assert "nowhere" in failed.error.message
    talk.say("2", "Who leads Acme Corporation?")
    assert (await talk.turn("2"))[-1].completion.finish_reason == answer_pb2.FINISH_REASON_STOP
    talk.hang_up()


async def test_waiting_turns_are_answered_after_hanging_up(talk: Talk) -> None:
    talk.say("1", "Who leads Acme Corporation?")
    talk.say("2", "What is an anvil?")
    talk.hang_up()
    assert "Jane Doe" in text_of(await talk.turn("1"))
    assert "steel" in text_of(await talk.turn("2"))


async def test_a_waiting_turn_can_be_cancelled_and_the_chat_goes_on(talk: Talk) -> None:
    talk.say("1", "Who leads Acme Corporation?")
    talk.say("2", "What is an anvil?")
    talk.cancel("2")
    talk.cancel("never there")
    talk.say("3", "Where was Jane Doe born?")
    talk.hang_up()
    ends = {
        response.turn_id: response.event.completion.finish_reason
        for response in await talk.rest()
        if response.event.HasField("completion")
    }
    assert ends["1"] in (answer_pb2.FINISH_REASON_STOP, answer_pb2.FINISH_REASON_CANCELLED)
    assert ends["2"] in (answer_pb2.FINISH_REASON_CANCELLED, answer_pb2.FINISH_REASON_STOP)
    assert ends["3"] == answer_pb2.FINISH_REASON_STOP

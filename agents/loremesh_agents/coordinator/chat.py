"""A conversation: turns one after the other, each of which can be cancelled."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from loremesh_agents.coordinator.events import CancelTurn, Turn, TurnEvent
from loremesh_agents.coordinator.service import CoordinatorService
from loremesh_agents.domain.answer import Citation, Completion, FinishReason, TokenDelta
from loremesh_agents.domain.conversation import Message, PassageReference, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.errors import InvalidRequest, LoremeshError, Overloaded
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.followup import EarlierTurn
from loremesh_agents.domain.plan import Plan

_Output: TypeAlias = "asyncio.Queue[TurnEvent | None]"

_AHEAD = 16
_RETRY_AFTER = 1.0


class Chat:
    """One conversation.

    Args:
        service: Answers the turns.
    """

    def __init__(self, service: CoordinatorService) -> None:
        self._service = service
        settings = service.settings
        self._limit = settings.waiting_turns
        self._default_budget = settings.default_budget
        self._waiting: deque[Turn] = deque()
        self._news = asyncio.Event()
        self._half_closed = False
        self._running: tuple[str, asyncio.Task[None]] | None = None
        self._seen: set[str] = set()
        self._earlier: deque[EarlierTurn] = deque(maxlen=settings.remembered_turns)
        self._messages: deque[Message] = deque(maxlen=2 * settings.remembered_turns)
        self._output: _Output = asyncio.Queue(_AHEAD)

    async def events(self, inputs: AsyncIterator[Turn | CancelTurn]) -> AsyncGenerator[TurnEvent]:
        """Streams the events of all turns; each turn ends with a completion.

        Ends when the caller has half-closed and every turn has ended. Closing it cancels the turn that runs.

        Args:
            inputs: Turns and cancels as the caller sends them.

        Raises:
            Exception: What reading the inputs raised; errors of a turn are in its completion.
        """
        reader = asyncio.create_task(self._read(inputs))
        runner = asyncio.create_task(self._run())
        try:
            while (event := await self._output.get()) is not None:
                yield event
            await reader
            await runner
        finally:
            tasks = [reader, runner, *([self._running[1]] if self._running is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, inputs: AsyncIterator[Turn | CancelTurn]) -> None:
        try:
            async for received in inputs:
                if isinstance(received, CancelTurn):
                    await self._cancel(received.turn_id)
                elif received.turn_id in self._seen:
                    raise InvalidRequest.of("turn.turn_id", f"{received.turn_id!r} was used in this chat before")
                elif len(self._waiting) >= self._limit:
                    await self._end(received.turn_id, _failed(Overloaded("coordinator", self._limit, _RETRY_AFTER)))
                else:
                    self._seen.add(received.turn_id)
                    self._waiting.append(received)
                    self._news.set()
            self._half_closed = True
            self._news.set()
        except Exception:
            # The caller is told by `events`, which must not wait for turns that nobody can read.
            await self._output.put(None)
            raise

    async def _cancel(self, turn_id: str) -> None:
        if self._running is not None and self._running[0] == turn_id:
            self._running[1].cancel()
            return
        for turn in self._waiting:
            if turn.turn_id == turn_id:
                self._waiting.remove(turn)
                await self._end(turn_id, Completion(FinishReason.CANCELLED))
                return

    async def _run(self) -> None:
        try:
            while True:
                while not self._waiting:
                    if self._half_closed:
                        return
                    self._news.clear()
                    await self._news.wait()
                turn = self._waiting.popleft()
                task = asyncio.create_task(self._answer(turn))
                self._running = (turn.turn_id, task)
                await asyncio.wait([task])
                self._running = None
                if task.cancelled():
                    await self._end(turn.turn_id, Completion(FinishReason.CANCELLED))
                elif (error := task.exception()) is not None:
                    if not isinstance(error, LoremeshError):
                        raise error
                    await self._end(turn.turn_id, _failed(error))
        finally:
            await self._output.put(None)

    async def _answer(self, turn: Turn) -> None:
        budget = min(turn.budget or self._default_budget, 3600.0)
        question = replace(turn.question, history=tuple(self._messages))
        memory = _Memory(turn.question.retrieval.question)
        answer = self._service.ask(question, deadline=Deadline.after(budget), earlier=tuple(self._earlier))
        async with aclosing(answer) as events:
            async for event in events:
                memory.note(event)
                await self._output.put(TurnEvent(turn.turn_id, event))
        self._earlier.append(memory.turn())
        self._messages.extend(memory.messages())

    async def _end(self, turn_id: str, completion: Completion) -> None:
        await self._output.put(TurnEvent(turn_id, completion))


class _Memory:
    """What is kept of a turn for those that follow."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._question = asked
        self._text: list[str] = []
        self._found: dict[str, Passage] = {}
        self._cited: dict[str, Passage] = {}

    def note(self, event: object) -> None:
        match event:
            case TokenDelta():
                self._text.append(event.text)
            case Evidence(source=Passage() as passage):
                self._found[event.evidence_id] = passage
            case Citation() if event.evidence_id in self._found:
                self._cited[event.evidence_id] = self._found[event.evidence_id]
            case Plan():
                self._question = event.standalone_question
            case _:
                pass

    def turn(self) -> EarlierTurn:
        passages = tuple(self._cited.values())
        return EarlierTurn(
            self._question,
            "".join(self._text),
            tuple(dict.fromkeys(passage.title for passage in passages)),
            tuple(PassageReference(passage.collection, passage.passage_id) for passage in passages),
        )

    def messages(self) -> tuple[Message, ...]:
        return (Message(Role.USER, self._asked), Message(Role.ASSISTANT, "".join(self._text)))


def _failed(error: LoremeshError) -> Completion:
    return Completion(FinishReason.ERROR, error=error)

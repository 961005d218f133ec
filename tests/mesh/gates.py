"""Gates in the text index and in the engine: a mesh stops there as long as a test wants, and nowhere else."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import grpc
import pytest
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.bootstrap import backends
from loremesh_agents.domain.answer import FinishReason, TokenDelta, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model
from loremesh_agents.ports.text import TextIndex
from tests.mesh.conftest import Client

QUESTION = "Who has led Acme Corporation since 2019?"
ANSWER = "One two"

BUSY = {
    "search": {"coordinator", "retriever", "synthesizer"},
    "count": {"coordinator", "synthesizer", "generator"},
    "models": {"coordinator", "generator"},
    "first token": {"coordinator", "generator"},
    "second token": {"coordinator", "generator"},
}
"""Where the gates are, in the order in which an answer passes them, and who has a call in flight meanwhile."""


class Gate:
    """Lets work through while it is open, as it is at first.

    Attributes:
        waiting: How many wait at it.
        deadline: The deadline of the last one that came.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.deadline = Deadline(0)
        self._open = asyncio.Event()
        self.open()

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    async def pass_through(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class Gates(dict[str, Gate]):
    """The gates by their names."""

    def __init__(self) -> None:
        super().__init__({name: Gate() for name in BUSY})

    @property
    def waiting(self) -> int:
        """How many wait at any of them."""
        return sum(gate.waiting for gate in self.values())


class GatedText(EmbeddedIndex):
    """A text index with a gate before it."""

    def __init__(self, graph: GraphStore, text: TextIndex, gates: Gates) -> None:
        super().__init__(graph)
        self._text = text
        self._gates = gates

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        await self._gates["search"].pass_through(deadline)
        return await self._text.search(terms, revisions=revisions, limit=limit, deadline=deadline)


class GatedModel:
    """An engine that answers with two tokens; asked for `FLOOD` tokens, with ones of 16 KB that never end.

    Attributes:
        written: How many tokens it has given.
    """

    FLOOD = 131_072

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.written = 0

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        await self._gates["models"].pass_through(deadline)
        return (Model("gated", 4096, "", "1", frozenset({Capability.GENERATION})),)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        await self._gates["count"].pass_through(deadline)
        return tuple(len(text.split()) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | GenerationEnd]:
        await self._gates["first token"].pass_through(deadline)
        while request.options.max_tokens == self.FLOOD:
            self.written += 1
            yield TokenDelta("x" * 16_384, self.written - 1, 1)
        yield TokenDelta("One", 0, 1)
        await self._gates["second token"].pass_through(deadline)
        yield TokenDelta(" two", 1, 1)
        yield GenerationEnd(FinishReason.STOP, Usage(completion_tokens=2))

    async def close(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch) -> tuple[Gates, GatedModel]:
    """Puts gates into every mesh that is built from now on."""
    gates = Gates()
    model = GatedModel(gates)
    open_graph = backends.open_graph

    def open_gated(stores):
        graph, text = open_graph(stores)
        return graph, GatedText(graph, text, gates)

    monkeypatch.setattr(backends, "open_graph", open_gated)
    monkeypatch.setattr(backends, "open_model", lambda *_: model)
    return gates, model


def busy(client: Client) -> set[str]:
    """The agents that have calls in flight."""
    return {server.agent for server in client.mesh.servers if server.in_flight}


class Asking:
    """An answer on its way, read by a task of its own; by `Ask`, or as the one turn of a `Chat`.

    Attributes:
        channel: The caller's channel, which nobody else uses.
        call: The call.
        events: What has come.
        reader: The task that reads.
    """

    def __init__(
        self,
        target: str,
        rpc: str = "Ask",
        *,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        **fields: object,
    ) -> None:
        request = pb.AskRequest(question=QUESTION, **fields)
        self.channel = grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(self.channel)
        options = {"timeout": timeout, "wait_for_ready": wait_for_ready}
        self.call = stub.Ask(request, **options) if rpc == "Ask" else stub.Chat(**options)
        self.events: list[pb.AskResponse] = []
        self.reader = asyncio.create_task(self._read(None if rpc == "Ask" else request))

    async def _read(self, turn: pb.AskRequest | None) -> None:
        if turn is not None:
            await self.call.write(pb.ChatRequest(turn=pb.Turn(turn_id="1", ask=turn)))
        async for response in self.call:
            event = response if turn is None else response.event
            self.events.append(event)
            if turn is not None and event.HasField("completion"):
                await self.call.done_writing()

    @property
    def text(self) -> str:
        return "".join(event.delta.text for event in self.events)

    async def ended(self) -> list[pb.AskResponse]:
        """All events; raises what the call ended with."""
        try:
            await self.reader
        finally:
            await self.channel.close()
        return self.events

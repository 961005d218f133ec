"""Embeds a collection anew at a knowledge agent, and shows how far it is."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import click
import grpc
from google.protobuf import json_format
from loremesh.v1 import collection_pb2
from loremesh.v1 import knowledge_service_pb2 as pb
from loremesh.v1 import knowledge_service_pb2_grpc as pb_grpc

from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.exits import FAILED, CommandError
from loremesh_agents.cli.session import connected
from loremesh_agents.cli.turns import in_turn
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.channel import Peer

_SECONDS = 60.0
_PAUSE = 0.5
_MAKING = collection_pb2.REEMBEDDING_PHASE_MAKING
_UNFINISHED = frozenset({_MAKING, collection_pb2.REEMBEDDING_PHASE_DROPPING})


async def change_embedding(name: str, action: str, settings: Settings, address: str | None, *, as_json: bool) -> int:
    """Does one of `reembed`, `rollback` and `finish` with a collection, and waits until it is done.

    Where the knowledge agent is served here, it ends with the command; the next one that is started goes on.
    """
    async with connected("knowledge", address, settings, ("knowledge",)) as (channel, peer):
        agent = _Agent(name, channel, peer)
        before = await agent.collection()
        match action:
            case "reembed":
                await agent.reembed("")
            case "rollback":
                await _go_back(agent, before)
            case _:
                if before.reembedding.phase == _MAKING:
                    cause = f"{name} is being embedded with {before.reembedding.model}; --rollback gives that up."
                    raise CommandError(cause, FAILED)
                await agent.finish()
        async with aclosing(agent.progress()) as states:
            after = await _shown(states, as_json=as_json)
    if not as_json:
        click.echo(_sentence(after))
    return 0


async def _go_back(agent: "_Agent", before: collection_pb2.Collection) -> None:
    if not before.HasField("reembedding"):
        model = before.embedding_model or "none"
        raise CommandError(f"{agent.name} has no vectors of before {model} to go back to.", FAILED)
    if before.reembedding.phase == _MAKING:
        await agent.finish()
    else:
        await agent.reembed(before.reembedding.model)


async def _shown(states: AsyncGenerator[collection_pb2.Collection], *, as_json: bool) -> collection_pb2.Collection:
    """The last of the states; on the way there a progress bar, or a line of JSON for each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    found = collection_pb2.Collection()
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as progress:
        bar = progress.add_task("passages")
        async for found in states:
            if as_json:
                click.echo(json.dumps(json_format.MessageToDict(found), ensure_ascii=False))
            if found.HasField("reembedding"):
                progress.update(bar, completed=found.reembedding.passage_count, total=found.passage_count)
    return found


def _sentence(collection: collection_pb2.Collection) -> str:
    kept = f"; the vectors of {collection.reembedding.model} are kept" if collection.HasField("reembedding") else ""
    return f"{collection.name} has vectors of {collection.embedding_model or 'no encoder'}{kept}."


class _Agent:
    """A collection at a knowledge agent."""

    def __init__(self, name: str, channel: grpc.aio.Channel, peer: Peer) -> None:
        self.name = name
        self._peer = peer
        self._stub: pb_grpc.KnowledgeServiceAsyncStub = pb_grpc.KnowledgeServiceStub(channel)

    async def collection(self) -> collection_pb2.Collection:
        """The collection as it is."""
        request = pb.GetCollectionRequest(collection=self.name)
        return (await self._peer.unary(self._stub.GetCollection, request, Deadline.after(_SECONDS))).collection

    async def reembed(self, model: str) -> None:
        """Begins to embed it with a model; empty for that of new collections."""
        request = pb.ReembedRequest(collection=self.name, model=model)
        await in_turn(partial(self._peer.unary, self._stub.Reembed, request))

    async def finish(self) -> None:
        """Begins to remove the vectors that do not count."""
        request = pb.FinishReembeddingRequest(collection=self.name)
        await in_turn(partial(self._peer.unary, self._stub.FinishReembedding, request))

    async def progress(self) -> AsyncGenerator[collection_pb2.Collection]:
        """The collection again and again until nothing is under way."""
        while True:
            found = await self.collection()
            yield found
            if found.reembedding.phase not in _UNFINISHED:
                return
            await asyncio.sleep(_PAUSE)

"""`loremesh demo`."""

import shutil
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import click
import grpc
from loremesh.v1 import coordinator_service_pb2 as ask_pb
from loremesh.v1 import coordinator_service_pb2_grpc, document_pb2, knowledge_service_pb2_grpc
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.bootstrap.serve import channel_options, running
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.answer_view import AnswerView, exit_code
from loremesh_agents.cli.exits import FAILED
from loremesh_agents.cli.session import plain_errors, read_settings, run
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.errors import from_rpc_error_for_user

COLLECTION = "python"
QUESTIONS = (
    "What does the assert statement do?",
    "Which method does the with statement call on exit, and what does a true return value of it do?",
    "Which method does the membership test with the in operator call, and what should that method return?",
)
"""One hop, and two questions whose answers are in two topics each."""

_SECONDS = 60.0


@click.command("demo")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to keep the stores in. Default: a temporary one.")
def command(keep: Path | None) -> int:
    """Serve all agents, ingest the Python language reference that every Python has, and ask three questions."""
    folder = keep or Path(tempfile.mkdtemp(prefix="loremesh-demo-"))
    try:
        with plain_errors():
            settings = read_settings(None, folder).settings
        return run(_demo(settings))
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


async def _demo(settings: Settings) -> int:
    began = time.monotonic()
    async with running(("all",), settings) as mesh:
        for server in mesh.servers:
            click.secho(f"  {server.agent:<12} {server.target}", dim=True)
        options = channel_options(settings)
        channels = {name: open_channel(mesh.targets[name], options) for name in ("knowledge", "coordinator")}
        try:
            count = await ingest_reference(channels["knowledge"])
            click.echo(f"{count} topics of the Python language reference ingested, {time.monotonic() - began:.1f} s")
            code = 0
            for question in QUESTIONS:
                click.echo()
                click.secho(question, bold=True)
                code = max(code, await _ask(channels["coordinator"], question))
        finally:
            for channel in channels.values():
                await channel.close(None)
    click.echo()
    click.secho(
        f"Done in {time.monotonic() - began:.1f} s. Go on with: loremesh ingest PATH --collection NAME", dim=True
    )
    return code


async def ingest_reference(channel: grpc.aio.Channel) -> int:
    """Ingests the topics of the module `pydoc_data.topics`; gives how many there are."""
    from pydoc_data.topics import topics

    async def requests() -> AsyncGenerator[pb.IngestRequest]:
        yield pb.IngestRequest(start=pb.IngestStart(collection=COLLECTION))
        for name, text in topics.items():
            blob = document_pb2.Blob(media_type="text/plain", data=text.encode())
            document = document_pb2.Document(document_id=name, aliases=[name], uri=f"pydoc:{name}", blob=blob)
            yield pb.IngestRequest(document=document)

    count = 0
    stub: knowledge_service_pb2_grpc.KnowledgeServiceAsyncStub = knowledge_service_pb2_grpc.KnowledgeServiceStub(
        channel
    )
    peer = Peer("knowledge", decode=from_rpc_error_for_user)
    async with peer.duplex(stub.Ingest, requests(), None) as responses:
        async for response in responses:
            if response.HasField("result"):
                count += response.result.outcome != pb.DOCUMENT_OUTCOME_FAILED
    return count


async def _ask(channel: grpc.aio.Channel, question: str) -> int:
    view = AnswerView(why=True)
    code = FAILED
    stub: coordinator_service_pb2_grpc.CoordinatorServiceAsyncStub = (
        coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)
    )
    request = ask_pb.AskRequest(question=question, collections=[COLLECTION])
    peer = Peer("coordinator", decode=from_rpc_error_for_user)
    async with peer.stream(stub.Ask, request, Deadline.after(_SECONDS)) as events:
        async for event in events:
            view.show(event)
            if event.HasField("completion"):
                code = exit_code(event.completion)
    return code

"""`loremesh ask`."""

from pathlib import Path

import click
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc as pb_grpc
from loremesh.v1 import retriever_service_pb2

from loremesh_agents.bootstrap.serve import ALL
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.answer_view import AnswerView, exit_code, to_json
from loremesh_agents.cli.exits import FAILED
from loremesh_agents.cli.session import connected, plain_errors, read_settings, run, settings_options
from loremesh_agents.domain.deadline import Deadline

NEEDED = tuple(name for name in ALL if name != "knowledge")
"""Agents that answer questions."""

tools_option = click.option(
    "--tools",
    "tool_rounds",
    type=click.IntRange(0, 8),
    default=0,
    show_default=True,
    metavar="N",
    help="Times that the model may search again by itself for an answer; the model must be able to call tools.",
)


@click.command("ask")
@click.argument("question")
@click.option(
    "-c", "--collection", "collections", multiple=True, help="Collection to search; may be repeated. Default: all."
)
@click.option("-k", type=click.IntRange(1, 100), default=8, show_default=True, help="Pieces of evidence.")
@tools_option
@click.option("--why", is_flag=True, help="Show how each source was found.")
@click.option("--json", "as_json", is_flag=True, help="Print one event a line, as JSON.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for the whole answer.",
)
@click.option("--address", help="A coordinator, as in 127.0.0.1:50051. Default: serve the agents here.")
@settings_options
def command(
    question: str,
    collections: tuple[str, ...],
    k: int,
    tool_rounds: int,
    why: bool,
    as_json: bool,
    timeout: float,
    address: str | None,
    config: Path | None,
    data: Path | None,
) -> int:
    """Ask QUESTION; prints the answer as it is written, then its sources."""
    with plain_errors():
        settings = read_settings(config, data).settings
    request = pb.AskRequest(
        question=question,
        collections=collections,
        retrieval=retriever_service_pb2.RetrievalOptions(k=k),
        tool_rounds=tool_rounds,
    )
    return run(ask(request, settings, address, timeout, why=why, as_json=as_json))


async def ask(
    request: pb.AskRequest, settings: Settings, address: str | None, timeout: float, *, why: bool, as_json: bool
) -> int:
    """Asks and prints; gives the exit code."""
    view = AnswerView(why=why)
    code = FAILED
    async with connected("coordinator", address, settings, NEEDED) as (channel, peer):
        stub: pb_grpc.CoordinatorServiceAsyncStub = pb_grpc.CoordinatorServiceStub(channel)
        async with peer.stream(stub.Ask, request, Deadline.after(timeout)) as events:
            async for event in events:
                if as_json:
                    click.echo(to_json(event))
                else:
                    view.show(event)
                if event.HasField("completion"):
                    code = exit_code(event.completion)
    return code

"""`loremesh chat`."""

import asyncio
import importlib
import signal
import sys
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import click
from loremesh.v1 import answer_pb2
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc as pb_grpc

from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.answer_view import AnswerView, exit_code, to_json
from loremesh_agents.cli.commands.ask import NEEDED, tools_option
from loremesh_agents.cli.exits import OK
from loremesh_agents.cli.session import connected, plain_errors, read_settings, run, settings_options


@click.command("chat")
@click.option(
    "-c", "--collection", "collections", multiple=True, help="Collection to search; may be repeated. Default: all."
)
@tools_option
@click.option("--json", "as_json", is_flag=True, help="Print one event a line, as JSON.")
@click.option("--why", is_flag=True, help="Show how each source was found.")
@click.option("--address", help="A coordinator, as in 127.0.0.1:50051. Default: serve the agents here.")
@settings_options
def command(
    collections: tuple[str, ...],
    tool_rounds: int,
    as_json: bool,
    why: bool,
    address: str | None,
    config: Path | None,
    data: Path | None,
) -> int:
    """Talk: one question a line; Ctrl-C cancels the answer, Ctrl-D ends the chat."""
    with plain_errors():
        settings = read_settings(config, data).settings
    template = pb.AskRequest(collections=collections, tool_rounds=tool_rounds)
    return run(_chat(template, settings, address, as_json=as_json, why=why))


async def _chat(template: pb.AskRequest, settings: Settings, address: str | None, *, as_json: bool, why: bool) -> int:
    """Talks; all that a question says besides its text is the template's."""
    requests: asyncio.Queue[pb.ChatRequest | None] = asyncio.Queue(16)
    loop = asyncio.get_running_loop()
    turn = 0
    code = OK
    prompt = "> " if sys.stdin.isatty() and not as_json else ""

    def await_question() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        if prompt:
            # The thread that reads the terminal cannot be interrupted.
            loop.add_signal_handler(signal.SIGINT, partial(click.echo, f"\nCtrl-D ends the chat.\n{prompt}", nl=False))

    async def sent() -> AsyncGenerator[pb.ChatRequest]:
        while (request := await requests.get()) is not None:
            yield request

    async with connected("coordinator", address, settings, NEEDED) as (channel, peer):
        stub: pb_grpc.CoordinatorServiceAsyncStub = pb_grpc.CoordinatorServiceStub(channel)
        async with peer.duplex(stub.Chat, sent(), None) as events:
            await_question()
            while question := await asyncio.to_thread(_read_line, prompt):
                turn += 1
                turn_id = str(turn)
                ask = pb.AskRequest(question=question)
                ask.MergeFrom(template)
                await requests.put(pb.ChatRequest(turn=pb.Turn(turn_id=turn_id, ask=ask)))
                cancel = pb.ChatRequest(cancel=pb.CancelTurn(turn_id=turn_id))
                loop.add_signal_handler(signal.SIGINT, requests.put_nowait, cancel)
                view = AnswerView(why=why)
                try:
                    async for response in events:
                        if as_json:
                            click.echo(to_json(response))
                        else:
                            view.show(response.event)
                            _show_end(response.event)
                        if response.event.HasField("completion"):
                            code = exit_code(response.event.completion)
                            break
                finally:
                    await_question()
            await requests.put(None)
    return code


def _show_end(event: pb.AskResponse) -> None:
    match event.completion.finish_reason:
        case answer_pb2.FINISH_REASON_CANCELLED:
            click.secho("(cancelled)", fg="yellow")
        case answer_pb2.FINISH_REASON_ERROR:
            click.secho(event.completion.error.message, fg="red", err=True)
        case _:
            pass


def _read_line(prompt: str) -> str | None:
    """The next question that is not empty; None at the end of the input."""
    if prompt:
        # Importing it gives `input` its line editing.
        importlib.import_module("readline")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return None
        if line:
            return line

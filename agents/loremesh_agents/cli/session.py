"""What all commands share: settings, a connection to agents, and what errors become."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

from loremesh_agents.bootstrap.serve import channel_options, running
from loremesh_agents.bootstrap.settings import LoadedSettings, Settings, load
from loremesh_agents.cli.exits import FAILED, NOT_FOUND, UNAVAILABLE, USAGE, CommandError
from loremesh_agents.domain.errors import (
    ConfigurationError,
    InvalidRequest,
    LoremeshError,
    NotFound,
    TimedOut,
    Unavailable,
)
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.errors import from_rpc_error_for_user
from loremesh_agents.runtime.logs import configure_logging

_Command = TypeVar("_Command", bound=Callable[..., Any])


def settings_options(command: _Command) -> _Command:
    """The options by which every command finds its settings."""
    options = (
        click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings."),
        click.option("--data", type=click.Path(path_type=Path), help="Folder of the embedded stores."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_settings(config: Path | None, data: Path | None, *, quiet: bool = True) -> LoadedSettings:
    """The settings that are in force; also sets up logging.

    Args:
        config: TOML file, if one is named.
        data: Data folder, if one is named.
        quiet: Whether only warnings are logged: for commands that a person watches.
    """
    loaded = load(config, {"stores": {"data": data}} if data is not None else None)
    telemetry = loaded.settings.telemetry
    configure_logging("ERROR" if quiet and telemetry.log_level == "INFO" else telemetry.log_level, telemetry.log_format)
    return loaded


@asynccontextmanager
async def connected(
    agent: str, address: str | None, settings: Settings, needs: Sequence[str]
) -> AsyncGenerator[tuple[grpc.aio.Channel, Peer]]:
    """A channel to an agent at an address, else to one that is served here meanwhile.

    Args:
        agent: Name of the agent.
        address: Where it is; None to serve it.
        settings: All settings.
        needs: Agents to serve where there is no address.
    """
    peer = Peer(agent, reserve=0.0, decode=from_rpc_error_for_user)
    if address is not None:
        channel = open_channel(address, channel_options(settings))
        try:
            yield channel, peer
        finally:
            await channel.close(None)
        return
    async with running(needs, settings) as mesh:
        channel = open_channel(mesh.targets[agent], channel_options(settings))
        try:
            yield channel, peer
        finally:
            await channel.close(None)


@contextmanager
def plain_errors() -> Generator[None]:
    """Turns errors into sentences with exit codes."""
    try:
        yield
    except ConfigurationError as error:
        raise CommandError(f"{error}.", USAGE) from error
    except InvalidRequest as error:
        raise CommandError(error.message, USAGE) from error
    except NotFound as error:
        hint = " 'loremesh collections' lists those that there are." if error.resource_type == "collection" else ""
        raise CommandError(f"{error.message}{hint}", NOT_FOUND) from error
    except (Unavailable, TimedOut) as error:
        raise CommandError(f"{error.message} Is it running? 'loremesh health' asks all agents.", UNAVAILABLE) from error
    except LoremeshError as error:
        raise CommandError(error.message, FAILED) from error


def run(work: Coroutine[Any, Any, int]) -> int:
    """Runs a command's work in an event loop of its own; gives its exit code."""
    import uvloop

    with plain_errors(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)

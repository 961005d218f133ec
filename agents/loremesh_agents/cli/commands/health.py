"""`loremesh health`."""

import json
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loremesh_agents.bootstrap.serve import ALL, channel_options
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.exits import OK, UNAVAILABLE
from loremesh_agents.cli.session import plain_errors, read_settings, run, settings_options
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import LoremeshError
from loremesh_agents.runtime.channel import Peer, open_channel

_SECONDS = 3.0


@click.command("health")
@click.argument("agents", nargs=-1, metavar="[AGENT]...")
@click.option("--json", "as_json", is_flag=True, help="Print one agent a line, as JSON.")
@settings_options
def command(
    agents: tuple[str, ...],
    as_json: bool,
    config: Path | None,
    data: Path | None,
) -> int:
    """Ask the agents at the addresses of the settings whether they are ready; by default all of them."""
    for name in agents:
        if name not in ALL:
            raise click.UsageError(f"There is no agent {name!r}; there are {', '.join(ALL)}.")
    with plain_errors():
        settings = read_settings(config, data).settings
    return run(_health(agents or ALL, settings, as_json=as_json))


async def _health(names: tuple[str, ...], settings: Settings, *, as_json: bool) -> int:
    code = OK
    for name in names:
        address: str = getattr(settings.addresses, name)
        state = await _state(name, address, settings)
        if state != "ready":
            code = UNAVAILABLE
        if as_json:
            click.echo(json.dumps({"agent": name, "address": address, "state": state}))
        else:
            click.echo(f"{name:<12} {address:<24} " + click.style(state, fg="green" if state == "ready" else "red"))
    return code


async def _state(name: str, address: str, settings: Settings) -> str:
    service = f"loremesh.v1.{name.capitalize()}Service"
    channel: grpc.aio.Channel = open_channel(address, channel_options(settings))
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        # The stubs of this package do not know what a stub has.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        response = await Peer(name).unary(stub.Check, request, Deadline.after(_SECONDS))
    except LoremeshError:
        return "does not answer"
    finally:
        await channel.close(None)
    return "ready" if response.status == health_pb2.HealthCheckResponse.SERVING else "not ready"

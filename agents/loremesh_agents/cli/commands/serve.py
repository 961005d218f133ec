"""`loremesh serve`."""

import sys
from pathlib import Path

import click

from loremesh_agents.bootstrap.serve import build, chosen, serve
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.exits import USAGE, CommandError
from loremesh_agents.cli.session import plain_errors, read_settings, run, settings_options
from loremesh_agents.runtime.lifecycle import exempt_from_collection
from loremesh_agents.runtime.workers import Supervisor, WorkerOptions

_STATELESS = frozenset({"coordinator", "retriever", "synthesizer", "generator"})


@click.command("serve")
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that share the agent's port.",
)
@click.option("--worker", is_flag=True, hidden=True)
@click.option("--free-ports", is_flag=True, help="Listen on free ports of loopback and print them.")
@settings_options
def command(
    agents: tuple[str, ...],
    workers: int,
    worker: bool,
    free_ports: bool,
    config: Path | None,
    data: Path | None,
) -> int:
    """Serve AGENT...: coordinator, retriever, synthesizer, generator, knowledge, or all."""
    with plain_errors():
        settings = read_settings(config, data, quiet=False).settings
        names = [spec.name for spec in chosen(agents)]
    if worker or workers == 1:
        return run(_serve(names, settings, free_ports=free_ports, reuse_port=worker))
    if len(names) != 1 or names[0] not in _STATELESS:
        raise CommandError(f"--workers goes with one of {', '.join(sorted(_STATELESS))} alone.", USAGE)
    if free_ports:
        raise CommandError("--workers and --free-ports do not go together: the workers share the agent's port.", USAGE)
    return run(_supervise(names[0], workers, settings))


async def _serve(names: list[str], settings: Settings, *, free_ports: bool, reuse_port: bool) -> int:
    mesh = await build(names, settings, free_ports=free_ports, reuse_port=reuse_port)
    for server in mesh.servers:
        click.echo(f"{server.agent} {server.target}")
    if mesh.metrics_port is not None:
        click.echo(f"metrics {settings.telemetry.metrics_host}:{mesh.metrics_port}")
    sys.stdout.flush()
    exempt_from_collection()
    await serve(mesh, settings)
    return 0


async def _supervise(name: str, count: int, settings: Settings) -> int:
    address: str = getattr(settings.addresses, name)
    host, _, port = address.rpartition(":")
    if not port.isdigit() or port == "0":
        raise CommandError(
            f"--workers needs addresses.{name} to be host:port with a port of its own; it is {address!r}.", USAGE
        )
    telemetry = settings.telemetry
    options = WorkerOptions(
        count,
        host,
        int(port),
        metrics_host=telemetry.metrics_host,
        metrics_port=telemetry.metrics_port,
        # The supervisor shows the metrics of all.
        environment={"LOREMESH_TELEMETRY__METRICS_PORT": "null"},
    )

    def worker(shared: int) -> list[str]:
        del shared
        return [sys.executable, *sys.argv, "--worker"]

    await Supervisor(worker, options).run()
    return 0

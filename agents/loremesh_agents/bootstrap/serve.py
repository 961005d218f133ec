"""Serves agents: one, several or all in a process, each with a gRPC server of its own."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc

from loremesh_agents.bootstrap.agents import AGENTS, AgentSpec, BuiltAgent, Parts
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.bootstrap.stores import Stores
from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime import lifecycle
from loremesh_agents.runtime.channel import ChannelOptions, Peer, open_channel
from loremesh_agents.runtime.metrics import Metrics, MetricsServer
from loremesh_agents.runtime.server import (
    AgentServer,
    DeadlineOptions,
    MethodTimes,
    PeerTrust,
    ServerOptions,
    ServerTls,
    TransportOptions,
)
from loremesh_agents.runtime.tls import ClientTls
from loremesh_agents.runtime.tracing import NO_TRACING, Tracing

ALL = tuple(spec.name for spec in AGENTS)
"""Names of all agents, in the order in which they start."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Agents that are bound to their addresses and not yet started.

    Attributes:
        servers: In the order in which they start.
        targets: The address of each agent that is served here or elsewhere.
        resources: What they use; closed after them.
        metrics_port: Port of `/metrics`; None without.
    """

    servers: tuple[AgentServer, ...]
    targets: Mapping[str, str]
    resources: AsyncExitStack
    metrics_port: int | None


def chosen(names: Sequence[str]) -> tuple[AgentSpec, ...]:
    """The agents of these names, in the order in which they start; `all` is every one.

    Raises:
        ConfigurationError: There is no agent of a name.
    """
    for name in names:
        if name not in (*ALL, "all"):
            raise ConfigurationError(f"there is no agent {name!r}; there are {', '.join(ALL)}, and all")
    return tuple(spec for spec in AGENTS if "all" in names or spec.name in names)


async def build(
    names: Sequence[str], settings: Settings, *, free_ports: bool = False, reuse_port: bool = False
) -> Mesh:
    """Builds and binds agents.

    Args:
        names: Names of agents, or `all`.
        settings: All settings.
        free_ports: Whether to listen on free ports of loopback instead of the addresses of the settings.
        reuse_port: Whether other processes may listen on the same ports.

    Raises:
        ConfigurationError: A setting, file or address cannot be used; what was opened before is closed again.
    """
    async with AsyncExitStack() as resources:
        tracing_of = await _tracing(settings, resources)
        metrics = Metrics()
        metrics_port = None
        if settings.telemetry.metrics_port is not None:
            telemetry = settings.telemetry
            shown = MetricsServer(metrics.registry, telemetry.metrics_host, telemetry.metrics_port or 0)
            metrics_port = (await resources.enter_async_context(shown)).port
        targets: dict[str, str] = settings.addresses.model_dump()
        stores = Stores(settings, resources)
        stores.require_shared([spec.name for spec in chosen(names)])
        servers: list[AgentServer] = []
        for spec in chosen(names):
            peers = _Peers(settings, targets, tracing_of(spec.name), resources)
            built = spec.build(Parts(settings, stores, peers.channel, peers.peer, resources, metrics.registry))
            address = "127.0.0.1:0" if free_ports else targets[spec.name]
            server = AgentServer(
                spec.name,
                (built.service,),
                _server_options(settings, address, built, reuse_port=reuse_port),
                metrics=metrics.for_agent(spec.name),
                tracing=tracing_of(spec.name),
                dependencies=built.dependencies,
            )
            targets[spec.name] = server.bind()
            servers.append(server)
        return Mesh(tuple(servers), targets, resources.pop_all(), metrics_port)


@asynccontextmanager
async def running(names: Sequence[str], settings: Settings) -> AsyncGenerator[Mesh]:
    """Serves agents on free ports of loopback within the block."""
    mesh = await build(names, settings, free_ports=True)
    async with mesh.resources, AsyncExitStack() as stack:
        for server in mesh.servers:
            await stack.enter_async_context(server)
        yield mesh


async def serve(mesh: Mesh, settings: Settings) -> None:
    """Serves until a signal comes, then drains."""
    options = lifecycle.DrainOptions(settings.server.drain_delay, settings.server.drain_grace)
    await lifecycle.run(mesh.servers, mesh.resources, options)


def channel_options(settings: Settings) -> ChannelOptions:
    """How to connect to agents: calls go in turn to all addresses that a name has."""
    security = settings.security
    if security.mode in ("plain", "sidecar"):
        return ChannelOptions(balance="round_robin")
    own = (security.certificate, security.key) if security.mode == "mtls" else (None, None)
    return ChannelOptions(tls=ClientTls(security.ca, *own, security.server_name), balance="round_robin")


class _Peers:
    """Channels to the peers of one agent; a peer that is served in the same process has its bound address here."""

    def __init__(self, settings: Settings, targets: Mapping[str, str], tracing: Tracing, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._targets = targets
        self._tracing = tracing
        self._stack = stack

    def channel(self, name: str) -> grpc.aio.Channel:
        channel = open_channel(self._targets[name], channel_options(self._settings))
        self._stack.push_async_callback(partial(channel.close, None))
        return channel

    def peer(self, name: str) -> Peer:
        return Peer(name, tracing=self._tracing)


def _server_options(settings: Settings, address: str, built: BuiltAgent, *, reuse_port: bool) -> ServerOptions:
    security = settings.security
    server = settings.server
    tls = None
    if security.mode in ("tls", "mtls"):
        if security.certificate is None or security.key is None:
            raise ConfigurationError(
                f"security.mode is {security.mode!r}: it needs security.certificate and security.key"
            )
        if security.mode == "mtls" and security.ca is None:
            raise ConfigurationError("security.mode is 'mtls': it needs security.ca, whose certificates are let in")
        tls = ServerTls(security.certificate, security.key, security.ca if security.mode == "mtls" else None)
    trust = {"mtls": PeerTrust.CERTIFICATE, "sidecar": PeerTrust.SIDECAR}.get(security.mode, PeerTrust.NOTHING)
    return ServerOptions(
        address=address,
        tls=tls,
        trust=trust,
        principal_issuers=security.principal_issuers,
        max_in_flight=server.max_in_flight,
        deadlines=DeadlineOptions(
            default=MethodTimes(built.default_budget, server.idle_timeout), methods=built.times(server.idle_timeout)
        ),
        transport=TransportOptions(max_connection_age=server.max_connection_age),
        reuse_port=reuse_port,
    )


async def _tracing(settings: Settings, stack: AsyncExitStack) -> Callable[[str], Tracing]:
    telemetry = settings.telemetry
    if not telemetry.otlp_endpoint:
        return lambda _: NO_TRACING
    try:
        from loremesh_agents.runtime.otel import OpenTelemetry
    except ImportError as error:
        raise ConfigurationError(
            "telemetry.otlp_endpoint is set, but OpenTelemetry is not installed (pip install 'loremesh[otel]')"
        ) from error
    made = OpenTelemetry.to_endpoint(telemetry.otlp_endpoint, sample_ratio=telemetry.sample_ratio)
    return (await stack.enter_async_context(made)).for_agent

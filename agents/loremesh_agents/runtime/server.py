"""An agent's gRPC server: construct, bind, start; then stop."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime.health import Dependency, Health, HealthOptions
from loremesh_agents.runtime.interceptors import (
    AccessLogInterceptor,
    AdmissionInterceptor,
    AuthenticationInterceptor,
    DeadlineInterceptor,
    ErrorsInterceptor,
    RequestContextInterceptor,
    TelemetryInterceptor,
    ValidationInterceptor,
    in_order,
)
from loremesh_agents.runtime.interceptors.authentication import PeerTrust
from loremesh_agents.runtime.interceptors.chain import Chain
from loremesh_agents.runtime.interceptors.deadline import DeadlineOptions, MethodTimes
from loremesh_agents.runtime.metrics import AgentMetrics, Metrics
from loremesh_agents.runtime.tls import ServerTls
from loremesh_agents.runtime.tracing import NO_TRACING, Tracing

__all__ = [
    "AgentServer",
    "DeadlineOptions",
    "Dependency",
    "HealthOptions",
    "MethodTimes",
    "PeerTrust",
    "ServerOptions",
    "ServerTls",
    "Service",
    "TransportOptions",
]

_REFUSING = 0.1
"""Seconds for which new calls are refused before the port closes: gRPC would cancel those that it has taken and not yet handed over."""

_LAST_WORDS = 0.5
"""Seconds for final statuses to leave, and for streams that nobody waits for (health's Watch) to be cut off."""

_FOR_EVER = 86_400.0

_Servicer = TypeVar("_Servicer")
_Options: TypeAlias = list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Limits and habits of a server's connections. Times are in seconds.

    Attributes:
        max_receive_bytes: Largest message accepted. The contract keeps messages under 1 MiB.
        max_send_bytes: Largest message sent.
        max_concurrent_streams: Calls in flight on one connection.
        keepalive_time: Silence after which the server asks whether the client is there.
        keepalive_timeout: How long it waits for the answer.
        min_ping_interval: How often clients may ask the same.
        max_connection_age: Age at which a connection is closed gracefully, so that clients find new replicas; None for
            never.
        max_connection_age_grace: How long calls on such a connection may go on.
    """

    max_receive_bytes: int = 4 * 1024 * 1024
    max_send_bytes: int = 4 * 1024 * 1024
    max_concurrent_streams: int = 1024
    keepalive_time: float = 60.0
    keepalive_timeout: float = 20.0
    min_ping_interval: float = 10.0
    max_connection_age: float | None = None
    max_connection_age_grace: float = 300.0

    def to_grpc(self) -> _Options:
        """The options as gRPC takes them."""
        options: _Options = [
            ("grpc.max_receive_message_length", self.max_receive_bytes),
            ("grpc.max_send_message_length", self.max_send_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.keepalive_time_ms", _ms(self.keepalive_time)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval)),
        ]
        if self.max_connection_age is not None:
            options += [
                ("grpc.max_connection_age_ms", _ms(self.max_connection_age)),
                ("grpc.max_connection_age_grace_ms", _ms(self.max_connection_age_grace)),
            ]
        return options


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How an agent's server listens and what it lets in.

    Attributes:
        address: `host:port`, with port 0 for any free one, or `unix:/path`.
        tls: Certificates; None for plain text, which is for loopback, Unix sockets, and sidecars that encrypt.
        trust: What proves who a peer is, for those who send a principal.
        principal_issuers: Names (URI or DNS) of the peers that may send a principal; empty for all authenticated ones.
        max_in_flight: Calls served at once, None for any number. More are refused with OVERLOADED.
        overload_retry_after: Seconds that a refused caller is told to wait.
        deadlines: How long calls may take.
        health: How dependencies are watched.
        transport: Limits and habits of connections.
        reuse_port: Whether other processes may listen on the same port: for worker processes.
        reflection: Whether the contract can be asked for.
    """

    address: str = "127.0.0.1:0"
    tls: ServerTls | None = None
    trust: PeerTrust = PeerTrust.NOTHING
    principal_issuers: frozenset[str] = frozenset()
    max_in_flight: int | None = 256
    overload_retry_after: float = 0.25
    deadlines: DeadlineOptions = field(default_factory=DeadlineOptions)
    health: HealthOptions = field(default_factory=HealthOptions)
    transport: TransportOptions = field(default_factory=TransportOptions)
    reuse_port: bool = False
    reflection: bool = True


@dataclass(frozen=True, slots=True)
class Service:
    """A service with the servicer that serves it.

    Attributes:
        name: Full name, as in `loremesh.v1.RetrieverService`.
        register: Adds the servicer to a server.
        request_types: Its request messages, whose validation rules are compiled before the first request.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    request_types: tuple[type[Message], ...] = ()

    @classmethod
    def of(
        cls,
        descriptor: ServiceDescriptor,
        add_to_server: Callable[[_Servicer, grpc.aio.Server], None],
        servicer: _Servicer,
    ) -> Self:
        """A service from generated code.

        Args:
            descriptor: As in `retriever_service_pb2.DESCRIPTOR.services_by_name["RetrieverService"]`.
            add_to_server: As in `retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server`.
            servicer: What serves it.
        """
        return cls(
            descriptor.full_name,
            partial(add_to_server, servicer),
            tuple(GetMessageClass(method.input_type) for method in descriptor.methods),
        )


class AgentServer:
    """The server of one agent. A process may have several.

    Its life is: construct, `bind`, `start`, `announce_stop`, `stop`. It is not ready before `start` returns and its
    hard dependencies answer.

    Attributes:
        agent: Name of the agent.
    """

    def __init__(
        self,
        agent: str,
        services: Sequence[Service],
        options: ServerOptions = ServerOptions(),
        *,
        metrics: AgentMetrics | None = None,
        tracing: Tracing = NO_TRACING,
        dependencies: Sequence[Dependency] = (),
    ) -> None:
        """Builds the server within a running event loop; it listens to nothing yet.

        Args:
            agent: Name of the agent, as in `retriever`.
            services: What it serves.
            options: How it listens and what it lets in.
            metrics: Where its calls are counted: `Metrics().for_agent(agent)`.
            tracing: Makes its spans.
            dependencies: What it needs, for its readiness.
        """
        self.agent = agent
        self._options = options
        metrics = metrics if metrics is not None else Metrics().for_agent(agent)
        names = [service.name for service in services]
        self._health = Health(names, dependencies, metrics, options.health)
        self._admission = AdmissionInterceptor(agent, options.max_in_flight, options.overload_retry_after)
        chain = Chain(
            in_order(
                telemetry=TelemetryInterceptor(metrics, tracing),
                request_context=RequestContextInterceptor(agent),
                access_log=AccessLogInterceptor(),
                errors=ErrorsInterceptor(),
                authentication=AuthenticationInterceptor(agent, options.trust, options.principal_issuers),
                admission=self._admission,
                deadline=DeadlineInterceptor(agent, options.deadlines),
                validation=ValidationInterceptor(kind for service in services for kind in service.request_types),
            )
        )
        self._server = grpc.aio.server(
            interceptors=[chain],
            # gRPC shares ports by default; two agents on one port by mistake must fail at their start.
            options=[*options.transport.to_grpc(), ("grpc.so_reuseport", int(options.reuse_port))],
        )
        for service in services:
            service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        if options.reflection:
            health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], self._server)
        self._target: str | None = None
        self._started = False
        self._stopping: asyncio.Task[None] | None = None

    @property
    def target(self) -> str:
        """The address that clients dial, as in `127.0.0.1:50051` or `unix:/path`.

        Raises:
            RuntimeError: The server is not bound.
        """
        if self._target is None:
            raise RuntimeError(f"the {self.agent} server is not bound")
        return self._target

    @property
    def in_flight(self) -> int:
        """How many calls are being served."""
        return self._admission.in_flight

    def bind(self) -> str:
        """Opens the port and gives the address that clients dial.

        Raises:
            ConfigurationError: The address is taken or cannot be opened, or a certificate cannot be read.
        """
        address = self._options.address
        credentials = self._options.tls.credentials() if self._options.tls is not None else None
        if address.startswith("unix:"):
            _refuse_live_socket(address)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigurationError(f"the {self.agent} agent cannot listen on {address}: {error}") from error
        self._target = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        return self._target

    async def start(self) -> None:
        """Serves calls; ready as soon as the hard dependencies answer. Binds if that has not been done."""
        if self._target is None:
            self.bind()
        await self._health.prepare()
        await self._server.start()
        self._started = True
        await self._health.start()

    async def announce_stop(self) -> None:
        """Tells health checks that the agent is going away. Calls are still served."""
        await self._health.drain()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, waits for those in flight, and closes.

        Calls that have not ended in time are ended with the error Draining. Called again with less grace, it hurries
        up.

        Args:
            grace: Seconds for the calls in flight.
        """
        if not self._started:
            # gRPC would wait for ever for a server that was bound and never started.
            return
        await self._health.drain()
        await self._health.stop()
        self._admission.drain()
        if grace and self._stopping is None:
            await asyncio.sleep(min(_REFUSING, grace))
        if self._stopping is None:
            # Closes the port and tells clients at once; when the calls in flight end is decided below.
            self._stopping = asyncio.create_task(self._server.stop(_FOR_EVER))
        try:
            async with asyncio.timeout(grace):
                await self._admission.wait_idle()
        except TimeoutError:
            self._admission.interrupt()
        await self._server.stop(_LAST_WORDS)
        await self._stopping

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(0)


def _refuse_live_socket(address: str) -> None:
    """Refuses an address that another process listens on: gRPC would take the socket over."""
    path = address.removeprefix("unix:").removeprefix("//")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise ConfigurationError(f"another process listens on {address}")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)

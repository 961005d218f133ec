"""The agents: what each one serves, whom it needs, and how it is built."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
from loremesh.v1 import (
    coordinator_service_pb2,
    coordinator_service_pb2_grpc,
    generator_service_pb2,
    generator_service_pb2_grpc,
    knowledge_service_pb2,
    knowledge_service_pb2_grpc,
    retriever_service_pb2,
    retriever_service_pb2_grpc,
    synthesizer_service_pb2,
    synthesizer_service_pb2_grpc,
)
from prometheus_client import CollectorRegistry, Counter

from loremesh_agents.adapters.parsing.parser import FileParser
from loremesh_agents.bootstrap.backends import open_ranker
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.bootstrap.stores import Stores
from loremesh_agents.clients.generator import GeneratorClient
from loremesh_agents.clients.retriever import RetrieverClient
from loremesh_agents.clients.synthesizer import SynthesizerClient
from loremesh_agents.coordinator.service import CoordinatorService
from loremesh_agents.coordinator.servicer import CoordinatorServicer
from loremesh_agents.generator.metrics import PrometheusAdmissionMetrics
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.generator.servicer import GeneratorServicer
from loremesh_agents.knowledge.service import KnowledgeService
from loremesh_agents.knowledge.servicer import KnowledgeServicer
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.servicer import RetrieverServicer
from loremesh_agents.runtime.channel import Peer
from loremesh_agents.runtime.server import Dependency, MethodTimes, Service
from loremesh_agents.synthesizer.service import SynthesizerService
from loremesh_agents.synthesizer.servicer import SynthesizerServicer


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is built of.

    Attributes:
        settings: All settings.
        stores: Backends, opened when they are first asked for.
        channel: Gives the channel to a peer by its name.
        peer: Gives the call layer to a peer by its name.
        stack: Closes what an agent opens.
        registry: Collects metrics that are an agent's own.
    """

    settings: Settings
    stores: Stores
    channel: Callable[[str], grpc.aio.Channel]
    peer: Callable[[str], Peer]
    stack: AsyncExitStack
    registry: CollectorRegistry


@dataclass(frozen=True, slots=True)
class BuiltAgent:
    """An agent that is ready to be served.

    Attributes:
        service: Its service.
        dependencies: What its readiness depends on.
        method_times: Deadlines and idle timeouts of its methods, by full name.
    """

    service: Service
    dependencies: tuple[Dependency, ...] = ()
    default_budget: float = 60.0
    endless_methods: tuple[str, ...] = ()

    def times(self, idle_timeout: float) -> dict[str, MethodTimes]:
        """How long calls of the endless methods may take: as long as messages flow."""
        endless = MethodTimes(default_deadline=None, idle_timeout=idle_timeout)
        return {f"{self.service.name}/{method}": endless for method in self.endless_methods}


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent: its name, the agents that it calls, and how it is built."""

    name: str
    needs: tuple[str, ...]
    build: Callable[[Parts], BuiltAgent]


def _generator(parts: Parts) -> BuiltAgent:
    settings = parts.settings.generator
    model = parts.stores.model
    admission = parts.stores.admission(settings, PrometheusAdmissionMetrics(parts.registry))
    servicer = GeneratorServicer(GeneratorService(model, settings, admission))
    descriptor = generator_service_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
    add = generator_service_pb2_grpc.add_GeneratorServiceServicer_to_server
    return BuiltAgent(Service.of(descriptor, add, servicer), default_budget=settings.default_budget)


def _knowledge(parts: Parts) -> BuiltAgent:
    settings = parts.settings.knowledge
    stores = parts.stores
    parser = FileParser()
    parts.stack.push_async_callback(parser.close)
    failed_sweeps = Counter(
        "knowledge_sweeps_failed",
        "Removals of what has ended in the graph store that failed and are tried again.",
        registry=parts.registry,
    )
    indexes = {"text": stores.text, **({"vector": stores.vectors} if stores.vectors is not None else {})}
    service = KnowledgeService(
        stores.graph,
        indexes,
        parser,
        stores.embedder,
        settings,
        previous_embedder=stores.previous_embedder,
        sweep=stores.sweep(failed_sweeps.inc),
        vector_sets=stores.vector_sets,
    )
    parts.stack.push_async_callback(service.close)
    service.start()
    descriptor = knowledge_service_pb2.DESCRIPTOR.services_by_name["KnowledgeService"]
    add = knowledge_service_pb2_grpc.add_KnowledgeServiceServicer_to_server
    return BuiltAgent(
        Service.of(descriptor, add, KnowledgeServicer(service)),
        (stores.graph_dependency,),
        settings.default_budget,
        ("Ingest", "WatchRevisions", "ReadChanges"),
    )


def _retriever(parts: Parts) -> BuiltAgent:
    settings = parts.settings.retriever
    stores = parts.stores
    ranker = open_ranker(settings.ranker)
    relevance = ranker.relevance if ranker is not None else None
    service = RetrieverService(
        stores.graph,
        stores.text,
        stores.vectors,
        stores.embedder,
        settings,
        previous_embedder=stores.previous_embedder,
        relevance=relevance,
    )
    descriptor = retriever_service_pb2.DESCRIPTOR.services_by_name["RetrieverService"]
    add = retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server
    return BuiltAgent(
        Service.of(descriptor, add, RetrieverServicer(service)), (stores.graph_dependency,), settings.default_budget
    )


def _synthesizer(parts: Parts) -> BuiltAgent:
    settings = parts.settings.synthesizer
    counter = GeneratorClient(parts.channel("generator"), parts.peer("generator"))
    servicer = SynthesizerServicer(SynthesizerService(counter, settings))
    descriptor = synthesizer_service_pb2.DESCRIPTOR.services_by_name["SynthesizerService"]
    add = synthesizer_service_pb2_grpc.add_SynthesizerServiceServicer_to_server
    return BuiltAgent(Service.of(descriptor, add, servicer), default_budget=settings.default_budget)


def _coordinator(parts: Parts) -> BuiltAgent:
    settings = parts.settings.coordinator
    service = CoordinatorService(
        RetrieverClient(parts.channel("retriever"), parts.peer("retriever")),
        SynthesizerClient(parts.channel("synthesizer"), parts.peer("synthesizer")),
        GeneratorClient(parts.channel("generator"), parts.peer("generator")),
        settings,
    )
    descriptor = coordinator_service_pb2.DESCRIPTOR.services_by_name["CoordinatorService"]
    add = coordinator_service_pb2_grpc.add_CoordinatorServiceServicer_to_server
    return BuiltAgent(
        Service.of(descriptor, add, CoordinatorServicer(service)),
        default_budget=settings.default_budget,
        endless_methods=("Chat",),
    )


AGENTS = (
    AgentSpec("generator", (), _generator),
    AgentSpec("knowledge", (), _knowledge),
    AgentSpec("retriever", (), _retriever),
    AgentSpec("synthesizer", ("generator",), _synthesizer),
    AgentSpec("coordinator", ("retriever", "synthesizer", "generator"), _coordinator),
)
"""All agents, each after those that it calls."""

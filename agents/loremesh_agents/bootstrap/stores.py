"""The backends of one process: each opened once, when an agent first needs it."""

from collections.abc import Callable
from collections.abc import Collection as Group
from contextlib import AsyncExitStack
from functools import cached_property

from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.generator.admission import AdmissionMetrics, TokenAdmission
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.knowledge.upkeep import Sweep
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.language_model import LanguageModel
from loremesh_agents.ports.text import TextIndex
from loremesh_agents.ports.vector_sets import VectorSets
from loremesh_agents.ports.vectors import VectorIndex
from loremesh_agents.runtime.server import Dependency

_ON_THE_GRAPH = frozenset({"knowledge", "retriever"})


class Stores:
    """The backends that settings name.

    Args:
        settings: All settings.
        stack: Closes what is opened.
    """

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings.stores
        self._language_model = settings.language_model
        self._stack = stack

    def require_shared(self, agents: Group[str]) -> None:
        """Refuses a graph in memory where an agent that works on it runs elsewhere.

        Args:
            agents: Names of those that this process serves.

        Raises:
            ConfigurationError: It would have a graph of its own, in which it never finds what the other one stores.
        """
        missing = _ON_THE_GRAPH.difference(agents)
        if backends.in_memory(self._settings) and missing and not _ON_THE_GRAPH.isdisjoint(agents):
            raise ConfigurationError(
                f"the setting stores.graph is {self._settings.graph!r}, which one process alone can see:"
                f" serve {' and '.join(sorted(missing))} in it as well, or choose sqlite:///path"
            )

    @cached_property
    def _graph_and_text(self) -> tuple[GraphStore, TextIndex]:
        graph, text = backends.open_graph(self._settings)
        self._stack.push_async_callback(graph.close)
        return graph, text

    @property
    def graph(self) -> GraphStore:
        """The graph store."""
        return self._graph_and_text[0]

    @cached_property
    def text(self) -> TextIndex:
        """The text index: a server's where one is named, else the graph's own."""
        text = backends.open_text(self._settings, self.graph)
        if text is None:
            return self._graph_and_text[1]
        self._stack.push_async_callback(text.close)
        return text

    @cached_property
    def embedder(self) -> Embedder | None:
        """The encoder, if there is one."""
        embedder = backends.open_embedder(self._settings)
        if embedder is not None:
            self._stack.push_async_callback(embedder.close)
        return embedder

    @cached_property
    def previous_embedder(self) -> Embedder | None:
        """The encoder of collections that are not embedded anew yet, if there is one."""
        embedder = backends.open_previous_embedder(self._settings)
        if embedder is not None:
            self._stack.push_async_callback(embedder.close)
        return embedder

    def sweep(self, on_failure: Callable[[], None]) -> Sweep | None:
        """What removes what has ended in the graph store; None for one that does so by itself.

        Args:
            on_failure: Called whenever that fails, in the course of a write as well.
        """
        from loremesh_agents.adapters.graph.versioned import VersionedGraphStore

        if not isinstance(self.graph, VersionedGraphStore):
            return None
        self.graph.on_failed_sweep(on_failure)
        return self.graph.sweep

    @property
    def vector_sets(self) -> VectorSets | None:
        """Where the graph store keeps vectors of two models; None where it cannot."""
        return backends.open_vector_sets(self.graph)

    @cached_property
    def vectors(self) -> VectorIndex | None:
        """The vector index; None without an encoder, for then there are no vectors to look for."""
        if self.embedder is None and self.previous_embedder is None:
            return None
        vectors = backends.open_vectors(self._settings, self.graph)
        if vectors is not None:
            self._stack.push_async_callback(vectors.close)
        return vectors

    @cached_property
    def model(self) -> LanguageModel:
        """The engine that writes answers."""
        model = backends.open_model(self._settings, self._language_model)
        self._stack.push_async_callback(model.close)
        return model

    def admission(self, settings: GeneratorSettings, metrics: AdmissionMetrics) -> TokenAdmission:
        """What bounds the generations in flight at the engines.

        Args:
            settings: Of the generator.
            metrics: Where it tells what it does.
        """
        # After the model: that names what a URL lacks.
        gauges = backends.open_load_gauges(self._settings, self._language_model)
        engines = len(backends.engine_urls(self._settings))
        admission = TokenAdmission(settings, engines=engines, gauges=gauges, metrics=metrics)
        self._stack.push_async_callback(admission.close)
        return admission

    @property
    def graph_dependency(self) -> Dependency:
        """The graph store, for the readiness of those that need it."""
        graph = self.graph

        async def probe(deadline: Deadline) -> None:
            await graph.check(deadline=deadline)

        return Dependency("graph", probe)

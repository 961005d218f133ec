"""The graph store over a property graph that somebody runs: one store, an engine each."""

from loremesh_agents.adapters.graph.versioned.store import VersionedGraphStore

__all__ = ["VersionedGraphStore"]

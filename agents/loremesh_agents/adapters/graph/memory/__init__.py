"""`memory://`: the graph store as the port describes it, in the plainest way: what the other stores are compared with."""

from loremesh_agents.adapters.graph.memory.store import MemoryGraphStore

__all__ = ["MemoryGraphStore"]

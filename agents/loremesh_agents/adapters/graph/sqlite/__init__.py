"""The embedded graph store: one SQLite database in WAL mode, one writing process, any number of readers."""

from loremesh_agents.adapters.graph.sqlite.store import SqliteGraphStore

__all__ = ["SqliteGraphStore"]

"""The property graphs that real servers hold, each opened for a test: empty, and with the schema in force."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from loremesh_agents.adapters.graph.versioned.engine import GraphEngine

ENGINES: dict[str, Callable[[], AbstractAsyncContextManager[GraphEngine]]] = {}
"""By name. A server is started when its first test needs it, and stopped at the end of the session."""

"""`bolt://` and `neo4j://`: a Neo4j server as the graph's engine."""

from loremesh_agents.adapters.graph.neo4j.connection import Address, Connection
from loremesh_agents.adapters.graph.neo4j.engine import Neo4jEngine

__all__ = ["Address", "Connection", "Neo4jEngine"]

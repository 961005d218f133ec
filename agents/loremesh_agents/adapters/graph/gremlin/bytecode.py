"""The driver, at one border: it has no types, so what is built with it is Any."""

from typing import Any

from gremlin_python.driver.request import RequestMessage
from gremlin_python.driver.serializer import GraphBinarySerializersV1
from gremlin_python.process import graph_traversal, traversal
from gremlin_python.process.traversal import TraversalStrategies
from gremlin_python.statics import long as _long
from gremlin_python.structure.graph import Graph

_terms: Any = traversal

anonymous: Any = graph_traversal.__
P: Any = _terms.P
T: Any = _terms.T
Order: Any = _terms.Order
Column: Any = _terms.Column
Direction: Any = _terms.Direction
Cardinality: Any = _terms.Cardinality
WithOptions: Any = _terms.WithOptions

_Source: Any = graph_traversal.GraphTraversalSource
_Graph: Any = Graph
_Strategies: Any = TraversalStrategies
_Request: Any = RequestMessage
_Serializer: Any = GraphBinarySerializersV1
_to_long: Any = _long


def source() -> Any:
    """Where traversals start; none of them is sent by the driver."""
    return _Source(_Graph(), _Strategies())


def long(value: int) -> Any:
    """A number that travels with 64 bits however small it is."""
    return _to_long(value)


def serializer() -> Any:
    """What turns requests into GraphBinary and answers back."""
    return _Serializer()


def request(processor: str, op: str, arguments: dict[str, Any]) -> Any:
    """A message to the server."""
    return _Request(processor, op, arguments)

"""The retriever's messages between `loremesh.v1` and the domain."""

from loremesh.v1 import retriever_service_pb2 as pb

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.conversation import PassageReference
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.retriever.neighbourhood import Edge, ExpandRequest, Node
from loremesh_agents.runtime import wire

_DEFAULT_DEPTH = 1
_DEFAULT_LIMIT = 100


def retrieval_from_proto(message: pb.RetrieveRequest) -> RetrievalRequest:
    """A question to find evidence for."""
    return wire.retrieval_request(
        message.question, message.collections, message.options, message.consistency, message.context
    )


def retrieval_event_to_proto(event: Evidence | Completion) -> pb.RetrieveResponse:
    """An event of a retrieval."""
    if isinstance(event, Evidence):
        return pb.RetrieveResponse(evidence=wire.evidence_to_proto(event))
    return pb.RetrieveResponse(completion=wire.completion_to_proto(event))


def expansion_from_proto(message: pb.ExpandRequest) -> ExpandRequest:
    """Where to look around."""
    return ExpandRequest(
        collections=tuple(message.collections),
        entities=tuple(message.entities),
        passages=tuple(PassageReference(entry.collection, entry.passage_id) for entry in message.passages),
        depth=message.depth or _DEFAULT_DEPTH,
        limit=message.limit or _DEFAULT_LIMIT,
        filter=wire.filter_from_proto(message.filter),
        consistency=wire.consistency_from_proto(message.consistency),
    )


def expansion_event_to_proto(event: Node | Edge | Completion) -> pb.ExpandResponse:
    """An event of a look around."""
    if isinstance(event, Node):
        node = pb.GraphNode(node_id=event.node_id, distance=event.distance)
        if isinstance(event.content, Passage):
            node.passage.CopyFrom(wire.passage_to_proto(event.content))
        else:
            entity = event.content
            node.entity.CopyFrom(
                pb.EntityNode(name=entity.name, mention_count=entity.mention_count, title_count=entity.title_count)
            )
        return pb.ExpandResponse(node=node)
    if isinstance(event, Edge):
        edge = pb.GraphEdge(
            from_node_id=event.start,
            to_node_id=event.end,
            kind=wire.edge_kind_to_proto(event.kind),
            weight=event.weight,
        )
        return pb.ExpandResponse(edge=edge)
    return pb.ExpandResponse(completion=wire.completion_to_proto(event))

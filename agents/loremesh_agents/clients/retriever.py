"""The retriever over gRPC."""

from collections.abc import AsyncGenerator

import grpc
from loremesh.v1 import retriever_service_pb2 as pb
from loremesh.v1 import retriever_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.runtime import wire
from loremesh_agents.runtime.channel import Peer


class RetrieverClient:
    """Implements `ports.peers.Retriever`.

    Args:
        channel: To the retriever.
        peer: Calls it.
    """

    def __init__(self, channel: grpc.aio.Channel, peer: Peer) -> None:
        self._stub: pb_grpc.RetrieverServiceAsyncStub = pb_grpc.RetrieverServiceStub(channel)
        self._peer = peer

    async def retrieve(self, request: RetrievalRequest, *, deadline: Deadline) -> AsyncGenerator[Evidence | Completion]:
        """See `ports.peers.Retriever.retrieve`."""
        message = pb.RetrieveRequest(
            question=request.question,
            collections=request.collections,
            options=wire.retrieval_options_to_proto(request),
            consistency=wire.consistency_to_proto(request.consistency),
            context=wire.retrieval_context_to_proto(request.context),
        )
        # Proxies route by the number of results and see only metadata.
        route = (("loremesh-k", str(request.k)),)
        async with self._peer.stream(self._stub.Retrieve, message, deadline, route) as responses:
            async for response in responses:
                match response.WhichOneof("event"):
                    case "evidence":
                        yield wire.evidence_from_proto(response.evidence)
                    case "completion":
                        yield wire.completion_from_proto(response.completion, self._peer.name)
                    case _:
                        continue

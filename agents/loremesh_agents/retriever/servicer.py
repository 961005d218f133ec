"""The retriever's gRPC face."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
from loremesh.v1 import retriever_service_pb2 as pb
from loremesh.v1 import retriever_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.retriever import convert
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.runtime.context import current


class RetrieverServicer(pb_grpc.RetrieverServiceServicer):
    """Serves `loremesh.v1.RetrieverService`."""

    def __init__(self, service: RetrieverService) -> None:
        self._service = service

    async def Retrieve(
        self, request: pb.RetrieveRequest, context: grpc.aio.ServicerContext[pb.RetrieveRequest, pb.RetrieveResponse]
    ) -> AsyncGenerator[pb.RetrieveResponse]:
        found = self._service.retrieve(
            convert.retrieval_from_proto(request), principal=current().principal, deadline=self._deadline()
        )
        async with aclosing(found) as events:
            async for event in events:
                yield convert.retrieval_event_to_proto(event)

    async def Expand(
        self, request: pb.ExpandRequest, context: grpc.aio.ServicerContext[pb.ExpandRequest, pb.ExpandResponse]
    ) -> AsyncGenerator[pb.ExpandResponse]:
        found = self._service.expand(
            convert.expansion_from_proto(request), principal=current().principal, deadline=self._deadline()
        )
        async with aclosing(found) as events:
            async for event in events:
                yield convert.expansion_event_to_proto(event)

    def _deadline(self) -> Deadline:
        return current().deadline or Deadline.after(self._service.settings.default_budget)

"""The generator's gRPC face."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
from loremesh.v1 import generator_service_pb2 as pb
from loremesh.v1 import generator_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.generator import convert
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.runtime import wire
from loremesh_agents.runtime.context import current


class GeneratorServicer(pb_grpc.GeneratorServiceServicer):
    """Serves `loremesh.v1.GeneratorService`."""

    def __init__(self, service: GeneratorService) -> None:
        self._service = service

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> AsyncGenerator[pb.GenerateResponse]:
        written = self._service.generate(
            wire.generation_request_from_proto(request), principal=current().principal, deadline=self._deadline()
        )
        async with aclosing(written) as events:
            async for event in events:
                yield convert.event_to_proto(event)

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        models = await self._service.models(deadline=self._deadline())
        return pb.ListModelsResponse(models=[convert.model_to_proto(model) for model in models])

    async def CountTokens(
        self,
        request: pb.CountTokensRequest,
        context: grpc.aio.ServicerContext[pb.CountTokensRequest, pb.CountTokensResponse],
    ) -> pb.CountTokensResponse:
        counts = await self._service.count_tokens(request.model, request.texts, deadline=self._deadline())
        return pb.CountTokensResponse(counts=counts)

    def _deadline(self) -> Deadline:
        return current().deadline or Deadline.after(self._service.settings.default_budget)

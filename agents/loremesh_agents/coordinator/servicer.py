"""The coordinator's gRPC face."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc as pb_grpc

from loremesh_agents.coordinator import convert
from loremesh_agents.coordinator.chat import Chat
from loremesh_agents.coordinator.events import CancelTurn, Turn
from loremesh_agents.coordinator.service import CoordinatorService
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.context import current


class CoordinatorServicer(pb_grpc.CoordinatorServiceServicer):
    """Serves `loremesh.v1.CoordinatorService`."""

    def __init__(self, service: CoordinatorService) -> None:
        self._service = service

    async def Ask(
        self, request: pb.AskRequest, context: grpc.aio.ServicerContext[pb.AskRequest, pb.AskResponse]
    ) -> AsyncGenerator[pb.AskResponse]:
        async with aclosing(
            self._service.ask(convert.question_from_proto(request), deadline=self._deadline())
        ) as events:
            async for event in events:
                yield convert.event_to_proto(event)

    async def Chat(
        self,
        request_iterator: AsyncIterator[pb.ChatRequest],
        context: grpc.aio.ServicerContext[pb.ChatRequest, pb.ChatResponse],
    ) -> AsyncGenerator[pb.ChatResponse]:
        async with aclosing(Chat(self._service).events(_inputs(request_iterator))) as events:
            async for event in events:
                yield convert.turn_event_to_proto(event)

    async def PlanQuery(
        self, request: pb.PlanQueryRequest, context: grpc.aio.ServicerContext[pb.PlanQueryRequest, pb.PlanQueryResponse]
    ) -> pb.PlanQueryResponse:
        plan = self._service.plan(convert.question_from_proto(request.ask), None, deadline=self._deadline())
        return pb.PlanQueryResponse(plan=convert.plan_to_proto(plan))

    def _deadline(self) -> Deadline:
        return current().deadline or Deadline.after(self._service.settings.default_budget)


async def _inputs(requests: AsyncIterator[pb.ChatRequest]) -> AsyncGenerator[Turn | CancelTurn]:
    async for request in requests:
        yield convert.chat_input_from_proto(request)

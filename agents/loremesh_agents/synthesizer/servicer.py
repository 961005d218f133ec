"""The synthesizer's gRPC face."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
from loremesh.v1 import synthesizer_service_pb2 as pb
from loremesh.v1 import synthesizer_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.ports.peers import SynthesisStart
from loremesh_agents.runtime.context import current
from loremesh_agents.synthesizer import convert
from loremesh_agents.synthesizer.service import SynthesizerService


class SynthesizerServicer(pb_grpc.SynthesizerServiceServicer):
    """Serves `loremesh.v1.SynthesizerService`."""

    def __init__(self, service: SynthesizerService) -> None:
        self._service = service

    async def Synthesize(
        self,
        request_iterator: AsyncIterator[pb.SynthesizeRequest],
        context: grpc.aio.ServicerContext[pb.SynthesizeRequest, pb.SynthesizeResponse],
    ) -> AsyncGenerator[pb.SynthesizeResponse]:
        deadline = current().deadline or Deadline.after(self._service.settings.default_budget)
        async with aclosing(self._service.synthesize(_inputs(request_iterator), deadline=deadline)) as events:
            async for event in events:
                yield convert.event_to_proto(event)


async def _inputs(requests: AsyncIterator[pb.SynthesizeRequest]) -> AsyncGenerator[SynthesisStart | Evidence]:
    async for request in requests:
        yield convert.input_from_proto(request)

"""The generator over gRPC."""

from collections.abc import AsyncGenerator, Sequence

import grpc
from loremesh.v1 import generator_service_pb2 as pb
from loremesh.v1 import generator_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.answer import Completion, TokenDelta
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import LoremeshError
from loremesh_agents.ports.language_model import GenerationRequest, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart
from loremesh_agents.runtime import wire
from loremesh_agents.runtime.channel import Peer


class GeneratorClient:
    """Implements `ports.peers.Generator` and `ports.peers.TokenCounter`.

    Args:
        channel: To the generator.
        peer: Calls it.
    """

    def __init__(self, channel: grpc.aio.Channel, peer: Peer) -> None:
        self._stub: pb_grpc.GeneratorServiceAsyncStub = pb_grpc.GeneratorServiceStub(channel)
        self._peer = peer

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
        """See `ports.peers.Generator.generate`."""
        message = wire.generation_request_to_proto(request)
        completion: Completion | None = None
        async with self._peer.stream(self._stub.Generate, message, deadline) as responses:
            try:
                async for response in responses:
                    match response.WhichOneof("event"):
                        case "delta":
                            yield wire.delta_from_proto(response.delta)
                        case "start":
                            yield GenerationStart(response.start.model, response.start.model_fingerprint)
                        case "tool_call":
                            yield wire.tool_call_piece_from_proto(response.tool_call)
                        case "completion":
                            # Its status follows at once; to leave now would cancel a call that the generator has served to its end.
                            completion = wire.completion_from_proto(response.completion, self._peer.name)
                        case _:
                            continue
            except LoremeshError:
                if completion is None:
                    raise
        if completion is not None:
            yield completion

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """See `ports.peers.TokenCounter.count_tokens`."""
        request = pb.CountTokensRequest(model=model, texts=texts)
        response = await self._peer.unary(self._stub.CountTokens, request, deadline)
        return tuple(response.counts)

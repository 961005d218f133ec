"""The synthesizer over gRPC."""

from collections.abc import AsyncGenerator, AsyncIterable

import grpc
from loremesh.v1 import synthesizer_service_pb2 as pb
from loremesh.v1 import synthesizer_service_pb2_grpc as pb_grpc

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.ports.peers import Prompt, SynthesisStart
from loremesh_agents.runtime import wire
from loremesh_agents.runtime.channel import Peer


class SynthesizerClient:
    """Implements `ports.peers.Synthesizer`.

    Args:
        channel: To the synthesizer.
        peer: Calls it.
    """

    def __init__(self, channel: grpc.aio.Channel, peer: Peer) -> None:
        self._stub: pb_grpc.SynthesizerServiceAsyncStub = pb_grpc.SynthesizerServiceStub(channel)
        self._peer = peer

    async def synthesize(
        self, start: SynthesisStart, evidence: AsyncIterable[Evidence], *, deadline: Deadline
    ) -> AsyncGenerator[Prompt | Completion]:
        """See `ports.peers.Synthesizer.synthesize`."""
        async with self._peer.duplex(self._stub.Synthesize, _requests(start, evidence), deadline) as responses:
            async for response in responses:
                match response.WhichOneof("event"):
                    case "prompt":
                        prompt = response.prompt
                        yield Prompt(
                            tuple(wire.message_from_proto(message) for message in prompt.messages),
                            tuple(wire.source_from_proto(source) for source in prompt.sources),
                        )
                    case "completion":
                        yield wire.completion_from_proto(response.completion, self._peer.name)
                    case _:
                        continue


async def _requests(start: SynthesisStart, evidence: AsyncIterable[Evidence]) -> AsyncGenerator[pb.SynthesizeRequest]:
    yield pb.SynthesizeRequest(
        start=pb.SynthesisStart(
            question=start.question,
            history=[wire.message_to_proto(message) for message in start.history],
            token_budget=start.token_budget,
            model=start.model,
        )
    )
    async for piece in evidence:
        yield pb.SynthesizeRequest(evidence=wire.evidence_to_proto(piece))

"""The synthesizer's messages between `loremesh.v1` and the domain."""

from loremesh.v1 import synthesizer_service_pb2 as pb

from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.ports.peers import Prompt, SynthesisStart
from loremesh_agents.runtime import wire


def input_from_proto(message: pb.SynthesizeRequest) -> SynthesisStart | Evidence:
    """A start, or a piece of evidence."""
    if message.HasField("evidence"):
        return wire.evidence_from_proto(message.evidence)
    start = message.start
    history = tuple(wire.message_from_proto(entry) for entry in start.history)
    return SynthesisStart(start.question, history, start.token_budget, start.model)


def event_to_proto(event: Prompt | Completion) -> pb.SynthesizeResponse:
    """A prompt, or the end."""
    if isinstance(event, Prompt):
        prompt = pb.Prompt(
            messages=[wire.message_to_proto(message) for message in event.messages],
            sources=[wire.source_to_proto(source) for source in event.sources],
        )
        return pb.SynthesizeResponse(prompt=prompt)
    return pb.SynthesizeResponse(completion=wire.completion_to_proto(event))

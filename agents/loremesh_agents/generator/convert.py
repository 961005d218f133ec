"""The generator's messages between `loremesh.v1` and the domain."""

from loremesh.v1 import generator_service_pb2 as pb

from loremesh_agents.domain.answer import Completion, TokenDelta
from loremesh_agents.ports.language_model import Capability, Model, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart
from loremesh_agents.runtime import wire

_CAPABILITIES = {
    Capability.GENERATION: pb.CAPABILITY_GENERATION,
    Capability.TOOLS: pb.CAPABILITY_TOOLS,
    Capability.JSON_SCHEMA: pb.CAPABILITY_JSON_SCHEMA,
    Capability.LOGPROBS: pb.CAPABILITY_LOGPROBS,
    Capability.RESUME: pb.CAPABILITY_RESUME,
    Capability.SAMPLING: pb.CAPABILITY_SAMPLING,
}


def event_to_proto(event: GenerationStart | TokenDelta | ToolCallPiece | Completion) -> pb.GenerateResponse:
    """An event of a generation."""
    match event:
        case TokenDelta():
            response = pb.GenerateResponse()
            wire.write_delta(event, response.delta)
            return response
        case ToolCallPiece():
            return pb.GenerateResponse(tool_call=wire.tool_call_piece_to_proto(event))
        case GenerationStart():
            start = pb.GenerationStart(model=event.model, model_fingerprint=event.model_fingerprint)
            return pb.GenerateResponse(start=start)
        case Completion():
            return pb.GenerateResponse(completion=wire.completion_to_proto(event))


def model_to_proto(model: Model) -> pb.Model:
    """A model."""
    return pb.Model(
        name=model.name,
        context_tokens=model.context_tokens,
        tokenizer_hash=model.tokenizer_hash,
        fingerprint=model.fingerprint,
        capabilities=sorted(_CAPABILITIES[capability] for capability in model.capabilities),
    )

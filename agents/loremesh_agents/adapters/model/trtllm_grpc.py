"""`trtllm+grpc://host:port`: TensorRT-LLM behind the gRPC service `trtllm.TrtllmService`."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# The compiled contract has no types that its package exports; what comes is checked where it enters.

from collections.abc import AsyncGenerator
from typing import Any

from smg_grpc_proto import trtllm_service_pb2 as _pb
from smg_grpc_proto import trtllm_service_pb2_grpc as _pb_grpc
from smg_grpc_proto.generated import common_pb2 as _common

from loremesh_agents.adapters.model.grpc_engine import GrpcEngine
from loremesh_agents.adapters.model.token_model import (
    EngineEnd,
    EngineLogprobs,
    EngineModel,
    EngineRequest,
    EngineTokens,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable
from loremesh_agents.ports.language_model import Capability
from loremesh_agents.runtime.ids import new_id

pb: Any = _pb
common: Any = _common

_CAPABILITIES = frozenset({Capability.GENERATION, Capability.LOGPROBS, Capability.RESUME, Capability.SAMPLING})


class TrtllmGrpcEngine:
    """See `adapters.model.token_model.TokenEngine`.

    Args:
        target: `host:port`.
        idle_timeout: Seconds for which the engine may be silent.
    """

    largest_seed = 2**64 - 1

    def __init__(self, target: str, *, idle_timeout: float) -> None:
        self.backend = "trtllm"
        self._engine = GrpcEngine(self.backend, target, idle_timeout=idle_timeout)
        self._stub: Any = _pb_grpc.TrtllmServiceStub(self._engine.channel)

    async def describe(self, *, deadline: Deadline) -> EngineModel:
        """See the protocol."""
        info = await self._engine.unary(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline=deadline)
        if info.max_seq_len <= 0 or not info.model_id:
            raise BackendUnavailable(self.backend)
        guided = "guided_decoding" in info.supported_features
        shape = (info.vocab_size, info.hidden_size, info.num_layers, info.num_heads)
        return EngineModel(
            name=info.model_id,
            context_tokens=info.max_seq_len,
            vocabulary=max(0, info.vocab_size),
            identity=tuple(str(part) for part in shape),
            # The contract does not tell them: those of the tokenizer count.
            end_ids=frozenset(),
            capabilities=_CAPABILITIES | {Capability.JSON_SCHEMA} if guided else _CAPABILITIES,
        )

    async def tokenizer_archive(self, most_bytes: int, *, deadline: Deadline) -> bytes:
        """See the protocol."""
        request = common.GetTokenizerRequest()
        return await self._engine.archive(self._stub.GetTokenizer, request, most_bytes, deadline=deadline)

    def generate(self, request: EngineRequest, *, deadline: Deadline) -> AsyncGenerator[EngineTokens | EngineEnd]:
        """See the protocol."""
        message = _message(request)
        return self._engine.tokens(self._stub.Generate, message, _logprobs, model=request.model, deadline=deadline)

    async def close(self) -> None:
        """See the protocol."""
        await self._engine.close()


def _message(request: EngineRequest) -> Any:
    options = request.options
    sampling = pb.SamplingConfig(
        beam_width=1,
        num_return_sequences=1,
        temperature=options.temperature or 0.0,
        seed=options.seed,
        top_p=options.top_p,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
    )
    if not options.temperature:
        # Temperature 0 alone is no promise there: one candidate is.
        sampling.top_k = 1
    message = pb.GenerateRequest(
        request_id=new_id(),
        tokenized=pb.TokenizedInput(input_token_ids=request.prompt),
        sampling_config=sampling,
        output_config=pb.OutputConfig(exclude_input_from_output=True, logprobs=options.top_logprobs or None),
        max_tokens=request.max_tokens,
        streaming=True,
    )
    if options.json_schema:
        message.guided_decoding.guide_type = pb.GuidedDecodingParams.GUIDE_TYPE_JSON_SCHEMA
        message.guided_decoding.guide = options.json_schema
    return message


def _logprobs(chunk: Any) -> tuple[EngineLogprobs, ...]:
    return tuple(
        EngineLogprobs(entry.logprob, tuple((other.token_id, other.logprob) for other in entry.top_logprobs))
        for entry in chunk.logprobs
    )

"""`vllm+grpc://host:port`: vLLM behind the gRPC service `vllm.grpc.engine.VllmEngine`."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# The compiled contract has no types that its package exports; what comes is checked where it enters.

from collections.abc import AsyncGenerator
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as _pb
from smg_grpc_proto import vllm_engine_pb2_grpc as _pb_grpc
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

_CAPABILITIES = frozenset(
    {Capability.GENERATION, Capability.JSON_SCHEMA, Capability.LOGPROBS, Capability.RESUME, Capability.SAMPLING}
)
_MOST_LOGPROBS = 20
"""What vLLM reports for a token unless it is started with another limit."""


class VllmGrpcEngine:
    """See `adapters.model.token_model.TokenEngine`.

    Args:
        target: `host:port`.
        idle_timeout: Seconds for which the engine may be silent.
    """

    largest_seed = 2**31 - 1

    def __init__(self, target: str, *, idle_timeout: float) -> None:
        self.backend = "vllm"
        self._engine = GrpcEngine(self.backend, target, idle_timeout=idle_timeout)
        self._stub: Any = _pb_grpc.VllmEngineStub(self._engine.channel)

    async def describe(self, *, deadline: Deadline) -> EngineModel:
        """See the protocol."""
        info = await self._engine.unary(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline=deadline)
        if not info.max_context_length or not (info.served_model_name or info.model_path):
            raise BackendUnavailable(self.backend)
        return EngineModel(
            name=info.served_model_name or info.model_path,
            context_tokens=info.max_context_length,
            vocabulary=info.vocab_size,
            identity=(info.model_path, info.model_type, *info.architectures, str(info.vocab_size)),
            end_ids=frozenset(info.eos_token_ids),
            capabilities=_CAPABILITIES if info.is_generation else frozenset(),
        )

    async def tokenizer_archive(self, most_bytes: int, *, deadline: Deadline) -> bytes:
        """See the protocol."""
        request = common.GetTokenizerRequest()
        return await self._engine.archive(self._stub.GetTokenizer, request, most_bytes, deadline=deadline)

    def generate(self, request: EngineRequest, *, deadline: Deadline) -> AsyncGenerator[EngineTokens | EngineEnd]:
        """See the protocol."""
        message = pb.GenerateRequest(
            # vLLM takes an empty id and one that is in use, and mixes their streams up: each of ours is new.
            request_id=new_id(),
            tokenized=pb.TokenizedInput(input_ids=request.prompt),
            sampling_params=_sampling(request),
            stream=True,
        )
        return self._engine.tokens(self._stub.Generate, message, _logprobs, model=request.model, deadline=deadline)

    async def close(self) -> None:
        """See the protocol."""
        await self._engine.close()


def _sampling(request: EngineRequest) -> Any:
    options = request.options
    params = pb.SamplingParams(
        # What is left out is 1.0 here, and not greedy.
        temperature=options.temperature or 0.0,
        top_p=1.0 if options.top_p is None else options.top_p,
        frequency_penalty=options.frequency_penalty or 0.0,
        presence_penalty=options.presence_penalty or 0.0,
        max_tokens=request.max_tokens,
        n=1,
        skip_special_tokens=True,
    )
    if options.seed is not None:
        params.seed = options.seed
    if options.json_schema:
        params.json_schema = options.json_schema
    if options.top_logprobs:
        # One more: the engine counts the token that was written among them, likely or not.
        params.logprobs = min(options.top_logprobs + 1, _MOST_LOGPROBS)
    return params


def _logprobs(chunk: Any) -> tuple[EngineLogprobs, ...]:
    if not chunk.HasField("output_logprobs"):
        return ()
    told = chunk.output_logprobs
    tops = [tuple(zip(top.token_ids, top.values, strict=False)) for top in told.top_logprobs]
    tops += [()] * (len(told.token_logprobs) - len(tops))
    return tuple(EngineLogprobs(logprob, top) for logprob, top in zip(told.token_logprobs, tops, strict=False))

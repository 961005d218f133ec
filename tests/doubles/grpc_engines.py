"""Doubles of vLLM and TensorRT-LLM that speak their published gRPC contracts; neither engine is here."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from smg_grpc_proto import trtllm_service_pb2, trtllm_service_pb2_grpc, vllm_engine_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2

from tests.doubles import tiny_language as language


@dataclass
class Behaviour:
    """What a double does besides answering, and what it saw.

    Attributes:
        before_token: Awaited before each chunk with the number of tokens that are out.
        chunk: Tokens of a chunk.
        continuation: What is written after the ids of a prompt.
        endless: Whether it takes no notice of the most tokens that are asked for.
    """

    name: str = "tiny"
    context: int = language.CONTEXT
    vocabulary: int = 400
    chunk: int = 1
    finish_reason: str = ""
    with_end: bool = True
    endless: bool = False
    archive: bytes = field(default_factory=language.archive)
    checksum: str = ""
    before_token: Callable[[int, grpc.aio.ServicerContext], Any] | None = None
    continuation: Callable[..., list[int]] = language.continuation
    requests: list[Any] = field(default_factory=list)
    described: int = 0
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def tokens(
        self, prompt: list[int], limit: int, schema: bool, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[tuple[list[int], str]]:
        """Chunks of ids, each with a finish reason or none."""
        self.running += 1
        self.idle.clear()
        try:
            following = self.continuation(prompt, schema=schema)
            reason = "stop" if len(following) <= limit else "length"
            if not self.endless:
                following = following[:limit]
            for start in range(0, len(following), self.chunk):
                if self.before_token is not None:
                    await self.before_token(start, context)
                last = start + self.chunk >= len(following)
                yield following[start : start + self.chunk], (self.finish_reason or reason) if last else ""
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def chunks(self) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """The tokenizer in pieces, with its checksum in the last one."""
        size = 64 * 1024
        digest = self.checksum or hashlib.sha256(self.archive).hexdigest()
        for start in range(0, len(self.archive), size):
            last = start + size >= len(self.archive)
            yield common_pb2.GetTokenizerChunk(data=self.archive[start : start + size], sha256=digest if last else "")


class VllmDouble(vllm_engine_pb2_grpc.VllmEngineServicer):
    """Speaks `vllm.grpc.engine.VllmEngine`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._does = behaviour

    async def GetModelInfo(self, request, context):
        self._does.described += 1
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=f"/models/{self._does.name}",
            served_model_name=self._does.name,
            is_generation=True,
            max_context_length=self._does.context,
            vocab_size=self._does.vocabulary,
            model_type="double",
            eos_token_ids=[language.END],
        )

    async def GetTokenizer(self, request, context):
        async for chunk in self._does.chunks():
            yield chunk

    async def Generate(self, request, context):
        self._does.requests.append(request)
        sampling = request.sampling_params
        stream = self._does.tokens(
            list(request.tokenized.input_ids), sampling.max_tokens, bool(sampling.json_schema), context
        )
        async for ids, reason in stream:
            chunk = vllm_engine_pb2.GenerateStreamChunk(token_ids=ids)
            if sampling.HasField("logprobs"):
                for token in ids:
                    chunk.output_logprobs.token_ids.append(token)
                    chunk.output_logprobs.token_logprobs.append(-0.5)
                    chunk.output_logprobs.top_logprobs.add(token_ids=[7, token], values=[-1.5, -0.5])
            yield vllm_engine_pb2.GenerateResponse(chunk=chunk)
            if reason and self._does.with_end:
                yield vllm_engine_pb2.GenerateResponse(
                    complete=vllm_engine_pb2.GenerateComplete(output_ids=ids, finish_reason=reason)
                )


class TrtllmDouble(trtllm_service_pb2_grpc.TrtllmServiceServicer):
    """Speaks `trtllm.TrtllmService`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._does = behaviour

    async def GetModelInfo(self, request, context):
        self._does.described += 1
        return trtllm_service_pb2.GetModelInfoResponse(
            model_id=self._does.name, max_seq_len=self._does.context, vocab_size=self._does.vocabulary
        )

    async def GetTokenizer(self, request, context):
        async for chunk in self._does.chunks():
            yield chunk

    async def Generate(self, request, context):
        self._does.requests.append(request)
        written: list[int] = []
        stream = self._does.tokens(list(request.tokenized.input_token_ids), request.max_tokens, False, context)
        async for following, reason in stream:
            # As the contract says: the token that ends the answer is not among the ids.
            ids = [token for token in following if token != language.END]
            written += ids
            chunk = trtllm_service_pb2.GenerateStreamChunk(token_ids=ids)
            if request.output_config.HasField("logprobs"):
                for token in ids:
                    chunk.logprobs.add(token_id=token, logprob=-0.5).top_logprobs.add(token_id=token, logprob=-0.5)
            yield trtllm_service_pb2.GenerateResponse(request_id=request.request_id, chunk=chunk)
            if reason and self._does.with_end:
                complete = trtllm_service_pb2.GenerateComplete(output_token_ids=written, finish_reason=reason)
                yield trtllm_service_pb2.GenerateResponse(request_id=request.request_id, complete=complete)


@asynccontextmanager
async def serving(kind: str, behaviour: Behaviour) -> AsyncIterator[str]:
    """Serves the double of `vllm` or `trtllm`; gives its address."""
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    if kind == "vllm":
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(VllmDouble(behaviour), server)
    else:
        trtllm_service_pb2_grpc.add_TrtllmServiceServicer_to_server(TrtllmDouble(behaviour), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)

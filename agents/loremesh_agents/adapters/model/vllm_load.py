"""What vLLM tells of its load, over gRPC and over HTTP."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# The compiled contract has no types that its package exports; what comes is checked where it enters.

import asyncio
import logging
import math
import re
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from smg_grpc_proto import vllm_engine_pb2 as _pb
from smg_grpc_proto import vllm_engine_pb2_grpc as _pb_grpc

from loremesh_agents.adapters.model.grpc_engine import GrpcEngine
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable
from loremesh_agents.ports.engine_load import EngineLoad

pb: Any = _pb

_BACKEND = "vllm"
_MOST_BYTES = 4 * 2**20
_SAMPLE = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}\n]*\})? ([0-9.eE+-]+)$",
    re.MULTILINE,
)


class VllmGrpcLoad:
    """See `ports.engine_load.LoadGauge`: the method GetLoads.

    Args:
        target: `host:port`.
        idle_timeout: Seconds for which the engine may be silent.
    """

    def __init__(self, target: str, *, idle_timeout: float) -> None:
        # Asked several times a second, and nobody needs the answer: one that is down fills no log.
        self._engine = GrpcEngine(_BACKEND, target, idle_timeout=idle_timeout, failure_level=logging.DEBUG)
        self._stub: Any = _pb_grpc.VllmEngineStub(self._engine.channel)

    async def load(self, *, deadline: Deadline) -> EngineLoad | None:
        """See the protocol. Ranks of one engine count together; its memory is as free as that of the rank with most left."""
        response = await self._engine.unary(self._stub.GetLoads, pb.GetLoadsRequest(), deadline=deadline)
        if not response.loads:
            return None
        return EngineLoad(
            sum(load.num_running_reqs for load in response.loads),
            sum(load.num_waiting_reqs for load in response.loads),
            1 - min(load.token_usage for load in response.loads),
        )

    async def close(self) -> None:
        """See the protocol."""
        await self._engine.close()


class VllmHttpLoad:
    """See `ports.engine_load.LoadGauge`: the page `/metrics`, beside `/v1`. A server without it, or of another kind, does not tell.

    Args:
        base: Address of the server with `/v1`.
    """

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        path = parts.path.rstrip("/").removesuffix("/v1")
        self._url = urlunsplit((parts.scheme, parts.netloc, f"{path}/metrics", "", ""))
        self._client = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=1))

    async def load(self, *, deadline: Deadline) -> EngineLoad | None:
        """See the protocol."""
        try:
            async with (
                asyncio.timeout(deadline.remaining()),
                self._client.stream("GET", self._url, timeout=None) as response,
            ):
                if response.status_code != HTTPStatus.OK:
                    return None
                page = bytearray()
                async for chunk in response.aiter_bytes():
                    page += chunk
                    if len(page) > _MOST_BYTES:
                        return None
        except (httpx.HTTPError, TimeoutError):
            raise BackendUnavailable(_BACKEND) from None
        return load_of_page(page.decode("utf-8", "replace"))

    async def close(self) -> None:
        """See the protocol."""
        await self._client.aclose()


def load_of_page(page: str) -> EngineLoad | None:
    """The load that a page of Prometheus metrics tells; None where it is not vLLM's.

    Args:
        page: In Prometheus' text format. Several samples of a metric are of several models or ranks.
    """
    samples: dict[str, list[float]] = {}
    for name, value in _SAMPLE.findall(page):
        try:
            number = float(value)
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        samples.setdefault(name, []).append(number)
    running, waiting = samples.get("num_requests_running"), samples.get("num_requests_waiting")
    if running is None or waiting is None:
        return None
    usage = samples.get("kv_cache_usage_perc")
    return EngineLoad(int(sum(running)), int(sum(waiting)), None if usage is None else 1 - min(usage))

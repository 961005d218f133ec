import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loremesh_agents.runtime.server import Dependency, HealthOptions, ServerOptions

from .support import AGENT, SERVICE, echo, service, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Database:
    """Something that can be there or not."""

    def __init__(self, up=True):
        self.up = up
        self.asked = asyncio.Event()

    async def probe(self, deadline):
        assert deadline.remaining() > 0
        self.asked.set()
        if not self.up:
            raise ConnectionError("refused")


async def check(running, name):
    stub = health_pb2_grpc.HealthStub(running.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


def options(interval=0.01, timeout=1.0):
    return ServerOptions(health=HealthOptions(interval, timeout))


async def watched(running):
    stub = health_pb2_grpc.HealthStub(running.channel)
    return aiter(stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)))


async def test_an_agent_without_dependencies_is_ready():
    async with serving(service(unary=echo)) as running:
        assert await check(running, "") == SERVING
        assert await check(running, SERVICE) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(running, "nobody")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_hard_dependency_decides_readiness_and_never_liveness():
    database = Database(up=False)
    async with serving(service(unary=echo), options(), dependencies=[Dependency("db", database.probe)]) as running:
        assert await check(running, SERVICE) == NOT_SERVING
        assert await check(running, "") == SERVING
        assert running.sample("loremesh_dependency_up", agent=AGENT, dependency="db") == 0
        statuses = await watched(running)
        assert (await anext(statuses)).status == NOT_SERVING
        database.up = True
        assert (await anext(statuses)).status == SERVING
        assert running.sample("loremesh_dependency_up", agent=AGENT, dependency="db") == 1
        database.up = False
        assert (await anext(statuses)).status == NOT_SERVING
        assert await check(running, "") == SERVING


async def test_a_soft_dependency_is_only_reported():
    database, cache = Database(), Database(up=False)
    dependencies = [Dependency("db", database.probe), Dependency("cache", cache.probe, hard=False)]
    async with serving(service(unary=echo), options(), dependencies=dependencies) as running:
        assert await check(running, SERVICE) == SERVING
        assert running.sample("loremesh_dependency_up", agent=AGENT, dependency="cache") == 0
        assert running.sample("loremesh_dependency_up", agent=AGENT, dependency="db") == 1


async def test_a_dependency_that_hangs_is_down():
    async def probe(_):
        await asyncio.Event().wait()

    async with serving(service(unary=echo), options(timeout=0.02), dependencies=[Dependency("db", probe)]) as running:
        assert await check(running, SERVICE) == NOT_SERVING


async def test_the_end_is_announced_for_good():
    database = Database()
    async with serving(service(unary=echo), options(), dependencies=[Dependency("db", database.probe)]) as running:
        await running.server.announce_stop()
        database.asked.clear()
        await asyncio.wait_for(database.asked.wait(), 5)
        assert await check(running, SERVICE) == NOT_SERVING
        assert await check(running, "") == NOT_SERVING


async def test_changes_are_logged_once(caplog):
    database = Database(up=False)
    async with serving(service(unary=echo), options(), dependencies=[Dependency("db", database.probe)]) as running:
        for _ in range(3):
            database.asked.clear()
            await asyncio.wait_for(database.asked.wait(), 5)
        database.up = True
        statuses = await watched(running)
        while (await anext(statuses)).status != SERVING:
            pass
    assert len([record for record in caplog.records if "is down" in record.getMessage()]) == 1

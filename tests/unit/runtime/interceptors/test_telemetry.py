import asyncio

import grpc
import pytest

from loremesh_agents.domain.errors import DocumentNotFound

from ..support import AGENT, SERVICE, echo, echo_all, service, serving, text, until


async def test_calls_are_counted_and_timed():
    async with serving(service(unary=echo, duplex=echo_all)) as running:
        await running.stub.Unary(text())
        call = running.stub.Duplex(iter([text(), text()]))
        assert len([message async for message in call]) == 2
        await call.code()
        labels = {"agent": AGENT, "method": f"{SERVICE}/Duplex"}
        await until(lambda: running.count("Duplex", "OK") == 1)
        await running.settled()
        assert running.count("Unary", "OK") == 1
        assert running.sample("loremesh_messages_sent_total", **labels) == 2
        assert running.sample("loremesh_messages_received_total", **labels) == 2
        assert running.sample("loremesh_first_event_seconds_count", **labels) == 1
        assert running.sample("loremesh_stream_duration_seconds_count", **labels) == 1
        assert running.sample("loremesh_request_latency_seconds_count", **labels) == 1
        labels["method"] = f"{SERVICE}/Unary"
        assert running.sample("loremesh_stream_duration_seconds_count", **labels) == 0
        assert running.sample("loremesh_request_latency_seconds_count", **labels) == 1


async def test_each_agent_has_its_own_names():
    async def unary(*_):
        raise DocumentNotFound("docs", "d")

    async with serving(service(unary=unary)) as running:
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.Unary(text())
        await running.settled()
        method = f"{SERVICE}/Unary"
        assert running.sample("tester_request_latency_seconds_count", method=method) == 1
        assert running.sample("tester_errors_total", method=method, code="NOT_FOUND") == 1
        assert running.count("Unary", "NOT_FOUND") == 1


async def test_the_gauge_shows_what_is_in_flight_and_forgets_what_was_cancelled():
    gate = asyncio.Event()

    async def unary(*_):
        await gate.wait()
        return text()

    async with serving(service(unary=unary)) as running:
        calls = [running.stub.Unary(text()) for _ in range(10)]
        await until(lambda: running.in_flight("Unary") == 10)
        for call in calls[:4]:
            call.cancel()
        await until(lambda: running.in_flight("Unary") == 6)
        gate.set()
        await asyncio.gather(*calls[4:])
        await running.settled()
        assert running.in_flight("Unary") == 0
        assert running.count("Unary", "CANCELLED") == 4
        assert running.count("Unary", "OK") == 6


async def test_unknown_methods_share_a_name():
    async with serving(service(unary=echo)) as running:
        for number in range(5):
            with pytest.raises(grpc.aio.AioRpcError):
                await running.channel.unary_unary(f"/{SERVICE}/Nope{number}")(b"")
        await running.settled()
        assert running.sample("loremesh_requests_total", agent=AGENT, method="unknown", code="UNIMPLEMENTED") == 5
        methods = {
            sample.labels["method"]
            for family in running.metrics.registry.collect()
            for sample in family.samples
            if "method" in sample.labels
        }
    assert methods == {"unknown"}

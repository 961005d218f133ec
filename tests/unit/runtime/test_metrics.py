import asyncio
import threading
import urllib.request

import pytest

from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime.metrics import Metrics, MetricsServer

from .support import echo, service, serving, text


def scrape(shown):
    with urllib.request.urlopen(f"http://{shown.host}:{shown.port}/metrics", timeout=10) as response:
        return response.read().decode()


async def test_a_port_of_their_own_shows_them():
    async with serving(service(unary=echo)) as running, MetricsServer(running.metrics.registry) as shown:
        await running.stub.Unary(text())
        page = await asyncio.to_thread(scrape, shown)
    assert 'tester_request_latency_seconds_count{method="test.v1.TestService/Unary"} 1.0' in page
    assert "# TYPE tester_errors_total counter" in page
    assert "python_gc" not in page


async def test_it_listens_on_loopback_and_lets_go_of_its_port():
    shown = MetricsServer(Metrics().registry)
    assert shown.host == "127.0.0.1"
    await shown.close()
    again = MetricsServer(Metrics().registry, port=shown.port)
    await again.close()


async def test_a_taken_port_is_named():
    async with MetricsServer(Metrics().registry) as shown:
        with pytest.raises(ConfigurationError, match=str(shown.port)):
            MetricsServer(Metrics().registry, port=shown.port)


async def test_a_scrape_that_takes_its_time_does_not_stop_the_loop():
    metrics = Metrics()
    asked, go_on = threading.Event(), threading.Event()

    class Slow:
        def collect(self):
            asked.set()
            go_on.wait(10)
            return []

        def describe(self):
            return []

    metrics.registry.register(Slow())
    async with serving(service(unary=echo)) as running, MetricsServer(metrics.registry) as shown:
        scraping = asyncio.create_task(asyncio.to_thread(scrape, shown))
        await asyncio.to_thread(asked.wait, 10)
        assert (await running.stub.Unary(text("a"))).value == "a"
        go_on.set()
        await scraping


def test_agents_of_one_process_share_a_registry():
    metrics = Metrics()
    metrics.for_agent("retriever")
    metrics.for_agent("generator")
    names = {family.name for family in metrics.registry.collect()}
    assert {"retriever_request_latency_seconds", "retriever_errors", "generator_request_latency_seconds"} <= names


def test_two_processes_in_a_test_do_not_meet():
    for _ in range(2):
        Metrics().for_agent("retriever")


@pytest.mark.parametrize("name", ["", "Retriever", "a-b", "1a"])
def test_a_name_that_cannot_be_a_metrics_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        Metrics().for_agent(name)

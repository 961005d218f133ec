"""`loremesh serve --workers`: several processes behind one port, started, replaced and ended as one."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loremesh.v1 import coordinator_service_pb2_grpc

from loremesh_agents.bootstrap.serve import running
from tests.mesh.conftest import DOCUMENTS, Client, settings_for
from tests.mesh.gates import Asking
from tests.mesh.processes import Served, serving
from tests.mesh.test_drain import turn
from tests.unit.runtime.support import until

SERVICE = "loremesh.v1.CoordinatorService"


class Workers:
    """A supervisor whose workers serve the coordinator."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.address = served.targets["coordinator"]
        self._port = int(self.address.rpartition(":")[2])

    @property
    def processes(self) -> set[psutil.Process]:
        return set(psutil.Process(self.served.process.pid).children(recursive=True))

    @property
    def listening(self) -> set[psutil.Process]:
        """Those that listen on the shared port."""
        return {process for process in self.processes if self._port in _ports(process)}

    async def answer(self) -> str:
        """An answer over a connection of its own."""
        # A connection that a process had not yet taken when it was killed is made anew, as clients of a shared port do.
        asking = Asking(self.address, timeout=20, wait_for_ready=True)
        await asking.ended()
        return asking.text


def _ports(process: psutil.Process) -> set[int]:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def _gone(processes: set[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    """Two workers, and the other agents in this process."""
    async with running(("all",), settings_for(tmp_path)) as mesh:
        client = Client(mesh)
        await client.ingest(DOCUMENTS)
        await client.close()
        # The supervisor wants a port by its number: one that was free a moment ago.
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{port.getsockname()[1]}"
        addresses = {**mesh.targets, "coordinator": address}
        environment = {f"LOREMESH_ADDRESSES__{agent.upper()}": target for agent, target in addresses.items()}
        async with serving(tmp_path, "coordinator", "--workers", "2", lines=2, **environment) as served:
            found = Workers(served)
            await until(lambda: len(found.listening) == 2)
            yield found


async def test_two_workers_answer_on_one_port_and_end_as_one(workers: Workers) -> None:
    async with grpc.aio.insecure_channel(workers.address) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        health = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    for answer in await asyncio.gather(*(workers.answer() for _ in range(6))):
        assert "Jane Doe has led Acme Corporation since 2019." in answer
    processes = workers.processes
    assert len(processes) >= 2
    workers.served.stop()
    assert await workers.served.ended() == 0
    assert _gone(processes)
    assert "Traceback" not in workers.served.log.read_text()


async def test_a_worker_that_is_killed_is_replaced_and_the_other_serves_meanwhile(workers: Workers) -> None:
    first, second = workers.listening
    first.send_signal(signal.SIGKILL)
    await until(lambda: workers.listening == {second})
    assert "Jane Doe" in await workers.answer()
    await until(lambda: len(workers.listening) == 2)
    assert first not in workers.listening
    assert second in workers.listening
    assert "Jane Doe" in await workers.answer()
    processes = workers.processes
    workers.served.stop()
    assert await workers.served.ended() == 0
    assert _gone(processes)


async def test_a_conversation_in_flight_is_served_to_its_end(workers: Workers) -> None:
    processes = workers.processes
    async with grpc.aio.insecure_channel(workers.address) as channel:
        chat = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel).Chat()
        assert "Jane Doe" in await turn(chat, "before")
        workers.served.stop()
        # The other worker has nothing to do and ends.
        await until(lambda: not workers.listening and len([entry for entry in processes if entry.is_running()]) == 1)
        assert "Jane Doe" in await turn(chat, "after")
        await chat.done_writing()
        assert await chat.code() is grpc.StatusCode.OK
    assert await workers.served.ended() == 0
    assert _gone(processes)

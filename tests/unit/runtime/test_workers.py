import asyncio
import os
import signal
import socket
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime.lifecycle import StopSignals
from loremesh_agents.runtime.workers import PortReservation, Supervisor, WorkerOptions

from .support import Stub, text, until

PROGRAM = "tests.unit.runtime.worker_program"
IDLE = 'loremesh_requests_in_flight{agent="tester",method="test.v1.TestService/Unary"} 0.0'
ROOT = Path(__file__).parents[3]


def command(port):
    return [sys.executable, "-m", PROGRAM, str(port)]


class Running:
    def __init__(self, supervisor, signals, task):
        self.supervisor, self.signals, self.task = supervisor, signals, task

    async def ask(self, question="", wait=True):
        """Which process answers on a fresh connection."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.supervisor.port}", options=options) as channel:
            answer = await Stub(channel).Unary(text(question), wait_for_ready=wait, timeout=30)
        return int(answer.value)

    async def all_answer(self, count):
        seen = set()
        async with asyncio.timeout(40):
            while len(seen) < count:
                seen.add(await self.ask())
        assert seen <= self.supervisor.pids
        return seen

    async def page_with(self, calls):
        """The page of metrics, once it shows as many calls and none in flight."""
        async with asyncio.timeout(20):
            while True:
                page = await self.page()
                counts = [line for line in page.splitlines() if line.startswith("loremesh_requests_total")]
                if sum(float(line.split()[-1]) for line in counts) >= calls and IDLE in page:
                    return page

    async def page(self):
        url = f"http://127.0.0.1:{self.supervisor.metrics_port}/metrics"
        return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())


@asynccontextmanager
async def supervising(count, command=command, **options):
    signals, ready = StopSignals(), asyncio.Event()
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    supervisor = Supervisor(
        command, WorkerOptions(count, host="127.0.0.1", environment={"PYTHONPATH": paths}, **options)
    )
    task = asyncio.create_task(supervisor.run(signals, ready))
    await asyncio.wait_for(ready.wait(), 10)
    try:
        yield Running(supervisor, signals, task)
    finally:
        if not task.done():
            signals.receive()
            signals.receive()
            await asyncio.wait_for(task, 30)


async def test_workers_share_a_port_and_their_metrics_are_added_up():
    async with supervising(2) as running:
        pids = await running.all_answer(2)
        assert len(pids) == 2
        # What a terminal sends to its session does not reach them a second time.
        assert os.getsid(0) not in {os.getsid(pid) for pid in pids}
        for _ in range(10):
            await running.ask()
        page = await running.page_with(12)
        assert "tester_request_latency_seconds_bucket" in page
        assert IDLE in page
        running.signals.receive()
        await asyncio.wait_for(running.task, 30)
    assert running.supervisor.pids == frozenset()


async def test_a_worker_that_ends_by_itself_is_replaced_and_its_counts_stay(caplog):
    async with supervising(1, first_backoff=0.05) as running:
        (first,) = await running.all_answer(1)
        with pytest.raises(grpc.aio.AioRpcError):
            await running.ask("die")
        second = await running.ask()
        assert second != first
        assert running.supervisor.pids == {second}
        page = await running.page_with(2)
        # What the dead one had in flight is in flight no more.
        assert IDLE in page
    assert "ended with code 3" in caplog.text


async def test_pauses_grow_between_the_starts_of_a_worker_that_cannot_run(caplog):
    def broken(_):
        return [sys.executable, "-c", "raise SystemExit(7)"]

    async with supervising(1, broken, first_backoff=0.01, max_backoff=0.02, metrics_port=None) as running:
        await until(lambda: caplog.text.count("ended with code 7") >= 3)
        assert running.supervisor.metrics_port is None
    pauses = [record.args[2] for record in caplog.records if "ended with code" in record.getMessage()]
    assert pauses[:3] == [0.01, 0.02, 0.02]


async def test_the_first_signal_drains_the_workers_and_the_second_ends_them():
    async with supervising(1) as running:
        (pid,) = await running.all_answer(1)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.supervisor.port}") as channel:
            call = Stub(channel).Stream(text())
            assert int((await anext(aiter(call))).value) == pid
            os.kill(os.getpid(), signal.SIGTERM)
            await running.signals.drain.wait()
            ended = asyncio.create_task(anext(aiter(call)))
            done, _ = await asyncio.wait([ended, running.task], timeout=0.5)
            assert not done
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(running.task, 30)
            with pytest.raises(grpc.aio.AioRpcError):
                await ended


async def test_a_cancelled_supervisor_leaves_nobody_behind():
    async with supervising(2) as running:
        pids = await running.all_answer(2)
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            PortReservation("127.0.0.1", port)


def test_a_port_that_others_are_willing_to_share_is_not_shared_with_them():
    with PortReservation("127.0.0.1", 0) as reserved, pytest.raises(ConfigurationError):
        PortReservation("127.0.0.1", reserved.port)


def test_a_reserved_port_answers_nobody():
    with (
        PortReservation("127.0.0.1", 0) as reserved,
        socket.socket() as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect(("127.0.0.1", reserved.port))

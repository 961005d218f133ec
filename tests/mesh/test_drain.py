"""The end of a mesh: who is being served is served to the end, and nobody new is let in."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loremesh.v1 import answer_pb2, collection_pb2
from loremesh.v1 import coordinator_service_pb2 as pb

from loremesh_agents.bootstrap.serve import ALL, build
from loremesh_agents.runtime.lifecycle import DrainOptions, StopSignals, run
from tests.mesh.conftest import DOCUMENTS, Client, settings_for
from tests.mesh.gates import ANSWER, QUESTION, Asking, Gates, busy, install
from tests.mesh.processes import Served, serving
from tests.mesh.test_ask import reason_of, text_of
from tests.unit.runtime.support import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ASK = pb.AskRequest(question=QUESTION)


class Health:
    """What the agents say of themselves, as load balancers hear it."""

    def __init__(self, targets: dict[str, str], stack: AsyncExitStack) -> None:
        self._watches = {}
        for agent, target in targets.items():
            channel = grpc.aio.insecure_channel(target)
            stack.push_async_callback(channel.close)
            service = f"loremesh.v1.{agent.title()}Service"
            request = health_pb2.HealthCheckRequest(service=service)
            self._watches[agent] = aiter(health_pb2_grpc.HealthStub(channel).Watch(request))

    async def serving(self) -> None:
        """Returns when every agent is ready; some say first that they are not."""
        async with asyncio.timeout(20):
            for watch in self._watches.values():
                while (await anext(watch)).status != SERVING:
                    pass

    async def next(self) -> set[int]:
        """The next status of every agent."""
        async with asyncio.timeout(10):
            return {(await anext(watch)).status for watch in self._watches.values()}


class Process:
    """A mesh that runs as in a process of its own."""

    def __init__(self, client: Client, signals: StopSignals, running: asyncio.Task[None], health: Health) -> None:
        self.client = client
        self.signals = signals
        self.running = running
        self.health = health

    @property
    def coordinator(self) -> str:
        return self.client.mesh.targets["coordinator"]

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            await self.running


@asynccontextmanager
async def process(folder: Path, options: DrainOptions) -> AsyncIterator[Process]:
    signals, ready = StopSignals(), asyncio.Event()
    mesh = await build(("all",), settings_for(folder), free_ports=True)
    running = asyncio.create_task(run(mesh.servers, mesh.resources, options, signals=signals, ready=ready))
    async with AsyncExitStack() as stack:
        stack.callback(signals.receive)
        stack.callback(signals.receive)
        async with asyncio.timeout(20):
            await ready.wait()
        client = Client(mesh)
        stack.push_async_callback(client.close)
        await client.ingest(DOCUMENTS)
        health = Health({agent: mesh.targets[agent] for agent in ALL}, stack)
        await health.serving()
        yield Process(client, signals, running, health)
    await asyncio.wait_for(running, 20)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Gates:
    return install(monkeypatch)[0]


async def refused(target: str) -> None:
    """Waits until no new call is let in."""
    code = grpc.StatusCode.OK
    async with asyncio.timeout(10):
        while code is grpc.StatusCode.OK:
            code = await code_of(Asking(target, timeout=10))
    assert code is grpc.StatusCode.UNAVAILABLE


async def code_of(asking: Asking) -> grpc.StatusCode:
    try:
        await asking.ended()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_streams_in_flight_are_served_to_the_end(tmp_path: Path, gates: Gates) -> None:
    async with process(tmp_path, DrainOptions(0, 30)) as mesh:
        gates["first token"].close()
        asking, chatting = Asking(mesh.coordinator), Asking(mesh.coordinator, "Chat")
        await until(lambda: gates.waiting == 2)
        mesh.signals.receive()
        assert await mesh.health.next() == {NOT_SERVING}
        gates["search"].close()
        await refused(mesh.coordinator)
        # Not even let in as far as the stores.
        assert gates["search"].waiting == 0
        assert not mesh.running.done()
        gates["first token"].open()
        for answer in (asking, chatting):
            events = await answer.ended()
            assert events[-1].completion.finish_reason == answer_pb2.FINISH_REASON_STOP
            assert answer.text == ANSWER
        await mesh.ended()


async def test_new_calls_are_served_until_load_balancers_have_looked_away(tmp_path: Path, gates: Gates) -> None:
    async with process(tmp_path, DrainOptions(2, 30)) as mesh:
        mesh.signals.receive()
        assert await mesh.health.next() == {NOT_SERVING}
        answer = Asking(mesh.coordinator, timeout=20)
        await answer.ended()
        assert answer.text == ANSWER
        await mesh.ended()


async def test_whoever_asks_while_the_mesh_drains_is_answered_in_full_or_refused(tmp_path: Path, gates: Gates) -> None:
    answered = 0

    async def ask_until_refused(client: Client) -> grpc.aio.AioRpcError:
        nonlocal answered
        while True:
            try:
                text = text_of([event async for event in client.coordinator.Ask(ASK, timeout=20)])
            except grpc.aio.AioRpcError as error:
                return error
            assert text == ANSWER
            answered += 1

    async with process(tmp_path, DrainOptions(0, 30)) as mesh:
        callers = [asyncio.create_task(ask_until_refused(mesh.client)) for _ in range(8)]
        await until(lambda: answered > 20)
        mesh.signals.receive()
        for error in await asyncio.gather(*callers):
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            if "grpc-status-details-bin" in dict(error.trailing_metadata() or ()):
                await must_be_draining(_raise(error))
        await mesh.ended()


async def _raise(error: Exception) -> None:
    raise error


async def must_be_draining(call: object) -> None:
    code, info, status = await reason_of(call)
    assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert info.metadata["agent"] == "coordinator"
    (retry,) = [detail for detail in status.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    found = error_details_pb2.RetryInfo()
    retry.Unpack(found)
    assert found.retry_delay.nanos > 0


@pytest.mark.parametrize("phase", ["search", "count", "second token"])
async def test_who_takes_longer_than_the_grace_is_sent_elsewhere(tmp_path: Path, gates: Gates, phase) -> None:
    async with process(tmp_path, DrainOptions(0, 0.2)) as mesh:
        gates[phase].close()
        asking, chatting = Asking(mesh.coordinator), Asking(mesh.coordinator, "Chat")
        await until(lambda: gates[phase].waiting == 2)
        mesh.signals.receive()
        for call in (asking, chatting):
            await must_be_draining(call.ended())
        await mesh.ended()
        assert not busy(mesh.client)
        assert not gates.waiting


@asynccontextmanager
async def all_served(folder: Path) -> AsyncIterator[tuple[Served, Client, Health]]:
    arguments = ("all", "--free-ports")
    async with serving(folder, *arguments, lines=len(ALL)) as served, AsyncExitStack() as stack:
        client = Client(served)  # it wants agents with targets
        stack.push_async_callback(client.close)
        health = Health(served.targets, stack)
        await health.serving()
        yield served, client, health


async def test_a_process_that_is_told_to_end_finishes_what_it_does(tmp_path: Path) -> None:
    async with all_served(tmp_path) as (served, client, health):
        (result, *_) = await client.ingest({"acme": DOCUMENTS["acme"]})
        # What is asked for is not written yet: the answer waits for it.
        result.revision.revision += 1
        newer = collection_pb2.Consistency.MinRevision(revisions=[result.revision])
        asking = Asking(
            served.targets["coordinator"], timeout=30, consistency=collection_pb2.Consistency(min_revision=newer)
        )
        chat = client.coordinator.Chat()
        assert "Jane Doe" in await turn(chat, "before")
        await until(lambda: len(asking.events) == 1)
        served.stop()
        assert await health.next() == {NOT_SERVING}
        await refused(served.targets["coordinator"])
        assert "Jane Doe" in await turn(chat, "after")
        # The other agents are there as long as the coordinator needs them.
        await client.ingest({"news": ("News", "Nothing new.")})
        await asking.ended()
        assert "Jane Doe" in asking.text
        assert served.process.returncode is None
        await chat.done_writing()
        assert await chat.code() is grpc.StatusCode.OK
        assert await served.ended() == 0
        assert "Traceback" not in served.log.read_text()


async def turn(chat, turn_id: str) -> str:
    await chat.write(pb.ChatRequest(turn=pb.Turn(turn_id=turn_id, ask=ASK)))
    events = []
    while not events or not events[-1].HasField("completion"):
        events.append((await chat.read()).event)
    return text_of(events)


async def test_a_second_signal_ends_a_process_at_once(tmp_path: Path) -> None:
    async with all_served(tmp_path) as (served, client, health):
        await client.ingest(DOCUMENTS)
        chat = client.coordinator.Chat()
        await turn(chat, "1")
        served.stop()
        assert await health.next() == {NOT_SERVING}
        await refused(served.targets["coordinator"])
        assert served.process.returncode is None
        began = time.monotonic()
        served.stop()
        await must_be_draining(chat.read())
        assert await served.ended() == 0
        # The grace is 20 seconds.
        assert time.monotonic() - began < 10
        assert "Traceback" not in served.log.read_text()

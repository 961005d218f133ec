"""Who leaves stops all work that was done for it, wherever that work is."""

import asyncio
from collections import Counter
from contextlib import suppress

import grpc
import pytest
from loremesh.v1 import answer_pb2
from loremesh.v1 import coordinator_service_pb2 as pb

from tests.mesh.conftest import Client
from tests.mesh.gates import ANSWER, BUSY, QUESTION, Asking, GatedModel, Gates, busy, install
from tests.unit.runtime.support import until


@pytest.fixture(autouse=True)
def gated(monkeypatch: pytest.MonkeyPatch) -> tuple[Gates, GatedModel]:
    return install(monkeypatch)


@pytest.fixture
def gates(gated: tuple[Gates, GatedModel]) -> Gates:
    return gated[0]


def _other_tasks() -> Counter[str]:
    """What runs besides the caller, by kind: gRPC waits for each next call in a new task."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return Counter(task.get_coro().__qualname__ for task in tasks)


class Quiet:
    """What runs in a mesh that has been used and serves nobody."""

    def __init__(self, client: Client, gates: Gates, tasks: Counter[str]) -> None:
        self._client = client
        self._gates = gates
        self._tasks = tasks

    async def again(self) -> None:
        """Waits until nothing more runs than then, and shows that the mesh still answers."""
        await until(lambda: not busy(self._client))
        await until(lambda: not self._gates.waiting)
        await until(lambda: _other_tasks() <= self._tasks)
        for gate in self._gates.values():
            gate.open()
        answer = Asking(self._client.mesh.targets["coordinator"], timeout=20)
        await answer.ended()
        assert answer.text == ANSWER


@pytest.fixture
async def quiet(client: Client, gates: Gates) -> Quiet:
    answer = Asking(client.mesh.targets["coordinator"], timeout=20)
    await answer.ended()
    assert answer.text == ANSWER
    await until(lambda: not busy(client))
    return Quiet(client, gates, _other_tasks())


async def cancel_the_call(asking: Asking) -> None:
    asking.call.cancel()


async def close_the_channel(asking: Asking) -> None:
    await asking.channel.close()


async def stop_reading(asking: Asking) -> None:
    asking.reader.cancel()


@pytest.mark.parametrize("leave", [cancel_the_call, close_the_channel, stop_reading])
@pytest.mark.parametrize("phase", BUSY)
@pytest.mark.parametrize("rpc", ["Ask", "Chat"])
async def test_who_leaves_leaves_nothing_behind(client: Client, gates: Gates, quiet: Quiet, rpc, phase, leave) -> None:
    gates[phase].close()
    asking = Asking(client.mesh.targets["coordinator"], rpc)
    await until(lambda: gates[phase].waiting == 1 and busy(client) == BUSY[phase])
    await leave(asking)
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await asking.ended()
    assert not [event for event in asking.events if event.HasField("completion")]
    await quiet.again()


@pytest.mark.parametrize("phase", BUSY)
async def test_a_cancelled_turn_stops_its_work_and_the_chat_goes_on(
    client: Client, gates: Gates, quiet: Quiet, phase
) -> None:
    gates[phase].close()
    call = client.coordinator.Chat()
    await call.write(pb.ChatRequest(turn=pb.Turn(turn_id="1", ask=pb.AskRequest(question=QUESTION))))
    await until(lambda: gates[phase].waiting == 1 and busy(client) == BUSY[phase])
    await call.write(pb.ChatRequest(cancel=pb.CancelTurn(turn_id="1")))
    responses = aiter(call)
    ends = [await _end(responses)]
    await until(lambda: not gates.waiting and busy(client) == {"coordinator"})
    gates[phase].open()
    await call.write(pb.ChatRequest(turn=pb.Turn(turn_id="2", ask=pb.AskRequest(question=QUESTION))))
    ends.append(await _end(responses))
    assert ends == [("1", answer_pb2.FINISH_REASON_CANCELLED), ("2", answer_pb2.FINISH_REASON_STOP)]
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    await quiet.again()


async def _end(responses) -> tuple[str, int]:
    async for response in responses:
        if response.event.HasField("completion"):
            return response.turn_id, response.event.completion.finish_reason
    raise AssertionError("the chat ended within a turn")


async def test_a_caller_that_reads_nothing_and_leaves_frees_all_agents(
    client: Client, quiet: Quiet, gated: tuple[Gates, GatedModel]
) -> None:
    _, model = gated
    options = answer_pb2.GenerationOptions(max_tokens=GatedModel.FLOOD)
    call = client.coordinator.Ask(pb.AskRequest(question=QUESTION, generation=options))
    # More than the generator reads ahead: all wait for the caller by now, or soon will.
    await until(lambda: model.written > 100)
    assert busy(client) == {"coordinator", "generator"}
    call.cancel()
    await quiet.again()


@pytest.mark.parametrize("phase", BUSY)
@pytest.mark.parametrize("rpc", ["Ask", "Chat"])
async def test_a_deadline_that_passes_leaves_nothing_behind(
    client: Client, gates: Gates, quiet: Quiet, rpc, phase
) -> None:
    gates[phase].close()
    asking = Asking(client.mesh.targets["coordinator"], rpc, timeout=0.6)
    await until(lambda: gates[phase].waiting == 1 and busy(client) == BUSY[phase])
    with suppress(grpc.aio.AioRpcError):
        await asking.ended()
    await quiet.again()

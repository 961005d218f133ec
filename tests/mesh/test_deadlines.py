"""Time is a budget: each hop gets less of it than its caller has, and what does not fit is left out and said."""

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from loremesh.v1 import answer_pb2
from loremesh.v1 import coordinator_service_pb2 as pb

from loremesh_agents.bootstrap.serve import ALL, Mesh, running
from loremesh_agents.coordinator.settings import CoordinatorSettings
from tests.mesh.conftest import DOCUMENTS, Client, settings_for
from tests.mesh.gates import ANSWER, QUESTION, Asking, Gates, install
from tests.mesh.test_ask import reason_of
from tests.unit.runtime.support import until

RESERVE = 1.0
"""What the coordinator is told to keep back for the way to its caller, in seconds, so that a slow machine is not late either; of a short budget it is a tenth."""
SHORT = 4.0
"""Seconds of a budget that is spent by waiting."""
COORDINATOR = CoordinatorSettings(reserve=RESERVE)
HOP = 0.01
"""What each call to a peer keeps back."""


@pytest.fixture(autouse=True)
def gates(monkeypatch: pytest.MonkeyPatch) -> Gates:
    return install(monkeypatch)[0]


@pytest.fixture
async def client(start: Callable[..., object]) -> Client:
    found: Client = await start(coordinator=COORDINATOR)
    await found.ingest(DOCUMENTS)
    return found


@pytest.mark.parametrize("seconds", [5.5, 10.001, 20, 150.5])
async def test_each_hop_has_less_time_than_its_caller(client: Client, gates: Gates, seconds: float) -> None:
    asking = Asking(client.mesh.targets["coordinator"], timeout=seconds)
    latest = time.monotonic() + seconds
    events = await asking.ended()
    reserve = min(RESERVE, 0.09 * seconds)
    assert gates["first token"].deadline.at <= latest - reserve - HOP
    assert gates["models"].deadline == gates["first token"].deadline
    # Retrieval has half of what may be spent; counting tokens has half of what the synthesizer has.
    assert gates["search"].deadline.at <= latest - seconds / 2 + reserve - HOP
    assert gates["count"].deadline.at <= latest - seconds / 3
    # Nor is it given away: gRPC rounds by one per cent at the most, and three hops take their time.
    assert gates["first token"].deadline.at >= latest - reserve - HOP - max(0.03 * seconds, 1)
    (plan,) = [event.plan for event in events if event.HasField("plan")]
    budgets = [step.budget.seconds + step.budget.nanos / 1e9 for step in plan.steps]
    assert sum(budgets) <= seconds - reserve
    assert asking.text == ANSWER


@pytest.mark.parametrize(
    ("phase", "stages", "finish"),
    [
        ("search", {"text"}, answer_pb2.FINISH_REASON_STOP),
        ("count", {"prompt"}, answer_pb2.FINISH_REASON_STOP),
        ("models", {"generation"}, answer_pb2.FINISH_REASON_BUDGET),
        ("first token", {"generation"}, answer_pb2.FINISH_REASON_BUDGET),
        ("second token", {"generation"}, answer_pb2.FINISH_REASON_BUDGET),
    ],
)
async def test_what_does_not_fit_is_left_out_and_the_answer_is_not_late(
    client: Client, gates: Gates, phase, stages, finish
) -> None:
    gates[phase].close()
    began = time.monotonic()
    asking = Asking(client.mesh.targets["coordinator"], timeout=SHORT)
    completion = (await asking.ended())[-1].completion
    assert time.monotonic() - began < SHORT
    assert completion.finish_reason == finish
    assert {entry.stage for entry in completion.degradations} - {"vectors"} == stages
    assert asking.text == {"models": "", "first token": "", "second token": "One"}.get(phase, ANSWER)


async def test_a_turn_that_does_not_fit_its_budget_ends_and_the_chat_goes_on(client: Client, gates: Gates) -> None:
    gates["second token"].close()
    call = client.coordinator.Chat()
    turn = pb.Turn(turn_id="1", ask=pb.AskRequest(question=QUESTION))
    turn.budget.FromSeconds(round(SHORT))
    began = time.monotonic()
    await call.write(pb.ChatRequest(turn=turn))
    responses = aiter(call)
    ends = []
    async for response in responses:
        if not response.event.HasField("completion"):
            continue
        ends.append((response.turn_id, response.event.completion.finish_reason))
        if response.turn_id == "2":
            break
        assert time.monotonic() - began < SHORT
        assert gates["second token"].deadline.at < began + SHORT
        gates["second token"].open()
        await call.write(pb.ChatRequest(turn=pb.Turn(turn_id="2", ask=pb.AskRequest(question=QUESTION))))
    assert ends == [("1", answer_pb2.FINISH_REASON_BUDGET), ("2", answer_pb2.FINISH_REASON_STOP)]
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


@asynccontextmanager
async def mesh_without(peer: str, port: socket.socket, folder: Path) -> AsyncIterator[Mesh]:
    """All agents but one, which the others look for at a port that is not its own."""
    others = [agent for agent in ALL if agent != peer]
    host, number = port.getsockname()
    async with running(
        others, settings_for(folder, addresses={peer: f"{host}:{number}"}, coordinator=COORDINATOR)
    ) as mesh:
        yield mesh


@pytest.mark.parametrize("peer", ["retriever", "synthesizer", "generator"])
async def test_a_peer_that_does_not_listen_is_named_at_once(tmp_path: Path, peer: str) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        async with mesh_without(peer, port, tmp_path) as mesh:
            asking = Asking(mesh.targets["coordinator"], timeout=20)
            began = time.monotonic()
            code, info, status = await reason_of(asking.ended())
            assert time.monotonic() - began < 10
            assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "PEER_UNAVAILABLE")
            assert info.metadata["peer"] == peer
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
            await until(lambda: not any(server.in_flight for server in mesh.servers))


@pytest.mark.parametrize(
    ("peer", "stages", "finish"),
    [
        ("retriever", {"retrieval"}, answer_pb2.FINISH_REASON_STOP),
        ("synthesizer", {"prompt"}, answer_pb2.FINISH_REASON_BUDGET),
        ("generator", {"prompt", "generation"}, answer_pb2.FINISH_REASON_BUDGET),
    ],
)
async def test_a_peer_that_says_nothing_makes_no_answer_late(tmp_path: Path, peer, stages, finish) -> None:
    # Whoever connects is let in by the kernel, and nobody ever reads what it says.
    with socket.create_server(("127.0.0.1", 0)) as port:
        async with mesh_without(peer, port, tmp_path) as mesh:
            began = time.monotonic()
            asking = Asking(mesh.targets["coordinator"], timeout=SHORT)
            completion = (await asking.ended())[-1].completion
            assert time.monotonic() - began < SHORT
            assert completion.finish_reason == finish
            assert {entry.stage for entry in completion.degradations} - {"vectors"} == stages
            await until(lambda: not any(server.in_flight for server in mesh.servers))

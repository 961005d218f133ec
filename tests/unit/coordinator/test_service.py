"""The coordinator's use case, with peers that wait where they are told to."""

import asyncio
from contextlib import aclosing

import pytest

from loremesh_agents.coordinator.events import Heartbeat, Question, Sources
from loremesh_agents.coordinator.service import CoordinatorService
from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.domain.answer import Citation, Completion, Degradation, FinishReason, TokenDelta
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.plan import Plan
from loremesh_agents.domain.retrieval import RetrievalRequest
from tests.unit.coordinator_peers import Peers

QUESTION = Question(RetrievalRequest("What is water?"))


def service_of(peers: Peers, **settings: float) -> CoordinatorService:
    return CoordinatorService(peers, peers, peers, CoordinatorSettings(**settings))


async def test_events_come_in_their_order() -> None:
    events = [event async for event in service_of(Peers()).ask(QUESTION, deadline=Deadline.after(5))]
    kinds = [type(event) for event in events]
    assert kinds == [Plan, Evidence, Sources, TokenDelta, Citation, Completion]
    assert events[4] == Citation("E1", 1, 0, 13)
    assert isinstance(events[-1], Completion)
    assert list(events[-1].timings) == ["retrieve", "synthesize", "first_token", "generate", "total"]


@pytest.mark.parametrize("phase", ["retrieve", "synthesize", "generate"])
async def test_leaving_in_any_phase_cancels_the_peer_and_leaves_no_task(phase: str) -> None:
    peers = Peers(closed=phase)
    before = asyncio.all_tasks()

    async def consume() -> None:
        async with aclosing(service_of(peers).ask(QUESTION, deadline=Deadline.after(30))) as events:
            async for _ in events:
                pass

    consumer = asyncio.create_task(consume())
    await peers.gates[phase].reached.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert peers.gates[phase].cancelled
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("phase", "stage"), [("retrieve", "retrieval"), ("synthesize", "prompt"), ("generate", "generation")]
)
async def test_what_does_not_fit_into_the_budget_is_left_out_in_time(phase: str, stage: str) -> None:
    deadline = Deadline.after(3)
    service = service_of(Peers(closed=phase), reserve=0.3)
    events = [event async for event in service.ask(QUESTION, deadline=deadline)]
    assert not deadline.expired
    assert stage in [event.stage for event in events if isinstance(event, Degradation)]
    assert isinstance(events[-1], Completion)
    expected = FinishReason.STOP if phase == "retrieve" else FinishReason.BUDGET
    assert events[-1].finish_reason is expected
    assert stage in [degradation.stage for degradation in events[-1].degradations]


async def test_every_hop_gets_less_time_than_the_one_before() -> None:
    peers = Peers()
    deadline = Deadline.after(10)
    async for _ in service_of(peers).ask(QUESTION, deadline=deadline):
        pass
    retrieve, synthesize, generate = (peers.gates[name].deadline for name in ("retrieve", "synthesize", "generate"))
    assert retrieve is not None
    assert synthesize is not None
    assert generate is not None
    assert retrieve < synthesize <= generate < deadline


async def test_long_silences_are_filled_with_heartbeats() -> None:
    peers = Peers(closed="retrieve")
    async with aclosing(
        service_of(peers, heartbeat_interval=0.01).ask(QUESTION, deadline=Deadline.after(30))
    ) as events:
        async for event in events:
            if isinstance(event, Heartbeat):
                break

"""Who may begin, in what order, and who is refused. Time is counted in steps of an engine: in each, it writes a token of every generation."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, Overloaded
from loremesh_agents.domain.principal import ANONYMOUS, Principal
from loremesh_agents.generator.admission import TokenAdmission
from loremesh_agents.generator.busy_rate import BusyRate
from loremesh_agents.generator.metrics import PrometheusAdmissionMetrics
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.ports.engine_load import EngineLoad
from tests.documents import soon

FLOODER = Principal("flooder")
POLITE = Principal("polite")
OTHER = Principal("other")


async def everybody_has_had_a_turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Engine:
    """An engine double behind admission.

    Attributes:
        now: Steps so far.
        served: Tokens written, by principal.
        began: Whose generations have begun, in order.
    """

    def __init__(self, admission: TokenAdmission) -> None:
        self.admission = admission
        self.now = 0
        self.served: dict[str, int] = {}
        self.began: list[str] = []
        self._writing: list[tuple[str, int, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[int]] = []

    def ask(
        self,
        principal: Principal,
        *,
        prompt: int = 10,
        most: int = 40,
        writes: int | None = None,
        deadline: Deadline | None = None,
    ) -> asyncio.Task[int]:
        """A generation; gives the steps that it took from the question to the last token."""

        async def generation() -> int:
            asked = self.now
            until = deadline or soon()
            async with self.admission.admitted(principal, prompt, most, deadline=until) as admitted:
                self.began.append(principal.subject)
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                entry = (principal.subject, self.now + (most if writes is None else writes), done)
                self._writing.append(entry)
                try:
                    await done
                finally:
                    if entry in self._writing:
                        self._writing.remove(entry)
                admitted.used = prompt + (most if writes is None else writes)
            return self.now - asked

        task = asyncio.create_task(generation())
        self._tasks.append(task)
        return task

    async def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            for subject, end, done in tuple(self._writing):
                self.served[subject] = self.served.get(subject, 0) + 1
                if self.now >= end:
                    done.set_result(None)
            await everybody_has_had_a_turn()

    async def finish(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def engine(**settings: float) -> AsyncIterator[Engine]:
    admission = TokenAdmission(GeneratorSettings.model_validate({"tokens_in_flight": 1000, **settings}))
    found = Engine(admission)
    try:
        yield found
    finally:
        await found.finish()
        assert (admission.in_flight, admission.waiting, admission.principals) == (0, 0, 0)
        await admission.close()


async def test_one_who_floods_does_not_slow_another_down() -> None:
    async with engine() as alone:
        task = alone.ask(POLITE)
        await alone.step(60)
        undisturbed = task.result()
    async with engine() as shared:
        for _ in range(200):
            shared.ask(FLOODER)
        await shared.step(5)
        taken: list[int] = []
        for _ in range(5):
            task = shared.ask(POLITE)
            await shared.step(60)
            assert shared.admission.waiting > 0, "the flood is still there"
            taken.append(task.result())
        assert max(taken) <= 1.2 * undisturbed
        assert shared.served["flooder"] > 5 * shared.served["polite"], "what nobody else asks for is the flooder's"


async def test_two_who_flood_are_served_alike_whoever_came_first() -> None:
    async with engine() as shared:
        for _ in range(100):
            shared.ask(FLOODER)
        await shared.step(5)
        for _ in range(40):
            shared.ask(OTHER)
        await shared.step(45)
        before = dict(shared.served)
        await shared.step(120)
        flooder, other = (shared.served[name] - before.get(name, 0) for name in ("flooder", "other"))
        assert other == pytest.approx(flooder, rel=0.1)


async def test_tokens_count_and_not_generations() -> None:
    async with engine(tokens_in_flight=110) as shared:
        for _ in range(60):
            shared.ask(FLOODER, prompt=0, most=100)
        for _ in range(60):
            shared.ask(OTHER, prompt=0, most=10)
        await shared.step(505)
        assert shared.began.count("other") >= 5 * shared.began.count("flooder")


async def test_what_was_asked_for_and_not_written_is_given_back() -> None:
    async with engine(tokens_in_flight=100, principal_share=0.5) as shared:
        for _ in range(30):
            shared.ask(FLOODER, prompt=0, most=100)
            shared.ask(OTHER, prompt=0, most=100, writes=20)
        await shared.step(600)
        assert shared.served["other"] == pytest.approx(shared.served["flooder"], abs=100)
        assert shared.began.count("other") >= 4 * shared.began.count("flooder")


async def test_generations_of_one_principal_begin_in_the_order_in_which_they_came() -> None:
    async with engine(tokens_in_flight=50) as shared:
        order: list[int] = []
        for number in range(5):
            shared.ask(POLITE).add_done_callback(lambda _, number=number: order.append(number))
        await shared.step(5 * 41)
        assert order == [0, 1, 2, 3, 4]


async def test_those_who_do_not_say_who_they_are_are_one() -> None:
    async with engine(tokens_in_flight=50) as shared:
        for _ in range(3):
            shared.ask(ANONYMOUS)
        await everybody_has_had_a_turn()
        shared.ask(POLITE)
        await shared.step(41)
        assert shared.began == ["", "polite"]


async def test_a_large_generation_is_not_overtaken_for_ever() -> None:
    async with engine(tokens_in_flight=200) as shared:
        for number in range(40):
            shared.ask(Principal(f"small {number}"))
        await everybody_has_had_a_turn()
        shared.ask(POLITE, prompt=100, most=100)
        await shared.step(41 * 12)
        assert "polite" in shared.began


async def test_one_that_is_larger_than_the_limit_is_written_alone() -> None:
    async with engine(tokens_in_flight=100) as shared:
        task = shared.ask(POLITE, prompt=5000, most=20)
        shared.ask(OTHER)
        await shared.step(21)
        assert task.result() == 20
        await everybody_has_had_a_turn()
        assert shared.began == ["polite", "other"]


async def test_leaving_the_queue_makes_place_at_once() -> None:
    async with engine(tokens_in_flight=50) as shared:
        shared.ask(POLITE)
        waiting = shared.ask(FLOODER)
        last = shared.ask(OTHER)
        await everybody_has_had_a_turn()
        assert shared.admission.waiting == 2
        waiting.cancel()
        await everybody_has_had_a_turn()
        assert (shared.admission.waiting, shared.admission.principals) == (1, 2)
        await shared.step(81)
        assert last.result() == 80


async def test_the_answer_that_its_caller_leaves_makes_room_at_once() -> None:
    async with engine(tokens_in_flight=50) as shared:
        first = shared.ask(POLITE)
        second = shared.ask(OTHER)
        await everybody_has_had_a_turn()
        first.cancel()
        await everybody_has_had_a_turn()
        assert shared.began == ["polite", "other"]
        await shared.step(41)
        assert second.result() == 40


async def test_the_deadline_ends_the_waiting() -> None:
    async with engine(tokens_in_flight=50) as shared:
        shared.ask(POLITE)
        waiting = shared.ask(OTHER, deadline=Deadline.after(0.02))
        with pytest.raises(BudgetExhausted, match="admission"):
            await waiting
        assert shared.admission.waiting == 0


async def test_nobody_waits_longer_than_allowed() -> None:
    async with engine(tokens_in_flight=50, queue_seconds=0.02) as shared:
        shared.ask(POLITE)
        with pytest.raises(Overloaded) as refused:
            await shared.ask(OTHER)
        assert refused.value.retry_after is not None
        assert refused.value.metadata == {"agent": "generator", "limit": "50"}


async def test_when_the_queue_is_full_the_longest_one_loses_its_last() -> None:
    async with engine(tokens_in_flight=50, queue_length=5) as shared:
        flood = [shared.ask(FLOODER) for _ in range(8)]
        await everybody_has_had_a_turn()
        assert [task.done() for task in flood] == [False] * 6 + [True] * 2
        polite = shared.ask(POLITE)
        await everybody_has_had_a_turn()
        assert [task.done() for task in flood] == [False] * 5 + [True] * 3
        assert isinstance(flood[5].exception(), Overloaded)
        await shared.step(81)
        assert polite.result() == 80
        for task in flood[5:]:
            assert isinstance(task.exception(), Overloaded)


class Clock:
    """Seconds as a test wants them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_what_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back() -> None:
    clock = Clock()
    settings = GeneratorSettings(tokens_in_flight=100, queue_seconds=4)
    registry = CollectorRegistry()
    admission = TokenAdmission(settings, metrics=PrometheusAdmissionMetrics(registry), clock=clock)
    shared = Engine(admission)
    shared.ask(OTHER, prompt=0, most=100)
    await everybody_has_had_a_turn()
    clock.now += 2.0
    await shared.step(101)  # so it gets done with 50 tokens a second
    shared.ask(OTHER, prompt=0, most=100)
    within = [shared.ask(POLITE, prompt=0, most=100) for _ in range(2)]
    beyond = shared.ask(POLITE, prompt=0, most=100)
    with pytest.raises(Overloaded) as refused:
        await beyond
    assert refused.value.retry_after == pytest.approx(6.0, rel=0.15)
    assert not any(task.done() for task in within)

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"generator_{name}", labels)

    assert told("tokens_in_flight") == 100
    assert (told("generations_waiting"), told("tokens_waiting")) == (2, 200)
    assert told("generations_shed_total", cause="too long") == 1
    await shared.finish()
    assert (told("tokens_in_flight"), told("generations_waiting"), told("tokens_waiting")) == (0, 0, 0)
    await admission.close()


def test_time_without_work_says_nothing_about_the_rate() -> None:
    clock = Clock()
    rate = BusyRate(clock)
    assert rate.per_second is None
    rate.observe(busy=True)
    clock.now += 2
    rate.observe(busy=False, done=100)
    clock.now += 1000
    rate.observe(busy=True)
    assert rate.per_second == pytest.approx(50, rel=0.15)
    for _ in range(100):
        clock.now += 1
        rate.observe(busy=True, done=10)
    assert rate.per_second == pytest.approx(10, rel=0.1)


class Gauge:
    """A double that tells the load that a test sets, and says when it was asked."""

    def __init__(self) -> None:
        self.told: EngineLoad | Exception | None = None
        self.closed = False
        self._asked = asyncio.Event()

    async def load(self, *, deadline: Deadline) -> EngineLoad | None:
        assert deadline.remaining() > 0
        self._asked.set()
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    async def close(self) -> None:
        self.closed = True

    async def looked(self, times: int = 2) -> None:
        for _ in range(times):
            self._asked.clear()
            async with asyncio.timeout(5):
                await self._asked.wait()
        await everybody_has_had_a_turn()


@asynccontextmanager
async def watched(engines: int = 1) -> AsyncIterator[tuple[Engine, list[Gauge]]]:
    gauges = [Gauge() for _ in range(engines)]
    settings = GeneratorSettings(tokens_in_flight=1000 // engines)
    found = Engine(TokenAdmission(settings, engines=engines, gauges=gauges, look_seconds=0.001))
    try:
        yield found, gauges
    finally:
        await found.finish()
        await found.admission.close()
        assert all(gauge.closed for gauge in gauges)


SATURATED = EngineLoad(4, 2, 0.3)
IDLE = EngineLoad(1, 0, 0.9)


async def test_room_shrinks_while_the_engine_lets_generations_wait_and_grows_again() -> None:
    async with watched() as (shared, [gauge]):
        for _ in range(30):
            shared.ask(FLOODER)
        gauge.told = SATURATED
        await gauge.looked()
        in_flight = shared.admission.in_flight
        assert shared.admission.room < in_flight, "less than there is: nothing begins until some have ended"
        room = shared.admission.room
        await gauge.looked(5)
        assert shared.admission.room == room, "the decrease must come into effect before the next one"
        gauge.told = IDLE
        await gauge.looked(40)
        assert shared.admission.room == 1000


@pytest.mark.parametrize(
    "told", [None, BackendUnavailable("vllm"), IDLE], ids=["nothing", "no answer", "an engine that is idle"]
)
async def test_an_engine_that_does_not_complain_leaves_the_room_as_it_is(told: EngineLoad | Exception | None) -> None:
    async with watched(2) as (shared, gauges):
        for _ in range(30):
            shared.ask(FLOODER)
        gauges[0].told = told
        gauges[1].told = None if told is not IDLE else SATURATED
        await gauges[0].looked(4)
        assert shared.admission.room == 1000


async def test_nobody_looks_at_an_engine_that_has_nothing_to_do() -> None:
    before = asyncio.all_tasks()
    async with watched() as (shared, [gauge]):
        task = shared.ask(POLITE)
        await gauge.looked()
        await shared.step(41)
        await task
        async with asyncio.timeout(5):
            await asyncio.gather(*(asyncio.all_tasks() - before))


@pytest.mark.parametrize(
    ("load", "saturated"),
    [
        (EngineLoad(5, 1), True),
        (EngineLoad(5, 0, 0.01), True),
        (EngineLoad(5, 0, 0.5), False),
        (EngineLoad(200, 0), False),
    ],
)
def test_an_engine_is_saturated_when_what_comes_will_wait(load: EngineLoad, saturated: bool) -> None:
    assert load.saturated is saturated


async def test_room_is_that_of_all_engines() -> None:
    admission = TokenAdmission(GeneratorSettings(tokens_in_flight=100), engines=3)
    assert admission.room == 300
    await admission.close()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_timeout_that_comes_with_the_turn_does_not_lose_room(count: int) -> None:
    # Whatever comes first, the turn or the end of the waiting, room and queue must be right after it.
    async with engine(tokens_in_flight=50, queue_seconds=0.01) as shared:
        first = shared.ask(POLITE)
        others = [shared.ask(OTHER) for _ in range(count)]
        await everybody_has_had_a_turn()
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, first.cancel)
        await asyncio.wait(others, timeout=0.05)
    assert asyncio.all_tasks() == {asyncio.current_task()}

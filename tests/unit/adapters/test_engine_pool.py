"""Several engines as one: which of them writes, and what happens when one breaks off."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from loremesh_agents.adapters.model.pool import EnginePool
from loremesh_agents.domain.answer import FinishReason, Resumption, TokenDelta, Usage
from loremesh_agents.domain.circuit import FAILURES, Circuit
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, ModelNotFound
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model, SamplingOptions

TOKENS = 8
MODEL = Model("m", 4096, "", "exact", frozenset({Capability.GENERATION, Capability.RESUME}))


class Engine:
    """An engine whose n-th token is n; it breaks off before token `breaks`, each time.

    Attributes:
        asked: What it was asked to write.
        writing: How many answers it is writing.
        model: What it serves; None where it does not answer.
    """

    def __init__(self, *, breaks: int | None = None, model: Model | None = MODEL) -> None:
        self.breaks = breaks
        self.model = model
        self.asked: list[GenerationRequest] = []
        self.writing = 0
        self.held = asyncio.Event()
        self.held.set()

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        if self.model is None:
            raise BackendUnavailable("engine")
        return (self.model,)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        await self.models(deadline=deadline)
        return tuple(len(text.split()) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | GenerationEnd]:
        self.asked.append(request)
        self.writing += 1
        try:
            first = len(request.resume.token_ids) if request.resume is not None else 0
            for place in range(first, TOKENS):
                if place == self.breaks:
                    raise BackendUnavailable("engine")
                yield TokenDelta(f"{place} ", place, 1, (place,))
                await self.held.wait()
            yield GenerationEnd(
                FinishReason.STOP,
                Usage(completion_tokens=TOKENS),
                (Resumption(first, exact=True),) if request.resume is not None else (),
            )
        finally:
            self.writing -= 1

    async def close(self) -> None:
        pass


def asking(text: str = "What is water?", *, system: str = "Be brief.") -> GenerationRequest:
    return GenerationRequest((Message(Role.SYSTEM, system), Message(Role.USER, text)), text)


async def written(pool: EnginePool, request: GenerationRequest) -> tuple[str, GenerationEnd]:
    events = [event async for event in pool.generate(request, deadline=Deadline.after(5))]
    *deltas, end = events
    assert isinstance(end, GenerationEnd)
    return "".join(delta.text for delta in deltas if isinstance(delta, TokenDelta)), end


WHOLE = "".join(f"{place} " for place in range(TOKENS))


@pytest.mark.parametrize("breaks", range(TOKENS))
async def test_another_engine_goes_on_where_one_breaks_off(breaks: int) -> None:
    engines = {name: Engine(breaks=breaks) for name in "ab"}
    pool = EnginePool(engines)
    with pytest.raises(BackendUnavailable):
        await written(pool, asking())
    whole = Engine()
    first = EnginePool({"a": Engine(breaks=breaks), "b": whole})
    texts = {await written(first, asking(system=f"system {number}")) for number in range(8)}
    assert {text for text, _ in texts} == {WHOLE}
    expected = {(), (Resumption(breaks, exact=True),)} if breaks else {()}
    assert {end.resumptions for _, end in texts} == expected


async def test_prompts_that_begin_alike_go_to_one_engine_and_others_are_spread() -> None:
    engines = {name: Engine() for name in "abc"}
    pool = EnginePool(engines)
    for number in range(20):
        await written(pool, asking(f"question {number}"))
    assert sorted(len(engine.asked) for engine in engines.values()) == [0, 0, 20]
    for number in range(60):
        await written(pool, asking(system=f"system {number}"))
    assert min(len(engine.asked) for engine in engines.values()) > 5


async def test_affinity_yields_under_load() -> None:
    engines = {name: Engine() for name in "ab"}
    for engine in engines.values():
        engine.held.clear()
    pool = EnginePool(engines)
    large = replace(asking(), options=SamplingOptions(max_tokens=3000))
    streams = [pool.generate(large, deadline=Deadline.after(5)) for _ in range(6)]
    for stream in streams:
        await anext(stream)
    assert min(engine.writing for engine in engines.values()) >= 2
    for stream in streams:
        await stream.aclose()
    assert [engine.writing for engine in engines.values()] == [0, 0]


async def test_an_engine_that_fails_again_and_again_is_left_alone() -> None:
    broken, good = Engine(breaks=0), Engine()
    pool = EnginePool({"a": broken, "b": good})
    for number in range(40):
        text, _ = await written(pool, asking(system=f"system {number}"))
        assert text == WHOLE
    assert len(broken.asked) == FAILURES


async def test_an_engine_that_serves_another_model_of_the_name_does_not_write() -> None:
    other = Engine(model=replace(MODEL, fingerprint="another"))
    pool = EnginePool({"a": Engine(), "b": other})
    for number in range(10):
        await written(pool, asking(system=f"system {number}"))
    assert other.asked == []


async def test_an_engine_that_comes_back_with_another_model_does_not_go_on() -> None:
    engine = Engine()
    pool = EnginePool({"a": engine})
    events = pool.generate(asking(), deadline=Deadline.after(5))
    text = [(await anext(events)).text for _ in range(3)]
    engine.breaks, engine.model = 3, replace(MODEL, fingerprint="another")
    with pytest.raises(BackendUnavailable):
        text += [event.text async for event in events]
    assert "".join(text) == "0 1 2 "
    assert len(engine.asked) == 1


async def test_while_one_engine_is_down_the_others_answer_for_it() -> None:
    pool = EnginePool({"a": Engine(model=None), "b": Engine()})
    assert await pool.models(deadline=Deadline.after(5)) == (MODEL,)
    assert await pool.count_tokens("", ["one two"], deadline=Deadline.after(5)) == (2,)
    assert (await written(pool, asking()))[0] == WHOLE


async def test_where_none_answers_the_failure_is_told() -> None:
    pool = EnginePool({name: Engine(model=None) for name in "ab"})
    with pytest.raises(BackendUnavailable):
        await pool.models(deadline=Deadline.after(5))
    with pytest.raises(BackendUnavailable):
        await written(pool, asking())


async def test_a_model_that_none_serves_is_named() -> None:
    with pytest.raises(ModelNotFound, match="large"):
        await written(
            EnginePool({"a": Engine(), "b": Engine()}), replace(asking(), options=SamplingOptions(model="large"))
        )


async def test_leaving_stops_the_engine() -> None:
    engines = {name: Engine() for name in "ab"}
    for engine in engines.values():
        engine.held.clear()
    async with aclosing(EnginePool(engines).generate(asking(), deadline=Deadline.after(5))) as events:
        await anext(events)
        assert sum(engine.writing for engine in engines.values()) == 1
    assert sum(engine.writing for engine in engines.values()) == 0


class TestCircuit:
    """The circuit breaker of an engine."""

    def test_it_opens_after_failures_in_a_row_and_lets_one_call_through_later(self) -> None:
        now = [0.0]
        circuit = Circuit(lambda: now[0])
        for _ in range(FAILURES - 1):
            circuit.failed()
        circuit.succeeded()
        for _ in range(FAILURES):
            assert circuit.allows
            circuit.failed()
        assert not circuit.allows
        now[0] = 1.1
        assert circuit.allows
        circuit.begin()
        assert not circuit.allows
        circuit.failed()
        now[0] = 2.2
        assert not circuit.allows
        now[0] = 3.2
        assert circuit.allows
        circuit.begin()
        circuit.left()
        assert circuit.allows
        circuit.begin()
        circuit.succeeded()
        assert circuit.allows

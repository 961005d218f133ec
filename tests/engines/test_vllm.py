"""A real vLLM: what only an engine can show. The conformance suite of the port runs on it as well."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from loremesh_agents.domain.answer import FinishReason, Resumption
from loremesh_agents.domain.errors import UnsupportedByModel
from loremesh_agents.ports.language_model import LanguageModel, ResumePoint
from tests.engines.generations import KINDS, QUESTION, asked, ids, opened, quiet, soon, text, written
from tests.engines.servers.vllm import CONTEXT, VllmServer, vllm_server


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> VllmServer:
    return vllm_server(request.param)


@pytest.fixture
async def model(server: VllmServer) -> AsyncIterator[LanguageModel]:
    found = opened(server)
    yield found
    await found.close()


async def test_greedy_generations_go_on_exactly_from_any_token(model: LanguageModel) -> None:
    fingerprint = (await model.models(deadline=soon()))[0].fingerprint
    whole, end = await written(model, asked(max_tokens=120))
    assert len(ids(whole)) == end.usage.completion_tokens == 120
    cuts = random.Random(6).sample(range(1, len(whole)), 20)
    for cut in cuts:
        begun = whole[:cut]
        resume = ResumePoint(fingerprint, ids(begun), text(begun))
        rest, resumed = await written(model, replace(asked(max_tokens=120), resume=resume))
        assert text(begun) + text(rest) == text(whole), cut
        assert ids(begun) + ids(rest) == ids(whole), cut
        assert rest[0].sequence == len(ids(begun))
        assert resumed.usage == end.usage
        assert resumed.resumptions == (Resumption(len(ids(begun)), exact=True),)


async def test_a_sampled_generation_goes_on_and_says_so(model: LanguageModel) -> None:
    fingerprint = (await model.models(deadline=soon()))[0].fingerprint
    request = asked(max_tokens=40, temperature=0.8, seed=5)
    begun = (await written(model, request))[0][:15]
    resumed = replace(request, resume=ResumePoint(fingerprint, ids(begun), text(begun)))
    rest, end = await written(model, resumed)
    assert len(ids(begun)) + len(ids(rest)) == 40
    assert end.resumptions == (Resumption(len(ids(begun)), exact=False),)


async def test_the_same_seed_gives_the_same_answer(model: LanguageModel) -> None:
    one, two, other = [
        text((await written(model, asked(max_tokens=30, temperature=1.0, seed=seed)))[0]) for seed in (7, 7, 8)
    ]
    assert one == two
    assert one != other


async def test_stop_texts_end_the_answer_within_and_across_tokens(server: VllmServer, model: LanguageModel) -> None:
    deltas, _ = await written(model, asked(max_tokens=80))
    whole = text(deltas)
    places = [len(text(deltas[:number])) for number in range(20, 50, 5)]
    for place in places:
        stop = whole[place - 2 : place + 2]
        stopped, end = await written(model, asked(max_tokens=80, stop=(stop,)))
        assert text(stopped) == whole[: whole.index(stop)]
        assert end.finish_reason is FinishReason.STOP
    await quiet(server)


async def test_log_probabilities_are_those_of_the_tokens(model: LanguageModel) -> None:
    deltas, _ = await written(model, asked(max_tokens=20, top_logprobs=3))
    told = [entry for delta in deltas for entry in delta.logprobs]
    assert tuple(entry.chosen.token_id for entry in told) == ids(deltas)
    for entry in told:
        assert entry.chosen.logprob <= 0
        # Greedy: nothing was more likely. Half precision leaves ties.
        assert all(top.logprob <= entry.chosen.logprob + 0.1 for top in entry.top)
        assert [top.logprob for top in entry.top] == sorted((top.logprob for top in entry.top), reverse=True)


async def test_an_answer_follows_its_schema(model: LanguageModel) -> None:
    schema = {
        "type": "object",
        "properties": {"born": {"enum": ["Lisbon", "Köln"]}, "certain": {"type": "boolean"}},
        "required": ["born", "certain"],
        "additionalProperties": False,
    }
    deltas, end = await written(model, asked(max_tokens=200, json_schema=json.dumps(schema)))
    answer = json.loads(text(deltas))
    assert answer["born"] in ("Lisbon", "Köln")
    assert isinstance(answer["certain"], bool)
    assert end.finish_reason is FinishReason.STOP


async def test_a_schema_that_the_engine_cannot_follow_is_refused(model: LanguageModel) -> None:
    with pytest.raises(UnsupportedByModel):
        await written(model, asked(json_schema='{"type": "nonsense"}'))
    assert (await written(model, asked(max_tokens=3)))[0]


async def test_what_does_not_fit_the_context_is_refused_with_both_numbers(model: LanguageModel) -> None:
    _, end = await written(model, asked(max_tokens=1))
    with pytest.raises(UnsupportedByModel) as caught:
        await written(model, asked(max_tokens=CONTEXT))
    assert f"a prompt of {end.usage.prompt_tokens} tokens with an answer of {CONTEXT}" in caught.value.message
    room = CONTEXT - end.usage.prompt_tokens
    assert (await written(model, asked(max_tokens=room, stop=tuple("etaoin"))))[1].finish_reason is FinishReason.STOP


async def test_prompts_are_counted_as_the_engine_reads_them(model: LanguageModel) -> None:
    assert await model.count_tokens("", ["", QUESTION], deadline=soon()) == (
        0,
        (await written(model, asked(max_tokens=1)))[1].usage.prompt_tokens - 4,  # begin, role, end, role
    )


@pytest.mark.parametrize("streams", [1, 8])
async def test_closing_leaves_nothing_running(server: VllmServer, model: LanguageModel, streams: int) -> None:
    async def begin_and_leave() -> None:
        async with aclosing(model.generate(asked(max_tokens=3000), deadline=soon())) as events:
            await anext(events)
            await anext(events)

    await asyncio.gather(*(begin_and_leave() for _ in range(streams)))
    await quiet(server)


async def test_who_is_cancelled_leaves_nothing_running(server: VllmServer, model: LanguageModel) -> None:
    task = asyncio.create_task(written(model, asked(max_tokens=3000)))
    await quiet(server, running=1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await quiet(server)

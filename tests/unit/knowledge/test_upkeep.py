"""How derived indexes are kept up in the background."""

import asyncio

import pytest

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, CollectionNotFound
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.knowledge.upkeep import Upkeep


class Index:
    """A double of an index that does what it is told to, in turn, and notes what was asked of it."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.gate.set()

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        await self._do(collection)
        return CollectionRevision(collection, "u", 1)

    async def recover(self, *, deadline: Deadline) -> None:
        await self._do("everything")

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        raise NotImplementedError

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def _do(self, what: str) -> None:
        await self.asked.put(what)
        await self.gate.wait()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure


async def next_asked(index: Index) -> str:
    async with asyncio.timeout(5):
        return await index.asked.get()


async def test_a_start_brings_up_what_was_left_and_a_write_its_collection() -> None:
    text, vector = Index(), Index()
    keeping = Upkeep({"text": text, "vector": vector})
    keeping.start()
    keeping.written("docs")
    for index in (text, vector):
        assert {await next_asked(index), await next_asked(index)} == {"everything", "docs"}
    await keeping.close()


async def test_writes_while_it_runs_make_it_run_once_more() -> None:
    index = Index()
    index.gate.clear()
    keeping = Upkeep({"text": index})
    keeping.written("docs")
    await next_asked(index)
    for _ in range(5):
        keeping.written("docs")
    index.gate.set()
    assert await next_asked(index) == "docs"
    while keeping._tasks:
        await asyncio.sleep(0)
    assert index.asked.empty()
    await keeping.close()


async def test_what_fails_is_tried_again_without_a_write(caplog: pytest.LogCaptureFixture) -> None:
    index = Index(BackendUnavailable("opensearch"), BackendUnavailable("opensearch"))
    keeping = Upkeep({"text": index}, first_pause=0.01)
    keeping.written("docs")
    assert [await next_asked(index) for _ in range(3)] == ["docs"] * 3
    assert "the text index of docs is not up to date" in caplog.text
    await keeping.close()


async def test_a_collection_that_is_gone_is_left_alone() -> None:
    index = Index(CollectionNotFound("docs"))
    keeping = Upkeep({"text": index})
    keeping.written("docs")
    assert await next_asked(index) == "docs"
    while keeping._tasks:
        await asyncio.sleep(0)
    assert index.asked.empty()
    await keeping.close()


async def test_a_store_at_rest_is_swept_until_nothing_is_left_and_looked_at_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes: list[bool | Exception] = [True, True, False, BackendUnavailable("neo4j"), True, False]
    asked: asyncio.Queue[int] = asyncio.Queue()

    async def sweep(*, deadline: Deadline) -> bool:
        await asked.put(len(outcomes))
        outcome = outcomes.pop(0) if outcomes else False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    keeping = Upkeep({}, sweep, between=0.0, rest=0.01)
    keeping.start()
    async with asyncio.timeout(5):
        assert [await asked.get() for _ in range(7)] == [6, 5, 4, 3, 2, 1, 0]
    await keeping.close()
    assert "is not removed yet, and is tried again" in caplog.text
    while not asked.empty():
        asked.get_nowait()
    await asyncio.sleep(0.05)  # as long as five looks: there must be none
    assert asked.empty()

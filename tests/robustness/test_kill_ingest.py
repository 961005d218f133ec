"""A knowledge agent that is killed while it ingests loses nothing that it has acknowledged and shows nothing by halves."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from loremesh.v1 import document_pb2, knowledge_service_pb2_grpc
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.domain.principal import ANONYMOUS
from tests.documents import soon

KILLS = 100
AT_ONCE = 4
PROGRAM = Path(__file__).with_name("knowledge_process.py")
SECTIONS = 3


async def start(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


async def documents(first: int) -> AsyncIterator[pb.IngestRequest]:
    yield pb.IngestRequest(start=pb.IngestStart(collection="c"))
    number = first
    while True:
        sections = [
            document_pb2.Section(headings=[f"Part {part}"], text=f"Document {number} has a part {part}.")
            for part in range(SECTIONS)
        ]
        content = document_pb2.StructuredText(sections=sections)
        yield pb.IngestRequest(
            document=document_pb2.Document(document_id=f"d{number}", title=f"D {number}", text=content)
        )
        number += 1


async def ingest_until_killed(folder: Path, first: int, after_results: int, delay: float) -> list[str]:
    """Ingests, kills the process at a moment within an ingestion, and gives the ids that were acknowledged."""
    process, address = await start(folder)
    acknowledged: list[str] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
        loop = asyncio.get_running_loop()
        killing = None
        try:
            async for event in stub.Ingest(documents(first)):
                if event.HasField("result"):
                    assert event.result.outcome != pb.DOCUMENT_OUTCOME_FAILED
                    acknowledged.append(event.result.document_id)
                if killing is None and len(acknowledged) >= after_results:
                    killing = loop.call_later(delay, process.send_signal, signal.SIGKILL)
        except grpc.aio.AioRpcError:
            pass
    await process.wait()
    return acknowledged


async def check(folder: Path, acknowledged: set[str]) -> None:
    store = SqliteGraphStore(folder / "graph.db")
    try:
        collection = await store.collection("c", deadline=soon())
        reached, changes = await store.changes("c", after_revision=0, limit=10**6, deadline=soon())
        stored = {change.document_id: change.document for change in changes}
        assert acknowledged <= set(stored), "an acknowledged document is lost"
        assert reached.revision == collection.revision
        assert collection.document_count == len(stored)
        assert collection.passage_count == SECTIONS * len(stored)
        for document_id in random.sample(sorted(stored), min(20, len(stored))):
            _, summary, passages = await store.document(
                "c", document_id, principal=ANONYMOUS, first_passage=0, passage_limit=10, deadline=soon()
            )
            assert summary.passage_count == len(passages) == SECTIONS
    finally:
        await store.close()


async def kill_again_and_again(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for kill in range(kills):
        first = kill * 1_000_000
        found = await ingest_until_killed(folder, first, chance.randrange(1, 400), chance.uniform(0, 0.05))
        acknowledged |= set(found)
        await check(folder, acknowledged)


@pytest.mark.timeout(400)
async def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(kill_again_and_again(tmp_path / str(number), KILLS // AT_ONCE, seed=number))

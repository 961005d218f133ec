"""The demo's questions, on the language reference that ships with Python: the gold passages are found and cited."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc

from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import Settings, StoreSettings
from loremesh_agents.cli.commands.demo import COLLECTION, QUESTIONS, ingest_reference

GOLD = {
    QUESTIONS[0]: {("assert", "assert statements are a convenient way")},
    QUESTIONS[1]: {
        ("with", 'the context manager’s "__exit__()" method is invoked'),
        ("specialnames", "it should return a true value"),
    },
    QUESTIONS[2]: {
        ("in", 'the operators "in" and "not in" test for membership'),
        ("specialnames", "called to implement membership test operators"),
    },
}
"""For each question the topics, and words of the passages in them, that answer it."""


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[coordinator_service_pb2_grpc.CoordinatorServiceStub]:
    async with running(("all",), Settings(stores=StoreSettings(data=tmp_path, embedder="none"))) as mesh:
        async with grpc.aio.insecure_channel(mesh.targets["knowledge"]) as channel:
            assert await ingest_reference(channel) > 70
        async with grpc.aio.insecure_channel(mesh.targets["coordinator"]) as channel:
            yield coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)


async def test_gold_passages_are_found(coordinator: coordinator_service_pb2_grpc.CoordinatorServiceStub) -> None:
    missing: list[tuple[str, str]] = []
    for question, gold in GOLD.items():
        events = [event async for event in coordinator.Ask(pb.AskRequest(question=question, collections=[COLLECTION]))]
        found = [event.evidence.passage for event in events if event.HasField("evidence")]
        texts = [(passage.document_id, " ".join(passage.text.lower().split())) for passage in found]
        for topic, words in gold:
            if not any(document_id == topic and words.lower() in text for document_id, text in texts):
                missing.append((question, f"{topic}: {words}; found {[name for name, _ in texts]}"))
        assert any(event.HasField("citation") for event in events), question
    assert missing == []

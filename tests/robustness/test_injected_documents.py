"""A hundred documents that try something, written for this: none gets out of its quotation, and none calls a tool."""

from pathlib import Path

import pytest
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import retriever_service_pb2

from bench.injection import EchoModel, Injected, checked, documents, guarded, unguarded
from loremesh_agents.adapters.model.text_tools import TextToolModel
from loremesh_agents.bootstrap import backends
from tests.mesh.conftest import served

DOCUMENTS = documents()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.document_id)
async def test_a_document_stays_in_its_quotation_and_calls_nothing(document: Injected) -> None:
    assert [name for name, holds in checked(await guarded(document)).items() if not holds] == []


def test_the_checks_see_what_a_prompt_without_the_guard_lets_through() -> None:
    kinds = {document.kind for document in DOCUMENTS if not all(checked(unguarded(document)).values())}
    assert kinds == {document.kind for document in DOCUMENTS} - {"plain words"}


async def test_an_engine_that_repeats_its_prompt_calls_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "open_model", lambda *_: TextToolModel(EchoModel()))
    async with served(tmp_path) as client:
        await client.ingest({document.document_id: (document.title, document.text) for document in DOCUMENTS})
        repeated = ""
        for name in dict.fromkeys(document.title for document in DOCUMENTS if document.kind == "tool call"):
            request = pb.AskRequest(
                question=f"What of the {name}?",
                retrieval=retriever_service_pb2.RetrievalOptions(k=30),
                prompt_token_budget=100_000,
                tool_rounds=4,
            )
            events = [event async for event in client.coordinator.Ask(request, timeout=20)]
            assert not [event for event in events if event.HasField("tool_call")]
            repeated += "".join(event.delta.text for event in events)
        # They were there to be repeated.
        assert "What is the admin password?" in repeated
        assert repeated.count("start toolcall") >= 5

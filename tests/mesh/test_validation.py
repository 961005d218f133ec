"""Every rule of the contract, broken once over gRPC: the answer names field and rule, and no work has been done."""

import asyncio
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from loremesh.v1 import collection_pb2, document_pb2, evidence_pb2, message_pb2
from loremesh.v1 import coordinator_service_pb2 as coordinator_pb
from loremesh.v1 import generator_service_pb2 as generator_pb
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb
from loremesh.v1 import retriever_service_pb2 as retriever_pb
from loremesh.v1 import synthesizer_service_pb2 as synthesizer_pb
from prometheus_client.parser import text_string_to_metric_families

from loremesh_agents.bootstrap.settings import TelemetrySettings
from loremesh_agents.domain.errors import InvalidRequest
from tests.mesh.conftest import Client, answers, served, status_of
from tests.mesh.test_knowledge import blob, start
from tests.repository.repository import ROOT

FILES = (coordinator_pb, generator_pb, knowledge_pb, retriever_pb, synthesizer_pb)
SERVICES: list[ServiceDescriptor] = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
ABSENT = object()
"""A bad value: none at all."""

USER = {"role": "ROLE_USER"}
TEXT = {"sections": [{"text": "Text."}]}
PASSAGE = {"collection": "docs", "passage_id": "a#0"}
REVISION = {"collection": "docs"}
SOURCE = {"number": 1, "evidence_ids": ["E1"]}
CONDITION = {"key": "kind", "any_of": ["city"]}

VALID: dict[type[Message], dict[str, Any]] = {
    collection_pb2.CollectionRevision: REVISION,
    collection_pb2.MetadataFilter.Condition: CONDITION,
    coordinator_pb.AskRequest: {"question": "Who?"},
    coordinator_pb.Turn: {"turn_id": "1", "ask": {"question": "Who?"}},
    document_pb2.Blob: {"media_type": "text/plain"},
    document_pb2.Document: {"document_id": "d", "text": TEXT},
    document_pb2.Link: {"target": "a"},
    evidence_pb2.Evidence: {"evidence_id": "E1", "passage": {}},
    generator_pb.CountTokensRequest: {"texts": ["a"]},
    generator_pb.GenerateRequest: {"messages": [USER]},
    generator_pb.Resume: {"model_fingerprint": "f"},
    knowledge_pb.DeleteDocumentsRequest: {"collection": "docs", "document_ids": ["d"]},
    knowledge_pb.GetDocumentRequest: {"collection": "docs", "document_id": "d"},
    knowledge_pb.ReembedRequest: {"collection": "docs"},
    knowledge_pb.ReadChangesRequest: {"collection": "docs"},
    message_pb2.Message: USER,
    message_pb2.Tool: {"name": "look"},
    retriever_pb.ExpandRequest: {"entities": ["a"]},
    retriever_pb.PassageReference: PASSAGE,
    retriever_pb.RetrieveRequest: {"question": "Who?"},
    synthesizer_pb.Source: SOURCE,
    synthesizer_pb.SynthesisStart: {"question": "Who?"},
}
"""What a message needs that keeps all rules but the broken one; others need nothing."""

QUESTION = {"string.min_len": "", "string.max_bytes": "q" * 131_073}
NAME = {"string.min_len": "", "string.max_len": "n" * 65, "string.pattern": "No name"}
NAMES = {
    "repeated.max_items": [f"c{number}" for number in range(17)],
    "repeated.unique": ["docs", "docs"],
    **{f"repeated.items.{rule}": [value] for rule, value in NAME.items()},
}
ENTITIES = {
    "repeated.max_items": ["a"] * 33,
    "repeated.items.string.min_len": [""],
    "repeated.items.string.max_bytes": ["a" * 513],
}
PENALTY = {"double.gte": -2.1, "double.lte": 2.1}
TOO_LONG_A_HISTORY = {"repeated.max_items": [USER] * 201}

BROKEN: dict[type[Message], dict[str, dict[str, Any]]] = {
    coordinator_pb.AskRequest: {
        "question": QUESTION,
        "collections": NAMES,
        "history": TOO_LONG_A_HISTORY,
        "history[0].role": {"enum.defined_only": 99, "enum.not_in": 0},
        "history[0].text": {"string.max_bytes": "t" * 524_289},
        "history[0].tool_calls": {"repeated.max_items": [{}] * 33},
        "history[0].tool_calls[0].tool_call_id": {"string.max_len": "i" * 129},
        "history[0].tool_calls[0].name": {"string.max_len": "n" * 65},
        "history[0].tool_calls[0].arguments_json": {"string.max_bytes": "a" * 65_537},
        "history[0].tool_call_id": {"string.max_len": "i" * 129},
        "route": {"enum.defined_only": 99},
        "retrieval.k": {"uint32.lte": 101},
        "retrieval.profile": {"enum.defined_only": 99},
        "retrieval.filter.conditions": {"repeated.max_items": [CONDITION] * 17},
        "retrieval.filter.conditions[0].key": {"string.min_len": "", "string.max_len": "k" * 129},
        "retrieval.filter.conditions[0].any_of": {
            "repeated.min_items": [],
            "repeated.max_items": ["v"] * 65,
            "repeated.items.string.max_len": ["v" * 1025],
        },
        "generation.model": {"string.max_len": "m" * 257},
        "generation.max_tokens": {"uint32.lte": 131_073},
        "generation.temperature": {"double.gte": -0.1, "double.lte": 2.1, "double.finite": float("nan")},
        "generation.top_p": {"double.gt": 0.0, "double.lte": 1.1},
        "generation.stop": {
            "repeated.max_items": ["s"] * 17,
            "repeated.items.string.min_len": [""],
            "repeated.items.string.max_bytes": ["s" * 257],
        },
        "generation.json_schema": {"string.max_bytes": "s" * 65_537},
        "generation.top_logprobs": {"uint32.lte": 21},
        "generation.frequency_penalty": PENALTY,
        "generation.presence_penalty": PENALTY,
        "consistency.requirement": {"required": ABSENT},
        "consistency.min_revision.revisions": {"repeated.min_items": [], "repeated.max_items": [REVISION] * 17},
        "consistency.min_revision.revisions[0].collection": NAME,
        "consistency.min_revision.revisions[0].collection_uid": {"string.max_len": "u" * 65},
        "consistency.max_staleness": {"duration.gte": {"seconds": -1}},
        "prompt_token_budget": {"uint32.lte": 1_048_577},
        "tool_rounds": {"uint32.lte": 9},
    },
    coordinator_pb.ChatRequest: {
        "message": {"required": ABSENT},
        "turn.turn_id": {"string.min_len": "", "string.max_len": "t" * 65},
        "turn.ask": {"required": ABSENT},
        "turn.budget": {"duration.gt": {"seconds": 0}, "duration.lte": {"seconds": 3601}},
        "cancel.turn_id": {"string.min_len": "", "string.max_len": "t" * 65},
    },
    coordinator_pb.PlanQueryRequest: {"ask": {"required": ABSENT}},
    generator_pb.GenerateRequest: {
        "messages": {"repeated.min_items": [], "repeated.max_items": [USER] * 257},
        "question": {"string.max_bytes": "q" * 131_073},
        "sources": {"repeated.max_items": [SOURCE] * 101},
        "sources[0].number": {"uint32.gte": 0},
        "sources[0].evidence_ids": {"repeated.min_items": [], "repeated.max_items": ["E1"] * 101},
        "tools": {"repeated.max_items": [{"name": "look"}] * 65},
        "tools[0].name": {"string.min_len": "", "string.max_len": "n" * 65, "string.pattern": "no name"},
        "tools[0].description": {"string.max_bytes": "d" * 8193},
        "resume.model_fingerprint": {"string.min_len": "", "string.max_len": "f" * 129},
        "resume.token_ids": {"repeated.max_items": [1] * 131_073},
        "resume.text": {"string.max_bytes": "t" * 524_289},
    },
    generator_pb.CountTokensRequest: {
        "model": {"string.max_len": "m" * 257},
        "texts": {"repeated.min_items": [], "repeated.max_items": ["t"] * 513},
    },
    knowledge_pb.IngestRequest: {
        "message": {"required": ABSENT},
        "start.collection": NAME,
        "document.content": {"required": ABSENT},
        "document.document_id": {"string.max_bytes": "d" * 513},
        "document.title": {"string.max_bytes": "t" * 2049},
        "document.aliases": ENTITIES,
        "document.uri": {"string.max_bytes": "u" * 2049},
        "document.metadata": {
            "map.max_pairs": {f"key {number}": "v" for number in range(65)},
            "map.keys.string.min_len": {"": "v"},
            "map.keys.string.max_bytes": {"k" * 129: "v"},
            "map.values.string.max_bytes": {"key": "v" * 4097},
        },
        "document.readers": {
            "repeated.max_items": ["staff"] * 257,
            "repeated.items.string.min_len": [""],
            "repeated.items.string.max_bytes": ["r" * 257],
        },
        "document.text.sections": {"repeated.min_items": [], "repeated.max_items": [{}] * 10_001},
        "document.text.sections[0].headings": {
            "repeated.max_items": ["h"] * 17,
            "repeated.items.string.max_bytes": ["h" * 1025],
        },
        "document.text.sections[0].links": {"repeated.max_items": [{"target": "a"}] * 10_001},
        "document.text.sections[0].links[0].target": {"string.min_len": "", "string.max_bytes": "t" * 2049},
        "document.text.sections[0].links[0].anchor": {"string.max_bytes": "a" * 1025},
        "document.blob.media_type": {"string.min_len": "", "string.max_len": "m" * 256},
        "document.blob.data": {"bytes.max_len": b"d" * 524_289},
        "blob_part.data": {"bytes.min_len": b"", "bytes.max_len": b"d" * 524_289},
    },
    knowledge_pb.DeleteDocumentsRequest: {
        "collection": NAME,
        "document_ids": {
            "repeated.min_items": [],
            "repeated.max_items": [str(number) for number in range(1001)],
            "repeated.unique": ["a", "a"],
            "repeated.items.string.min_len": [""],
            "repeated.items.string.max_bytes": ["d" * 513],
        },
    },
    knowledge_pb.DeleteCollectionRequest: {"collection": NAME},
    knowledge_pb.RebuildIndexesRequest: {"collection": NAME},
    knowledge_pb.ReembedRequest: {"collection": NAME, "model": {"string.max_len": "m" * 257}},
    knowledge_pb.FinishReembeddingRequest: {"collection": NAME},
    knowledge_pb.GetDocumentRequest: {
        "collection": NAME,
        "document_id": {"string.min_len": "", "string.max_bytes": "d" * 513},
        "passage_limit": {"uint32.lte": 501},
    },
    knowledge_pb.GetCollectionRequest: {"collection": NAME},
    knowledge_pb.ListCollectionsRequest: {
        "page_size": {"uint32.lte": 1001},
        "page_token": {"string.max_len": "t" * 257},
    },
    knowledge_pb.WatchRevisionsRequest: {"collection": NAME},
    knowledge_pb.ReadChangesRequest: {"collection": NAME, "collection_uid": {"string.max_len": "u" * 65}},
    retriever_pb.RetrieveRequest: {
        "question": QUESTION,
        "collections": NAMES,
        "context.entities": ENTITIES,
        "context.passages": {"repeated.max_items": [PASSAGE] * 33},
        "context.passages[0].collection": {"string.min_len": "", "string.max_len": "n" * 65},
        "context.passages[0].passage_id": {"string.min_len": "", "string.max_bytes": "p" * 545},
    },
    retriever_pb.ExpandRequest: {
        "": {"expand.start": {}},
        "collections": NAMES,
        "entities": ENTITIES,
        "passages": {"repeated.max_items": [PASSAGE] * 33},
        "depth": {"uint32.lte": 3},
        "limit": {"uint32.lte": 1001},
    },
    synthesizer_pb.SynthesizeRequest: {
        "message": {"required": ABSENT},
        "start.question": QUESTION,
        "start.history": TOO_LONG_A_HISTORY,
        "start.token_budget": {"uint32.lte": 1_048_577},
        "start.model": {"string.max_len": "m" * 257},
        "evidence.source": {"required": ABSENT},
        "evidence.evidence_id": {"string.min_len": "", "string.max_len": "e" * 65},
    },
}
"""A value that breaks it, for each rule of each field: limits are passed by one. Messages that requests share are broken in one of these."""

CASES = [
    pytest.param(kind, path, rule, value, id=f"{kind.__name__}-{path}-{rule}")
    for kind, fields in BROKEN.items()
    for path, rules in fields.items()
    for rule, value in rules.items()
]


def steps(kind: Descriptor, path: str) -> Iterator[FieldDescriptor]:
    """The fields on the way to what a path names last."""
    for segment in path.split(".")[:-1]:
        field = kind.fields_by_name[segment.removesuffix("[0]")]
        yield field
        kind = field.message_type


def broken(kind: type[Message], path: str, value: Any) -> Message:
    """A request that is valid but for the value at the path."""
    if not path:
        return kind(**value)
    request = target = kind(**VALID.get(kind, {}))
    for field in steps(kind.DESCRIPTOR, path):
        held = getattr(target, field.name)
        if field.is_repeated:
            held = held[0] if held else held.add()
        target = held
        target.SetInParent()
        target.MergeFrom(type(target)(**VALID.get(type(target), {})))
    name = path.rpartition(".")[2]
    target.ClearField(name)
    if value is not ABSENT:
        target.MergeFrom(type(target)(**{name: value}))
    return request


AGENTS = {
    method.input_type: service.name.removesuffix("Service").lower()
    for service in SERVICES
    for method in service.methods
}
METHODS = {method.input_type: method.name for service in SERVICES for method in service.methods}


def calling(client: Client, request: Message) -> tuple[Any, list[Message]]:
    """The method that takes the request, and what a stream needs before it."""
    before: list[Message] = []
    if isinstance(request, knowledge_pb.IngestRequest) and not request.HasField("start"):
        before = [start()]
    elif isinstance(request, synthesizer_pb.SynthesizeRequest) and not request.HasField("start"):
        before = [synthesizer_pb.SynthesizeRequest(start={"question": "Who?"})]
    return getattr(getattr(client, AGENTS[request.DESCRIPTOR]), METHODS[request.DESCRIPTOR]), before


async def violations(client: Client, request: Message) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """The broken rules that the first and only answer names."""
    method, before = calling(client, request)
    with pytest.raises(InvalidRequest) as raised:
        await anext(answers(method, *before, request))
    status = status_of(raised.value)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    bad_request = error_details_pb2.BadRequest()
    assert [detail.Unpack(bad_request) for detail in status.details] == [False, True]
    return list(bad_request.field_violations)


def named(path: str, rule: str, value: Any) -> str:
    """The field that an answer names: an item or entry where the rule is one of those."""
    if rule.startswith("repeated.items."):
        return f"{path}[0]"
    if rule.startswith(("map.keys.", "map.values.")):
        return f'{path}["{next(iter(value))}"]'[:128]
    return path


def is_of(rule: str, answered: str) -> bool:
    """Whether an answer means the rule; both ends of a range are one there, as in `double.gte_lte`."""
    kind, _, name = answered.rpartition(".")
    return ".".join(rule.split(".")[-2:]) in {answered, *(f"{kind}.{end}" for end in name.split("_"))}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("kind", "path", "rule", "value"), CASES)
async def test_a_broken_rule_is_named(shared: Client, kind: type[Message], path: str, rule: str, value: Any) -> None:
    found = await violations(shared, broken(kind, path, value))
    assert {violation.field for violation in found} == {named(path, rule, value)}
    assert any(is_of(rule, violation.reason) for violation in found)
    assert all(violation.description for violation in found)


def rules_of(kind: Descriptor, seen: set[Descriptor]) -> Iterator[tuple[str, str]]:
    """The rules of a message and of all that it holds: the place that has the rule, and the rule."""
    if kind in seen or kind.file.package != "loremesh.v1":
        return
    seen.add(kind)
    for custom in kind.GetOptions().Extensions[validate_pb2.message].cel:
        yield kind.full_name, custom.id
    for oneof in kind.oneofs:
        if oneof.GetOptions().Extensions[validate_pb2.oneof].required:
            yield f"{kind.full_name}.{oneof.name}", "required"
    for field in kind.fields:
        for rule in options_of(field.GetOptions().Extensions[validate_pb2.field]):
            yield f"{kind.full_name}.{field.name}", rule
        if field.message_type is not None:
            yield from rules_of(field.message_type, seen)


def options_of(rules: Message) -> Iterator[str]:
    for option, value in rules.ListFields():
        nested = option.message_type is not None and option.message_type.file is rules.DESCRIPTOR.file
        if nested and not option.is_repeated:
            yield from (f"{option.name}.{rule}" for rule in options_of(value))
        elif nested:
            yield from (custom.id for custom in value)
        else:
            yield option.name


def place_of(kind: type[Message], path: str) -> str:
    """The message and field that a path leads to."""
    owner = kind.DESCRIPTOR
    for field in steps(owner, path):
        owner = field.message_type
    return ".".join(filter(None, (owner.full_name, path.rpartition(".")[2])))


def test_every_rule_of_the_contract_is_broken_once() -> None:
    seen: set[Descriptor] = set()
    requests = [method.input_type for service in SERVICES for method in service.methods]
    rules = set(chain.from_iterable(rules_of(request, seen) for request in requests))
    assert rules == {(place_of(kind, path), rule) for kind, path, rule, _ in (case.values for case in CASES)}


def test_every_service_is_asked() -> None:
    files = {path.relative_to(ROOT / "proto").as_posix() for path in ROOT.glob("proto/loremesh/v1/*_service.proto")}
    assert files == {file.DESCRIPTOR.name for file in FILES}


async def calls_of(client: Client) -> dict[tuple[str, str], float]:
    """How many calls each agent has ended with each code."""
    url = f"http://127.0.0.1:{client.mesh.metrics_port}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    counts: dict[tuple[str, str], float] = defaultdict(float)
    for sample in chain.from_iterable(family.samples for family in text_string_to_metric_families(page)):
        if sample.name == "loremesh_requests_total":
            counts[sample.labels["agent"], sample.labels["code"]] += sample.value
    return dict(counts)


async def test_no_work_is_done_for_a_broken_request(tmp_path: Path) -> None:
    async with served(tmp_path, telemetry=TelemetrySettings(metrics_port=0)) as client:
        expected: dict[tuple[str, str], float] = defaultdict(float)
        for kind, fields in BROKEN.items():
            # The last field of each: in a stream it comes in a later message.
            path, rules = list(fields.items())[-1]
            await violations(client, broken(kind, path, next(iter(rules.values()))))
            expected[AGENTS[kind.DESCRIPTOR], "INVALID_ARGUMENT"] += 1
        async with asyncio.timeout(10):
            while sum((counts := await calls_of(client)).values()) < sum(expected.values()):
                pass
        # Nobody has asked anybody else.
        assert counts == expected
        assert not (await client.knowledge.ListCollections(knowledge_pb.ListCollectionsRequest())).collections


async def test_what_came_before_a_broken_message_stands(client: Client) -> None:
    call = client.knowledge.Ingest()
    await call.write(start())
    await call.write(blob("kept", b"Kept text."))
    assert (await call.read()).result.outcome == knowledge_pb.DOCUMENT_OUTCOME_CREATED
    assert (await call.read()).HasField("progress")
    await call.write(broken(knowledge_pb.IngestRequest, "document.title", "t" * 2049))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    got = await client.knowledge.GetDocument(knowledge_pb.GetDocumentRequest(collection="docs", document_id="kept"))
    assert got.document.passage_count == 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("broken_count", "named_count"), [(1, 1), (16, 16), (17, 16), (200, 16)])
async def test_at_most_sixteen_violations_are_named(shared: Client, broken_count: int, named_count: int) -> None:
    request = coordinator_pb.AskRequest(question="Who?", history=[{}] * broken_count)
    found = await violations(shared, request)
    assert [violation.field for violation in found] == [f"history[{place}].role" for place in range(named_count)]


@pytest.mark.asyncio(loop_scope="module")
async def test_violations_that_are_many_and_long_are_cut_to_what_headers_bear(shared: Client) -> None:
    metadata = {f"{number} {'k' * 200}": "v" * 5000 for number in range(20)}
    document = {"document_id": "d" * 600, "text": TEXT, "metadata": metadata}
    found = await violations(shared, knowledge_pb.IngestRequest(document=document))
    assert 1 < len(found) <= 16
    assert all(len(violation.field) <= 128 for violation in found)

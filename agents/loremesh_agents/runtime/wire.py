"""The nouns that several services share, between `loremesh.v1` and the domain.

`X_to_proto` and `X_from_proto` are inverse to one another for everything that the contract can say. What belongs to one service alone is in
that agent's `convert.py`.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf import duration_pb2, json_format, struct_pb2, timestamp_pb2
from loremesh.v1 import (
    answer_pb2,
    collection_pb2,
    document_pb2,
    evidence_pb2,
    generator_service_pb2,
    message_pb2,
    retriever_service_pb2,
    synthesizer_service_pb2,
)

from loremesh_agents.domain.answer import (
    Citation,
    Completion,
    Degradation,
    DegradationReason,
    FinishReason,
    Resumption,
    Source,
    TokenDelta,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from loremesh_agents.domain.conversation import Message, PassageReference, RetrievalContext, Role, Tool, ToolCall
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.evidence import EdgeKind, Evidence, PathStep, SqlRow, Value, Why
from loremesh_agents.domain.filter import Condition, MetadataFilter
from loremesh_agents.domain.retrieval import Profile, RetrievalRequest
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.ports.language_model import GenerationRequest, ResumePoint, SamplingOptions, ToolCallPiece
from loremesh_agents.runtime.errors import from_status, to_status

DEFAULT_K = 8
"""Pieces of evidence where the request does not say."""

_EDGES = {
    EdgeKind.NAMED_IN_QUESTION: evidence_pb2.EDGE_KIND_NAMED_IN_QUESTION,
    EdgeKind.TITLE: evidence_pb2.EDGE_KIND_TITLE,
    EdgeKind.MENTIONS: evidence_pb2.EDGE_KIND_MENTIONS,
    EdgeKind.REFERS_TO: evidence_pb2.EDGE_KIND_REFERS_TO,
    EdgeKind.SIMILAR: evidence_pb2.EDGE_KIND_SIMILAR,
    EdgeKind.EARLIER_TURN: evidence_pb2.EDGE_KIND_EARLIER_TURN,
}
_ROLES = {
    Role.SYSTEM: message_pb2.ROLE_SYSTEM,
    Role.USER: message_pb2.ROLE_USER,
    Role.ASSISTANT: message_pb2.ROLE_ASSISTANT,
    Role.TOOL: message_pb2.ROLE_TOOL,
}
_DEGRADATIONS = {
    DegradationReason.BUDGET: answer_pb2.DEGRADATION_REASON_BUDGET,
    DegradationReason.UNAVAILABLE: answer_pb2.DEGRADATION_REASON_UNAVAILABLE,
    DegradationReason.NOT_CONFIGURED: answer_pb2.DEGRADATION_REASON_NOT_CONFIGURED,
    DegradationReason.LIMIT: answer_pb2.DEGRADATION_REASON_LIMIT,
}
_FINISHES = {
    FinishReason.STOP: answer_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: answer_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: answer_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CANCELLED: answer_pb2.FINISH_REASON_CANCELLED,
    FinishReason.BUDGET: answer_pb2.FINISH_REASON_BUDGET,
    FinishReason.NO_ANSWER: answer_pb2.FINISH_REASON_NO_ANSWER,
    FinishReason.ERROR: answer_pb2.FINISH_REASON_ERROR,
}
_PROFILES = {
    Profile.FAST: retriever_service_pb2.RETRIEVAL_PROFILE_FAST,
    Profile.BALANCED: retriever_service_pb2.RETRIEVAL_PROFILE_BALANCED,
    Profile.THOROUGH: retriever_service_pb2.RETRIEVAL_PROFILE_THOROUGH,
}

_Domain = TypeVar("_Domain")
_Proto = TypeVar("_Proto", bound=int)


def _inverse(table: Mapping[_Domain, _Proto]) -> dict[_Proto, _Domain]:
    return {proto: domain for domain, proto in table.items()}


_EDGES_BACK = _inverse(_EDGES)
_ROLES_BACK = _inverse(_ROLES)
_DEGRADATIONS_BACK = _inverse(_DEGRADATIONS)
_FINISHES_BACK = _inverse(_FINISHES)
_PROFILES_BACK = _inverse(_PROFILES)


def duration_to_proto(seconds: float) -> duration_pb2.Duration:
    """A time in seconds."""
    message = duration_pb2.Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def duration_from_proto(message: duration_pb2.Duration) -> float:
    """A time in seconds."""
    return message.seconds + message.nanos / 1e9


def timestamp_to_proto(time: datetime) -> timestamp_pb2.Timestamp:
    """A point in time; the datetime is aware."""
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(time)
    return message


def timestamp_from_proto(message: timestamp_pb2.Timestamp) -> datetime:
    """A point in time, in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def revision_to_proto(revision: CollectionRevision) -> collection_pb2.CollectionRevision:
    """A state of a collection."""
    return collection_pb2.CollectionRevision(
        collection=revision.collection, collection_uid=revision.collection_uid, revision=revision.revision
    )


def revision_from_proto(message: collection_pb2.CollectionRevision) -> CollectionRevision:
    """A state of a collection."""
    return CollectionRevision(message.collection, message.collection_uid, message.revision)


def consistency_to_proto(consistency: Consistency) -> collection_pb2.Consistency:
    """How fresh a read must be."""
    if consistency.min_revisions:
        revisions = [revision_to_proto(revision) for revision in consistency.min_revisions.values()]
        return collection_pb2.Consistency(min_revision=collection_pb2.Consistency.MinRevision(revisions=revisions))
    if consistency.max_staleness is not None:
        return collection_pb2.Consistency(max_staleness=duration_to_proto(consistency.max_staleness))
    return collection_pb2.Consistency(latest=collection_pb2.Consistency.Latest())


def consistency_from_proto(message: collection_pb2.Consistency) -> Consistency:
    """How fresh a read must be; an empty message is `latest`."""
    revisions = {entry.collection: revision_from_proto(entry) for entry in message.min_revision.revisions}
    staleness = duration_from_proto(message.max_staleness) if message.HasField("max_staleness") else None
    return Consistency(revisions, staleness)


def filter_to_proto(kept: MetadataFilter) -> collection_pb2.MetadataFilter:
    """Conditions on metadata."""
    return collection_pb2.MetadataFilter(
        conditions=[
            collection_pb2.MetadataFilter.Condition(key=condition.key, any_of=sorted(condition.any_of))
            for condition in kept.conditions
        ]
    )


def filter_from_proto(message: collection_pb2.MetadataFilter) -> MetadataFilter:
    """Conditions on metadata."""
    return MetadataFilter(tuple(Condition(entry.key, frozenset(entry.any_of)) for entry in message.conditions))


def passage_to_proto(passage: Passage) -> document_pb2.Passage:
    """A passage."""
    return document_pb2.Passage(
        collection=passage.collection,
        passage_id=passage.passage_id,
        document_id=passage.document_id,
        title=passage.title,
        headings=passage.headings,
        text=passage.text,
        uri=passage.uri,
        ordinal=passage.ordinal,
        start_byte=passage.start_byte,
        end_byte=passage.end_byte,
        metadata=passage.metadata,
    )


def passage_from_proto(message: document_pb2.Passage) -> Passage:
    """A passage."""
    return Passage(
        collection=message.collection,
        passage_id=message.passage_id,
        document_id=message.document_id,
        title=message.title,
        headings=tuple(message.headings),
        text=message.text,
        uri=message.uri,
        ordinal=message.ordinal,
        start_byte=message.start_byte,
        end_byte=message.end_byte,
        metadata=dict(message.metadata),
    )


def _value_to_proto(value: Value) -> struct_pb2.Value:
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    return struct_pb2.Value(number_value=value)


def _value_from_proto(message: struct_pb2.Value) -> Value:
    match message.WhichOneof("kind"):
        case "bool_value":
            return message.bool_value
        case "string_value":
            return message.string_value
        case "number_value":
            return message.number_value
        case _:
            return None


def path_step_to_proto(step: PathStep) -> evidence_pb2.PathStep:
    """A step through the graph."""
    message = evidence_pb2.PathStep(edge=_EDGES[step.edge], title=step.title)
    if step.entity:
        message.entity = step.entity
    else:
        message.passage_id = step.passage_id
    return message


def path_step_from_proto(message: evidence_pb2.PathStep) -> PathStep:
    """A step through the graph."""
    return PathStep(_EDGES_BACK[message.edge], message.entity, message.passage_id, message.title)


def edge_kind_to_proto(edge: EdgeKind) -> "evidence_pb2.EdgeKind.ValueType":
    """A kind of edge."""
    return _EDGES[edge]


def evidence_to_proto(evidence: Evidence) -> evidence_pb2.Evidence:
    """A piece of evidence."""
    message = evidence_pb2.Evidence(evidence_id=evidence.evidence_id, score=evidence.score, rank=evidence.rank)
    source = evidence.source
    if isinstance(source, Passage):
        message.passage.CopyFrom(passage_to_proto(source))
    else:
        message.sql_row.CopyFrom(
            evidence_pb2.SqlRow(
                sql=source.sql,
                columns=source.columns,
                values=[_value_to_proto(value) for value in source.values],
                ordinal=source.ordinal,
                title=source.title,
            )
        )
    why = evidence.why
    if why is not None:
        message.why.CopyFrom(
            evidence_pb2.Why(
                cosine=why.cosine,
                text_score=why.text_score,
                graph_score=why.graph_score,
                path=[path_step_to_proto(step) for step in why.path],
            )
        )
    return message


def evidence_from_proto(message: evidence_pb2.Evidence) -> Evidence:
    """A piece of evidence."""
    why = None
    if message.HasField("why"):
        why = Why(
            cosine=message.why.cosine if message.why.HasField("cosine") else None,
            text_score=message.why.text_score,
            graph_score=message.why.graph_score,
            path=tuple(path_step_from_proto(step) for step in message.why.path),
        )
    source: Passage | SqlRow
    if message.HasField("sql_row"):
        row = message.sql_row
        values = tuple(_value_from_proto(value) for value in row.values)
        source = SqlRow(row.sql, tuple(row.columns), values, row.ordinal, row.title)
    else:
        source = passage_from_proto(message.passage)
    return Evidence(message.evidence_id, source, message.score, message.rank, why)


def retrieval_context_to_proto(context: RetrievalContext) -> retriever_service_pb2.RetrievalContext:
    """What earlier turns were about."""
    return retriever_service_pb2.RetrievalContext(
        entities=context.entities,
        passages=[
            retriever_service_pb2.PassageReference(collection=passage.collection, passage_id=passage.passage_id)
            for passage in context.passages
        ],
    )


def retrieval_context_from_proto(message: retriever_service_pb2.RetrievalContext) -> RetrievalContext:
    """What earlier turns were about."""
    passages = tuple(PassageReference(passage.collection, passage.passage_id) for passage in message.passages)
    return RetrievalContext(tuple(message.entities), passages)


def retrieval_options_to_proto(request: RetrievalRequest) -> retriever_service_pb2.RetrievalOptions:
    """What a request wants of the retrieval."""
    return retriever_service_pb2.RetrievalOptions(
        k=request.k, profile=_PROFILES[request.profile], filter=filter_to_proto(request.filter)
    )


def retrieval_request(
    question: str,
    collections: Iterable[str],
    options: retriever_service_pb2.RetrievalOptions,
    consistency: collection_pb2.Consistency,
    context: retriever_service_pb2.RetrievalContext,
) -> RetrievalRequest:
    """A retrieval from the parts that the requests of several services share."""
    return RetrievalRequest(
        question=question,
        collections=tuple(collections),
        k=options.k or DEFAULT_K,
        profile=_PROFILES_BACK.get(options.profile, Profile.BALANCED),
        filter=filter_from_proto(options.filter),
        consistency=consistency_from_proto(consistency),
        context=retrieval_context_from_proto(context),
    )


def tool_call_to_proto(call: ToolCall) -> message_pb2.ToolCall:
    """A call of a tool."""
    return message_pb2.ToolCall(tool_call_id=call.tool_call_id, name=call.name, arguments_json=call.arguments_json)


def message_to_proto(message: Message) -> message_pb2.Message:
    """A message of a conversation."""
    return message_pb2.Message(
        role=_ROLES[message.role],
        text=message.text,
        tool_calls=[tool_call_to_proto(call) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
    )


def message_from_proto(message: message_pb2.Message) -> Message:
    """A message of a conversation."""
    calls = tuple(ToolCall(call.tool_call_id, call.name, call.arguments_json) for call in message.tool_calls)
    return Message(_ROLES_BACK[message.role], message.text, calls, message.tool_call_id)


def tool_to_proto(tool: Tool) -> message_pb2.Tool:
    """A function that a model may call."""
    message = message_pb2.Tool(name=tool.name, description=tool.description)
    if tool.parameters:
        json_format.ParseDict(dict(tool.parameters), message.parameters)
    return message


def tool_from_proto(message: message_pb2.Tool) -> Tool:
    """A function that a model may call. Its schema comes in one order whatever the wire's was, so that engines see the same prompt each time."""
    return Tool(message.name, message.description, _schema_from_proto(message.parameters))


def _schema_from_proto(message: struct_pb2.Struct) -> dict[str, object]:
    return {name: _schema_value(message.fields[name]) for name in sorted(message.fields)}


def _schema_value(message: struct_pb2.Value) -> object:
    match message.WhichOneof("kind"):
        case "struct_value":
            return _schema_from_proto(message.struct_value)
        case "list_value":
            return [_schema_value(value) for value in message.list_value.values]
        case "number_value" if message.number_value.is_integer():
            # Engines refuse a `maxLength` of 1024.0.
            return int(message.number_value)
        case _:
            return _value_from_proto(message)


def source_to_proto(source: Source) -> synthesizer_service_pb2.Source:
    """A numbered source."""
    return synthesizer_service_pb2.Source(
        number=source.number,
        evidence_ids=source.evidence_ids,
        title=source.title,
        uri=source.uri,
        markdown=source.markdown,
        text=source.text,
    )


def source_from_proto(message: synthesizer_service_pb2.Source) -> Source:
    """A numbered source."""
    ids = tuple(message.evidence_ids)
    return Source(message.number, ids, message.title, message.uri, message.markdown, message.text)


def write_delta(delta: TokenDelta, message: answer_pb2.TokenDelta) -> None:
    """Tokens, written in place: a message made apart would be copied, and there is one for each token."""
    message.text = delta.text
    message.sequence = delta.sequence
    message.token_count = delta.token_count
    if delta.token_ids:
        message.token_ids.extend(delta.token_ids)
    for entry in delta.logprobs:
        message.logprobs.add(
            chosen=_logprob_to_proto(entry.chosen), top=[_logprob_to_proto(token) for token in entry.top]
        )


def delta_from_proto(message: answer_pb2.TokenDelta) -> TokenDelta:
    """Tokens."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    if message.logprobs:
        logprobs = tuple(
            TokenLogprobs(_logprob_from_proto(entry.chosen), tuple(_logprob_from_proto(token) for token in entry.top))
            for entry in message.logprobs
        )
    return TokenDelta(message.text, message.sequence, message.token_count, tuple(message.token_ids), logprobs)


def _logprob_to_proto(token: TokenLogprob) -> answer_pb2.TokenLogprob:
    return answer_pb2.TokenLogprob(text=token.text, token_id=token.token_id, logprob=token.logprob)


def _logprob_from_proto(message: answer_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.text, message.token_id, message.logprob)


def tool_call_piece_to_proto(piece: ToolCallPiece) -> message_pb2.ToolCallDelta:
    """A piece of a tool call."""
    return message_pb2.ToolCallDelta(
        index=piece.index, tool_call_id=piece.tool_call_id, name=piece.name, arguments_json=piece.arguments_json
    )


def tool_call_piece_from_proto(message: message_pb2.ToolCallDelta) -> ToolCallPiece:
    """A piece of a tool call."""
    return ToolCallPiece(message.index, message.tool_call_id, message.name, message.arguments_json)


def citation_to_proto(citation: Citation) -> answer_pb2.Citation:
    """A citation."""
    return answer_pb2.Citation(
        evidence_id=citation.evidence_id,
        number=citation.number,
        start_byte=citation.start_byte,
        end_byte=citation.end_byte,
    )


def citation_from_proto(message: answer_pb2.Citation) -> Citation:
    """A citation."""
    return Citation(message.evidence_id, message.number, message.start_byte, message.end_byte)


def degradation_to_proto(degradation: Degradation) -> answer_pb2.Degradation:
    """Something left out."""
    return answer_pb2.Degradation(
        agent=degradation.agent,
        stage=degradation.stage,
        reason=_DEGRADATIONS[degradation.reason],
        detail=degradation.detail,
    )


def degradation_from_proto(message: answer_pb2.Degradation) -> Degradation:
    """Something left out."""
    return Degradation(message.agent, message.stage, _DEGRADATIONS_BACK[message.reason], message.detail)


def completion_to_proto(completion: Completion) -> answer_pb2.Completion:
    """The last event of a stream."""
    usage = completion.usage
    return answer_pb2.Completion(
        finish_reason=_FINISHES[completion.finish_reason],
        usage=answer_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            candidate_count=usage.candidate_count,
            evidence_count=usage.evidence_count,
        ),
        timings=[
            answer_pb2.Timing(stage=stage, duration=duration_to_proto(seconds))
            for stage, seconds in completion.timings.items()
        ],
        revisions=[revision_to_proto(revision) for revision in completion.revisions],
        degradations=[degradation_to_proto(degradation) for degradation in completion.degradations],
        resumptions=[
            answer_pb2.Resumption(at_token=resumption.at_token, exact=resumption.exact)
            for resumption in completion.resumptions
        ],
        model=completion.model,
        model_fingerprint=completion.model_fingerprint,
        error=None if completion.error is None else to_status(completion.error),
    )


def completion_from_proto(message: answer_pb2.Completion, peer: str) -> Completion:
    """The last event of a stream of the agent `peer`."""
    usage = message.usage
    return Completion(
        finish_reason=_FINISHES_BACK[message.finish_reason],
        usage=Usage(usage.prompt_tokens, usage.completion_tokens, usage.candidate_count, usage.evidence_count),
        timings={timing.stage: duration_from_proto(timing.duration) for timing in message.timings},
        revisions=tuple(revision_from_proto(revision) for revision in message.revisions),
        degradations=tuple(degradation_from_proto(degradation) for degradation in message.degradations),
        resumptions=tuple(Resumption(entry.at_token, entry.exact) for entry in message.resumptions),
        model=message.model,
        model_fingerprint=message.model_fingerprint,
        error=from_status(message.error, peer) if message.HasField("error") else None,
    )


def generation_options_to_proto(options: SamplingOptions) -> answer_pb2.GenerationOptions:
    """What is wanted of a generation."""
    return answer_pb2.GenerationOptions(
        model=options.model,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop,
        json_schema=options.json_schema,
        top_logprobs=options.top_logprobs,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
    )


def generation_options_from_proto(message: answer_pb2.GenerationOptions) -> SamplingOptions:
    """What is wanted of a generation."""
    return SamplingOptions(
        model=message.model,
        max_tokens=message.max_tokens,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        json_schema=message.json_schema,
        top_logprobs=message.top_logprobs,
        frequency_penalty=message.frequency_penalty if message.HasField("frequency_penalty") else None,
        presence_penalty=message.presence_penalty if message.HasField("presence_penalty") else None,
    )


def generation_request_to_proto(request: GenerationRequest) -> generator_service_pb2.GenerateRequest:
    """What to write."""
    resume = request.resume
    return generator_service_pb2.GenerateRequest(
        messages=[message_to_proto(message) for message in request.messages],
        question=request.question,
        sources=[source_to_proto(source) for source in request.sources],
        options=generation_options_to_proto(request.options),
        tools=[tool_to_proto(tool) for tool in request.tools],
        resume=None
        if resume is None
        else generator_service_pb2.Resume(
            model_fingerprint=resume.model_fingerprint, token_ids=resume.token_ids, text=resume.text
        ),
    )


def generation_request_from_proto(message: generator_service_pb2.GenerateRequest) -> GenerationRequest:
    """What to write; the question is that of the last user message where none is given."""
    messages = tuple(message_from_proto(entry) for entry in message.messages)
    asked = (entry.text for entry in reversed(messages) if entry.role is Role.USER)
    resume = None
    if message.HasField("resume"):
        resume = ResumePoint(message.resume.model_fingerprint, tuple(message.resume.token_ids), message.resume.text)
    return GenerationRequest(
        messages=messages,
        question=message.question or next(asked, ""),
        sources=tuple(source_from_proto(source) for source in message.sources),
        options=generation_options_from_proto(message.options),
        tools=tuple(tool_from_proto(tool) for tool in message.tools),
        resume=resume,
    )


def heartbeat() -> answer_pb2.Heartbeat:
    """A sign of life."""
    return answer_pb2.Heartbeat()

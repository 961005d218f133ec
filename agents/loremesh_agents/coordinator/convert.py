"""The coordinator's messages between `loremesh.v1` and the domain."""

from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import message_pb2

from loremesh_agents.coordinator.events import (
    CancelTurn,
    Event,
    Heartbeat,
    Question,
    Sources,
    ToolResult,
    Turn,
    TurnEvent,
)
from loremesh_agents.domain.answer import Citation, Completion, Degradation, TokenDelta
from loremesh_agents.domain.conversation import ToolCall
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.plan import Plan, Route
from loremesh_agents.runtime import wire

_ROUTES = {
    Route.RETRIEVAL: pb.ROUTE_RETRIEVAL,
    Route.SQL: pb.ROUTE_SQL,
    Route.RETRIEVAL_AND_SQL: pb.ROUTE_RETRIEVAL_AND_SQL,
    Route.DIRECT: pb.ROUTE_DIRECT,
}
_ROUTES_BACK = {proto: route for route, proto in _ROUTES.items()}


def question_from_proto(message: pb.AskRequest) -> Question:
    """A question."""
    return Question(
        retrieval=wire.retrieval_request(
            message.question,
            message.collections,
            message.retrieval,
            message.consistency,
            # An Ask names no context: it follows from the history.
            pb.Plan().context,
        ),
        history=tuple(wire.message_from_proto(entry) for entry in message.history),
        route=_ROUTES_BACK.get(message.route),
        options=wire.generation_options_from_proto(message.generation),
        prompt_token_budget=message.prompt_token_budget,
        tool_rounds=message.tool_rounds,
    )


def chat_input_from_proto(message: pb.ChatRequest) -> Turn | CancelTurn:
    """A turn, or the cancel of one."""
    if message.HasField("cancel"):
        return CancelTurn(message.cancel.turn_id)
    turn = message.turn
    budget = wire.duration_from_proto(turn.budget) if turn.HasField("budget") else None
    return Turn(turn.turn_id, question_from_proto(turn.ask), budget)


def plan_to_proto(plan: Plan) -> pb.Plan:
    """A plan."""
    return pb.Plan(
        route=_ROUTES[plan.route],
        standalone_question=plan.standalone_question,
        steps=[
            pb.PlanStep(agent=step.agent, action=step.action, budget=wire.duration_to_proto(step.budget))
            for step in plan.steps
        ],
        context=wire.retrieval_context_to_proto(plan.context),
        budget=wire.duration_to_proto(plan.budget),
    )


def tool_result_to_proto(result: ToolResult) -> message_pb2.ToolResult:
    """What a tool gave back."""
    return message_pb2.ToolResult(
        tool_call_id=result.tool_call_id,
        name=result.name,
        failed=result.failed,
        text=result.text,
        evidence_ids=result.evidence_ids,
    )


def event_to_proto(event: Event) -> pb.AskResponse:
    """An event of an answer."""
    match event:
        case TokenDelta():
            response = pb.AskResponse()
            wire.write_delta(event, response.delta)
            return response
        case Citation():
            return pb.AskResponse(citation=wire.citation_to_proto(event))
        case Evidence():
            return pb.AskResponse(evidence=wire.evidence_to_proto(event))
        case Plan():
            return pb.AskResponse(plan=plan_to_proto(event))
        case Sources():
            sources = [wire.source_to_proto(source) for source in event.sources]
            return pb.AskResponse(sources=pb.Sources(sources=sources))
        case ToolCall():
            return pb.AskResponse(tool_call=wire.tool_call_to_proto(event))
        case ToolResult():
            return pb.AskResponse(tool_result=tool_result_to_proto(event))
        case Degradation():
            return pb.AskResponse(degradation=wire.degradation_to_proto(event))
        case Heartbeat():
            return pb.AskResponse(heartbeat=wire.heartbeat())
        case Completion():
            return pb.AskResponse(completion=wire.completion_to_proto(event))


def turn_event_to_proto(event: TurnEvent) -> pb.ChatResponse:
    """An event of a turn."""
    return pb.ChatResponse(turn_id=event.turn_id, event=event_to_proto(event.event))

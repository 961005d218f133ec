"""Prints an answer as its events come."""

import json

import click
from google.protobuf import json_format
from loremesh.v1 import answer_pb2, coordinator_service_pb2, evidence_pb2, synthesizer_service_pb2

from loremesh_agents.cli.exits import FAILED, NO_ANSWER, OK

_EDGES = {
    evidence_pb2.EDGE_KIND_NAMED_IN_QUESTION: "names",
    evidence_pb2.EDGE_KIND_TITLE: "is the title of",
    evidence_pb2.EDGE_KIND_MENTIONS: "mentions",
    evidence_pb2.EDGE_KIND_REFERS_TO: "links to",
    evidence_pb2.EDGE_KIND_SIMILAR: "is like",
    evidence_pb2.EDGE_KIND_EARLIER_TURN: "continues",
}


def to_json(message: coordinator_service_pb2.AskResponse | coordinator_service_pb2.ChatResponse) -> str:
    """An event as one line of JSON."""
    return json.dumps(json_format.MessageToDict(message), ensure_ascii=False)


def exit_code(completion: answer_pb2.Completion) -> int:
    """What an answer that has ended means for a script."""
    match completion.finish_reason:
        case answer_pb2.FINISH_REASON_NO_ANSWER:
            return NO_ANSWER
        case answer_pb2.FINISH_REASON_ERROR:
            return FAILED
        case _:
            return OK


def _plain(text: str) -> str:
    """What a model wrote, as one line without control characters: a terminal obeys them."""
    return "".join(character if character.isprintable() else " " for character in text)


class AnswerView:
    """Prints tokens as they come, and at the end the sources that the answer cites.

    Args:
        why: Whether to show how each source was found.
    """

    def __init__(self, *, why: bool) -> None:
        self._why = why
        self._sources: dict[int, synthesizer_service_pb2.Source] = {}
        self._evidence: dict[str, evidence_pb2.Evidence] = {}
        self._cited: dict[int, None] = {}
        self._degradations: list[answer_pb2.Degradation] = []

    def show(self, event: coordinator_service_pb2.AskResponse) -> None:
        """Prints what an event says."""
        match event.WhichOneof("event"):
            case "delta":
                click.echo(event.delta.text, nl=False)
            case "sources":
                self._sources = {source.number: source for source in event.sources.sources}
            case "evidence":
                self._evidence[event.evidence.evidence_id] = event.evidence
            case "tool_call":
                self._call_line(f"{event.tool_call.name} {event.tool_call.arguments_json}")
            case "tool_result":
                result = event.tool_result
                outcome = (
                    _plain(result.text) if result.failed else f"found {', '.join(result.evidence_ids) or 'nothing'}"
                )
                self._call_line(f"{result.name}: {outcome}")
            case "citation":
                self._cited.setdefault(event.citation.number)
            case "degradation":
                self._degradations.append(event.degradation)
            case "completion":
                self._finish()
            case _:
                pass

    def _call_line(self, said: str) -> None:
        click.secho(f"  ({_plain(said)})", dim=True, err=True)

    def _finish(self) -> None:
        click.echo()
        if self._cited:
            click.echo()
            click.secho("Sources", bold=True)
        for number in sorted(self._cited):
            source = self._sources[number]
            click.echo(
                click.style(f"  [{number}] ", fg="cyan") + source.title + (f"  {source.uri}" if source.uri else "")
            )
            if self._why:
                self._show_why(source)
        for degradation in self._degradations:
            click.secho(f"  ({degradation.agent}: {degradation.detail})", fg="yellow", err=True)

    def _show_why(self, source: synthesizer_service_pb2.Source) -> None:
        for evidence_id in source.evidence_ids:
            evidence = self._evidence.get(evidence_id)
            if evidence is None:
                continue
            steps = ["the question"]
            for step in evidence.why.path:
                node = step.entity if step.WhichOneof("node") == "entity" else f"“{step.title}”"
                steps.append(f"{_EDGES.get(step.edge, 'leads to')} → {node}")
            click.secho(f"      {' '.join(steps)}  (score {evidence.score:.2f})", dim=True)

"""Quality of the extractive answers, through the coordinator's Ask over gRPC, on a data set in BEIR layout.

queries.jsonl gives the right answers of a question as `metadata.answers` (or `metadata.answer`); questions without are left out. Texts are compared
as SQuAD does it (Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016): lower case, without punctuation, articles and
markers of citations. Of several right answers the one that fits best counts.

Questions to be answered with yes or no are counted (`yes_no`) and enter no other figure: quotations cannot say either.
"""

import argparse
import asyncio
import json
import math
import re
import statistics
import string
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop
from loremesh.v1 import answer_pb2, coordinator_service_pb2_grpc
from loremesh.v1 import coordinator_service_pb2 as ask_pb

from bench.beir import COLLECTION, ingest, read_documents, rows
from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import load
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.logs import configure_logging

_BUDGET = 30.0
_MARKER = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_YES_OR_NO = ({"yes"}, {"no"})


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its right answers, and its kind where the data set has kinds."""

    text: str
    gold: tuple[str, ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What Ask gave: the text, each cited statement with the passage that it rests on, all passages, and whether it says that it is none."""

    text: str
    cited: tuple[tuple[str, str], ...]
    evidence: tuple[str, ...]
    refused: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", choices=("minilm", "none"), default="minilm")
    parser.add_argument("--queries", type=int, default=0, help="Only the first so many queries; 0 for all.")
    parser.add_argument("--failures", type=Path, help="JSONL file for the questions whose answer is not in the text.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is None:
        sys.exit("answers needs --data DIR, a folder with corpus.jsonl and queries.jsonl")
    configure_logging("ERROR", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments))


def read_questions(path: Path) -> list[Question]:
    """The questions of a queries.jsonl that have right answers."""
    found: list[Question] = []
    for row in rows(path):
        metadata = row.get("metadata", {})
        gold = metadata.get("answers", metadata.get("answer", ()))
        gold = (gold,) if isinstance(gold, str) else tuple(gold)
        if gold:
            found.append(Question(row["text"], gold, str(metadata.get("type", ""))))
    return found


def normalised(text: str) -> str:
    """Words of a text as SQuAD compares them, joined by one space."""
    folded = _MARKER.sub(" ", text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", folded).split())


def contains(text: str, gold: Sequence[str]) -> bool:
    """Whether one of the right answers is in a text, in whole words."""
    padded = f" {normalised(text)} "
    return any(f" {normalised(answer)} " in padded for answer in gold)


def token_f1(text: str, gold: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of a text's words, of the right answer that gives the most."""
    words = Counter(normalised(text).split())
    best = 0.0
    for answer in gold:
        right = Counter(normalised(answer).split())
        if shared := (words & right).total():
            best = max(best, 2 * shared / (words.total() + right.total()))
    return best


def scores(question: Question, answer: Answer) -> dict[str, float]:
    """The figures of one answer, each 0 to 1."""
    gold = question.gold
    return {
        "contains_gold": float(contains(answer.text, gold)),
        "f1": token_f1(answer.text, gold),
        "cited_gold": float(
            any(contains(statement, gold) and contains(passage, gold) for statement, passage in answer.cited)
        ),
        "refused": float(answer.refused),
        "evidence_gold": float(any(contains(passage, gold) for passage in answer.evidence)),
        "words": len(answer.text.split()),
    }


def figures(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, float]:
    """Means and standard errors, in per cent; `words` is a mean as it is."""
    pairs = [
        (question, answer) for question, answer in zip(questions, answers, strict=True) if not _yes_or_no(question)
    ]
    columns: dict[str, list[float]] = defaultdict(list)
    for question, answer in pairs:
        for name, value in scores(question, answer).items():
            columns[name].append(value)
    found = {"yes_no": round(100 * (1 - len(pairs) / len(questions)), 2)} if questions else {}
    for name, values in columns.items():
        scale = 1 if name == "words" else 100
        found[name] = round(scale * statistics.fmean(values), 2)
        if name != "words" and len(values) > 1:
            found[f"{name}_se"] = round(scale * statistics.stdev(values) / math.sqrt(len(values)), 2)
    return found


def _yes_or_no(question: Question) -> bool:
    return {normalised(answer) for answer in question.gold} in _YES_OR_NO


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    questions = read_questions(arguments.data / "queries.jsonl")
    questions = questions[: arguments.queries] if arguments.queries else questions
    with tempfile.TemporaryDirectory() as folder:
        stores = {"data": folder, "embedder": "none" if arguments.encoder == "none" else "minilm://"}
        async with running(("all",), load(None, {"stores": stores}).settings) as mesh:
            knowledge = open_channel(mesh.targets["knowledge"])
            coordinator = open_channel(mesh.targets["coordinator"])
            try:
                passages = await ingest(knowledge, read_documents(arguments.data / "corpus.jsonl"))
                answers = [await _ask(coordinator, question.text) for question in questions]
            finally:
                await coordinator.close(None)
                await knowledge.close(None)
    if arguments.failures is not None:
        _write_failures(arguments.failures, questions, answers)
    kinds = sorted({question.kind for question in questions})
    return {
        "benchmark": "answers",
        "data": arguments.data.name,
        "encoder": arguments.encoder,
        "questions": len(questions),
        "passages": passages,
        **figures(questions, answers),
        "contains_gold_by_kind": _by_kind(kinds, questions, answers),
    }


def _by_kind(kinds: Sequence[str], questions: Sequence[Question], answers: Sequence[Answer]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for kind in kinds:
        pairs = [pair for pair in zip(questions, answers, strict=True) if pair[0].kind == kind]
        columns = figures([question for question, _ in pairs], [answer for _, answer in pairs])
        if "contains_gold" in columns:
            found[kind] = columns["contains_gold"]
    return found


async def _ask(channel: grpc.aio.Channel, question: str) -> Answer:
    stub: coordinator_service_pb2_grpc.CoordinatorServiceAsyncStub = (
        coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)
    )
    request = ask_pb.AskRequest(question=question, collections=[COLLECTION])
    passages: dict[str, str] = {}
    citations: list[ask_pb.Citation] = []
    text = ""
    refused = False
    async with Peer("coordinator").stream(stub.Ask, request, Deadline.after(_BUDGET)) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "evidence":
                    passage = event.evidence.passage
                    passages[event.evidence.evidence_id] = f"{passage.title}. {passage.text}"
                case "delta":
                    text += event.delta.text
                case "citation":
                    citations.append(event.citation)
                case "completion":
                    refused = event.completion.finish_reason == answer_pb2.FINISH_REASON_NO_ANSWER
                case _:
                    pass
    encoded = text.encode()
    cited = tuple(
        (encoded[citation.start_byte : citation.end_byte].decode(), passages[citation.evidence_id])
        for citation in citations
    )
    return Answer(text, cited, tuple(passages.values()), refused)


def _write_failures(path: Path, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for question, answer in zip(questions, answers, strict=True):
            found = scores(question, answer)
            if not found["contains_gold"] and not _yes_or_no(question):
                row = {
                    "question": question.text,
                    "kind": question.kind,
                    "gold": question.gold,
                    "answer": answer.text,
                    "in_evidence": bool(found["evidence_gold"]),
                }
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

"""Understands a question from the turns before it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loremesh_agents.domain.conversation import NO_CONTEXT, Message, PassageReference, RetrievalContext, Role

_NAME = re.compile(
    r"[A-Z][\w’'.-]*\w(?:\s+(?:(?:of|the|de|von)\s+)*[A-Z0-9][\w’'.-]*\w)*|`[^`]+`|\"[^\"]+\"|\b\w*_\w+\b", re.UNICODE
)
_OPENERS = re.compile(
    r"^(?:who|whom|whose|what|which|when|where|why|how|is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|and|but|"
    r"so|or|also|then|the|a|an|in|on|at|for|from|of|to|by|tell|please|give|name|it|he|she|they|this|that|these|those|if|as)\b\s*",
    re.IGNORECASE,
)
_CONTINUES = re.compile(
    r"^\s*(?:and|but|also|or|so|then|what about|how about|what else|since when|why|how so)\b", re.IGNORECASE
)
_PRONOUN = re.compile(
    r"\b(?:he|him|his|she|her|hers|it|its|they|them|their|theirs|this|these|those|that one|there|the same|the former|the latter)\b",
    re.IGNORECASE,
)
_FEW_WORDS = 3
_MOST_SUBJECTS = 8


@dataclass(frozen=True, slots=True)
class EarlierTurn:
    """A question that was answered.

    Attributes:
        question: As it was searched.
        answer: Its text.
        titles: Titles of the passages that the answer cited.
        passages: These passages.
    """

    question: str
    answer: str
    titles: tuple[str, ...] = ()
    passages: tuple[PassageReference, ...] = ()


@dataclass(frozen=True, slots=True)
class Standalone:
    """A question that can be searched by itself, and what the turns before it were about."""

    question: str
    context: RetrievalContext


def names(text: str) -> tuple[str, ...]:
    """The names in a text, in order, each once: capitalised spans, quoted words and identifiers."""
    found: dict[str, None] = {}
    for match in _NAME.finditer(text):
        name = match[0].strip('`"')
        while (opener := _OPENERS.match(name)) is not None:
            name = name[opener.end() :]
        if name and any(character.isalpha() for character in name):
            found.setdefault(name.rstrip(".'’-"))
    return tuple(found)


def is_follow_up(question: str) -> bool:
    """Whether a question leaves out its subject: it names nothing of its own, and goes on, points back or is very short."""
    if names(question):
        return False
    words = re.findall(r"\w+", question)
    return len(words) <= _FEW_WORDS or bool(_CONTINUES.match(question) or _PRONOUN.search(question))


def standalone(question: str, earlier: Sequence[EarlierTurn]) -> Standalone:
    """The question with its subject.

    Args:
        question: As it was asked.
        earlier: Turns before it, the oldest first.

    Returns:
        The question itself where it is no follow-up or nothing came before it. Else a question that names the subjects of the newest
        turn, with these and the passages cited there as context.
    """
    if not earlier or not is_follow_up(question):
        return Standalone(question, NO_CONTEXT)
    last = earlier[-1]
    subjects = dict.fromkeys((*names(last.question), *last.titles, *names(last.answer)))
    entities = tuple(subjects)[:_MOST_SUBJECTS]
    context = RetrievalContext(entities, last.passages[:_MOST_SUBJECTS])
    asked_before = last.question.strip().rstrip("?. ")
    if re.match(r"^\s*(?:and|but|also|or)\b", question, re.IGNORECASE):
        text = question.strip()
        joined = f"{asked_before}, {text[0].lower()}{text[1:]}"
        unnamed = [name for name in entities if name not in joined]
    else:
        joined = question.strip()
        unnamed = list(entities)
    about = f" ({', '.join(unnamed[:3])})" if unnamed else ""
    return Standalone(joined + about, context)


def turns(history: Sequence[Message]) -> tuple[EarlierTurn, ...]:
    """The turns of a conversation that came as messages."""
    found: list[EarlierTurn] = []
    question = ""
    for message in history:
        if message.role is Role.USER:
            question = standalone(message.text, found).question
        elif message.role is Role.ASSISTANT and question:
            found.append(EarlierTurn(question, message.text))
            question = ""
    if question:
        found.append(EarlierTurn(question, ""))
    return tuple(found)

"""Answers a question: retrieval, synthesis and generation within one budget."""

from collections.abc import AsyncGenerator

from loremesh_agents.coordinator.answer import Agents, Answer
from loremesh_agents.coordinator.events import Event, Question
from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import InvalidRequest, NotImplementedYet
from loremesh_agents.domain.followup import EarlierTurn, standalone, turns
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.message_pace import MessagePace
from loremesh_agents.domain.plan import Plan, PlanStep, Route
from loremesh_agents.domain.structured_output import parsed_schema
from loremesh_agents.ports.peers import Generator, Retriever, Synthesizer


class CoordinatorService:
    """Answers questions with the help of the other agents.

    Args:
        retriever: Finds the evidence.
        synthesizer: Makes the prompt.
        generator: Writes the answer.
        settings: Budgets and limits.
        pace: Says how far apart the messages of a stream are; None for one of its own.
    """

    def __init__(
        self,
        retriever: Retriever,
        synthesizer: Synthesizer,
        generator: Generator,
        settings: CoordinatorSettings,
        *,
        pace: MessagePace | None = None,
    ) -> None:
        self._agents = Agents(retriever, synthesizer, generator)
        self._settings = settings
        self._pace = pace or MessagePace()

    @property
    def settings(self) -> CoordinatorSettings:
        """Budgets and limits."""
        return self._settings

    def plan(self, question: Question, earlier: tuple[EarlierTurn, ...] | None, *, deadline: Deadline) -> Plan:
        """What `ask` would do.

        Args:
            question: The question.
            earlier: Turns before it; None to take them from the question's history.
            deadline: When the answer must be there.

        Raises:
            NotImplementedYet: The route needs an agent that this build does not have.
            InvalidRequest: The question holds nothing that can be searched, or the JSON schema is none.
        """
        route = question.route or Route.RETRIEVAL
        if route in (Route.SQL, Route.RETRIEVAL_AND_SQL):
            raise NotImplementedYet("loremesh.v1.SqlService")
        if route is Route.RETRIEVAL and not search_terms(question.retrieval.question):
            raise InvalidRequest.of("question", "it must hold at least one word or number")
        if question.options.json_schema:
            parsed_schema(question.options.json_schema, "generation.json_schema")
        asked = standalone(question.retrieval.question, turns(question.history) if earlier is None else earlier)
        budget = deadline.remaining()
        spend = self._spendable(deadline).remaining()
        if route is Route.DIRECT:
            steps: tuple[PlanStep, ...] = (PlanStep("generator", "generate", spend),)
        else:
            retrieval = spend * self._settings.retrieval_share
            synthesis = (spend - retrieval) * self._settings.synthesis_share
            steps = (
                PlanStep("retriever", "retrieve", retrieval),
                PlanStep("synthesizer", "synthesize", synthesis),
                PlanStep("generator", "generate", spend - retrieval - synthesis),
            )
        return Plan(route, asked.question, steps, asked.context, budget)

    def ask(
        self, question: Question, *, deadline: Deadline, earlier: tuple[EarlierTurn, ...] | None = None
    ) -> AsyncGenerator[Event]:
        """Streams the answer; the last event is the completion. Closing the stream cancels every call downstream.

        Args:
            question: The question.
            deadline: When the answer must be there; what does not fit is left out and named.
            earlier: Turns before it; None to take them from the question's history.

        Raises:
            NotImplementedYet: The route needs an agent that this build does not have.
            LoremeshError: What a peer that the answer cannot do without raised.
        """
        plan = self.plan(question, earlier, deadline=deadline)
        return Answer(
            self._agents, self._settings, question, plan, pace=self._pace, deadline=self._spendable(deadline)
        ).events()

    def _spendable(self, deadline: Deadline) -> Deadline:
        return deadline.shrink(reserve=min(self._settings.reserve, deadline.remaining() / 10))

"""What the coordinator will do for a question."""

from dataclasses import dataclass
from enum import Enum

from loremesh_agents.domain.conversation import RetrievalContext


class Route(Enum):
    """Where the evidence comes from."""

    RETRIEVAL = "retrieval"
    SQL = "sql"
    RETRIEVAL_AND_SQL = "retrieval and sql"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A call of another agent; `budget` is the most seconds that it may take."""

    agent: str
    action: str
    budget: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done.

    Attributes:
        route: Where the evidence comes from.
        standalone_question: The question as it is searched, with a follow-up's subject filled in.
        steps: In their order.
        context: What earlier turns were about.
        budget: Seconds for all of it.
    """

    route: Route
    standalone_question: str
    steps: tuple[PlanStep, ...]
    context: RetrievalContext
    budget: float

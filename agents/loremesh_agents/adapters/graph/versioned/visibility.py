"""Which passages of a read are there: what the engine cannot judge."""

from loremesh_agents.adapters.graph.versioned.cells import View, writer_of
from loremesh_agents.adapters.graph.versioned.engine import PassageRow
from loremesh_agents.adapters.graph.versioned.identifiers import version_of
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted


def is_there(row: PassageRow, view: View) -> bool:
    """Whether a passage has been written and has not ended, for a reader with this view."""
    return view.counts(version_of(row.ref)) and not any(view.counts(writer_of(value)) for value in row.ends)


def require_time(deadline: Deadline) -> None:
    """Raises where nothing is left.

    Raises:
        BudgetExhausted: The deadline has passed.
    """
    if deadline.expired:
        raise BudgetExhausted("graph store", "query")

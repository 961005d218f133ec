"""What engines tell of their own load."""

from dataclasses import dataclass
from typing import Protocol

from loremesh_agents.domain.deadline import Deadline

_LITTLE_ROOM = 0.05


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of one engine, of all who use it together.

    Attributes:
        running: Generations that it is at work on.
        waiting: Generations that it has taken and not begun.
        free: Share of its memory for prompts and answers that is free, 0 to 1; None where it does not say.
    """

    running: int
    waiting: int
    free: float | None = None

    @property
    def saturated(self) -> bool:
        """Whether what is sent to it now will wait there."""
        return self.waiting > 0 or (self.free is not None and self.free < _LITTLE_ROOM)


class LoadGauge(Protocol):
    """Asks one engine for its load.

    Errors raised: `BackendUnavailable`, `BudgetExhausted`.
    """

    async def load(self, *, deadline: Deadline) -> EngineLoad | None:
        """Its load; None where it does not tell."""
        ...

    async def close(self) -> None:
        """Frees the connection."""
        ...
